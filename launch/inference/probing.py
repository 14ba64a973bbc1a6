"""Tables of features with labels ─► the figures of each probe, under the protocols of mae3d/analysis/probes.py.

features = FeatureTables(Path("probe"), num_classes=400, multi_label=False, num_heads=12, device=device)
compare(features, ["knn", "linear"], few_shot=[1, 10], seeds=3)["probes"]
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from launch.common.tables import read_vectors
from launch.inference.sharded_table import METADATA
from mae3d.analysis.logistic import BLOCK
from mae3d.analysis.probes import KNN, attentive_scores, few_shot_rows, knn_scores, linear_scores
from mae3d.analysis.scores import credit_at, mean_and_deviation, mean_average_precision
from mae3d.io.resources import require_disk, require_memory
from pipelines.samples.labels import many_hot

if TYPE_CHECKING:
    import torch

VECTORS, TOKENS = "{}.parquet", "{}_tokens.parquet"  # of `train` and `test`
TOP = 5


def require_room(
    folder: Path, probes: Sequence[str], *, train: int, test: int, classes: int, width: int, tokens: int
) -> None:
    """Refuse, before any clip is read, probes whose features and scores fit neither into memory nor onto the disk.

    Args:
        folder: of the tables.
        probes: one or more of knn, linear, attentive.
        train: samples.
        test: samples.
        classes: C.
        width: D.
        tokens: L, of a clip.

    Raises:
        ValueError: the memory is too small.
        OSError: the disk is too small for the tokens, beside their table.
    """
    sizes = f"{train:,} + {test:,} samples of {classes:,} classes"
    less = "give fewer --probes, or fewer samples, with --data.select and --test.select"
    for name, needed in bytes_needed(train=train, test=test, classes=classes, width=width).items():
        if name in probes:
            require_memory(needed, f"features and scores of {sizes} (--probes {name})", less)
    if "attentive" in probes:
        values = {"train": train * tokens * width, "test": test * tokens * width}
        new = [name for name in values if not any(folder.glob(f"{TOKENS.format(name)}*"))]  # tables that are not begun
        needed = 2 * (sum(values.values()) + sum(values[name] for name in new))
        fewer = f"average them (--token_pool 2 2 2 keeps an eighth), or {less}"
        require_disk(folder, needed, f"{tokens:,} tokens, {width:,} wide, of {sizes} (--probes attentive)", fewer)


def bytes_needed(*, train: int, test: int, classes: int, width: int) -> dict[str, int]:
    """Return the least memory that each probe takes at its peak; the arguments are those of `require_room`."""
    targets = (train + test) * classes
    features = 4 * (train + test) * width
    return {
        "knn": features + targets + 4 * train * width + 8 * len(KNN) * test * classes,
        "linear": features + targets + 12 * min(train, BLOCK) * width + 8 * max(test, train // 5) * classes,
        "attentive": targets + 4 * train * classes + 4 * test * classes,
    }


@dataclass(frozen=True)
class FeatureTables:
    """The features that are tables.

    Attributes:
        folder: The folder of the tables.
        num_classes: C.
        multi_label: Whether a sample may have any number of labels.
        num_heads: The encoder's, for the attentive probe's attention.
        device: The device on which that probe is trained.
    """

    folder: Path
    num_classes: int
    multi_label: bool
    num_heads: int
    device: "torch.device"


def compare(
    tables: FeatureTables, probes: Sequence[str], *, few_shot: Sequence[int] = (), seeds: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Run the probes.

    Args:
        tables: the features.
        probes: one or more of knn, linear, attentive.
        few_shot: numbers of train samples per class.
        seeds: draws of each.
        seed: of all draws; with few samples, of the first draw.

    Returns:
        `train` and `test` (samples, failed), `classes`, `probes`: one row each, beginning with the share of the train
        set's most frequent class, and `few_shot`: one row each of mean and standard deviation over the draws, with the
        number of samples that the smallest class has given, `fewest_per_class`.
    """
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    shot_rows: list[dict[str, Any]] = []
    if {"knn", "linear"} & set(probes):
        sets = [_vectors(tables, name) for name in ("train", "test")]
        results = _counted(tables, VECTORS, *sets)
        rows += _simple(tables, probes, *sets, seed=seed)
        for shots in few_shot:
            draws, sizes = [], []
            for draw in range(seed, seed + seeds):
                few = _first_shots(sets[0], shots, draw)
                sizes.append(few.targets.sum(axis=0, dtype=np.int64))
                draws.append(list(_simple(tables, probes, few, sets[1], seed=draw)))
            present = np.min(sizes, axis=0)[sets[0].targets.any(axis=0)]
            used = {"shots": shots, "fewest_per_class": int(present.min())}  # of a smaller class all are taken
            shot_rows += [{**used, **_spread(runs)} for runs in zip(*draws, strict=True)]
    if "attentive" in probes:
        with TemporaryDirectory(dir=tables.folder) as aside:
            sets = [_tokens(tables, name, Path(aside) / name) for name in ("train", "test")]
            results = results or _counted(tables, TOKENS, *sets)
            rows.append(_attentive(tables, *sets, seed=seed))
    frequent = np.broadcast_to(sets[0].targets.mean(axis=0), sets[1].targets.shape)
    rows.insert(0, {"probe": "most frequent", **_measured(tables, frequent, sets[1])})
    return results | {"classes": tables.num_classes, "probes": rows, "few_shot": shot_rows}


