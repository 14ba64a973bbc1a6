"""Batch requests ─► encoded parts, read ahead by threads, checked by crc32; damaged clips are replaced, not dropped.

source = ClipSource(corpus, requests, read_threads=16, prefetch=4)
source.next()      # ─► EncodedBatch, or None after the last request
"""

import concurrent.futures
import dataclasses
import logging
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from mae3d.io.random import Stream, philox
from mae3d.video.packets import PacketTable
from pipelines.reading.jpeg_header import HeaderError, scan_offset
from pipelines.reading.read_threads import ReadThreads
from pipelines.reading.shard_reader import DataError, ShardReader, ShardVanishedError, words_for
from pipelines.samples.corpus import Corpus
from pipelines.sampling.requests import BatchRequest, ClipRequest
from preprocess.dataset.index import Spans

logger = logging.getLogger(__name__)

STATUS_OK, STATUS_PADDED, STATUS_SUBSTITUTED = 0, 1, 2
MAX_SUBSTITUTES = 8
SLOW_S = 30.0  # between warnings while training waits for the storage
_TOUCH = Spans(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.int64), np.zeros(1, np.uint32))
MAX_HEADERS = 1024  # that are kept


@dataclass(frozen=True)
class DamagedFrame:
    """A frame that cannot be used, and why."""

    shard: str
    key: str
    name: str
    frame: int
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key} ({self.name}), frame {self.frame}: {self.reason}"


@dataclass(frozen=True)
class FetchedClip:
    """A clip with its bytes; `clip` is a substitute if the requested one is damaged."""

    clip: ClipRequest
    parts: list[
        np.ndarray
    ]  # uint8: (T,) JPEGs or PNGs; the groups that hold the frames, each once; or a table and its packets
    is_substitute: bool = False
    damage: tuple[DamagedFrame, ...] = ()  # of the requested clip, and of substitutes that failed as well


@dataclass(frozen=True)
class EncodedBatch:
    """A request with its bytes: `parts` of each of `clips`, whose rows may be substitutes."""

    request: BatchRequest
    clips: tuple[ClipRequest, ...]
    parts: tuple[list[np.ndarray], ...]  # of each clip, as `FetchedClip` has them
    substituted: tuple[bool, ...]  # one for each clip
    damage: tuple[DamagedFrame, ...] = ()

    @property
    def frames(self) -> list[np.ndarray]:
        """Return the T JPEGs of all clips, one behind the other; for batches of layout jpeg."""
        return [part for parts in self.parts for part in parts]


def encoded_batch(request: BatchRequest, fetched: list[FetchedClip]) -> EncodedBatch:
    """Join a request and the clips that were fetched for it, in its order."""
    return EncodedBatch(
        request=request,
        clips=tuple(each.clip for each in fetched),
        parts=tuple(each.parts for each in fetched),
        substituted=tuple(each.is_substitute for each in fetched),
        damage=tuple(damage for each in fetched for damage in each.damage),
    )


