"""The results of a comparison of models ─► sentences that answer it, and one page with tables and charts.

text = comparison_page(results)                 # the content of compare.json
print(*verdicts(results), sep="\\n")             # own beats image by 12 points [7, 17] in the linear probe.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mae3d.io.html import escape, page, paragraph, table
from mae3d.io.shapes import plain_size, size_text

FEW_VIDEOS = 10  # source videos of a test set below which an interval is too narrow to be trusted
UNTRAINED, CHANCE = "untrained", "chance"

_STYLE = """
.answer { font-size: 20px; line-height: 1.4; color: var(--ink); }
section li { margin: 4px 0; max-width: 76ch; }
.wide { overflow-x: auto; margin-bottom: 12px; }
.wide table { min-width: 760px; }
.wide td, .wide th { white-space: nowrap; }
.charts { display: grid; gap: 20px; margin: 20px 0 10px; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
.charts section { margin-top: 0; min-width: 0; }
.charts svg { display: block; width: 100%; max-width: 520px; height: auto; font: 14px system-ui, sans-serif; }
@media (max-width: 500px) { main { padding: 24px 12px 40px; } section { padding: 16px 14px; } }
"""


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """Return the findings as sentences, the main one first: of the linear probe, then of the time order."""
    sentences = [
        _difference(entry["model"], entry["against"], entry["measures"]["linear"]) for entry in _by_weight(results)
    ]
    if "time_order" in results["models"][0]["measures"]:
        sentences += [_time_order(model) for model in results["models"] if model["name"] not in (UNTRAINED, CHANCE)]
    videos, samples = results["test"]["videos"], results["test"]["samples"]
    if videos < FEW_VIDEOS:
        sentences.append(
            f"Caution: the {samples:,} test samples come from {videos} source video{'s' if videos > 1 else ''}; with "
            f"fewer than {FEW_VIDEOS} an interval is too narrow to be trusted."
        )
    if shared := results["test"]["of_train_videos"]:
        sentences.append(
            f"Caution: {shared:,} test samples are of videos of the train set, which makes every score too high."
        )
    return sentences


def cells(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row of texts for each model: its scores with their intervals, its speed and its size."""
    rows = []
    for model in results["models"]:
        row = {"model": model["name"]}
        for name, interval in model["measures"].items():
            is_chance = model["name"] == CHANCE  # whose interval says nothing of a model
            row[measure_name(name)] = f"{100 * interval['mean']:.1f}" if is_chance else _score(interval)
        speed, parameters = model.get("clips_per_s"), model.get("parameters")
        row["clips/s"] = f"{speed:.3g}" if speed else ""
        row["parameters"] = _millions(parameters) if parameters else ""
        rows.append(row)
    return rows


def rows_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of the CSV file for each model."""
    rows = []
    for model in results["models"]:
        row = {name: model.get(name) for name in ("name", "source", "parameters", "clips_per_s", "frames", "size")}
        for measure, interval in model["measures"].items():
            row |= {measure: interval["mean"], f"{measure}_low": interval["low"], f"{measure}_high": interval["high"]}
        rows.append(row)
    return rows


def comparison_page(results: Mapping[str, Any]) -> str:
    """Return the text of the page; the argument is the content of compare.json."""
    answer, *others = verdicts(results)
    rows = cells(results)
    scores = table([list(row.values()) for row in rows], columns=list(rows[0]), row_names=True)
    gaps = table(_difference_rows(results), columns=_difference_columns(results), row_names=True)
    sources = table(
        [[model["name"], _source(model)] for model in results["models"]], columns=["model", "is"], row_names=True
    )
    charts = "".join(
        f"<section><h3>{escape(measure_name(name))}</h3>{_chart(results, name)}</section>"
        for name in results["models"][0]["measures"]
    )
    body = [
        "<h1>Comparison of frozen features</h1>",
        paragraph(_samples(results)),
        f'<section><p class="answer">{escape(answer)}</p>'
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in others)}</ul></section>",
        f'<section><h3>Scores</h3><div class="wide">{scores}</div>',
        paragraph("Accuracy in percent, with the 95 % interval in brackets."),
        "</section>",
        f'<div class="charts">{charts}</div>',
        paragraph("Percent: dots are means, lines 95 % intervals, the dashed line is chance; image models are brown."),
        f'<section><h3>Differences</h3><div class="wide">{gaps}</div>',
        paragraph(
            "Points by which the first model is above the second, on the same draws of test videos. An interval "
            "that holds 0 shows no difference. Each interval stands for its own comparison alone."
        ),
        "</section>",
        f"<section><h3>Models</h3>{sources}</section>",
        f"<section><h3>How this was measured</h3>{''.join(map(paragraph, _notes(results)))}</section>",
    ]
    return page("Comparison of frozen features", body, style=_STYLE)


def measure_name(measure: str) -> str:
    """Return the heading of a measure."""
    if measure.startswith("few_shot_"):
        return f"{measure.removeprefix('few_shot_')} per class"
    return {"linear": "linear", "knn": "kNN, k=20", "time_order": "time order"}[measure]


def _by_weight(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the differences, those to image models first, then between runs, then to the untrained model."""
    image = {model["name"] for model in results["models"] if model.get("image")}

    def weight(entry: Mapping[str, Any]) -> int:
        return 2 if entry["against"] == UNTRAINED else 0 if entry["against"] in image else 1

    return sorted(results["differences"], key=weight)


def _difference(a: str, b: str, gap: Mapping[str, Any]) -> str:
    """Return one finding of the linear probe in words."""
    points, low, high = (None if gap[name] is None else 100 * gap[name] for name in ("mean", "low", "high"))
    assert points is not None
    if low is None or high is None:
        return f"{a} is {points:+.1f} points from {b} in the linear probe; one test video gives no interval."
    if low > 0:
        return f"{a} beats {b} by {_points(points)} [{low:.1f}, {high:.1f}] in the linear probe."
    if high < 0:
        return f"{b} beats {a} by {_points(-points)} [{-high:.1f}, {-low:.1f}] in the linear probe."
    return (
        f"No difference between {a} and {b} is shown in the linear probe: {_signed(points)} points "
        f"[{_signed(low)}, {_signed(high)}]."
    )


def _points(value: float) -> str:
    return f"{value:.1f} points" if value < 9.95 else f"{value:.0f} points"


def _time_order(model: Mapping[str, Any]) -> str:
    interval = model["measures"]["time_order"]
    low = interval["low"]
    if low is not None and low > 0.5:
        return f"{model['name']} shows if a clip plays backwards: {_score(interval)} % of the clips, 50 % by chance."
    return f"{model['name']} does not show if a clip plays backwards: {_score(interval)} %, 50 % by chance."


def _score(interval: Mapping[str, Any]) -> str:
    if interval["low"] is None:
        return f"{100 * interval['mean']:.1f}"
    return f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}") if abs(points) >= 0.05 else "0.0"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.3g} M"


