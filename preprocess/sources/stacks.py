"""TIFF stacks and DICOM files become requests for the plan: a file of many frames is a video, and so is a series.

    source = stack_files(["scans", "more/run.tif"], settings=settings)
    result = source.find()      # ScanResult(requests, problems, notes)

Files are known by their first bytes, so names need no suffix. DICOM files of one frame that lie in one folder and are
of one series are a video, in the order of their instance numbers; without these, of their times. Names are those of
files and folders: nothing of a patient is read.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from mae3d.video.errors import MediaError
from mae3d.video.levels import StackFacts
from mae3d.video.stacks import DICOM_AT, kind_of_stack
from preprocess.plan.label_names import LabelNames
from preprocess.plan.plan import ScanResult
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.problems import Problem
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.file_kinds import count_by_suffix
from preprocess.sources.folder_labels import infer_labels
from preprocess.sources.frame_names import FrameFolder
from preprocess.sources.probing import ProbedStack, probe_stack
from preprocess.sources.roots import Listing, Root
from preprocess.sources.segments import num_pieces, thinning
from preprocess.sources.source import (
    PLAIN,
    SCRATCH,
    Reading,
    Source,
    cut_notes,
    encodable,
    given_label_names,
    identified,
    not_followed,
    opened,
    other_files,
    reading_identity,
    same_names,
    shown,
    staying,
    unread,
    unread_archives,
)
from preprocess.workers.executors import map_over_workers

log = logging.getLogger(__name__)

_AT_A_TIME = 16  # files whose first bytes are read at the same time
_STACK_SUFFIXES = frozenset((".btf", ".dcm", ".dicom", ".ima", ".tf8", ".tif", ".tiff"))
_TEXTS = "DICOM pixels are stored as they are: names that are burned into them stay"


@dataclass(frozen=True)
class _Video:
    """The frames of one video: a file of many, or files of one frame each."""

    name: str
    path: str
    facts: StackFacts
    files: tuple[str, ...] = ()


def stack_files(
    given: Sequence[str | Path],
    *,
    settings: Settings,
    reading: Reading = PLAIN,
    scratch: Scratch = SCRATCH,
    workers: int = 1,
) -> Source:
    """Return requests for TIFF and DICOM files in folders (walked, sorted) or named one by one.

    Args:
        given: paths or URLs.
        settings: rates and cuts.
        reading: labels, and whether missing instances are filled.
        scratch: room for what is fetched.
        workers: how many decoders may look at headers at the same time.

    Raises:
        ValueError: one of `given` does not exist.
    """
    roots = [opened(one, "--stacks takes folders, TIFF and DICOM files", scratch=scratch) for one in given]
    names = given_label_names(reading, scratch=scratch)
    identity = [identified(root, path) for root, path in roots] + reading_identity(reading, names)

    def find() -> ScanResult:
        return _request_stacks(roots, settings, reading, names, workers)

    return Source(tuple(root for root, _ in roots), "", identity, find)


def _request_stacks(
    roots: Sequence[tuple[Root, str]],
    settings: Settings,
    reading: Reading,
    label_names: LabelNames | None,
    workers: int,
) -> ScanResult:
    requests: list[Request] = []
    problems: list[Problem] = []
    notes: list[str] = []
    pieces: list[int] = []
    for number, (root, path) in enumerate(roots):
        listing = Listing([path]) if path else root.files(follow=reading.allow_outside)
        files, refused = _stacks_among(root, listing, path, reading, notes)
        problems += refused
        if not files:
            others = count_by_suffix(listing.names) or "none"
            problems.append(Problem("no_frames", f"no TIFF or DICOM file in it; files: {others}", path or root.name))
        look = partial(probe_stack, tuple(one for one, _ in roots), settings)
        probed = map_over_workers(look, [(number, file) for file in files], workers=workers, unit="file")
        facts = dict(zip(files, probed, strict=True))
        problems += [
            Problem(one.reason, str(one), shown(file)) for file, one in facts.items() if isinstance(one, MediaError)
        ]
        videos, incomplete = _videos_of(root, facts, reading)
        problems += incomplete
        placed = infer_labels([video.name for video in videos], labels=reading.labels)
        message = f"{path or root.name}: {len(videos)} videos in {len(files)} TIFF and DICOM files; {placed.note}"
        log.info("%s", message)
        notes.append(message)
        if any(not isinstance(one, MediaError) and one.is_dicom for one in facts.values()):
            burned = sum(not isinstance(one, MediaError) and one.has_burned_in for one in facts.values())
            notes.append(f"warning: {_TEXTS}{f'; {burned} files announce some' if burned else ''}")
        for video, labels, split in zip(videos, placed.labels, placed.splits, strict=True):
            whole = Request("stack", number, video.path, video.name, labels, video.path, -1, split=split)
            try:
                made = list(_pieces(whole, video, settings))
            except MediaError as error:
                problems.append(Problem(error.reason, str(error), shown(video.name)))
                continue
            pieces.append(len(made))
            requests += made
    requests, odd = encodable(requests)
    notes += cut_notes(pieces) + same_names(requests)
    return ScanResult(requests, problems + odd, notes, label_names, reading.label_kind)


def _stacks_among(
    root: Root, listing: Listing, given: str, reading: Reading, notes: list[str]
) -> tuple[list[str], list[Problem]]:
    """Return the TIFF and DICOM files of a listing, and problems; files that are not read are noted."""
    inside, refused = staying(listing, listing.names, reading)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        are_stacks = list(pool.map(partial(_is_stack, root), inside))
    files = [name for name, is_stack in zip(inside, are_stacks, strict=True) if is_stack or given]
    rest = sorted({*inside} - {*files})
    strange: list[Problem] = []
    if rest:
        pictures, others, strange = unread(root, listing, rest, "image", reading)
        notes += other_files(root.name, sorted([*pictures, *others])) + unread_archives(root, others)
    notes += not_followed(root, listing.links, listing.loops)
    return files, [*refused, *strange]


def _is_stack(root: Root, name: str) -> bool:
    if PurePosixPath(name).suffix.lower() in _STACK_SUFFIXES:
        return True
    try:
        return bool(kind_of_stack(root.head(name, DICOM_AT + 4)))
    except OSError:
        return False


def _videos_of(root: Root, facts: dict[str, ProbedStack], reading: Reading) -> tuple[list[_Video], list[Problem]]:
    """Return the videos of files, by name, and problems of series that lack instances."""
    videos: list[_Video] = []
    problems: list[Problem] = []
    series: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file, one in facts.items():
        if isinstance(one, MediaError):
            continue
        if one.series:
            series[file.rpartition("/")[0], one.series].append(file)
        else:
            videos.append(_Video(file, file, one))
    in_folder = Counter(folder for folder, _ in series)
    for (folder, _), files in series.items():
        known = {file: one for file in files if not isinstance(one := facts[file], MediaError)}
        ordered, problem = _in_order(known, fill=reading.fill_gaps)
        name = folder if folder and in_folder[folder] == 1 else ordered[0]
        if problem:
            problems.append(Problem("missing_frame", problem, shown(name)))
            continue
        first = known[ordered[0]]
        rates = [one.fps for one in known.values() if one.fps > 0]
        rate = rates[0] if rates else math.nan
        videos.append(_Video(name, ordered[0], replace(first, num_frames=len(ordered), fps=rate), tuple(ordered)))
    return sorted(videos, key=lambda video: video.name), problems


def _in_order(facts: dict[str, StackFacts], *, fill: bool) -> tuple[list[str], str]:
    """Return the files of a series in time order, and what is missing of it; files are repeated if gaps are filled."""
    by_number = {one.number: file for file, one in facts.items()}
    if -1 in by_number or len(by_number) < len(facts):  # without numbers, or some twice
        return sorted(facts, key=lambda file: (facts[file].moment, facts[file].number, file)), ""
    numbered = FrameFolder("instance ", 1, "", np.array(sorted(by_number), np.int64))
    first, stop = int(numbered.numbers[0]), int(numbered.numbers[-1]) + 1
    missing = numbered.first_missing(first, stop)
    gaps = frozenset(numbered.gaps(first, stop) or ())
    ordered = [by_number[number] for number in numbered.numbers.tolist()]
    if missing is None:
        return ordered, ""
    if not fill or not gaps:
        remedy = "; --fill-gaps takes the one before" if gaps else ""
        return ordered, f"instance {missing} is missing; there are {len(ordered)}, {first} to {stop - 1}{remedy}"
    filled: list[str] = []
    for number in numbered.expected(first, stop):
        filled.append(by_number.get(number) or filled[-1])
    return filled, ""


def _pieces(whole: Request, video: _Video, settings: Settings) -> Iterator[Request]:
    """Cut a video into even pieces, counted in stored frames.

    Raises:
        MediaError: the cut, or the rate to store, needs a rate that the file does not announce.
    """
    count, rate = video.facts.num_frames, settings.source_fps or video.facts.fps
    if math.isnan(rate) and settings.fps:
        raise MediaError("no_rate", "no frame rate announced, which --fps needs: give it with --source-fps")
    pieces = min(count, num_pieces(count / rate, count / thinning(rate, settings), settings))
    for begin, end in pairwise([count * piece // pieces for piece in range(pieces + 1)]):
        yield replace(
            whole,
            first=begin,
            stop=end,
            start_s=begin / rate,
            stop_s=math.nan,
            length_s=(end - begin) / rate,
            rate=rate,
            files=video.files[begin:end],
        )
