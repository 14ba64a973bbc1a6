"""Frames of a sample are stored: decoded frames, picture files or pictures in, JPEGs or groups of H.264 to a sink.

    store = frame_store(settings, tar.add)
    store.add_frame(frame, (455, 256))             # of a video
    store.add_picture(data, header, (455, 256))    # of a frame folder
    store.add_image(image, (455, 256))             # of a program (`ShardWriter`)
    store.finish()

All of them limit what one sample may have.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import av
import numpy as np
from PIL import Image

from mae3d.video.errors import MediaError
from preprocess.encode.group_encoder import GroupEncoder
from preprocess.encode.images import JpegHeader, check_whole, encode_jpeg, fitted, stored_frame, upright_picture
from preprocess.encode.video_frames import FrameEncoder, FrameScaler, Planes, picture_planes
from preprocess.plan.settings import Settings

_CUT_IT = "cut it with --segment-seconds or --segment-frames, or allow more"
Size = tuple[int, int]  # width and height


class FrameStore(ABC):
    """The store of one sample's frames, which all have one size."""

    def __init__(self, settings: Settings, sink: Callable[[bytes], None]) -> None:
        self._settings, self._sink = settings, sink
        self._num_frames = self._num_bytes = 0

    @abstractmethod
    def add_frame(self, frame: av.VideoFrame, size: Size) -> None:
        """Store a decoded frame, scaled to (width, height).

        Raises:
            MediaError: it cannot be scaled, or the sample becomes too large.
        """

    @abstractmethod
    def add_picture(self, data: bytes, header: JpegHeader | None, size: Size) -> Size:
        """Store an image file, whose JPEG has this header, and return the size that it had.

        Raises:
            ValueError: not an image, damaged, or too large.
            MediaError: the sample becomes too large.
        """

    @abstractmethod
    def add_image(self, image: Image.Image, size: Size) -> None:
        """Store a picture in memory, upright RGB, as `add_picture` stores it from a file without loss.

        Raises:
            MediaError: the sample becomes too large.
        """

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

    def add_frame(self, frame: av.VideoFrame, size: Size) -> None:
        data = self._encoder.encode(frame, width=size[0], height=size[1])
        self._count()
        self._put(data)

    def add_picture(self, data: bytes, header: JpegHeader | None, size: Size) -> Size:
        settings = self._settings
        stored, natural = stored_frame(data, header, size, quality=settings.quality, check=settings.check)
        self._count()
        self._put(stored)
        return natural

    def add_image(self, image: Image.Image, size: Size) -> None:
        self._count()
        self._put(encode_jpeg(fitted(image, size), self._settings.quality))

    def finish(self) -> None:
        pass  # nothing is held back


class _Groups(FrameStore):
    """Frames in groups of H.264."""

    def __init__(self, settings: Settings, sink: Callable[[bytes], None]) -> None:
        super().__init__(settings, sink)
        self._scaler = FrameScaler()
        self._encoder: GroupEncoder | None = None

    def add_frame(self, frame: av.VideoFrame, size: Size) -> None:
        self._add(self._scaler.scale(frame, width=size[0], height=size[1]), size)

    def add_picture(self, data: bytes, header: JpegHeader | None, size: Size) -> Size:
        check_whole(data, header)
        picture, natural = upright_picture(data, size)
        self.add_image(picture, size)
        return natural

    def add_image(self, image: Image.Image, size: Size) -> None:
        self._add(picture_planes(self._scaler, np.asarray(fitted(image, size))), size)

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
    return _Groups(settings, sink) if settings.layout == "video" else _Jpegs(settings, sink)
