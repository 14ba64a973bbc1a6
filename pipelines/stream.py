"""Requests ─► batches of clips on the device: read ahead, decoded, cropped, augmented.

stream = evaluation_clips(corpus, config, rows=rows, num_frames=16, size=224, num_clips=5, num_crops=3)
for batch in stream:                 # batch.clips is (B, R, T, H, W, C) uint8
    ...
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from mae3d.io.console import one_line
from mae3d.io.hooks import HookError
from mae3d.io.shapes import Size
from pipelines.config import DataConfig
from pipelines.decoding.channels import check_channels
from pipelines.decoding.clip_decoder import ClipDecoder
from pipelines.decoding.clips import CpuDecoding, Decoding, GpuDecoding, ThreadDecoding, cut_views
from pipelines.decoding.crops import Cropper
from pipelines.decoding.dali import DaliDecoder, Graph, JpegGraph, VideoGraph
from pipelines.decoding.fallback import decode_again
from pipelines.decoding.packing import clip_in_ivf
from pipelines.decoding.transforms import apply_views
from pipelines.reading.shard_reader import DataError, read_gap
from pipelines.reading.source import (
    STATUS_OK,
    STATUS_PADDED,
    STATUS_SUBSTITUTED,
    ClipSource,
    DamagedFrame,
    EncodedBatch,
)
from pipelines.samples.corpus import Corpus
from pipelines.samples.labels import many_hot
from pipelines.sampling.requests import BatchRequest, evaluation_batches, evaluation_request

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # in a row, of a pipeline that fails though every frame decodes


@dataclass(frozen=True)
class Batch:
    """B samples with R views each; every tensor belongs to torch.

    Labels, status and rows are those of what was decoded for a view: of a sample's own windows one may be damaged, and
    another sample takes the place of that view alone.
    """

    clips: torch.Tensor  # (B, R, T, H, W, C) uint8, or uint16 of frames of 16 bits, on the device
    labels: torch.Tensor  # (B, R) int64, -1 unlabelled; several labels a sample: (B, R, classes) float32
    positions: torch.Tensor  # (B,) int64, positions in the epoch
    epoch: int
    status: torch.Tensor  # (B, R) int8: 0 ok, 1 padding, 2 substituted
    rows: torch.Tensor  # (B, R) int64, dataset rows that were decoded

    @property
    def is_whole(self) -> torch.Tensor:
        """Return (B,) bool: all views are of the requested sample, which is no padding."""
        return (self.status == STATUS_OK).all(dim=1)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with its clips and labels on another device; those of a loader are on its device already."""
        return replace(self, clips=self.clips.to(device), labels=self.labels.to(device))


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
        size: Size,
        device: torch.device,
        channels: int | None = None,
        local_world: int = 1,
        spares: np.ndarray | None = None,
    ):
        """Start reading.

        Args:
            corpus: the opened shards.
            config: the settings.
            requests: what to fetch, in order.
            max_clips: most decoded clips in one request.
            num_frames: T.
            num_views: crops of each decoded clip.
            size: of a view, in pixels.
            device: where clips are needed; on a CUDA device they are resized there.
            channels: C, of a frame; None = as stored.
            local_world: processes on this node, which share its cores.
            spares: rows that may stand in for damaged ones; None = all that can be read.

        Raises:
            ValueError: the datasets cannot give so many channels.
        """
        channels = check_channels(corpus, channels)
        self._corpus, self._device = corpus, device
        self._source = ClipSource(
            corpus,
            requests,
            read_threads=config.read_threads,
            prefetch=config.prefetch,
            read_gap=read_gap(config),
            retries=config.retries,
            spares=spares,
        )
        self._failure: Exception | None = None
        threads = config.decode_threads or _share_of_cores(local_world)
        self._cropper = Cropper(size=size, threads=threads)
        self._clip_decoder = ClipDecoder(corpus, channels)
        self._decoding = self._decoding_of(
            config,
            max_clips=max_clips,
            num_frames=num_frames,
            num_views=num_views,
            size=size,
            channels=channels,
            threads=threads,
        )
        self.damage: dict[DamagedFrame, None] = {}  # of the batches delivered so far, each once
        self._num_substituted = self._num_restarts = 0
        self._restarts_in_a_row = 0

    def _decoding_of(
        self,
        config: DataConfig,
        *,
        max_clips: int,
        num_frames: int,
        num_views: int,
        size: Size,
        channels: int,
        threads: int,
    ) -> Decoding:
        device, layouts = self._device, self._corpus.layouts
        on_gpu = device.type == "cuda"
        # `auto` is resolved by the launcher: a decoder that can crash runs here only after a try in a child.
        mixed = on_gpu and config.decode == "mixed"
        if layouts == {"jpeg"}:
            boxes = not on_gpu and num_views == 1  # pixels outside of the only view are not decoded
            jpegs = JpegGraph(
                max_frames=max_clips * num_frames,
                decode="mixed" if mixed else "cpu",
                resize="gpu" if on_gpu else None,
                num_views=num_views,
                size=size,
                channels=channels,
                boxes=boxes,
            )
            decoder = self._decoder_of(jpegs, threads)
            return GpuDecoding(decoder, device) if on_gpu else CpuDecoding(decoder, self._cropper, boxed=boxes)
        if layouts == {"video"} and mixed:
            pack = partial(clip_in_ivf, self._corpus)
            videos = VideoGraph(
                max_clips=max_clips, decode="mixed", num_views=num_views, size=size, pack=pack, channels=channels
            )
            return GpuDecoding(self._decoder_of(videos, threads), device)
        return ThreadDecoding(
            self._clip_decoder, self._source, self._next_encoded, self._cropper, device, size=size, threads=threads
        )

    def _decoder_of(self, graph: Graph, threads: int) -> DaliDecoder:
        device = self._device
        device_id = None
        if device.type == "cuda":
            device_id = torch.cuda.current_device() if device.index is None else device.index
        return DaliDecoder(self._next_encoded, graph, threads=threads, device_id=device_id)

    def __iter__(self) -> "ClipStream":
        return self

    def __next__(self) -> Batch:
        try:
            encoded, outputs = self._decoding.run()
        except (DataError, HookError):
            raise
        except RuntimeError as error:
            if self._failure is not None:
                raise self._failure from error
            return self._rescue(error)
        self._restarts_in_a_row = 0
        return self._batch(encoded, self._decoding.clips(encoded, outputs))

    def counts(self) -> dict[str, int]:
        """Return the counts of faults so far: samples substituted, reads tried again, pipelines restarted."""
        return {
            "substituted": self._num_substituted,
            "read_retries": self._source.reader.num_retries,
            "decode_errors": self._num_restarts,
        }

    @staticmethod
    def no_counts() -> dict[str, int]:
        """Return `counts` as before the first batch."""
        return {"substituted": 0, "read_retries": 0, "decode_errors": 0}

    def close(self) -> None:
        """Stop the reading threads; release DALI's memory."""
        self._source.close()
        self._decoding.close()
        self._cropper.close()

    def _rescue(self, error: RuntimeError) -> Batch:
        """Decode the batch that DALI failed on without it, and build a new pipeline for the next; no rank waits."""
        self._num_restarts += 1
        logger.warning("DALI failed (%s): the batch is decoded again without it", one_line(error))
        try:
            encoded = self._decoding.restart()
        except RuntimeError as again:
            raise DataError(
                f"DALI failed ({one_line(error)}) and cannot be started again ({one_line(again)}): {_LOOK_AT}"
            ) from again
        failed = 0
        if encoded is not None:
            encoded, decoded, failed = decode_again(self._clip_decoder, self._source, encoded)
        self._restarts_in_a_row = 0 if failed else self._restarts_in_a_row + 1
        if self._restarts_in_a_row > MAX_RESTARTS:
            raise DataError(
                f"DALI failed {self._restarts_in_a_row} times in a row though every frame decodes without it; the last "
                f"time: {one_line(error)}. {_LOOK_AT}"
            ) from error
        if encoded is None:
            return next(self)
        return self._batch(encoded, cut_views(self._cropper, encoded, decoded).to(self._device))

    def _next_encoded(self) -> EncodedBatch | None:
        try:
            return self._source.next()
        except (DataError, HookError, ValueError) as error:  # the latter two of the user's sampler
            # DALI turns an error in its source into a RuntimeError of its own; `__next__` raises this one instead.
            self._failure = error
            raise

    def _batch(self, encoded: EncodedBatch, clips: torch.Tensor) -> Batch:
        request = encoded.request
        count = len(request.positions)
        views_a_clip = count * request.num_views // len(encoded.clips)
        rows = np.array([clip.row for clip in encoded.clips], dtype=np.int64).repeat(views_a_clip).reshape(count, -1)
        bad = np.array(encoded.substituted).repeat(views_a_clip).reshape(count, -1)
        self._num_substituted += int(bad.any(axis=1).sum())  # samples
        self.damage.update(dict.fromkeys(encoded.damage))
        apply_views(clips.flatten(0, 1), [view for clip in encoded.clips for view in clip.views])
        status = np.where(bad, STATUS_SUBSTITUTED, STATUS_OK).astype(np.int8)
        status[len(status) - request.num_padded :] = STATUS_PADDED
        return Batch(
            clips=clips,
            labels=labels_of(self._corpus, rows).to(self._device, non_blocking=True),
            positions=torch.from_numpy(request.positions),
            epoch=request.epoch,
            status=torch.from_numpy(status),
            rows=torch.from_numpy(rows),
        )


