"""Frame folders, with a ledger or as a tree, become requests for the plan, and problems for missing ones.

source = frame_folders(["dataset"], "dataset/ledger.csv", settings=settings)
source = frame_folders(["s3://bucket/frames"], None, settings=settings)       # ROOT/ledger.csv, or a folder a class
result = source.find()
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from preprocess.plan.label_names import LabelNames
from preprocess.plan.plan import ScanResult
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.problems import Problem
from preprocess.sources.archives import is_compressed_list, unpacked
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.file_kinds import HEAD_BYTES, count_by_suffix
from preprocess.sources.folder_labels import infer_labels
from preprocess.sources.frame_names import FrameFolder, index_shift, left_out_folders
from preprocess.sources.frame_notes import folder_notes, named_videos, naming_notes, stride_notes
from preprocess.sources.frame_places import (
    Location,
    counted_twofold,
    place_rows,
    settle_totals,
    spans_of,
    unlisted_videos,
)
from preprocess.sources.frame_trees import FrameFolders
from preprocess.sources.ledger import Ledger, read_ledger
from preprocess.sources.list_records import LedgerError
from preprocess.sources.roots import Root
from preprocess.sources.segments import frame_pieces
from preprocess.sources.source import (
    PLAIN,
    SCRATCH,
    Reading,
    Source,
    cut_notes,
    encodable,
    given_label_names,
    identified,
    leaving,
    not_followed,
    opened,
    reading_identity,
    same_names,
    shortened,
    unread_archives,
)

log = logging.getLogger(__name__)

_AT_A_TIME = 16  # folders that are read at the same time: on a network disk each takes milliseconds


def frame_folders(
    given: Sequence[str | Path],
    ledger: str | Path | None = None,
    *,
    settings: Settings,
    reading: Reading = PLAIN,
    scratch: Scratch = SCRATCH,
) -> Source:
    """Return a request for every piece of every usable row of a ledger, or of every frame folder without one.

    A ledger's folders are looked for in each root, there and below its train, val and test. Without a ledger, and
    without a ledger.csv in the first root, every frame folder is a sample, labelled by the folder that it lies in;
    a folder with frames of several videos is one a prefix, named `folder/prefix`.

    Args:
        given: the roots, paths or URLs.
        ledger: path or URL of the ledger.
        settings: sizes, rates and cuts.
        reading: dialect and labels.
        scratch: room for what is fetched.

    Raises:
        ValueError: a root or the ledger cannot be read, or a setting needs source_fps and there is none.
    """
    roots = []
    for one in given:
        root, path = opened(one, "--frames takes the folder that holds the frame folders", scratch=scratch)
        if path:
            is_compressed_list(root.head(path, HEAD_BYTES), path, str(one))
            raise ValueError(f"{one}: not a folder; --frames takes the folder that holds the frame folders")
        roots.append(root)
    if settings.source_fps is None and (settings.fps or settings.segment_seconds):
        raise ValueError("--fps and --segment-seconds need --source-fps for frame folders: they have no clock")
    names = given_label_names(reading, scratch=scratch)
    data, name = _ledger_bytes(roots[0], ledger, scratch=scratch)
    added = reading_identity(reading, names)
    others = [identified(root, "") for root in roots[1:]]
    if data is None and reading.columns:
        raise LedgerError("--columns names the columns of a ledger, and there is none: give it with --ledger")
    if data is None:
        identity = [identified(root, "") for root in roots] + added
        return Source(tuple(roots), "", identity, lambda: _find_trees(roots, settings, reading, names))
    ledger_read = partial(
        read_ledger,
        data,
        name,
        delimiter=reading.delimiter,
        header=reading.header,
        allow_outside=reading.allow_outside,
    )
    rows = ledger_read(columns=reading.columns)
    list_name = PurePosixPath(name).name
    identity = [identified(roots[0], list_name, data), *others, *added]

    def find() -> ScanResult:
        return _find_rows(roots, rows, list_name, settings, reading, names, ledger_read)

    return Source(tuple(roots), list_name, identity, find)


def _ledger_bytes(root: Root, ledger: str | Path | None, *, scratch: Scratch) -> tuple[bytes | None, str]:
    """Return the ledger and its name; None if the default one does not exist."""
    if ledger is None:
        try:
            return unpacked(root.read("ledger.csv"), "ledger.csv"), "ledger.csv"
        except FileNotFoundError:
            return None, ""
    remedy = "give the file with --ledger; without it, and without ROOT/ledger.csv, all frame folders are taken"
    where, path = opened(ledger, remedy, scratch=scratch)
    if not path:
        raise LedgerError(f"{ledger}: a folder; {remedy}")
    return unpacked(where.read(path), str(ledger)), str(ledger)


def _find_rows(
    roots: Sequence[Root],
    ledger: Ledger,
    file: str,
    settings: Settings,
    reading: Reading,
    label_names: LabelNames | None,
    read: Callable[..., Ledger],
) -> ScanResult:
    trees = [FrameFolders(root, follow=reading.allow_outside) for root in roots]
    ledger, places, notes = place_rows(ledger, trees, reading, read)
    log.info("%s", ledger.dialect)
    rows, problems, more = settle_totals(ledger.rows, places)
    notes += more
    spans = spans_of(rows)
    shifts = {
        name: index_shift(location.folder, *span) if isinstance(location := places[name], Location) else 0
        for name, span in spans.items()
    }
    requests: list[Request] = []
    problems += ledger.problems
    pieces: list[int] = []
    for row in rows:
        location = places[row.name]
        if not isinstance(location, Problem):
            location = counted_twofold(location, *spans[row.name]) or location
        if isinstance(location, Problem):
            problems.append(replace(location, line=row.line))
            continue
        first, stop = row.first + shifts[row.name], row.stop + shifts[row.name]
        gaps = _gaps(location.folder, first, stop, reading)
        if isinstance(gaps, Problem):
            message = f"frames {row.first} to {row.stop - 1} asked for, {gaps.message}"
            problems.append(Problem("missing_frame", message, row.name, row.line))
            continue
        first, stop = _ends(location.folder, first, stop)
        whole = Request("frames", location.root, location.path, row.name, row.labels, file, row.line, first, stop)
        made = list(frame_pieces(replace(whole, gaps=gaps, split=row.split), location.folder, settings))
        pieces.append(len(made))
        requests += made
    for shift, count in sorted(Counter(shifts.values()).items()):
        if shift:
            log.info("%d folders: frame numbers of the ledger %+d = numbers of the files", count, shift)
    absent = [name for name, location in places.items() if isinstance(location, Problem)]
    unlisted = unlisted_videos(trees, places)
    notes += [
        f"{len(absent)} folders of the ledger are not on disk or hold no frames{shortened(absent)}",
        f"{len(unlisted)} frame folders on disk are not in the ledger{shortened(unlisted)}",
    ]
    located = [one for one in places.values() if isinstance(one, Location)]
    notes += naming_notes({one.path: one.naming for one in located if one.naming})
    notes += cut_notes(pieces) + _gap_notes(requests) + stride_notes(requests)
    return ScanResult(
        requests, sorted(problems, key=lambda problem: problem.line), notes, label_names, reading.label_kind
    )


def _find_trees(
    roots: Sequence[Root], settings: Settings, reading: Reading, label_names: LabelNames | None
) -> ScanResult:
    requests: list[Request] = []
    problems: list[Problem] = []
    notes: list[str] = []
    pieces: list[int] = []
    for number, root in enumerate(roots):
        tree = FrameFolders(root, follow=reading.allow_outside)
        walked = tree.below()
        beside = left_out_folders(walked.folders)
        paths = [path for path in walked.folders if path not in beside]
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            namings = dict(zip(paths, pool.map(tree.scan, paths), strict=True))
        videos = list(named_videos(namings))
        placed = infer_labels([video.name for video in videos], labels=reading.labels)
        message = f"no ledger: {len(videos)} frame folders of {root.name}; {placed.note}"
        log.info("%s", message)
        notes.append(message)
        notes += naming_notes(namings) + folder_notes(root.name, beside)
        notes += not_followed(root, walked.links.left, walked.links.loops)
        packed = unread_archives(root, walked.others)
        if walked.others:
            counted = f"{root.name}: {len(walked.others)} files outside of frame folders are not read"
            notes += [f"{counted}, {count_by_suffix(walked.others)}{shortened(sorted(walked.others))}", *packed]
        if not walked.folders:
            what = "; ".join([count_by_suffix(walked.others) or "none", *packed])
            problems.append(Problem("no_frames", f"no numbered pictures below; other files: {what}", root.name))
        if beside and not paths:
            problems += [
                Problem("no_frames", f"{why} by its name, and nothing else", path) for path, why in beside.items()
            ]
        for video, labels, split in zip(videos, placed.labels, placed.splits, strict=True):
            path, folder, name = video.path, video.folder, video.name or root.name
            if folder is None:
                problems.append(Problem("no_frames", video.refusal, name))
                continue
            if folder.outside and not reading.allow_outside:
                problems.append(leaving(name, folder.outside))
                continue
            first, stop = int(folder.numbers[0]), int(folder.numbers[-1]) + 1
            gaps = _gaps(folder, first, stop, reading)
            if isinstance(gaps, Problem):
                problems.append(replace(gaps, name=name))
                continue
            whole = Request("frames", number, path, name, labels, path, -1, first, stop)
            made = list(frame_pieces(replace(whole, gaps=gaps, split=split), folder, settings))
            pieces.append(len(made))
            requests += made
    requests, odd = encodable(requests)
    notes += cut_notes(pieces) + _gap_notes(requests) + stride_notes(requests) + same_names(requests)
    return ScanResult(requests, problems + odd, notes, label_names, reading.label_kind)


def _ends(folder: FrameFolder, first: int, stop: int) -> tuple[int, int]:
    """Return the first number in [first, stop) that frames have, and one more than the last."""
    numbers = folder.expected(first, stop)
    return numbers[0], numbers[-1] + 1


def _gaps(folder: FrameFolder, first: int, stop: int, reading: Reading) -> tuple[int, ...] | Problem:
    """Return the missing frames that the ones before them replace; none unless that is allowed."""
    if not folder.expected(first, stop):
        return Problem("missing_frame", f"no frame has such a number; there are {folder.span}")
    missing = folder.first_missing(first, stop)
    if missing is None:
        return ()
    gaps = folder.gaps(first, stop) if reading.fill_gaps else None
    if gaps is not None:
        return gaps
    message = f"{folder.file_name(missing)} is missing; there are {folder.span}"
    if folder.gaps(first, stop) is not None:
        message += "; --fill-gaps takes the frame before"
        if folder.uneven_step:
            message += f" for the numbers between, and --source-fps HZ --fps HZ/{folder.uneven_step} stores one a step"
    return Problem("missing_frame", message)


def _gap_notes(requests: Sequence[Request]) -> list[str]:
    filled = [len(request.gaps) for request in requests if request.gaps]
    return [f"{sum(filled)} missing frames of {len(filled)} samples are the ones before them"] if filled else []
