"""A classifier in training, and held-out samples ─► scores, the same on every process.

validator = Validator(config.val, config.data, own, corpus, loader.rows, world, steps_per_epoch=loader.steps_per_epoch)
fit(..., validation=validator.of(engine))
"""

from typing import TYPE_CHECKING

import numpy as np

from launch.training.config import ValConfig
from launch.training.heldout import open_held_out, over_samples
from mae3d.model.config import ClassifierConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from mae3d.distributed import World
    from mae3d.training.engine import Engine
    from mae3d.training.loop import Validation
    from pipelines.config import DataConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch


class Validator:
    """The validation samples, opened and checked before any training."""

    def __init__(
        self,
        val: ValConfig,
        data: "DataConfig",
        own: ClassifierConfig,
        train: "Corpus",
        train_rows: np.ndarray,
        world: "World",
        *,
        steps_per_epoch: int,
    ):
        """Opens the shards.

        Args:
            val: which clips to validate on, and how often.
            data: how the training clips are sampled.
            own: the classifier.
            train: the training datasets; labels are matched to theirs by name.
            train_rows: rows of it that are trained on.
            world: all processes.
            steps_per_epoch: of the training.

        Raises:
            ValueError: nothing to validate on, samples that are trained on, or labels that the classifier lacks.
        """
        from pipelines.samples.corpus import check_labels

        self._val, self._own, self._world = val, own, world
        self._steps_per_epoch = steps_per_epoch
        if val.every is None:
            return
        self._held = open_held_out(
            val,
            data,
            train,
            train_rows,
            option="val",
            num_frames=own.num_frames,
            classes=train.label_names,
        )
        held, several = self._held, own.multi_label
        check_labels(held.corpus, held.rows, num_classes=own.num_classes, several=several, training=False)

    def __str__(self) -> str:
        if self._val.every is None:
            return "never"
        when = f"every {self._val.every:g} epochs" if self._val.every else "at the end"
        return f"{when}, {len(self._held.rows):,} samples, {self._val.num_clips} clips x {self._val.num_crops} crops"

    def of(self, engine: "Engine") -> "Validation | None":
        """What the loop is to do; None where validation is switched off."""
        from mae3d.training.loop import Validation

        if self._val.every is None:
            return None
        every = max(round(self._val.every * self._steps_per_epoch), 1) if self._val.every else 0
        best = "map" if self._own.multi_label else "top1"
        return Validation(every, lambda step, stopping: self.scores(engine, stopping), best=best)

    def scores(self, engine: "Engine", stopping: "Callable[[], bool]") -> dict[str, float]:
        """`mae3d.analysis.scores.summary` of the weights to use over all samples that can be read; every process calls
        it.

        Raises:
            Interrupted: `stopping()` was true.
        """
        from mae3d.analysis.scores import summary
        from mae3d.model.classifier import view_scores

        val, own = self._val, self._own
        with engine.evaluating() as model:

            def look(batch: "Batch") -> np.ndarray:
                logits = model(batch.clips.flatten(0, 1)).unflatten(0, batch.clips.shape[:2])
                scores: np.ndarray = view_scores(logits, multi_label=own.multi_label).cpu().numpy()
                return scores

            rows, scores = over_samples(
                self._held,
                look,
                own=own,
                world=self._world,
                batch=val.batch,
                stopping=stopping,
                num_clips=val.num_clips,
                num_crops=val.num_crops,
            )
        return summary(scores / (val.num_clips * val.num_crops), self._labels(rows))

    def _labels(self, rows: np.ndarray) -> np.ndarray:
        """(n,) class numbers, or (n, classes) of 0 and 1."""
        labels = [self._held.corpus.labels_of(row) for row in rows.tolist()]
        if not self._own.multi_label:
            return np.array([own for (own,) in labels], dtype=np.int64)
        many_hot = np.zeros((len(rows), self._own.num_classes), dtype=np.int64)
        for i, of_one in enumerate(labels):
            many_hot[i, of_one] = 1
        return many_hot
