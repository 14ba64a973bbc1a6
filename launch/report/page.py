"""Pictures and figures become one page, index.html, with all that it shows inside: it can be mailed as it is.

    section = Section("Reconstruction", intro, tables=[table], cards=cards)
    write_report(folder, title="runs/a", intro=intro, facts=facts, sections=[section], losses=losses)

Every text is escaped, images are read from the folder and written into the page, there is no script and nothing is
fetched.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image

from mae3d.io.files import write_text
from mae3d.io.html import data_uri, escape, page, paragraph, sheet, table
from mae3d.tracking.history import is_number, pictures, score_names
from mae3d.tracking.plots import running_mean
from mae3d.tracking.run_dir import read_metrics

PAGE = "index.html"
PICTURES, EVALUATIONS = 4, 12  # of a training that are shown, spread evenly over it
_JPEG_QUALITY = 85

T = TypeVar("T")

_STYLE = """
nav { margin: 18px 0 0; }
nav a { display: inline-block; max-width: 100%; padding: 8px 0; margin-right: 20px; text-decoration: none; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.5fr); column-gap: 20px; }
@media (max-width: 860px) { .pair { grid-template-columns: minmax(0, 1fr); } }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; padding-right: 0; padding-left: 12px; }
.numbers tbody tr:first-child > * { font-weight: 650; color: var(--ink); }
.numbers td { white-space: nowrap; }
p + .sheet { margin-top: 14px; }
svg { display: block; width: 100%; max-width: 600px; height: auto; font: 13px system-ui, sans-serif; }
@media (max-width: 600px) { svg { font-size: 16px; } }
"""


@dataclass(frozen=True)
class Card:
    """A sample on the page.

    Attributes:
        title: The sample's name.
        note: More about it, in small letters.
        images: Paths relative to the page -> descriptions, for people who cannot see them.
    """

    title: str
    note: str
    images: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """Figures: a caption, the columns' names (the first one's stands over the rows' names) and the rows.

    The first row is emphasised.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A way of looking at the model.

    Attributes:
        title: Its heading.
        intro: Paragraphs on how to read it.
        cards: The samples, in order.
        tables: Figures over all samples.
        images: As a card's; they stand below the introduction.
        lead: The sample that the page opens with.
        summary: The section's main figures in one sentence, for the command line.
    """

    title: str
    intro: Sequence[str]
    cards: Sequence[Card]
    tables: Sequence[Table] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    lead: Card | None = None
    summary: str = ""


def write_report(
    folder: Path,
    *,
    title: str,
    intro: Sequence[str],
    facts: Mapping[str, str],
    sections: Sequence[Section],
    losses: Sequence[tuple[int, float]],
) -> Path:
    """Write the page.

    Args:
        folder: Where to; the images lie below it.
        title: The heading.
        intro: Paragraphs under it.
        facts: Name -> value, of the model and the clips.
        sections: The sections, in order.
        losses: (step, loss) of the run; empty leaves the curve out.

    Returns:
        The page's path.

    Raises:
        OSError: An image cannot be read, or the page cannot be written.
    """
    about = f"<section><h3>About</h3>{table(list(facts.items()), row_names=True)}</section>"
    curve = f"<section><h3>Loss in training</h3>{loss_curve(losses)}</section>" if losses else ""
    links = "".join(f'<a href="#part{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    body = [
        f"<h1>{escape(title)}</h1>",
        *map(paragraph, intro),
        *(_card(folder, section.lead) for section in sections if section.lead),
        f"<nav>{links}</nav>" if len(sections) > 1 else "",
        f'<div class="pair">{about}{curve}</div>' if curve else about,
        *(_section(folder, section, f"part{i}") for i, section in enumerate(sections)),
    ]
    path = folder / PAGE
    write_text(path, page(title, body, style=_STYLE))
    return path


def read_losses(run: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of a run's metrics whose loss is a finite number; empty if there are none."""
    losses = [(row["step"], row.get("loss")) for row in read_metrics(run)]
    return [(int(step), float(loss)) for step, loss in losses if isinstance(loss, int | float) and math.isfinite(loss)]


