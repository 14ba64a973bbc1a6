"""Figures of evaluations and runs are drawn into PNG files, by matplotlib without a display.

plot_confusion(matrix, "confusion.png", names=names)          # (C, C) counts
plot_losses({"prospective": a, "retrospective": b}, "losses.png")
plot_curves({Path("runs/a"): rows}, "curves.png", keys=["loss"])       # rows of metrics.jsonl
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mae3d.io.files import MARK, replace_file
from mae3d.tracking.history import SCORES, SPEED, is_number, score_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NAMED = 60  # classes whose names can be read along an axis
MAX_NUMBERED = 12  # classes whose shares can be read in the cells
MAX_NAME = 28  # letters of a name
MAX_POINTS = 400  # clips that are drawn one by one


def plot_confusion(matrix: NDArray[Any], path: str | Path, *, names: Sequence[str] | None = None) -> None:
    """Draw a confusion matrix, each row as shares of the class's samples; rows without samples stay empty.

    Args:
        matrix: (C, C) counts, rows are true classes.
        path: The PNG's path.
        names: Of the C classes; shown where there are few enough. None shows numbers.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.colors import PowerNorm

    classes, samples = len(matrix), matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, samples, out=np.full(matrix.shape, np.nan), where=samples > 0)
    side = min(max(3.2, 0.26 * classes), 11)
    figure = _figure(side + 2.4, side + 1.6)
    axes = figure.subplots()
    # The square root: a class that gets a hundredth of another's samples still shows.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    if classes <= MAX_NAMED:
        labels = [one_label(name) for name in names] if names else [str(number) for number in range(classes)]
        size = 9 if classes <= 30 else 6
        upright = names is None or max(map(len, labels)) <= 2
        axes.set_xticks(range(classes), labels, rotation=0 if upright else 90, fontsize=size)
        axes.set_yticks(range(classes), labels, fontsize=size)
    if classes <= MAX_NUMBERED:
        for (true, predicted), share in np.ndenumerate(shares):
            if share > 0:
                ink = "white" if share > 0.4 else "black"
                axes.text(predicted, true, f"{share:.0%}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    accuracy = matrix.trace() / max(matrix.sum(), 1)
    axes.set_title(f"{int(matrix.sum()):,} samples, {classes} classes, {accuracy:.1%} right", fontsize=10)
    save_figure(figure, path)


def plot_losses(losses: Mapping[str, NDArray[Any]], path: str | Path, *, title: str = "") -> None:
    """Draw the distribution of the losses of the same N clips, and their differences within one clip.

    Args:
        losses: Mask -> (N,), the same clips in the same order.
        path: The PNG's path.
        title: Above the plot.

    Raises:
        OSError: The file cannot be written.
    """
    pairs = list(combinations(losses, 2)) if len(losses) <= 3 else [(next(iter(losses)), b) for b in list(losses)[1:]]
    figure = _figure(2.6 + 1.1 * len(losses) + (1.4 + 1.3 * len(pairs) if pairs else 0), 4.6)
    widths = [1.5 + len(losses), 1.5 + len(pairs)] if pairs else [1]
    drawn = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _distributions(drawn[0], dict(losses), "prediction loss of a clip")
    if pairs:
        _distributions(
            drawn[1], {f"{a}\n- {b}": losses[a] - losses[b] for a, b in pairs}, "difference on the same clip"
        )
        drawn[1].axhline(0, color="black", linewidth=0.8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def plot_curves(
    runs: Mapping[Path, Sequence[Mapping[str, Any]]], path: str | Path, *, keys: Sequence[str] | None = None
) -> None:
    """Draw the logged values of runs, one panel per key: values thin, their running mean thick; scores as points.

    Args:
        runs: Folder -> lines of metrics.jsonl.
        path: The PNG's path.
        keys: Of the lines; None draws the loss, held-out scores, gradient norm, rate and speed, as far as there are.

    Raises:
        ValueError: A key is in no line of any run.
        OSError: The file cannot be written.
    """
    every = [row for rows in runs.values() for row in rows]
    there = list(dict.fromkeys(name for row in every for name, value in row.items() if is_number(value)))
    if unknown := [key for key in keys or () if key not in there]:
        raise ValueError(f"--keys {' '.join(unknown)}: in no line of metrics.jsonl; there are {', '.join(there)}")
    keys_shown = keys or ["loss", *score_names(every), "grad_norm", "lr", *SPEED]
    shown = [key for key in dict.fromkeys(keys_shown) if key in there]
    columns = min(len(shown), 2 if len(shown) <= 4 else 3)
    lines = -(-len(shown) // columns)
    figure = _figure(4.4 * columns, 2.9 * lines + 0.5)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, key in zip(panels, shown, strict=False):
        _curves(axes, list(runs.values()), key)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    handles = [panels[0].plot([], [], color=f"C{i}", linewidth=2.2)[0] for i in range(len(runs))]
    names = [one_label(name) for name in short_names(list(runs))]
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(runs), 4), frameon=False)
    save_figure(figure, path)


def _curves(axes: Any, runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> None:
    """Draw one panel, a colour per run."""
    everything: list[float] = []
    for i, rows in enumerate(runs):
        points = [(row["step"], row[key]) for row in rows if is_number(row.get(key))]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        everything += values
        if key.startswith(SCORES):
            axes.plot(steps, values, ".-", color=f"C{i}", linewidth=1.4, markersize=5)
        else:
            axes.plot(steps, values, color=f"C{i}", linewidth=0.7, alpha=0.4)
            axes.plot(steps, running_mean(values), color=f"C{i}", linewidth=2.0)
    low, high = np.quantile(everything, [0.02, 0.98])
    if key.endswith(("loss", "norm")) and low > 0 and high > 10 * low:
        axes.set_yscale("log")  # a few large values would leave the rest a flat line
    if key in SPEED:
        axes.set_ylim(bottom=0)
    axes.set_title(CURVES.get(key, key), fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


CURVES = {
    "grad_norm": "gradient norm, before clipping",
    "lr": "learning rate",
    "clips_per_s": "clips/s",
    "data_wait": "share of the time waiting for data",
    "mfu": "MFU",
}


def running_mean(values: Sequence[float]) -> list[float]:
    """Average each value with its neighbours, over a twentieth of the curve; narrower at the ends."""
    reach = len(values) // 40
    smooth = []
    for i in range(len(values)):
        span = min(reach, i, len(values) - 1 - i)
        smooth.append(math.fsum(values[i - span : i + span + 1]) / (2 * span + 1))
    return smooth


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as distinguish them."""
    whole = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(set(whole)):
            return names
    return ["/".join(parts) for parts in whole]


def _distributions(axes: Any, values: Mapping[str, NDArray[Any]], label: str) -> None:
    """Draw a box and points per entry; its mean is a line through the box."""
    axes.boxplot(
        list(values.values()), showmeans=True, meanline=True, showfliers=False, widths=0.5,
        medianprops={"color": "none"}, meanprops={"color": "tab:red", "linestyle": "-"},
    )  # fmt: skip
    for column, of_clips in enumerate(values.values(), 1):
        shown = of_clips[np.linspace(0, len(of_clips) - 1, min(len(of_clips), MAX_POINTS)).round().astype(int)]
        aside = np.random.Generator(np.random.Philox(key=[0, column])).uniform(-0.18, 0.18, len(shown))
        axes.plot(column + aside, shown, ".", color="tab:blue", alpha=0.35, markersize=4)
    axes.set_xticks(
        range(1, len(values) + 1), [f"{name}\nmean {of.mean():.4f}" for name, of in values.items()], fontsize=8
    )
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)


def one_label(name: str) -> str:
    """Return a name for a picture: cut, in one line, without the signs that begin a formula, with a glyph for all."""
    name = " ".join(name.encode("utf-8", "backslashreplace").decode().split())
    name = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
    return name.replace("$", r"\$")


def _figure(width: float, height: float) -> "Figure":
    """Return an empty figure, inches; not pyplot's, which would need a display and keep its figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: str | Path, *, dpi: int = 110) -> None:
    """Write a PNG with this program's mark."""
    with replace_file(Path(path)) as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box stands for it
        figure.savefig(aside, format="png", dpi=dpi, metadata={"Software": MARK.decode()})
