"""Folders, ledgers and lists on disk ─► requests for the plan, and problems for what is not there.

    source = frame_folders(root, root / "ledger.csv", settings=settings)
    source = video_files([Path("clips"), Path("more.csv")], settings=settings)
    found = source.find()      # Found(requests, problems, notes)

What is decided on the way (dialect, layout, counting base) is logged; what is on one side only is noted as well.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from preprocess.files import sha256_of
from preprocess.folders import FrameFolder, index_shift, scan_folder, unlisted_folders
from preprocess.ledger import (
    Delimiter,
    Header,
    Ledger,
    LedgerRow,
    read_ledger,
    read_lines,
    sniff_delimiter,
    split_line,
)
from preprocess.plan import Found, Request, Settings, even_pieces
from preprocess.problems import MediaError, Problem
from preprocess.roots import Folder, Root
from preprocess.videos import VIDEO_SUFFIXES, VideoFacts, open_video

log = logging.getLogger(__name__)

LONG_SECONDS, LONG_FRAMES = 60.0, 1800
_HEADER_WORDS = frozenset({"path", "video", "file", "filename", "name", "video_path", "video_name"})


@dataclass(frozen=True)
class Source:
    """Something to build from: `find` looks through it; all else is known without."""

    roots: tuple[Root, ...]  # where the paths of requests start, by their `root`
    list_name: str  # name of the ledger or list, for messages; "" if there is no single one
    identity: list[dict[str, str]]  # what was given, without where it lay: equal for equal input
    find: Callable[[], Found]


def frame_folders(
    root: Path, ledger: Path, *, settings: Settings, delimiter: Delimiter = "auto", header: Header = "auto"
) -> Source:
    """Frame folders that a ledger lists: a request for every piece of every usable row.

    The folders are looked for below root/train and below root, whichever holds more of them.

    Raises:
        ValueError: the root or the ledger cannot be read, or a setting needs source_fps and there is none.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --frames takes the folder that holds the frame folders")
    if settings.source_fps is None and (settings.fps or settings.segment_seconds):
        raise ValueError("--fps and --segment-seconds need --source-fps for frame folders: they have no clock")
    read = read_ledger(ledger, delimiter=delimiter, header=header)
    identity = [{"name": ledger.name, "sha256": sha256_of(ledger)}]
    return Source((Folder(root),), ledger.name, identity, lambda: _request_rows(root, read, ledger.name, settings))


def video_files(given: Sequence[Path], *, settings: Settings) -> Source:
    """Videos in folders (walked, sorted), in lists, or named one by one: a request for every piece of each.

    Raises:
        ValueError: one of `given` does not exist.
    """
    identity: list[dict[str, str]] = []
    for path in given:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder; --videos takes folders, lists and video files")
        entry = {"name": path.resolve().name}
        identity.append(entry | ({"sha256": sha256_of(path)} if _is_list(path) else {}))
    roots = tuple(path if path.is_dir() else path.parent for path in given)
    list_name = given[0].name if len(given) == 1 and _is_list(given[0]) else ""
    return Source(tuple(map(Folder, roots)), list_name, identity, lambda: _request_videos(given, roots, settings))


def long_samples(seconds: np.ndarray, num_frames: np.ndarray) -> list[str]:
    """A warning with the cut to use, if some samples are longer than is good for sampling and shards; else nothing.

    Args:
        seconds: float (N,), the length of each sample, 0 = unknown.
        num_frames: (N,), how many frames each has.
    """
    too_long = (seconds > LONG_SECONDS) | (num_frames > LONG_FRAMES)
    if not too_long.any():
        return []
    cut = "--segment-seconds 10" if (seconds > LONG_SECONDS).any() else "--segment-frames 300"
    limits = f"{LONG_SECONDS:.0f} s or {LONG_FRAMES:,} frames"
    return [f"warning: {int(too_long.sum())} samples are longer than {limits}; cut them with {cut}"]


