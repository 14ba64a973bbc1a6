"""The board's page has rules and a script of its own: it loads its data again and again, and draws curves from them.

The script reads `board.state(...)` of runs.js and `board.data(...)` of data/RUN.js, which call it. The chosen runs, the
axis, the scale and the smoothing stand in the page's address, so that a copied address shows the same.
"""

STYLE = """
#runs td { white-space: nowrap; }
#runs th[scope=row] { min-width: min(15em, 60vw); overflow-wrap: anywhere; }
#runs th small { display: block; margin: 0 0 4px 46px; }
#runs label { display: flex; align-items: baseline; padding: 8px 0; margin: -6px 0; cursor: pointer;
  color: var(--ink); }
#runs input { flex: none; width: 18px; height: 18px; margin: 1px 8px 0 0; align-self: flex-start; }
.key { flex: none; display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
#controls { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: center; position: sticky; top: 0; z-index: 2;
  background: var(--page); padding: 10px 0; margin-top: 20px; color: var(--soft); }
#controls[hidden] { display: none; }
#controls label { display: flex; gap: 8px; align-items: center; min-height: 32px; }
#controls select, #controls input { font: inherit; color: inherit; accent-color: var(--accent); }
#controls select { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 4px 8px; }
#controls input[type=checkbox] { width: 18px; height: 18px; }
#controls output { min-width: 3.5em; font-variant-numeric: tabular-nums; }
#curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 16px;
  align-items: start; }
#curves section { margin: 0; min-width: 0; padding: 16px 18px; }
#curves h3 { margin: 0 0 4px; }
#curves svg { display: block; width: 100%; height: 240px; touch-action: pan-y; cursor: crosshair; outline-offset: 2px; }
#curves text { font: 12px system-ui, sans-serif; fill: var(--soft); }
#curves path { fill: none; stroke-linejoin: round; }
.grid { stroke: var(--line); }
.cursor { stroke: var(--soft); stroke-dasharray: 3 3; }
.raw { stroke-width: 1; opacity: 0.4; }
.curve { stroke-width: 2; }
.mark { stroke-width: 3; }
.values { list-style: none; margin: 6px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 14px;
  min-height: 22px; font-variant-numeric: tabular-nums; }
.values li { display: flex; align-items: baseline; overflow-wrap: anywhere; }
#pictures:not([hidden]) { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 20px; }
#pictures h3 { grid-column: 1 / -1; margin: 0; }
figure { margin: 0; min-width: 0; }
figure input { width: 100%; max-width: 480px; height: 28px; accent-color: var(--accent); }
figcaption { color: var(--soft); font-size: 14px; margin-bottom: 6px; overflow-wrap: anywhere; }
figure img { border-radius: 4px; }
"""

