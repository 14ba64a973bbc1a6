"""`data.select.*` ─► the rows that take part: a pure function of the datasets and the settings.

rows = select_rows(corpus, SelectConfig(split="train", per_class=10, seed=1), rows=usable_rows(...))
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import SelectConfig
from pipelines.samples.corpus import Corpus
from preprocess.dataset.curation import read_flags
from preprocess.dataset.index import DatasetError

_SHOWN = 5  # so many of a list stand in a message
_LETTERS = str.maketrans("0123456789abcdef", "ghijklmnopqrstuv")


def select_rows(corpus: Corpus, select: SelectConfig, *, rows: np.ndarray, option: str = "data") -> np.ndarray:
    """Apply split, names, without, fraction and per_class, in this order.

    A sample's luck in `fraction` depends on its key and the seed alone: other samples, added or removed, do not change
    it. `per_class` takes the luckiest of each label, so that 1 of each is among 10 of each under the same seed; of
    several labels none may have enough already, and a sample without a label is never taken.

    Args:
        corpus: the datasets.
        select: the settings.
        rows: (n,) ascending rows to choose from.
        option: section of the command line that the settings come from, for messages.

    Returns:
        The chosen rows, ascending.

    Raises:
        DatasetError: nothing is left, and after which setting; an unknown split or name; a names file that is none; no
            flags of this state of a dataset.
    """
    history = [f"{len(rows):,} usable samples"]
    for setting, choose in _STEPS.items():
        value = getattr(select, setting)
        if value == getattr(SelectConfig, setting):
            continue
        try:
            rows = choose(corpus, select, rows)
        except DatasetError as error:
            raise DatasetError(f"{option}.select.{setting}={_shown(value)}: {error}") from error
        history.append(f"{option}.select.{setting}={_shown(value)} leaves {len(rows):,}")
        if not len(rows):
            raise DatasetError(f"{corpus}: no sample is left: {', '.join(history)}")
    return rows


def describe_selection(select: SelectConfig) -> str:
    """Describe the settings for people: "split=train, per_class=10 (seed 1)"; "" if every sample takes part."""
    settings = [
        f"{name}={_shown(getattr(select, name))}"
        for name in _STEPS
        if getattr(select, name) != getattr(SelectConfig, name)
    ]
    drawn = select.fraction < 1 or select.per_class > 0
    return ", ".join(settings) + (f" (seed {select.seed})" if drawn else "")


def _of_split(corpus: Corpus, select: SelectConfig, rows: np.ndarray) -> np.ndarray:
    if select.split not in corpus.split_names:
        known = ", ".join(name or '"" (none)' for name in corpus.split_names)
        raise DatasetError(f"{corpus} has the splits {known}")
    return rows[corpus.split[rows] == corpus.split_names.index(select.split)]


def _of_names(corpus: Corpus, select: SelectConfig, rows: np.ndarray) -> np.ndarray:
    """Return the samples whose name, or whose key in a single dataset, is in the file."""
    try:
        lines = Path(select.names).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot be read ({error}); give a text file") from error
    requested = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    of_names = pa.array(requested, pa.string())
    columns = [corpus.names] if len(corpus.datasets) > 1 else [corpus.names, corpus.keys]
    chosen, known = np.zeros(len(corpus), dtype=bool), np.zeros(len(requested), dtype=bool)
    for column in columns:
        chosen |= pc.is_in(column, value_set=of_names).to_numpy()
        known |= pc.is_in(of_names, value_set=column.combine_chunks()).to_numpy(zero_copy_only=False)
    if not known.all():
        unknown = [name for name, there in zip(requested, known.tolist(), strict=True) if not there]
        what = "names (keys belong to one dataset)" if len(corpus.datasets) > 1 else "names or keys"
        raise DatasetError(
            f"{len(unknown)} of {len(requested)} {what} are not in {corpus}: "
            + ", ".join(unknown[:_SHOWN])
            + (", …" if len(unknown) > _SHOWN else "")
        )
    return rows[chosen[rows]]


def _without(corpus: Corpus, select: SelectConfig, rows: np.ndarray) -> np.ndarray:
    return rows[~np.logical_or.reduce(list(_flags(corpus, select).values()))[rows]]


def describe_flagged(corpus: Corpus, select: SelectConfig) -> str:
    """Return how many samples `without` leaves out, by flag, for people; "" if it is not set."""
    if not select.without:
        return ""
    flags = _flags(corpus, select)
    count = int(np.count_nonzero(np.logical_or.reduce(list(flags.values()))))
    by_flag = ", ".join(f"{name} {np.count_nonzero(of_all):,}" for name, of_all in flags.items())
    return f"{count:,} of {len(corpus):,} samples are left out by their flags: {by_flag}"


def _flags(corpus: Corpus, select: SelectConfig) -> dict[str, np.ndarray]:
    """Return the flags that leave samples out, by name, bool (N,)."""
    of_datasets = [read_flags(dataset, select.without) for dataset in corpus.datasets]
    return {name: np.concatenate([flags[name] for flags in of_datasets]) for name in select.without}


def _fraction(corpus: Corpus, select: SelectConfig, rows: np.ndarray) -> np.ndarray:
    return rows[_luck(corpus, select)[rows] < select.fraction * 2.0**64]


def _few(corpus: Corpus, select: SelectConfig, rows: np.ndarray) -> np.ndarray:
    labels = corpus.labels
    rows = rows[labels.per_sample[rows] > 0]
    by_luck = rows[np.argsort(_luck(corpus, select)[rows], kind="stable")]
    taken = np.zeros(corpus.num_classes, dtype=np.int64)
    chosen = []
    for row in by_luck.tolist():
        of_row = labels.of(row)
        if (taken[of_row] < select.per_class).all():
            taken[of_row] += 1
            chosen.append(row)
    return np.sort(np.array(chosen, dtype=rows.dtype))


def _luck(corpus: Corpus, select: SelectConfig) -> np.ndarray:
    """Return (N,) uint64, uniform: a hash (SipHash, pandas) of each sample's key under the seed."""
    import pandas as pd  # a third of a second

    keys = corpus.keys.to_numpy().astype(object)
    return pd.util.hash_array(keys, hash_key=_hash_key(select.seed), categorize=False)


def _hash_key(seed: int) -> str:
    """Return 16 characters that no other seed has: its digits; from 10^16 on letters for its hexadecimal ones."""
    return f"{seed:016d}" if seed < 10**16 else f"{seed:016x}".translate(_LETTERS)


def _shown(value: object) -> object:
    return " ".join(value) if isinstance(value, tuple) else value


_STEPS = {"split": _of_split, "names": _of_names, "without": _without, "fraction": _fraction, "per_class": _few}
