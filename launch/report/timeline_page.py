"""The output of a model along videos becomes one page, with all that it shows inside.

tracks ─► timeline.html

    write_page(tracks, class_names, agreement, windows=out / "windows.parquet", path=out / "timeline.html")

Ribbons, curves and pictures are there without a script; a small one moves a cursor along them by clicks and keys.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from launch.common.tables import columns_of
from launch.common.track import Track
from launch.report.timeline_plots import (
    base_name,
    clock,
    colours_of,
    curves_of,
    grouped,
    groups_of,
    lane,
    legend,
    marked,
    ribbon,
    ribbons_of,
)
from launch.report.timeline_style import SCRIPT, STYLE
from mae3d.io.files import write_text
from mae3d.io.html import data_uri, escape, page, paragraph, table

THUMBNAILS, SIDE = 240, 96  # small pictures of a page, spread evenly over its files, and their height in pixels
MOMENTS, ALL_MOMENTS = 24, 120  # peaks and changes with a picture: of a file, and of the page
FRAME = 480  # longer side of a moment's whole frame, pixels


@dataclass(frozen=True)
class Moment:
    """A window to look at: its row in the track, and why."""

    row: int
    title: str


def write_page(
    tracks: Sequence[Track],
    class_names: Sequence[str],
    agreement: Sequence[Sequence[Mapping[str, Any]]],
    *,
    windows: Path,
    path: Path,
) -> None:
    """Write the page.

    Args:
        tracks: The files.
        class_names: The model's classes by number.
        agreement: Tables of the agreement with events; empty without any.
        windows: windows.parquet, for the small pictures.
        path: The page.

    Raises:
        OSError: The page cannot be written. A frame that cannot be decoded is left out.
    """
    colours = colours_of(tracks, len(class_names))
    each, most = max(1, THUMBNAILS // len(tracks)), max(2, min(MOMENTS, ALL_MOMENTS // len(tracks)))
    moments = [_moments(track, class_names, most=most) for track in tracks]
    spread = [np.linspace(0, len(t.start_s) - 1, min(each, len(t.start_s))).astype(int).tolist() for t in tracks]
    shown = [
        {track.first_row + row for row in (*evenly, *(moment.row for moment in mine))}
        for track, evenly, mine in zip(tracks, spread, moments, strict=True)
    ]
    small = _small_pictures(windows, set().union(*shown))
    title = f"{len(tracks)} videos along time" if len(tracks) > 1 else base_name(tracks[0])
    body = [f"<h1>{escape(title)}</h1>", *map(paragraph, _intro(tracks, class_names))]
    if agreement:
        tables = "".join(map(_figures, agreement))
        body.append(f"<section><h3>Agreement with the events</h3>{tables}</section>")
    for number, track in enumerate(tracks):
        thumbnails = {row: small[track.first_row + row] for row in spread[number] if track.first_row + row in small}
        body.append(_section(track, class_names, colours, thumbnails))
        body.append(_gallery(track, number, moments[number], small))
    write_text(path, page("Timeline", body, style=STYLE, script=SCRIPT))


def _figures(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = columns_of(rows)
    cells = [[_number(name, value) for value in values] for name, values in columns.items()]
    cells[0] = [Path(name).name for name in columns["name"]]
    heads = ["", *(name.replace("_", " ") for name in list(columns)[1:])]
    return table(list(zip(*cells, strict=True)), columns=heads, row_names=True, css_class="numbers")


def _number(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if name.endswith("_s") else f"{value:.3f}"


def _intro(tracks: Sequence[Track], class_names: Sequence[str]) -> Iterator[str]:
    first = tracks[0]
    if class_names:
        yield "The ribbon has the class that the model gives to each moment; one below it has the true class."
    if "surprise" in first.curves:
        yield (
            "Surprise is the loss of the model's prediction of a clip's hidden part; the grey curve is the loss of "
            "copying the nearest visible frame instead: where it is lower, the model has not learned to predict such "
            "footage. A peak of the blue curve is something that the model did not expect."
        )
    yield (
        "Novelty is the cosine distance of a window's features to the most similar earlier window's of the file, high "
        "where nothing like it has been seen before. Red lines are change points of the features."
    )
    yield "Click into the curves, or use the arrow keys, to move the cursor; + and - zoom. A picture opens its frame."


def _moments(track: Track, class_names: Sequence[str], *, most: int) -> list[Moment]:
    """Return the strongest changes and the highest peaks, in order of time; a window has one entry."""
    titles: dict[int, list[str]] = {}
    share = max(1, most // (len(track.curves.keys() - {"surprise_copy"}) + 1))
    for change in sorted(track.changes, key=lambda change: -change.strength)[:share]:
        titles.setdefault(change.row, []).append(f"change, {change.strength:.2f}")
    for name in ("surprise", "novelty"):
        if name in track.curves:
            for row in _peaks(track.curves[name], share):
                titles.setdefault(row, []).append(f"{name} {track.curves[name][row]:.3g}")
    moments = []
    for row in sorted(titles):
        label = class_names[track.predicted[row]] if len(track.predicted) and track.predicted[row] >= 0 else ""
        moments.append(Moment(row, ", ".join([*titles[row], *([label] if label else [])])))
    return moments


def _peaks(values: np.ndarray, count: int) -> list[int]:
    """Return the rows of the highest values that are apart by a fortieth of the file, five rows at least."""
    apart, peaks = max(5, len(values) // 40), list[int]()
    for row in np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable").tolist():
        if len(peaks) == count or not np.isfinite(values[row]):
            break
        if all(abs(row - other) >= apart for other in peaks):
            peaks.append(row)
    return peaks


def _small_pictures(windows: Path, rows: set[int]) -> dict[int, bytes]:
    """Return small JPEGs of rows of windows.parquet; of windows that cannot be read there is none."""
    pictures, begin = {}, 0
    with pq.ParquetFile(windows) as file:
        for batch in file.iter_batches(256, columns=["picture"]):
            for row in sorted(rows & set(range(begin, begin + len(batch)))):
                if stored := batch["picture"][row - begin].as_py():
                    with Image.open(io.BytesIO(stored)) as picture:
                        pictures[row] = _jpeg(picture, SIDE, quality=72)
            begin += len(batch)
    return pictures


def _jpeg(picture: Image.Image, side: int, *, quality: int) -> bytes:
    """Return a picture as a JPEG whose longer side is `side` at most."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    with io.BytesIO() as packed:
        picture.save(packed, "jpeg", quality=quality)
        return packed.getvalue()


