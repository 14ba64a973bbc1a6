"""Tables of features with labels ─► the figures of each probe. The protocols are mae3d/analysis/probes.py's.

probed = Probed(Path("probe"), num_classes=400, several=False, num_heads=12, device=device)
compare(probed, ["knn", "linear"], few_shot=[1, 10], seeds=3)["probes"]
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from launch.inference.embeddings import read_vectors
from launch.inference.sharded_table import METADATA
from mae3d.analysis.probes import attentive_scores, few_shot_rows, knn_scores, linear_scores
from mae3d.analysis.scores import hits_at, mean_average_precision

if TYPE_CHECKING:
    import torch

VECTORS, TOKENS = "{}.parquet", "{}_tokens.parquet"  # of `train` and `test`
TOP = 5


@dataclass(frozen=True)
class Probed:
    """What is probed.

    Attributes:
        folder: Where the tables of features lie.
        num_classes: C.
        several: Whether a sample may have any number of labels.
        num_heads: Of the attentive probe's attention: the encoder's.
        device: Where that probe is trained.
    """

    folder: Path
    num_classes: int
    several: bool
    num_heads: int
    device: "torch.device"


def compare(
    probed: Probed, probes: Sequence[str], *, few_shot: Sequence[int] = (), seeds: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Run the probes.

    Args:
        probed: the features.
        probes: some of knn, linear, attentive.
        few_shot: numbers of train samples a class.
        seeds: draws of each.
        seed: of all that is drawn; of few samples, the first draw's.

    Returns:
        `train` and `test` (samples, failed), `classes`, `probes`: a row each, beginning with the share of the train
        set's most frequent class, and `few_shot`: a row each of mean and standard deviation over the draws.
    """
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    few: list[dict[str, Any]] = []
    if {"knn", "linear"} & set(probes):
        sets = [_vectors(probed, name) for name in ("train", "test")]
        results = _counted(probed, VECTORS, *sets)
        rows += _simple(probed, probes, *sets, seed=seed)
        for shots in few_shot:
            draws = [
                list(_simple(probed, probes, _few(sets[0], shots, draw), sets[1], seed=draw))
                for draw in range(seed, seed + seeds)
            ]
            few += [{"shots": shots, **_spread(runs)} for runs in zip(*draws, strict=True)]
    if "attentive" in probes:
        with TemporaryDirectory(dir=probed.folder) as aside:
            sets = [_tokens(probed, name, Path(aside) / name) for name in ("train", "test")]
            results = results or _counted(probed, TOKENS, *sets)
            rows.append(_attentive(probed, *sets, seed=seed))
    frequent = np.broadcast_to(sets[0].targets.mean(axis=0), sets[1].targets.shape)
    rows.insert(0, {"probe": "most frequent", **_measured(probed, frequent, sets[1])})
    return results | {"classes": probed.num_classes, "probes": rows, "few_shot": few}


class Set(NamedTuple):
    """Samples that have been read."""

    features: np.ndarray  # (n, D) float32, or (n, L, D) float16
    targets: np.ndarray  # (n, C) uint8 of 0 and 1


def _simple(probed: Probed, probes: Sequence[str], train: Set, test: Set, *, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each k of the nearest neighbours, and one of the linear probe."""
    if "knn" in probes:
        for k, scores in knn_scores(train.features, train.targets, test.features).items():
            yield {"probe": f"knn, k={k}", **_measured(probed, scores, test)}
    if "linear" in probes:
        scores, chosen = linear_scores(train.features, train.targets, test.features, several=probed.several, seed=seed)
        yield {"probe": "linear", **_measured(probed, scores, test), **chosen}


def _attentive(probed: Probed, train: Set, test: Set, *, seed: int) -> dict[str, Any]:
    scores, trained = attentive_scores(
        train.features,
        train.targets,
        test.features,
        several=probed.several,
        num_heads=probed.num_heads,
        device=probed.device,
        seed=seed,
    )
    return {"probe": "attentive", **_measured(probed, scores, test), **trained}


def _measured(probed: Probed, scores: np.ndarray, test: Set) -> dict[str, float]:
    if probed.several:
        return {"map": mean_average_precision(scores, test.targets)}
    labels = test.targets.argmax(axis=1)
    return {f"top{k}": float(hits_at(scores, labels, k=k).mean()) for k in (1, TOP) if k < probed.num_classes}


def _counted(probed: Probed, kind: str, train: Set, test: Set) -> dict[str, Any]:
    rows = {name: pq.read_metadata(probed.folder / kind.format(name)).num_rows for name in ("train", "test")}
    read = {"train": len(train.targets), "test": len(test.targets)}
    if not all(read.values()):
        raise ValueError(f"{probed.folder}: none of the train or of the test samples could be read")
    return {name: {"samples": read[name], "failed": rows[name] - read[name]} for name in rows}


def _few(train: Set, shots: int, seed: int) -> Set:
    rows = few_shot_rows(train.targets, shots=shots, seed=seed)
    return Set(train.features[rows], train.targets[rows])


def _spread(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of the figures of some runs of one probe."""
    row: dict[str, Any] = {"probe": runs[0]["probe"], "runs": len(runs)}
    for name in (name for name in ("top1", f"top{TOP}", "map") if name in runs[0]):
        values = [run[name] for run in runs]
        row[name] = statistics.mean(values)
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return row


def _vectors(probed: Probed, name: str) -> Set:
    path = probed.folder / VECTORS.format(name)
    vectors, rows = read_vectors(path)
    labels: Any = pq.read_table(path, columns=["labels"])["labels"]
    return Set(vectors, _many_hot(labels.take(pa.array(rows)).to_pylist(), probed.num_classes))


def _tokens(probed: Probed, name: str, to: Path) -> Set:
    """Features are mapped from the file `to`: they need not fit into memory."""
    with pq.ParquetFile(probed.folder / TOKENS.format(name)) as file:
        settings = json.loads(file.schema_arrow.metadata[METADATA])
        shape = (file.metadata.num_rows, int(np.prod(settings["grid"])), settings["width"])
        mapped = np.lib.format.open_memmap(to, mode="w+", dtype=np.float16, shape=shape)
        labels: list[list[int]] = []
        for batch in file.iter_batches(64, columns=["labels", "vector"]):
            read: Any = batch.filter(batch["vector"].is_valid())
            values = read["vector"].flatten().to_numpy(zero_copy_only=False)
            mapped[len(labels) : len(labels) + len(read)] = values.reshape(len(read), *shape[1:])
            labels += read["labels"].to_pylist()
    return Set(mapped[: len(labels)], _many_hot(labels, probed.num_classes))


def _many_hot(labels: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    targets = np.zeros((len(labels), num_classes), np.uint8)
    for row, of_one in enumerate(labels):
        targets[row, list(of_one)] = 1
    return targets
