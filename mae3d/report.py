"""Pictures and figures -> one page that opens from the file system: index.html beside a folder of images.

    write_report(out, title="Reconstructions", intro=intro, facts=facts, table=table, cards=cards, losses=[])

Every text is escaped, images are relative, there is no script and nothing is fetched.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mae3d.run import read_metrics

PAGE = "index.html"

_STYLE = """
:root { color-scheme: light; --ink: #262a30; --soft: #6a717c; --line: #e1e4e9; --accent: #1f6feb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 0 0 14px; }
p { max-width: 76ch; margin: 0 0 8px; color: var(--soft); }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px; margin-top: 20px; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.5fr); column-gap: 20px; }
@media (max-width: 860px) { .pair { grid-template-columns: minmax(0, 1fr); } }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; color: var(--soft); }
tr:last-child > * { border-bottom: 0; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; padding-right: 0; padding-left: 12px; }
.numbers tbody tr:first-child > * { font-weight: 650; color: var(--ink); }
.numbers td { white-space: nowrap; }
h2 small { font-weight: 400; font-size: 14px; color: var(--soft); margin-left: 10px; }
img { display: block; max-width: 100%; height: auto; }
img + img { margin-top: 20px; padding-top: 20px; border-top: 1px solid var(--line); }
h2, td { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
""".strip()


@dataclass(frozen=True)
class Card:
    """One sample on the page.

    Attributes:
        title: What it is called.
        note: What else is to be said, in small letters.
        images: Paths relative to the page -> what they show, for those who cannot see them.
    """

    title: str
    note: str
    images: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """Figures: a caption, the columns' names (the first one's stands over the rows' names) and the rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(
    folder: Path,
    *,
    title: str,
    intro: Sequence[str],
    facts: Mapping[str, str],
    table: Table,
    cards: Iterable[Card],
    losses: Sequence[tuple[int, float]],
) -> Path:
    """Write the page.

    Args:
        folder: Where to; the cards' images lie below it.
        title: The heading.
        intro: Paragraphs under it.
        facts: Name -> value.
        table: The figures; the first row is emphasised.
        cards: The samples, in order.
        losses: (step, loss) of the run; empty leaves the curve out.

    Returns:
        The page's path.
    """
    about = f"<section><h2>About</h2><table>{''.join(map(_fact, facts.items()))}</table></section>"
    curve = f"<section><h2>Loss</h2>{loss_curve(losses)}</section>" if losses else ""
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(paragraph)}</p>" for paragraph in intro),
        f'<div class="pair">{about}{curve}</div>' if curve else about,
        f"<section><h2>{escape(table.caption)}</h2>{_table(table)}</section>",
        *map(_card, cards),
    ]
    page = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_STYLE}\n</style></head><body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )
    path = folder / PAGE
    path.write_text(page, encoding="utf-8")
    return path


def read_losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run's metrics, where the loss is a finite number; empty if there are none."""
    losses = [(row["step"], row.get("loss")) for row in read_metrics(run)]
    return [(int(step), float(loss)) for step, loss in losses if isinstance(loss, int | float) and math.isfinite(loss)]


def loss_curve(losses: Sequence[tuple[int, float]], *, width: int = 640, height: int = 300) -> str:
    """An inline SVG: the points as a thin line, their running mean as a thick one.

    A long run's points are averaged in groups, so that the page stays small.

    Args:
        losses: (step, loss), at least one.
        width: Of the drawing's own units; the page scales it.
        height: Likewise.
    """
    left, right, top, bottom = 52, 14, 10, 44
    losses = _grouped(losses, most=600)
    last = max(step for step, _ in losses) or 1
    ticks = _ticks(min(loss for _, loss in losses), max(loss for _, loss in losses))
    low, high = ticks[0], ticks[-1]

    def x(step: float) -> float:
        return left + (width - left - right) * step / last

    def y(loss: float) -> float:
        return top + (height - top - bottom) * (high - loss) / (high - low)

    def line(points: Sequence[tuple[int, float]], style: str) -> str:
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
        return f'<polyline points="{path}" fill="none" stroke-linejoin="round" {style}/>'

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Loss against step">']
    for tick in ticks:
        parts.append(f'<path d="M{left} {y(tick):.1f}H{width - right}" stroke="#e1e4e9"/>')
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:.4g}", "end"))
    for tick in _ticks(0, last):
        if tick <= last:
            parts.append(_text(x(tick), height - bottom + 17, f"{tick:g}", "middle"))
    parts.append(_text((left + width - right) / 2, height - 6, "step", "middle"))
    parts.append(line(losses, 'stroke="#a9c7f7" stroke-width="1.2"'))
    parts.append(line(_running_mean(losses), 'stroke="#1f6feb" stroke-width="2.4"'))
    return "".join([*parts, "</svg>"])


def _grouped(losses: Sequence[tuple[int, float]], *, most: int) -> list[tuple[int, float]]:
    """At most so many points: the last step and the mean loss of each group of neighbours."""
    size = math.ceil(len(losses) / most)
    groups = [losses[i : i + size] for i in range(0, len(losses), size)]
    return [(group[-1][0], math.fsum(loss for _, loss in group) / len(group)) for group in groups]


def _running_mean(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each point averaged with its neighbours, over a twentieth of the curve; narrower at the ends."""
    values, reach = [loss for _, loss in losses], len(losses) // 40
    smooth = []
    for i, (step, _) in enumerate(losses):
        span = min(reach, i, len(losses) - 1 - i)
        smooth.append((step, math.fsum(values[i - span : i + span + 1]) / (2 * span + 1)))
    return smooth


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that span a range; it is widened to them."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#6a717c">{escape(text)}</text>'


def _fact(item: tuple[str, str]) -> str:
    return f"<tr><th>{escape(item[0])}</th><td>{escape(item[1])}</td></tr>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = (
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(x)}</td>" for x in row[1:]) + "</tr>"
        for row in table.rows
    )
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _card(card: Card) -> str:
    images = "".join(
        f'<img src="{escape(source)}" alt="{escape(shows)}" loading="lazy">' for source, shows in card.images.items()
    )
    return f"<section><h2>{escape(card.title)}<small>{escape(card.note)}</small></h2>{images}</section>"