_LOOK_AT = "Look at the machine's memory, nvidia-smi and dmesg; --data.decode cpu leaves the GPU's decoder alone"


def evaluation_clips(
    corpus: Corpus,
    config: DataConfig,
    *,
    rows: np.ndarray,
    num_frames: int,
    size: Size,
    channels: int | None = None,
    num_clips: int = 1,
    num_crops: int = 1,
    starts: np.ndarray | None = None,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    local_world: int = 1,
    device: torch.device | str = "cpu",
) -> ClipStream:
    """Return a stream of this rank's batches of K clips x S crops of each row, all at fixed positions, once.

    All ranks get as many batches, of the same sizes; what fills them up has status 1. Positions count through `rows`.

    Args:
        corpus: the opened shards.
        config: how clips are sampled and read; its augmentation has no effect.
        rows: (N,) what to evaluate.
        num_frames: T.
        size: of a view, in pixels.
        channels: C, of a frame; None = as stored.
        num_clips: K, of each sample.
        num_crops: S, of each clip; view k * S + s of a sample is crop s of clip k.
        starts: (N,) stored frames at which the one clip of each row begins instead (`views.windows_every`); K is 1.
        batch_size: samples in a batch; fewer in the last one.
        rank: of this process.
        world: processes that share the rows.
        local_world: processes on this node, which share its cores.
        device: where clips are needed.
    """
    requests = (
        evaluation_request(
            corpus,
            config,
            rows=rows[positions],
            positions=positions,
            num_frames=num_frames,
            num_clips=num_clips,
            num_crops=num_crops,
            size=size,
            starts=None if starts is None else starts[positions],
            num_padded=num_padded,
        )
        for positions, num_padded in evaluation_batches(len(rows), batch_size=batch_size, rank=rank, world=world)
    )
    return ClipStream(
        corpus,
        config,
        requests,
        max_clips=batch_size * num_clips,
        num_frames=num_frames,
        num_views=num_crops,
        size=size,
        channels=channels,
        device=torch.device(device),
        local_world=local_world,
    )


def labels_of(corpus: Corpus, rows: np.ndarray) -> torch.Tensor:
    """Return labels in the shape of the rows as `Batch` holds them: int64 with -1 for none.

    With a last axis of classes, float32, if any sample has several.
    """
    labels = [corpus.labels_of(row) for row in rows.ravel().tolist()]
    if not corpus.has_multiple_labels:
        numbers = np.array([of_one[0] if of_one else -1 for of_one in labels], dtype=np.int64)
        return torch.from_numpy(numbers.reshape(rows.shape))
    return torch.from_numpy(many_hot(labels, corpus.num_classes, dtype=np.float32).reshape(*rows.shape, -1))


def _share_of_cores(local_world: int) -> int:
    return max(1, min(8, len(os.sched_getaffinity(0)) // local_world))