def _whole_frames(track: Track, rows: Sequence[int]) -> dict[int, bytes]:
    """Return the frame in the middle of each window, whole and upright, as a JPEG; those that can be decoded."""
    from mae3d.video.clip import VideoError, open_clips
    from mae3d.video.pictures import Pictures

    frames, pictures = {}, Pictures()
    try:
        with open_clips(track.name) as video:
            for row in rows:
                middle = float(track.centre_s[row])
                for _, frame in video.frames(middle, middle + 1e-3):
                    width, height = video.upright_size(frame)
                    pixels = pictures.rgb(frame, width=width, height=height, way=video.orientation(frame))
                    frames[row] = _jpeg(Image.fromarray(np.ascontiguousarray(pixels)), FRAME, quality=80)
                    break
    except (VideoError, OSError):  # the file was there when the windows were read; the page is not worth failing
        pass
    return frames


def _section(track: Track, class_names: Sequence[str], colours: Sequence[str], thumbnails: Mapping[int, bytes]) -> str:
    """Return a file's plot, legend and cursor."""
    length_s = float(np.nan_to_num(track.end_s).max())
    if not track.is_readable:
        return f"<section><h3>{escape(base_name(track))}</h3>{paragraph('The file cannot be read.')}</section>"
    groups = groups_of(len(track.start_s))
    lanes = [
        ribbon(title, classes, track, groups, colours=colours, class_names=class_names, length_s=length_s)
        for title, classes in ribbons_of(track)
    ]
    lanes += [lane(title, lines, track, groups, length_s) for title, lines in curves_of(track, class_names)]
    marks = "".join(f'<i style="left:{100 * track.change_s(change) / length_s:.3f}%"></i>' for change in marked(track))
    strip = "".join(
        f'<img src="{data_uri(jpeg, "jpeg")}" data-row="{row}" alt="frame at {clock(track.centre_s[row])}">'
        for row, jpeg in thumbnails.items()
    )
    readout = _data(track, groups, class_names, length_s)
    facts = f"{clock(length_s)}, {len(track.start_s):,} windows, {len(track.changes):,} change points"
    if len(track.changes) > len(marked(track)):
        facts += f", the {len(marked(track))} strongest are marked"
    return (
        f'<section class="track"><h3>{escape(base_name(track))}<small>{facts}</small></h3>'
        '<div class="pane"><div class="stretch"><div class="plot" tabindex="0" role="slider" '
        f'aria-label="Position in {escape(base_name(track))}" '
        f'aria-valuemin="0" aria-valuemax="{length_s:.0f}" aria-valuenow="0">'
        f'{"".join(lanes)}<div class="marks" aria-hidden="true">{marks}</div><div class="cursor" hidden></div></div>'
        f'<div class="scale"><span>0:00</span><span>{clock(length_s / 2)}</span><span>{clock(length_s)}</span></div>'
        "</div></div>"
        f"{legend(track, colours, class_names)}"
        f'<div class="now"><img alt="frame at the cursor" hidden><p aria-live="polite"></p></div>'
        f"<details><summary>{len(thumbnails):,} frames, spread evenly</summary>"
        f'<div class="strip">{strip}</div></details>'
        f'<script type="application/json">{readout}</script></section>'
    )


