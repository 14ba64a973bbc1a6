"""Videos in folders, tars and lists ─► requests for the plan, and problems for what is not there.

source = video_files(["clips", "s3://bucket/tars", "kinetics/train.csv"], settings=settings, workers=8)
found = source.find()      # Found(requests, problems, notes)
"""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from preprocess.cutting import video_pieces
from preprocess.ledger import unsafe
from preprocess.lists import ListRow, VideoList, read_list
from preprocess.plan import Found, Request, Settings
from preprocess.probing import Probed, over_processes, probe
from preprocess.problems import MediaError, Problem
from preprocess.roots import Folder, Remote, Root, Scratch
from preprocess.sources import (
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
from preprocess.storage import Storage, is_url
from preprocess.tars import TAR_SUFFIX, Archive, WithTars, read_tar
from preprocess.trees import place
from preprocess.videos import VIDEO_SUFFIXES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Given:
    """One of the paths that the user gave."""

    number: int  # its root, among the roots
    root: Root
    path: str  # of a file; "" for a folder
    data: bytes | None = None  # of a list
    read: VideoList | None = None


@dataclass(slots=True)
class _Wanted:
    """A request that is not cut yet."""

    request: Request
    loose: bool = False  # its span is of the video that the file may have been cut from already


@dataclass
class _Collected:
    """What the look at all sources gave so far."""

    wanted: list[_Wanted] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def tell(self, note: str) -> None:
        log.info("%s", note)
        self.notes.append(note)


def video_files(
    given: Sequence[str | Path],
    *,
    settings: Settings,
    reading: Reading = PLAIN,
    scratch: Scratch = SCRATCH,
    workers: int = 1,
) -> Source:
    """Videos in folders (walked, sorted), in tars, in lists, or named one by one: a request for every piece of each.

    Args:
        given: paths or URLs.
        settings: rates and cuts.
        reading: dialect, labels and where the paths of lists begin.
        scratch: room for what is fetched.
        workers: how many processes may look at headers at the same time.

    Raises:
        ValueError: one of `given` does not exist, or a list cannot be read.
    """
    remedy = "--videos takes folders, tars, lists and video files"
    base = opened(reading.root, "--root takes a folder", scratch=scratch)[0] if reading.root else None
    names = given_label_names(reading, scratch=scratch)
    entries: list[_Given] = []
    for number, one in enumerate(given):
        root, path = opened(one, remedy, scratch=scratch)
        if _is_list(path):
            data = root.read(path)
            read = read_list(data, path, delimiter=reading.delimiter, header=reading.header)
            entries.append(_Given(number, base or root, path, data, read))
        else:
            entries.append(_Given(number, WithTars(root, scratch), path))
    stores = _stores(entries)
    roots = (*(entry.root for entry in entries), *(Remote(Storage(url), scratch) for url in stores))
    identity = [identified(entry.root, entry.path, entry.data) for entry in entries]
    list_name = entries[0].path if len(entries) == 1 and entries[0].read else ""

    def find() -> Found:
        collected = _Collected()
        for entry in entries:
            _collect(entry, roots, stores, reading, workers, collected)
        return _cut(collected, roots, settings, workers, names)

    return Source(roots, list_name, [*identity, *reading_identity(reading, names)], find)


def _is_list(path: str) -> bool:
    return bool(path) and PurePosixPath(path).suffix.lower() not in {*VIDEO_SUFFIXES, TAR_SUFFIX}


def _stores(entries: Sequence[_Given]) -> dict[str, int]:
    """The places that rows of lists name by URL, one for each host or bucket ─► the number of its root."""
    urls = {_store(row.path) for entry in entries if entry.read for row in entry.read.rows if is_url(row.path)}
    return {url: len(entries) + i for i, url in enumerate(sorted(urls))}


def _store(url: str) -> str:
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}"


def _collect(
    entry: _Given,
    roots: Sequence[Root],
    stores: Mapping[str, int],
    reading: Reading,
    workers: int,
    collected: _Collected,
) -> None:
    if entry.read:
        _collect_list(entry, stores, reading, collected)
    elif not entry.path:
        _collect_tree(entry, roots, reading, workers, collected)
    elif PurePosixPath(entry.path).suffix.lower() == TAR_SUFFIX:
        _collect_tars(entry, [entry.path], [""], roots, reading, workers, collected)
    else:
        collected.wanted.append(_Wanted(_request(entry.number, entry.path)))


