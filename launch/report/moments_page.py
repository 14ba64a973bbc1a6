"""A query and its nearest moments ─► search.html, one page of moving clips with links to file and second.

write_page(out, query=shown, results=results, intro=["..."], facts={"table": "vectors.parquet"})

A link opens the file at the second (`#t=`, a media fragment that browsers know); a line for ffplay stands beside it.
"""

import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from launch.common.tables import write_csv
from mae3d.io.contact_sheet import as_rgb
from mae3d.io.files import write_text
from mae3d.io.html import data_uri, escape, page, paragraph, refuse_other_page, table

PAGE, TABLE = "search.html", "results.csv"
SIDE = 192  # of a clip on the page, pixels
FRAME_MS = 160
STRIP = 8  # most frames of the query's strip

_STYLE = """
.query { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 4px; margin-top: 12px; }
.query img { width: 100%; border-radius: 3px; }
.results { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(216px, 45%), 1fr)); gap: 16px;
  margin-top: 20px; }
.results section { margin: 0; padding: 14px; min-width: 0; }
.results img { width: 100%; border-radius: 4px; }
@media (max-width: 600px) { .query { grid-template-columns: repeat(4, minmax(0, 1fr)); } .results { gap: 10px; } }
.results h3 { margin: 10px 0 2px; font-size: 15px; }
.results p, .results code { font-size: 13px; margin: 0 0 4px; }
.missing { aspect-ratio: 1; display: grid; place-items: center; background: #eef0f3; border-radius: 4px;
  color: var(--soft); font-size: 13px; text-align: center; padding: 12px; }
a { color: var(--accent); text-decoration: none; overflow-wrap: anywhere; }
code { display: block; font-family: ui-monospace, monospace; background: #f4f5f7; border-radius: 4px; padding: 4px 6px;
  overflow-wrap: anywhere; user-select: all; }
"""


@dataclass(frozen=True)
class Moment:
    """A moment as the page shows it.

    Attributes:
        name: Of its file or sample.
        key: Its key in the table; "" if it has none.
        start_s: Its beginning in seconds of the source; NaN if unknown.
        end_s: Its end.
        frames: uint8 (T, H, W, 3); None if its clip cannot be shown.
        why: The reason for that.
        file: Its file, if that was found.
        similarity: Cosine with the query; None of the query.
        labels: For people.
    """

    name: str
    key: str
    start_s: float
    end_s: float
    frames: np.ndarray | None = None
    why: str = ""
    file: Path | None = None
    similarity: float | None = None
    labels: str = ""

    @property
    def span(self) -> str:
        """Return its time for people: "1:13.0 to 1:15.1"."""
        if not np.isfinite(self.start_s):
            return "time unknown"
        return f"{clock(self.start_s)} to {clock(self.end_s)}"

    @property
    def link(self) -> str:
        """Return a URL of file and second; "" without a file, of a folder without the second."""
        if self.file is None:
            return ""
        at = f"#t={_second(self.start_s)}" if np.isfinite(self.start_s) and self.file.is_file() else ""
        return self.file.resolve().as_uri() + at

    @property
    def command(self) -> str:
        """Return a command line that plays it; "" without a file or a time."""
        if self.file is None or not self.file.is_file() or not np.isfinite(self.start_s):
            return ""
        return f"ffplay -ss {_second(self.start_s)} {shlex.quote(str(self.file.resolve()))}"


