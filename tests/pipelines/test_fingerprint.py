"""What a run may find changed when it goes on: nothing that the sequence depends on, or a dataset with more shards."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mae3d.io.resume import resume_rules
from pipelines.config import DataConfig, SelectConfig
from pipelines.fingerprint import NOT_THE_SEQUENCE
from pipelines.loader import Loader
from pipelines.samples.corpus import Corpus, open_corpus
from tests.support.datasets import SAMPLES, index_only, run_build, write_frames

CONFIG = DataConfig(repeat_aug=1)
A, B = index_only([5, 9, 4], seed=1, root="out/a"), index_only([7, 3], seed=2, root="out/b")
WITHOUT = replace(B, bad_shards={0: "missing"})
GROWN = index_only([5, 9, 4, 8], seed=1, root="out/a")


def make(*datasets: Any, config: DataConfig = CONFIG, **settings: Any) -> Loader:
    wanted = {"num_frames": 4, "size": 32, "seed": 5, "global_batch": 4} | settings
    return Loader(Corpus(datasets), config, **wanted)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (
            {"datasets": (A, index_only([7, 4], seed=3, root="out/c"))},
            r"dataset 2: was out/b with 10 samples in 2 shards \(\w{8}\), is out/c with 11 samples in 2 shards",
        ),
        ({"datasets": (GROWN, B)}, r"dataset 1: was out/a with 18 .* is out/a with 26 .*on_change new-epoch to go on"),
        ({"datasets": (B, A)}, r"dataset 1: .*; dataset 2: "),
        ({"datasets": (A,)}, "number of datasets: was 2, is 1"),
        (
            {"datasets": (A, WITHOUT)},
            r"bad_shards: was None, is '1 left out \(shard-00000\.tar of dataset 2\)'; samples: was '28 .*, is '21 ",
        ),
        ({"seed": 6}, "seed: was 5, is 6"),
        ({"global_batch": 2}, "global_batch: was 4, is 2"),
        ({"size": 16}, "size: was 32, is 16"),
        ({"config": replace(CONFIG, flip=0.0, erase=0.1)}, "erase: was 0, is 0.1; flip: was 0.5, is 0.0"),
        ({"config": replace(CONFIG, weights=(2, 1))}, r"weights: was \[\], is \[2, 1\]"),
        ({"config": replace(CONFIG, order="shards")}, "mix_shards: was None, is 16; order: was 'global', is 'shards'"),
        ({"config": replace(CONFIG, select=SelectConfig(split="train"))}, "samples: was '28 .*; select.split: was ''"),
    ],
)
def test_fault_33_what_has_changed_is_refused_by_name(now: dict[str, Any], told: str) -> None:
    state = make(A, B).state_dict()
    other = make(*now.pop("datasets", (A, B)), **now)
    with pytest.raises(ValueError, match=rf"cannot go on.*{told}"):
        other.load_state_dict(state)


def test_a_run_from_before_samples_could_be_left_out_goes_on() -> None:
    assert "select.without" not in json.dumps(make(A, B).state_dict())


def test_what_the_sequence_does_not_depend_on_may_change() -> None:
    state = make(A, B).state_dict()
    moved = [replace(dataset, root=Path("elsewhere")) for dataset in (A, B)]
    for dataset, old in zip(moved, (A, B), strict=True):
        vars(dataset).update(keys=old.keys, names=old.names)
    config = replace(CONFIG, read_threads=3, prefetch=1, order="global", cache_gb=1, max_bad=7, on_change="new-epoch")
    make(*moved, config=config).load_state_dict(state)
    shards = replace(CONFIG, order="shards", mix_shards=3)
    with pytest.raises(ValueError, match="mix_shards: was 3, is 4"):
        make(A, config=replace(shards, mix_shards=4)).load_state_dict(make(A, config=shards).state_dict())


def test_fault_20_a_run_without_bad_shards_goes_on_without_the_same_ones() -> None:
    state = make(A, WITHOUT).state_dict()
    make(A, WITHOUT, config=replace(CONFIG, exclude_bad_shards=True)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"bad_shards: was '1 left out .*', is None; samples: "):
        make(A, B).load_state_dict(state)
    grown = make(GROWN, WITHOUT, config=replace(CONFIG, on_change="new-epoch"))
    grown.load_state_dict(state | {"position": 4})
    assert grown.epoch == 1


def test_the_runs_config_may_change_where_the_sequence_does_not() -> None:
    """Labels are what a finetuning learns: it may not be given others."""
    assert set(resume_rules(DataConfig()).free) == NOT_THE_SEQUENCE - {"labels"}


@pytest.mark.parametrize(("position", "epoch"), [(0, 2), (4, 3), (24, 3)])
def test_a_grown_dataset_goes_on_at_the_next_epoch(position: int, epoch: int, caplog: pytest.LogCaptureFixture) -> None:
    config = replace(CONFIG, on_change="new-epoch", weights=(1, 1), select=SelectConfig(fraction=0.9, seed=1))
    before, after = make(A, B, config=config), make(GROWN, B, config=config)
    state = before.state_dict() | {"epoch": 2, "position": position}
    with caplog.at_level(logging.INFO):
        after.load_state_dict(state)
    assert (after.state_dict()["epoch"], after.state_dict()["position"], after.epoch) == (epoch, 0, epoch)
    assert f"out/a + out/b has grown: from epoch {epoch} on there are {after.num_samples} samples" in caplog.text
    assert next(after.requests()).epoch == epoch
    # Its own states are those of the grown dataset: nothing to remark on.
    caplog.clear()
    again = make(GROWN, B, config=config)
    again.load_state_dict(after.state_dict())
    assert (again.epoch, caplog.text) == (epoch, "")


@pytest.mark.parametrize(
    "datasets", [(A, index_only([7, 4], seed=3)), (index_only([5, 8, 5, 8], seed=1), B), (index_only([5], seed=1), B)]
)
def test_new_epoch_takes_nothing_but_growth(datasets: tuple[Any, ...]) -> None:
    config = replace(CONFIG, on_change="new-epoch")
    with pytest.raises(ValueError, match="Restore this, or start a new run"):
        make(*datasets, config=config).load_state_dict(make(A, B, config=config).state_dict())
    with pytest.raises(ValueError, match=r"flip: was 0\.5, is 0"):
        make(GROWN, B, config=replace(config, flip=0)).load_state_dict(make(A, B, config=config).state_dict())


def test_a_build_over_a_longer_ledger_has_grown(tmp_path: Path) -> None:
    """The same frames and a longer ledger: the first shards are the same to the byte."""
    ledger = write_frames(tmp_path / "frames")
    short = tmp_path / "short.csv"
    short.write_text("".join(ledger.read_text().splitlines(keepends=True)[:8]))
    first, second = (
        open_corpus(
            [run_build(tmp_path / name, "--frames", tmp_path / "frames", "--ledger", rows, "--shard-size", "4")]
        )
        for name, rows in (("short", short), ("long", ledger))
    )
    assert (len(first), len(second)) == (8, len(SAMPLES))
    config = replace(CONFIG, on_change="new-epoch")
    state = make(*first.datasets, config=config).state_dict()
    grown = make(*second.datasets, config=config)
    grown.load_state_dict(state | {"position": 4})
    assert grown.epoch == 1
