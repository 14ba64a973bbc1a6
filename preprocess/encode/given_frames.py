"""Frames in memory become stored frames: arrays, pictures or image files' bytes in, parts to a sink and `Facts` out.

    facts = encode_given(frames, settings=settings, sink=tar.add, fps=30.0)

An array, a picture of Pillow and a PNG with the same pixels are stored as the same bytes; a JPEG passes through
untouched, as one of a frame folder does (`preprocess.encode.images`). Frames of one sample have one size: the first
frame's, its short side scaled down to `short_side`, never up.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mae3d.video.errors import MediaError
from preprocess.encode.frame_store import FrameStore, frame_store
from preprocess.encode.images import GREY_MODES, announced_size, as_rgb, jpeg_header, natural_size, scaled_size
from preprocess.encode.video_properties import mixed_sizes
from preprocess.plan.samples import Facts
from preprocess.plan.settings import Settings

Frame = np.ndarray | Image.Image | bytes
Size = tuple[int, int]  # width and height


def encode_given(
    frames: Iterable[Frame],
    *,
    settings: Settings,
    sink: Callable[[bytes], None],
    fps: float = math.nan,
    first: int = 0,
    start_s: float = math.nan,
) -> Facts:
    """Hand the frames of one sample to `sink`, in their order.

    Args:
        frames: uint8 or uint16 (height, width) or (height, width, channels), pictures of Pillow, or the bytes of image
            files; of channels and bits that the layout holds.
        settings: sizes, quality and limits.
        sink: takes the bytes of one part: a JPEG, or a group of H.264.
        fps: frames per second; NaN = unknown.
        first: number of the first frame in its recording.
        start_s: time of the first frame in its recording; NaN = unknown.

    Raises:
        MediaError: the frames cannot be had: bytes that do not decode, no frame, too many, too large.
        ValueError: an array that is no frame; the message has its shape and its type.
    """
    store = frame_store(settings, sink)
    size: Size | None = None
    num_frames = num_other = 0
    for frame in frames:
        try:
            natural = _add(store, frame, size, settings)
        except _BadFrame as error:
            raise MediaError(error.reason, f"frame {num_frames}: {error}", frame=first + num_frames) from error
        size = size or scaled_size(*natural, settings.short_side)
        num_other += scaled_size(*natural, settings.short_side) != size
        num_frames += 1
    if size is None:
        raise MediaError("no_frames", "it was given no frame")
    store.finish()
    remark = mixed_sizes(num_other, num_frames, size)
    return Facts(num_frames, first, first + num_frames, fps, start_s, *size, remark)


class _BadFrame(Exception):
    """Media that are damaged or too large, unlike a value that is no frame at all."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _add(store: FrameStore, frame: Frame, size: Size | None, settings: Settings) -> Size:
    """Store one frame in the sample's size, its own scaled down if there is none yet; return the size that it had."""
    if isinstance(frame, bytes | bytearray | memoryview):
        return _add_file(store, bytes(frame), size, settings)
    pixels = _pixels(frame)
    natural = pixels.shape[1], pixels.shape[0]
    _check_size(natural, settings)
    store.add_pixels(pixels, size or scaled_size(*natural, settings.short_side))
    return natural


def _add_file(store: FrameStore, data: bytes, size: Size | None, settings: Settings) -> Size:
    header = jpeg_header(data)
    try:
        _check_size(announced_size(data, header), settings)
        if deep := store.deep(data, header):
            natural = deep.width, deep.height
            store.add_deep(deep, size or scaled_size(*natural, settings.short_side))
            return natural
        return store.add_picture(data, header, size or scaled_size(*natural_size(data, header), settings.short_side))
    except ValueError as error:
        raise _BadFrame("bad_frame", str(error)) from error


def _check_size(size: Size, settings: Settings) -> None:
    if size[0] * size[1] > settings.max_pixels:
        message = f"{size[0]}x{size[1]} pixels, max_pixels {settings.max_pixels} are allowed"
        raise _BadFrame("too_large", message)


def _pixels(frame: Any) -> np.ndarray:
    """Return a frame as (height, width, channels); pictures of Pillow upright, those of 8 bits grey or RGB."""
    if isinstance(frame, Image.Image):
        try:
            frame.load()
        except (OSError, SyntaxError) as error:
            raise _BadFrame("bad_frame", f"damaged image: {error}") from error
        frame = ImageOps.exif_transpose(frame)
        if not frame.mode.startswith("I;16"):
            frame = frame.convert("L") if frame.mode in GREY_MODES else as_rgb(frame)
    array = np.asarray(frame)
    if array.dtype.type not in (np.uint8, np.uint16) or array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"a frame of {array.dtype} {array.shape}: give uint8 or uint16, (height, width) or (height, width, "
            "channels); or a picture of Pillow, or the bytes of an image file"
        )
    return array[..., None] if array.ndim == 2 else array
