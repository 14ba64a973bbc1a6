"""Decoded frames are examined for what a user should know of them: HDR, interlacing, pixel aspect, sizes.

swapped, flip_x, flip_y = orientation(frame)
looks = Looks(pixel_aspect=1.0)
looks.add(frame, same_size=True)
looks.remarks((455, 256))                        # [None, ("hdr", "PQ, BT.2020; stored without tone mapping"), ...]
"""

import math
from dataclasses import dataclass

import av
from av.video.reformatter import ColorPrimaries, ColorTrc

_SQUARE = 0.02  # how far from 1 the aspect of a pixel that passes for square may be


def hdr_kind(frame: av.VideoFrame) -> str:
    """Return why the frame's colours exceed a screen's, for messages; "" if they do not."""
    transfer = (
        "PQ" if frame.color_trc == ColorTrc.SMPTE2084 else "HLG" if frame.color_trc == ColorTrc.ARIB_STD_B67 else ""
    )
    primaries = "BT.2020" if frame.color_primaries == ColorPrimaries.BT2020 else ""
    return ", ".join(word for word in (transfer, primaries) if word)


@dataclass
class Looks:
    """The coding properties of stored frames that a user should know, because nothing was done about them."""

    pixel_aspect: float
    num_frames: int = 0
    num_interlaced: int = 0
    num_other_sizes: int = 0
    hdr: str = ""

    def add(self, frame: av.VideoFrame, *, same_size: bool) -> None:
        self.num_frames += 1
        self.num_interlaced += frame.interlaced_frame
        self.num_other_sizes += not same_size
        self.hdr = self.hdr or hdr_kind(frame)

    def remarks(self, size: tuple[int, int]) -> list[tuple[str, str] | None]:
        """Return (reason, message) of every remark."""
        aspect = f"a pixel is {self.pixel_aspect:.3g} times as wide as high; stored as if it were square"
        woven = f"{self.num_interlaced} of {self.num_frames} frames are interlaced; both fields are stored as one"
        return [
            mixed_sizes(self.num_other_sizes, self.num_frames, size),
            ("hdr", f"{self.hdr}; stored without tone mapping") if self.hdr else None,
            ("interlaced", woven) if self.num_interlaced else None,
            ("pixel_aspect", aspect) if abs(math.log(self.pixel_aspect)) > _SQUARE else None,
        ]


def mixed_sizes(num_other: int, num_frames: int, size: tuple[int, int]) -> tuple[str, str] | None:
    """Return the remark that frames differ from the first one's size; None if none does."""
    message = f"{num_other} of {num_frames} frames are not of the first one's size; scaled to {size[0]}x{size[1]}"
    return ("mixed_sizes", message) if num_other else None
