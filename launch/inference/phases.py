"""Scores along videos and a list of true phases ─► smoothed classes, and how far they agree.

truth = read_truth(config, class_names)            # Truth, or None without --events
tables = judge(config, class_names, truth, tracks, out)  # fills each track's classes; agreement.csv and agreement.json

Smoothing with `--smooth auto` is chosen for each file by its agreement on the others, never on the file itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.common.tables import columns_of, write_csv
from launch.common.track import Track
from launch.inference.settings import TimelineConfig
from mae3d.analysis.phases import (
    UNLABELLED,
    agreement,
    best_setting,
    boundary_matches,
    hmm_smoothed,
    median_smoothed,
    total,
)
from mae3d.analysis.scores import average_precisions
from mae3d.io.files import write_text
from mae3d.model.config import nearest

if TYPE_CHECKING:
    from preprocess.sources.events import Event

AGREEMENT, AGREEMENT_TABLE = "agreement.json", "agreement.csv"
BACKGROUND = "background"  # the class, if the model has it, of all moments without an event
GRID_S = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0)  # seconds that `--smooth auto` chooses among
CHOSEN_BY = "f1_50"
TOLERANCE_S = 1.0  # between a change point and a boundary that it hits
ALL = "all files"  # name of the rows over all of them
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Truth:
    """The events of each file, in order of their beginnings, and the names in the list that are no file's."""

    events: "dict[str, list[Event]]"
    unmatched: tuple[str, ...] = ()


def read_truth(config: TimelineConfig, class_names: Sequence[str], *, overlapping: bool = False) -> Truth | None:
    """Return the true phases of the files; None without `--events`.

    Args:
        config: The options.
        class_names: The model's classes, if it has any.
        overlapping: Whether events of a file may overlap, because its moments have any number of classes.

    Raises:
        ValueError: The list cannot be read, a label is no class of the model's, no name is one of the files or one fits
            two, or two events of a file overlap.
    """
    from mae3d.video.clip import VideoError, open_clips
    from preprocess.sources.events import read_events

    if not config.events:
        return None
    events = read_events(Path(config.events))
    unknown = sorted({event.label for event in events} - set(class_names)) if class_names else []
    if unknown:
        raise ValueError(
            f"{config.events}: {len(unknown)} labels are no classes of the model: {', '.join(unknown[:SHOWN])}; "
            f"{nearest(unknown[0], list(class_names))}"
        )
    files = {name: _file_named(name, config) for name in dict.fromkeys(event.name for event in events)}
    by_file: dict[str, list[Event]] = {}
    for video in config.videos:
        mine = [event for event in events if files[event.name] == video]
        if any(event.frames for event in mine):
            try:
                with open_clips(video) as opened:
                    mine = [event.in_seconds(opened.facts.fps) for event in mine]
            except VideoError:  # it has no windows to compare, and is listed with those that cannot be read
                mine = []
        by_file[video] = sorted(mine, key=lambda event: event.start_s)
        for before, after in [] if overlapping else pairwise(by_file[video]):
            if after.start_s < before.end_s - 1e-6:
                raise ValueError(
                    f"{config.events}: lines {before.line} and {after.line} overlap in {video}, but a moment has one "
                    "phase: cut one of them"
                )
    if not any(by_file.values()):
        raise ValueError(f"{config.events}: names none of --videos; it has {', '.join(sorted(files)[:SHOWN])}")
    return Truth(by_file, tuple(name for name, file in files.items() if file is None))


def _file_named(name: str, config: TimelineConfig) -> str | None:
    """Return the video that a list means by a name: the path given, else its file's name, else that without suffix."""
    for spelled in (str, lambda video: Path(video).name, lambda video: Path(video).stem):
        fitting = [video for video in config.videos if spelled(video) == name]
        if len(fitting) > 1:
            raise ValueError(
                f"{config.events}: {name} fits {len(fitting)} of --videos: {', '.join(fitting[:SHOWN])}; write the "
                "paths as given"
            )
        if fitting:
            return fitting[0]
    return None


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


