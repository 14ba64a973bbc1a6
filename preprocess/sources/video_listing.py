"""Folders, tars and lists of videos become candidates for the plan, before they are cut, and problems.

collected = Collected()
collect(given, stores, reading, workers, collected)
collected.candidates, collected.problems, collected.notes
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath

from mae3d.io.storage import is_url
from mae3d.video.errors import MediaError
from mae3d.video.facts import VIDEO_SUFFIXES
from preprocess.plan.samples import Request
from preprocess.problems import Problem
from preprocess.sources.archives import list_name
from preprocess.sources.folder_labels import infer_labels
from preprocess.sources.ledger import unsafe
from preprocess.sources.list_tables import ListRow, VideoList
from preprocess.sources.listed_videos import ListedVideos
from preprocess.sources.published_lists import labelled_video
from preprocess.sources.roots import Folder, Root
from preprocess.sources.source import (
    Reading,
    not_followed,
    other_files,
    shortened,
    shown,
    staying,
    unread,
    unread_archives,
)
from preprocess.sources.tar_files import TAR_SUFFIX, Archive, read_tar
from preprocess.workers.executors import map_over_workers

log = logging.getLogger(__name__)

TAKEN_SUFFIXES = VIDEO_SUFFIXES | {TAR_SUFFIX}  # what is no list


@dataclass(frozen=True)
class Given:
    """A path that the user gave."""

    number: int  # its root, among the roots
    root: Root
    path: str  # of a file; "" for a folder
    data: bytes | None = None  # of a list
    read: VideoList | None = None


@dataclass(slots=True)
class VideoCandidate:
    """A request before it is cut."""

    request: Request
    loose: bool = False  # its span is of the video that the file may have been cut from already
    frames: tuple[int, int] | None = None  # its span, half-open, until the rate of the video is known
    frames_too: tuple[int, int] | None = None  # its span in frames, where seconds are taken
    labels_all: bool = False  # its list has labels of all frames of the video
    without_unit: tuple[str, ...] = ()  # the columns of its span, if they may count frames


@dataclass
class Collected:
    """The candidates, problems and notes of all sources so far."""

    candidates: list[VideoCandidate] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unclear: set[str] = field(default_factory=set)  # videos that a row of --events names which cannot be used

    def note(self, text: str) -> None:
        """Log a line and keep it for the summary."""
        log.info("%s", text)
        self.notes.append(text)


def store_of(url: str) -> str:
    """Return the host or bucket of a URL, with its protocol: the root of a row that is a URL."""
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}"


def collect(
    entry: Given,
    stores: Mapping[str, int],
    reading: Reading,
    workers: int,
    collected: Collected,
) -> None:
    """Add the videos of one of the given paths.

    Args:
        entry: the path.
        stores: the numbers of the roots of rows that are URLs, by `store_of`.
        reading: labels, and what is allowed.
        workers: how many processes may look into tars at the same time.
        collected: is added to.
    """
    if entry.read:
        _collect_list(entry, stores, reading, collected)
    elif not entry.path:
        _collect_tree(entry, reading, workers, collected)
    elif _suffix(entry.path) == TAR_SUFFIX:
        _collect_tars(entry, [entry.path], [""], reading, workers, collected)
    else:
        collected.candidates.append(VideoCandidate(_request(entry.number, entry.path)))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _request(root: int, path: str, labels: tuple[str, ...] = (), split: str = "") -> Request:
    return Request("video", root, path, path, labels, path, -1, split=split)


def _collect_tree(entry: Given, reading: Reading, workers: int, collected: Collected) -> None:
    """Add a folder's videos and tars."""
    listing = entry.root.files(follow=reading.allow_outside)
    names = [name for name in listing.names if _suffix(name) in TAKEN_SUFFIXES]
    rest = [name for name in listing.names if _suffix(name) not in TAKEN_SUFFIXES]
    videos, others, strange = unread(entry.root, listing, rest, "video", reading)
    names, refused = staying(listing, names, reading)
    names = sorted([*names, *videos])
    num_videos = sum(_suffix(name) != TAR_SUFFIX for name in names)
    log.info("%s: %d videos, %d other files", entry.root.where, num_videos, len(rest) - len(videos))
    linked = not_followed(entry.root, listing.links, listing.loops)
    for note in (*linked, *other_files(entry.root.name, others), *unread_archives(entry.root, others)):
        collected.note(note)
    if not names and (lists := [name for name in others if labelled_video(list_name(name))]):
        collected.note(f"{len(lists)} lists of labels are read if --root says where the videos lie{shortened(lists)}")
    collected.problems += [*refused, *strange]
    files = [name for name in names if _suffix(name) != TAR_SUFFIX]
    tars = [name for name in names if _suffix(name) == TAR_SUFFIX]
    if files:
        placed = infer_labels(files, labels=reading.labels)
        collected.note(f"{entry.root.name}: {len(files)} videos; {placed.note}")
        for file, labels, split in zip(files, placed.labels, placed.splits, strict=True):
            collected.candidates.append(VideoCandidate(_request(entry.number, file, labels, split)))
    if tars:
        splits = infer_labels(tars, labels="none").splits
        _collect_tars(entry, tars, splits, reading, workers, collected)


