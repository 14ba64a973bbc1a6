"""The names of a ledger are looked up: folders of one video, or one video of a folder that holds several.

places, notes = look_up(["class/video_1"], trees, reading)
places["class/video_1"]         # Location(root=0, path="train/class/video_1", folder=...), or a Problem
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from preprocess.problems import Problem
from preprocess.sources.frame_names import FrameFolder, Naming, index_shift
from preprocess.sources.frame_notes import NO_FRAMES
from preprocess.sources.frame_trees import FrameFolders
from preprocess.sources.ledger import Ledger, LedgerRow
from preprocess.sources.source import Reading, leaving, shortened

log = logging.getLogger(__name__)

_AT_A_TIME = 16  # folders that are read at the same time: on a network disk each takes milliseconds
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
            places[name] = next(iter(usable or location), Problem("missing_folder", "no such folder", name))
            layouts.update(f"{trees[one.root].root.where}/{one.path.removesuffix(name)}" for one in usable[:1])
    for layout, count in layouts.items():
        log.info("%d frame folders are taken from %s", count, layout.rstrip("/"))
    if not twice:
        return places, []
    return places, [
        f"warning: {len(twice)} names of the ledger are there more than once; the first is taken{shortened(twice)}"
    ]


def place_rows(
    ledger: Ledger, trees: Sequence[FrameFolders], reading: Reading, read: Callable[..., Ledger]
) -> tuple[Ledger, dict[str, Location | Problem], list[str]]:
    """Locate the names of a ledger, and decide what its columns are if neither a header nor --columns says so.

    They are `name first last [label ...]`, unless most rows do not fit the disk so, and fit it as mmaction2's
    `name total_frames [label ...]`.

    Args:
        ledger: as it was read.
        trees: the roots.
        reading: what is allowed.
        read: reads the ledger again, with other `columns`.
    """
    places, notes = look_up(sorted({row.name for row in ledger.rows}), trees, reading)
    num_rows = len(ledger.rows) + len(ledger.problems)
    spans = spans_of(ledger.rows)
    if not ledger.width or 2 * sum(_fits(row, places, spans) for row in ledger.rows) >= num_rows:
        return ledger, places, notes
    totals = read(columns=ledger.as_totals)
    other_places, other_notes = look_up(sorted({row.name for row in totals.rows}), trees, reading)
    located = [(row, one) for row in totals.rows if isinstance(one := other_places[row.name], Location)]
    fitting = sum(row.total == len(location.folder.numbers) for row, location in located)
    if located and fitting == len(located):
        note = "the ledger is read as `name total_frames label`, because each total is the number of its frames"
        return totals, other_places, [*other_notes, note]
    return (
        ledger,
        places,
        [*notes, f"if its rows are `name total_frames label`: --columns {' '.join(ledger.as_totals)}"],
    )


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
            numbers = location.folder.numbers
            if row.total > len(numbers):
                message = f"{row.total} frames asked for, there are {location.folder.span}"
                problems.append(Problem("missing_frame", message, row.name, row.line))
                continue
            shortened_rows += row.total < len(numbers)
            row = replace(row, first=int(numbers[0]), stop=int(numbers[row.total - 1]) + 1)
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
