"""Picture files that 8-bit grey or RGB cannot hold are read: 16 bits, more channels, floating point.

    deep = deep_picture(data)                  # None: `preprocess.encode.images` reads it
    deep.channels, deep.bits
    deep.levels((7000, 9000), 8)               # (H, W, C) uint8: a window of its values

PNG, PNM and TIFF of 16 bits, and every TIFF that Pillow has no mode for. Alpha is left out, as it is of pictures of
8 bits, unless four channels are requested.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from mae3d.io.png import png_header, png_pixels
from mae3d.video.errors import MediaError
from mae3d.video.levels import Window, windowed
from mae3d.video.stacks import TIFF_MARKS
from mae3d.video.tiff import open_tiff
from preprocess.encode.images import picture_header

_PNM = (b"P2", b"P3", b"P5", b"P6")  # grey and RGB, as text and in bytes
_NUMBER = re.compile(rb"\s+(?:#[^\n]*\n\s*)*(\d+)")
_PLAIN = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))  # Pillow's modes of 8 bits
_BITS_PER_SAMPLE, _SAMPLES, _SAMPLE_FORMAT, _UNSIGNED = 258, 277, 339, 1  # tags of TIFF


@dataclass(frozen=True)
class DeepPicture:
    """A picture file whose header has been read."""

    width: int
    height: int
    channels: int
    bits: int  # 8 or 16; 0 = its values need a window
    _levels: Callable[[Window | None, int], np.ndarray]

    def levels(self, window: Window | None, bits: int) -> np.ndarray:
        """Return its levels, (height, width, channels) uint8 or uint16; with a window of so many bits.

        Raises:
            ValueError: it is damaged, or its values need a window.
        """
        try:
            return self._levels(window, bits)
        except MediaError as error:
            raise ValueError(str(error)) from error


def deep_picture(data: bytes, *, channels: int = 0) -> DeepPicture | None:
    """Return a picture that 8-bit grey or RGB cannot hold; None for any other file.

    Args:
        data: the file.
        channels: 4 takes alpha for a channel.

    Raises:
        ValueError: it can be seen to be one, but its header is damaged, or the package that reads it is missing.
    """
    if (header := png_header(data)) is not None:
        width, height, stored, bits = header
        kept = stored if stored == channels else {2: 1, 4: 3}.get(stored, stored)
        is_deep = bits == 16 or kept == 4
        return DeepPicture(width, height, kept, bits, partial(_levels_of_png, data, kept)) if is_deep else None
    if data.startswith(TIFF_MARKS) and not _is_plain_tiff(data):
        return _of_tiff(data)
    return _of_pnm(data) if data.startswith(_PNM) else None


def _levels_of_png(data: bytes, channels: int, window: Window | None, bits: int) -> np.ndarray:
    pixels = png_pixels(data)[..., :channels]
    return pixels if window is None else windowed(pixels, window, bits=bits)


def _is_plain_tiff(data: bytes) -> bool:
    """Return whether Pillow reads all of a TIFF as 8-bit grey or RGB."""
    image = picture_header(data)
    if image is None:
        return False
    tags = getattr(image, "tag_v2", {})
    bits, formats = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    samples = tags.get(_SAMPLES, 1)
    as_many = samples <= len(image.getbands()) or image.mode in ("1", "L", "P")
    return image.mode in _PLAIN and max(bits) <= 8 and set(formats) <= {_UNSIGNED, 4} and as_many


def _of_tiff(data: bytes) -> DeepPicture:
    try:
        with open_tiff(io.BytesIO(data)) as stack:
            facts = stack.facts
    except MediaError as error:
        raise ValueError(str(error)) from error
    if facts.num_frames > 1:
        raise ValueError(f"a stack of {facts.num_frames} pages, which is a video of its own: --stacks")

    def levels(window: Window | None, bits: int) -> np.ndarray:
        with open_tiff(io.BytesIO(data)) as stack:
            return next(stack.frames([0], window=window, bits=bits))

    return DeepPicture(facts.width, facts.height, facts.channels, facts.bits, levels)


def _of_pnm(data: bytes) -> DeepPicture | None:
    """Return a PGM or PPM whose values go beyond 255; None if they do not."""
    at, numbers = 2, list[int]()
    while len(numbers) < 3 and (match := _NUMBER.match(data, at)):
        numbers.append(int(match[1]))
        at = match.end()
    if len(numbers) < 3 or not 255 < numbers[2] < 65536:
        return None
    width, height, channels = numbers[0], numbers[1], 1 if data[1:2] in b"25" else 3

    def levels(window: Window | None, bits: int) -> np.ndarray:
        count, body, is_text = width * height * channels, data[at + 1 :], data[1:2] in b"23"
        values = np.array(body.split()[:count], np.int64) if is_text else np.frombuffer(body[: len(body) & ~1], ">u2")
        if len(values) < count:
            raise ValueError("damaged image: its end is missing")
        pixels = values[:count].reshape(height, width, channels).astype(np.uint16)
        return pixels if window is None else windowed(pixels, window, bits=bits)

    return DeepPicture(width, height, channels, 16, levels)
