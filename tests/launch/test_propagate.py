"""launch/propagate.py: masks, figures and page of small videos in which one square moves over noise."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launch import propagate
from mae3d.distributed import World
from mae3d.io.label_maps import write_ids
from tests.support.foreign import contents, plant
from tests.support.pages import check_page
from tests.support.ranks import run_ranks

SIZE = (48, 64)


def scene(root: Path, name: str, *, step: int, frames: int = 5) -> None:
    """Write a video with all of its masks as DAVIS has them; object 7 moves `step` columns per frame."""
    random = np.random.default_rng(0)
    ground = random.integers(0, 90, (*SIZE, 3), dtype=np.uint8)
    for part in ("JPEGImages", "Annotations"):
        (root / part / "480p" / name).mkdir(parents=True)
    for number in range(frames):
        picture, ids = ground.copy(), np.zeros(SIZE, np.uint8)
        box = slice(16, 32), slice(16 + number * step, 32 + number * step)
        picture[box], ids[box] = (250, 240, 60), 7
        Image.fromarray(picture).save(root / "JPEGImages" / "480p" / name / f"{number:05d}.png")
        write_ids(root / "Annotations" / "480p" / name / f"{number:05d}.png", ids)


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis")
    scene(root, "moving", step=8)
    scene(root, "still", step=0)
    return root


def options(model: Path, davis: Path, out: Path, *more: str) -> list[str]:
    given = ["--run", str(model), "--frames", str(davis), "--masks", str(davis), "--out", str(out)]
    return [*given, "--size", "96", "--layer", "0", "--device", "cpu", *more]


@pytest.fixture(scope="module")
def carried(tiny_model: Path, davis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("carried") / "new" / "out"
    assert propagate.main(options(tiny_model, davis, out)) == 0
    return out


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_masks_have_the_frames_names_and_sizes_and_the_objects_numbers(carried: Path, davis: Path) -> None:
    names = [f"{number:05d}.png" for number in range(5)]
    for video in ("moving", "still"):
        assert sorted(path.name for path in (carried / "masks" / video).iterdir()) == names
        given = read_mask(davis / "Annotations" / "480p" / video / "00000.png")
        assert np.array_equal(read_mask(carried / "masks" / video / "00000.png"), given)
        for name in names:
            mask = read_mask(carried / "masks" / video / name)
            assert mask.shape == SIZE
            assert np.unique(mask).tolist() == [0, 7]


def test_scores_are_those_of_the_masks_without_the_first_and_the_last(carried: Path, davis: Path) -> None:
    results = json.loads((carried / "scores.json").read_text())
    assert [(row["sequence"], row["object"], row["frames"]) for row in results["objects"]] == [
        ("moving", 7, 3),
        ("still", 7, 3),
    ]
    moving, still = results["objects"]
    values = []
    for number in (1, 2, 3):
        pair = [
            read_mask(folder / "moving" / f"{number:05d}.png") == 7
            for folder in (carried / "masks", davis / "Annotations" / "480p")
        ]
        values.append((pair[0] & pair[1]).sum() / (pair[0] | pair[1]).sum())
    assert moving["j"] == pytest.approx(np.mean(values))
    # The first mask overlaps the true one by half, then not at all.
    assert moving["copy_j"] == pytest.approx((128 / 384) / 3)
    assert moving["j"] > moving["copy_j"]
    assert (still["copy_j"], still["copy_f"]) == (1, 1)
    for name in ("j", "f", "jf", "copy_jf"):
        assert results["means"][name] == pytest.approx((moving[name] + still[name]) / 2)
    with (carried / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sequence"] for row in rows] == ["moving", "still", "mean"]
    assert float(rows[2]["jf"]) == results["means"]["jf"]


def test_the_page_holds_its_pictures_and_figures(carried: Path) -> None:
    check_page(carried / "propagate.html")
    text = (carried / "propagate.html").read_text()
    assert text.count("<img") == 4
    assert text.count('alt="') == 4
    assert "moving 7" in text
    for video in ("moving", "still"):
        with Image.open(carried / f"{video}.gif") as animation:
            assert animation.n_frames > 1
        assert (carried / f"{video}.png").is_file()


def test_started_again_it_makes_what_is_missing_and_refuses_other_settings(
    carried: Path, tiny_model: Path, davis: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = contents(carried)
    (carried / "sequences" / "still.json").unlink()
    (carried / "masks" / "still" / "00003.png").unlink()
    kept = (carried / "moving.gif").stat().st_mtime_ns
    assert propagate.main(options(tiny_model, davis, carried)) == 0
    assert contents(carried) == whole
    assert (carried / "moving.gif").stat().st_mtime_ns == kept
    for more, named in ((["--k", "3"], "settings.k was 5 and is 3"), (["--random_init", "true"], "settings.model")):
        with pytest.raises(SystemExit) as stopped:
            propagate.main(options(tiny_model, davis, carried, *more))
        assert stopped.value.code == 2
        assert named in capsys.readouterr().err
    assert contents(carried) == whole


def on_rank(world: World, arguments: dict[str, Any]) -> None:
    propagate.propagate(propagate.PropagateConfig(**arguments), world)


@pytest.mark.slow
def test_two_ranks_write_the_same_files(carried: Path, tiny_model: Path, davis: Path, tmp_path: Path) -> None:
    given = {"run": str(tiny_model), "frames": str(davis), "masks": str(davis), "out": str(tmp_path)}
    run_ranks(on_rank, given | {"size": 96, "layer": 0, "device": "cpu"}, world=2)
    assert contents(tmp_path) == contents(carried)


def test_one_mask_is_carried_without_figures(tiny_model: Path, davis: Path, tmp_path: Path) -> None:
    given = ["--frames", str(davis / "JPEGImages" / "480p" / "moving"), "--run", str(tiny_model), "--mode", "slide"]
    first = davis / "Annotations" / "480p" / "moving" / "00000.png"
    assert propagate.main([*given, "--masks", str(first), "--out", str(tmp_path), "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "scores.json").read_text())
    assert (results["means"], results["objects"][0]["frames"]) == ({}, 0)
    assert len(list((tmp_path / "masks" / "moving").iterdir())) == 5


@pytest.mark.parametrize("name", ["masks/moving/00000.png", "scores.csv", "propagate.html", "sequences/moving.json"])
def test_files_of_others_stay(
    tiny_model: Path, davis: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plant(tmp_path, name)
    with pytest.raises(SystemExit) as stopped:
        propagate.main(options(tiny_model, davis, tmp_path))
    assert stopped.value.code == 2
    assert "error" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("ids", "named"), [(np.zeros(SIZE, np.uint8), "no object"), (np.ones((3, 4), np.uint8), "4 x 3")]
)
def test_masks_that_do_not_fit_are_refused(
    tiny_model: Path, davis: Path, tmp_path: Path, ids: np.ndarray, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ids(tmp_path / "mask.png", ids)
    given = ["--frames", str(davis / "JPEGImages" / "480p" / "moving"), "--run", str(tiny_model), "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        propagate.main([*given, "--masks", str(tmp_path / "mask.png"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_a_mask_that_ends_the_work_leaves_torch_as_it_was(
    tiny_model: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The masks come from a generator: inference mode must not stay on while it waits, or after an error."""
    masks = tmp_path / "masks"
    shutil.copytree(davis / "Annotations" / "480p" / "moving", masks)
    Image.new("L", (3, 3), 1).save(masks / "00002.png")
    frames = davis / "JPEGImages" / "480p" / "moving"
    with pytest.raises(SystemExit) as stopped:
        propagate.main(options(tiny_model, frames, tmp_path / "out", "--masks", str(masks)))
    assert not torch.is_inference_mode_enabled()
    assert stopped.value.code == 2
    assert "00002.png: 3 x 3 pixels" in capsys.readouterr().err