def _data(track: Track, groups: np.ndarray, class_names: Sequence[str], length_s: float) -> str:
    """Return what the cursor shows at each group, as JSON that cannot end its element."""
    firsts = groups[:-1]

    def rounded(values: np.ndarray) -> list[float | None]:
        return [float(f"{value:.3g}") if np.isfinite(value) else None for value in grouped(values, groups)]

    names = sorted({int(i) for _, classes in ribbons_of(track) for i in classes[firsts] if i >= 0})
    position = {label: i for i, label in enumerate(names)}
    data: dict[str, Any] = {
        "length": round(length_s, 3),
        "rows": firsts.tolist(),
        "seconds": [round(float(value), 2) if np.isfinite(value) else None for value in track.centre_s[firsts]],
        "curves": {name: rounded(values) for name, values in track.curves.items()},
        "names": [class_names[label] for label in names],
        "classes": {title: [position.get(int(i), -1) for i in classes[firsts]] for title, classes in ribbons_of(track)},
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _gallery(track: Track, number: int, moments: Sequence[Moment], small: dict[int, bytes]) -> str:
    """Return the moments' pictures, each of which opens the whole frame."""
    frames = _whole_frames(track, [moment.row for moment in moments])
    cards: list[str] = []
    whole: list[str] = []
    for moment in moments:
        jpeg = small.get(track.first_row + moment.row)
        if jpeg is None:
            continue
        time, name = clock(track.centre_s[moment.row]), f"f{number}-{moment.row}"
        picture = f'<img src="{data_uri(jpeg, "jpeg")}" alt="frame at {time}">'
        link = f'<a href="#{name}">{picture}</a>' if moment.row in frames else picture
        cards.append(f"<figure>{link}<figcaption><b>{time}</b> {escape(moment.title)}</figcaption></figure>")
        if moment.row in frames:
            frame = f'<img src="{data_uri(frames[moment.row], "jpeg")}" alt="whole frame at {time}">'
            title = f"{time}: {escape(moment.title)}"
            whole.append(f'<div class="frame" id="{name}"><a href="#close">{frame}<span>{title}</span></a></div>')
    if not cards:
        return ""
    heading = f"<h3>Peaks and changes<small>{escape(base_name(track))}</small></h3>"
    return f'<section>{heading}<div class="moments">{"".join(cards)}</div></section>{"".join(whole)}'
