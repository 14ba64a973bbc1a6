"""Requests ─► batches of clips on the device: read ahead, decoded, cropped.

stream = centre_clips(corpus, config, rows=rows, num_frames=16, size=224)
for batch in stream:                 # batch.clips is (B, R, T, H, W, C) uint8
    ...
"""

import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.augment import Crop
from pipelines.config import DataConfig
from pipelines.corpus import Corpus
from pipelines.dali import Decoder, dense_clips
from pipelines.source import STATUS_OK, STATUS_SUBSTITUTED, ClipSource, DataError, EncodedBatch
from pipelines.views import BatchRequest, centre_request


@dataclass(frozen=True)
class Batch:
    """B samples with R views each; every tensor belongs to torch."""

    clips: torch.Tensor  # (B, R, T, H, W, C) uint8 on the device
    labels: torch.Tensor  # (B,) int64, -1 unlabelled; several labels a sample: (B, classes) float32
    positions: torch.Tensor  # (B,) int64, positions in the epoch
    epoch: int
    status: torch.Tensor  # (B,) int8: 0 ok, 1 padding, 2 substituted
    rows: torch.Tensor  # (B,) int64, dataset rows that were decoded


class BufferPool:
    """Memory for batches on the CPU, used again once nobody holds the batch: fresh pages cost as much as the crop."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A uint8 tensor that is nobody else's; its contents are left over."""
        for i in range(len(self._arrays)):
            # torch holds the array as long as any tensor lives that shares its memory. What counts here is the list's
            # own reference and the argument of getrefcount.
            if self._arrays[i].shape == shape and sys.getrefcount(self._arrays[i]) == 2:
                return torch.from_numpy(self._arrays[i])
        self._arrays = [array for array in self._arrays if array.shape == shape]
        self._arrays.append(np.empty(shape, dtype=np.uint8))
        return torch.from_numpy(self._arrays[-1])