def _request_rows(root: Path, ledger: Ledger, file: str, settings: Settings) -> Found:
    log.info("%s", ledger.dialect)
    names = sorted({row.name for row in ledger.rows})
    below = _layout(root, names)
    log.info("frame folders are taken from %s", root / below)
    folders = {name: _scan(root, below, name) for name in names}
    shifts = _shifts(ledger.rows, folders)
    requests: list[Request] = []
    problems = list(ledger.problems)
    for row in ledger.rows:
        found = folders[row.name]
        if isinstance(found, Problem):
            problems.append(replace(found, line=row.line))
            continue
        first, stop = row.first + shifts[row.name], row.stop + shifts[row.name]
        missing = found.first_missing(first, stop)
        if missing is None:
            path = f"{below}/{row.name}" if below else row.name
            whole = Request("frames", 0, path, row.name, row.labels, file, row.line, first, stop)
            requests += _frame_pieces(whole, found, settings)
        else:
            asked = f"frames {row.first} to {row.stop - 1} asked for, {found.file_name(missing)} is missing"
            problems.append(Problem("missing_frame", f"{asked}; there are {found.span}", row.name, row.line))
    for shift, count in sorted(Counter(shifts.values()).items()):
        if shift:
            log.info("%d folders: frame numbers of the ledger %+d = numbers of the files", count, shift)
    absent = [name for name, found in folders.items() if isinstance(found, Problem)]
    unlisted = sorted(unlisted_folders(root / below, set(names)))
    notes = [
        f"{len(absent)} folders of the ledger are not on disk or hold no frames{_some(absent)}",
        f"{len(unlisted)} frame folders on disk are not in the ledger{_some(unlisted)}",
    ]
    thinning = _thinning(settings)
    num_frames = np.array([one.stop - one.first for one in requests], float)
    _warn_long(num_frames / settings.source_fps if settings.source_fps else 0 * num_frames, num_frames / thinning)
    return Found(requests, sorted(problems, key=lambda problem: problem.line), notes)


def _request_videos(given: Sequence[Path], roots: Sequence[Path], settings: Settings) -> Found:
    requests: list[Request] = []
    problems: list[Problem] = []
    seconds: list[float] = []
    rates: list[float] = []
    for number, path in enumerate(given):
        if path.is_dir():
            wanted, others = _walk(path, number)
            log.info("%s: %d videos, %d other files", path, len(wanted), others)
        elif _is_list(path):
            wanted, bad = _read_list(path, number)
            problems += bad
            log.info("%s: %d rows", path.name, len(wanted) + len(bad))
        else:
            wanted = [Request("video", number, path.name, path.name, (), path.name, -1)]
        for request in wanted:
            try:
                pieces, facts = _video_pieces(request, roots[number], settings)
            except MediaError as error:
                problems.append(Problem(error.reason, str(error), request.name, request.line))
                continue
            requests += pieces
            seconds += [facts.duration_s / len(pieces)] * len(pieces)
            rates += [min(facts.fps, settings.fps) if settings.fps else facts.fps] * len(pieces)
    lengths = np.nan_to_num(np.array(seconds))
    _warn_long(lengths, lengths * np.nan_to_num(np.array(rates)))
    return Found(requests, problems, [])


def _warn_long(seconds: np.ndarray, num_frames: np.ndarray) -> None:
    for line in long_samples(seconds, num_frames):
        log.warning("%s", line)


def _thinning(settings: Settings) -> float:
    """How many frames of a folder there are for one that is stored."""
    return max(1.0, settings.source_fps / settings.fps) if settings.source_fps and settings.fps else 1.0


def _is_list(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name or "." for name in names[:5])
    return f": {shown}{', ...' if len(names) > 5 else ''}" if names else ""


def _layout(root: Path, names: list[str]) -> str:
    """ "train" if more of the named folders lie below root/train than below root, else ""."""

    def count(base: Path) -> int:
        return sum((base / name).is_dir() for name in names)

    return "train" if count(root / "train") > count(root) else ""


def _scan(root: Path, below: str, name: str) -> FrameFolder | Problem:
    folder = root / below / name
    if not folder.is_dir():
        return Problem("missing_folder", "no such folder", name)
    if not folder.resolve().is_relative_to(root.resolve()):
        return Problem("unsafe_name", "a link that leaves the root", name)
    found = scan_folder(folder)
    return found or Problem("no_frames", "no numbered .jpg, .jpeg or .png in the folder", name)


