"""What a model says along videos becomes a page with all that it shows inside, and a PNG per file.

tracks ─► timeline.html, timeline.png

    write_page(tracks, class_names, out / "windows.parquet", out / "timeline.html", agreement)
    write_pictures(tracks, class_names, [out / "timeline.png"])

Ribbons, curves and pictures are there without a script; a small one moves a cursor along them by clicks and keys.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from launch.report.timeline_style import SCRIPT, STYLE
from mae3d.io.files import write_text
from mae3d.io.html import data_uri, escape, page, paragraph

if TYPE_CHECKING:
    from launch.inference.timeline import Track

STEPS = 3000  # points of a curve, at most: of a longer file each shows the greatest value of several windows
THUMBNAILS, SIDE = 240, 96  # small pictures of a page, spread evenly over its files, and their height in pixels
MOMENTS, ALL_MOMENTS = 24, 120  # peaks and changes with a picture: of a file, and of the page
FRAME = 480  # longer side of a moment's whole frame, pixels
SHOWN_SCORES = 4  # classes whose scores are drawn if they do not exclude one another
COLOURS = (
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#edc948", "#9c755f", "#ff9da7", "#2f4b7c",
    "#a0cbe8", "#ffbe7d", "#8cd17d", "#d37295", "#86bcb6", "#b6992d",
)  # fmt: skip
GREY = "#c9ced6"  # of further classes, and of moments without one
TITLES = {
    "surprise": "Surprise: loss of the prediction",
    "surprise_copy": "loss of copying the last visible frame",
    "novelty": "Novelty: distance to the nearest earlier window",
}


@dataclass(frozen=True)
class Moment:
    """A window to look at: its row in the track, and why."""

    row: int
    title: str


def write_page(
    tracks: "Sequence[Track]", class_names: Sequence[str], windows: Path, path: Path, agreement: Sequence[str]
) -> None:
    """Write the page.

    Args:
        tracks: The files.
        class_names: The model's classes by number.
        windows: windows.parquet, for the small pictures.
        path: The page.
        agreement: Lines of text of the agreement with events; empty without any.

    Raises:
        OSError: The page cannot be written. A frame that cannot be decoded is left out.
    """
    colours = _colours(tracks, len(class_names))
    each = max(1, THUMBNAILS // len(tracks))
    most = max(2, min(MOMENTS, ALL_MOMENTS // len(tracks)))
    moments = [_moments(track, class_names, most=most) for track in tracks]
    spread = [np.linspace(0, len(t.start_s) - 1, min(each, len(t.start_s))).astype(int).tolist() for t in tracks]
    rows = [{*chosen, *(moment.row for moment in mine)} for chosen, mine in zip(spread, moments, strict=True)]
    small = _small_pictures(windows, {track.first_row + row for track, r in zip(tracks, rows, strict=True) for row in r})
    body = [f"<h1>{len(tracks)} videos along time</h1>" if len(tracks) > 1 else f"<h1>{escape(_base(tracks[0]))}</h1>"]
    body += [paragraph(text) for text in _intro(tracks, class_names)]
    if agreement:
        body.append(f"<section><h3>Agreement with the events</h3><pre>{escape(chr(10).join(agreement))}</pre></section>")
    for number, track in enumerate(tracks):
        thumbnails = {row: small[track.first_row + row] for row in spread[number] if track.first_row + row in small}
        body.append(_section(track, number, class_names, colours, thumbnails))
        body.append(_gallery(track, number, moments[number], small))
    write_text(path, page("Timeline", body, style=STYLE, script=SCRIPT))


def write_pictures(tracks: "Sequence[Track]", class_names: Sequence[str], paths: Sequence[Path]) -> None:
    """Draw each file's ribbons and curves into a PNG."""
    from matplotlib.figure import Figure

    from mae3d.tracking.plots import one_label, save_figure

    colours = _colours(tracks, len(class_names))
    for track, path in zip(tracks, paths, strict=True):
        ribbons, curves = _ribbons(track), _curves(track, class_names)
        heights = [0.35] * len(ribbons) + [1.0] * len(curves)
        figure = Figure(figsize=(11, 1.0 + 1.5 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, classes) in zip(panels, ribbons, strict=False):
            for begin, end, label in _runs(classes):
                low, high = track.start_s[begin], track.end_s[end - 1] if end == len(classes) else track.start_s[end]
                axes.axvspan(low, high, color=colours[label] if label >= 0 else GREY, linewidth=0)
            axes.set_yticks([])
            axes.set_ylabel(title.split(":")[0], rotation=0, ha="right", va="center", fontsize=8)
        for axes, (title, lines) in zip(panels[len(ribbons) :], curves, strict=True):
            for i, (name, values) in enumerate(lines):
                axes.plot(track.centre_s, values, linewidth=1.1, color=("C0", "0.6")[i], label=one_label(name))
            for change in track.changes:
                axes.axvline(track.change_s(change), color="C3", linewidth=0.7, alpha=0.6)
            axes.set_title(title, fontsize=9, loc="left")
            axes.grid(alpha=0.3)
            if len(lines) > 1:
                axes.legend(fontsize=7, loc="upper right")
        panels[-1].set_xlabel("seconds", fontsize=8)
        shown = _by_share(track.predicted, len(class_names))[: len(COLOURS)]
        if shown:
            handles = [panels[0].plot([], [], color=colours[i], linewidth=6)[0] for i in shown]
            names = [one_label(class_names[i]) for i in shown]
            figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
        figure.suptitle(one_label(_base(track)), fontsize=10)
        save_figure(figure, path)


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds: 1:02:03, or 2:03."""
    whole = int(seconds)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


def _base(track: "Track") -> str:
    return Path(track.name).name


def _intro(tracks: "Sequence[Track]", class_names: Sequence[str]) -> Iterator[str]:
    first = tracks[0]
    if class_names:
        yield "The ribbon has the class that the model gives to each moment; below it, if events are given, the true one."
    if "surprise" in first.curves:
        yield (
            "Surprise is the loss of the model's prediction of a clip's hidden part; the grey curve is the loss of "
            "copying the nearest visible frame instead. Where the blue curve rises and the grey one does not, something "
            "happened that the model did not expect."
        )
    yield (
        "Novelty is the cosine distance of a window's features to the most similar earlier window of the same file: high "
        "where nothing like it has been seen before. Red lines are change points of the features."
    )
    yield "Click into the curves, or use the arrow keys, to move the cursor; a picture opens its whole frame."


def _colours(tracks: "Sequence[Track]", classes: int) -> list[str]:
    """Return a colour per class: distinct ones for those that take most time."""
    colours = [GREY] * classes
    together = np.concatenate([np.concatenate([track.predicted, track.true]) for track in tracks])
    for colour, label in zip(COLOURS, _by_share(together, classes), strict=False):
        colours[label] = colour
    return colours


def _by_share(classes: np.ndarray, count: int) -> list[int]:
    """Return the classes that occur, the most frequent first."""
    counts = np.bincount(classes[classes >= 0], minlength=count) if len(classes) else np.zeros(count, int)
    return [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]


def _ribbons(track: "Track") -> list[tuple[str, np.ndarray]]:
    ribbons = [("predicted", track.predicted), ("true", track.true)]
    return [(title, classes) for title, classes in ribbons if len(classes)]


def _curves(track: "Track", class_names: Sequence[str]) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """Return the panels: a title, and one or two named curves."""
    panels = []
    if "surprise" in track.curves:
        pair = [("predicted", track.curves["surprise"]), ("copied", track.curves["surprise_copy"])]
        panels.append((TITLES["surprise"], pair))
    panels.append((TITLES["novelty"], [("novelty", track.curves["novelty"])]))
    if track.scores.shape[1] and not len(track.predicted):  # classes that do not exclude one another
        mean = np.nan_to_num(np.nanmean(track.scores, axis=0)) if np.isfinite(track.scores).any() else track.scores[0]
        for label in np.argsort(-mean, kind="stable")[:SHOWN_SCORES].tolist():
            panels.append((f"Score of {class_names[label]}", [(class_names[label], track.scores[:, label])]))
    return panels


def _runs(classes: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (first, stop, class) of each run of one class."""
    cuts = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), len(classes)]
    return [(begin, end, int(classes[begin])) for begin, end in pairwise(cuts)]


