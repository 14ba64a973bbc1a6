"""Classes, curves and change points of a file along time are drawn: as SVG for pages, and as a PNG.

track ─► ribbons, lanes, legend; timeline.png

    colours = colours_of(tracks, len(class_names))
    groups = groups_of(len(track.start_s))
    lanes = [ribbon(title, classes, track, groups, ...) for title, classes in ribbons_of(track)]

SVGs are stretched over the page's width: their texts stand beside them.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from launch.common.track import Track
from mae3d.analysis.course import Change
from mae3d.io.html import escape

STEPS = 3000  # steps of a curve, at most: of a longer file each shows the least and the greatest of its windows
MARKS = 80  # change points that are marked, the strongest: of more a plot of hours would be all lines
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


def write_pictures(tracks: Sequence[Track], class_names: Sequence[str], paths: Sequence[Path]) -> None:
    """Draw each file's ribbons and curves into a PNG."""
    from matplotlib.figure import Figure

    from mae3d.tracking.plots import one_label, save_figure

    colours = colours_of(tracks, len(class_names))
    for track, path in zip(tracks, paths, strict=True):
        ribbons, curves = ribbons_of(track), curves_of(track, class_names)
        heights = [0.35] * len(ribbons) + [1.0] * len(curves)
        figure = Figure(figsize=(11, 1.0 + 1.5 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, classes) in zip(panels, ribbons, strict=False):
            for begin, end, label in _runs(classes):
                colour = colours[label] if label >= 0 else GREY
                axes.axvspan(track.edges_s[begin], track.edges_s[end], color=colour, linewidth=0)
            axes.set_yticks([])
            axes.set_ylabel(title.split(":")[0], rotation=0, ha="right", va="center", fontsize=8)
        for axes, (title, lines) in zip(panels[len(ribbons) :], curves, strict=True):
            for i, (name, values) in enumerate(lines):
                axes.plot(track.centre_s, values, linewidth=1.1, color=("C0", "0.6")[i], label=one_label(name))
            for change in marked(track):
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
        figure.suptitle(one_label(base_name(track)), fontsize=10)
        save_figure(figure, path)


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds: 1:02:03, or 2:03."""
    whole = int(seconds)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


def marked(track: Track) -> list[Change]:
    """Return the strongest change points, in order of time."""
    strongest = sorted(track.changes, key=lambda change: -change.strength)[:MARKS]
    return sorted(strongest, key=lambda change: change.row)


def base_name(track: Track) -> str:
    return Path(track.name).name


def colours_of(tracks: Sequence[Track], classes: int) -> list[str]:
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


def ribbons_of(track: Track) -> list[tuple[str, np.ndarray]]:
    ribbons = [("predicted", track.predicted), ("true", track.true)]
    return [(title, classes) for title, classes in ribbons if len(classes)]


def curves_of(track: Track, class_names: Sequence[str]) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
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


def groups_of(count: int) -> np.ndarray:
    """Return the bounds of at most STEPS groups of windows, (groups + 1,)."""
    return np.unique(np.linspace(0, count, min(count, STEPS) + 1).round().astype(int))


def grouped(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the greatest value of each group; NaN for one without any."""
    filled = np.where(np.isnan(values), -np.inf, values)
    best = np.maximum.reduceat(filled, groups[:-1])
    return np.where(np.isfinite(best), best, np.nan)


def ribbon(
    title: str,
    classes: np.ndarray,
    track: Track,
    groups: np.ndarray,
    *,
    colours: Sequence[str],
    class_names: Sequence[str],
    length_s: float,
) -> str:
    """Return the classes along time, of each group its first window's."""
    places = 1000 * track.edges_s[groups] / length_s
    bars = "".join(
        f'<rect x="{places[begin]:.2f}" width="{places[end] - places[begin]:.2f}" height="1" '
        f'style="fill:{_on_page(colours[label] if label >= 0 else GREY)}">'
        f"<title>{escape(class_names[label] if label >= 0 else 'no class')}</title></rect>"
        for begin, end, label in _runs(classes[groups[:-1]])
    )
    return (
        f'<figure class="ribbon"><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 1000 1" '
        f'preserveAspectRatio="none" role="img" aria-label="{escape(title)} classes over time">{bars}</svg></figure>'
    )


def lane(title: str, lines: Sequence[tuple[str, np.ndarray]], track: Track, groups: np.ndarray, length_s: float) -> str:
    """Return curves along time, from the least to the greatest value of each group."""
    tops = [grouped(values, groups) for _, values in lines]
    times = track.centre_s[groups[:-1]]
    known = np.concatenate(tops)[np.isfinite(np.concatenate(tops))]
    high = float(known.max()) if len(known) and known.max() > 0 else 1.0
    paths = []
    for i, (_, values) in reversed(list(enumerate(lines))):  # the main curve is drawn last, over the other
        steps, pen = [], "M"
        for time, low, top in zip(times, -grouped(-values, groups), tops[i], strict=True):
            if not np.isfinite(top):
                pen = "M"
                continue
            for value in (low, top) if low < top else (top,):
                steps.append(f"{pen}{1000 * time / length_s:.2f} {100 - 96 * value / high:.1f}")
                pen = "L"
        paths.append(f'<path class="line{i}" d="{"".join(steps)}"/>')
    means = " · ".join(f"{name}: mean {np.nanmean(v):.3g}" for (name, v) in lines if np.isfinite(v).any())
    return (
        f'<figure class="lane"><figcaption>{escape(title)}<small>{escape(means)}, top {high:.3g}</small></figcaption>'
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{escape(title)} over time">'
        f"{''.join(paths)}</svg></figure>"
    )


def _on_page(colour: str) -> str:
    """Return a colour for a page of either scheme; grey is quiet in both."""
    return "var(--line)" if colour == GREY else colour


def legend(track: Track, colours: Sequence[str], class_names: Sequence[str]) -> str:
    both = np.concatenate([track.predicted, track.true])
    entries = []
    for label in _by_share(both, len(class_names)):
        share = float((track.predicted == label).mean()) if len(track.predicted) else 0.0
        name = f"{escape(class_names[label])} <small>{share:.0%}</small>"
        entries.append(f'<li><b style="background:{_on_page(colours[label])}"></b>{name}</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>' if entries else ""
