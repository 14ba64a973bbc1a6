"""A masked autoencoder in training, and held-out samples ─► how well it fills them in, what it tells apart, a picture.

monitor = Monitor(config.eval, config.data, config.model, corpus, loader.rows, run, world)
fit(..., validation=monitor.of(engine))

Everything is fixed: the same samples at the same places under the same masks, whatever the step and the seed of the
training, of which no random number is drawn. So runs that only differ in what they learn from can be compared.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from launch.training.config import EvalConfig
from launch.training.heldout import HeldOut, open_held_out, over_samples
from mae3d.io.random import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from mae3d.distributed import World
    from mae3d.model.config import MAEConfig
    from mae3d.model.mae import MAE
    from mae3d.tracking.run_dir import Run
    from mae3d.training.engine import Engine
    from mae3d.training.loop import Validation
    from pipelines.config import DataConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch

logger = logging.getLogger(__name__)

NEIGHBOURS = 20  # as launch/probe.py's first figure


class Monitor:
    """The held-out samples, opened and checked before any training."""

    def __init__(
        self,
        eval: EvalConfig,
        data: "DataConfig",
        model: "MAEConfig",
        train: "Corpus",
        train_rows: np.ndarray,
        run: "Run",
        world: "World",
    ):
        """Opens the shards.

        Args:
            eval: which clips to look at, and how often.
            data: how the training clips are sampled.
            model: the autoencoder's config.
            train: the training datasets.
            train_rows: rows of it that are trained on.
            run: where the pictures go.
            world: all processes.

        Raises:
            ValueError: nothing to look at, or samples that are trained on.
        """
        self._eval, self._own, self._run, self._world = eval, model, run, world
        if not eval.every:
            return
        held = open_held_out(eval, data, train, train_rows, option="eval", num_frames=model.num_frames)
        self._held = replace(held, rows=_some(held.rows, eval.samples))
        self._pool, self._no_neighbours = self._pool_among(HeldOut(train, data, train_rows))

    def __str__(self) -> str:
        if not self._eval.every:
            return "never"
        neighbours = f"kNN among {len(self._pool.rows):,}" if self._pool else f"no kNN ({self._no_neighbours})"
        return f"every {self._eval.every:,} steps, {len(self._held.rows):,} samples held out, {neighbours}"

    def of(self, engine: "Engine") -> "Validation | None":
        """What the loop is to do; None where it is switched off."""
        from mae3d.training.loop import Validation

        if not self._eval.every:
            return None
        return Validation(
            self._eval.every,
            lambda step, stopping: self.scores(engine, step, stopping),
            best="loss",
            lower_is_better=True,
            prefix="eval",
        )

    def scores(self, engine: "Engine", step: int, stopping: "Callable[[], bool]") -> dict[str, float]:
        """The figures of an evaluation, and its picture. Every process calls it, and gets the same.

        Returns:
            `loss` and `psnr` (decibels, of hidden pixels), means over the samples that can be read; and `knn_top1`, or
            `knn_map` where samples may have several labels, if there are labels.

        Raises:
            Interrupted: `stopping()` was true.
        """
        from mae3d.model.mae import MAE

        with engine.evaluating() as model:
            assert isinstance(model, MAE)
            rows, losses, features = self._filled_in(model, stopping)
            loss, psnr = losses.mean(axis=0).tolist() if len(rows) else (np.nan, np.nan)
            scores = {"loss": loss, "psnr": psnr}
            if self._pool:
                scores |= self._told_apart(model, self._pool, rows, features, stopping)
            if self._eval.pictures:
                self._draw(model, step)
        return self._world.share(scores)

    def _filled_in(self, model: "MAE", stopping: "Callable[[], bool]") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) rows, (n, 2) losses and PSNR, (n, D) pooled features of the held-out samples."""
        from mae3d.analysis.features import embed
        from mae3d.analysis.reconstruct import clip_losses

        def look(batch: "Batch") -> np.ndarray:
            clips = batch.clips.flatten(0, 1)
            losses = clip_losses(model, clips, self._noise(batch.positions.tolist()).to(clips.device))
            said = [part[:, None].double().cpu().numpy() for part in losses]
            return np.concatenate([*said, embed(model, clips).double().cpu().numpy()], axis=1)

        rows, said = over_samples(
            self._held, look, own=self._own, world=self._world, batch=self._eval.batch, stopping=stopping
        )
        return rows, said[:, :2], said[:, 2:]

    def _told_apart(
        self, model: "MAE", pool: HeldOut, rows: np.ndarray, features: np.ndarray, stopping: "Callable[[], bool]"
    ) -> dict[str, float]:
        """How often the nearest of the pool have a held-out sample's label."""
        from mae3d.analysis.features import embed
        from mae3d.analysis.probes import knn_scores
        from mae3d.analysis.scores import hits_at, mean_average_precision

        def look(batch: "Batch") -> np.ndarray:
            found: np.ndarray = embed(model, batch.clips.flatten(0, 1)).cpu().numpy()
            return found

        pool_rows, among = over_samples(
            pool, look, own=self._own, world=self._world, batch=self._eval.batch, stopping=stopping
        )
        several = pool.corpus.has_several_labels or self._held.corpus.has_several_labels
        classes = max(pool.corpus.num_classes, self._held.corpus.num_classes)
        wanted, truth = _targets(pool.corpus, pool_rows, classes), _targets(self._held.corpus, rows, classes)
        labelled = truth.any(axis=1)
        name = "knn_map" if several else "knn_top1"
        if not len(among) or not labelled.any():  # none of them can be read
            return {name: np.nan}
        scores = knn_scores(among, wanted, features[labelled], ks=(NEIGHBOURS,))[NEIGHBOURS]
        if several:
            return {name: float(mean_average_precision(scores, truth[labelled]))}
        return {name: float(hits_at(scores, truth[labelled].argmax(axis=1), k=1).mean())}

    def _pool_among(self, train: HeldOut) -> tuple[HeldOut | None, str]:
        """Samples to search for neighbours; or None, and why there is nothing to search or to tell apart."""
        from pipelines.samples.labels import numbered_as
        from preprocess.dataset.index import DatasetError

        held = self._held.corpus
        if not self._eval.pool:
            return None, "eval.pool is 0"
        try:
            held.labels = numbered_as(held.labels, train.corpus.label_names, rows=self._held.rows)
        except DatasetError as error:
            return None, str(error)
        rows = train.rows[train.corpus.labels.per_sample[train.rows] > 0]
        if not len(rows) or not (held.labels.per_sample[self._held.rows] > 0).any():
            return None, "no labels"
        rows = _some(rows, self._eval.pool)
        classes = _targets(train.corpus, rows, train.corpus.num_classes).any(axis=0).sum()
        return (replace(train, rows=rows), "") if classes > 1 else (None, "labels of one class only")

    def _draw(self, model: "MAE", step: int) -> None:
        """Every process computes the picture, so that none waits in the model for another; the first one writes it."""
        from mae3d.io.contact_sheet import filmstrip
        from mae3d.tracking.history import picture_of

        rows = self._strip(model)
        if self._world.is_first and rows:
            path = picture_of(self._run.folder, step)
            try:
                path.parent.mkdir(exist_ok=True)
                filmstrip(rows).save(path)
            except OSError as error:  # a picture is no reason to stop
                logger.warning("%s cannot be written (%s)", path, error)

    def _strip(self, model: "MAE") -> "Mapping[str, np.ndarray]":
        """Caption ─► frames: three rows for each sample."""
        from mae3d.analysis.reconstruct import reconstruct
        from mae3d.io.contact_sheet import psnr
        from pipelines.stream import evaluation_clips

        own, rows = self._own, {}
        stream = evaluation_clips(
            self._held.corpus,
            self._held.clips,
            rows=self._held.rows[: self._eval.pictures],
            num_frames=own.num_frames,
            size=own.img_size,
            batch_size=1,
            device=self._world.device,
        )
        try:
            for batch in stream:
                position = int(batch.positions[0])
                result = reconstruct(model, batch.clips[0], self._noise([position]).to(batch.clips.device))
                if batch.status[0] == 0:
                    original, hidden = result.original[0], result.hidden[0]
                    name = f"{position + 1}. {self._held.corpus.name(int(batch.rows[0]))}"
                    rows[name] = original
                    rows[f"{name}: {hidden.mean():.0%} hidden"] = result.masked[0]
                    closeness = psnr(result.predicted[0], original, hidden)
                    rows[f"{name}: filled in, {closeness:.1f} dB"] = result.pasted[0]
        finally:
            stream.close()
        return rows

    def _noise(self, positions: list[int]) -> "torch.Tensor":
        from mae3d.model.masking import mask_noise

        return mask_noise(seed=Stream.EVAL, epoch=0, positions=positions, views=1, tokens=self._own.num_tokens)


def _some(rows: np.ndarray, count: int) -> np.ndarray:
    """At most so many rows, always the same, in order."""
    generator = np.random.Generator(np.random.Philox(key=[0, Stream.EVAL]))
    return np.sort(generator.choice(rows, size=min(count, len(rows)), replace=False))


def _targets(corpus: "Corpus", rows: np.ndarray, num_classes: int) -> np.ndarray:
    """(n, C) int64 of 0 and 1."""
    targets = np.zeros((len(rows), num_classes), dtype=np.int64)
    for i, row in enumerate(rows.tolist()):
        targets[i, corpus.labels_of(row)] = 1
    return targets
