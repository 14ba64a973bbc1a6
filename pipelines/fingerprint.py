"""Datasets, settings, chosen rows ─► what the sequence of samples, frames and crops depends on, and what has changed.

before = fingerprint(corpus, config, order, rows, num_frames=16, size=224)      # plain values, kept in checkpoints
grown = has_grown(before, now, datasets=corpus.datasets, on_change="refuse")    # False; raises where they differ
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mae3d.io.shapes import Size
from pipelines.config import DataConfig
from pipelines.samples.corpus import Corpus
from pipelines.sampling.order import Order, ShardOrder
from preprocess.dataset.index import Dataset

# Settings that the sequence does not depend on, or only through what is put into the fingerprint in their place.
NOT_THE_SEQUENCE = {
    *("shards", "exclude_bad_shards", "moved", "labels", "order", "mix_shards", "on_change"),
    *("decode", "read_threads", "decode_threads", "prefetch", "read_gap", "retries", "max_bad", "cache", "cache_gb"),
}

_SHOWN = 5  # so many of a list stand in a message


def fingerprint(
    corpus: Corpus,
    config: DataConfig,
    order: Order,
    rows: np.ndarray,
    *,
    num_frames: int,
    size: Size,
    channels: int = 3,
) -> dict[str, Any]:
    """Return everything on which the sequence of (sample, frames, crop, flip) depends, as JSON keeps it.

    Args:
        corpus: the datasets.
        config: the settings.
        order: as it was made of them.
        rows: the rows that take part.
        num_frames: T.
        size: of a view, in pixels.
        channels: of a view; 3 leaves no trace, which runs from before there was a choice do not have.
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_THE_SEQUENCE}
    select = settings.pop("select")
    if not select["without"]:  # runs from before there was this setting go on
        del select["without"]
    settings |= {f"select.{name}": value for name, value in select.items()}
    if isinstance(order, ShardOrder):
        settings["mix_shards"] = config.mix_shards
    if bad := _bad_shards(corpus):
        settings["bad_shards"] = bad
    return {
        "datasets": [_dataset(dataset) for dataset in corpus.datasets],
        "samples": f"{len(rows)} ({hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest()[:16]})",
        "num_frames": num_frames,
        "size": size if isinstance(size, int) else list(size),
        **({} if channels == 3 else {"channels": channels}),
        "seed": order.seed,
        "global_batch": order.global_batch,
        "order": order.name,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    }


def has_grown(
    before: Mapping[str, Any], now: Mapping[str, Any], *, datasets: Sequence[Dataset], on_change: str
) -> bool:
    """Return whether a run goes on with a new epoch.

    It does if datasets have only got more shards, and `on_change` is `new-epoch`.

    Args:
        before: the fingerprint of the run.
        now: the one of this start.
        datasets: of this start.
        on_change: `refuse` or `new-epoch`.

    Raises:
        ValueError: a dataset or a setting differs; the message names each with both values.
    """
    olds = before.get("datasets", [])
    changed = [
        i for i, (old, new) in enumerate(zip(olds, now["datasets"], strict=False)) if old["content"] != new["content"]
    ]
    grown = [i for i in changed if _only_grown(olds[i], datasets[i])]
    settings = {"datasets", "samples"} if changed else {"datasets"}  # other samples are other samples chosen
    changes = [
        f"dataset {i + 1}: was {_dataset_text(olds[i])}, is {_dataset_text(now['datasets'][i])}" for i in changed
    ]
    if len(olds) != len(datasets):
        changes.append(f"number of datasets: was {len(olds)}, is {len(datasets)}")
    for name in sorted((before.keys() | now.keys()) - settings):
        if before.get(name) != now.get(name):
            changes.append(f"{name}: was {before.get(name)!r}, is {now.get(name)!r}")
    if changed and len(changes) == len(grown) and on_change == "new-epoch":
        return True
    if changes:
        may_go_on = len(changes) == len(grown)
        raise ValueError(
            f"the order of the samples cannot go on, because this has changed: {'; '.join(changes)}. Restore "
            + ("it, or add --data.on_change new-epoch to go on with the next epoch, " if may_go_on else "this, ")
            + "or start a new run"
        )
    return False


def _dataset(dataset: Dataset) -> dict[str, Any]:
    """Return what distinguishes a dataset from others, and from itself with more shards."""
    return {
        "at": dataset.location,  # for people: a dataset may be moved
        "content": dataset.fingerprint,
        "samples": len(dataset),
        "shards": len(dataset.shards),
        "shards_sha256": _hash(dataset, len(dataset.shards)),
    }


def _bad_shards(corpus: Corpus) -> str:
    """Return the names of shards and videos that are left out, for messages; the chosen rows distinguish them."""
    names = [
        f"{name} of dataset {i}"
        for i, dataset in enumerate(corpus.datasets, 1)
        for name in (
            *(dataset.shards[number].name for number in dataset.bad_shards),
            *(dataset.media_name(number) for number in dataset.bad_media),
        )
    ]
    listed = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{len(names)} left out ({listed})" if names else ""


def _only_grown(old: Mapping[str, Any], dataset: Dataset) -> bool:
    return len(dataset.shards) > old["shards"] and _hash(dataset, old["shards"]) == old["shards_sha256"]


def _hash(dataset: Dataset, count: int) -> str:
    """Hash the names, sample counts and hashes of the first shards."""
    first = [[shard.name, shard.num_samples, shard.sha256] for shard in dataset.shards[:count]]
    return hashlib.sha256(json.dumps(first).encode()).hexdigest()


def _dataset_text(entry: Mapping[str, Any]) -> str:
    return f"{entry['at']} with {entry['samples']:,} samples in {entry['shards']:,} shards ({entry['content'][:8]})"
