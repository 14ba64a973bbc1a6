"""The names of a ledger are looked up: folders of one video, or one video of a folder that holds several.

places, notes = look_up(["class/video_1"], trees, reading)
places["class/video_1"]         # Location(root=0, path="train/class/video_1", folder=...), or a Problem
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from preprocess.problems import Problem
from preprocess.sources.archives import archives_among, beside, how_to_unpack
from preprocess.sources.frame_names import FrameFolder, Naming, index_shift
from preprocess.sources.frame_notes import NO_FRAMES
from preprocess.sources.frame_trees import FrameFolders
from preprocess.sources.ledger import Ledger, LedgerRow
from preprocess.sources.list_records import LedgerError
from preprocess.sources.source import Reading, leaving, shortened
from preprocess.sources.spellings import by_spelling, plain_path, spelling

log = logging.getLogger(__name__)

_AT_A_TIME = 16  # folders that are read at the same time: on a network disk each takes milliseconds
# Roles of the columns of a ledger that is no `name first last`, and what shows it.
_OTHER_ROLES = (
    (("path", "total_frames"), "each total is the number of its frames"),
    (("path", "offset", "total_frames"), "the parts of each folder are all of its frames"),
)
_LAYOUTS = ("", "train", "val", "validation", "test")  # where a ledger's folders may lie below a root


@dataclass(frozen=True)
class Location:
    """The location of a name of the ledger."""

    root: int
    path: str
    folder: FrameFolder
    naming: Naming | None = None  # of the whole folder; None where the name is that of one video among several


def look_up(
    names: Sequence[str], trees: Sequence[FrameFolders], reading: Reading
) -> tuple[dict[str, Location | Problem], list[str]]:
    """Locate each name of the ledger, in the first root that has it."""
    places: dict[str, Location | Problem] = {}
    twice: list[str] = []
    layouts: Counter[str] = Counter()
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for name, location in zip(names, pool.map(lambda name: _places(name, trees, reading), names), strict=True):
            usable = [one for one in location if isinstance(one, Location)]
            if len(usable) > 1:
                twice.append(name)
            if location:
                places[name] = (usable or location)[0]
            layouts.update(f"{trees[one.root].root.where}/{one.path.removesuffix(name)}" for one in usable[:1])
    notes = []
    if missing := [name for name in names if name not in places]:
        others = _OtherNames(trees)
        places |= {name: others.locate(name, reading) for name in missing}
        respelled = [name for name in missing if isinstance(places[name], Location)]
        if respelled:
            spelled = f"{len(respelled)} folders were found under another spelling of their name"
            notes.append(f"{spelled}{shortened(respelled)}")
    for layout, num_folders in layouts.items():
        log.info("%d frame folders are taken from %s", num_folders, layout.rstrip("/"))
    if twice:
        count = f"{len(twice)} names of the ledger are there more than once"
        notes.append(f"warning: {count}; the first is taken{shortened(twice)}")
    return places, notes


class _OtherNames:
    """The names of all frame folders below roots, for those of a ledger that are not there as they are spelled."""

    def __init__(self, trees: Sequence[FrameFolders]) -> None:
        self._trees = trees
        walked = [tree.below() for tree in trees]
        paths = [path for one in walked for path in one.folders]
        self._folders = by_spelling((name, path) for path in paths for name in _names_of(path))
        self._archives = [archives_among(one.others) for one in walked]

    def locate(self, name: str, reading: Reading) -> Location | Problem:
        """Return the place of a name in another spelling; a problem if there is none, or several."""
        paths = self._folders.get(spelling(name), []) or self._of_several(name)
        if len(paths) > 1:
            return Problem("ambiguous_folder", f"it could be {' or '.join(paths[:3])}; spell it as the folder is", name)
        if paths and (places := _places(paths[0], self._trees, reading)):
            return places[0]
        # No root in it: the same rows are rejected with the same words wherever the frames lie.
        missing = f"no such folder, nor below {', '.join(filter(None, _LAYOUTS))}"
        for tree, archives in zip(self._trees, self._archives, strict=True):
            if archive := beside(plain_path(name), archives):
                there = f"it may be in {archive}: {how_to_unpack(tree.root, archive)}"
                return Problem("missing_folder", f"{missing}; {there}", name)
        return Problem("missing_folder", missing, name)

    def _of_several(self, name: str) -> list[str]:
        """Return the names of videos in folders of several, by prefix, that are spelled in another way."""
        folder, _, _ = plain_path(name).rpartition("/")
        named = []
        for path in self._folders.get(spelling(folder), []):
            for tree in self._trees:
                with suppress(FileNotFoundError):
                    named += [f"{path}/{one.stem}".removeprefix("/") for one in tree.scan(path).videos]
        return by_spelling((one, path) for path in named for one in _names_of(path)).get(spelling(name), [])


def _names_of(path: str) -> set[str]:
    """Return what a ledger may call a folder below a root: its path, with or without a train or val before it."""
    layout, _, rest = path.partition("/")
    return {path, rest} if rest and layout in _LAYOUTS else {path}


def place_rows(
    ledger: Ledger, trees: Sequence[FrameFolders], reading: Reading, read: Callable[..., Ledger]
) -> tuple[Ledger, dict[str, Location | Problem], list[str]]:
    """Locate the names of a ledger, and decide what its columns are if neither a header nor --columns says so.

    They are `name first last [label ...]`, unless some rows do not fit the disk so, and all fit it exactly as
    mmaction2's `name total_frames [label ...]` or `name offset total_frames [label ...]`.

    Args:
        ledger: as it was read.
        trees: the roots.
        reading: what is allowed.
        read: reads the ledger again, with other `columns`.

    Raises:
        LedgerError: the rows fit the disk in two ways.
    """
    places, notes = look_up(sorted({row.name for row in ledger.rows}), trees, reading)
    if not ledger.width:
        return ledger, places, notes
    num_rows = len(ledger.rows) + len(ledger.problems)
    spans = spans_of(ledger.rows)
    fitting = sum(_fits(row, places, spans) for row in ledger.rows)
    if fitting == num_rows:
        if _tile([(row.name, row.first, row.stop - 1) for row in ledger.rows], places):
            raise LedgerError(
                f"{ledger.dialect}: they can be read as `name first last label`, --columns "
                f"{' '.join(ledger.columns_of('path', 'first', 'last'))}, or as `name offset total_frames label`, "
                f"--columns {' '.join(ledger.columns_of('path', 'offset', 'total_frames'))}; give the one that is meant"
            )
        return ledger, places, notes
    hints: list[str] = []
    for roles, because in _OTHER_ROLES:
        if len(roles) > ledger.width:
            continue
        columns = ledger.columns_of(*roles)
        said = f"`name {' '.join(roles[1:])} label`"
        other = read(columns=columns)
        more, other_notes = look_up(sorted({row.name for row in other.rows} - places.keys()), trees, reading)
        places |= more
        if _tile([(row.name, row.offset or 0, row.total) for row in other.rows], places):
            return other, places, [*notes, *other_notes, f"the ledger is read as {said}, because {because}"]
        hints.append(f"if its rows are {said}: --columns {' '.join(columns)}")
    return ledger, places, notes if 2 * fitting >= num_rows else [*notes, *hints]


def _tile(parts: Sequence[tuple[str, int, int]], places: dict[str, Location | Problem]) -> bool:
    """Return whether parts of folders, name, offset and number of frames, cover each folder that is there exactly."""
    by_name: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for name, offset, count in parts:
        if isinstance(places[name], Location):
            by_name[name].add((offset, offset + count))
    for name, spans in by_name.items():
        location, ends = places[name], [0, *sorted(end for _, end in spans)]
        assert isinstance(location, Location), "a folder that is there"
        if ends[-1] != len(location.folder.numbers) or sorted(begin for begin, _ in spans) != ends[:-1]:
            return False
    return bool(by_name)


def _fits(row: LedgerRow, places: dict[str, Location | Problem], spans: dict[str, tuple[int, int]]) -> bool:
    """Return whether a row's frames are in its folder."""
    location = places[row.name]
    if not isinstance(location, Location):
        return False
    shift = index_shift(location.folder, *spans[row.name])
    low, high = int(location.folder.numbers[0]), int(location.folder.numbers[-1])
    return low <= row.first + shift and row.stop - 1 + shift <= high


