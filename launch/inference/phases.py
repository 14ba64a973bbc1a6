"""Scores along videos and a list of true phases ─► smoothed classes, and how far they agree.

truth = read_truth(config, class_names)            # Truth, or None without --events
lines = judge(config, reader, truth, tracks, out)  # fills each track's classes; agreement.csv and agreement.json

Smoothing with `--smooth auto` is chosen for each file by its agreement on the others, never on the file itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.common.tables import aligned, columns_of, write_csv
from mae3d.analysis.phases import UNLABELLED, agreement, best_setting, hmm_smoothed, median_smoothed
from mae3d.io.files import write_text
from mae3d.model.config import nearest

if TYPE_CHECKING:
    from launch.inference.timeline import Reader, Track
    from launch.timeline import TimelineConfig
    from preprocess.sources.events import Event

AGREEMENT, AGREEMENT_TABLE = "agreement.json", "agreement.csv"
BACKGROUND = "background"  # the class, if the model has it, of all moments without an event
GRID_S = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0)  # seconds that `--smooth auto` chooses among
CHOSEN_BY = "f1_50"
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Truth:
    """The events of each file, in order of their beginnings."""

    events: "dict[str, list[Event]]"


def read_truth(config: "TimelineConfig", class_names: Sequence[str]) -> Truth | None:
    """Return the true phases of the files; None without `--events`.

    Raises:
        ValueError: The model is no classifier, the list cannot be read, a label is no class of the model's, no name is
            one of the files, or two events of a file overlap.
    """
    from mae3d.video.clip import open_clips
    from preprocess.sources.events import read_events

    if not config.events:
        return None
    if not class_names:
        raise ValueError("--events: the model has no classes to compare with them: give a finetuned one as --run")
    events = read_events(Path(config.events))
    if unknown := sorted({event.label for event in events} - set(class_names)):
        raise ValueError(
            f"{config.events}: {len(unknown)} labels are no classes of the model: {', '.join(unknown[:SHOWN])}; "
            f"{nearest(unknown[0], list(class_names))}"
        )
    by_file: dict[str, list[Event]] = {}
    for video in config.videos:
        names = {video, Path(video).name, Path(video).stem}
        mine = [event for event in events if {event.name, Path(event.name).stem} & names]
        if any(event.frames for event in mine):
            with open_clips(video) as opened:
                mine = [event.in_seconds(opened.facts.fps) for event in mine]
        by_file[video] = sorted(mine, key=lambda event: event.start_s)
        for before, after in zip(by_file[video], by_file[video][1:], strict=False):
            if after.start_s < before.end_s - 1e-6:
                raise ValueError(
                    f"{config.events}: lines {before.line} and {after.line} overlap in {video}, but a moment has one "
                    "phase: cut one of them"
                )
    if not any(by_file.values()):
        listed = ", ".join(sorted({event.name for event in events})[:SHOWN])
        raise ValueError(f"{config.events}: names none of --videos; it has {listed}")
    return Truth(by_file)


def classes_at(events: "Sequence[Event]", seconds: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return the class at each moment, (n,) int64; between events the class `background`, -1 if there is none.

    Args:
        events: In order, without overlaps.
        seconds: (n,) moments; NaN has no class.
        class_names: The model's classes by number.
    """
    number = {name: i for i, name in enumerate(class_names)}
    classes = np.full(len(seconds), number.get(BACKGROUND, UNLABELLED) if events else UNLABELLED, np.int64)
    for event in events:
        classes[(seconds >= event.start_s) & (seconds < event.end_s)] = number[event.label]
    classes[np.isnan(seconds)] = UNLABELLED
    return classes


def judge(
    config: "TimelineConfig", reader: "Reader", truth: Truth | None, tracks: "Sequence[Track]", out: Path
) -> list[str]:
    """Choose a class for each moment, compare with the events, and write agreement.csv and agreement.json.

    A classifier of several labels per clip has no single class at a moment: nothing is done.

    Returns:
        Lines to print.

    Raises:
        ValueError: Events are given for a classifier of several labels per clip.
    """
    if not reader.class_names or reader.is_multi_label:
        if truth is not None:
            raise ValueError("--events: phases exclude one another, but the model gives several labels per clip")
        return []
    for track in tracks:
        track.true = np.zeros(0, np.int64)
        if truth is not None:
            track.true = classes_at(truth.events[track.name], track.centre_s, reader.class_names)
    grid = GRID_S if config.smooth == "auto" else (float(config.smooth),)
    options = {smooth: [_predicted(config, track, smooth) for track in tracks] for smooth in grid}
    chosen = _choose(tracks, options)
    for i, track in enumerate(tracks):
        track.predicted = options[chosen[i]][i]
    if truth is None:
        return []
    plain = [_predicted(config, track, 0.0) for track in tracks]
    rows: list[dict[str, Any]] = []
    for title, predictions in (("", plain), ("smoothed", [track.predicted for track in tracks])):
        if title and not any(chosen):
            continue
        for i, track in enumerate(tracks):
            figures = agreement([predictions[i]], [track.true])
            smooth = chosen[i] if title else 0.0
            rows.append({"name": track.name, "smooth_s": smooth, "moments": int((track.true >= 0).sum())} | figures)
        figures = agreement(predictions, [track.true for track in tracks])
        smooth = (chosen[0] if len(set(chosen)) == 1 else None) if title else 0.0
        moments = sum(int((track.true >= 0).sum()) for track in tracks)
        rows.append({"name": "all files", "smooth_s": smooth, "moments": moments} | figures)
    table = columns_of(rows)
    write_csv(out / AGREEMENT_TABLE, table)
    write_text(out / AGREEMENT, json.dumps({"smoothing": config.smoothing, "files": rows}, indent=1) + "\n")
    lines = aligned(table)
    if config.smooth == "auto" and len(tracks) < 2:
        lines.append("--smooth auto: nothing is smoothed, because there is no other file to choose on")
    return lines


def _predicted(config: "TimelineConfig", track: "Track", smooth_s: float) -> np.ndarray:
    """Return the (n,) classes of the smoothed scores; -1 for moments that cannot be read."""
    readable = np.flatnonzero(~np.isnan(track.scores[:, 0]))
    classes = np.full(len(track.scores), UNLABELLED, np.int64)
    scores, rows = track.scores[readable], smooth_s / config.every
    if rows >= 1 and len(readable):
        smoothed = median_smoothed(scores, round(rows)) if config.smoothing == "median" else hmm_smoothed(
            scores, 1 - 1 / (1 + rows)
        )
        scores = smoothed.astype(np.float64)
    if len(readable):
        classes[readable] = scores.argmax(axis=1)
    return classes


def _choose(tracks: "Sequence[Track]", options: dict[float, list[np.ndarray]]) -> list[float]:
    """Return each file's smoothing: the only one there is, or what agrees best on the other files that have events."""
    if len(options) == 1:
        return [next(iter(options))] * len(tracks)
    known = [i for i, track in enumerate(tracks) if (track.true != UNLABELLED).any()]
    figures = {
        smooth: [agreement([predicted[i]], [tracks[i].true])[CHOSEN_BY] for i in known]
        for smooth, predicted in options.items()
    }
    return [
        best_setting(figures, without=known.index(i) if i in known else -1) if set(known) - {i} else 0.0
        for i in range(len(tracks))
    ]