def _samples(results: Mapping[str, Any]) -> str:
    train, test = results["train"], results["test"]
    left_out = train["left_out"] + test["left_out"]
    unread = f" {left_out:,} samples that not every model could read are left out." if left_out else ""
    return (
        f"{len(results['models']) - 1} models, whose features are read by simple probes of {results['classes']} "
        f"classes, fitted to {train['samples']:,} train samples and judged on {test['samples']:,} test samples of "
        f"{test['videos']:,} videos.{unread}"
    )


def _source(model: Mapping[str, Any]) -> str:
    if model["name"] == CHANCE:
        return "no features: the most frequent class; for few samples a class by lot; for the time order a coin"
    frames = (
        f"{model['frames']} frames of {size_text(plain_size(model['size']))} pixels, every "
        f"{model['sampling_rate']:g} at {model['target_fps']:g} per second"
    )
    kind = "; an image model, frame by frame, averaged" if model["image"] else ""
    return f"{model['source']}{kind}; {frames}"


def _notes(results: Mapping[str, Any]) -> list[str]:
    settings = results["settings"]
    device = results["models"][0]["device"]
    notes = [
        "linear: logistic regression on the frozen features, its strength chosen on a fifth of the train set. kNN: the "
        f"20 nearest train samples vote. Few samples per class: the linear probe, mean of {settings['seeds']} draws; "
        "intervals are over the test samples, not over the draws.",
        f"Intervals: {settings['draws']:,} bootstrap draws of the test videos with all of their samples, 95 % "
        "percentiles. Samples of one name count as one video.",
    ]
    if "time_order" in results["models"][0]["measures"]:
        notes.append(
            "Time order: a linear probe is fitted to the train clips and the same clips backwards, and judged on those "
            "of the test set. Features of single frames that are averaged cannot show it."
        )
    notes.append(
        f"clips/s: features alone on this machine ({device}), without reading and decoding; the median of five timed "
        "batches. Other work on the machine changes it."
    )
    return notes


