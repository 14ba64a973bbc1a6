"""Recipes and options: what is misspelt is named with its nearest neighbour, and nothing is guessed."""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.common.cli import defaults_of, fail, joined, parse, reporting
from launch.common.recipe_files import RECIPES
from launch.inference.settings import EvaluateConfig
from launch.training.config import FinetuneConfig, PretrainConfig
from mae3d.distributed import World
from mae3d.meeting import RankInfo


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


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--data.shards", "a", "b c", "--data.weights", "2", "0.5"], "shards", ("a", "b c")),
        (["--data.weights", "2", "0.5", "--data.shards", "a"], "weights", (2.0, 0.5)),
        (["--data.shards", "my clips"], "shards", "my clips"),
        (["--data.shards", "2021"], "shards", "2021"),
        (["--data.shards=a"], "shards", "a"),
        (['--data.shards=["a", "b"]'], "shards", ("a", "b")),
        (["--data.area", "0.08", "1"], "area", (0.08, 1.0)),
        (["--data.area=0.08 1"], "area", (0.08, 1.0)),
        (["--data.area", "[0.08,", "1]"], "area", (0.08, 1.0)),
        (["--data.short-side", "256", "320", "--local_rank", "1"], "short_side", (256, 320)),
        (["--data.weights", "3"], "weights", (3.0,)),
        (["--data.weights"], "weights", ()),
    ],
)
def test_several_values_follow_an_option(argv: list[str], field: str, value: object) -> None:
    assert getattr(config(*argv).data, field) == value


def test_a_file_whose_name_begins_with_a_bracket_is_no_list() -> None:
    from launch.embed import EmbedConfig

    for names in (["[2021] talk.mp4"], ["[2021] talk.mp4", "b.mp4"]):
        argv = ["--run", "r", "--out", "o", "--videos", *names]
        assert parse(EmbedConfig, argv, prog="embed.py", description="").videos == tuple(names)


@pytest.mark.parametrize("text", ["[2, 1]", "2 1", '"2 1"', '"[2, 1]"'])
def test_several_values_in_a_recipe(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"data:\n  weights: {text}\n  shards: [a b, c]\nmodel:\n  mean: 0.5 0.4 0.3\n  std: 0.25\n")
    made = config("--config", str(recipe))
    assert (made.data.weights, made.data.shards) == ((2.0, 1.0), ("a b", "c"))
    assert (made.model.mean, made.model.std) == ((0.5, 0.4, 0.3), 0.25)


def test_keys_are_text_however_they_look() -> None:
    from launch.visualize import VisualizeConfig

    def keys(*argv: str) -> tuple[str, ...]:
        given = ("--run", "r", "--data.shards", "s", "--out", "o")
        return parse(VisualizeConfig, [*argv, *given], prog="visualize.py", description="").keys

    assert keys("--keys", "000017", "0042", "1e3") == ("000017", "0042", "1e3")
    assert keys("--keys=000017") == ("000017",)
    assert keys() == ()


def printed(capsys: pytest.CaptureFixture[str], kind: Any, *argv: str) -> str:
    """Return what a command prints that ends without an error before it begins."""
    with pytest.raises(SystemExit) as stopped:
        parse(kind, argv, prog="mae3d x", description="Says what.\n\n    mae3d x --run.dir r\n")
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_help_shows_what_people_use_and_the_whole_help_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    short = printed(capsys, PretrainConfig, "--data.shards", "x", "--help")
    assert "\n  --data.shards VALUE ...  folders made by" in short
    assert "\nexamples:\n  mae3d x --run.dir r\n" in short
    assert "--data.select.per_class" not in short
    assert all(len(line) <= 90 for line in short.splitlines())
    assert short.count("\n") < 30
    full = " ".join(printed(capsys, PretrainConfig, "-h", "all").split())
    assert "--data.weights VALUE ... share of each folder in an epoch" in full
    assert "--data.select.per_class N at most this many of each label" in full
    assert "shards that are mixed at a time in the order `shards`" in full
    assert "(0.0016)" in full
    group = printed(capsys, PretrainConfig, "--help=optim")
    assert "--optim.eps" in group
    assert "--data." not in group


