"""A clip's bytes ─► its frames, on the CPU and without DALI: JPEGs by Pillow, groups and packets of video by PyAV.

    decoder = ClipDecoder(corpus)
    decoder.decode(fetched)             # (T, H, W, C) uint8; BadFrameError where a frame does not decode
    decoder.decode_all([one, other])    # of clips of one row: what they share is decoded once

Pillow is slower than DALI on the CPU, and gives the same pixels (both are libjpeg-turbo's). A decoder may be used by
several threads: each has PyAV contexts of its own. Videos whose packets are not known (`mae3d.video.packets`) are
opened here, and decoded from the keyframe before.
"""

import io
import threading
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from mae3d.io.console import one_line
from mae3d.io.storage import is_url
from mae3d.video.errors import MediaError
from mae3d.video.groups import GroupDecoder, GroupError
from mae3d.video.packets import PacketDecoder, PacketError, PacketTable
from mae3d.video.pictures import Pictures
from mae3d.video.reader import open_video
from pipelines.reading.source import FetchedClip
from pipelines.samples.corpus import Corpus
from preprocess.dataset.layout import Layout


class BadFrameError(Exception):
    """A frame, by its number in the sample, that does not decode; the message says why."""

    def __init__(self, frame: int, reason: str):
        super().__init__(reason)
        self.frame = frame


class ClipDecoder:
    """Decodes what `ClipSource` has fetched."""

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._decoders = _Decoders()

    def decode(self, fetched: FetchedClip) -> torch.Tensor:
        """Return the clip, (T, H, W, C) uint8.

        Raises:
            BadFrameError: a frame does not decode, or has another size than the index says.
        """
        return self.decode_all([fetched])[0]

    def decode_all(self, fetched: Sequence[FetchedClip]) -> list[torch.Tensor]:
        """Return clips of one row, each (T, H, W, C) uint8; errors as `decode`."""
        row = fetched[0].clip.row
        layout, size = self._corpus.layout(row), (int(self._corpus.height[row]), int(self._corpus.width[row]))
        if layout.name == "jpeg":
            return [torch.from_numpy(np.stack(jpeg_frames(one, size))) for one in fetched]
        numbers = np.unique(np.concatenate([one.clip.frames for one in fetched]))
        pixels = np.empty((len(numbers), *size, 3), np.uint8)
        if layout.is_in_place:
            self._decode_packets(row, fetched, numbers, pixels)
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

    def _decode_packets(self, row: int, fetched: Sequence[FetchedClip], numbers: np.ndarray, out: np.ndarray) -> None:
        table = PacketTable.from_bytes(fetched[0].parts[0].data)
        if table.codec is None:
            self._decode_opened(row, table, numbers, out)
            return
        data: dict[int, bytes] = {}
        for one in fetched:
            needed = table.needed_at_all(one.clip.frames).tolist()
            data.update(zip(needed, (part.tobytes() for part in one.parts[1:]), strict=True))
        try:
            frames = self._decoders.packets.decode(table, numbers, data)
        except PacketError as error:
            raise BadFrameError(int(numbers[0]), str(error)) from error
        painted: dict[int, int] = {}  # packet ─► where its frame is first
        for at, packet in enumerate(table.packets_of(numbers).tolist()):
            if packet in painted:
                out[at] = out[painted[packet]]
            else:
                self._paint(frames[packet], table, out[at], int(numbers[at]))
                painted[packet] = at

    def _decode_opened(self, row: int, table: PacketTable, numbers: np.ndarray, out: np.ndarray) -> None:
        """Decode frames of a video by its container, as preprocessing does."""
        path, first = self._corpus.file_name(row), int(numbers[0])
        if is_url(path):
            raise BadFrameError(first, "its packets do not lie whole in the file, which is behind a URL: build it")
        places: dict[float, list[int]] = {}
        for at, seconds in enumerate(table.seconds[numbers].tolist()):
            places.setdefault(seconds, []).append(at)
        last = max(places)
        try:
            with open_video(Path(path)) as video:
                for seconds, frame in video.frames(min(places), last):
                    for at in places.pop(seconds, ()):
                        self._paint(frame, table, out[at], int(numbers[at]))
                    if seconds >= last:
                        break
        except (MediaError, av.error.FFmpegError, OSError) as error:
            raise BadFrameError(first, f"it does not decode ({one_line(error)})") from error
        if places:
            raise BadFrameError(first, f"{len(places)} frames do not decode")

    def _paint(self, frame: av.VideoFrame, table: PacketTable, out: np.ndarray, number: int) -> None:
        try:
            out[:] = self._decoders.pictures.rgb(frame, width=out.shape[1], height=out.shape[0], way=table.way)
        except av.error.FFmpegError as error:
            raise BadFrameError(number, f"{frame.format.name} cannot be converted ({error.strerror})") from error


class _Decoders(threading.local):
    """The contexts of a thread."""

    def __init__(self) -> None:
        self.groups, self.packets, self.pictures = GroupDecoder(), PacketDecoder(), Pictures()


def _parts(layout: Layout, fetched: FetchedClip) -> list[int]:
    numbers: list[int] = np.unique(layout.parts_of(fetched.clip.frames)).tolist()
    return numbers


def jpeg_frames(fetched: FetchedClip, size: tuple[int, int]) -> list[np.ndarray]:
    """Return the frames of a clip of layout jpeg, (height, width, 3) each; errors as `ClipDecoder.decode`."""
    pictures = []
    for number, jpeg in zip(fetched.clip.frames.tolist(), fetched.parts, strict=True):
        try:
            picture = np.array(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
        except Exception as error:  # damage takes many forms in PIL: OSError, ValueError, SyntaxError, struct.error
            raise BadFrameError(number, f"it does not decode ({one_line(error)})") from error
        if picture.shape[:2] != size:
            height, width = picture.shape[:2]
            raise BadFrameError(number, f"it is {height} x {width} pixels, the index says {size[0]} x {size[1]}")
        pictures.append(picture)
    return pictures