def clock(seconds: float) -> str:
    """Return seconds as a player shows them: 73.4 ─► "1:13.4", 3673.4 ─► "1:01:13.4"."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02d}" if hours else f"{minutes}"
    return (f"{hours}:" if hours else "") + f"{text}:{rest // 10:02d}.{rest % 10}"


def _second(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def refuse_other_results(out: Path) -> None:
    """Refuse a folder whose page or table another program made; raise ValueError."""
    refuse_other_page(out / PAGE)
    if (out / TABLE).exists() and not (out / PAGE).exists():
        raise ValueError(f"{out / TABLE}: there already, without {PAGE} beside it: give another --out, or move it away")


def write_page(
    out: Path, *, query: Moment, results: Sequence[Moment], intro: Sequence[str], facts: Mapping[str, str]
) -> Path:
    """Write search.html and results.csv.

    Args:
        out: Their folder.
        query: The moment that was searched for.
        results: The moments, best first.
        intro: Paragraphs under the heading.
        facts: Name ─► value, of the search.

    Returns:
        The page's path.
    """
    path = out / PAGE
    when = f", {query.span}" if np.isfinite(query.start_s) else ""
    body = [
        f"<h1>Like {escape(Path(query.name).name)}{escape(when)}</h1>",
        *map(paragraph, intro),
        f"<section><h3>The query<small>{escape(query.span)}</small></h3>{_where(query)}{_strip(query)}</section>",
        f'<div class="results">{"".join(_card(rank, one) for rank, one in enumerate(results, 1))}</div>',
        f"<section><h3>About</h3>{table(list(facts.items()), row_names=True)}</section>",
    ]
    write_text(path, page(f"Like {query.name}", body, style=_STYLE))
    write_csv(out / TABLE, _columns(results))
    return path


def _columns(results: Sequence[Moment]) -> dict[str, list[Any]]:
    def seconds(value: float) -> float | None:
        return round(value, 3) if np.isfinite(value) else None

    return {
        "rank": list(range(1, len(results) + 1)),
        "similarity": [f"{one.similarity:.6f}" for one in results],
        "key": [one.key for one in results],
        "name": [one.name for one in results],
        "start_s": [seconds(one.start_s) for one in results],
        "end_s": [seconds(one.end_s) for one in results],
        "labels": [one.labels for one in results],
        "link": [one.link for one in results],
    }


def _card(rank: int, one: Moment) -> str:
    title = f"<h3>{rank}. {one.similarity:.4f}<small>{escape(one.span)}</small></h3>"
    labels = paragraph(one.labels) if one.labels else ""
    return f"<section>{_picture(rank, one)}{title}{labels}{_where(one)}</section>"


def _where(one: Moment) -> str:
    name = escape(one.name)
    line = f'<p><a href="{escape(one.link)}">{name}</a></p>' if one.link else f"<p>{name}</p>"
    return line + (f"<code>{escape(one.command)}</code>" if one.command else "")


def _picture(rank: int, one: Moment) -> str:
    if one.frames is None:
        return f'<div class="missing">{escape(one.why)}</div>'
    first, *others = _pictures(one.frames)
    moving = io.BytesIO()
    first.save(moving, "WEBP", save_all=True, append_images=others, duration=FRAME_MS, loop=0, quality=70, method=1)
    alt = f"result {rank} as a moving clip: {one.name}, {one.span}"
    return f'<img src="{data_uri(moving.getvalue(), "webp")}" width="{SIDE}" height="{SIDE}" alt="{escape(alt)}">'


def _strip(query: Moment) -> str:
    if query.frames is None:
        return paragraph(query.why)
    shown = np.unique(np.linspace(0, len(query.frames) - 1, STRIP).round().astype(int))
    images = []
    for i, picture in enumerate(_pictures(query.frames[shown]), 1):
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        uri, alt = data_uri(data.getvalue(), "jpeg"), f"frame {i} of {len(shown)} of the query"
        images.append(f'<img src="{uri}" width="{SIDE}" height="{SIDE}" alt="{alt}">')
    return f'<div class="query">{"".join(images)}</div>'


def _pictures(frames: np.ndarray) -> list[Image.Image]:
    rule = Image.Resampling.BICUBIC
    pictures = [Image.fromarray(frame) for frame in as_rgb(frames)]
    return [one if one.size == (SIDE, SIDE) else one.resize((SIDE, SIDE), rule) for one in pictures]