class ClipSource:
    """Reads requests ahead of their use, in order: the clips of the next `prefetch` batches, `read_threads` at once."""

    def __init__(
        self,
        corpus: Corpus,
        requests: Iterator[BatchRequest],
        *,
        read_threads: int,
        prefetch: int,
        read_gap: int = 0,
        retries: int = 5,
        spares: np.ndarray | None = None,
    ):
        """Start reading.

        Args:
            corpus: the opened shards.
            requests: what to fetch, in order.
            read_threads: clips that are read at once.
            prefetch: batches that are read ahead.
            read_gap: bytes between two frames up to which they are read together.
            retries: tries after a failed read.
            spares: rows that may stand in for a damaged one; None = all that can be read.
        """
        self._corpus, self._requests = corpus, requests
        self._spares = corpus.readable_rows if spares is None else spares
        self.reader = ShardReader(corpus, gap=read_gap, retries=retries)
        self._headers: dict[tuple[int, int], bytes] = {}  # the last sound one of each height and width
        self._threads = ReadThreads(read_threads)
        self._ahead: deque[tuple[BatchRequest, list[Future[FetchedClip]]]] = deque()
        for _ in range(prefetch):
            self._read_ahead()

    def next(self) -> EncodedBatch | None:
        """Return the next batch, or None after the last.

        Raises:
            DataError: the storage fails, or no undamaged substitute was found.
        """
        if not self._ahead:
            return None
        request, clips = self._ahead.popleft()
        self._read_ahead()
        return encoded_batch(request, [self._await(clip) for clip in clips])

    def fetch(
        self, requested: ClipRequest, judge: Callable[[FetchedClip], tuple[int, str] | None] | None = None
    ) -> FetchedClip:
        """Read a clip, or the first of its substitutes that is complete.

        Args:
            requested: the clip.
            judge: looks at a clip whose bytes are right, and gives the number of a bad frame and what is wrong with it.

        Raises:
            DataError: the storage fails, or neither the clip nor a substitute can be used.
        """
        damage: list[DamagedFrame] = []
        for attempt in range(MAX_SUBSTITUTES + 1):
            clip = substitute(self._corpus, requested, attempt, spares=self._spares) if attempt else requested
            parts, wrong = self._read(clip)
            if wrong is None and judge is not None:
                wrong = judge(FetchedClip(clip, parts))
            if wrong is None:
                return FetchedClip(clip, parts, attempt > 0, tuple(damage))
            damage.append(self._damage(clip.row, *wrong))
            logger.warning("%s; another sample takes its place", damage[-1])
        raise DataError(
            f"sample {words_for(self._corpus, requested.row)[0]} and its {MAX_SUBSTITUTES} substitutes are damaged:\n"
            + "\n".join(map(str, damage))
            + f"\n{self._corpus.repair}"
        )

    def close(self) -> None:
        """Stop the threads; batches read ahead are lost, which costs nothing: they are functions of their request."""
        self.reader.close()
        if not self._threads.close():
            logger.warning("reads that hang were left behind: %s", "; ".join(self.reader.underway()))

    def _read_ahead(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._ahead.append((request, [self._threads.submit(self.fetch, clip) for clip in request.clips]))

    def _await(self, clip: Future[FetchedClip]) -> FetchedClip:
        while True:
            try:
                return clip.result(timeout=SLOW_S)
            except concurrent.futures.TimeoutError:
                logger.warning("training waits for the storage: %s", "; ".join(self.reader.underway()))

    def _read(self, clip: ClipRequest) -> tuple[list[np.ndarray], tuple[int, str] | None]:
        """Return the clip's parts, or the number of a frame whose bytes are not those written, and the reason."""
        layout, row = self._corpus.layout(clip.row), clip.row
        # Strides and loops may take a frame twice, and frames share groups: each part is read once.
        spans = self._corpus.spans(row, clip.frames)
        first_frames = (spans.part * layout.group).tolist()
        try:
            parts = self.reader.read(row, spans)
        except ShardVanishedError:
            return [], (first_frames[0], "the shard has vanished")
        frame_size = (int(self._corpus.height[row]), int(self._corpus.width[row]))
        columns = (spans.size.tolist(), spans.crc32.tolist(), first_frames)
        for part, size, crc, frame in zip(parts, *columns, strict=True):
            if len(part) != size:
                return [], (frame, f"the shard ends after {len(part)} of its {size} bytes")
            if (crc_read := zlib.crc32(part.data)) != crc:
                return [], (frame, f"its crc32 is {crc_read:08x}, {crc:08x} was written")
            if layout.name == "jpeg":
                try:
                    self._check_header(part, frame_size)
                except HeaderError as error:
                    return [], (frame, str(error))
        if not layout.is_one_member:
            parts = [parts[i] for i in np.searchsorted(spans.part, clip.frames).tolist()]
        return self._read_packets(clip, parts) if layout.is_in_place else (parts, None)

    def _read_packets(
        self, clip: ClipRequest, parts: list[np.ndarray]
    ) -> tuple[list[np.ndarray], tuple[int, str] | None]:
        """Return the table of a sample that lies in a media file, and the packets of the clip behind it, as `_read`."""
        table = PacketTable.from_bytes(parts[0].data)
        needed = table.needed_at_all(clip.frames)
        packets, first = table.packets, int(clip.frames.min())
        order = np.argsort(packets.offset[needed], kind="stable")  # as they lie in the file
        number = needed[order]
        spans = Spans(number, packets.offset[number], packets.size[number].astype(np.int64), packets.crc32[number])
        try:
            # A video that its decoder opens is touched: a storage that fails is met here, where it is tried again.
            data = self.reader.read_media(clip.row, spans if len(needed) else _TOUCH)
        except ShardVanishedError:
            return [], (first, "the video has vanished")
        if not len(needed):
            return parts, None
        for packet, size, crc in zip(data, spans.size.tolist(), spans.crc32.tolist(), strict=True):
            if len(packet) != size:
                return [], (first, f"the video ends after {len(packet)} of the {size} bytes of a packet")
            if (crc_read := zlib.crc32(packet.data)) != crc:
                return [], (first, f"the crc32 of a packet of the video is {crc_read:08x}, {crc:08x} was indexed")
        return [*parts, *(data[at] for at in np.argsort(order).tolist())], None

    def _check_header(self, jpeg: np.ndarray, frame_size: tuple[int, int]) -> None:
        known = self._headers.get(frame_size)
        if known is not None and jpeg[: len(known)].tobytes() == known:
            return  # a dataset's frames of one size have one header, as a rule
        end = scan_offset(jpeg.data, height=frame_size[0], width=frame_size[1])
        if len(self._headers) >= MAX_HEADERS:
            self._headers.clear()
        self._headers[frame_size] = jpeg[:end].tobytes()

    def _damage(self, row: int, frame: int, reason: str) -> DamagedFrame:
        return DamagedFrame(self._corpus.file_name(row), *words_for(self._corpus, row), frame, reason)


@dataclass(frozen=True)
class InPlaceCost:
    """The cost of clips of samples that lie in media files, by their tables."""

    num_clips: int
    packets_a_frame: float  # decoded for each frame that is used; NaN if no clip's packets are known
    bytes_a_clip: float  # of these packets; NaN likewise
    num_opened: int  # clips whose video is opened for them, because its packets are not known


def cost_in_place(corpus: Corpus, clips: Iterable[ClipRequest]) -> InPlaceCost | None:
    """Look into the tables of some clips; None if no clip is of layout files.

    Raises:
        DataError: the storage fails.
    """
    reader = ShardReader(corpus, gap=0, retries=0)
    num_clips = num_opened = used = decoded = num_bytes = 0
    for clip in clips:
        if not corpus.layout(clip.row).is_in_place:
            continue
        table = PacketTable.from_bytes(reader.read(clip.row, corpus.spans(clip.row, clip.frames))[0].data)
        needed = table.needed_at_all(clip.frames)
        num_clips += 1
        num_opened += table.codec is None
        used += len(clip.frames) if len(needed) else 0
        decoded += len(needed)
        num_bytes += int(table.packets.size[needed].sum(dtype=np.int64))
    if not num_clips:
        return None
    ranged = num_clips - num_opened
    packets = decoded / used if used else math.nan
    return InPlaceCost(num_clips, packets, num_bytes / ranged if ranged else math.nan, num_opened)


def substitute(corpus: Corpus, clip: ClipRequest, attempt: int, *, spares: np.ndarray) -> ClipRequest:
    """Draw a sample for a damaged one, in the same window and relative crop: the same on every rank and rerun.

    It is drawn from all of them, for the neighbours of a sample in a lost shard are lost as well.
    """
    row = int(spares[philox(clip.row, Stream.SUBSTITUTE, epoch=attempt).integers(len(spares))])
    frames = np.minimum(clip.frames, corpus.num_frames[row] - 1)
    height_ratio = corpus.height[row] / corpus.height[clip.row]
    width_ratio = corpus.width[row] / corpus.width[clip.row]
    views = tuple(
        view._replace(
            crop=view.crop._replace(
                top=int(view.crop.top * height_ratio),
                left=int(view.crop.left * width_ratio),
                height=max(int(view.crop.height * height_ratio), 1),
                width=max(int(view.crop.width * width_ratio), 1),
            )
        )
        for view in clip.views
    )
    return dataclasses.replace(clip, row=row, frames=frames, views=views)