def cut_box(frames: torch.Tensor, crop: Crop) -> torch.Tensor:
    """(T, H, W, C) ─► the crop's box (T, h, w, C), without a copy."""
    return frames[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def resize(box: torch.Tensor, flip: bool, out: torch.Tensor) -> None:
    """Resizes the frames of a box (bilinear, antialiased: Pillow's filter), mirrored if asked.

    Args:
        box: (T, h, w, C) uint8.
        flip: mirror left and right.
        out: (T, size, size, C) uint8, receives the view.
    """
    channels_first = box.permute(0, 3, 1, 2)
    if flip:  # before the resize, which copies a box that lies scattered anyway; the filter is symmetric
        channels_first = channels_first.flip(-1)
    # What torch.nn.functional.interpolate calls, but into the batch's own memory.
    target = out.permute(0, 3, 1, 2)
    torch.ops.aten._upsample_bilinear2d_aa.out(channels_first, out.shape[1:3], False, None, None, out=target)


class ClipStream:
    """Requests ─► batches, finite or endless: reads, decodes, crops. `Loader` adds the training order and its state."""

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        requests: Iterator[BatchRequest],
        *,
        max_clips: int,
        num_frames: int,
        num_views: int,
        size: int,
        device: torch.device,
        local_world: int = 1,
    ):
        """Starts reading.

        Args:
            corpus: the opened shards.
            config: the settings.
            requests: what to fetch, in order.
            max_clips: most decoded clips in one request.
            num_frames: T.
            num_views: crops of each decoded clip.
            size: H and W of a view, in pixels.
            device: where clips are needed; on a CUDA device they are resized there.
            local_world: processes on this node, which share its cores.
        """
        self._corpus, self._num_frames, self._size, self._device = corpus, num_frames, size, device
        self._on_gpu = device.type == "cuda"
        self._source = ClipSource(corpus, requests, read_threads=config.read_threads, prefetch=config.prefetch)
        self._failure: DataError | None = None
        threads = config.decode_threads or _share_of_cores(local_world)
        self._decoder = Decoder(
            self._next_encoded,
            max_frames=max_clips * num_frames,
            decode="mixed" if self._on_gpu and config.decode != "cpu" else "cpu",
            resize="gpu" if self._on_gpu else None,
            num_views=num_views,
            size=size,
            threads=threads,
            device_id=device.index or 0 if self._on_gpu else None,
        )
        self._buffers = BufferPool()
        # torch's uint8 resize runs on the calling thread alone.
        self._croppers = None if self._on_gpu or threads == 1 else ThreadPoolExecutor(threads, "crop")
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()

    def __iter__(self) -> "ClipStream":
        return self

    def __next__(self) -> Batch:
        stream = torch.cuda.current_stream(self._device) if self._on_gpu else None
        try:
            encoded, outputs = self._decoder.run(stream)
        except RuntimeError as error:
            raise self._failure or DataError(
                f"DALI could not decode a batch: {error}. Every frame was decoded once when the shards were built, so "
                f"run `python -m preprocess verify {self._corpus} --full` and look at the machine's memory"
            ) from error
        clips = self._gpu_clips(encoded, outputs) if self._on_gpu else self._cpu_clips(encoded, outputs[0])
        return self._batch(encoded, clips)

    def close(self) -> None:
        """Stops the threads."""
        self._source.close()
        if self._croppers is not None:
            self._croppers.shutdown()

    def _next_encoded(self) -> EncodedBatch | None:
        try:
            return self._source.next()
        except DataError as error:
            # DALI turns an error in its source into a RuntimeError of its own; `__next__` raises this one instead.
            self._failure = error
            raise

    def _cpu_clips(self, encoded: EncodedBatch, frames: Any) -> torch.Tensor:
        """Cuts every clip's views with torch: its uint8 antialiased resize is 9x faster than DALI's on a CPU."""
        request = encoded.request
        shape = (len(request.positions), request.num_views, self._num_frames, self._size, self._size, 3)
        out = self._buffers.take(shape)
        decoded = dense_clips(frames, len(encoded.clips))
        boxes = [
            clip if self._decoder.gives_boxes else cut_box(clip, view.crop)
            for clip, asked in zip(decoded, encoded.clips, strict=True)
            for view in asked.views
        ]
        flips = [view.crop.flip for asked in encoded.clips for view in asked.views]
        run = map if self._croppers is None else self._croppers.map
        deque(run(resize, boxes, flips, out.flatten(0, 1)), maxlen=0)
        return out

    def _gpu_clips(self, encoded: EncodedBatch, outputs: tuple[Any, ...]) -> torch.Tensor:
        """Copies DALI's views into the batch; they are held until the copy has run on torch's stream."""
        out = self._empty(encoded)
        by_decoded_clip = out.view(len(encoded.clips), len(outputs), *out.shape[2:])
        for view, output in enumerate(outputs):
            frames = torch.from_dlpack(output.as_tensor())
            by_decoded_clip[:, view].copy_(frames.view(len(encoded.clips), *out.shape[2:]))
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self._device))
        self._held.append((copied, outputs))
        while self._held and self._held[0][0].query():
            self._held.popleft()
        return out

    def _empty(self, encoded: EncodedBatch) -> torch.Tensor:
        request = encoded.request
        shape = (len(request.positions), request.num_views, self._num_frames, self._size, self._size, 3)
        return torch.empty(shape, dtype=torch.uint8, device=self._device)

    def _batch(self, encoded: EncodedBatch, clips: torch.Tensor) -> Batch:
        request = encoded.request
        clips_a_sample = len(encoded.clips) // len(request.positions)
        rows = np.array([clip.row for clip in encoded.clips[::clips_a_sample]], dtype=np.int64)
        bad = np.array(encoded.substituted).reshape(-1, clips_a_sample).any(axis=1)
        return Batch(
            clips=clips,
            labels=labels_of(self._corpus, rows).to(self._device, non_blocking=True),
            positions=torch.from_numpy(request.positions),
            epoch=request.epoch,
            status=torch.from_numpy(np.where(bad, STATUS_SUBSTITUTED, STATUS_OK).astype(np.int8)),
            rows=torch.from_numpy(rows),
        )


def centre_clips(
    corpus: Corpus,
    config: DataConfig,
    *,
    rows: np.ndarray,
    num_frames: int,
    size: int,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> ClipStream:
    """Batches of the middle clip and centre crop of each row, in the rows' order; the last one may be smaller."""
    requests = (
        centre_request(corpus, config, rows=rows[i : i + batch_size], num_frames=num_frames)
        for i in range(0, len(rows), batch_size)
    )
    return ClipStream(
        corpus,
        config,
        requests,
        max_clips=batch_size,
        num_frames=num_frames,
        num_views=1,
        size=size,
        device=torch.device(device),
    )


def labels_of(corpus: Corpus, rows: np.ndarray) -> torch.Tensor:
    """Labels as `Batch` holds them: (B,) int64 with -1 for none; (B, classes) float32 if any sample has several."""
    labels = [corpus.labels_of(row) for row in rows.tolist()]
    if not corpus.has_several_labels:
        return torch.tensor([of_one[0] if of_one else -1 for of_one in labels], dtype=torch.int64)
    many_hot = torch.zeros(len(rows), corpus.num_classes)
    for i, of_one in enumerate(labels):
        many_hot[i, of_one] = 1
    return many_hot


def _share_of_cores(local_world: int) -> int:
    return max(1, min(8, len(os.sched_getaffinity(0)) // local_world))
