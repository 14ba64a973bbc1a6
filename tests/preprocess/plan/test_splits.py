import hashlib
from pathlib import Path

import numpy as np
import pytest

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.splits import parse_fractions, split_of_group, split_rule
from tests.support.media import make_frame_folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """12 recordings of 3 samples each."""
    for i in range(12):
        make_frame_folder(tmp_path / "frames" / f"v{i}", 6, size=(16, 16))
    assert main(command(tmp_path)) == 0
    return tmp_path / "out"


def command(folder: Path, *more: str) -> list[str]:
    run = ["build", "--frames", str(folder / "frames"), "--out", str(folder / "out"), "--workers", "1"]
    return [*run, "--segment-frames", "2", "--source-fps", "2", "--shard-size", "10", *more]


def splits(out: Path) -> dict[str, set[str]]:
    """Return the splits of every recording."""
    dataset = open_dataset(out)
    found: dict[str, set[str]] = {}
    for i in range(len(dataset)):
        found.setdefault(dataset.name(i), set()).add(dataset.split_names[dataset.splits[i]])
    return found


def tree(out: Path, pattern: str = "*") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob(pattern))}


def test_no_recording_is_on_both_sides_and_shards_are_untouched(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(out, "shard-*")
    assert main(["split", str(out), "--by", "name", "--fractions", "train=0.7,val=0.3"]) == 0
    found = splits(out)
    assert all(len(sides) == 1 for sides in found.values())
    assert set().union(*found.values()) == {"train", "val"}
    assert tree(out, "shard-*") == before
    said = capsys.readouterr().out
    numbers = {side: sum(sides == {side} for sides in found.values()) for side in ("train", "val")}
    for side, count in numbers.items():
        assert f"{side}: {3 * count} samples, {count} groups" in said
    assert main(["verify", str(out), "--full", "--workers", "1"]) == 0


def test_splits_stay_through_reruns_appends_and_other_orders(out: Path, tmp_path: Path) -> None:
    assert main(["split", str(out), "--by", "name", "--fractions", "train=0.5,val=0.3,test=0.2"]) == 0
    found, whole = splits(out), tree(out)
    (out / "dataset.json").unlink()
    (out / "shard-00001.parquet").unlink()
    assert main(command(tmp_path)) == 0
    assert tree(out) == whole
    for i in range(12, 20):
        make_frame_folder(tmp_path / "frames" / f"u{i}", 6, size=(16, 16))
    assert main(command(tmp_path, "--append")) == 0
    grown = splits(out)
    assert len(grown) == 20
    assert {name: grown[name] for name in found} == found
    rule = split_rule({"train": 0.5, "val": 0.3, "test": 0.2}, seed=0)
    assert all(sides == {split_of_group(name, rule)} for name, sides in grown.items())


def test_groups_may_come_from_a_table(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "cases.csv"
    rows = [f"v{i},p{i // 3},x" for i in range(12)]
    table.write_text("\n".join(["video,patient,other", *rows[:-1]]) + "\n")
    run = ["split", str(out), "--by", "patient", "--table", str(table), "--key", "video", "--fractions"]
    run += ["train=0.5,val=0.5", "--seed", "2"]
    before = tree(out)
    assert main(run) == 2
    assert "1 of 12 recordings have no group: v11; add rows" in capsys.readouterr().err
    assert tree(out) == before
    table.write_text("\n".join(["video,patient,other", *rows]) + "\n")
    assert main(run) == 0
    found = splits(out)
    of_patient = [{side for i in range(3 * p, 3 * p + 3) for side in found[f"v{i}"]} for p in range(4)]
    assert all(len(sides) == 1 for sides in of_patient)
    assert set().union(*of_patient) == {"train", "val"}
    table.write_text("video,patient\nv1,a\nv1,b\n")
    assert main(run) == 2
    assert "v1 is there twice" in capsys.readouterr().err
    # Another split replaces it.
    assert main(["split", str(out), "--by", "name", "--fractions", "all=1"]) == 0
    assert set().union(*splits(out).values()) == {"all"}


def test_what_is_appended_without_a_group_keeps_its_own_split(out: Path, tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("name,patient\n" + "".join(f"v{i},p{i}\n" for i in range(12)))
    assert main(["split", str(out), "--by", "patient", "--table", str(table)]) == 0
    make_frame_folder(tmp_path / "frames" / "new", 6, size=(16, 16))
    assert main(command(tmp_path, "--append", "--split", "later")) == 0
    assert splits(out)["new"] == {"later"}


def test_shares_are_kept_and_another_seed_draws_others() -> None:
    names = [f"video {i}" for i in range(4000)]
    drawn = {}
    for seed in (0, 1):
        rule = split_rule({"train": 0.9, "val": 0.1}, seed=seed)
        drawn[seed] = np.array([split_of_group(name, rule) == "val" for name in names])
        assert abs(drawn[seed].mean() - 0.1) < 0.02
    assert abs((drawn[0] & drawn[1]).mean() - 0.01) < 0.007


def test_a_larger_share_only_adds_to_the_first_split() -> None:
    few, many = (split_rule({"train": share, "val": 1 - share}, seed=0) for share in (0.5, 0.8))
    for i in range(200):
        assert split_of_group(str(i), few) == "val" or split_of_group(str(i), many) == "train"


@pytest.mark.parametrize("text", ["train", "train=x", "train=0.5,train=0.5", "=1", ""])
def test_shares_that_cannot_be_read_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="--fractions"):
        parse_fractions(text)


@pytest.mark.parametrize("fractions", [{"train": 0.5}, {"train": 1.5, "val": -0.5}, {}])
def test_shares_must_add_up(fractions: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        split_rule(fractions, seed=0)


def test_a_split_that_nothing_falls_to_is_warned_of(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", str(out), "--by", "name", "--fractions", "train=0.9999,val=0.0001"]) == 0
    assert "warning: no group fell to val: there are 12; try another --seed" in capsys.readouterr().out
    assert main(["split", str(out), "--by", "patient"]) == 2
    assert main(["split", str(out / "none"), "--by", "name"]) == 2
