"""The input of a build: its roots, its identity, and the function that scans it.

    source = video_files(["clips", "s3://bucket/more.csv"], settings=settings)     # preprocess.sources.videos
    source = frame_folders(["dataset"], "ledger.csv", settings=settings)           # preprocess.sources.frame_folders
    source = image_files(["imagenet/train"], settings=settings)                    # preprocess.sources.images
    result = source.find()      # ScanResult(requests, problems, notes)

What is decided on the way (dialect, layout, counting base) is logged; what is on one side only is noted as well.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from mae3d.io.storage import is_url
from preprocess.plan.label_ids import LabelKind
from preprocess.plan.label_names import LabelNames, read_label_names
from preprocess.plan.plan import ScanResult
from preprocess.plan.samples import Request
from preprocess.problems import Problem
from preprocess.sources.archives import archives_among, how_to_unpack, unpacked
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.file_kinds import HEAD_BYTES, count_by_suffix, is_picture, is_sidecar, kind_of
from preprocess.sources.folder_labels import Labels
from preprocess.sources.list_records import Delimiter, Header
from preprocess.sources.roots import Listing, Root, open_root
from preprocess.sources.segments import LONG_FRAMES, LONG_SECONDS

_AT_A_TIME = 16  # files whose first bytes are read at the same time
CLIP_FRAMES = 16  # of the published models
SCRATCH = Scratch(Path(tempfile.gettempdir()), 20 << 30)


@dataclass(frozen=True)
class Reading:
    """The interpretation of the input; settings that differ from the defaults are part of its identity."""

    delimiter: Delimiter = "auto"
    header: Header = "auto"
    labels: Labels = "auto"  # whether the folders of a tree are the labels
    columns: tuple[str, ...] = ()  # role=COLUMN of lists
    label_names: str = ""  # path or URL of the names of ids 0, 1, ...
    label_base: str = "auto"  # the number that lists give to the first of them
    label_kind: LabelKind = "auto"
    label_key: str = ""  # entry of the .json beside a video in a tar
    root: str = ""  # where relative paths of lists begin; "" = where the list is
    events: bool = False  # lists have the events of all videos below `root`: those without any are listed
    background: str = ""  # the label of what lies between the events; "" = it is left out
    background_seconds: float = 1.0  # gaps that are shorter are no samples
    fill_gaps: bool = False
    allow_outside: bool = False


PLAIN = Reading()


@dataclass(frozen=True)
class Source:
    """An input of a build: `find` scans it; everything else is known before."""

    roots: tuple[Root, ...]  # where the paths of requests start, by their `root`
    list_name: str  # name of the ledger or list, for messages; "" if there is no single one
    identity: list[dict[str, str]]  # what was given, without where it lay: equal for equal input
    find: Callable[[], ScanResult]


def opened(given: str | Path, option: str, *, scratch: Scratch) -> tuple[Root, str]:
    """Open a root as `open_root`, naming the option if it does not exist."""
    try:
        return open_root(str(given), scratch=scratch)
    except ValueError as error:
        raise ValueError(f"{error}; {option}") from error


def identified(root: Root, path: str, data: bytes | None = None) -> dict[str, str]:
    """Return one entry of a source's identity: the name of a folder or file, and the hash of a list."""
    entry = {"name": path or root.name}
    return entry if data is None else entry | {"sha256": hashlib.sha256(data).hexdigest()}


