"""One or more datasets ─► one numbering of rows: what every other module of this package reads samples through.

corpus = open_corpus(("out/kinetics", "out/surgery"))
dataset, i = corpus.locate(240_017)      # row of the corpus ─► its dataset and the row there
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from preprocess.index import Dataset, DatasetError, FrameSpans, open_dataset


class Corpus:
    """Datasets one behind the other. Arrays have length N, all samples; one dataset's are its mapped columns."""

    def __init__(self, datasets: Sequence[Dataset]):
        self.datasets = tuple(datasets)
        self.row_starts = np.cumsum([0, *map(len, self.datasets)])
        self._shard_starts = np.cumsum([0, *(len(dataset.shards) for dataset in self.datasets)])

    def __len__(self) -> int:
        return int(self.row_starts[-1])

    @cached_property
    def num_frames(self) -> np.ndarray:
        """(N,) int32."""
        return _joined([dataset.num_frames for dataset in self.datasets])

    @cached_property
    def fps(self) -> np.ndarray:
        """(N,) float64, NaN = unknown."""
        return _joined([dataset.fps for dataset in self.datasets])

    @cached_property
    def width(self) -> np.ndarray:
        """(N,) int32, in pixels."""
        return _joined([dataset.width for dataset in self.datasets])

    @cached_property
    def height(self) -> np.ndarray:
        """(N,) int32, in pixels."""
        return _joined([dataset.height for dataset in self.datasets])

    @cached_property
    def shard(self) -> np.ndarray:
        """(N,) number of the shard, counted through all datasets."""
        starts = self._shard_starts[:-1]
        return _joined([d.shard + start if start else d.shard for d, start in zip(self.datasets, starts, strict=True)])

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the labels by number."""
        return self.datasets[0].label_names

    @cached_property
    def has_several_labels(self) -> bool:
        """Whether any sample has more than one label."""
        return any(len(d) > 0 and np.diff(d.label_offsets).max() > 1 for d in self.datasets)

    @cached_property
    def num_classes(self) -> int:
        """The greatest label number of any sample, plus one."""
        return 1 + max((int(d.label_values.max()) for d in self.datasets if len(d.label_values)), default=-1)

    def locate(self, row: int) -> tuple[Dataset, int]:
        """The dataset that holds a row, and the row's number there."""
        which = int(np.searchsorted(self.row_starts, row, side="right")) - 1
        return self.datasets[which], row - int(self.row_starts[which])

    def find(self, key: str) -> int:
        """The row of the first sample with this key; DatasetError if there is none."""
        for dataset, start in zip(self.datasets[:-1], self.row_starts, strict=False):
            try:
                return int(start) + dataset.find(key)
            except DatasetError:
                continue
        return int(self.row_starts[-2]) + self.datasets[-1].find(key)

    def key(self, row: int) -> str:
        """The sample's key in its own dataset."""
        dataset, i = self.locate(row)
        return dataset.key(i)

    def name(self, row: int) -> str:
        """The sample's name in its own dataset."""
        dataset, i = self.locate(row)
        return dataset.name(i)

    def labels_of(self, row: int) -> list[int]:
        """The sample's labels: none, one, or several."""
        dataset, i = self.locate(row)
        return dataset.labels_of(i)

    def frames(self, row: int, frame_indices: np.ndarray) -> FrameSpans:
        """Where frames of a sample lie in its shard."""
        dataset, i = self.locate(row)
        return dataset.frames(i, frame_indices)

    def shard_path(self, shard: int) -> Path:
        """The tar with this number (a value of `shard`); for messages and for `open_shard`."""
        which = int(np.searchsorted(self._shard_starts, shard, side="right")) - 1
        return self.datasets[which].shard_path(shard - int(self._shard_starts[which]))

    def open_shard(self, shard: int) -> int:
        """A file descriptor of the tar with this number, open for reading; the caller closes it. Raises OSError."""
        return os.open(self.shard_path(shard), os.O_RDONLY)

    @property
    def fingerprint(self) -> str:
        """Changes with anything in any dataset."""
        return "+".join(dataset.fingerprint for dataset in self.datasets)

    def __str__(self) -> str:
        return " + ".join(str(dataset.root) for dataset in self.datasets)


def open_corpus(roots: Sequence[str | Path]) -> Corpus:
    """Opens every dataset.

    Raises:
        DatasetError: one of them cannot be used.
    """
    return Corpus([open_dataset(root) for root in roots])


def _joined(columns: list[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)
