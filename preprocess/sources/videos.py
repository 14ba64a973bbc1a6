"""Videos in folders, tars and lists become requests for the plan, and problems for missing ones.

source = video_files(["clips", "s3://bucket/tars", "kinetics/train.csv"], settings=settings, workers=8)
result = source.find()      # ScanResult(requests, problems, notes)
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from mae3d.io.storage import Storage, is_url
from mae3d.video.errors import MediaError
from preprocess.plan.plan import ScanResult
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.problems import Problem
from preprocess.sources.archives import is_compressed_list, list_name, unpacked
from preprocess.sources.background import add_gaps, add_unnamed
from preprocess.sources.events import LABEL_ORDER
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.file_kinds import HEAD_BYTES, kind_of
from preprocess.sources.probing import Probed, probe
from preprocess.sources.published_lists import labelled_video
from preprocess.sources.roots import Folder, Remote, Root
from preprocess.sources.segments import video_pieces
from preprocess.sources.source import (
    PLAIN,
    SCRATCH,
    Reading,
    Source,
    cut_notes,
    encodable,
    given_label_names,
    identified,
    opened,
    reading_identity,
    same_names,
)
from preprocess.sources.spans import check_rates, check_units, settled, span_notes
from preprocess.sources.tar_files import WithTars
from preprocess.sources.video_listing import TAKEN_SUFFIXES, Collected, Given, VideoCandidate, collect, store_of
from preprocess.sources.video_lists import read_list
from preprocess.workers.executors import map_over_workers

log = logging.getLogger(__name__)

_LIST_SUFFIXES = {".csv", ".txt", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".lst", ".list"}


def video_files(
    given: Sequence[str | Path],
    *,
    settings: Settings,
    reading: Reading = PLAIN,
    scratch: Scratch = SCRATCH,
    workers: int = 1,
) -> Source:
    """Return a request for every piece of videos in folders (walked, sorted), tars, lists, or named one by one.

    Args:
        given: paths or URLs; with a root for the paths of lists, folders of one list per video too. Of events only
            such lists and folders.
        settings: rates and cuts.
        reading: dialect, labels and where the paths of lists begin.
        scratch: room for what is fetched.
        workers: how many processes may look at headers at the same time.

    Raises:
        ValueError: one of `given` does not exist, or a list cannot be read.
    """
    entries = _entries(given, reading, scratch)
    names = given_label_names(reading, scratch=scratch)
    rows = (row for entry in entries if entry.read for row in entry.read.rows)
    if settings.source_fps and not any(row.frames or row.frames_too for row in rows):
        raise ValueError("--source-fps is the rate of frame numbers in lists, and none are given; videos have a clock")
    stores = _stores(entries)
    roots = (*(entry.root for entry in entries), *(Remote(Storage(url), scratch) for url in stores))
    identity = [identified(entry.root, entry.path, entry.data) for entry in entries]
    list_name = entries[0].path if len(entries) == 1 and entries[0].read else ""

    def find() -> ScanResult:
        collected = Collected()
        for entry in entries:
            collect(entry, stores, reading, workers, collected)
        if reading.events:
            add_unnamed(entries[0].root, entries, reading, collected)
        return replace(_cut(collected, roots, settings, reading, workers), label_names=names)

    return Source(roots, list_name, [*identity, *reading_identity(reading, names)], find)


def _entries(given: Sequence[str | Path], reading: Reading, scratch: Scratch) -> list[Given]:
    """Open what was given, and read the lists among it."""
    remedy = "--events takes lists" if reading.events else "--videos takes folders, tars, lists and video files"
    base, below = opened(reading.root, "--root takes a folder", scratch=scratch) if reading.root else (None, "")
    if reading.events and (base is None or below):
        raise ValueError(f"--videos {reading.root}: --events looks for its videos in a folder; give that of all videos")
    entries: list[Given] = []
    for one in given:
        root, path = opened(one, remedy, scratch=scratch)
        is_list = (bool(path) and reading.events) or _is_list(root, path, str(one))
        lists = [path] if is_list else _frame_labels(root) if base and not path else []
        if reading.events and not lists:
            raise ValueError(f"--events {one}: no list of labels in it; lists of one video are called NAME-phase.txt")
        for name in lists:
            data = unpacked(root.read(name), str(one) if path else f"{one}/{name}")
            read = read_list(
                data,
                name,
                delimiter=reading.delimiter,
                header=reading.header,
                columns=reading.columns,
                label_order=LABEL_ORDER if reading.events else (),
            )
            entries.append(Given(len(entries), base or root, name, data, read))
        if not lists:
            entries.append(Given(len(entries), WithTars(root, scratch), path))
    return entries


def _is_list(root: Root, path: str, given: str) -> bool:
    """Return whether a file is a list: by its name, or by its first bytes neither video nor unknown binary data.

    Raises:
        LedgerError: it is an archive of something else.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if not path or suffix in TAKEN_SUFFIXES:
        return False
    if suffix in _LIST_SUFFIXES:
        return True
    head = root.head(path, HEAD_BYTES)
    if is_compressed_list(head, path, given):
        return True
    return kind_of(head) != "video" and (b"\0" not in head or head.startswith(b"PAR1"))