def reading_identity(reading: Reading, label_names: LabelNames | None) -> list[dict[str, str]]:
    """Return the part of a source's identity that comes from `reading`: empty if all is as by default."""
    named = {one.name: getattr(reading, one.name) for one in fields(reading)}
    settings = {name: str(value) for name, value in named.items() if value != getattr(PLAIN, name)}
    if label_names:
        # Numbers that are positions are left out, so that datasets of before they were read have the same identity.
        numbers = label_names.numbers if label_names.numbers != tuple(range(len(label_names.names))) else ()
        lines = [*label_names.names, *map(str, numbers), *label_names.codes]
        settings["label_names"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if reading.root:
        settings["root"] = reading.root.rstrip("/").rpartition("/")[2]  # its name, not where it lies
    return [settings] if settings else []


def given_label_names(reading: Reading, *, scratch: Scratch) -> LabelNames | None:
    """Return the label names that the user fixed; None if there are none."""
    if not reading.label_names:
        return None
    root, path = opened(reading.label_names, "--label-names takes a file", scratch=scratch)
    path = path or "dataset.json"
    names = read_label_names(unpacked(root.read(path), path), reading.label_names)
    return names if reading.label_base == "auto" else replace(names, base=int(reading.label_base))


def staying(listing: Listing, names: Sequence[str], reading: Reading) -> tuple[list[str], list[Problem]]:
    """Return a listing's names that are not links out of the root, and problems for the others; all if allowed."""
    outside = frozenset() if reading.allow_outside else listing.outside
    problems = [leaving(shown(name)) for name in names if name in outside]
    return [name for name in names if name not in outside], problems


def leaving(name: str, what: str = "") -> Problem:
    """Return the problem of a link out of its root; `what` is the link, unless the name itself is the link."""
    subject = f"{what} is " if what else ""
    return Problem("unsafe_name", f"{subject}a link that leaves the root (--allow-outside permits it)", name)


def not_followed(root: Root, links: Sequence[str], loops: int) -> list[str]:
    """Return notes on linked folders that were not followed, and on those that lead back to a folder above."""
    notes = []
    if links:
        option = "--allow-outside follows them"
        notes.append(f"{root.name}: {len(links)} linked folders were not followed ({option}){shortened(links)}")
    if loops:
        notes.append(f"{root.name}: {loops} linked folders lead back to a folder above them, and were not followed")
    return notes


def unread(
    root: Root, listing: Listing, names: Sequence[str], media: str, reading: Reading
) -> tuple[list[str], list[str], list[Problem]]:
    """Sort files that no suffix announces as media: those that are of the given kind by content, others, and problems.

    The first bytes are read of files whose suffix is unknown; sidecars are not opened, nor are pictures behind a URL
    among videos, since each would be a request. A file of which nothing is known is a problem: it might be meant.

    Args:
        root: where they lie.
        listing: all files there.
        names: the files.
        media: "video" or "image".
        reading: whether links may leave the root.
    """
    passed_by = is_picture if is_url(root.where) else lambda name: False
    candidates = [name for name in names if not (is_sidecar(name) or passed_by(name))]
    unknown, problems = staying(listing, candidates, reading)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        kinds = dict(zip(unknown, pool.map(partial(_kind, root), unknown), strict=True))
    wrong = {name: _UNKNOWN[kind] for name, kind in kinds.items() if kind in _UNKNOWN and not is_picture(name)}
    problems += [
        Problem("unknown_format", f"its suffix is not known, and its content is {what}", shown(name))
        for name, what in wrong.items()
    ]
    taken = [name for name in unknown if kinds[name] == media]
    passed = {*taken, *wrong, *(problem.name for problem in problems)}
    return taken, [name for name in names if name not in passed], problems


_UNKNOWN = {"": f"neither media nor text by its first {HEAD_BYTES} bytes", "unreadable": "not to be read"}


def _kind(root: Root, name: str) -> str:
    try:
        return kind_of(root.head(name, HEAD_BYTES))
    except OSError:
        return "unreadable"


def shown(name: str) -> str:
    """Return a name that can be written down: bytes that are not UTF-8 as backslashes."""
    return name.encode(errors="backslashreplace").decode()


def encodable(requests: Iterable[Request]) -> tuple[list[Request], list[Problem]]:
    """Return requests with UTF-8 names, and problems for the others, which no file of ours could hold."""
    good: list[Request] = []
    problems: list[Problem] = []
    for request in requests:
        try:
            request.name.encode()
        except UnicodeEncodeError:
            problems.append(Problem("odd_name", "its name is not UTF-8", shown(request.name)))
        else:
            good.append(request)
    return good, problems


def same_names(requests: Sequence[Request]) -> list[str]:
    """Return a note on names that more than one root has: all stay, but names do not distinguish them."""
    if len({request.root for request in requests}) < 2:
        return []
    roots = {(request.name, request.root) for request in requests}
    twice = sorted(name for name, count in Counter(name for name, _ in roots).items() if count > 1)
    if not twice:
        return []
    return [f"warning: {len(twice)} names are in several sources, and all are taken{shortened(twice)}"]


def other_files(where: str, names: Sequence[str]) -> list[str]:
    """Return a line on files that are not read, by suffix; none if there are none."""
    if not names:
        return []
    return [f"{where}: {len(names)} other files are not read, {count_by_suffix(names)}{shortened(names)}"]


def unread_archives(root: Root, names: Iterable[str]) -> list[str]:
    """Return a warning of archives among files that are not read, with the command that unpacks one; or nothing."""
    if not (archives := sorted(archives_among(names).values())):
        return []
    return [f"warning: {root.name}: {len(archives)} archives are not looked into; {how_to_unpack(root, archives[0])}"]


def shortened(names: Sequence[str]) -> str:
    """Return a few of the names, for the end of a note."""
    shown = ", ".join(name or "." for name in names[:5])
    return f": {shown}{', ...' if len(names) > 5 else ''}" if names else ""


def cut_notes(pieces: Sequence[int]) -> list[str]:
    """Return a note on sources that were cut; `pieces` of each source."""
    cut = [count for count in pieces if count > 1]
    return [f"{len(cut)} of {len(pieces)} sources were cut, into {sum(cut)} samples (--whole: none)"] if cut else []


def short_samples(num_frames: np.ndarray) -> list[str]:
    """Return a line about samples with fewer frames than one clip, at any stride, images aside; or nothing.

    Args:
        num_frames: (N,), how many frames each sample has.
    """
    count = int(((num_frames > 1) & (num_frames < CLIP_FRAMES)).sum())
    if not count:
        return []
    return [f"{count} samples have fewer than {CLIP_FRAMES} frames: training loops, pads or drops them (--data.short)"]


def long_samples(seconds: np.ndarray, num_frames: np.ndarray) -> list[str]:
    """Return a warning with the cut to use, if samples are too long for sampling and shards; or nothing.

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
