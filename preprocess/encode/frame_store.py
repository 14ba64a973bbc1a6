"""Frames of a sample are stored: decoded frames, picture files or pixels in, JPEGs, PNGs or H.264 to a sink.

    store = frame_store(settings, tar.add)
    store.add_frame(frame, (455, 256))             # of a video
    store.add_picture(data, header, (455, 256))    # of a frame folder
    store.add_pixels(pixels, (455, 256))           # of a stack, a picture of 16 bits, or a program
    store.finish()

All kinds limit what one sample may have, and refuse frames that their layout cannot hold.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import av
import numpy as np
from PIL import Image

from mae3d.io.png import encode_png
from mae3d.video.errors import MediaError
from mae3d.video.levels import windowed
from preprocess.encode.group_encoder import GroupEncoder
from preprocess.encode.images import (
    GREY_MODES,
    JpegHeader,
    as_rgb,
    check_whole,
    decode_upright,
    encode_jpeg,
    stored_frame,
    upright_picture,
)
from preprocess.encode.pixels import DeepPicture, deep_picture
from preprocess.encode.video_frames import FrameEncoder, FrameScaler, LevelReader, Planes, kind_of_video, picture_planes
from preprocess.plan.settings import Settings, kind_words, refuse_unfit

_CUT_IT = "cut it with --segment-seconds or --segment-frames, or allow more"
Size = tuple[int, int]  # width and height


class FrameStore(ABC):
    """The store of one sample's frames, which all have one size."""

    def __init__(self, settings: Settings, sink: Callable[[bytes], None]) -> None:
        self._settings, self._sink = settings, sink
        self._num_frames = self._num_bytes = 0
        self._reader = LevelReader()

    def add_frame(self, frame: av.VideoFrame, size: Size) -> None:
        """Store a decoded frame, scaled to (width, height).

        Raises:
            MediaError: it cannot be scaled, its layout cannot hold it, or the sample becomes too large.
        """
        if kind_of_video(frame.format)[1] == 8:
            self._add_frame(frame, size)
        else:
            levels, window = self._reader.levels(frame, size), self._settings.window
            self._add_levels(
                levels if window is None else windowed(levels, window, bits=self._settings.stored_bits), size
            )

    def _add_levels(self, levels: np.ndarray, size: Size) -> None:
        """Store levels of a frame of a video; errors as `add_frame`."""
        try:
            self.add_pixels(levels, size)
        except ValueError as error:
            raise MediaError("other_pixels", str(error)) from error

    @abstractmethod
    def _add_frame(self, frame: av.VideoFrame, size: Size) -> None:
        """Store a decoded frame of 8 bits, as `add_frame`."""

    @abstractmethod
    def add_picture(self, data: bytes, header: JpegHeader | None, size: Size) -> Size:
        """Store an image file, whose JPEG has this header, and return the size that it had.

        Raises:
            ValueError: not an image, damaged, or too large.
            MediaError: the sample becomes too large.
        """

    @abstractmethod
    def add_pixels(self, pixels: np.ndarray, size: Size) -> None:
        """Store a frame of a stack or a program, (H, W, C) uint8 or uint16, scaled to (width, height).

        Raises:
            ValueError: the layout has no room for its channels or bits.
            MediaError: the sample becomes too large.
        """

    def deep(self, data: bytes, header: JpegHeader | None) -> DeepPicture | None:
        """Return a picture file that is added by `add_deep`; None if by `add_picture`."""
        return None if header is not None else deep_picture(data)

    def add_deep(self, deep: DeepPicture, size: Size) -> None:
        """Store a picture of `deep`; errors as `add_pixels`."""
        self.add_pixels(deep.levels(self._settings.window, self._settings.stored_bits), size)

    @abstractmethod
    def finish(self) -> None:
        """Store what was held back; raise MediaError as `add_frame`."""

    def _count(self) -> None:
        self._num_frames += 1
        refuse_more_frames(self._num_frames, self._settings)

    def _put(self, data: bytes) -> None:
        self._num_bytes += len(data)
        if self._num_bytes > self._settings.max_gb * 1e9:
            raise MediaError("too_large", f"would write more than --max-gb {self._settings.max_gb:g}: {_CUT_IT}")
        self._sink(data)


def refuse_more_frames(count: int, settings: Settings) -> None:
    """Raise MediaError if a sample has more frames than the settings allow."""
    if count > settings.max_frames:
        raise MediaError("too_many_frames", f"more than --max-frames {settings.max_frames}: {_CUT_IT}")