SCRIPT = r"""
const board = (() => {
  const COLOURS = 8, NS = 'http://www.w3.org/2000/svg';
  const byId = id => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const draw = (tag, attributes, text) => {
    const node = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const form = byId('controls'), asked = new URLSearchParams(location.hash.slice(1));
  const chosen = new Map();  // run ─► colour
  const known = new Map();   // run ─► its data, with their version
  let state = null, cursor = null, picked = asked.has('runs');
  const steps = new Map();   // run ─► step of the picture that is looked at
  if (asked.get('x')) form.x.value = asked.get('x');
  form.log.checked = asked.get('log') === '1';
  if (asked.get('smooth')) form.smooth.value = asked.get('smooth');

  const load = source => {
    const script = make('script', {src: source});
    script.onload = script.onerror = () => script.remove();
    document.head.append(script);
  };
  const remember = () => {
    const parts = new URLSearchParams({x: form.x.value, log: form.log.checked ? '1' : '0', smooth: form.smooth.value});
    if (picked) parts.set('runs', [...chosen.keys()].join(' '));
    history.replaceState(null, '', '#' + parts);
  };
  const choose = (id, on) => {
    if (!on) return chosen.delete(id);
    if (chosen.has(id)) return;
    const taken = new Set(chosen.values());
    let colour = 0;
    while (taken.has(colour)) colour++;
    chosen.set(id, colour);
  };
  const ink = id => `var(--c${chosen.get(id) % COLOURS})`;
  const dash = id => chosen.get(id) < COLOURS ? '' : '6 3';
  const nameOf = id => state.runs.find(run => run.id === id).cells[0][1];
  const shown = () => [...chosen.keys()].filter(id => known.has(id) && state.runs.some(run => run.id === id));
  const need = () => {
    for (const run of state.runs)
      if (chosen.has(run.id) && run.version && known.get(run.id)?.version !== run.version)
        load(`data/${run.id}.js?${run.version}`);
  };

  const table = () => {
    const left = byId('runs').querySelector('.wide')?.scrollLeft || 0, focused = document.activeElement?.name;
    const heads = (state.runs[0]?.cells || []).map(([name]) => name).filter(name => name !== 'note');
    const head = make('tr', {}, ...heads.map(name => make('th', {scope: 'col'}, name)));
    const rows = state.runs.map(run => {
      const box = make('input', {type: 'checkbox', name: run.id});
      box.checked = chosen.has(run.id);
      box.disabled = !run.version;
      box.onchange = () => { picked = true; choose(run.id, box.checked); remember(); need(); render(); };
      const key = make('span', {class: 'key', 'aria-hidden': 'true'});
      if (chosen.has(run.id)) key.style.background = ink(run.id);
      const [[, name], ...cells] = run.cells, note = cells.pop()[1];
      const label = make('label', {}, box, key, make('span', {}, name));
      return make('tr', {}, make('th', {scope: 'row'}, label, ...(note ? [make('small', {}, note)] : [])),
        ...cells.map(([, text]) => make('td', {}, text)));
    });
    const wide = make('div', {class: 'wide'}, make('table', {}, make('thead', {}, head), make('tbody', {}, ...rows)));
    byId('runs').replaceChildren(wide);
    wide.scrollLeft = left;
    if (focused) wide.querySelector(`[name="${CSS.escape(focused)}"]`)?.focus({preventScroll: true});
  };

  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= rough * 0.999);
    const list = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) list.push(i * step);
    return list;
  };
  const short = value => {
    const size = Math.abs(value);
    if (value === 0) return '0';
    for (const [unit, by] of [['M', 1e6], ['k', 1e3]]) if (size >= 10 * by) return +(value / by).toPrecision(3) + unit;
    return size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(4));
  };
  const exact = value => value && Math.abs(value) < 1e-3 ? value.toExponential(3) : String(+value.toPrecision(5));
  const along = (data, step) => {  // the position of a step on the axis that is shown
    if (form.x.value === 'step') return step;
    const points = data.axes[form.x.value];
    if (!points?.length) return NaN;
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle + 1; else high = middle;
    }
    if (!low) return points[0][0] ? points[0][1] * Math.min(1, step / points[0][0]) : points[0][1];
    const [[a, from], [b, to]] = [points[low - 1], points[low]];
    return b > a ? from + (to - from) * Math.min(1, (step - a) / (b - a)) : to;
  };
  const smooth = points => {
    const reach = Math.round(points.length * form.smooth.value / 200), sums = [0];
    for (const [, value] of points) sums.push(sums[sums.length - 1] + value);
    return points.map(([step], i) => {
      const span = Math.min(reach, i, points.length - 1 - i);
      return [step, (sums[i + span + 1] - sums[i - span]) / (2 * span + 1)];
    });
  };
  const nearest = (points, x) => {
    let best = null;
    for (const point of points) if (best === null || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
    return best;
  };

  const panel = name => {
    const lines = [], marks = [];
    let title = name;
    for (const id of shown()) {
      const data = known.get(id), curve = data.curves.find(one => one.name === name);
      if (!curve) continue;
      title = curve.title;
      const place = ([step, value]) => [along(data, step), value];
      const placed = points => points.map(place).filter(([x]) => Number.isFinite(x));
      const raw = placed(curve.points), even = placed(smooth(curve.means.length ? curve.means : curve.points));
      if (raw.length) lines.push({id, raw, even: curve.score ? raw : even, score: curve.score});
      if (name === 'loss') for (const [step, , text] of data.events) marks.push({id, x: along(data, step), text});
    }
    if (!lines.length) return null;
    const box = byId('panel-' + name);
    const values = make('ul', {class: 'values'}), width = Math.max(box.clientWidth - 36, 240), height = 240;
    const left = 54, right = 10, top = 10, bottom = 26;
    const all = lines.flatMap(line => line.raw), logged = form.log.checked && all.some(([, y]) => y > 0);
    const scale = y => logged ? Math.log10(y) : y;
    const ys = all.map(([, y]) => scale(y)).filter(Number.isFinite).sort((a, b) => a - b);
    let low = ys[0], high = ys[ys.length - 1];
    if (name === 'clips_per_s' || name === 'data_wait' || name === 'mfu') low = logged ? low : Math.min(low, 0);
    if (!(high > low)) { const by = Math.abs(low) * 0.1 || 0.5; low -= by; high += by; }
    const least = 0, most = Math.max(...all.map(([x]) => x), 1e-9);
    const X = x => left + (width - left - right) * (x - least) / (most - least);
    const Y = y => top + (height - top - bottom) * (high - scale(y)) / (high - low);
    const chart = draw('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', tabindex: 0,
      'aria-label': `${title} of ${lines.map(line => nameOf(line.id)).join(', ')}`});
    for (const tick of ticks(low, high, 4)) {
      const value = logged ? 10 ** tick : tick;
      chart.append(draw('path', {class: 'grid', d: `M${left} ${Y(value)}H${width - right}`}));
      chart.append(draw('text', {x: left - 7, y: Y(value) + 4, 'text-anchor': 'end'}, short(value)));
    }
    for (const tick of ticks(least, most, width < 420 ? 3 : 6))
      chart.append(draw('text', {x: X(tick), y: height - 8, 'text-anchor': 'middle'}, short(tick)));
    for (const {id, x, text} of marks) if (x >= least && x <= most) {  // ticks at the foot: starts, stops, faults
      const mark = draw('path', {class: 'mark', d: `M${X(x)} ${height - bottom}v-9`, style: `stroke:${ink(id)}`});
      mark.append(draw('title', {}, text));
      chart.append(mark);
    }
    const path = points => points.filter(([, y]) => Number.isFinite(scale(y)))
      .map(([x, y], i) => `${i ? 'L' : 'M'}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join('');
    for (const line of lines) {
      const style = `stroke:${ink(line.id)};stroke-dasharray:${dash(line.id) || 'none'}`;
      if (!line.score) chart.append(draw('path', {class: 'raw', d: path(line.raw), style}));
      chart.append(draw('path', {class: 'curve', d: path(line.even), style}));
      if (line.score || line.raw.length < 3) for (const [x, y] of line.raw)
        if (Number.isFinite(scale(y)))
          chart.append(draw('circle', {cx: X(x), cy: Y(y), r: 3, style: `fill:${ink(line.id)}`}));
    }
    const hair = draw('path', {class: 'cursor', d: ''});
    chart.append(hair);
    const point = x => {
      const at = cursor !== null && x === undefined ? cursor : x;
      const place = at === undefined || at === null ? most : Math.min(most, Math.max(least, at));
      hair.setAttribute('d', at === undefined || at === null ? '' : `M${X(place)} ${top}V${height - bottom}`);
      values.replaceChildren(...lines.map(line => {
        const [px, py] = nearest(line.raw, place), key = make('span', {class: 'key', 'aria-hidden': 'true'});
        key.style.background = ink(line.id);
        return make('li', {}, key, `${nameOf(line.id)} ${exact(py)} at ${short(px)}`);
      }));
    };
    const move = x => { cursor = x; for (const other of panels.values()) other(); };
    const follow = event => {
      const frame = chart.getBoundingClientRect(), across = (event.clientX - frame.left) * width / frame.width;
      move(least + (most - least) * (across - left) / (width - left - right));
    };
    chart.addEventListener('pointermove', follow);
    chart.addEventListener('pointerdown', follow);
    chart.addEventListener('pointerleave', () => move(null));
    chart.addEventListener('keydown', event => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!by) return;
      move(Math.min(most, Math.max(least, (cursor ?? most) + by * (most - least) / 50)));
      event.preventDefault();
    });
    box.replaceChildren(make('h3', {}, title), chart, values);
    point();
    return () => point();
  };

  const panels = new Map();
  const curves = () => {
    const names = [...new Set(shown().flatMap(id => known.get(id).curves.map(curve => curve.name)))];
    names.sort((a, b) => order(a) - order(b));
    panels.clear();
    for (const box of [...byId('curves').children]) if (!names.includes(box.id.slice(6))) box.remove();
    // All boxes first: their number decides how wide each is.
    byId('curves').append(...names.map(name => byId('panel-' + name) || make('section', {id: 'panel-' + name})));
    for (const name of names) {
      const again = panel(name);
      if (again) panels.set(name, again); else byId('panel-' + name).remove();
    }
  };
  const order = name => name === 'loss' ? 0 : /^(eval|val)_/.test(name) ? 1 : 2;

  const pictures = () => {
    const parts = [make('h3', {}, 'Pictures of evaluations')];
    for (const id of shown()) {
      const list = known.get(id).pictures;
      if (!list.length) continue;
      let at = list.findIndex(([step]) => step === steps.get(id));
      if (at < 0) at = list.length - 1;
      const image = make('img', {loading: 'lazy'}), said = make('span');
      const slider = make('input', {type: 'range', min: 0, max: list.length - 1});
      slider.setAttribute('aria-label', `evaluation of ${nameOf(id)}`);
      slider.value = at;
      const show = () => {
        const [step, source] = list[slider.value];
        image.src = `${source}?${known.get(id).version}`;
        image.alt = `${nameOf(id)}, step ${step}: held-out clips, what the model sees, and what it fills in`;
        said.textContent = ` · step ${step.toLocaleString('en')}, ${+slider.value + 1} of ${list.length}`;
        steps.set(id, +slider.value === list.length - 1 ? undefined : step);
      };
      slider.oninput = show;
      show();
      const key = make('span', {class: 'key', 'aria-hidden': 'true'});
      key.style.background = ink(id);
      const caption = make('figcaption', {}, key, nameOf(id), said);
      const sheet = make('div', {class: 'sheet'}, image);
      parts.push(make('figure', {}, caption, ...(list.length > 1 ? [slider] : []), sheet));
    }
    fill('pictures', parts);
  };
  const wide = (head, rows) => make('div', {class: 'wide'}, make('table', {},
    make('thead', {}, make('tr', {}, ...head.map(text => make('th', {scope: 'col'}, text)))),
    make('tbody', {}, ...rows.map(([first, ...cells]) => make('tr', {}, make('th', {scope: 'row'}, first),
      ...cells.map(text => make('td', {}, text)))))));
  const differences = () => {
    const ids = shown(), maps = ids.map(id => new Map(known.get(id).settings));
    const keys = [...new Set(maps.flatMap(map => [...map.keys()]))];
    const rows = keys.map(key => [key, ...maps.map(map => map.has(key) ? map.get(key) : '-')])
      .filter(([, ...cells]) => cells.some(text => text !== cells[0]));
    const parts = [make('h3', {}, 'Settings that differ')];
    if (rows.length) parts.push(wide(['', ...ids.map(nameOf)], rows));
    else parts.push(make('p', {}, 'These runs have the same settings.'));
    fill('differences', ids.length > 1 ? parts : []);
  };
  const events = () => {
    const rows = shown().flatMap(id => known.get(id).events.map(event => [nameOf(id), ...event]));
    const cells = rows.sort((a, b) => b[1] - a[1]).slice(0, 100)
      .map(([name, step, when, text]) => [name, step.toLocaleString('en'), when, text]);
    fill('events', rows.length ? [make('h3', {}, 'Events'), wide(['run', 'step', 'time', ''], cells)] : []);
  };
  const fill = (id, parts) => {
    const box = byId(id), left = box.querySelector('.wide')?.scrollLeft || 0;
    box.hidden = parts.length < 2;
    box.replaceChildren(...parts);
    if (box.querySelector('.wide')) box.querySelector('.wide').scrollLeft = left;
  };
  const render = () => {
    if (!state) return;
    form.hidden = !state.runs.length;
    form.querySelector('output').textContent = form.smooth.value === '0' ? 'none' : `${form.smooth.value / 2} %`;
    table(); curves(); pictures(); differences(); events();
  };
  form.oninput = () => { remember(); render(); };
  form.onsubmit = event => event.preventDefault();
  let width = innerWidth;
  addEventListener('resize', () => { if (innerWidth !== width) { width = innerWidth; render(); } });

  return {
    state: next => {
      state = next;
      if (picked && !chosen.size) for (const id of (asked.get('runs') || '').split(' ')) if (id) choose(id, true);
      if (!picked) {  // until a person chooses: those that run, then the others, eight in all
        const rank = run => run.cells[1][1] === 'running' ? 0 : 1;
        for (const run of [...state.runs].sort((a, b) => rank(a) - rank(b)))
          if (run.version && chosen.size < COLOURS) choose(run.id, true);
      }
      byId('written').textContent = `State of ${state.written}` +
        (state.every_s ? `, renewed every ${state.every_s} s` : '');
      need();
      render();
    },
    data: (id, data) => {
      known.set(id, {...data, version: state?.runs.find(run => run.id === id)?.version});
      render();
    },
    load: () => load('runs.js?' + Date.now()),
    wait: () => state?.every_s || 0,
  };
})();
board.load();
(function again() {
  setTimeout(() => { if (!document.hidden && board.wait()) board.load(); again(); }, 1000 * Math.max(board.wait(), 2));
})();
"""
