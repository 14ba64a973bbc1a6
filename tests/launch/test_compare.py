"""launch/compare.py: models over the same samples, their differences with intervals, and a page that answers."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from launch import compare, probe
from tests.support.datasets import COLOURS, coloured
from tests.support.pages import check_page

IMAGE = "image=timm:test_vit@none"
FEW = ("--seeds", "1", "--draws", "300")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that become brighter: a model that sees more than one frame at a time can see if they play backwards."""
    return coloured(tmp_path_factory.mktemp("train"), list(COLOURS) * 8, seed=0, ramp=12)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["green", "blue", "red"] * 4
    return coloured(tmp_path_factory.mktemp("test"), words, seed=1, ramp=12)


def command(train: Path, test_set: Path, out: Path, *models: str) -> list[str]:
    sets = ["--data.shards", str(train), "--test.shards", str(test_set), "--data.sampling_rate", "1"]
    return ["--models", *models, *sets, "--out", str(out), "--device", "cpu", "--encoder_size", "32"]


@pytest.fixture(scope="module")
def compared(train: Path, test_set: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "out"
    models = (f"own={tiny_model}", IMAGE, f"same={tiny_model}")
    assert compare.main([*command(train, test_set, out, *models), *FEW]) == 0
    return out


def results_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "compare.json").read_text()))


@pytest.mark.slow
def test_each_model_has_each_measure_with_an_interval(compared: Path) -> None:
    results = results_of(compared)
    models = {model["name"]: model for model in results["models"]}
    assert list(models) == ["own", "image", "same", "untrained", "chance"]
    names = ["linear", "knn", "few_shot_1", "few_shot_5", "time_order"]
    for model in models.values():
        assert list(model["measures"]) == names
        assert all(0 <= m["low"] <= m["mean"] <= m["high"] <= 1 for m in model["measures"].values())
    assert (models["own"]["frames"], models["image"]["frames"]) == (4, 4)  # the image model takes the run's
    assert models["own"]["parameters"] == models["untrained"]["parameters"] != models["image"]["parameters"]
    assert all(models[name]["clips_per_s"] > 0 for name in ("own", "image", "untrained"))
    assert models["chance"]["measures"]["linear"]["mean"] == pytest.approx(1 / 3)
    assert (results["train"]["samples"], results["test"]["samples"], results["test"]["videos"]) == (24, 12, 12)


@pytest.mark.slow
def test_the_linear_figure_is_probes_own(
    compared: Path, train: Path, test_set: Path, tiny_model: Path, tmp_path: Path
) -> None:
    options = command(train, test_set, tmp_path / "probes", "")
    assert probe.main(["--run", str(tiny_model), *options[2:-2]]) == 0
    rows = json.loads((tmp_path / "probes" / "probe.json").read_text())["probes"]
    (linear,) = [row for row in rows if row["probe"] == "linear"]
    assert results_of(compared)["models"][0]["measures"]["linear"]["mean"] == linear["top1"]


@pytest.mark.slow
def test_video_shows_the_time_order_and_averaged_frames_cannot(compared: Path) -> None:
    models = {model["name"]: model["measures"]["time_order"] for model in results_of(compared)["models"]}
    assert models["own"]["low"] > 0.9
    assert models["image"] == {"mean": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.slow
def test_one_model_twice_differs_by_nothing(compared: Path) -> None:
    entries = results_of(compared)["differences"]
    differences = {(entry["model"], entry["against"]): entry["measures"] for entry in entries}
    assert set(differences) == {
        *((name, "untrained") for name in ("own", "image", "same")),
        ("own", "image"),
        ("same", "image"),
        ("own", "same"),
    }
    assert {tuple(gap.values()) for gap in differences["own", "same"].values()} == {(0, 0, 0)}
    assert differences["own", "image"]["time_order"]["low"] > 0.4


@pytest.mark.slow
def test_the_page_and_the_table_say_what_the_results_say(compared: Path) -> None:
    check_page(compared / "compare.html")
    page = (compared / "compare.html").read_text()
    assert "No difference between own and same is shown" in page
    assert page.count('role="img"') == 5
    assert re.search(r'aria-label="time order, percent: own [\d.]+ \[[\d., ]+\]; image 50\.0', page)
    assert "12 test samples of 12 videos" in page
    with (compared / "compare.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["name"] for row in rows] == ["own", "image", "same", "untrained", "chance"]
    measured = results_of(compared)["models"][1]["measures"]["knn"]
    assert (float(rows[1]["knn"]), float(rows[1]["knn_high"])) == (measured["mean"], measured["high"])


@pytest.mark.slow
def test_started_again_with_fewer_models_it_keeps_their_tables(
    compared: Path, train: Path, test_set: Path, tiny_model: Path
) -> None:
    before, results = (compared / "own" / "train.parquet").stat().st_mtime_ns, results_of(compared)
    options = command(train, test_set, compared, f"own={tiny_model}")
    assert compare.main([*options, *FEW, "--few_shot", "1", "--time_order", "false"]) == 0
    assert (compared / "own" / "train.parquet").stat().st_mtime_ns == before
    own = results_of(compared)["models"][0]["measures"]
    assert own == {name: results["models"][0]["measures"][name] for name in ("linear", "knn", "few_shot_1")}


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (("RUN",), "NAME=RUN"),
        (("chance=RUN",), "neither untrained nor chance"),
        (("../a=RUN",), "NAME=RUN"),
        (("a=timm:test_vit",), "a=timm:test_vit@download"),
        (("a=x", "a=y"), "one name"),
        (("a=absent_run",), "absent_run"),
    ],
)
def test_what_is_no_model_is_refused(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare.main(command(train, train, tmp_path / "out", *models))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["compare.html", "compare.json", "compare.csv"])
def test_another_programs_results_are_not_replaced(
    train: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        compare.main(command(train, train, tmp_path, f"own={tiny_model}"))
    assert stopped.value.code == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
