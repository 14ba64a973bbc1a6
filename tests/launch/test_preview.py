"""The preview shows the Loader's own batches with true captions, takes recipes and options, and tells what is wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.preview import PreviewConfig, _in_words, _parse, _view_in_words, main, preview
from mae3d.io.contact_sheet import CELL, GAP, MARGIN, Strip, contact_sheet
from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.samples.corpus import open_corpus
from pipelines.sampling.augment import Crop, Erase, Op, View

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
model: {img_size: 32, num_frames: 4, preset: mae_vit_tiny_patch16}
data: {sampling_rate: 1, repeat_aug: 2, windows: shared, area: [0.3, 1.0], erase: 0.5, select: {fraction: 1.0}}
optim: {lr: 1e-3}
train: {global_batch: 512, seed: 7}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_the_sheet_holds_the_loaders_pixels(shards: Path, recipe: Path, tmp_path: Path) -> None:
    argv = [str(tmp_path / "out"), "--config", str(recipe), "--data.shards", str(shards), "--batch", "3"]
    assert main([*argv, "--epoch", "2", "--batches", "2", "--data.rand-augment", "rand-m5-inc1"]) == 0
    names = [f"epoch-2-batch-{i:03d}.{kind}" for i in range(2) for kind in ("gif", "png")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    config = DataConfig(
        sampling_rate=1, repeat_aug=2, windows="shared", area=(0.3, 1.0), erase=0.5, rand_augment="rand-m5-inc1"
    )
    loader = Loader(open_corpus([shards]), config, num_frames=4, size=32, seed=7, global_batch=3)
    loader.load_state_dict(loader.state_dict() | {"epoch": 2})
    batches = [next(loader) for _ in range(2)]
    loader.close()
    scale = CELL // 32
    for number, batch in enumerate(batches):
        sheet = np.asarray(Image.open(tmp_path / "out" / f"epoch-2-batch-{number:03d}.png"))
        top = 0  # of the strip; each frame must be found whole, below the strip before
        for i, frame in enumerate(batch.clips.flatten(0, 2).numpy()):
            cell = np.kron(frame, np.ones((scale, scale, 1), dtype=np.uint8))
            left = MARGIN + i % 4 * (32 * scale + GAP)
            column = sheet[:, left : left + len(cell)]
            found = [y for y in range(top, len(column)) if np.array_equal(column[y : y + len(cell)], cell)]
            assert found, (number, i)
            top = found[0] + (len(cell) if i % 4 == 3 else 0)
        with Image.open(tmp_path / "out" / f"epoch-2-batch-{number:03d}.gif") as animation:
            assert animation.n_frames == 4
            assert animation.info["loop"] == 0


def test_captions_say_what_was_done() -> None:
    view = View(
        Crop(3, 5, 40, 60, True), (Op("shear_x", -0.21), Op("invert", 0), Op("posterize", 2)), Erase(1, 2, 3, 4, 5)
    )
    assert _view_in_words(view, "64 x 48") == (
        "crop 60 x 40 at 5, 3 of 64 x 48; flipped; shear x -0.21; invert; posterize 2; erased 4 x 3 at 2, 1"
    )
    assert _view_in_words(View(Crop(0, 0, 48, 48, False)), "64 x 48") == "crop 48 x 48 at 0, 0 of 64 x 48"
    assert _in_words([0, 4, 8, 12]) == "0, 4 ... 12"
    assert _in_words([0, 0, 0, 0]) == "0 (4 times)"
    assert _in_words([0, 4, 8, 11]) == "0, 4, 8, 11"


def test_options_go_over_the_recipe(recipe: Path) -> None:
    config = _parse(["OUT", "--config", str(recipe)])
    assert (config.out, config.num_frames, config.size, config.seed, config.batch) == ("OUT", 4, 32, 7, 4)
    assert _parse(["--config", str(recipe), "--out", "OUT"]) == config
    assert config.data.area == (0.3, 1.0)
    argv = "OUT --data.area 0.08 1 --data.shards a b --data.weights 2 1 --size=64 --data.select.fraction 0.5"
    config = _parse([*argv.split(), f"--config={recipe}"])
    assert (config.size, config.data.area, config.data.roots, config.data.weights) == (
        64,
        (0.08, 1.0),
        ("a", "b"),
        (2, 1),
    )
    assert (config.data.erase, config.data.select.fraction) == (0.5, 0.5)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "launch/recipes").glob("*.yaml")))
def test_every_recipe_can_be_shown(name: str) -> None:
    config = _parse(["OUT", "--config", name, "--data.short_side", "256 320"])
    assert isinstance(config, PreviewConfig)
    assert config.data.short_side == (256, 320)


def test_a_misspelt_key_is_refused_in_the_section_that_is_read(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(RECIPE.replace("repeat_aug", "repeat_augg"))
    with pytest.raises(SystemExit) as stopped:
        _parse(["OUT", "--config", str(recipe)])
    assert stopped.value.code == 2
    assert "line 3: unknown key data.repeat_augg; did you mean data.repeat_aug?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "which shards? Give --data.shards"),
        (["--data.shards", "nowhere"], "nowhere"),
        (["--config", "k401"], "--config k401: no such file, nor a recipe: demo, finetune_few_shot, "),
        (["--data.repeat_augg", "2"], "repeat_augg"),
        (["--data.rand_augment", "rand-x1"], "unknown part 'x1'"),
        (["--data.shards", "SHARDS", "--batch", "99"], "14 usable samples are fewer than --batch=99"),
        (["--data.shards", "SHARDS", "--data.short_side", "64", "128"], "is shorter than model.img_size=224"),
        (["--epoch", "-1"], "epoch=-1 must be at least 0"),
    ],
)
def test_what_is_wrong_is_told(
    options: list[str], told: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(shards) if option == "SHARDS" else option for option in options]
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "out"), *argv])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_pasted_command_of_pretraining_shows_its_clips(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["out", "--config", "demo", "--data.shards", "a", "b", "--model.img-size=32", "--model.num_frames", "4"]
    pasted = ["--train.seed", "7", "--optim.betas", "0.9", "0.95", "--run.dir=run", "--eval.select.split", "val"]
    config = _parse([*argv, *pasted, "--device", "cpu", "--batch", "2"])
    assert (config.size, config.num_frames, config.seed, config.batch) == (32, 4, 7, 2)
    assert config.data.shards == ("a", "b")
    told = capsys.readouterr().err
    assert "without effect here: --optim.betas, --run.dir, --eval.select.split, --device\n" in told


def test_a_folder_that_cannot_be_made_is_an_io_error(shards: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "file" / "out"), "--data.shards", str(shards), "--size", "16"])
    assert stopped.value.code == 3
    assert "file" in capsys.readouterr().err


def test_substituted_samples_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.datasets import build_shards

    shards = build_shards(tmp_path / "set")
    corpus = open_corpus([shards])
    spans = corpus.spans(3, np.arange(corpus.num_frames[3]))
    with corpus.shard_path(int(corpus.shard[3])).open("r+b") as shard:
        for offset, size in zip(spans.offset.tolist(), spans.size.tolist(), strict=True):
            shard.seek(offset)
            shard.write(bytes(size))
    shown: list[Strip] = []

    def recorded(strips: list[Strip]) -> Image.Image:
        shown.extend(strips)
        return contact_sheet(strips)

    monkeypatch.setattr("mae3d.io.contact_sheet.contact_sheet", recorded)
    data = DataConfig(shards=str(shards), sampling_rate=1, repeat_aug=1)
    preview(PreviewConfig(str(tmp_path / "out"), data, num_frames=2, size=16, batch=14))
    assert len(shown) == 14
    assert [strip.details.startswith("in place of a damaged sample") for strip in shown].count(True) == 1


def test_help_is_quick_and_imports_neither_torch_nor_dali() -> None:
    code = (
        "import sys\nfrom launch.preview import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'nvidia.dali', 'PIL'} & set(sys.modules), 'heavy'"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert "--data.rand_augment" in child.stdout
    assert "samples in a batch" in child.stdout