def _request(root: int, path: str, labels: tuple[str, ...] = (), split: str = "") -> Request:
    return Request("video", root, path, path, labels, path, -1, split=split)


def _collect_tree(entry: _Given, roots: Sequence[Root], reading: Reading, workers: int, collected: _Collected) -> None:
    """A folder: its videos and tars."""
    listing = entry.root.files()
    suffixes = [PurePosixPath(name).suffix.lower() for name in listing.names]
    files = [name for name, suffix in zip(listing.names, suffixes, strict=True) if suffix in VIDEO_SUFFIXES]
    tars = [name for name, suffix in zip(listing.names, suffixes, strict=True) if suffix == TAR_SUFFIX]
    name = entry.root.name
    log.info("%s: %d videos, %d other files", entry.root.where, len(files), len(listing.names) - len(files) - len(tars))
    if listing.links:
        collected.tell(f"{name}: {listing.links} linked folders were not followed")
    outside = frozenset() if reading.allow_outside else listing.outside
    for file in sorted(outside.intersection(files + tars)):
        told = "a link that leaves the root (--allow-outside permits it)"
        collected.problems.append(Problem("unsafe_name", told, _shown(file)))
    files = [file for file in files if file not in outside]
    tars = [file for file in tars if file not in outside]
    if files:
        placed = place(files, labels=reading.labels)
        collected.tell(f"{name}: {len(files)} videos; {placed.told}")
        for file, labels, split in zip(files, placed.labels, placed.splits, strict=True):
            collected.wanted.append(_Wanted(_request(entry.number, file, labels, split)))
    if tars:
        splits = place(tars, labels="none").splits
        _collect_tars(entry, tars, splits, roots, reading, workers, collected)


def _collect_tars(
    entry: _Given,
    tars: Sequence[str],
    splits: Sequence[str],
    roots: Sequence[Root],
    reading: Reading,
    workers: int,
    collected: _Collected,
) -> None:
    """The videos of tars, each named `<tar>/<member>`; labels are the .cls or the .json beside them."""
    count = 0
    look = partial(_look_into, roots[entry.number], reading.label_key)
    for tar, split, read in zip(tars, splits, over_processes(look, tars, workers=workers, unit="tar"), strict=True):
        if isinstance(read, MediaError):
            collected.problems.append(Problem(read.reason, str(read), _shown(tar)))
            continue
        count += len(read.videos)
        collected.problems += [replace(problem, name=f"{tar}/{problem.name}") for problem in read.problems]
        for video in read.videos:
            labels = () if reading.labels == "none" else video.labels
            collected.wanted.append(_Wanted(_request(entry.number, f"{tar}/{video.name}", labels, split)))
    collected.tell(f"{entry.root.name}: {count} videos in {len(tars)} tars")


def _look_into(root: Root, label_key: str, tar: str) -> Archive | MediaError:
    try:
        with root.local([tar]) as (file,):
            return read_tar(file, label_key=label_key)
    except FileNotFoundError:
        return MediaError("missing_file", "no such file")
    except MediaError as error:
        return error


@dataclass
class _Videos:
    """The videos below a root by their names without suffix; listed when first asked for."""

    root: Root

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = defaultdict(list)
        for name in self.root.files().names:
            path = PurePosixPath(name)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                stems[path.stem].append(name)
        return dict(stems)

    def find(self, row: ListRow) -> str | None:
        """The file of a row that names a video: if there are several, one in a folder that its label names."""
        for stem in row.stems:
            if found := self.by_stem.get(stem):
                label = _plain(row.labels[0]) if row.labels else ""
                return next((path for path in found if label in map(_plain, path.split("/")[:-1])), found[0])
        return None


def _plain(label: str) -> str:
    return label.replace("_", " ").strip().lower()


