"""A dataset's layout: what a sample's stored parts hold, and how they lie in its tar.

    layout = layout_of(meta)              # of a dataset.json, or of the settings of a build
    layout.parts_of(np.array([3, 9]))     # the parts that hold these frames

`jpeg` stores every frame by itself: a part is a frame, one member of the tar each. `png` does so without loss, with 8
or 16 bits and any number of channels (`mae3d.io.png`), the same for all of a dataset. `video` stores one stream per
sample in closed groups of frames: a part is a group, and all of them are one member. `files` stores no frame: the only
part of a sample is a table of where its packets lie in a media file (`mae3d.video.packets`), and `Dataset.media` says
in which.
Size and crc32 are kept for every part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

GROUP = 8  # frames of a group, unless a build says otherwise
BLOCK = 512  # tar block: a member is one header block and its data, padded to whole blocks


@dataclass(frozen=True)
class Layout:
    """The kind of a part: a frame, a group, or the table of a sample.

    `parts` names the file of their sizes and checksums, and `at` its column in the index.
    """

    name: str
    parts: str
    at: str
    member: str  # ends the names of the members that hold parts
    group: int = 1  # frames of a part; the last of a sample may have fewer
    channels: int = 3  # of a decoded frame
    bits: int = 8  # of each of them, 8 or 16

    def parts_of(self, frames: np.ndarray) -> np.ndarray:
        """Return the parts of a sample that hold these frames, in their order, repeats included."""
        return frames // self.group

    def by_part(self, frames: np.ndarray) -> Iterator[tuple[int, np.ndarray, list[int]]]:
        """Yield each part that holds some of these frames: its number, their places here, their numbers within it.

        Args:
            frames: int64 (n,), numbers within the sample, rising.
        """
        part_of = self.parts_of(frames)
        for part in np.unique(part_of).tolist():
            places = np.flatnonzero(part_of == part)
            yield part, places, (frames[places] - part * self.group).tolist()

    def count(self, num_frames: np.ndarray | int) -> Any:
        """Return the number of parts of samples with so many frames."""
        return -(-num_frames // self.group)

    def offsets(self, sizes: np.ndarray, *, start: int) -> np.ndarray:
        """Return where consecutive parts of a sample lie in the tar.

        Args:
            sizes: int64 (n,), bytes of each part.
            start: offset of the first.
        """
        steps = sizes if self.is_one_member else BLOCK + (sizes + BLOCK - 1) // BLOCK * BLOCK
        return start + np.concatenate([np.zeros(1, np.int64), np.cumsum(steps)])[: len(sizes)]

    def end(self, sizes: np.ndarray, *, start: int) -> int:
        """Return where the sample ends in the tar, padding included; arguments as `offsets`."""
        if self.is_one_member:
            return start + int(-(-sizes.sum() // BLOCK) * BLOCK)
        return int(self.offsets(np.append(sizes, 0), start=start)[-1]) - BLOCK

    def description(self) -> dict[str, Any]:
        """Return what a dataset.json, and a sample's .json, say of streams and pictures; nothing of JPEGs."""
        if self.name == "png":
            return {"channels": self.channels, "bits": self.bits}
        return {"codec": "h264", "group": self.group} if self.name == "video" else {}

    @property
    def is_one_member(self) -> bool:
        """Return whether all parts of a sample are one member of the tar."""
        return self.name not in ("jpeg", "png")

    @property
    def is_in_place(self) -> bool:
        """Return whether the media lie in files of their own, beside which the dataset is an index."""
        return self.name == "files"


JPEG = Layout("jpeg", parts="frames", at="frames_at", member="jpg")
FILES = Layout("files", parts="tables", at="tables_at", member="packets", group=1 << 30)
LAYOUTS = ("jpeg", "video", "files", "png")
INDEX_FILE = r"(?:index-[0-9a-f]{16}\.parquet|(?:rows|frames|groups|tables|media)-[0-9a-f]{16}\.arrow)"  # a regex


def video_layout(group: int) -> Layout:
    """Return the layout of H.264 streams in closed groups of so many frames."""
    return Layout("video", parts="groups", at="groups_at", member="h264", group=group)


def png_layout(channels: int, bits: int) -> Layout:
    """Return the layout of lossless frames with so many channels of so many bits."""
    return Layout("png", parts="frames", at="frames_at", member="png", channels=channels, bits=bits)


def layout_of(described: Mapping[str, Any]) -> Layout:
    """Return the layout that a dataset.json, or the settings of a build, describe; without `layout` it is jpeg."""
    name = described.get("layout", "jpeg")
    if name == "png":
        return png_layout(int(described["channels"]), int(described["bits"]))
    return video_layout(int(described["group"])) if name == "video" else FILES if name == "files" else JPEG
