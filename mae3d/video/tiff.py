"""TIFF stacks are read by tifffile: one page, or the channels of one moment, after the other.

    with open_tiff(Path("run.tif")) as stack:
        stack.facts
        frames = list(stack.frames(range(3)))

Pages are time. ImageJ's and OME's axes are taken as they are named: T is time, C are channels, and Z, or an axis
without a name, is time where there is no T. Pages of several sizes, or two axes that could be time, are refused.
"""

import logging
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mae3d.video.errors import MediaError, raise_unless_of_the_file
from mae3d.video.levels import WINDOW_REMEDY, StackFacts, Window, bits_of, windowed

_TIMES = "TZIQRHE"  # axes that may be time, the first of them that is longer than 1
_WHITE_IS_ZERO, _PALETTE, _YCBCR, _CIELAB, _CFA = 0, 3, 6, 8, 32803  # of the tag PhotometricInterpretation
_ALPHA = (1, 2)  # of the tag ExtraSamples: associated, unassociated
INSTALL = "pip install 'mae3d[medical]'"


@contextmanager
def open_tiff(source: Path | BinaryIO) -> Iterator["TiffStack"]:
    """Yield a TIFF file, or one in memory, as a stack.

    Raises:
        MediaError: it is no TIFF that can be read, or tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise MediaError("no_decoder", f"this TIFF needs the package tifffile: {INSTALL}") from error
    log = logging.getLogger("tifffile")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it only warns of is looked for here
    try:
        with tifffile.TiffFile(source) as file:
            yield TiffStack(file)
    except MediaError:
        raise
    except Exception as error:  # damage takes many forms: ValueError, KeyError, struct.error, zlib.error, …
        raise_unless_of_the_file(error, source)
        raise MediaError("undecodable", f"damaged TIFF: {_line(error)}") from error
    finally:
        log.setLevel(level)


class TiffStack:
    """The first series of a TIFF file: frames in time order."""

    def __init__(self, file: Any) -> None:
        if not _ends_whole(file):
            raise MediaError("undecodable", f"damaged TIFF: it is cut off after page {len(file.pages)}")
        if len(file.series) != 1:
            sizes = ", ".join("x".join(map(str, one.shape)) for one in file.series[:4])
            raise MediaError("mixed_sizes", f"its pages are of {len(file.series)} kinds ({sizes}, …), not one")
        self._file, self._series = file, file.series[0]
        self._page = self._series.keyframe
        self._axes, self._shape = self._series.axes, self._series.shape
        announced = (file.imagej_metadata or {}).get("images", 1)
        if (there := math.prod(self._shape) // max(math.prod(self._page.shape), 1)) < announced:
            raise MediaError("undecodable", f"damaged TIFF: {there} of {announced} pictures are there")
        self._time = self._axis_of_time()
        self._refuse_unread()
        page = self._page
        planes = self._length("C") * self._length("S")
        self._alpha = sum(one in _ALPHA for one in page.extrasamples) if self._length("S") > 1 else 0
        is_palette = page.photometric == _PALETTE and page.colormap is not None
        self.facts = StackFacts(
            num_frames=self._shape[self._time] if self._time is not None else 1,
            width=self._length("X"),
            height=self._length("Y"),
            channels=3 if is_palette else planes - self._alpha,
            bits=8 if is_palette else bits_of(np.dtype(self._series.dtype)),
            fps=_rate(file),
        )

    def frames(self, numbers: Sequence[int], *, window: Window | None = None, bits: int = 16) -> Iterator[np.ndarray]:
        """Yield frames as `mae3d.video.levels.Stack` does."""
        for number in numbers:
            try:
                values = self._frame(number)
            except Exception as error:  # of any codec
                raise_unless_of_the_file(error, self._file.filename)
                raise _undecodable(error, number) from error
            if self._page.photometric == _PALETTE and self._page.colormap is not None:
                yield values
            elif window is not None:
                levels = windowed(values, window, bits=bits)
                yield self._black_is_zero(levels)
            elif self.facts.bits:
                yield self._black_is_zero(values.astype(np.uint8) * np.uint8(255) if values.dtype == bool else values)
            else:
                message = (
                    f"its values are {np.dtype(self._series.dtype).name}, neither uint8 nor uint16: {WINDOW_REMEDY}"
                )
                raise MediaError("needs_window", message, frame=number)

    def _black_is_zero(self, levels: np.ndarray) -> np.ndarray:
        return ~levels if self._page.photometric == _WHITE_IS_ZERO else levels

    def _length(self, axis: str) -> int:
        return self._shape[self._axes.index(axis)] if axis in self._axes else 1

    def _axis_of_time(self) -> int | None:
        """Return the position of the axis that is time; None if there is a single frame."""
        long = [axis for axis, length in zip(self._axes, self._shape, strict=True) if length > 1 and axis not in "CSYX"]
        if len(long) > 1 or any(axis not in _TIMES for axis in long):
            axes = ", ".join(f"{axis} {self._length(axis)}" for axis in self._axes)
            raise MediaError("unsupported", f"its axes are {axes}: only one beside channels, height and width is time")
        return self._axes.index(long[0]) if long else None

    def _refuse_unread(self) -> None:
        page = self._page
        if "X" not in self._axes or "Y" not in self._axes:
            raise MediaError("unsupported", f"its axes are {self._axes}: no picture")
        if np.dtype(self._series.dtype).kind not in "buif":
            raise MediaError("unsupported", f"its values are {self._series.dtype}, not real numbers")
        if self._length("C") > 1 and self._length("S") > 1:
            raise MediaError("unsupported", "it has several channels of several samples each")
        if page.photometric in (_YCBCR, _CIELAB, _CFA) and page.compression != 7:
            raise MediaError("unsupported", f"its colours are {page.photometric.name}; convert it to RGB")
        orientation = page.tags.valueof(274, default=1)
        if orientation != 1:
            raise MediaError("unsupported", f"its tag Orientation is {orientation}: turn it upright first")

    def _frame(self, number: int) -> np.ndarray:
        """Return one moment, (H, W, C)."""
        values = self._values(number)
        axes = "".join(axis for at, axis in enumerate(self._axes) if at != self._time)
        values = values.reshape([self._length(axis) for axis in axes])
        keep = tuple(at for at, axis in enumerate(axes) if axis in "CSYX")
        values = values.reshape([values.shape[at] for at in keep])
        axes = "".join(axes[at] for at in keep)
        channels = [at for at, axis in enumerate(axes) if axis in "CS"]
        values = values.transpose(axes.index("Y"), axes.index("X"), *channels)
        values = values.reshape(*values.shape[:2], -1)
        if self._page.photometric == _PALETTE and self._page.colormap is not None:
            return (self._page.colormap[:, values[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 0)
        return values[..., : values.shape[2] - self._alpha]

    def _values(self, number: int) -> np.ndarray:
        """Return the values of one moment in the order of the file, alone if its pages or its bytes stand alone."""
        pages, shape, time = self._series.pages, self._shape, self._time
        leading = next((n for n in range(len(shape) + 1) if math.prod(shape[:n]) == len(pages)), 0)
        if math.prod(shape[leading:]) == math.prod(self._page.shape) and (time is None or time < leading):
            order = np.arange(len(pages)).reshape(shape[:leading])
            return self._joined((order if time is None else np.take(order, number, axis=time)).ravel())
        if time is None:
            return self._whole()
        if time == 0 and self._series.dataoffset is not None:  # one page describes all, as in ImageJ's large files
            kind, count = np.dtype(self._series.dtype), math.prod(shape[1:])
            start = self._series.dataoffset + number * count * kind.itemsize
            handle = self._file.filehandle
            return handle.read_array(kind.newbyteorder(self._file.byteorder), count, offset=start)
        return np.take(self._whole(), number, axis=time)

    def _joined(self, pages: Iterable[int]) -> np.ndarray:
        return np.stack([_of_page(self._series.pages[page]) for page in pages])

    def _whole(self) -> np.ndarray:
        """Return all values; only of files whose moments are no pages."""
        if not hasattr(self, "_read"):
            self._read: np.ndarray = self._series.asarray()
        return self._read


def _of_page(page: Any) -> np.ndarray:
    """Return the values of a page; ValueError if parts of it are missing, which tifffile would fill."""
    if page is None or 0 in page.databytecounts:
        raise ValueError("a page, or a part of one, is missing")
    values: np.ndarray = page.asarray()
    return values


def _ends_whole(file: Any) -> bool:
    """Return whether the last page that was found names no further one."""
    kind, handle = file.tiff, file.filehandle
    handle.seek(file.pages[len(file.pages) - 1].offset)
    (num_tags,) = struct.unpack(kind.tagnoformat, handle.read(kind.tagnosize))
    handle.seek(num_tags * kind.tagsize, 1)
    return not any(handle.read(kind.offsetsize))


def _rate(file: Any) -> float:
    """Return the rate that ImageJ notes, in frames per second; NaN if there is none."""
    noted = file.imagej_metadata or {}
    for name, invert in (("fps", False), ("finterval", True)):
        value = noted.get(name)
        if isinstance(value, int | float) and value > 0:
            return 1 / value if invert else float(value)
    return math.nan


def _undecodable(error: Exception, number: int) -> MediaError:
    if "imagecodecs" in str(error):
        return MediaError("no_decoder", f"{_line(error)}: pip install imagecodecs", frame=number)
    return MediaError("undecodable", f"page {number}: {_line(error)}", frame=number)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