class FeatureSet(NamedTuple):
    """The features and labels of samples that could be read."""

    features: np.ndarray  # (n, D) float32, or (n, L, D) float16
    targets: np.ndarray  # (n, C) uint8 of 0 and 1


def _simple(
    tables: FeatureTables, probes: Sequence[str], train: FeatureSet, test: FeatureSet, *, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each k of the nearest neighbours, and one of the linear probe."""
    if "knn" in probes:
        for k, scores in knn_scores(train.features, train.targets, test.features, show=True).items():
            yield {"probe": f"knn, k={k}", **_measured(tables, scores, test)}
    if "linear" in probes:
        scores, chosen = linear_scores(
            train.features,
            train.targets,
            test.features,
            multi_label=tables.multi_label,
            device=tables.device,
            seed=seed,
            show=True,
        )
        yield {"probe": "linear", **_measured(tables, scores, test), **chosen}


def _attentive(tables: FeatureTables, train: FeatureSet, test: FeatureSet, *, seed: int) -> dict[str, Any]:
    scores, trained = attentive_scores(
        train.features,
        train.targets,
        test.features,
        multi_label=tables.multi_label,
        num_heads=tables.num_heads,
        device=tables.device,
        seed=seed,
        show=True,
    )
    return {"probe": "attentive", **_measured(tables, scores, test), **trained}


def _measured(tables: FeatureTables, scores: np.ndarray, test: FeatureSet) -> dict[str, float]:
    if tables.multi_label:
        return {"map": mean_average_precision(scores, test.targets)}
    labels = test.targets.argmax(axis=1)
    return {f"top{k}": float(credit_at(scores, labels, k=k).mean()) for k in (1, TOP) if k < tables.num_classes}


def _counted(tables: FeatureTables, kind: str, train: FeatureSet, test: FeatureSet) -> dict[str, Any]:
    rows = {name: pq.read_metadata(tables.folder / kind.format(name)).num_rows for name in ("train", "test")}
    read = {"train": len(train.targets), "test": len(test.targets)}
    if not all(read.values()):
        raise ValueError(f"{tables.folder}: none of the train or of the test samples could be read")
    return {name: {"samples": read[name], "failed": rows[name] - read[name]} for name in rows}


def _first_shots(train: FeatureSet, shots: int, seed: int) -> FeatureSet:
    rows = few_shot_rows(train.targets, shots=shots, seed=seed)
    return FeatureSet(train.features[rows], train.targets[rows])


def _spread(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation of the figures over the runs of one probe."""
    row: dict[str, Any] = {"probe": runs[0]["probe"], "runs": len(runs)}
    for name in (name for name in ("top1", f"top{TOP}", "map") if name in runs[0]):
        row[name], row[f"{name}_std"] = mean_and_deviation([run[name] for run in runs])
    return row


def _vectors(tables: FeatureTables, name: str) -> FeatureSet:
    path = tables.folder / VECTORS.format(name)
    vectors, rows = read_vectors(path)
    labels: Any = pq.read_table(path, columns=["labels"])["labels"]
    return FeatureSet(vectors, many_hot(labels.take(pa.array(rows)).to_pylist(), tables.num_classes))


def _tokens(tables: FeatureTables, name: str, to: Path) -> FeatureSet:
    """Return the tokens, mapped from the file `to`: they need not fit into memory."""
    with pq.ParquetFile(tables.folder / TOKENS.format(name)) as file:
        settings = json.loads(file.schema_arrow.metadata[METADATA])
        shape = (file.metadata.num_rows, int(np.prod(settings["grid"])), settings["width"])
        mapped = np.lib.format.open_memmap(to, mode="w+", dtype=np.float16, shape=shape)
        with to.open("r+b") as reserved:  # of a full disk an error, where writing to the map would end by SIGBUS
            os.posix_fallocate(reserved.fileno(), 0, to.stat().st_size)
        labels: list[list[int]] = []
        for batch in file.iter_batches(8, columns=["labels", "vector"]):
            read: Any = batch.filter(batch["vector"].is_valid())
            values = read["vector"].flatten().to_numpy(zero_copy_only=False)
            mapped[len(labels) : len(labels) + len(read)] = values.reshape(len(read), *shape[1:])
            labels += read["labels"].to_pylist()
    return FeatureSet(mapped[: len(labels)], many_hot(labels, tables.num_classes))
