"""The names of a ledger are looked up: folders of one video, or one video of a folder that holds several.

places, notes = look_up(["class/video_1"], trees, reading)
places["class/video_1"]         # Location(root=0, path="train/class/video_1", folder=...), or a Problem
"""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from preprocess.problems import Problem
from preprocess.sources.frame_names import FrameFolder, Naming
from preprocess.sources.frame_notes import NO_FRAMES
from preprocess.sources.frame_trees import FrameFolders
from preprocess.sources.ledger import LedgerRow
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
