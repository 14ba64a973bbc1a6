"""Shards ─► batches of clips on the device: what a trainer iterates over.

loader = Loader(open_dataset("out/shards"), DataConfig(), num_frames=16, size=224, seed=0, global_batch=64)
for batch in loader:                 # endless; batch.clips is (B, R, T, H, W, C) uint8
    ...
    state = loader.state_dict()      # {"epoch": 2, "position": 4096, "fingerprint": {...}}
"""

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F

from pipelines.config import DataConfig
from pipelines.dali import Decoder, dense_clips
from pipelines.order import Order, micro_batch
from pipelines.source import STATUS_OK, STATUS_SUBSTITUTED, ClipSource, DataError, EncodedBatch
from pipelines.views import BatchRequest, centre_request, short_rows, training_request, usable_rows
from preprocess.index import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """B samples with R views each; every tensor belongs to torch."""

    clips: torch.Tensor  # (B, R, T, H, W, C) uint8 on the device
    labels: torch.Tensor  # (B,) int64, -1 unlabelled; several labels a sample: (B, classes) float32
    positions: torch.Tensor  # (B,) int64, positions in the epoch
    epoch: int
    status: torch.Tensor  # (B,) int8: 0 ok, 1 padding, 2 substituted
    rows: torch.Tensor  # (B,) int64, dataset rows that were decoded