def settle_totals(
    rows: Sequence[LedgerRow], places: dict[str, Location | Problem]
) -> tuple[list[LedgerRow], list[Problem], list[str]]:
    """Return rows whose totals are numbers of frames now; problems where too few are there, and a note on more."""
    settled: list[LedgerRow] = []
    problems: list[Problem] = []
    shortened_rows = 0
    for row in rows:
        location = places[row.name]
        if row.total and isinstance(location, Location):
            numbers, begin = location.folder.numbers, row.offset or 0
            if begin + row.total > len(numbers):
                after = f" after the first {begin}" if begin else ""
                message = f"{row.total} frames asked for{after}, there are {location.folder.span}"
                problems.append(Problem("missing_frame", message, row.name, row.line))
                continue
            shortened_rows += row.offset is None and row.total < len(numbers)
            row = replace(row, first=int(numbers[begin]), stop=int(numbers[begin + row.total - 1]) + 1)
        settled.append(row)
    note = f"{shortened_rows} rows ask for fewer frames than their folders hold: the first ones are taken"
    return settled, problems, [note] if shortened_rows else []


def _places(name: str, trees: Sequence[FrameFolders], reading: Reading) -> list[Location | Problem]:
    """Return the places of a name: folders of one video, or else the video of that prefix in the folder above."""
    location: list[Location | Problem] = []
    for number, tree in enumerate(trees):
        for layout in _LAYOUTS:
            path = f"{layout}/{name}" if layout else name
            naming: Naming | None
            try:
                naming = tree.scan(path)
            except FileNotFoundError:
                naming, folder = None, tree.scan_prefix(path)
                if folder is None:
                    continue
                path = path.rpartition("/")[0]
            else:
                folder = naming.videos[0] if len(naming.videos) == 1 else None
            if not reading.allow_outside and not tree.root.inside(path):
                location.append(leaving(name, "it"))
            elif folder is None:
                location.append(_unusable(name, naming or Naming()))
            elif not reading.allow_outside and folder.outside:
                location.append(leaving(name, folder.outside))
            else:
                location.append(Location(number, path, folder, naming))
    return location