def _moments(track: "Track", class_names: Sequence[str], *, most: int) -> list[Moment]:
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


def _whole_frames(track: "Track", rows: Sequence[int]) -> dict[int, bytes]:
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


def _section(
    track: "Track",
    number: int,
    class_names: Sequence[str],
    colours: Sequence[str],
    thumbnails: dict[int, bytes],
) -> str:
    """Return a file's plot, legend and cursor."""
    length_s = float(np.nan_to_num(track.end_s).max())
    if not length_s:
        return f"<section><h3>{escape(_base(track))}</h3>{paragraph('The file cannot be read.')}</section>"
    groups = _groups(len(track.start_s))
    lanes = [_ribbon(title, classes[groups[:-1]], colours, class_names) for title, classes in _ribbons(track)]
    lanes += [_lane(title, lines, track, groups, length_s) for title, lines in _curves(track, class_names)]
    marks = "".join(
        f'<i style="left:{100 * track.change_s(change) / length_s:.3f}%"></i>' for change in track.changes
    )
    strip = "".join(
        f'<img src="{data_uri(jpeg, "jpeg")}" data-row="{row}" alt="frame at {clock(track.centre_s[row])}">'
        for row, jpeg in thumbnails.items()
    )
    readout = _data(track, groups, class_names, length_s)
    return (
        f'<section class="track"><h3>{escape(_base(track))}<small>{clock(length_s)}, {len(track.start_s):,} windows, '
        f"{len(track.changes):,} change points</small></h3>"
        f'<div class="plot" tabindex="0" role="slider" aria-label="Position in {escape(_base(track))}" '
        f'aria-valuemin="0" aria-valuemax="{length_s:.0f}" aria-valuenow="0">'
        f'{"".join(lanes)}<div class="marks" aria-hidden="true">{marks}</div><div class="cursor" hidden></div></div>'
        f'<div class="scale"><span>0:00</span><span>{clock(length_s / 2)}</span><span>{clock(length_s)}</span></div>'
        f"{_legend(track, colours, class_names)}"
        f'<div class="now"><img alt="" hidden><p aria-live="polite"></p></div>'
        f'<details><summary>{len(thumbnails):,} frames, spread evenly</summary><div class="strip">{strip}</div></details>'
        f'<script type="application/json">{readout}</script></section>'
    )


