import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from preprocess.dataset.index import DatasetError
from preprocess.plan.label_names import LabelNames
from preprocess.plan.plan import BuildPlan, ScanResult, make_plan, read_plan, write_plan
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.problems import Problem


def request(name: str, *labels: str) -> Request:
    return Request("video", 0, name, name, labels, "list.csv", 1, length_s=2.0, rate=25.0)


def plan_of(*requests: Request, **settings: int | str) -> BuildPlan:
    return make_plan(
        ScanResult(list(requests), [Problem("bad_row", "2 columns", "x", 7)], ["a note"]),
        source="list.csv",
        settings=Settings(**settings),  # type: ignore[arg-type]
        identity={"short_side": 256},
    )


def test_samples_are_numbered_in_order_and_dealt_out_by_count() -> None:
    plan = plan_of(*(request(f"v{i}") for i in range(10)), shard_size=4, split="val")
    assert len(plan) == 10
    assert plan.num_shards == 3
    shards = [plan.shard(number) for number in range(3)]
    assert [[sample.number for sample in shard] for shard in shards] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert shards[2][0].key == "000000008"
    assert shards[2][0].split == "val"
    assert shards[0][0].stop_s == math.inf


def test_small_sets_still_make_several_shards() -> None:
    assert plan_of(*(request(f"v{i}") for i in range(5))).num_shards == 1
    assert plan_of(*(request(f"v{i}") for i in range(240))).num_shards == 15
    assert plan_of(*(request(f"v{i}") for i in range(3200))).num_shards == 16
    for count in (255, 256, 257, 271, 272, 273, 3199, 3201, 3215):  # never a seventeenth for what is left over
        assert plan_of(*(request(f"v{i}") for i in range(count))).num_shards <= 16


def test_a_plan_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(request("a", "dog", "cat"), request("bé", "cat"), request("c"))
    write_plan(plan, tmp_path / "plan.parquet")
    again = read_plan(tmp_path / "plan.parquet")
    assert again.shard(0) == plan.shard(0)
    assert (again.problems, again.source, again.notes) == (plan.problems, plan.source, plan.notes)
    assert (again.label_names, again.settings) == (plan.label_names, plan.settings)


def test_numbers_stay_and_words_get_ids() -> None:
    plan = plan_of(request("a", "7", "2"), request("b", "0"), request("c"))
    assert plan.label_names == ()
    assert [sample.labels for sample in plan.shard(0)] == [[7, 2], [0], []]
    plan = plan_of(request("a", "dog", "ant"), request("b", "cat"))
    assert plan.label_names == ("ant", "cat", "dog")
    assert [sample.labels for sample in plan.shard(0)] == [[2, 0], [1]]
    with pytest.raises(DatasetError, match=r"'7' \(list\.csv, line 1\).*'cat' \(list\.csv, line 1\)"):
        plan_of(request("a", "dog", "7"), request("b", "cat"))


def test_fault_45_a_label_that_says_there_is_none_leaves_its_sample_unlabelled() -> None:
    plan = plan_of(request("a", "10"), request("b", "-1"), request("c", ""), request("d", "2.0"))
    assert [sample.labels for sample in plan.shard(0)] == [[10], [], [], [2]]
    assert "2 samples have no label, for theirs is '' or '-1'" in plan.notes


def test_an_empty_plan_is_refused_with_the_reasons() -> None:
    with pytest.raises(DatasetError, match=r"no usable sample\nlist\.csv, line 7: bad_row: 2 columns"):
        plan_of()


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="not a plan"):
        read_plan(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"short_side": 0},
        {"quality": 0},
        {"quality": 101},
        {"fps": -1.0},
        {"fps": math.nan},
        {"shard_size": 0},
        {"segment_seconds": 1.0, "segment_frames": 3},
    ],
)
def test_settings_out_of_range_name_the_setting(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)  # type: ignore[arg-type]


def test_shards_of_any_length_are_found() -> None:
    """Read a plan as an append leaves it: the last shard of the first part is partly filled."""
    plan = plan_of(*(request(f"v{i}") for i in range(9)), shard_size=4)
    lengths = [3, 1, 4, 1]
    shards = pa.array([number for number, length in enumerate(lengths) for _ in range(length)], pa.int32())
    plan = replace(plan, rows=plan.rows.set_column(plan.rows.schema.get_field_index("shard"), "shard", shards))
    assert plan.num_shards == 4
    assert [[one.number for one in plan.shard(k)] for k in range(4)] == [[0, 1, 2], [3], [4, 5, 6, 7], [8]]


def test_labels_that_are_not_among_the_fixed_names_cost_their_samples() -> None:
    found = ScanResult(
        [request("a", "cat"), request("b", "bird"), request("c", "0")], [], [], LabelNames(("dog", "cat"))
    )
    plan = make_plan(found, source="list.csv", settings=Settings(), identity={})
    assert [(one.name, one.labels) for one in plan.shard(0)] == [("a", [1]), ("c", [0])]
    (problem,) = plan.problems
    assert (problem.name, problem.reason) == ("b", "unknown_label")


def test_a_validation_set_with_ids_of_its_own_is_warned_of() -> None:
    found = ScanResult([request("a", "cat")], [], [])
    for split, fixed, warned in (("val", None, True), ("train", None, False), ("val", LabelNames(("cat",)), False)):
        again = replace(found, label_names=fixed)
        plan = make_plan(again, source="list.csv", settings=Settings(split=split), identity={})
        assert any("--label-names" in note for note in plan.notes) == warned
