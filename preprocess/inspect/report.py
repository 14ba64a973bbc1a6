"""A dataset becomes one HTML page: its contents, what was left out and why, and filmstrips of samples.

    write_report(Path("out/shards"), Path("report.html"), samples=24, seed=0)

The page has all that it shows inside: no script, nothing fetched, every text escaped, less than 10 MB. For archives
that must stay private, images can be left out and names replaced by the beginning of their sha256.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mae3d.io.bounds import SEED, Bounds, check_number
from mae3d.io.files import require_writable, write_text
from mae3d.io.html import data_uri, escape, page, paragraph, refuse_other_page, table
from mae3d.io.progress import followed
from preprocess.dataset.curation import CURATION_NAME, FLAGS, open_curation
from preprocess.dataset.index import REJECTED_NAME, Dataset, DatasetError, open_dataset
from preprocess.inspect.filmstrip import filmstrip
from preprocess.inspect.statistics import Chart, Reason, look_over

_FRAMES, _FRAME_WIDTH, _JPEG_QUALITY = 8, 136, 80
_FLAGGED = 3  # samples that are shown for each flag
_IMAGE_BYTES = 6_000_000  # of all images together, before base64 makes a third more of them
_TEXT = 300  # characters of a message
_SETTINGS_TEXT = 20_000
_PATHLIKE = re.compile(r"\S*[/\\]\S*|\S+\.(?=\w*[A-Za-z])\w{1,5}(?!\w)")
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")

_STYLE = """
.charts { columns: 2 440px; column-gap: 20px; margin-top: 20px; }
.charts section { margin: 0 0 20px; break-inside: avoid; }
.figures { display: flex; flex-wrap: wrap; gap: 12px 44px; }
.figures div { font-size: 26px; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.figures span { display: block; font-size: 14px; font-weight: 400; color: var(--soft); }
.reasons :is(th, td):not(:last-child) { width: 25%; }
.bars td { padding: 2px 12px 2px 0; border: 0; font-size: 14px; }
.bars td:first-child { max-width: 13em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars td:nth-child(2) { width: 50%; vertical-align: middle; }
.bars td:last-child { text-align: right; padding-right: 0; white-space: nowrap; }
.bars i { display: block; height: 14px; background: var(--bar); border-radius: 2px; }
figure { margin: 0; padding: 14px 0; border-bottom: 1px solid var(--line); }
figure:last-child { border-bottom: 0; padding-bottom: 0; }
figcaption { font-size: 14px; color: var(--soft); overflow-wrap: anywhere; margin-bottom: 6px; }
figcaption b { font-weight: 600; color: var(--ink); }
img { border-radius: 3px; }
pre { font: 13px/1.5 ui-monospace, monospace; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class _Names:
    """The display of names: as they are, or by the beginning of their sha256."""

    hashed: bool = False

    def __call__(self, name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()[:12] if self.hashed and name else name

    def message(self, text: str, names: Sequence[str]) -> str:
        """Hash names, their parts and quoted text in a message.

        Everything up to text that looks like a path is hashed as well, because the start of a path with blanks cannot
        be seen."""
        if not self.hashed:
            return text
        parts = {part for name in names for part in PurePosixPath(name.replace("\\", "/")).parts}
        known = {word for word in {*names, *parts, *(PurePosixPath(part).stem for part in parts)} if word.strip("/.")}
        for word in sorted(known, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda match: self(match[0]), text)
        text = _QUOTED.sub(lambda match: self(match[0]), text)
        upto = max((match.end() for match in _PATHLIKE.finditer(text)), default=0)
        return self(text[:upto]) + text[upto:]

    def settings(self, value: Any, *, source: bool = False) -> Any:
        """Hash sources and text that looks like a path in the settings."""
        if isinstance(value, dict):
            return {
                key: self.settings(entry, source=(source or key == "sources") and key != "sha256")
                for key, entry in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.settings(entry, source=source) for entry in value]
        if isinstance(value, str) and (source or _PATHLIKE.search(value)):
            return self(value)
        return value


def write_report(
    root: Path, path: Path, *, samples: int = 24, seed: int = 0, images: bool = True, hash_names: bool = False
) -> None:
    """Write the page.

    Args:
        root: The dataset's folder; bad shards are left out and counted.
        path: The page's path.
        samples: Number of samples to show, drawn at random.
        seed: Seed of the draw.
        images: Whether to show their frames.
        hash_names: Whether to show the beginning of the sha256 of names instead of names, also in messages and
            settings.

    Raises:
        DatasetError: There is no dataset, or its index is not complete.
        ValueError: `samples` or `seed` is out of its range.
        OSError: A shard cannot be read, or the page cannot be written.
    """
    check_number("samples", samples, Bounds(least=0))
    check_number("seed", seed, SEED)
    refuse_other_page(path)
    require_writable(path.parent)
    dataset = open_dataset(root, exclude_bad_shards=True)
    names = _Names(hash_names)
    overview = look_over(dataset)
    title = f"Dataset {dataset.fingerprint[:12]}" if hash_names else str(root)
    charts = "".join(_chart(name, chart) for name, chart in overview.charts.items() if chart.bars)
    empty = [f"{name}: {chart.note}." for name, chart in overview.charts.items() if not chart.bars]
    body = [
        f"<h1>{escape(title)}</h1>",
        *map(paragraph, _intro(dataset, hash_names)),
        _figures(dataset),
        f'<div class="charts">{charts}</div>',
        *map(paragraph, empty),
        *_reasons("Left out", "Nothing was left out.", overview.rejected, names),
        *_reasons("Kept, with a remark", "", overview.remarks, names),
        *_curation(dataset, names, images=images),
        f"<h2>{_count(min(samples, len(dataset)), 'sample')} drawn at random</h2>",
        f"<section>{''.join(_sheet(dataset, samples, seed, names, images=images))}</section>",
        f"<h2>Settings</h2><section><pre>{escape(_settings(dataset, names))}</pre></section>",
    ]
    write_text(path, page(title, body, style=_STYLE))


def _intro(dataset: Dataset, hash_names: bool) -> Iterator[str]:
    if hash_names:
        yield "Names are replaced by the first 12 digits of their sha256; labels are as they are."
    if dataset.bad_shards:
        yield (
            f"{len(dataset.bad_shards)} of {len(dataset.shards)} shards are missing or not whole, and none of their "
            "samples is shown; mae3d preprocess verify names them."
        )


def _figures(dataset: Dataset) -> str:
    totals = dataset.meta["totals"]
    seconds, frames = totals["seconds"], max(1, totals["frames"])
    if dataset.media_files is not None:
        where = f"in {_count(len(dataset.media_files), 'video')} as they lie"
        sizes = {where: size_of(dataset.media_files.num_bytes), "of index": size_of(totals["bytes"])}
    else:
        where = f"in {_count(len(dataset.shards), 'shard')}"
        sizes = {where: size_of(totals["bytes"]), "a frame": size_of(totals["bytes"] / frames)}
    figures = {
        "samples": f"{totals['samples']:,}",
        "frames": f"{totals['frames']:,}",
        "duration": duration(seconds) if seconds else "no time base",
        **sizes,
        "left out": f"{sum(totals['rejected'].values()):,}",
    }
    cells = "".join(f"<div>{escape(value)}<span>{escape(name)}</span></div>" for name, value in figures.items())
    return f'<section class="figures">{cells}</section>'


def _chart(name: str, chart: Chart) -> str:
    most = max(1, *(count for _, count in chart.bars))
    total = max(1, sum(count for _, count in chart.bars) + (chart.rest[1] if chart.rest else 0))
    rows = [_bar(bar, count, total, width=f"{100 * count / most:.2f}%") for bar, count in chart.bars]
    if chart.rest:
        rows.append(_bar(*chart.rest, total, width="0"))
    note = f"<small>{escape(chart.note)}</small>" if chart.note else ""
    bars = f'<div class="wide"><table class="bars">{"".join(rows)}</table></div>'
    return f"<section><h3>{escape(name)}{note}</h3>{bars}</section>"


def _bar(name: str, count: int, total: int, *, width: str) -> str:
    share = f"{count:,}<small>{100 * count / total:.1f}%</small>"
    bar = f'<i style="width:{width}"></i>'
    return f'<tr><td title="{escape(name)}">{escape(name)}</td><td>{bar}</td><td>{share}</td></tr>'


def _reasons(title: str, none: str, reasons: Sequence[Reason], names: _Names) -> Iterator[str]:
    if reasons or none:
        yield f"<h2>{escape(title)}</h2>"
    if not reasons:
        yield paragraph(none) if none else ""
        return
    yield paragraph(f"The first few of each reason; all of them are in {REJECTED_NAME}.")
    for reason in reasons:
        head = f"<h3>{escape(reason.reason)}<small>{reason.count:,}</small></h3>"
        rows = [_problem(row, names) for row in reason.first]
        yield f"<section>{head}{table(rows, columns=('what', 'asked for by', 'why'), css_class='reasons')}</section>"


def _problem(row: dict[str, Any], names: _Names) -> tuple[str, str, str]:
    where = names(row["file"]) + (f", line {row['line']:,}" if row["line"] > 0 else "")
    return names(row["name"]), where, names.message(row["message"], [row["name"], row["file"]])[:_TEXT]


def _sheet(dataset: Dataset, samples: int, seed: int, names: _Names, *, images: bool) -> Iterator[str]:
    """Return the contact sheet: a filmstrip and a caption per sample, in the order of the dataset."""
    usable = np.flatnonzero(~np.isin(dataset.shard, list(dataset.bad_shards)))
    chosen = np.sort(np.random.default_rng(seed).choice(usable, min(samples, len(usable)), replace=False))
    room = _IMAGE_BYTES
    for i in followed(chosen.tolist(), "sample", doing="report"):
        picture = _strip(dataset, i, names) if images and room > 0 else ""
        room -= len(picture) * 3 // 4
        yield _figure(dataset, i, names, picture)
    if images and room <= 0:
        yield paragraph("The page would grow too large with more pictures.")


def _figure(dataset: Dataset, i: int, names: _Names, picture: str, more: str = "") -> str:
    words = ", ".join([*caption(dataset, i), *([more] if more else [])])
    title = f"<b>{escape(names(dataset.name(i)))}</b> {escape(words)}"
    return f"<figure><figcaption>{title}</figcaption>{picture}</figure>"


def _strip(dataset: Dataset, i: int, names: _Names) -> str:
    buffer = io.BytesIO()
    strip = filmstrip(dataset, i, frames=_FRAMES, width=_FRAME_WIDTH)
    strip.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    size = f'width="{strip.width}" height="{strip.height}"'
    return f'<img src="{data_uri(buffer.getvalue(), "jpeg")}" {size} alt="frames of {escape(names(dataset.name(i)))}">'


def _curation(dataset: Dataset, names: _Names, *, images: bool) -> Iterator[str]:
    """Yield the counts of the flags of `curate`, and the first few samples of each; nothing if there are no flags."""
    if not (dataset.root / CURATION_NAME).exists():
        return
    yield "<h2>Flagged by curate</h2>"
    try:
        with open_curation(dataset) as file:
            flags = file.read()
    except DatasetError as error:
        yield paragraph(str(error) if not names.hashed else f"{CURATION_NAME} is not of this state of the dataset.")
        return
    masks = {name: flags[name].to_numpy() == 1 for name in FLAGS}  # null is not
    looked = [name for name in FLAGS if not flags[name].null_count]
    counts = "".join(f"<div>{np.count_nonzero(masks[name]):,}<span>{name}</span></div>" for name in looked)
    yield f'<section class="figures">{counts}</section>'
    yield paragraph(f"Nothing is left out for it: --data.select.without does that. All flags are in {CURATION_NAME}.")
    for name in looked:
        rows = np.flatnonzero(masks[name])[:_FLAGGED].tolist()
        if rows:
            figures = (_flagged(dataset, i, name, flags, names, images=images) for i in rows)
            title = f"<h3>{name}<small>the first {len(rows)}</small></h3>"
            yield f"<section>{title}{''.join(figures)}</section>"


def _flagged(dataset: Dataset, i: int, name: str, flags: Any, names: _Names, *, images: bool) -> str:
    """Return a flagged sample with its measure, a near-duplicate with the sample that stays."""
    row = flags.slice(i, 1).to_pylist()[0]
    measure = {
        "near_duplicate": f"duplicate of {row['duplicate_of']}, which is below, at {row['distance'] or 0:.3f}",
        "still": f"motion {row['motion'] or 0:.2f} levels",
        "black": f"{row['black_share']:.0%} of the frames are black",
        "frozen": f"{row['frozen_share']:.0%} of it are frozen",
        "cut": f"cuts at frames {', '.join(map(str, row['cut_frames'] or ()))}",
    }[name]
    rows = [i, dataset.find(row["duplicate_of"])] if name == "near_duplicate" else [i]
    is_bad = bool(np.isin(dataset.shard[rows], list(dataset.bad_shards)).any())
    picture = "".join(_strip(dataset, one, names) for one in rows) if images and not is_bad else ""
    return _figure(dataset, i, names, picture, measure)


def caption(dataset: Dataset, i: int) -> list[str]:
    """Return a sample's caption: key, labels, split, length, size."""
    count, fps = int(dataset.num_frames[i]), float(dataset.fps[i])
    labels = label_words(dataset, i)
    split = dataset.split_names[int(dataset.splits[i])]
    return [
        f"key {dataset.key(i)}",
        f"label{'s' if len(labels) > 1 else ''} {' + '.join(labels)}" if labels else "no label",
        *([f"split {split}"] if split else []),
        _count(count, "frame"),
        *([f"{count / fps:.3g} s at {fps:.4g} a second"] if np.isfinite(fps) and fps > 0 else []),
        f"{int(dataset.width[i])} x {int(dataset.height[i])}",
    ]


def label_words(dataset: Dataset, i: int) -> list[str]:
    """Return the labels of sample i, by name if they have names."""
    names = dataset.label_names
    return [names[label] if label < len(names) else str(label) for label in dataset.labels_of(i)]


def _settings(dataset: Dataset, names: _Names) -> str:
    show: Callable[[Any], Any] = names.settings if names.hashed else lambda settings: settings
    text = json.dumps(show(dataset.meta["settings"]), indent=1, ensure_ascii=False)
    return text if len(text) <= _SETTINGS_TEXT else f"{text[:_SETTINGS_TEXT]}\n..."


def size_of(num_bytes: float) -> str:
    """Format bytes for people: "12.3 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.4g} TB"


def duration(seconds: float) -> str:
    """Format seconds for people, in a unit of which there are not too many."""
    unit, length = next(
        ((unit, length) for unit, length in (("hours", 3600), ("minutes", 60)) if seconds >= 2 * length), ("seconds", 1)
    )
    return f"{seconds / length:,.1f} {unit}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