def _shifts(rows: Sequence[LedgerRow], folders: dict[str, FrameFolder | Problem]) -> dict[str, int]:
    spans: dict[str, tuple[int, int]] = {}
    for row in rows:
        first, stop = spans.get(row.name, (row.first, row.stop))
        spans[row.name] = min(first, row.first), max(stop, row.stop)
    shifts = {}
    for name, (first, stop) in spans.items():
        found = folders[name]
        shifts[name] = index_shift(found, first, stop) if isinstance(found, FrameFolder) else 0
    return shifts


def _frame_pieces(whole: Request, folder: FrameFolder, settings: Settings) -> Iterator[Request]:
    first, stop = whole.first, whole.stop
    longest = float(stop - first)
    if settings.segment_frames:
        longest = settings.segment_frames * _thinning(settings)  # counted in stored frames
    elif settings.segment_seconds and settings.source_fps:
        longest = settings.segment_seconds * settings.source_fps
    pieces = even_pieces(stop - first, max(1.0, longest))
    for piece in range(pieces):
        begin = first + (stop - first) * piece // pieces
        end = first + (stop - first) * (piece + 1) // pieces
        start_s = (begin - int(folder.numbers[0])) / settings.source_fps if settings.source_fps else math.nan
        yield replace(
            whole,
            first=begin,
            stop=end,
            start_s=start_s,
            stop_s=math.nan,
            prefix=folder.prefix,
            digits=folder.digits,
            suffix=folder.suffix,
        )


def _video_pieces(request: Request, root: Path, settings: Settings) -> tuple[list[Request], VideoFacts]:
    with open_video(root / request.path) as video:
        facts = video.facts
        longest = _longest_s(facts, settings)
        if longest is None:
            return [request], facts
        if math.isnan(facts.duration_s):
            facts = replace(facts, duration_s=video.count_seconds())
    pieces = even_pieces(facts.duration_s, longest)
    # Half a frame early: a frame that lies on a cut must not depend on rounding.
    early = 0.5 / facts.fps if facts.fps > 0 else 0.0
    cuts = [0.0, *(facts.duration_s * piece / pieces - early for piece in range(1, pieces)), math.inf]
    return [replace(request, start_s=start, stop_s=stop) for start, stop in pairwise(cuts)], facts


def _longest_s(facts: VideoFacts, settings: Settings) -> float | None:
    if settings.segment_seconds:
        return settings.segment_seconds
    if not settings.segment_frames:
        return None
    rate = min(facts.fps, settings.fps) if settings.fps and facts.fps > 0 else facts.fps
    if math.isnan(rate):
        raise MediaError("no_rate", "no frame rate announced: cut it with --segment-seconds")
    return settings.segment_frames / rate


def _walk(root: Path, number: int) -> tuple[list[Request], int]:
    found: list[str] = []
    others = 0
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                found.append((Path(folder) / name).relative_to(root).as_posix())
            else:
                others += 1
    return [Request("video", number, name, name, (), name, -1) for name in sorted(found)], others


def _read_list(path: Path, number: int) -> tuple[list[Request], list[Problem]]:
    """Rows `path`, `path label ...`, `path,label` or `path, label`; paths absolute or from the list's folder."""
    requests: list[Request] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, ...], int] = {}
    for index, (line, text) in enumerate(read_lines(path)):
        fields = _list_fields(text, path.parent)
        if index == 0 and fields[0].lower() in _HEADER_WORDS and not (path.parent / fields[0]).exists():
            continue
        earlier = seen.setdefault(tuple(fields), line)
        if earlier != line:
            problems.append(Problem("duplicate_row", f"the same as line {earlier}", fields[0], line))
        elif not fields[0] or any(ord(character) < 32 for character in fields[0]):
            problems.append(Problem("unsafe_name", f"{fields[0]!r} names no file", fields[0], line))
        else:
            name = fields[0]
            requests.append(Request("video", number, name, name, tuple(fields[1:]), path.name, line))
    return requests, problems


def _list_fields(text: str, folder: Path) -> list[str]:
    delimiter = sniff_delimiter(text)
    if delimiter != " ":
        return [field for index, field in enumerate(split_line(text, delimiter)) if field or index == 0]
    fields = split_line(text, " ")
    # Blanks in a path: the longest beginning of the row that is a file.
    for count in range(len(fields), 1, -1):
        path = " ".join(fields[:count])
        if (folder / path).is_file():
            return [path, *fields[count:]]
    return fields
