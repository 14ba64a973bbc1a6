"""Datasets become one numbering of rows, through which this package reads samples.

corpus = open_corpus(("out/kinetics", "out/surgery"))
dataset, i = corpus.locate(240_017)      # row of the corpus ─► its dataset and the row there
"""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipelines.config import DataConfig, is_url
from pipelines.samples.labels import SHOWN, Labels, listed, read_labels, united_labels
from preprocess.dataset.index import META_NAME, Dataset, DatasetError, Spans, open_dataset
from preprocess.dataset.layout import Layout
from preprocess.dataset.media import MediaFiles

if TYPE_CHECKING:
    from pipelines.storage.cache import Cache, RemoteFile
    from pipelines.storage.remote import RemoteShards

logger = logging.getLogger(__name__)


def _joined(columns: list[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _column(name: str) -> "cached_property[np.ndarray]":
    """Return a property of a corpus: its datasets' columns of this name, one behind the other."""
    return cached_property(lambda corpus: _joined([getattr(dataset, name) for dataset in corpus.datasets]))


class Corpus:
    """Datasets one behind the other. Arrays have length N, all samples; one dataset's are its mapped columns."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        remote: "Mapping[int, RemoteShards] | None" = None,
        labels: Labels | None = None,
        option: str = "data",
    ):
        """Join datasets; `remote` maps the number of a dataset behind a URL to the reader of its shards.

        Messages name the options of the section `option`.

        Raises:
            DatasetError: no `labels` are given, and the datasets' own are not of one kind.
        """
        self.datasets, self._remote = tuple(datasets), remote or {}
        self.labels = labels or united_labels(datasets, option=option)
        self.row_starts = np.cumsum([0, *map(len, self.datasets)])
        self._shard_starts = np.cumsum([0, *(len(dataset.shards) for dataset in self.datasets)])

    def __len__(self) -> int:
        return int(self.row_starts[-1])

    @cached_property
    def readable_rows(self) -> np.ndarray:
        """(n,) int64, ascending: all rows but those of shards and media files that are left out as bad."""
        good = []
        for dataset, start in zip(self.datasets, self.row_starts, strict=False):
            is_bad = np.isin(dataset.shard, list(dataset.bad_shards))
            if dataset.bad_media:
                is_bad |= np.isin(dataset.media, list(dataset.bad_media))
            good.append(start + np.flatnonzero(~is_bad))
        return _joined(good)

    @property
    def left_out(self) -> list[str]:
        """For people: each shard and media file that is left out as bad, with how many samples, and why."""
        shards = [
            f"{dataset.location}/{dataset.shards[number].name} ({dataset.shards[number].num_samples:,} samples): {what}"
            for dataset in self.datasets
            for number, what in dataset.bad_shards.items()
        ]
        return shards + [
            f"{dataset.media_name(number)} ({np.count_nonzero(dataset.media == number):,} samples): {what}"
            for dataset in self.datasets
            for number, what in dataset.bad_media.items()
        ]

    num_frames = _column("num_frames")  # (N,) int32
    fps = _column("fps")  # (N,) float64, NaN = unknown
    width, height = _column("width"), _column("height")  # (N,) int32, in pixels

    @cached_property
    def shard(self) -> np.ndarray:
        """(N,) number of the shard, counted through all datasets."""
        starts = self._shard_starts[:-1]
        return _joined([d.shard + start if start else d.shard for d, start in zip(self.datasets, starts, strict=True)])

    @property
    def label_names(self) -> list[str]:
        """Names of the labels by number."""
        return self.labels.names

    @cached_property
    def has_multiple_labels(self) -> bool:
        """Return whether any sample has more than one label."""
        return bool((self.labels.per_sample > 1).any())

    @property
    def num_classes(self) -> int:
        """Return one more than the greatest label number of a name or a sample; it changes if `labels` are replaced."""
        return max(len(self.labels.names), 1 + int(self.labels.values.max(initial=-1)))

    @cached_property
    def split(self) -> np.ndarray:
        """(N,) positions in `split_names`."""
        number = {name: i for i, name in enumerate(self.split_names)}
        mapped = [np.array([number[name] for name in d.split_names], dtype=np.int32)[d.splits] for d in self.datasets]
        return _joined(mapped)

    @cached_property
    def split_names(self) -> list[str]:
        """Names of the splits of all datasets; "" where samples have none."""
        return list(dict.fromkeys(name for dataset in self.datasets for name in dataset.split_names))

    def locate(self, row: int) -> tuple[Dataset, int]:
        """Return the dataset that holds a row, and the row's number there."""
        which = int(np.searchsorted(self.row_starts, row, side="right")) - 1
        return self.datasets[which], row - int(self.row_starts[which])

    def find(self, key: str) -> int:
        """Return the row of the first sample with this key; DatasetError if there is none."""
        for dataset, start in zip(self.datasets[:-1], self.row_starts, strict=False):
            try:
                return int(start) + dataset.find(key)
            except DatasetError:
                continue
        return int(self.row_starts[-2]) + self.datasets[-1].find(key)

    @property
    def keys(self) -> pa.ChunkedArray:
        """The keys of all samples in their own datasets."""
        return pa.chunked_array([chunk for dataset in self.datasets for chunk in dataset.keys.chunks], pa.string())

    @property
    def names(self) -> pa.ChunkedArray:
        """The names of all samples in their own datasets."""
        return pa.chunked_array([chunk for dataset in self.datasets for chunk in dataset.names.chunks], pa.string())

    def key(self, row: int) -> str:
        """Return the sample's key in its dataset."""
        dataset, i = self.locate(row)
        return dataset.key(i)

    def name(self, row: int) -> str:
        """Return the sample's name in its dataset."""
        dataset, i = self.locate(row)
        return dataset.name(i)

    def labels_of(self, row: int) -> list[int]:
        """Return the sample's labels, none or more."""
        return self.labels.of(row)

    def spans(self, row: int, frames: np.ndarray) -> Spans:
        """Return where the parts with these frames of a sample lie in its shard, each once, as `Dataset.spans`."""
        dataset, i = self.locate(row)
        return dataset.spans(i, frames)

    def layout(self, row: int) -> Layout:
        """Return the layout of the sample's dataset."""
        return self.locate(row)[0].layout

    @property
    def layouts(self) -> set[str]:
        """Return the names of the layouts of all datasets."""
        return {dataset.layout.name for dataset in self.datasets}

    def shard_path(self, shard: int) -> Path:
        """Return the tar with this number (a value of `shard`), of a dataset in a folder."""
        which, number = self._locate_shard(shard)
        return self.datasets[which].shard_path(number)

    def shard_name(self, shard: int) -> str:
        """Return path or URL of the tar with this number, for messages."""
        file = self.remote_file(shard)
        return file.url if file else str(self.shard_path(shard))

    def file_name(self, row: int) -> str:
        """Return path or URL of the file that holds a row's frames, for messages: a tar, or a media file."""
        dataset, i = self.locate(row)
        if dataset.media_files is not None:
            return dataset.media_name(int(dataset.media[i]))
        return self.shard_name(int(self.shard[row]))

    def open_shard(self, shard: int) -> int:
        """Return a file descriptor of the tar with this number, open for reading; the caller closes it.

        Raises:
            OSError: it cannot be read, or fetched.
            DamagedFileError: it was fetched, and its sha256 is not that of dataset.json.
        """
        which, number = self._locate_shard(shard)
        if which in self._remote:
            return self._remote[which].open(number)
        return os.open(self.shard_path(shard), os.O_RDONLY)

    def media(self, row: int) -> tuple[MediaFiles, int]:
        """Return the media files of the dataset of a row, and the number of the row's."""
        dataset, i = self.locate(row)
        assert dataset.media_files is not None, "a sample of shards"
        return dataset.media_files, int(dataset.media[i])

    def dataset_is_there(self, shard: int) -> bool:
        """Return whether dataset.json can be read beside this shard: then not all of the storage has gone."""
        which, _ = self._locate_shard(shard)
        if which in self._remote:
            return self._remote[which].is_there()
        return (self.datasets[which].root / META_NAME).exists()

    @property
    def cache(self) -> "Cache | None":
        """Return the cache into which shards behind URLs are fetched; None if there are none."""
        return next((shards.cache for shards in self._remote.values()), None)

    @property
    def index_bytes(self) -> int:
        """Bytes of the cache that index files take as long as they are open."""
        return sum(shards.index_bytes for shards in self._remote.values())

    def remote_file(self, shard: int) -> "RemoteFile | None":
        """Return the tar with this number as the cache knows it; None for one in a folder."""
        which, number = self._locate_shard(shard)
        return self._remote[which].files[number] if which in self._remote else None

    def _locate_shard(self, shard: int) -> tuple[int, int]:
        which = int(np.searchsorted(self._shard_starts, shard, side="right")) - 1
        return which, shard - int(self._shard_starts[which])

    @property
    def repair(self) -> str:
        """Return the remedy for damaged shards that a message has named."""
        folders = [f"`mae3d preprocess verify {shlex.quote(d.location)} --full`" for d in self.datasets if not d.url]
        urls = [d.url for d in self.datasets if d.url]
        remedies = (
            [f"run {' and '.join(dict.fromkeys(folders))}, build the shards named there again"] if folders else []
        )
        if urls:  # `verify` reads folders
            remedies.append(
                f"copy the shards at {' and '.join(dict.fromkeys(urls))} there again, from a folder that "
                "`mae3d preprocess verify FOLDER --full` finds whole, or after building them again"
            )
        return "; ".join(remedies)

    @property
    def fingerprint(self) -> str:
        """Changes with anything in any dataset."""
        return "+".join(dataset.fingerprint for dataset in self.datasets)

    def __str__(self) -> str:
        return " + ".join(dataset.location for dataset in self.datasets)


def corpus_of(config: DataConfig, *, option: str = "data") -> Corpus:
    """Open a corpus by the settings of a section of the command line."""
    return open_corpus(
        config.roots,
        labels=config.labels,
        cache=config.cache,
        cache_gb=config.cache_gb,
        exclude_bad_shards=config.exclude_bad_shards,
        moved=config.new_places,
        option=option,
    )


def open_corpus(
    roots: Sequence[str | Path],
    *,
    labels: str | Path = "",
    cache: str | Path = "",
    cache_gb: float = 100,
    exclude_bad_shards: bool = False,
    moved: Mapping[str, str] | None = None,
    option: str = "data",
) -> Corpus:
    """Open every dataset.

    Args:
        roots: folders, or URLs of such.
        labels: a file of `labels.read_labels` that replaces the datasets' own labels.
        cache: folder for what is fetched from URLs; "" = `pipelines.storage.cache.default_folder`.
        cache_gb: most that it may hold, in GB.
        exclude_bad_shards: go without the samples of shards and media files that are missing or not whole, instead of
            refusing them.
        moved: new places of the folders or URLs of media files, by the old ones.
        option: section of the command line that the roots come from, for messages.

    Raises:
        DatasetError: one of them cannot be used, or the cache cannot.
    """
    urls = {i: str(root) for i, root in enumerate(roots) if is_url(str(root))}
    how: dict[str, Any] = {"exclude_bad_shards": exclude_bad_shards, "moved": moved}
    remote = {}
    if urls:
        from pipelines.storage.remote import open_cache, open_remote

        opened_cache = open_cache(cache, limit_bytes=int(cache_gb * 1e9))
        remote = {i: open_remote(url, opened_cache, **how) for i, url in urls.items()}
    datasets = [
        remote[i].dataset if i in remote else open_dataset(str(root).removeprefix("file://"), **how)
        for i, root in enumerate(roots)
    ]
    return Corpus(datasets, remote=remote, labels=read_labels(labels, datasets) if labels else None, option=option)


def check_labels(
    corpus: "Corpus",
    rows: np.ndarray,
    *,
    num_classes: int,
    multi_label: bool,
    missing_classes: Literal["refuse", "warn", "ignore"] = "ignore",
    option: str = "data",
) -> None:
    """Check, before any training, that a classifier of `num_classes` can be trained or validated on these samples.

    Args:
        corpus: has the labels.
        rows: (n,) the training samples.
        num_classes: labels run from 0 to num_classes - 1.
        multi_label: whether a sample may have several labels, or none.
        missing_classes: what classes without a sample get.
        option: section of the command line that these samples come from, for messages.

    Raises:
        DatasetError: labels out of range, or samples without one or with several, listed; or classes without a training
            sample, by name.
    """
    labels = corpus.labels
    if not multi_label:
        odd = rows[labels.per_sample[rows] != 1]
        if len(odd):
            bad = [
                f"{corpus.name(row)}, key {corpus.key(row)} ({labels.per_sample[row]})" for row in odd[:SHOWN].tolist()
            ]
            raise DatasetError(
                f"{corpus}: {len(odd)} of {len(rows)} samples do not have one label each: "
                f"{listed(bad, len(odd))}. Give labels with --{option}.labels FILE, leave these out with "
                f"--{option}.select.names FILE, or --model.multi_label true where samples may have any number"
            )
    sample = np.repeat(np.arange(len(corpus)), labels.per_sample)
    taken = np.isin(sample, rows)
    outside = taken & ((labels.values < 0) | (labels.values >= num_classes))
    if outside.any():
        bad = [
            f"{value} ({corpus.name(row)}, key {corpus.key(row)})"
            for value, row in zip(labels.values[outside][:SHOWN], sample[outside][:SHOWN].tolist(), strict=True)
        ]
        from_one = set(labels.values[outside].tolist()) == {num_classes} and labels.values[taken].min() == 1
        counting = "They count from 1, and ids count from 0. " if from_one else ""
        raise DatasetError(
            f"{corpus}: {outside.sum()} labels are out of range for {num_classes} classes (0 to {num_classes - 1}): "
            f"{listed(bad, int(outside.sum()))}. {counting}Give --model.num_classes {labels.values[taken].max() + 1}, "
            f"or other labels with --{option}.labels FILE (numbers from 0, or names)"
        )
    missing = np.setdiff1d(np.arange(num_classes), labels.values[taken]).tolist()
    if missing_classes != "ignore" and missing:
        shown = [f"{i} ({labels.names[i]})" if i < len(labels.names) else str(i) for i in missing[:SHOWN]]
        text = (
            f"{corpus}: {len(missing)} of {num_classes} classes have no training sample: {listed(shown, len(missing))}"
        )
        if missing == [0] and not labels.names:
            text += ". The labels count from 1: ids count from 0, or give names with --data.labels FILE"
        if missing_classes == "warn":
            logger.warning(
                "warning: %s. The model will hardly ever name them; --data.missing_classes refuse stops instead", text
            )
            return
        raise DatasetError(
            f"{text}. Take samples that have them (--data.select, --data.labels), or train without them: "
            "--data.missing_classes warn"
        )