def test_a_group_of_the_help_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help dta: no such group; there are general, model, data" in refused(capsys, "--help", "dta")


@pytest.mark.parametrize(
    ("kind", "argv"),
    [
        (PretrainConfig, ["--config", "k400_vit_huge", "--model.img_size", "112", "--data.weights", "2", "0.3"]),
        (PretrainConfig, ["--train.deepspeed", '{"comms_logger": {"enabled": true}}', "--model.mean", "0.1 0.2 0.3"]),
        (FinetuneConfig, ["--config", "finetune_phases", "--few_shot", "1", "5", "--data.shards", "2021", "b c"]),
        (EvaluateConfig, ["--run", "null", "--out", "1e3", "--mask", "tube", "--data.select.split", "été: #1"]),
    ],
)
def test_a_printed_recipe_starts_the_same(
    kind: Any, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "printed.yaml"
    recipe.write_text(printed(capsys, kind, *argv, "--print_config"), encoding="utf-8")
    parsed = [parse(kind, given, prog="x", description="") for given in (argv, ["--config", str(recipe)])]
    assert parsed[0] == parsed[1]
    lines = recipe.read_text(encoding="utf-8").splitlines()
    for at, line in enumerate(lines):  # a comment on each
        if re.match(r" *\w", line):
            assert re.match(r" *# \S", lines[at - 1]), line


def test_a_printed_recipe_leaves_what_must_be_given_as_a_comment(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, EvaluateConfig, "--print_config")
    assert "\n# out:\n" in text
    with pytest.raises(SystemExit) as stopped:
        parse(EvaluateConfig, ["--print_config", "--batch", "0"], prog="x", description="")
    assert stopped.value.code == 2  # no recipe of what cannot start


def test_a_switch_may_stand_alone() -> None:
    assert config("--extend", "--train.epochs", "3").extend
    assert config("--train.epochs", "3", "--model.trunc_init").model.trunc_init
    assert not config("--init_decoder", "false").init_decoder


def test_the_launchers_local_rank_is_dropped_in_every_spelling() -> None:
    assert config("--local_rank=1") == config("--local-rank", "3") == config()


def test_a_resolved_config_repeats_from_its_own_values(tmp_path: Path) -> None:
    import json

    first = config("--config", "demo", "--model.img_size", "48")
    resolved = tmp_path / "config.yaml"
    resolved.write_text(json.dumps(asdict(first)))  # JSON is YAML
    assert config("--config", str(resolved)) == first


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid_and_found_by_name(recipe: Path) -> None:
    kind = FinetuneConfig if recipe.stem.startswith("finetune") else PretrainConfig
    by_name, by_path = (
        parse(kind, ["--config", name], prog="x", description="") for name in (recipe.stem, str(recipe))
    )
    assert by_name == by_path


def test_the_fast_recipe_differs_in_its_windows_only() -> None:
    paper, fast = config("--config", "k400_vit_large"), config("--config", "k400_vit_large_fast")
    assert replace(paper, data=replace(paper.data, windows="shared")) == fast


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--data.shrads", "x"], "unknown option --data.shrads; did you mean --data.shards?"),
        (["--model.dep", "3"], "did you mean --model.depth?"),
        (["--zzz"], "unknown option --zzz; --help all lists them all"),
        (["--model.img_size", "big"], '"model.img_size": Expected int or tuple[int, int]. Got value: big'),
        (["--model.img_size", "100"], "img_size=100 must be a multiple of patch_size=16"),
        (["--train.precision", "fp8"], "train.precision"),
        (["--config", "dmeo"], "--config dmeo: no such file, nor a recipe: demo"),
        (["stray"], "stray"),
        (["--run.keep_last=1"], "must be at least 2"),
        (["--train.zero_stage=0", "--train.precision=bf16"], "use zero_stage 1, or precision fp32"),
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


@pytest.mark.parametrize(("size", "waited_for"), [(None, False), ("1", False), ("2", True)])
def test_what_ends_a_rank_before_it_joins_the_others_is_reported_to_them(
    monkeypatch: pytest.MonkeyPatch, size: str | None, waited_for: bool
) -> None:
    reported: list[str] = []
    monkeypatch.setattr("mae3d.meeting.report_failure", reported.append)
    if size:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(SystemExit):
        fail("no such option")
    assert reported == ["no such option"] * waited_for


def test_other_ranks_speak_only_if_they_outlive_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told_before_waiting = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", lambda seconds: told_before_waiting.append(capsys.readouterr().err))
    with pytest.raises(SystemExit):
        config("--data.shrads=x")
    assert told_before_waiting == [""]
    assert "error on process 1: unknown option --data.shrads" in capsys.readouterr().err


class Left(BaseException):
    """The end of the process."""


@pytest.mark.parametrize(("device", "size"), [("cuda", 2), ("cuda", 1), ("cpu", 2)])
@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (None, None, ""),
        (ValueError("odd"), 2, "error: odd"),
        (OSError(28, "full", "x"), 3, "error: x: full"),
        (RuntimeError("CUDA error: no memory"), 1, "RuntimeError: CUDA error"),
        (KeyboardInterrupt(), 1, "KeyboardInterrupt"),
        (SystemExit(75), 75, ""),
    ],
)
def test_a_rank_that_fails_alone_waits_neither_for_its_gpu_nor_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    size: int,
    error: BaseException | None,
    code: int | None,
    told: str,
) -> None:
    closed: list[str] = []
    world = World(RankInfo(0, size, 0, size), torch.device(device))
    monkeypatch.setattr(World, "close", lambda _: closed.append("world"))
    monkeypatch.setattr("mae3d.distributed.start_world", lambda *_, **__: world)

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr("os._exit", leave)

    class Engine:
        def close(self) -> None:
            closed.append("engine")

    def run() -> None:
        with joined(config("--device", device), where=""), world.closing(Engine()):
            if error is not None:
                raise error

    if error is None:
        run()
    elif world.hangs_alone:
        with pytest.raises(Left) as left:
            run()
        assert left.value.args == (code,)
        assert told in capsys.readouterr().err
    else:
        with pytest.raises(SystemExit if isinstance(error, ValueError | OSError) else type(error)):
            run()
    assert world.hangs_alone == (device == "cuda" and size == 2)
    assert closed == ([] if error is not None and world.hangs_alone else ["engine", "world"])