def _collect_list(entry: _Given, stores: Mapping[str, int], reading: Reading, collected: _Collected) -> None:
    read = entry.read
    assert read is not None, "a list"
    collected.tell(read.dialect)
    collected.problems += [replace(problem, file=entry.path) for problem in read.problems]
    videos = _Videos(entry.root)
    absent = 0
    for row in read.rows:
        path, root = row.path, entry.number
        problem = None
        if row.stems:
            path = videos.find(row) or ""
            if not path:
                told = f"no {' or '.join(row.stems)} with a video's suffix below {entry.root.name}"
                problem = Problem("missing_file", told, row.name, row.line, expected=read.published)
                absent += 1
        elif is_url(path):
            root, path = stores[_store(path)], path.removeprefix(_store(path)).lstrip("/")
        else:
            problem = _refused(entry.root, row, reading)
        if problem:
            collected.problems.append(replace(problem, file=entry.path))
            continue
        request = Request("video", root, path, row.path or path, row.labels, entry.path, row.line)
        request.start_s, request.stop_s, request.split = row.start_s, row.stop_s, row.split
        collected.wanted.append(_Wanted(request, loose=read.published))
    if absent:
        collected.tell(f"{entry.path}: {absent} of {len(read.rows)} rows have no file below {entry.root.name}")


def _refused(root: Root, row: ListRow, reading: Reading) -> Problem | None:
    """Absolute paths are the user's own in a list of this machine; `..` is refused."""
    absolute = PurePosixPath(row.path).is_absolute()
    if absolute and not isinstance(root, Folder):
        return Problem("unsafe_name", "an absolute path in a list that is behind a URL", row.path, row.line)
    name = row.path.lstrip("/") if absolute else row.path
    why = unsafe(name, allow_outside=reading.allow_outside)
    return Problem("unsafe_name", why, row.path, row.line) if why else None


def _cut(
    collected: _Collected, roots: Sequence[Root], settings: Settings, workers: int, label_names: tuple[str, ...]
) -> Found:
    """Looks at the headers, as far as the cut needs them, and makes the pieces."""
    requests, odd = encodable(one.request for one in collected.wanted)
    problems = collected.problems + odd
    good = {id(request) for request in requests}
    wanted = [one for one in collected.wanted if id(one.request) in good]
    facts = _facts(wanted, roots, settings, workers)
    made: list[Request] = []
    pieces: list[int] = []
    for one in wanted:
        request = one.request
        known = facts.get((request.root, request.path))
        try:
            if isinstance(known, MediaError):
                raise known
            if known is None:
                several = [request]
            else:
                several = video_pieces(_settled(one, known.duration_s), known, settings)
        except MediaError as error:
            file = request.file if request.line > 0 else ""
            problems.append(Problem(error.reason, str(error), request.name, request.line, file))
            continue
        pieces.append(len(several))
        made += several
    notes = [*collected.notes, *cut_notes(pieces), *same_names(made)]
    return Found(made, problems, notes, label_names)


def _facts(
    wanted: Sequence[_Wanted], roots: Sequence[Root], settings: Settings, workers: int
) -> dict[tuple[int, str], Probed]:
    """What the headers announce; nothing of files that are taken whole and are there."""
    paths = dict.fromkeys((one.request.root, one.request.path) for one in wanted if one.loose or not settings.whole)
    found = over_processes(partial(probe, tuple(roots), settings), list(paths), workers=workers, unit="file")
    facts: dict[tuple[int, str], Probed] = dict(zip(paths, found, strict=True))
    for one in wanted:
        where = roots[one.request.root]
        key = one.request.root, one.request.path
        if key not in facts and isinstance(where, Folder) and not (where.path / one.request.path).is_file():
            facts[key] = MediaError("missing_file", "no such file")
    return facts


def _settled(one: _Wanted, duration_s: float) -> Request:
    """The request with its span; without, if the file is shorter: then it is the span, cut out already."""
    span_s = one.request.stop_s - one.request.start_s
    if one.loose and math.isfinite(one.request.stop_s):
        cut_out = not duration_s >= one.request.stop_s - 1 or duration_s <= span_s + 1
        if cut_out:
            return replace(one.request, start_s=0.0, stop_s=math.inf)
    return one.request


def _shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
