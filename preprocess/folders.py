"""A folder of numbered frames ─► its naming template and the numbers that are there.

In: file names such as `img_00001.jpg`. Out: `FrameFolder`, which names the file of any frame.

    scan_folder(Path("train/video_1"))  # FrameFolder('img_', digits=5, suffix='.jpg', numbers=[1 ... 3117])
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_FRAME = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>\.(?:jpe?g|png))", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class FrameFolder:
    """How the frames of one folder are named: `prefix`, a number of at least `digits` digits, `suffix`."""

    prefix: str
    digits: int
    suffix: str
    numbers: np.ndarray  # int64, ascending

    def file_name(self, number: int) -> str:
        """The name of a frame's file."""
        return frame_name(self.prefix, self.digits, self.suffix, number)

    @property
    def span(self) -> str:
        """For messages: the first and the last file there is."""
        first, last = int(self.numbers[0]), int(self.numbers[-1])
        return f"{len(self.numbers)} frames, {self.file_name(first)} to {self.file_name(last)}"

    def first_missing(self, first: int, stop: int) -> int | None:
        """The first number in [first, stop) without a file, or None if all are there."""
        low, high = np.searchsorted(self.numbers, [first, stop])
        if high - low == stop - first:
            return None
        return int(np.setdiff1d(np.arange(first, stop), self.numbers[low:high])[0])


def frame_name(prefix: str, digits: int, suffix: str, number: int) -> str:
    """The file name of frame `number` in a folder with this template."""
    return f"{prefix}{number:0{digits}d}{suffix}"


def scan_folder(path: Path) -> FrameFolder | None:
    """The template that most of the numbered images of a folder share; None if there is no such image.

    Files of other templates are not seen: among `img_00001.jpg` ... a stray `img_0323.jpg` is none of the
    frames.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    with os.scandir(path) as entries:
        for entry in entries:
            if match := _FRAME.fullmatch(entry.name):
                groups[match["prefix"], match["suffix"]].append(match["number"])
    if not groups:
        return None
    prefix, suffix = max(groups, key=lambda group: (len(groups[group]), group))
    texts = groups[prefix, suffix]
    # A leading zero tells the width; numbers without one fit every width up to their own.
    widths = Counter(len(text) for text in texts if text[0] == "0" and len(text) > 1)
    digits = max(widths, key=lambda width: (widths[width], width)) if widths else 1
    numbers = [int(text) for text in texts if text == f"{int(text):0{digits}d}"]
    return FrameFolder(prefix, digits, suffix, np.array(sorted(numbers), np.int64))


def index_shift(folder: FrameFolder, first: int, stop: int) -> int:
    """What to add to a ledger's frame numbers to get the file numbers of a folder: 0, 1 or -1.

    Args:
        folder: what is on disk.
        first: the smallest frame number that the ledger names in this folder.
        stop: one more than the largest.
    """
    low, high = int(folder.numbers[0]), int(folder.numbers[-1]) + 1
    if low <= first and stop <= high:
        return 0
    if low == 1 and first == 0 and stop + 1 <= high:
        return 1  # the ledger counts from 0, the files from 1
    if low == 0 and first >= 1 and stop - 1 == high:
        return -1  # the ledger counts from 1, the files from 0
    return 0


def unlisted_folders(root: Path, listed: Collection[str]) -> Iterator[str]:
    """Folders below `root` that hold numbered images and are not in `listed` (paths relative to the root)."""
    pending = [""]
    while pending:
        relative = pending.pop()
        if relative in listed:
            continue
        has_frames = False
        with os.scandir(root / relative) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(f"{relative}/{entry.name}" if relative else entry.name)
                elif not has_frames:
                    has_frames = _FRAME.fullmatch(entry.name) is not None
        if has_frames:
            yield relative
