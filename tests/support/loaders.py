"""Batches for tests: the next few of a loader, and requests for rows in a given order."""

from collections.abc import Iterator

import numpy as np

from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.samples.corpus import Corpus
from pipelines.sampling.requests import BatchRequest, training_request
from pipelines.stream import Batch


def take(loader: Loader, batches: int) -> list[Batch]:
    """Return the next batches, and close the loader."""
    taken = [next(loader) for _ in range(batches)]
    loader.close()
    return taken


def requests_for(
    corpus: Corpus, config: DataConfig, order: np.ndarray, *, batch: int, num_frames: int, size: int
) -> Iterator[BatchRequest]:
    """Yield training requests for rows in this order, `batch` at a time."""
    for i in range(0, len(order), batch):
        yield training_request(
            corpus, config, rows=order[i : i + batch], positions=np.arange(i, i + batch), epoch=0, seed=3,
            num_frames=num_frames, size=size,
        )  # fmt: skip
