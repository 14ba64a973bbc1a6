"""A masked autoencoder in training, and held-out samples ─► its losses on them, a kNN score, and a picture.

monitor = Monitor(config.eval, EvalSet(corpus, config.data, loader.rows), config.model, run, world)
TrainingLoop(..., validation=monitor.validation(engine)).run()

Everything is fixed: the same samples at the same positions under the same masks, at every step and under every seed of
the training, of which no random number is drawn. So runs that differ in their training data alone can be compared.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from launch.common.eval_set import EvalSet, draw_rows, sample_facts
from launch.training.config import EvalConfig
from launch.training.heldout import open_held_out, score_samples
from mae3d.io.random import Stream
from mae3d.io.resources import require_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from mae3d.distributed import World
    from mae3d.model.config import MAEConfig
    from mae3d.model.mae import MAE
    from mae3d.tracking.run_dir import Run
    from mae3d.training.engine import Engine
    from mae3d.training.loop import Validation
    from pipelines.stream import Batch

logger = logging.getLogger(__name__)

NEIGHBOURS = 20  # the k of launch/probe.py's first figure


class Monitor:
    """The held-out samples, opened and checked before any training."""

    option = "eval"

    def __init__(self, config: EvalConfig, train: EvalSet, model_config: "MAEConfig", run: "Run", world: "World"):
        """Open the shards.

        Args:
            config: which clips are held out, and how often they are scored.
            train: the training samples; the neighbours are searched among them.
            model_config: the autoencoder's.
            run: its folder gets the pictures.
            world: all ranks.

        Raises:
            ValueError: no sample is held out, or samples are trained on.
        """
        self._config, self._model_config, self._run, self._world = config, model_config, run, world
        if not config.every:
            return
        held_out = open_held_out(
            config, train, option=self.option, num_frames=model_config.num_frames, channels=model_config.in_chans
        )
        self._held_out = replace(held_out, rows=_draw(held_out.rows, config.samples))
        self._pool, self._no_neighbours = self._neighbour_pool(train)
        world.on_first(self._require_memory)

    def __str__(self) -> str:
        if not self._config.every:
            return "never"
        neighbours = f"kNN among {len(self._pool.rows):,}" if self._pool else f"no kNN ({self._no_neighbours})"
        return f"every {self._config.every:,} steps, {len(self._held_out.rows):,} samples held out, {neighbours}"

    def facts(self) -> dict[str, str]:
        """Return what distinguishes the held-out samples from others; empty if there are none."""
        return sample_facts(self._held_out, self.option) if self._config.every else {}

    def validation(self, engine: "Engine") -> "Validation | None":
        """Return the hook of the training loop; None if evaluation is off."""
        from mae3d.training.loop import Validation

        if not self._config.every:
            return None
        return Validation(
            self._config.every,
            lambda step, stopping: self.scores(engine, step, stopping),
            best="loss",
            lower_is_better=True,
            prefix=self.option,
        )

    def scores(self, engine: "Engine", step: int, stopping: "Callable[[], bool]") -> dict[str, float]:
        """Score the held-out samples and draw the picture; all ranks call it, and get the same.

        Returns:
            `loss` and `psnr` (decibels, of hidden pixels), means over the samples that can be read; and, if there are
            labels, `knn_top1`, or `knn_map` if samples may have several.

        Raises:
            Interrupted: `stopping()` was true.
        """
        from mae3d.model.mae import MAE

        with engine.evaluating() as model:
            assert isinstance(model, MAE)
            rows, losses, features = self._losses_and_features(model, stopping)
            loss, psnr = losses.mean(axis=0).tolist() if len(rows) else (np.nan, np.nan)
            scores = {"loss": loss, "psnr": psnr}
            if self._pool:
                scores |= self._knn_score(model, self._pool, rows, features, stopping)
            if self._config.pictures:
                self._save_picture(model, step)
        return self._world.share(scores)

    def _require_memory(self) -> None:
        """Refuse more samples, neighbours or pictures than the memory of a node can hold; ValueError."""
        config, model = self._config, self._model_config
        samples, pool = len(self._held_out.rows), len(self._pool.rows) if self._pool else 0
        pictures = min(config.pictures, samples)
        vectors = 8 * samples * (model.embed_dim + 2) + 4 * pool * model.embed_dim
        pixels = pictures * 3 * model.num_frames * model.height * model.width * model.in_chans  # three strips
        require_memory(
            (3 * vectors + pixels) * self._world.ranks.local_size,  # the parts of all ranks, in one piece, in order
            f"features of {samples:,} held-out samples and {pool:,} neighbours, and {pictures:,} pictures, on "
            f"{self._world.ranks.local_size} ranks",
            "give a smaller --eval.samples, --eval.pool or --eval.pictures",
        )

    def _losses_and_features(
        self, model: "MAE", stopping: "Callable[[], bool]"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (n,) rows, (n, 2) losses and PSNR, (n, D) pooled features of the held-out samples."""
        from mae3d.analysis.features import embed
        from mae3d.analysis.reconstruct import clip_losses

        def score_batch(batch: "Batch") -> np.ndarray:
            clips = batch.clips.flatten(0, 1)
            losses = clip_losses(model, clips, self._noise(batch.positions.tolist()).to(clips.device))
            columns = [part[:, None].double().cpu().numpy() for part in losses]
            return np.concatenate([*columns, embed(model, clips).double().cpu().numpy()], axis=1)

        rows, scores = self._score(self._held_out, score_batch, stopping)
        return rows, scores[:, :2], scores[:, 2:]

    def _knn_score(
        self, model: "MAE", pool: EvalSet, rows: np.ndarray, features: np.ndarray, stopping: "Callable[[], bool]"
    ) -> dict[str, float]:
        """Return how often the nearest of the pool have a held-out sample's label."""
        from mae3d.analysis.features import embed
        from mae3d.analysis.probes import knn_scores
        from mae3d.analysis.scores import credit_at, mean_average_precision

        def score_batch(batch: "Batch") -> np.ndarray:
            vectors: np.ndarray = embed(model, batch.clips.flatten(0, 1)).cpu().numpy()
            return vectors

        pool_rows, pool_features = self._score(pool, score_batch, stopping)
        multi_label = pool.corpus.has_multiple_labels or self._held_out.corpus.has_multiple_labels
        classes = max(pool.corpus.num_classes, self._held_out.corpus.num_classes)
        pool_targets, targets = _targets(pool, pool_rows, classes), _targets(self._held_out, rows, classes)
        labelled = targets.any(axis=1)
        name = "knn_map" if multi_label else "knn_top1"
        if not len(pool_features) or not labelled.any():  # none of them can be read
            return {name: np.nan}
        scores = knn_scores(pool_features, pool_targets, features[labelled], ks=(NEIGHBOURS,))[NEIGHBOURS]
        if multi_label:
            return {name: float(mean_average_precision(scores, targets[labelled]))}
        return {name: float(credit_at(scores, targets[labelled].argmax(axis=1), k=1).mean())}

    def _score(
        self, samples: EvalSet, score_batch: "Callable[[Batch], np.ndarray]", stopping: "Callable[[], bool]"
    ) -> tuple[np.ndarray, np.ndarray]:
        return score_samples(
            samples,
            score_batch,
            model_config=self._model_config,
            world=self._world,
            batch=self._config.batch,
            stopping=stopping,
        )

    def _neighbour_pool(self, train: EvalSet) -> tuple[EvalSet | None, str]:
        """Return the samples to search for neighbours; or None, and why there is nothing to search or to score."""
        from pipelines.samples.labels import numbered_as
        from preprocess.dataset.index import DatasetError

        corpus = self._held_out.corpus
        if not self._config.pool:
            return None, "eval.pool is 0"
        try:
            corpus.labels = numbered_as(
                corpus.labels, train.corpus.label_names, rows=self._held_out.rows, option="eval"
            )
        except DatasetError as error:
            return None, str(error)
        rows = train.rows[train.corpus.labels.per_sample[train.rows] > 0]
        if not len(rows) or not (corpus.labels.per_sample[self._held_out.rows] > 0).any():
            return None, "no labels"
        rows = _draw(rows, self._config.pool)
        classes = _targets(train, rows, train.corpus.num_classes).any(axis=0).sum()
        return (replace(train, rows=rows), "") if classes > 1 else (None, "labels of one class only")

    def _save_picture(self, model: "MAE", step: int) -> None:
        """Compute the picture on all ranks, so that none waits in the model for another; rank 0 writes it."""
        from mae3d.io.contact_sheet import filmstrip
        from mae3d.tracking.history import picture_of

        rows = self._picture_rows(model)
        if self._world.is_first and rows:
            path = picture_of(self._run.folder, step)
            try:
                path.parent.mkdir(exist_ok=True)
                filmstrip(rows).save(path)
            except OSError as error:  # a picture is no reason to stop
                logger.warning("%s cannot be written (%s)", path, error)

    def _picture_rows(self, model: "MAE") -> "Mapping[str, np.ndarray]":
        """Return caption ─► frames: three rows per sample."""
        from mae3d.analysis.reconstruct import reconstruct
        from mae3d.io.contact_sheet import psnr

        samples, rows = self._held_out, {}
        shown = samples.rows[: self._config.pictures]
        stream = samples.stream(self._model_config, rows=shown, batch_size=1, device=self._world.device)
        try:
            for batch in stream:
                position = int(batch.positions[0])
                result = reconstruct(model, batch.clips[0], self._noise([position]).to(batch.clips.device))
                if batch.is_whole[0]:
                    original, hidden = result.original[0], result.hidden[0]
                    name = f"{position + 1}. {samples.corpus.name(int(batch.rows[0, 0]))}"
                    rows[name] = original
                    rows[f"{name}: {hidden.mean():.0%} hidden"] = result.masked[0]
                    closeness = psnr(result.predicted[0], original, hidden)
                    rows[f"{name}: filled in, {closeness:.1f} dB"] = result.pasted[0]
        finally:
            stream.close()
        return rows

    def _noise(self, positions: list[int]) -> "torch.Tensor":
        from mae3d.model.masking import mask_noise

        return mask_noise(seed=Stream.EVAL, epoch=0, positions=positions, views=1, tokens=self._model_config.num_tokens)


def _draw(rows: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` rows, the same in every run."""
    return draw_rows(rows, count, seed=0, stream=Stream.EVAL)


def _targets(samples: EvalSet, rows: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (n, C) int64 of 0 and 1."""
    from pipelines.samples.labels import many_hot

    return many_hot([samples.corpus.labels_of(row) for row in rows.tolist()], num_classes, dtype=np.int64)
