"""Recipes and options: what is misspelt is named with its nearest neighbour, and nothing is guessed."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launch.cli import RECIPES, parse
from launch.pretrain import PretrainConfig


def config(*argv: str) -> PretrainConfig:
    return parse(PretrainConfig, argv, prog="pretrain.py", description="")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        config(*argv)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_defaults_recipe_and_options_go_over_each_other(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: {preset: mae_vit_tiny_patch16}\ntrain:\n  seed: 3\n  epochs: 7\ndata:\n  area: [0.3, 1]\n"
    )
    made = config("--config", str(recipe), "--train.epochs=9", "--data.read-threads", "2", "--optim.clip_grad=null")
    assert (made.model.embed_dim, made.model.decoder_depth) == (192, 2)
    assert (made.train.seed, made.train.epochs, made.train.accumulation) == (3, 9, 1)
    assert made.data.area == (0.3, 1.0)
    assert made.data.read_threads == 2
    assert made.optim.clip_grad is None


def test_the_launchers_local_rank_is_dropped_in_every_spelling() -> None:
    assert config("--local_rank=1") == config("--local-rank", "3") == config()


def test_a_resolved_config_repeats_from_its_own_values(tmp_path: Path) -> None:
    import json

    first = config("--config", "demo", "--model.img_size", "64")
    resolved = tmp_path / "config.yaml"
    resolved.write_text(json.dumps(asdict(first)))  # JSON is YAML
    assert config("--config", str(resolved)) == first


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid_and_found_by_name(recipe: Path) -> None:
    assert config("--config", recipe.stem) == config("--config", str(recipe))


def test_the_fast_recipe_differs_in_its_windows_only() -> None:
    paper, fast = config("--config", "k400_vit_large"), config("--config", "k400_vit_large_fast")
    assert replace(paper, data=replace(paper.data, windows="shared")) == fast


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--data.shrads", "x"], "unknown option --data.shrads; did you mean --data.shards?"),
        (["--model.dep", "3"], "did you mean --model.depth?"),
        (["--zzz"], "unknown option --zzz; --help lists them all"),
        (["--model.img_size", "big"], "\"model.img_size\": Expected a <class 'int'>. Got value: big"),
        (["--model.img_size", "100"], "img_size=100 must be a multiple of patch_size=16"),
        (["--train.precision", "fp8"], "train.precision"),
        (["--config", "dmeo"], "--config dmeo: no such file, nor a recipe: demo"),
        (["stray"], "stray"),
        (["--run.keep_last=1"], "keep at least 2"),
        (["--train.zero_stage=0"], "use zero_stage 1, or precision fp32"),
    ],
)
def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], told: str) -> None:
    assert told in refused(capsys, *argv)


def test_a_misspelt_recipe_key_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train:\n  seed: 1\nmodel:\n  mask_ration: 0.9\n")
    told = refused(capsys, "--config", str(recipe))
    assert "mine.yaml, line 4: unknown key model.mask_ration; did you mean model.mask_ratio?" in told


@pytest.mark.parametrize("text", ["model: [", "- 1", "just words"])
def test_a_recipe_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(text)
    with pytest.raises(SystemExit):
        config("--config", str(recipe))
    assert "broken.yaml" in capsys.readouterr().err


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SystemExit):
        config("--data.shrads=x")
    assert capsys.readouterr().err == ""
