"""The timeline's page has rules and a script of its own: lanes above one another, and a cursor that moves over them."""

STYLE = """
.pane { overflow-x: auto; }
.stretch { min-width: 100%; }
.wide + .wide { margin-top: 18px; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; padding-left: 12px; padding-right: 0; }
.numbers th, .numbers td { white-space: nowrap; }
.numbers thead th { white-space: normal; }
figcaption small { margin-left: 8px; font-size: 13px; }
h3 small { display: inline-block; }
.plot { position: relative; outline-offset: -2px; cursor: crosshair; touch-action: pan-y; }
.plot figure { margin: 0 0 10px; }
.plot svg { display: block; width: 100%; background: var(--page); border-radius: 3px; }
.ribbon svg { height: 26px; }
.lane svg { height: 96px; }
.plot figcaption { position: relative; z-index: 1; background: var(--card); padding: 2px 0; }
figcaption { font-size: 13px; color: var(--soft); }
path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.line0 { stroke: var(--accent); stroke-width: 1.6; }
.line1 { stroke: var(--quiet); stroke-width: 1.3; }
.marks { position: absolute; inset: 0; }
.marks i { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--warn); opacity: 0.45; }
.cursor { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--ink); }
.cursor, .marks { pointer-events: none; }
.scale { display: flex; justify-content: space-between; font-size: 13px; color: var(--soft); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0 0; padding: 0; }
.legend li { font-size: 14px; }
.legend b { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; }
.legend small { margin-left: 2px; }
.now { display: flex; gap: 16px; align-items: center; margin-top: 12px; min-height: 24px; }
.now img { height: 96px; width: auto; border-radius: 4px; }
.now p { margin: 0; color: var(--ink); font-variant-numeric: tabular-nums; }
details { margin-top: 10px; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; padding: 8px 0; }
.strip { display: flex; flex-wrap: wrap; gap: 4px; margin-top: 8px; }
.strip img { height: 64px; width: auto; }
.moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 16px; }
.moments figure { margin: 0; }
.moments img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; }
.moments figcaption { margin-top: 4px; overflow-wrap: anywhere; }
.moments figcaption b { color: var(--ink); }
.frame { display: none; }
.frame:target { display: flex; position: fixed; inset: 0; background: #000c; z-index: 2; }
.frame a { margin: auto; padding: 12px; text-decoration: none; }
.frame img { max-width: 96vw; max-height: 82vh; }
.frame span { display: block; color: #fff; text-align: center; margin-top: 8px; }
@media print { .frame, .cursor { display: none !important; } }
"""

SCRIPT = """
for (const track of document.querySelectorAll('.track')) {
  const source = track.querySelector('script');
  if (!source) continue;
  const data = JSON.parse(source.textContent);
  const plot = track.querySelector('.plot'), cursor = track.querySelector('.cursor');
  const text = track.querySelector('.now p'), picture = track.querySelector('.now img');
  const stored = [...track.querySelectorAll('.strip img')];
  const last = data.rows.length - 1;
  let at = 0, zoom = 1;
  const clock = s => {
    const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60, two = n => String(n).padStart(2, '0');
    return (h ? h + ':' + two(m) : m) + ':' + two(Math.floor(s) % 60);
  };
  const show = i => {
    at = Math.max(0, Math.min(last, i));
    const seconds = data.seconds[at];
    if (seconds === null) return;
    cursor.hidden = false;
    cursor.style.left = 100 * seconds / data.length + '%';
    const pane = track.querySelector('.pane'), x = cursor.offsetLeft;
    if (x < pane.scrollLeft || x > pane.scrollLeft + pane.clientWidth) pane.scrollLeft = x - pane.clientWidth / 2;
    const parts = [clock(seconds)];
    for (const [name, list] of Object.entries(data.classes))
      if (list[at] >= 0) parts.push(name + ': ' + data.names[list[at]]);
    for (const [name, list] of Object.entries(data.curves))
      if (list[at] !== null) parts.push(name.replace('_', ' ') + ' ' + list[at]);
    text.textContent = parts.join(' \\u00b7 ');
    plot.setAttribute('aria-valuenow', Math.round(seconds));
    plot.setAttribute('aria-valuetext', text.textContent);
    const away = image => Math.abs(image.dataset.row - data.rows[at]);
    let best = stored[0];
    for (const image of stored) if (away(image) < away(best)) best = image;
    if (best) { picture.src = best.src; picture.alt = best.alt; picture.hidden = false; }
  };
  const nearest = seconds => {
    let low = 0, high = last;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (data.seconds[middle] < seconds) low = middle + 1; else high = middle;
    }
    return low > 0 && seconds - data.seconds[low - 1] < data.seconds[low] - seconds ? low - 1 : low;
  };
  const follow = event => {
    const box = plot.getBoundingClientRect();
    show(nearest(data.length * (event.clientX - box.left) / box.width));
  };
  plot.addEventListener('pointerdown', event => { plot.setPointerCapture(event.pointerId); follow(event); });
  plot.addEventListener('pointermove', event => { if (event.buttons) follow(event); });
  plot.addEventListener('keydown', event => {
    const far = Math.ceil(last / 20);
    const step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -far, PageDown: far}[event.key];
    if (step) show(at + step * (event.shiftKey ? 10 : 1));
    else if (event.key === '+' || event.key === '-') {
      zoom = Math.max(1, Math.min(64, zoom * (event.key === '+' ? 2 : 0.5)));
      plot.parentNode.style.width = 100 * zoom + '%';
      show(at);
    }
    else if (event.key === 'Home') show(0);
    else if (event.key === 'End') show(last);
    else return;
    event.preventDefault();
  });
  show(0);
}
addEventListener('keydown', event => { if (event.key === 'Escape' && location.hash) location.hash = '#close'; });
"""