def progress_section(run: Path) -> Section | None:
    """Return how held-out samples fared during training, newest first; None if none was evaluated."""
    rows = read_metrics(run)
    names = score_names(rows)
    scored = [row for row in rows[::-1] if any(name in row for name in names)]
    if not scored:
        return None
    lines = [
        (f"{row['step']:,}", *(f"{row[name]:.4f}" if is_number(row.get(name)) else "" for name in names))
        for row in _spread(scored, EVALUATIONS)
    ]
    shows = "held-out clips: original, what the model sees, what it fills in"
    shown = _spread(pictures(run)[::-1], PICTURES)
    cards = [Card(f"Step {step:,}", "", {str(path.resolve()): shows}) for step, path in shown]
    intro = ["The same clips, which it was not trained on, at several steps of the training."]
    return Section("While it was trained", intro, cards, [Table("Held-out samples", ("step", *names), lines)])


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return the first, the last and others between them, evenly."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def loss_curve(losses: Sequence[tuple[int, float]], *, width: int = 480, height: int = 270) -> str:
    """Return an inline SVG: the points as a thin line, their running mean as a thick one.

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
        parts.append(f'<path d="M{left} {y(tick):.1f}H{width - right}" style="stroke:var(--line)"/>')
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:.4g}", "end"))
    for tick in _ticks(0, last):
        if tick <= last:
            parts.append(_text(x(tick), height - bottom + 17, f"{tick:g}", "middle"))
    parts.append(_text((left + width - right) / 2, height - 6, "step", "middle"))
    parts.append(line(losses, 'style="stroke:var(--bar)" stroke-width="1.2"'))
    parts.append(line(_smooth(losses), 'style="stroke:var(--accent)" stroke-width="2.4"'))
    return "".join([*parts, "</svg>"])


def _grouped(losses: Sequence[tuple[int, float]], *, most: int) -> list[tuple[int, float]]:
    """Return at most so many points: the last step and the mean loss of each group of neighbours."""
    size = math.ceil(len(losses) / most)
    groups = [losses[i : i + size] for i in range(0, len(losses), size)]
    return [(group[-1][0], math.fsum(loss for _, loss in group) / len(group)) for group in groups]


def _smooth(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    smooth = running_mean([loss for _, loss in losses])
    return [(step, loss) for (step, _), loss in zip(losses, smooth, strict=True)]


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that span a range, which is widened to them."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _numbers(numbers: Table) -> str:
    rows = table(numbers.rows, columns=numbers.columns, row_names=True, css_class="numbers")
    return f"<section><h3>{escape(numbers.caption)}</h3>{rows}</section>"


def _section(folder: Path, section: Section, anchor: str) -> str:
    parts = [
        f'<h2 id="{anchor}">{escape(section.title)}</h2>',
        *map(paragraph, section.intro),
        _images(folder, section.images),
        *map(_numbers, section.tables),
        *(_card(folder, card) for card in section.cards),
    ]
    return "\n".join(parts)


def _card(folder: Path, card: Card) -> str:
    heading = f"<h3>{escape(card.title)}<small>{escape(card.note)}</small></h3>"
    return f"<section>{heading}{_images(folder, card.images)}</section>"


def _images(folder: Path, images: Mapping[str, str]) -> str:
    return "".join(sheet(_inlined(folder / path), shows) for path, shows in images.items())


def _inlined(path: Path) -> str:
    """Return an image as a data: URI; a PNG of footage, which PNG hardly compresses, as a JPEG."""
    data, kind = path.read_bytes(), path.suffix.removeprefix(".")
    if kind == "png":
        with Image.open(path) as image, io.BytesIO() as packed:
            image.convert("RGB").save(packed, "jpeg", quality=_JPEG_QUALITY)
            if len(packed.getvalue()) < len(data) / 2:
                data, kind = packed.getvalue(), "jpeg"
    return data_uri(data, kind)
