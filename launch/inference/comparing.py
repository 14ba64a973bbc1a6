"""Tables of features of several models over the same samples ─► each model's hits per test sample, measure by measure.

models = [Compared("own", Path("out/own"), train, test), Compared("image", Path("out/image"), train, test)]
common = common_samples(models, time_order=True)
hits = hits_of(models[0], common, few_shot=[1, 5], seeds=3, seed=0, time_order=True)["linear"]     # (N,) from 0 to 1
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from launch.common.tables import read_vectors
from mae3d.analysis.probes import few_shot_rows, knn_scores, linear_scores
from mae3d.analysis.scores import credit_at
from pipelines.samples.labels import many_hot

if TYPE_CHECKING:
    from launch.common.eval_set import EvalSet

NEIGHBOURS = 20
SIDES = ("train", "test")


@dataclass(frozen=True)
class Compared:
    """A model whose features are tables.

    Attributes:
        name: The model's name in the comparison.
        folder: The folder of its tables.
        train: Its train samples.
        test: Its test samples, of the same datasets for every model.
    """

    name: str
    folder: Path
    train: "EvalSet"
    test: "EvalSet"

    def table(self, side: str, *, backwards: bool = False) -> Path:
        """Return the path of the vectors of a side, of clips in their order or backwards."""
        return self.folder / f"{side}{'_backwards' if backwards else ''}.parquet"

    def samples(self, side: str) -> "EvalSet":
        """Return the samples of a side."""
        return self.train if side == "train" else self.test


@dataclass(frozen=True)
class Common:
    """The samples that every model has features of.

    Attributes:
        rows: (n,) rows of the corpus, by side.
        targets: (n, C) of 0 and 1, by side.
        left_out: Number of samples that some model has and not all, by side.
        groups: (m,) names of the source videos of the test samples.
        of_train_videos: Number of test samples whose source video the train samples have as well, if both are of the
            same datasets; names of others say nothing.
    """

    rows: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    left_out: dict[str, int]
    groups: list[str]
    of_train_videos: int


def common_samples(models: Sequence[Compared], *, time_order: bool) -> Common:
    """Find the samples that every model has features of.

    Args:
        models: one or more.
        time_order: whether the clips backwards count as well.

    Raises:
        ValueError: there is none of a side, or a sample has several labels.
    """
    rows, targets, left_out = {}, {}, {}
    num_classes = models[0].train.corpus.num_classes
    for side in SIDES:
        corpus = models[0].samples(side).corpus
        if corpus.has_multiple_labels:
            raise ValueError(
                f"{corpus}: samples have several labels, and a comparison counts hits of one; mae3d probe has mAP"
            )
        tables = [(model, backwards) for model in models for backwards in (False, True)[: 1 + time_order]]
        readable = [model.samples(side).rows[_readable(model.table(side, backwards=b))] for model, b in tables]
        rows[side] = reduce(np.intersect1d, readable)
        if not len(rows[side]):
            raise ValueError(f"{corpus}: no {side} sample could be read by every model")
        left_out[side] = len(reduce(np.union1d, [model.samples(side).rows for model in models])) - len(rows[side])
        targets[side] = many_hot([corpus.labels_of(row) for row in rows[side].tolist()], num_classes)
    train, test = models[0].train.corpus, models[0].test.corpus
    groups = [test.name(row) for row in rows["test"].tolist()]
    seen = {train.name(row) for row in rows["train"].tolist()} if train.fingerprint == test.fingerprint else set()
    return Common(rows, targets, left_out, groups, of_train_videos=sum(name in seen for name in groups))


def hits_of(
    model: Compared, common: Common, *, few_shot: Sequence[int], seeds: int, seed: int, time_order: bool
) -> dict[str, np.ndarray]:
    """Return the hits of a model's features under each probe, (m,) from 0 to 1, by the measure's name.

    Args:
        model: the model.
        common: its samples that count.
        few_shot: numbers of train samples per class; `few_shot_K` is the mean over the draws.
        seeds: draws of each.
        seed: of the first draw, and of the choices of the linear probe.
        time_order: whether a linear probe separates clips from the same clips backwards; a sample's hit is the mean of
            both.
    """
    train, test = (_vectors(model, side, common) for side in SIDES)
    of_train, of_test = common.targets["train"], common.targets["test"]

    def linear(rows: np.ndarray, draw: int) -> np.ndarray:
        scores, _ = linear_scores(train[rows], of_train[rows], test, multi_label=False, seed=draw, show=True)
        return _hits(scores, of_test)

    print(f"{model.name}: the probes", file=sys.stderr, flush=True)
    hits = {
        "linear": linear(np.arange(len(train)), seed),
        "knn": _hits(knn_scores(train, of_train, test, ks=(NEIGHBOURS,), show=True)[NEIGHBOURS], of_test),
    }
    for shots in few_shot:
        draws = [linear(few_shot_rows(of_train, shots=shots, seed=d), d) for d in range(seed, seed + seeds)]
        hits[f"few_shot_{shots}"] = np.mean(draws, axis=0)
    if time_order:
        hits["time_order"] = _time_order(model, common, train, test, seed=seed)
    return hits


def chance_hits(common: Common, *, few_shot: Sequence[int], time_order: bool) -> dict[str, np.ndarray]:
    """Return the hits without any feature: of the most frequent class, of a class by lot, of a coin; as `hits_of`."""
    of_train, of_test = common.targets["train"], common.targets["test"]
    frequent = _hits(np.broadcast_to(of_train.mean(axis=0), of_test.shape), of_test)
    by_lot = _hits(np.broadcast_to(of_train.any(axis=0).astype(float), of_test.shape), of_test)
    hits = {"linear": frequent, "knn": frequent} | {f"few_shot_{shots}": by_lot for shots in few_shot}
    return hits | ({"time_order": np.full(len(of_test), 0.5)} if time_order else {})


def _time_order(model: Compared, common: Common, train: np.ndarray, test: np.ndarray, *, seed: int) -> np.ndarray:
    back_train, back_test = (_vectors(model, side, common, backwards=True) for side in SIDES)
    classes = np.repeat(np.eye(2, dtype=np.uint8), len(train), axis=0)
    scores, _ = linear_scores(
        np.concatenate([train, back_train]),
        classes,
        np.concatenate([test, back_test]),
        multi_label=False,
        seed=seed,
        show=True,
    )
    hits = _hits(scores, np.repeat(np.eye(2, dtype=np.uint8), len(test), axis=0))
    means: np.ndarray = hits.reshape(2, -1).mean(axis=0)
    return means


def _hits(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return credit_at(scores, targets.argmax(axis=1), k=1)


def _readable(path: Path) -> np.ndarray:
    """Return the rows of a table that have a vector."""
    with pq.ParquetFile(path) as file:
        valid = [batch.column(0).is_valid() for batch in file.iter_batches(columns=["vector"])]
    return np.flatnonzero(np.concatenate(valid))


def _vectors(model: Compared, side: str, common: Common, *, backwards: bool = False) -> np.ndarray:
    vectors, rows = read_vectors(model.table(side, backwards=backwards))
    there = model.samples(side).rows[rows]  # ascending
    chosen: np.ndarray = vectors[np.searchsorted(there, common.rows[side])]
    return chosen
