"""A classifier in training, and held-out samples ─► scores, the same on all ranks.

validator = Validator(config.val, EvalSet(corpus, config.data, loader.rows), model_config, world, steps_per_epoch=100)
TrainingLoop(..., validation=validator.validation(engine)).run()
"""

from typing import TYPE_CHECKING

import numpy as np

from launch.common.eval_set import EvalSet, sample_facts
from launch.training.config import ValConfig
from launch.training.heldout import open_held_out, score_samples
from mae3d.io.resources import require_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from mae3d.distributed import World
    from mae3d.model.config import ClassifierConfig
    from mae3d.training.engine import Engine
    from mae3d.training.loop import Validation
    from pipelines.stream import Batch


BYTES_A_SCORE = 12  # of memory on each rank: the parts of all ranks, these in one piece, and in order


class Validator:
    """The validation samples, opened and checked before any training."""

    option = "val"

    def __init__(
        self,
        config: ValConfig,
        train: EvalSet,
        model_config: "ClassifierConfig",
        world: "World",
        *,
        steps_per_epoch: int,
    ):
        """Open the shards.

        Args:
            config: which clips are validated on, and how often.
            train: the training samples; labels are matched to theirs by name.
            model_config: the classifier's.
            world: all ranks.
            steps_per_epoch: of the training.

        Raises:
            ValueError: no sample is held out, samples are trained on, or have labels that the classifier lacks.
        """
        from pipelines.samples.corpus import check_labels

        self._config, self._model_config, self._world = config, model_config, world
        self._steps_per_epoch = steps_per_epoch
        if config.every is None:
            return
        self._held_out = open_held_out(
            config,
            train,
            option=self.option,
            num_frames=model_config.num_frames,
            channels=model_config.in_chans,
            classes=train.corpus.label_names,
        )
        rows, classes = len(self._held_out.rows), model_config.num_classes
        world.on_first(
            lambda: require_memory(
                BYTES_A_SCORE * rows * classes * world.ranks.local_size,
                f"scores of {rows:,} validation samples and {classes:,} classes on {world.ranks.local_size} ranks",
                "validate on fewer, with --val.select, or give --val.every null and run mae3d evaluate afterwards",
            )
        )
        check_labels(
            self._held_out.corpus,
            self._held_out.rows,
            num_classes=model_config.num_classes,
            multi_label=model_config.multi_label,
            option=self.option,
        )

    def __str__(self) -> str:
        config = self._config
        if config.every is None:
            return "never"
        when = f"every {config.every:g} epochs" if config.every else "at the end"
        return f"{when}, {len(self._held_out.rows):,} samples, {config.num_clips} clips x {config.num_crops} crops"

    def facts(self) -> dict[str, str]:
        """Return what distinguishes the held-out samples from others; empty if there are none."""
        return {} if self._config.every is None else sample_facts(self._held_out, self.option)

    def validation(self, engine: "Engine") -> "Validation | None":
        """Return the hook of the training loop; None if validation is off."""
        from mae3d.training.loop import Validation

        if self._config.every is None:
            return None
        best = "map" if self._model_config.multi_label else "top1"
        return Validation(
            self._config.every_steps(self._steps_per_epoch),
            lambda step, stopping: self.scores(engine, stopping),
            best=best,
        )

    def scores(self, engine: "Engine", stopping: "Callable[[], bool]") -> dict[str, float]:
        """Return `mae3d.analysis.scores.summary` over all samples that can be read; all ranks call it.

        Raises:
            Interrupted: `stopping()` was true.
        """
        from mae3d.analysis.scores import summary
        from mae3d.model.classifier import view_scores

        config, multi_label = self._config, self._model_config.multi_label
        with engine.evaluating() as model:

            def score_batch(batch: "Batch") -> np.ndarray:
                logits = model(batch.clips.flatten(0, 1)).unflatten(0, batch.clips.shape[:2])
                scores: np.ndarray = view_scores(logits, multi_label=multi_label).cpu().numpy()
                return scores

            rows, scores = score_samples(
                self._held_out,
                score_batch,
                model_config=self._model_config,
                world=self._world,
                batch=config.batch,
                stopping=stopping,
                num_clips=config.num_clips,
                num_crops=config.num_crops,
            )
        return summary(scores / (config.num_clips * config.num_crops), self._targets(rows))

    def _targets(self, rows: np.ndarray) -> np.ndarray:
        """Return (n,) class numbers, or (n, classes) of 0 and 1."""
        from pipelines.samples.labels import many_hot

        labels = [self._held_out.corpus.labels_of(row) for row in rows.tolist()]
        if self._model_config.multi_label:
            return many_hot(labels, self._model_config.num_classes, dtype=np.int64)
        return np.array([label for (label,) in labels], dtype=np.int64)