def _frame_labels(root: Root) -> list[str]:
    """Return the lists of a folder that holds one per video with labels of its frames, and no video."""
    names = root.files().names
    if any(PurePosixPath(name).suffix.lower() in TAKEN_SUFFIXES for name in names):
        return []
    return [name for name in names if labelled_video(list_name(name))]


def _stores(entries: Sequence[Given]) -> dict[str, int]:
    """Return the stores that rows of lists name by URL, one per host or bucket, with the number of their root."""
    urls = {store_of(row.path) for entry in entries if entry.read for row in entry.read.rows if is_url(row.path)}
    return {url: len(entries) + i for i, url in enumerate(sorted(urls))}


def _cut(collected: Collected, roots: Sequence[Root], settings: Settings, reading: Reading, workers: int) -> ScanResult:
    """Probe the headers, as far as the cut needs them, and make the pieces."""
    requests, odd = encodable(one.request for one in collected.candidates)
    problems = collected.problems + odd
    good = {id(request) for request in requests}
    candidates = [one for one in collected.candidates if id(one.request) in good]
    measured = bool(reading.background) or not settings.whole
    facts = _facts(candidates, roots, settings, workers, measured=measured)
    check_units(candidates, facts)
    if settings.source_fps is None:
        check_rates(candidates, facts)
    if reading.background:
        candidates += add_gaps(collected, facts, roots, settings, reading)
    made: list[Request] = []
    pieces: list[int] = []
    for one in candidates:
        request = one.request
        known = facts.get((request.root, request.path))
        try:
            if isinstance(known, MediaError):
                raise known
            if known is None or (settings.whole and not one.loose and not one.frames):
                cut = [request]
            else:
                cut = video_pieces(settled(one, known, source_fps=settings.source_fps), known, settings)
        except MediaError as error:
            file = request.file if request.line > 0 else ""
            problems.append(Problem(error.reason, str(error), request.name, request.line, file))
            continue
        pieces.append(len(cut))
        made += cut
    notes = [
        *collected.notes,
        *span_notes(candidates, facts, source_fps=settings.source_fps),
        *cut_notes(pieces),
        *same_names(made),
    ]
    return ScanResult(made, problems, notes, label_kind=reading.label_kind)


def _facts(
    candidates: Sequence[VideoCandidate], roots: Sequence[Root], settings: Settings, workers: int, *, measured: bool
) -> dict[tuple[int, str], Probed]:
    """Return the headers' announcements; nothing for existing files whose length is not needed."""
    paths = dict.fromkeys(
        (one.request.root, one.request.path)
        for one in candidates
        if one.loose or one.frames or one.frames_too or one.without_unit or measured
    )
    probed = map_over_workers(
        partial(probe, tuple(roots), settings), list(paths), workers=workers, unit="file", doing="look at"
    )
    facts: dict[tuple[int, str], Probed] = dict(zip(paths, probed, strict=True))
    for one in candidates:
        where = roots[one.request.root]
        key = one.request.root, one.request.path
        if key not in facts and isinstance(where, Folder) and not (where.path / one.request.path).is_file():
            facts[key] = MediaError("missing_file", "no such file")
    return facts
