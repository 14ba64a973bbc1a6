"""A classifier in training, and held-out samples ─► scores, the same on every process.

validator = Validator(config, own, corpus, world, steps_per_epoch=loader.steps_per_epoch)
fit(..., validation=validator.of(engine))
"""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from launch.clips import clips_config
from mae3d.config import ClassifierConfig
from pipelines.config import DataConfig

if TYPE_CHECKING:
    from launch.finetune import FinetuneConfig, ValConfig
    from mae3d.distributed import World
    from mae3d.engine import Engine
    from mae3d.fit import Validation
    from pipelines.corpus import Corpus


class Validator:
    """The validation samples, opened and checked before any training."""

    def __init__(
        self,
        config: "FinetuneConfig",
        own: ClassifierConfig,
        train: "Corpus",
        train_rows: np.ndarray,
        world: "World",
        *,
        steps_per_epoch: int,
    ):
        """Opens the shards.

        Args:
            config: `val` says what to validate on and how often.
            own: the classifier.
            train: the training datasets; labels are matched to theirs by name.
            train_rows: rows of it that are trained on.
            world: all processes.
            steps_per_epoch: of the training.

        Raises:
            ValueError: nothing to validate on, samples that are trained on, or labels that the classifier lacks.
        """
        from pipelines.corpus import corpus_of
        from pipelines.labels import check_labels
        from pipelines.selection import select_rows
        from pipelines.views import usable_rows

        self._val, self._own, self._world = config.val, own, world
        self._steps_per_epoch = steps_per_epoch
        if config.val.every is None:
            return
        asked = config.val if config.val.shards else _of_training_shards(config.val, config.data)
        # The decoder that was tried for training, unless another is asked for.
        decode = config.data.decode if config.val.decode == "auto" else config.val.decode
        self._clips = replace(clips_config(asked, asdict(config.data)), decode=decode)
        self._corpus = corpus_of(self._clips, classes=train.label_names)
        usable = usable_rows(self._corpus, self._clips, num_frames=own.num_frames)
        self._rows = select_rows(self._corpus, self._clips.select, rows=usable)
        if not config.val.shards and np.isin(self._rows, train_rows).any():
            raise ValueError(
                "validation on samples that are trained on: give --val.shards FOLDER, or take others of the training "
                "shards with --val.select.split val and --data.select.split train; --val.every null goes without"
            )
        check_labels(self._corpus, self._rows, num_classes=own.num_classes, several=own.multi_label, training=False)
        if not len(self._rows):
            raise ValueError(f"{self._corpus}: no samples to validate on; look at val.select")

    def __str__(self) -> str:
        if self._val.every is None:
            return "never"
        when = f"every {self._val.every:g} epochs" if self._val.every else "at the end"
        return f"{when}, {len(self._rows):,} samples, {self._val.num_clips} clips x {self._val.num_crops} crops"

    def of(self, engine: "Engine") -> "Validation | None":
        """What the loop is to do; None where validation is switched off."""
        from mae3d.fit import Validation

        if self._val.every is None:
            return None
        every = max(round(self._val.every * self._steps_per_epoch), 1) if self._val.every else 0
        return Validation(every, lambda _: self.scores(engine), best="map" if self._own.multi_label else "top1")

    def scores(self, engine: "Engine") -> dict[str, float]:
        """`mae3d.scores.summary` of the weights to use over all samples that can be read; every process calls it."""
        from mae3d.classifier import view_scores
        from mae3d.scores import summary
        from pipelines.stream import evaluation_clips

        positions, scores = [], []
        stream = evaluation_clips(
            self._corpus,
            self._clips,
            rows=self._rows,
            num_frames=self._own.num_frames,
            size=self._own.img_size,
            num_clips=self._val.num_clips,
            num_crops=self._val.num_crops,
            batch_size=self._val.batch,
            rank=self._world.place.rank,
            world=self._world.place.size,
            local_world=self._world.place.local_size,
            device=self._world.device,
        )
        with engine.evaluating() as model:
            for batch in stream:
                logits = model(batch.clips.flatten(0, 1)).unflatten(0, batch.clips.shape[:2])
                whole = batch.status == 0  # neither padding nor another sample in a damaged one's place
                positions.append(batch.positions[whole].numpy())
                scores.append(view_scores(logits, multi_label=self._own.multi_label).cpu().numpy()[whole.numpy()])
        stream.close()
        parts = self._world.gather((np.concatenate(positions), np.concatenate(scores)))
        found = np.concatenate([part[0] for part in parts])
        mean = np.concatenate([part[1] for part in parts]) / (self._val.num_clips * self._val.num_crops)
        return summary(mean, self._labels(self._rows[found]))

    def _labels(self, rows: np.ndarray) -> np.ndarray:
        """(n,) class numbers, or (n, classes) of 0 and 1."""
        labels = [self._corpus.labels_of(row) for row in rows.tolist()]
        if not self._own.multi_label:
            return np.array([own for (own,) in labels], dtype=np.int64)
        many_hot = np.zeros((len(rows), self._own.num_classes), dtype=np.int64)
        for i, of_one in enumerate(labels):
            many_hot[i, of_one] = 1
        return many_hot


def _of_training_shards(val: "ValConfig", data: DataConfig) -> "ValConfig":
    """The training shards, opened and labelled as for training where nothing else is said."""
    return replace(
        val,
        shards=data.shards,
        labels=val.labels or data.labels,
        exclude_bad_shards=val.exclude_bad_shards or data.exclude_bad_shards,
        cache=val.cache or data.cache,
        cache_gb=val.cache_gb if val.cache else data.cache_gb,
    )
