"""Shards ─► batches of clips on the device: what a trainer iterates over.

loader = Loader.open("out/shards", num_frames=16, size=224, global_batch=64)
for batch in loader:                 # endless; batch.clips is (B, R, T, H, W, C) uint8
    ...
    state = loader.state_dict()      # {"epoch": 2, "position": 4096, "fingerprint": {...}}
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from mae3d.io.hooks import load
from mae3d.io.shapes import Size
from pipelines.config import DataConfig
from pipelines.decoding.channels import check_channels
from pipelines.fingerprint import fingerprint, has_grown
from pipelines.reading.prefetch import Prefetcher, check_cache, nodes_positions, steps_read_at_once
from pipelines.reading.shard_reader import DataError
from pipelines.reading.source import DamagedFrame
from pipelines.samples.corpus import Corpus, corpus_of
from pipelines.samples.selection import select_rows
from pipelines.sampling.order import Order, ShardOrder, epoch_shares, micro_batch
from pipelines.sampling.requests import BatchRequest, check_views, short_rows, training_request, usable_rows
from pipelines.stream import Batch, ClipStream

logger = logging.getLogger(__name__)

_LISTED = 30  # damaged frames that an error names; the log has them all


class Loader:
    """Endless training batches under an exact global order; its state is a position, never a buffer.

    A loop that counts in epochs takes `len(loader)` batches of it at a time; the end of a `with` block closes it.
    """

    @classmethod
    def open(
        cls,
        shards: str | Path | Sequence[str | Path],
        *,
        num_frames: int,
        size: Size,
        global_batch: int,
        channels: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        local_world: int = 1,
        accumulation: int = 1,
        device: torch.device | str = "cpu",
        **settings: Any,
    ) -> "Loader":
        """Open datasets and return their loader.

        Args:
            shards: the folder or URL of a dataset, or of several.
            num_frames: T, frames of a clip.
            size: side of a square clip, or its height and width, in pixels.
            global_batch: samples of one optimizer step, over all ranks.
            channels: C, of a frame; None = as stored.
            seed: of the order, the windows and the crops.
            rank: of this process.
            world: processes.
            local_world: processes on this node.
            accumulation: micro-batches of one optimizer step.
            device: where clips are needed.
            settings: the fields of `DataConfig`, such as sampling_rate=2 or repeat_aug=1.

        Raises:
            ValueError: a setting that does not exist or cannot be, a folder that is no dataset, or as `Loader`.
        """
        known = sorted(field.name for field in fields(DataConfig) if field.name != "shards")
        if unknown := sorted(settings.keys() - set(known)):
            raise ValueError(f"Loader.open: no setting {', '.join(unknown)}; there are {', '.join(known)}")
        roots = [shards] if isinstance(shards, str | Path) else shards
        config = DataConfig(shards=tuple(map(str, roots)), **settings)
        if not config.roots:
            raise ValueError("Loader.open: no dataset; give the --out folder of `preprocess build`, or its URL")
        return cls(
            corpus_of(config),
            config,
            num_frames=num_frames,
            size=size,
            seed=seed,
            global_batch=global_batch,
            rank=rank,
            world=world,
            local_world=local_world,
            accumulation=accumulation,
            channels=channels,
            device=device,
        )

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        *,
        num_frames: int,
        size: Size,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        local_world: int = 1,
        accumulation: int = 1,
        channels: int | None = None,
        device: torch.device | str = "cpu",
    ):
        """Check the settings against the dataset; reading starts with the first batch.

        Args:
            corpus: the opened shards.
            config: sampling and augmentation.
            num_frames: T, frames of a clip.
            size: of a clip's frames, in pixels: a square's side, or (height, width).
            seed: of the order, the windows and the crops.
            global_batch: samples of one optimizer step, over all ranks.
            rank: of this process.
            world: processes.
            local_world: processes on this node.
            accumulation: micro-batches of one optimizer step.
            channels: C, of a frame; None = as stored.
            device: where clips are needed.

        Raises:
            ValueError: the batch does not divide, too few samples, segments that do not make num_frames, channels
                that the datasets do not have, or a hook that cannot be used.
        """
        check_views(config, num_frames=num_frames, size=size)
        for text in config.augment:
            load(text, "augmentations")
        self._channels = check_channels(corpus, channels, config)
        self._corpus, self._config = corpus, config
        self._num_frames, self._size, self._device = num_frames, size, torch.device(device)
        self._rank, self._world, self._local_world = rank, world, local_world
        self._accumulation = accumulation
        self.micro_batch = micro_batch(global_batch, world=world, accumulation=accumulation)
        usable = usable_rows(corpus, config, num_frames=num_frames)
        self.rows = select_rows(corpus, config.select, rows=usable)  # (n,) the samples that take part
        self.num_short = int(short_rows(corpus, config, num_frames=num_frames).sum())
        self.order = _make_order(corpus, config, self.rows, global_batch=global_batch, seed=seed)
        self._fingerprint = fingerprint(
            corpus, config, self.order, self.rows, num_frames=num_frames, size=size, channels=self._channels
        )
        self._steps_at_once = steps_read_at_once(prefetch=config.prefetch, accumulation=accumulation)
        check_cache(corpus, self.order, world=world, local_world=local_world, steps=self._steps_at_once)
        if rank == 0:
            for bad in corpus.left_out:
                logger.warning("left out: %s", bad)
        self._prefetcher: Prefetcher | None = None
        self._start = (0, 0)  # epoch and step of the epoch at which reading starts
        self._delivered = 0  # micro-batches since then
        self._stream: ClipStream | None = None
        self._past_counts: Counter[str] = Counter()  # of streams that are closed
        self._past_damage: dict[DamagedFrame, None] = {}

    @property
    def corpus(self) -> Corpus:
        """The opened datasets: names, label names, sizes."""
        return self._corpus

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.order.steps_per_epoch

    @property
    def num_samples(self) -> int:
        """Samples that take part, of which an epoch takes what data.weights and the global batch leave."""
        return len(self.rows)

    @property
    def epoch(self) -> float:
        """Passes over the data that the delivered optimizer steps make."""
        epoch, step = self._place()
        return (epoch * self.steps_per_epoch + step) / self.steps_per_epoch

    def __len__(self) -> int:
        """Return the batches of this rank in one epoch; iteration does not end there, but goes on with the next."""
        return self.steps_per_epoch * self._accumulation

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            if self._corpus.cache is not None:
                node = nodes_positions(self.order, rank=self._rank, world=self._world, local_world=self._local_world)
                self._prefetcher = Prefetcher(
                    self._corpus, self.order, node, steps=self._steps_at_once, start=self._start
                )
            shared = self._config.windows == "shared"
            self._stream = ClipStream(
                self._corpus,
                self._config,
                self.requests(),
                max_clips=self.micro_batch * (1 if shared else self._config.repeat_aug),
                num_frames=self._num_frames,
                num_views=self._config.repeat_aug if shared else 1,
                size=self._size,
                channels=self._channels,
                device=self._device,
                local_world=self._local_world,
                spares=self.rows,
            )
        batch = next(self._stream)
        self._delivered += 1
        self.judge(self.counts())
        return batch

    def counts(self) -> dict[str, int]:
        """Return the counts of faults up to the batches delivered so far, on this rank: for the log and for `judge`."""
        now = self._stream.counts() if self._stream else ClipStream.no_counts()
        return {name: count + self._past_counts[name] for name, count in now.items()}

    def judge(self, counts: Mapping[str, int]) -> None:
        """Stop a run that substitutes too many samples.

        Every batch is judged by this process's own counts; a loop that adds them up over all processes, and over the
        parts of a resumed run, judges the sums again.

        Raises:
            DataError: more than `data.max_bad` samples were substituted; lists those that this process found.
        """
        if counts["substituted"] <= self._config.max_bad:
            return
        damage = list(self._past_damage | (self._stream.damage if self._stream else {}))
        lines = [f"  {frame}" for frame in damage[:_LISTED]] + [f"  and {len(damage) - _LISTED} more"] * (
            len(damage) > _LISTED
        )
        raise DataError(
            f"{counts['substituted']} damaged samples were substituted, data.max_bad is {self._config.max_bad}; "
            + (f"rank {self._rank} found:\n" + "\n".join(lines) if lines else "other ranks list them")
            + f"\n{self._corpus.repair}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next optimizer step; micro-batches of an unfinished step do not count."""
        epoch, step = self._place()
        return {"epoch": epoch, "position": step * self.order.global_batch, "fingerprint": self._fingerprint}

    def check_state(self, state: dict[str, Any]) -> bool:
        """Return whether going on from a state begins a new epoch, because the dataset has grown; nothing is changed.

        Raises:
            ValueError: as `load_state_dict`.
        """
        return has_grown(
            state["fingerprint"],
            self._fingerprint,
            datasets=self._corpus.datasets,
            on_change=self._config.on_change,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, at any world size.

        With `data.on_change=new-epoch` also over a dataset that has grown.

        Raises:
            ValueError: the dataset or a setting differs; the message names each with both values.
        """
        grown, position = self.check_state(state), state["position"]
        self.close()
        self._start = (state["epoch"], position // self.order.global_batch)
        self._delivered = 0
        if grown:
            self._start = (state["epoch"] + (position > 0), 0)
            if self._rank == 0:
                logger.info(
                    "%s has grown: from epoch %d on there are %d samples to choose from, %d steps an epoch; the rest "
                    "of epoch %d is left out",
                    self._corpus, self._start[0], len(self.rows), self.steps_per_epoch, state["epoch"],
                )  # fmt: skip

    def close(self) -> None:
        """Stop reading; a batch that is requested later is the next one all the same."""
        self._start, self._delivered = self._place(), 0
        if self._stream is not None:
            self._stream.close()
            self._past_counts.update(self._stream.counts())
            self._past_damage.update(self._stream.damage)
            self._stream = None
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _place(self) -> tuple[int, int]:
        """Return the epoch and the step of it that come next."""
        epoch, step = self._start
        step += self._delivered // self._accumulation
        return epoch + step // self.steps_per_epoch, step % self.steps_per_epoch

    def requests(self) -> Iterator[BatchRequest]:
        """Yield this rank's requests from its position in the epoch on, without end; nothing is read yet."""
        epoch, step = self._start
        while True:
            if self._prefetcher is not None:
                self._prefetcher.advance(epoch=epoch, step=step)
            slots = self.order.slots(epoch_step=step, rank=self._rank, world=self._world)
            for positions in slots.reshape(self._accumulation, self.micro_batch):
                yield training_request(
                    self._corpus,
                    self._config,
                    rows=self.rows[self.order.samples(positions, epoch=epoch)],
                    positions=positions,
                    epoch=epoch,
                    seed=self.order.seed,
                    num_frames=self._num_frames,
                    size=self._size,
                )
            epoch, step = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)


def _make_order(corpus: Corpus, config: DataConfig, rows: np.ndarray, *, global_batch: int, seed: int) -> Order:
    sizes = np.diff(np.searchsorted(rows, corpus.row_starts)).tolist()
    shares = list(zip(sizes, epoch_shares(sizes, config.weights), strict=True))
    kind = config.order if config.order != "auto" else "shards" if config.has_urls else "global"
    shard = corpus.shard[rows]
    if kind == "global":
        return Order(shard, global_batch=global_batch, seed=seed, shares=shares)
    return ShardOrder(shard, global_batch=global_batch, seed=seed, shares=shares, mix_shards=config.mix_shards)