def _collect_tars(
    entry: Given,
    tars: Sequence[str],
    splits: Sequence[str],
    reading: Reading,
    workers: int,
    collected: Collected,
) -> None:
    """Add the videos of tars, each named `<tar>/<member>`; labels are the .cls or the .json beside them."""
    count = 0
    others: list[str] = []
    look = partial(_look_into, entry.root, reading.label_key)
    archives = map_over_workers(look, tars, workers=workers, unit="tar", doing="list", at_once=1)
    for tar, split, read in zip(tars, splits, archives, strict=True):
        if isinstance(read, MediaError):
            collected.problems.append(Problem(read.reason, str(read), shown(tar)))
            continue
        count += len(read.videos)
        read_too = (".cls", ".json") if reading.label_key else (".cls",)
        others += [f"{tar}/{name}" for name in read.others if not name.endswith(read_too)]
        collected.problems += [replace(problem, name=f"{tar}/{problem.name}") for problem in read.problems]
        for video in read.videos:
            labels = () if reading.labels == "none" else video.labels
            collected.candidates.append(VideoCandidate(_request(entry.number, f"{tar}/{video.name}", labels, split)))
    where = f"{len(tars)} tars of {entry.root.name}" if not entry.path else entry.path
    collected.note(f"{where}: {count} videos")
    for note in other_files(where, others):
        collected.note(note)


def _look_into(root: Root, label_key: str, tar: str) -> Archive | MediaError:
    try:
        with root.local([tar]) as (file,):
            return read_tar(file, label_key=label_key)
    except FileNotFoundError:
        return MediaError("missing_file", "no such file")
    except MediaError as error:
        return error


def _collect_list(entry: Given, stores: Mapping[str, int], reading: Reading, collected: Collected) -> None:
    read = entry.read
    assert read is not None, "a list"
    collected.note(read.dialect)
    collected.problems += [replace(problem, file=entry.path) for problem in read.problems]
    videos = ListedVideos(entry.root, reading.allow_outside)
    by_folder = reading.labels == "folder" and not any(row.labels for row in read.rows)
    absent = 0
    for row in read.rows:
        path, root = row.path, entry.number
        problem = None
        if is_url(path):
            root, path = stores[store_of(path)], path.removeprefix(store_of(path)).lstrip("/")
        elif not (problem := _refused(entry.root, path, row, reading)):
            try:
                path = videos.find(row)
                problem = _refused(entry.root, path, row, reading)
            except MediaError as error:
                name = row.path or row.name
                problem = Problem(error.reason, str(error), name, row.line, expected=read.published)
                absent += error.reason == "missing_file"
        if problem:
            collected.problems.append(replace(problem, file=entry.path))
            continue
        labels = infer_labels([path], labels="folder").labels[0] if by_folder else row.labels
        request = Request("video", root, path, row.path or path, labels, entry.path, row.line)
        request.start_s, request.stop_s, request.split = row.start_s, row.stop_s, row.split
        whole_numbers = row.start_s % 1 == 0 and (math.isinf(row.stop_s) or row.stop_s % 1 == 0)
        candidate = VideoCandidate(request, read.published, row.frames, row.frames_too, read.labels_all)
        candidate.without_unit = read.without_unit if whole_numbers else ()
        collected.candidates.append(candidate)
    if videos.num_moved:
        moved = f"{videos.num_moved} paths that begin with {videos.moved_from}"
        collected.note(f"{entry.path}: {moved} were found below {entry.root.where} instead")
    if videos.num_respelled:
        collected.note(f"{entry.path}: {videos.num_respelled} files were found under another spelling of their path")
    if absent:
        collected.note(f"{entry.path}: {absent} of {len(read.rows)} rows have no file below {entry.root.name}")


def _refused(root: Root, path: str, row: ListRow, reading: Reading) -> Problem | None:
    """Return why a path is refused: `..` is, absolute paths in a list of this machine are the user's."""
    if not path:
        return None  # the row names a video, whose file is looked for
    absolute = PurePosixPath(path).is_absolute()
    if absolute and not isinstance(root, Folder):
        return Problem("unsafe_name", "an absolute path in a list that is behind a URL", path, row.line)
    why = unsafe(path.lstrip("/") if absolute else path, allow_outside=reading.allow_outside)
    return Problem("unsafe_name", why, path, row.line) if why else None
