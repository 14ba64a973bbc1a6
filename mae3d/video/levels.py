"""Stacks give frames in levels of 8 or 16 bits: values as they are, or a range of them mapped onto all levels.

values = windowed(array, (-1000, 400), bits=16)        # float, int16, ... ─► uint16
values = widened(array, stored_bits=12)                # 0 ... 4095 ─► 0 ... 65535, to be undone exactly
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Window = tuple[float, float]  # the values that become 0 and the greatest level

WINDOW_REMEDY = "--window LOW HIGH maps these values of the source onto all levels"


@dataclass(frozen=True)
class StackFacts:
    """The properties that a file announces."""

    num_frames: int
    width: int
    height: int
    channels: int
    bits: int  # 8 or 16; 0 = its values need a window
    fps: float  # NaN = unknown
    series: str = ""  # of a single frame that may be one of many: what they have in common
    number: int = -1  # its place among them; -1 = unknown
    moment: str = ""  # its time among them, to be sorted by
    is_dicom: bool = False
    has_burned_in: bool = False  # it announces that texts are burned into its pixels


class Stack(Protocol):
    """An opened file."""

    @property
    def facts(self) -> StackFacts:
        """Return its properties."""

    def frames(self, numbers: Sequence[int], *, window: Window | None = None, bits: int = 16) -> Iterator[np.ndarray]:
        """Yield frames, (H, W, C) uint8 or uint16 each.

        Args:
            numbers: rising, each less than `facts.num_frames`.
            window: maps values onto all levels of `bits`; None = as they are, in `facts.bits`.
            bits: 8 or 16, of the levels with a window.

        Raises:
            MediaError: a frame cannot be decoded, or its values need a window.
        """


def level_type(bits: int) -> type[np.unsignedinteger]:
    """Return the type of levels of 8 or 16 bits."""
    return np.uint8 if bits == 8 else np.uint16


def bits_of(dtype: np.dtype) -> int:
    """Return 8 or 16 if values of a type are levels already; 0 if they need a window."""
    return {"uint8": 8, "uint16": 16, "bool": 8}.get(dtype.name, 0)


def windowed(values: np.ndarray, window: Window, *, bits: int) -> np.ndarray:
    """Map values in [low, high] evenly onto all levels; those outside become the first or the last, NaN the first.

    Args:
        values: any shape and real type.
        window: low and high, low < high.
        bits: 8 or 16, of the levels.
    """
    low, high = window
    most = (1 << bits) - 1
    levels = (values.astype(np.float64) - low) * (most / (high - low))
    return np.rint(np.nan_to_num(levels.clip(0, most), nan=0.0)).astype(level_type(bits))


def widened(values: np.ndarray, *, stored_bits: int) -> np.ndarray:
    """Spread values of some bits over all levels of the next 8 or 16 bits, rounded to the nearest.

    Two values never become one level: rounding `level * (2^stored_bits - 1) / most` gives back the value.

    Args:
        values: whole numbers in [0, 2^stored_bits).
        stored_bits: 1 to 16.
    """
    bits = 8 if stored_bits <= 8 else 16
    most, top = (1 << bits) - 1, (1 << stored_bits) - 1
    if top == most:
        return values.astype(level_type(bits))
    spread: np.ndarray = (values.astype(np.uint32) * np.uint32(most) + np.uint32(top // 2)) // np.uint32(top)
    return spread.astype(level_type(bits))