class ClipStream:
    """Requests ─► batches, finite or endless: reads, decodes, crops. `Loader` adds the training order and its state."""

    def __init__(
        self,
        dataset: Dataset,
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
            dataset: the opened shards.
            config: the settings.
            requests: what to fetch, in order.
            max_clips: most decoded clips in one request.
            num_frames: T.
            num_views: crops of each decoded clip.
            size: H and W of a view, in pixels.
            device: where clips are needed; on a CUDA device they are resized there.
            local_world: processes on this node, which share its cores.
        """
        self._dataset, self._num_frames, self._size, self._device = dataset, num_frames, size, device
        self._on_gpu = device.type == "cuda"
        self._source = ClipSource(dataset, requests, read_threads=config.read_threads, prefetch=config.prefetch)
        self._failure: DataError | None = None
        self._decoder = Decoder(
            self._next_encoded,
            max_frames=max_clips * num_frames,
            decode="mixed" if self._on_gpu and config.decode != "cpu" else "cpu",
            resize="gpu" if self._on_gpu else None,
            num_views=num_views,
            size=size,
            threads=config.decode_threads or _share_of_cores(local_world),
            device_id=device.index or 0 if self._on_gpu else None,
        )
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
                f"run `python -m preprocess verify {self._dataset.root} --full` and look at the machine's memory"
            ) from error
        clips = self._gpu_clips(encoded, outputs) if self._on_gpu else self._cpu_clips(encoded, outputs[0])
        return self._batch(encoded, clips)

    def close(self) -> None:
        """Stops the reading threads."""
        self._source.close()

    def _next_encoded(self) -> EncodedBatch | None:
        try:
            return self._source.next()
        except DataError as error:
            # DALI turns an error in its source into a RuntimeError of its own; `__next__` raises this one instead.
            self._failure = error
            raise

    def _cpu_clips(self, encoded: EncodedBatch, frames: Any) -> torch.Tensor:
        """Crops every clip's views with torchvision: its uint8 antialiased resize is 9x faster than DALI's on a CPU."""
        out = self._empty(encoded).flatten(0, 1)
        view = 0
        for clip, decoded in zip(encoded.clips, dense_clips(frames, len(encoded.clips)), strict=True):
            channels_last = decoded.permute(0, 3, 1, 2)
            for crop in clip.crops:
                cut = F.resized_crop(channels_last, *crop[:4], size=[self._size] * 2, antialias=True)
                out[view] = (cut.flip(-1) if crop.flip else cut).permute(0, 2, 3, 1)
                view += 1
        return out.view(-1, encoded.request.num_views, *out.shape[1:])

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
            labels=labels_of(self._dataset, rows).to(self._device, non_blocking=True),
            positions=torch.from_numpy(request.positions),
            epoch=request.epoch,
            status=torch.from_numpy(np.where(bad, STATUS_SUBSTITUTED, STATUS_OK).astype(np.int8)),
            rows=torch.from_numpy(rows),
        )


class Loader:
    """Endless training batches under an exact global order; its state is a position, never a buffer."""

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        *,
        num_frames: int,
        size: int,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        local_world: int = 1,
        accumulation: int = 1,
        device: torch.device | str = "cpu",
    ):
        """Checks the settings against the dataset; reading starts with the first batch.

        Args:
            dataset: the opened shards.
            config: sampling and augmentation.
            num_frames: T, frames of a clip.
            size: H and W of a clip, in pixels.
            seed: of the order, the windows and the crops.
            global_batch: samples of one optimizer step, over all ranks.
            rank: of this process.
            world: processes.
            local_world: processes on this node.
            accumulation: micro-batches of one optimizer step.
            device: where clips are needed.

        Raises:
            ValueError: the batch does not divide, too few samples, or segments that do not make num_frames.
        """
        if config.sampling == "segments" and config.num_segments * config.frames_per_segment != num_frames:
            raise ValueError(
                f"data.num_segments={config.num_segments} x data.frames_per_segment={config.frames_per_segment} "
                f"must be model.num_frames={num_frames}"
            )
        self._dataset, self._config = dataset, config
        self._num_frames, self._size, self._device = num_frames, size, torch.device(device)
        self._rank, self._world, self._local_world, self._accumulation = (
            rank,
            world,
            local_world,
            accumulation,
        )
        self.micro_batch = micro_batch(global_batch, world=world, accumulation=accumulation)
        self._rows = usable_rows(dataset, config, num_frames=num_frames)
        self.num_short = int(short_rows(dataset, config, num_frames=num_frames).sum())
        self.order = Order(len(self._rows), global_batch, seed)
        self._start = (0, 0)  # epoch and step of the epoch at which reading starts
        self._delivered = 0  # micro-batches since then
        self._stream: ClipStream | None = None
        self.num_substituted = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.order.steps_per_epoch

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            shared = self._config.windows == "shared"
            self._stream = ClipStream(
                self._dataset,
                self._config,
                self._requests(),
                max_clips=self.micro_batch * (1 if shared else self._config.repeat_aug),
                num_frames=self._num_frames,
                num_views=self._config.repeat_aug if shared else 1,
                size=self._size,
                device=self._device,
                local_world=self._local_world,
            )
        batch = next(self._stream)
        self._delivered += 1
        self._count_substituted(batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next optimizer step starts: micro-batches of an unfinished step do not count."""
        epoch, step = self._start
        step += self._delivered // self._accumulation
        epoch, step = epoch + step // self.steps_per_epoch, step % self.steps_per_epoch
        return {"epoch": epoch, "position": step * self.order.global_batch, "fingerprint": self.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state, at any world size.

        Raises:
            ValueError: the dataset or a setting differs; the message names each with both values.
        """
        ours, theirs = self.fingerprint(), state["fingerprint"]
        changed = [
            f"{name}: was {theirs.get(name)!r}, is {ours.get(name)!r}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if changed:
            raise ValueError(
                "the order of the samples cannot go on, for it depends on what has changed: "
                + "; ".join(changed)
                + ". Restore these settings, or start a new run"
            )
        self.close()
        self._start = (state["epoch"], state["position"] // self.order.global_batch)
        self._delivered = 0

    def fingerprint(self) -> dict[str, Any]:
        """Everything on which the sequence of (sample, frames, crop, flip) depends."""
        settings = dataclasses.asdict(self._config)
        for not_the_order in ("shards", "decode", "read_threads", "decode_threads", "prefetch", "max_bad"):
            del settings[not_the_order]
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        order = self.order
        return {
            "dataset": self._dataset.fingerprint,
            "num_frames": self._num_frames,
            "size": self._size,
            "seed": order.seed,
            "global_batch": order.global_batch,
            **settings,
        }

    def close(self) -> None:
        """Stops reading."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _requests(self) -> Iterator[BatchRequest]:
        epoch, step = self._start
        while True:
            slots = self.order.slots(epoch_step=step, rank=self._rank, world=self._world)
            for positions in slots.reshape(self._accumulation, self.micro_batch):
                yield training_request(
                    self._dataset,
                    self._config,
                    rows=self._rows[self.order.samples(positions, epoch=epoch)],
                    positions=positions,
                    epoch=epoch,
                    seed=self.order.seed,
                    num_frames=self._num_frames,
                )
            epoch, step = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)

    def _count_substituted(self, batch: Batch) -> None:
        self.num_substituted += int((batch.status == STATUS_SUBSTITUTED).sum())
        if self.num_substituted > self._config.max_bad:
            raise DataError(
                f"{self.num_substituted} damaged samples were substituted, data.max_bad is {self._config.max_bad}: "
                f"run `python -m preprocess verify {self._dataset.root} --full` and build the shards it names again"
            )


def centre_clips(
    dataset: Dataset,
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
        centre_request(dataset, config, rows=rows[i : i + batch_size], num_frames=num_frames)
        for i in range(0, len(rows), batch_size)
    )
    return ClipStream(
        dataset,
        config,
        requests,
        max_clips=batch_size,
        num_frames=num_frames,
        num_views=1,
        size=size,
        device=torch.device(device),
    )


def labels_of(dataset: Dataset, rows: np.ndarray) -> torch.Tensor:
    """Labels as `Batch` holds them: (B,) int64 with -1 for none; (B, classes) float32 if any sample has several."""
    counts = np.diff(dataset.label_offsets)
    if not len(counts) or counts.max() <= 1:
        labels = np.full(len(rows), -1, dtype=np.int64)
        labelled = counts[rows] > 0
        labels[labelled] = dataset.label_values[dataset.label_offsets[rows[labelled]]]
        return torch.from_numpy(labels)
    many_hot = torch.zeros(len(rows), int(dataset.label_values.max()) + 1)
    for i, row in enumerate(rows.tolist()):
        many_hot[i, dataset.labels_of(row)] = 1
    return many_hot


def _share_of_cores(local_world: int) -> int:
    return max(1, min(8, len(os.sched_getaffinity(0)) // local_world))
