"""A clip's bytes ─► its frames, on the CPU and without DALI: JPEGs by Pillow, groups and packets of video by PyAV.

    decoder = ClipDecoder(corpus)
    decoder.decode(fetched)             # (T, H, W, C) uint8 or uint16; BadFrameError where a frame does not decode
    decoder.decode_all([one, other])    # of clips of one row: what they share is decoded once

Pillow is slower than DALI on the CPU, and gives the same pixels (both are libjpeg-turbo's). A decoder may be used by
several threads: each has PyAV contexts of its own. Videos whose packets are not known (`mae3d.video.packets`) are
opened here, and decoded from the keyframe before.
"""

import io
import threading
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from mae3d.io.console import one_line
from mae3d.io.png import PngError, decode_png
from mae3d.video.groups import GroupDecoder, GroupError
from mae3d.video.in_place import InPlaceDecoder
from mae3d.video.packets import PacketError, PacketTable
from pipelines.decoding.channels import with_channels
from pipelines.reading.source import FetchedClip
from pipelines.samples.corpus import Corpus
from preprocess.dataset.layout import Layout


class BadFrameError(Exception):
    """A frame, by its number in the sample, that does not decode; the message says why."""

    def __init__(self, frame: int, reason: str):
        super().__init__(reason)
        self.frame = frame


class ClipDecoder:
    """Decodes what `ClipSource` has fetched, to as many channels as `check_channels` allows; None = as stored."""

    def __init__(self, corpus: Corpus, channels: int | None = None):
        self._corpus, self._channels = corpus, channels
        self._decoders = _Decoders()

    def decode(self, fetched: FetchedClip) -> torch.Tensor:
        """Return the clip, (T, H, W, C) uint8; uint16 if its dataset has 16 bits.

        Raises:
            BadFrameError: a frame does not decode, or has another size than the index says.
        """
        return self.decode_all([fetched])[0]

    def decode_all(self, fetched: Sequence[FetchedClip]) -> list[torch.Tensor]:
        """Return clips of one row, each (T, H, W, C); types and errors as `decode`."""
        row = fetched[0].clip.row
        layout, size = self._corpus.layout(row), (int(self._corpus.height[row]), int(self._corpus.width[row]))
        channels = self._channels or layout.channels
        if layout.name == "jpeg":
            return [torch.from_numpy(np.stack(jpeg_frames(one, size, channels))) for one in fetched]
        if layout.name == "png":
            return [torch.from_numpy(with_channels(clip, channels)) for clip in png_clips(fetched, layout, size)]
        numbers = np.unique(np.concatenate([one.clip.frames for one in fetched]))
        pixels = np.empty((len(numbers), *size, channels), np.uint8)
        if layout.is_in_place:
            self._decode_in_place(row, fetched, numbers, pixels)
        else:
            pairs = (pair for one in fetched for pair in zip(_parts(layout, one), one.parts, strict=True))
            self._decode_groups(dict(pairs), numbers, layout, pixels)
        clips = [np.searchsorted(numbers, one.clip.frames) for one in fetched]
        # A clip alone is what was decoded, as a rule: no copy.
        return [torch.from_numpy(pixels if np.array_equal(at, np.arange(len(numbers))) else pixels[at]) for at in clips]

    def _decode_groups(
        self, groups: dict[int, np.ndarray], numbers: np.ndarray, layout: Layout, out: np.ndarray
    ) -> None:
        decoder = self._decoders.groups
        for part, places, within in layout.by_part(numbers):
            first = part * layout.group
            try:
                frames = decoder.decode(groups[part].tobytes(), within)
            except GroupError as error:
                raise BadFrameError(first, str(error)) from error
            for row, frame in zip(places.tolist(), frames, strict=True):
                if frame.height < out.shape[1] or frame.width < out.shape[2]:
                    raise BadFrameError(
                        first, f"it is {frame.height} x {frame.width} pixels, smaller than in the index"
                    )
                decoder.rgb(frame, out[row])

    def _decode_in_place(self, row: int, fetched: Sequence[FetchedClip], numbers: np.ndarray, out: np.ndarray) -> None:
        decoder, table = self._decoders.in_place, PacketTable.from_bytes(fetched[0].parts[0].data)
        data: dict[int, bytes] = {}
        for one in fetched:
            needed = table.needed_at_all(one.clip.frames).tolist()
            data.update(zip(needed, (part.tobytes() for part in one.parts[1:]), strict=True))
        try:
            frames = decoder.frames(table, numbers, data, self._corpus.file_name(row))
            for at, frame in enumerate(frames):
                if at and frame is frames[at - 1]:
                    out[at] = out[at - 1]
                else:
                    _, height, width, channels = out.shape
                    out[at] = decoder.rgb(frame, table, width=width, height=height, channels=channels)
        except PacketError as error:
            raise BadFrameError(int(numbers[0]), str(error)) from error


class _Decoders(threading.local):
    """The contexts of a thread."""

    def __init__(self) -> None:
        self.groups, self.in_place = GroupDecoder(), InPlaceDecoder()


def _parts(layout: Layout, fetched: FetchedClip) -> list[int]:
    numbers: list[int] = np.unique(layout.parts_of(fetched.clip.frames)).tolist()
    return numbers


def jpeg_frames(fetched: FetchedClip, size: tuple[int, int], channels: int = 3) -> list[np.ndarray]:
    """Return the frames of a clip of layout jpeg, (height, width, 3) each; errors as `ClipDecoder.decode`.

    Grey JPEGs give three channels that are alike. With one channel, (height, width, 1), colour JPEGs give their luma.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    pictures = []
    for number, jpeg in zip(fetched.clip.frames.tolist(), fetched.parts, strict=True):
        try:
            image = Image.open(io.BytesIO(jpeg.tobytes()))
            image.draft(mode, None)  # luma as it is stored, not computed from RGB; nothing else changes
            picture = np.array(image.convert(mode)).reshape(image.height, image.width, channels)
        except Exception as error:  # damage takes many forms in PIL: OSError, ValueError, SyntaxError, struct.error
            raise BadFrameError(number, f"it does not decode ({one_line(error)})") from error
        if picture.shape[:2] != size:
            height, width = picture.shape[:2]
            raise BadFrameError(number, f"it is {height} x {width} pixels, the index says {size[0]} x {size[1]}")
        pictures.append(picture)
    return pictures


def png_clips(fetched: Sequence[FetchedClip], layout: Layout, size: tuple[int, int]) -> list[np.ndarray]:
    """Return clips of one row of layout png, (T, H, W, C) each, each frame decoded once; errors as `decode`."""
    frames: dict[int, np.ndarray] = {}
    for one in fetched:
        for number, png in zip(one.clip.frames.tolist(), one.parts, strict=True):
            if number in frames:
                continue
            try:
                pixels = decode_png(png.tobytes(), channels=layout.channels)
            except PngError as error:
                raise BadFrameError(number, f"it does not decode ({error})") from error
            if (*pixels.shape[:2], 8 * pixels.dtype.itemsize) != (*size, layout.bits):
                height, width, bits = *pixels.shape[:2], 8 * pixels.dtype.itemsize
                there = f"{height} x {width} pixels of {bits} bits"
                raise BadFrameError(number, f"it is {there}, the index says {size[0]} x {size[1]} of {layout.bits}")
            frames[number] = pixels
    return [np.stack([frames[number] for number in one.clip.frames.tolist()]) for one in fetched]