def _groups(count: int) -> np.ndarray:
    """Return the bounds of at most STEPS groups of windows, (groups + 1,)."""
    return np.unique(np.linspace(0, count, min(count, STEPS) + 1).round().astype(int))


def _grouped(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the greatest value of each group; NaN for one without any."""
    filled = np.where(np.isnan(values), -np.inf, values)
    best = np.maximum.reduceat(filled, groups[:-1])
    return np.where(np.isfinite(best), best, np.nan)


def _ribbon(title: str, classes: np.ndarray, colours: Sequence[str], class_names: Sequence[str]) -> str:
    bars = "".join(
        f'<rect x="{begin}" width="{end - begin}" height="1" fill="{colours[label] if label >= 0 else GREY}">'
        f"<title>{escape(class_names[label] if label >= 0 else 'no class')}</title></rect>"
        for begin, end, label in _runs(classes)
    )
    return (
        f'<figure class="ribbon"><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {len(classes)} 1" '
        f'preserveAspectRatio="none" role="img" aria-label="{escape(title)} classes over time">{bars}</svg></figure>'
    )


def _lane(
    title: str, lines: Sequence[tuple[str, np.ndarray]], track: "Track", groups: np.ndarray, length_s: float
) -> str:
    grouped = [_grouped(values, groups) for _, values in lines]
    times = track.centre_s[groups[:-1]]
    known = np.concatenate(grouped)[np.isfinite(np.concatenate(grouped))]
    high = float(known.max()) if len(known) and known.max() > 0 else 1.0
    paths = []
    for i, values in reversed(list(enumerate(grouped))):  # the main curve is drawn last, over the other
        steps, pen = [], "M"
        for time, value in zip(times, values, strict=True):
            if not np.isfinite(value):
                pen = "M"
                continue
            steps.append(f"{pen}{1000 * time / length_s:.2f} {100 - 96 * value / high:.1f}")
            pen = "L"
        paths.append(f'<path class="line{i}" d="{"".join(steps)}"/>')
    means = " · ".join(f"{name}: mean {np.nanmean(v):.3g}" for (name, v) in lines if np.isfinite(v).any())
    return (
        f'<figure class="lane"><figcaption>{escape(title)}<small>{escape(means)}, top {high:.3g}</small></figcaption>'
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{escape(title)} over time">'
        f"{''.join(paths)}</svg></figure>"
    )


def _legend(track: "Track", colours: Sequence[str], class_names: Sequence[str]) -> str:
    both = np.concatenate([track.predicted, track.true])
    entries = []
    for label in _by_share(both, len(class_names)):
        share = float((track.predicted == label).mean()) if len(track.predicted) else 0.0
        name = f"{escape(class_names[label])} <small>{share:.0%}</small>"
        entries.append(f'<li><b style="background:{colours[label]}"></b>{name}</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>' if entries else ""


def _data(track: "Track", groups: np.ndarray, class_names: Sequence[str], length_s: float) -> str:
    """Return what the cursor shows at each group, as JSON that cannot end its element."""
    firsts = groups[:-1]

    def rounded(values: np.ndarray) -> list[float | None]:
        return [float(f"{value:.3g}") if np.isfinite(value) else None for value in _grouped(values, groups)]

    names = sorted({int(i) for _, classes in _ribbons(track) for i in classes[firsts] if i >= 0})
    place = {label: i for i, label in enumerate(names)}
    data: dict[str, Any] = {
        "length": round(length_s, 3),
        "rows": firsts.tolist(),
        "seconds": [round(float(value), 2) if np.isfinite(value) else None for value in track.centre_s[firsts]],
        "curves": {name: rounded(values) for name, values in track.curves.items()},
        "names": [class_names[label] for label in names],
        "classes": {title: [place.get(int(i), -1) for i in classes[firsts]] for title, classes in _ribbons(track)},
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _gallery(track: "Track", number: int, moments: Sequence[Moment], small: dict[int, bytes]) -> str:
    """Return the moments' pictures, each of which opens the whole frame."""
    frames = _whole_frames(track, [moment.row for moment in moments])
    cards, frames_shown = [], []
    for moment in moments:
        jpeg = small.get(track.first_row + moment.row)
        if jpeg is None:
            continue
        time, name = clock(track.centre_s[moment.row]), f"f{number}-{moment.row}"
        picture = f'<img src="{data_uri(jpeg, "jpeg")}" alt="frame at {time}">'
        link = f'<a href="#{name}">{picture}</a>' if moment.row in frames else picture
        cards.append(
            f'<figure data-row="{moment.row}">{link}<figcaption><b>{time}</b> {escape(moment.title)}</figcaption></figure>'
        )
        if moment.row in frames:
            whole = f'<img src="{data_uri(frames[moment.row], "jpeg")}" alt="whole frame at {time}">'
            title = f"{time}: {escape(moment.title)}"
            frames_shown.append(f'<div class="frame" id="{name}"><a href="#close">{whole}<span>{title}</span></a></div>')
    if not cards:
        return ""
    heading = f"<h3>Peaks and changes<small>{escape(_base(track))}</small></h3>"
    return f'<section>{heading}<div class="moments">{"".join(cards)}</div></section>{"".join(frames_shown)}'
