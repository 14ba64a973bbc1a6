"""`--dry_run` of the two trainings: it checks what a start checks, says what that would do, and writes nothing."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from launch.common.cli import parse
from launch.finetune import main as finetune_main
from launch.pretrain import pretrain
from launch.training import precision
from launch.training.config import PretrainConfig
from mae3d.distributed import World
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore, Owner
from pipelines.samples.corpus import corpus_of
from tests.support.ranks import run_ranks


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return all files and folders below a folder, with times and contents."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def start(world: World, recipe: Path, shards: Path, run: Path, *options: str) -> str:
    """Start a training, and return what it prints, or the error that refuses it."""
    argv = ["--config", str(recipe), "--data.shards", str(shards), "--run.dir", str(run), "--device", "cpu", *options]
    config = parse(PretrainConfig, argv, prog="", description="")
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            assert pretrain(config, corpus_of(config.data), world)
    except (ValueError, OSError) as error:
        return f"refused: {error}"
    return said.getvalue()


def tries(world: World, recipe: Path, shards: Path, folder: Path) -> dict[str, str]:
    """Return what dry runs say before a training, after it and beside one, having compared the folder each time."""
    run, said = folder / "below" / "run", {}

    def tried(name: str, *options: str, at: Path = run) -> None:
        before = tree(folder)
        said[name] = start(world, recipe, shards, at, "--dry_run", *options)
        assert tree(folder) == before, name

    tried("new", "--train.steps", "2")
    # In this process alone: bf16 seems to win, but the recipe has fp32.
    precision.has_bf16, precision.bf16_gain = (lambda: True), (lambda model: 2.0)
    tried("auto", "--train.precision", "auto", "--train.steps", "2")
    tried("bad init", "--init", str(folder / "none"))
    tried("bad batch", "--train.global_batch", "100")
    (folder / "file").touch()
    tried("in the way", at=folder / "file" / "run")
    start(world, recipe, shards, run, "--train.steps", "1")
    tried("done", "--train.steps", "1")
    tried("longer", "--train.steps", "3", "--extend")
    tried("auto, begun", "--train.steps", "3", "--extend", "--train.precision", "auto")
    tried("other", "--train.steps", "1", "--train.seed", "5")
    FolderLockStore(run).create(LOCK_NAME, Owner.here("training"))
    tried("in use", "--train.steps", "3", "--extend")
    return said


@pytest.fixture(scope="module")
def said(recipe: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what `tries` returns."""
    (result,) = run_ranks(tries, recipe, shards, tmp_path_factory.mktemp("dry"), world=1)
    made: dict[str, str] = result
    return made


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("new", ["M parameters", "14 take part", "step:    4 samples x 8 views", "2 steps = 0.7 epochs of 3",
                 "warm-up of 2 steps", "GiB per rank", "begins at step 0 of 2", "dry run: nothing was written"]),
        ("auto", ["precision auto: bf16, bf16 is 2.00 times as fast", "cpu, bf16, ZeRO 1"]),
        ("auto, begun", ["device:  cpu, fp32, ZeRO 1"]),  # what it began with
        ("bad init", ["refused: ", "none"]),
        ("bad batch", ["refused: ", "100"]),
        ("in the way", ["refused: ", "file"]),
        ("done", ["finished already"]),
        ("longer", ["resumes from step 1 of 3", "total_steps was 1, is 3"]),
        ("other", ["refused: ", "train.seed: was 0, is 5"]),
        ("in use", ["in use by"]),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_a_start_does_and_writes_nothing(name: str, parts: list[str], said: dict[str, Any]) -> None:
    for part in parts:
        assert part in said[name], said[name]


def test_a_dry_run_of_a_finetuning_needs_what_a_start_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        finetune_main(["--dry_run", "--run.dir", "r"])
    assert stopped.value.code == 2
    assert "--data.shards is missing" in capsys.readouterr().err