def targets_at(events: "Sequence[Event]", seconds: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return which classes each moment has, (n, C) bool; the arguments are those of `classes_at`, overlaps are fine."""
    number = {name: i for i, name in enumerate(class_names)}
    targets = np.zeros((len(seconds), len(class_names)), bool)
    for event in events:
        targets[(seconds >= event.start_s) & (seconds < event.end_s), number[event.label]] = True
    return targets


def judge(
    config: TimelineConfig,
    class_names: Sequence[str],
    truth: Truth | None,
    tracks: Sequence[Track],
    out: Path,
    *,
    multi_label: bool = False,
) -> list[list[dict[str, Any]]]:
    """Choose a class for each moment; compare classes and change points with the events, if there are any.

    Args:
        config: The options.
        class_names: The model's classes; empty for a model without any, of which the change points alone are compared.
        truth: The events; None without any.
        tracks: The files; their classes are filled in, if these exclude one another.
        out: The folder.
        multi_label: Whether a moment may have any number of the classes.

    Returns:
        Tables of the agreement, as agreement.csv and agreement.json have them: of classes, and of change points.
    """
    phases, chosen = () if multi_label else class_names, [0.0] * len(tracks)
    if phases:
        if truth is not None:
            for track in tracks:
                track.true = classes_at(truth.events[track.name], track.centre_s, phases)
        grid = GRID_S if config.smooth == "auto" else (float(config.smooth),)
        options = {smooth: [_predicted(config, track, smooth) for track in tracks] for smooth in grid}
        chosen = _choose(tracks, options)
        for i, track in enumerate(tracks):
            track.predicted = options[chosen[i]][i]
    known = [i for i, track in enumerate(tracks) if truth and truth.events[track.name] and track.is_readable]
    if truth is None or not known:
        for name in (AGREEMENT, AGREEMENT_TABLE):  # an earlier start's, with other events
            (out / name).unlink(missing_ok=True)
        return []
    rows = [{"name": tracks[i].name} | _boundaries([tracks[i]], truth) for i in known]
    rows.append({"name": ALL} | _boundaries([tracks[i] for i in known], truth))
    tables = [rows]
    if phases:
        tables.insert(0, _phase_rows(config, tracks, known, chosen))
    elif class_names:
        tables.insert(0, _precision_rows(class_names, truth, [tracks[i] for i in known]))
    write_csv(out / AGREEMENT_TABLE, columns_of([row for table in tables for row in table]))
    described = {"smoothing": config.smoothing, "tolerance_s": TOLERANCE_S, "rows": [r for t in tables for r in t]}
    write_text(out / AGREEMENT, json.dumps(described, indent=1) + "\n")
    return tables


def _precision_rows(class_names: Sequence[str], truth: Truth, tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """Return the average precision of each class that occurs in a file, and in all, and the mean of these classes."""
    rows: list[dict[str, Any]] = []
    for name, group in [*((track.name, [track]) for track in tracks), (ALL, tracks)]:
        targets = np.concatenate([targets_at(truth.events[t.name], t.centre_s, class_names) for t in group])
        scores = np.concatenate([track.scores for track in group])
        readable = ~np.isnan(scores[:, 0])
        precisions = average_precisions(scores[readable], targets[readable])
        occurring = np.flatnonzero(~np.isnan(precisions)).tolist()
        for label in occurring:
            moments = int(targets[readable, label].sum())
            rows.append(_precision_row(name, class_names[label], moments, float(precisions[label])))
        if occurring:
            moments = int(targets[readable].sum())
            rows.append(_precision_row(name, "mean of classes", moments, float(precisions[occurring].mean())))
    return rows


def _precision_row(name: str, label: str, moments: int, precision: float) -> dict[str, Any]:
    return {"name": name, "class": label, "moments": moments, "average_precision": precision}


def _phase_rows(
    config: TimelineConfig, tracks: Sequence[Track], known: Sequence[int], chosen: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the figures of each file that has events, and of all, before and after smoothing."""
    rows: list[dict[str, Any]] = []
    plain = {i: _predicted(config, tracks[i], 0.0) for i in known}
    smoothed = {i: tracks[i].predicted for i in known}
    for predictions, seconds in ((plain, dict.fromkeys(known, 0.0)), (smoothed, {i: chosen[i] for i in known})):
        if predictions is smoothed and not any(seconds.values()):
            continue
        for group in [*([i] for i in known), known]:
            true = [tracks[i].true for i in group]
            same = len({seconds[i] for i in group}) == 1
            rows.append(
                {
                    "name": tracks[group[0]].name if len(group) == 1 and group is not known else ALL,
                    "smooth_s": seconds[group[0]] if same else "each its own",
                    "moments": int(sum((classes != UNLABELLED).sum() for classes in true)),
                    **agreement([predictions[i] for i in group], true),
                }
            )
    return rows


def _boundaries(tracks: Sequence[Track], truth: Truth) -> dict[str, Any]:
    """Return how many change points lie at the beginnings and ends of events, within TOLERANCE_S."""
    matches = []
    for track in tracks:
        first_s, last_s = np.nanmin(track.start_s) + TOLERANCE_S, np.nanmax(track.end_s) - TOLERANCE_S
        ends = {round(t, 3) for event in truth.events[track.name] for t in (event.start_s, event.end_s)}
        changes = [track.change_s(change) for change in track.changes]
        true = sorted(t for t in ends if first_s <= t <= last_s)
        matches.append(boundary_matches(changes, true, tolerance=TOLERANCE_S))
    counts = total(matches)
    return {
        "boundaries": counts.true,
        "changes": counts.predicted,
        "change_precision": counts.precision,
        "change_recall": counts.recall,
        "change_f1": counts.f1,
    }


def _predicted(config: TimelineConfig, track: Track, smooth_s: float) -> np.ndarray:
    """Return the (n,) classes of the smoothed scores; -1 for moments that cannot be read."""
    readable = np.flatnonzero(~np.isnan(track.scores[:, 0]))
    classes = np.full(len(track.scores), UNLABELLED, np.int64)
    scores, rows = track.scores[readable], smooth_s / config.every
    if rows >= 1 and len(readable):
        smoothed = (
            median_smoothed(scores, round(rows))
            if config.smoothing == "median"
            else hmm_smoothed(scores, 1 - 1 / (1 + rows))
        )
        scores = smoothed.astype(np.float64)
    if len(readable):
        classes[readable] = scores.argmax(axis=1)
    return classes


def _choose(tracks: Sequence[Track], options: dict[float, list[np.ndarray]]) -> list[float]:
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