def test_defaults_are_those_of_every_setting_that_has_one() -> None:
    changed = config("--data.flip", "0", "--data.select.fraction", "0.5")
    found = defaults_of(changed)
    assert found["data"]["flip"] == 0.5
    assert found["data"]["select"]["fraction"] == 1
    assert found["model"]["mask_type"] == "random"
    assert found.keys() == {field.name for field in fields(changed)}


def test_a_relative_path_that_is_missing_is_told_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path in the config.yaml of a run begins where that run was started."""
    from mae3d.weights.files import WeightsError, find_model_file
    from pipelines.samples.corpus import open_corpus
    from preprocess.dataset.index import DatasetError

    monkeypatch.chdir(tmp_path)
    where = f"looked for in {tmp_path}, where this command runs"
    with pytest.raises(WeightsError, match=where):
        find_model_file("out/run")
    with pytest.raises(DatasetError, match=where) as error:
        open_corpus(["my shards"])
    assert "`mae3d preprocess build --out 'my shards'` makes a dataset" in str(error.value)
    with pytest.raises(DatasetError) as error:
        open_corpus([tmp_path / "none"])
    assert "looked for" not in str(error.value)
    with pytest.raises(SystemExit), reporting():
        Path("labels.csv").read_text()
    assert where in capsys.readouterr().err