def _difference_columns(results: Mapping[str, Any]) -> list[str]:
    return ["models", *map(measure_name, results["models"][0]["measures"])]


def _difference_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for entry in _by_weight(results):
        row = [f"{entry['model']} \N{MINUS SIGN} {entry['against']}"]
        for gap in entry["measures"].values():
            limits = "" if gap["low"] is None else f" [{_signed(100 * gap['low'])}, {_signed(100 * gap['high'])}]"
            row.append(_signed(100 * gap["mean"]) + limits)
        rows.append(row)
    return rows


def _chart(results: Mapping[str, Any], measure: str, *, width: int = 400, row: int = 30) -> str:
    """Return an inline SVG: a dot and its interval for each model, and a dashed line at chance; the text says all."""
    models: Sequence[Any] = [model for model in results["models"] if model["name"] != CHANCE]
    chance = next(model["measures"][measure]["mean"] for model in results["models"] if model["name"] == CHANCE)
    left, right, top = 118, 16, 8
    bottom = top + row * len(models)
    intervals = [model["measures"][measure] for model in models]
    shown = [chance, *(share for interval in intervals for share in interval.values() if share is not None)]
    first, last = math.floor(4 * min(shown)), max(math.ceil(4 * max(shown)), math.floor(4 * min(shown)) + 1)

    def x(share: float) -> float:
        return left + (width - left - right) * (4 * share - first) / (last - first)

    said = "; ".join(f"{model['name']} {_score(model['measures'][measure])}" for model in models)
    label = f"{measure_name(measure)}, percent: {said}; chance {100 * chance:.1f}"
    parts = [f'<svg viewBox="0 0 {width} {bottom + 28}" role="img" aria-label="{escape(label)}">']
    for tick in (quarter / 4 for quarter in range(first, last + 1)):
        parts.append(f'<path d="M{x(tick):.1f} {top}V{bottom}" stroke="#e1e4e9"/>')
        parts.append(_text(x(tick), bottom + 18, f"{100 * tick:.0f}", "middle", "#6a717c"))
    parts.append(f'<path d="M{x(chance):.1f} {top}V{bottom}" stroke="#6a717c" stroke-dasharray="4 4"/>')
    for i, model in enumerate(models):
        interval, y = model["measures"][measure], top + row * (i + 0.5)
        colour = "#6a717c" if model["name"] == UNTRAINED else "#b3541e" if model["image"] else "#1f6feb"
        name = model["name"] if len(model["name"]) <= 14 else f"{model['name'][:13]}…"
        parts.append(_text(left - 10, y + 5, name, "end", "#262a30"))
        if interval["low"] is not None:
            line = f"M{x(interval['low']):.1f} {y}H{x(interval['high']):.1f}"
            parts.append(f'<path d="{line}" stroke="{colour}" stroke-width="3" stroke-linecap="round"/>')
        parts.append(f'<circle cx="{x(interval["mean"]):.1f}" cy="{y}" r="5.5" fill="{colour}"/>')
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
