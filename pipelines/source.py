"""Batch requests ─► encoded frames, read ahead by threads, checked by crc32; damaged clips are replaced, not dropped.

source = ClipSource(corpus, requests, read_threads=8, prefetch=4)
source.next()      # ─► EncodedBatch, or None after the last request
"""

import dataclasses
import logging
import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipelines.corpus import Corpus
from pipelines.views import BatchRequest, ClipRequest

logger = logging.getLogger(__name__)

STATUS_OK, STATUS_PADDED, STATUS_SUBSTITUTED = 0, 1, 2
MAX_SUBSTITUTES = 8


class DataError(RuntimeError):
    """Shards cannot be read, or too much of them is damaged; the message names the shard and the samples."""


@dataclass(frozen=True)
class EncodedBatch:
    """A request with its bytes: `frames` holds T JPEGs for each of `clips`, whose rows may be substitutes."""

    request: BatchRequest
    clips: tuple[ClipRequest, ...]
    frames: list[np.ndarray]  # uint8, one JPEG each
    substituted: tuple[bool, ...]  # one for each clip


class ClipSource:
    """Reads requests ahead of their use, in order: one thread a batch in flight, `read_threads` readers below them."""

    def __init__(self, corpus: Corpus, requests: Iterator[BatchRequest], *, read_threads: int, prefetch: int):
        self._corpus = corpus
        self._requests = requests
        self._readers = ThreadPoolExecutor(read_threads, thread_name_prefix="read-clip")
        self._batches = ThreadPoolExecutor(prefetch, thread_name_prefix="read-batch")
        self._ahead: deque[Future[EncodedBatch]] = deque()
        for _ in range(prefetch):
            self._read_ahead()

    def next(self) -> EncodedBatch | None:
        """The next batch, or None after the last.

        Raises:
            DataError: a shard cannot be read, or no undamaged substitute was found.
        """
        if not self._ahead:
            return None
        batch = self._ahead.popleft().result()
        self._read_ahead()
        return batch

    def close(self) -> None:
        """Stops the threads; batches read ahead are lost, which costs nothing: they are functions of their request."""
        for pool in (self._batches, self._readers):
            pool.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._ahead.append(self._batches.submit(self._read_batch, request))

    def _read_batch(self, request: BatchRequest) -> EncodedBatch:
        clips, frames, substituted = [], [], []
        for asked, (clip, jpegs) in zip(
            request.clips, self._readers.map(self._read_or_substitute, request.clips), strict=True
        ):
            clips.append(clip)
            frames.extend(jpegs)
            substituted.append(clip.row != asked.row)
        return EncodedBatch(request, tuple(clips), frames, tuple(substituted))

    def _read_or_substitute(self, clip: ClipRequest) -> tuple[ClipRequest, list[np.ndarray]]:
        for attempt in range(MAX_SUBSTITUTES + 1):
            candidate = clip if attempt == 0 else _substitute(self._corpus, clip, attempt)
            jpegs = self._read_clip(candidate)
            if jpegs is not None:
                return candidate, jpegs
        raise DataError(
            f"sample {self._corpus.key(clip.row)} and the {MAX_SUBSTITUTES} after it are damaged: "
            f"run `python -m preprocess verify {self._corpus} --full` and build the shards it names again"
        )

    def _read_clip(self, clip: ClipRequest) -> list[np.ndarray] | None:
        """The clip's JPEGs; None where a frame's bytes are not those that were written."""
        # Strides and loops may take a frame twice: it is read once.
        wanted, again = np.unique(clip.frames, return_inverse=True)
        spans = self._corpus.frames(clip.row, wanted)
        number = int(self._corpus.shard[clip.row])
        path = self._corpus.shard_path(number)
        jpegs = []
        try:
            shard = self._corpus.open_shard(number)
            try:
                where_written = zip(spans.offset.tolist(), spans.size.tolist(), spans.crc32.tolist(), strict=True)
                for frame, (offset, size, crc) in enumerate(where_written):
                    data = os.pread(shard, size, offset)
                    if len(data) != size or zlib.crc32(data) != crc:
                        logger.warning(
                            "%s: frame %d of sample %s (%s) is damaged: %d of %d bytes, crc32 %08x, written %08x",
                            path, wanted[frame], self._corpus.key(clip.row), self._corpus.name(clip.row),
                            len(data), size, zlib.crc32(data), crc,
                        )  # fmt: skip
                        return None
                    jpegs.append(np.frombuffer(data, dtype=np.uint8))
            finally:
                os.close(shard)
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror} (sample {self._corpus.key(clip.row)}); is the storage still mounted?"
            ) from error
        return [jpegs[i] for i in again.tolist()]


def _substitute(corpus: Corpus, clip: ClipRequest, attempt: int) -> ClipRequest:
    """The sample `attempt` rows further on, in the same relative window and crop: the same on every rank and rerun."""
    row = (clip.row + attempt) % len(corpus)
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