class _Jpegs(FrameStore):
    """Frames as JPEGs of their own; picture files pass through where they can."""

    def __init__(self, settings: Settings, sink: Callable[[bytes], None]) -> None:
        super().__init__(settings, sink)
        self._encoder = FrameEncoder(settings.quality)

    def _add_frame(self, frame: av.VideoFrame, size: Size) -> None:
        data = self._encoder.encode(frame, width=size[0], height=size[1])
        self._count()
        self._put(data)

    def add_picture(self, data: bytes, header: JpegHeader | None, size: Size) -> Size:
        settings = self._settings
        stored, natural = stored_frame(data, header, size, quality=settings.quality, check=settings.check)
        self._count()
        self._put(stored)
        return natural

    def add_pixels(self, pixels: np.ndarray, size: Size) -> None:
        self._count()
        self._put(encode_jpeg(_rgb(pixels, size), self._settings.quality))

    def finish(self) -> None:
        pass  # nothing is held back


class _Pngs(FrameStore):
    """Frames as PNGs of their own, without loss."""

    def _add_frame(self, frame: av.VideoFrame, size: Size) -> None:
        self._add_levels(self._reader.levels(frame, size), size)

    def add_picture(self, data: bytes, header: JpegHeader | None, size: Size) -> Size:
        check_whole(data, header)
        picture = decode_upright(data)
        pixels = np.asarray(picture.convert("L") if picture.mode in GREY_MODES else as_rgb(picture))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        height, width = pixels.shape[:2]
        self.add_pixels(pixels, size)
        return width, height

    def deep(self, data: bytes, header: JpegHeader | None) -> DeepPicture | None:
        return None if header is not None else deep_picture(data, channels=self._settings.channels)

    def add_pixels(self, pixels: np.ndarray, size: Size) -> None:
        settings = self._settings
        there, stored = (pixels.shape[2], 8 * pixels.dtype.itemsize), (settings.channels, settings.bits)
        if there != stored:
            raise ValueError(f"{kind_words(*there)}, this dataset stores {kind_words(*stored)}")
        self._count()
        self._put(encode_png(_resized(pixels, size)))

    def finish(self) -> None:
        pass  # nothing is held back


class _Groups(FrameStore):
    """Frames in groups of H.264."""

    def __init__(self, settings: Settings, sink: Callable[[bytes], None]) -> None:
        super().__init__(settings, sink)
        self._scaler = FrameScaler()
        self._encoder: GroupEncoder | None = None

    def _add_frame(self, frame: av.VideoFrame, size: Size) -> None:
        self._add(self._scaler.scale(frame, width=size[0], height=size[1]), size)

    def add_picture(self, data: bytes, header: JpegHeader | None, size: Size) -> Size:
        check_whole(data, header)
        picture, natural = upright_picture(data, size)
        self._add(picture_planes(self._scaler, np.asarray(picture)), size)
        return natural

    def add_pixels(self, pixels: np.ndarray, size: Size) -> None:
        self._add(picture_planes(self._scaler, np.asarray(_rgb(pixels, size))), size)

    def finish(self) -> None:
        if self._encoder is not None:
            self._encoder.finish()

    def _add(self, planes: Planes, size: Size) -> None:
        self._count()
        if self._encoder is None:
            self._encoder = GroupEncoder(*size, settings=self._settings, sink=self._put)
        self._encoder.add(planes)


def frame_store(settings: Settings, sink: Callable[[bytes], None]) -> FrameStore:
    """Return the store of the settings' layout."""
    stores: dict[str, type[FrameStore]] = {"video": _Groups, "png": _Pngs}
    return stores.get(settings.layout, _Jpegs)(settings, sink)


def _rgb(pixels: np.ndarray, size: Size) -> Image.Image:
    """Return pixels of 8 bits as an RGB picture of a size; errors as `refuse_unfit`."""
    refuse_unfit(pixels.shape[2], 8 * pixels.dtype.itemsize, "jpeg")
    picture = Image.fromarray(np.repeat(pixels, 3 // pixels.shape[2], axis=2))
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def _resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Return pixels in a size, each channel by Pillow's antialiased bicubic filter in floating point."""
    if pixels.shape[1::-1] == size:
        return pixels
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in pixels.transpose(2, 0, 1)]
    scaled = np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], axis=-1)
    return np.rint(scaled).clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