def _unusable(name: str, naming: Naming) -> Problem:
    """Return the problem of a folder that is not one video's."""
    if naming.videos:
        stems = [f"{name}/{one.stem or one.prefix}" for one in naming.videos]
        return Problem("several_videos", f"holds {len(stems)} videos, of which rows name one{shortened(stems)}", name)
    return Problem("no_frames", naming.refusal or NO_FRAMES, name)


def spans_of(rows: Sequence[LedgerRow]) -> dict[str, tuple[int, int]]:
    """Return the smallest frame number that the ledger has of each name, and one more than the largest."""
    spans: dict[str, tuple[int, int]] = {}
    for row in rows:
        first, stop = spans.get(row.name, (row.first, row.stop))
        spans[row.name] = min(first, row.first), max(stop, row.stop)
    return spans


def unlisted_videos(trees: Sequence[FrameFolders], places: dict[str, Location | Problem]) -> list[str]:
    """Return the frame folders, and the videos in folders of several, that no row names."""
    unlisted: list[str] = []
    for number, tree in enumerate(trees):
        here = [one for one in places.values() if isinstance(one, Location) and one.root == number]
        whole = {one.path for one in here if one.naming}
        shared = {one.path for one in here} - whole
        taken = {(one.path, one.folder.prefix) for one in here}
        for path in tree.below(skip=whole).folders:
            if path not in shared:
                unlisted.append(path)
                continue
            others = [one for one in tree.scan(path).videos if (path, one.prefix) not in taken]
            unlisted += [f"{path}/{one.stem}" if path else one.stem for one in others]
    return sorted(unlisted)


def counted_twofold(location: Location, first: int, stop: int) -> Problem | None:
    """Return the problem of rows that may be numbers of a strided folder's files, or positions among them."""
    folder = location.folder
    count = len(folder.numbers)
    if folder.stride == 1 or first not in (0, 1) or stop - first != count:
        return None
    by_number = len(folder.expected(first, stop))
    message = (
        f"frames {first} to {stop - 1} are {by_number} files by their numbers, or all {count} by their positions; "
        f"there are {folder.span}: give the numbers of the files"
    )
    return Problem("bad_row", message)
