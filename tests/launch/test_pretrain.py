"""`deepspeed launch/pretrain.py` as users start it: cut, stopped, resumed, on fewer processes; and its refusals."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from launch.common.eval_set import EvalSet
from launch.pretrain import main
from launch.training import trainer
from mae3d.checkpoints.format import SliceReader
from mae3d.distributed import World
from mae3d.tracking.run_dir import read_metrics
from mae3d.weights.files import load_model
from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.samples.corpus import Corpus
from tests.support.datasets import index_only, run_build, write_frames
from tests.support.jobs import DEEPSPEED, ROOT, STEPS, Job, arguments, losses, wait_until
from tests.support.ranks import run_ranks


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return what the command prints when it ends with exit code 2, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    assert stopped.value.code == 2
    return "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_the_contract_says(uncut: Path) -> None:
    written = losses(uncut)
    assert written[-1] < 0.9 * written[0]
    assert (uncut / "DONE").exists()
    assert not (uncut / "STOPPED").exists()
    newest = uncut / "checkpoints" / (uncut / "checkpoints" / "latest").read_text().strip()
    assert newest.name == f"step-{STEPS:08d}"
    assert sorted(path.name for path in newest.iterdir()) == [
        "manifest.json", "model.safetensors", "rank-00000.safetensors", "rank-00001.safetensors", "state.json",
    ]  # fmt: skip
    state = json.loads((newest / "state.json").read_text())
    assert state["loader"]["position"] == STEPS % 3 * 4
    assert state["rate"]["total_steps"] == STEPS  # what going on to another length compares
    row = read_metrics(uncut)[0]
    assert {
        "step",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "clips_per_s",
        "data_wait",
        "mfu",
        "skipped_steps",
        "rollbacks",
        "substituted",
        "read_retries",
        "decode_errors",
        "failed_saves",
    } == set(row)
    assert row["lr"] == 0.0  # upstream's warm-up starts at nothing
    assert load_model(uncut).config.embed_dim == 24


@pytest.mark.slow
def test_fault_29_a_killed_rank_and_a_restart_write_the_losses_of_an_uncut_run(
    recipe: Path, shards: Path, uncut: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = Job(recipe, shards, run, processes=2)
    ranks = job.wait_for_ranks(2)
    wait_until((run / "checkpoints" / "latest").exists)
    ranks[1].kill()
    code, output = job.end()
    assert code not in (0, 75), output
    assert not (run / "DONE").exists()
    code, output = Job(recipe, shards, run, processes=2).end()
    assert code == 0, output
    assert "resumed from" in output
    assert losses(run) == losses(uncut)
    weights = [
        SliceReader(folder / "checkpoints" / f"step-{STEPS:08d}").whole("encoder.norm.weight", "master")
        for folder in (run, uncut)
    ]
    assert torch.equal(*weights)


@pytest.mark.launch
def test_fault_31_a_stop_is_agreed_saved_and_gone_on_with_by_one_process(
    recipe: Path, shards: Path, uncut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    job = Job(recipe, shards, run, launcher=[*DEEPSPEED, "2"])
    ranks = job.wait_for_ranks(2)
    job.wait_for_step(5)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):  # the stop is agreed: the other may have ended by now
            rank.send_signal(signal.SIGTERM)
        time.sleep(0.05)  # the launcher, too, tells them one after the other
    code, output = job.end()
    assert code == 75, output
    assert (run / "STOPPED").read_text().startswith("stopped by SIGTERM after step")
    code, output = Job(recipe, shards, run, processes=1).end()
    assert code == 0, output
    assert not (run / "STOPPED").exists()
    assert losses(run) == pytest.approx(losses(uncut), abs=1e-5)
    capsys.readouterr()
    assert main(arguments(recipe, shards, run)) == 0
    assert "finished already" in "".join(capsys.readouterr())


@pytest.mark.soak
def test_bf16_by_default_resumes_within_its_rounding(recipe: Path, shards: Path, tmp_path: Path) -> None:
    options = ("--train.precision", "bf16")
    code, output = Job(recipe, shards, tmp_path / "uncut", *options, processes=1).end()
    assert code == 0, output
    job = Job(recipe, shards, tmp_path / "cut", *options, processes=1)
    job.wait_for_step(6)
    job.process.kill()
    job.end()
    code, output = Job(recipe, shards, tmp_path / "cut", *options, processes=1).end()
    assert code == 0, output
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "uncut"), abs=1e-3)


def test_fault_33_other_settings_are_refused_before_anything_is_touched(
    recipe: Path, shards: Path, uncut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (uncut / "metrics.jsonl").read_bytes()
    output = refused(capsys, *arguments(recipe, shards, uncut), "--data.flip", "0", "--train.seed=1")
    assert "data.flip: was 0.5, is 0.0; train.seed: was 0, is 1" in output
    assert (uncut / "metrics.jsonl").read_bytes() == before


@pytest.mark.soak
def test_a_mixture_of_datasets_goes_on_with_the_next_epoch_when_one_has_grown(
    recipe: Path, shards: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.csv"
    write_frames(tmp_path / "frames")
    short.write_text("".join((tmp_path / "frames" / "ledger.csv").read_text().splitlines(keepends=True)[:8]))
    first = run_build(tmp_path / "first", "--frames", tmp_path / "frames", "--ledger", short, "--shard-size", "4")
    run, mixed = tmp_path / "run", ("--data.weights", "2", "1", "--data.select.fraction", "0.99")

    def train(*options: str) -> tuple[int, str]:
        return Job(recipe, shards, run, *mixed, *options, processes=1).end()

    code, output = train("--data.shards", str(first), str(shards), "--train.steps", "4")
    assert code == 0, output
    assert f"data:    {first}: 8 samples, 8 of them an epoch, " in output
    assert f"         {shards}: 14 samples, 4 of them an epoch, " in output
    assert "         mixed 2 : 1\n" in output
    assert "samples: 22 take part; fraction=0.99 (seed 0); 2 of all are shorter than a clip " in output
    assert "order:   a permutation of all samples\n" in output
    again = ("--data.shards", str(shards), str(shards), "--train.steps", "7", "--extend", "true")
    code, output = train(*again)
    assert code == 2, output
    assert f"dataset 1: was {first} with 8 samples in 2 shards" in output
    assert "add --data.on_change new-epoch" in output
    code, output = train(*again, "--data.on_change", "new-epoch")
    assert code == 0, output
    assert "has grown: from epoch 2 on there are 28 samples to choose from, 5 steps an epoch" in output
    # Twelve samples were three steps; 14 + 7 are five.
    assert [row["epoch"] for row in read_metrics(run)] == [1 / 3, 2 / 3, 1, 4 / 3, 11 / 5, 12 / 5, 13 / 5]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data.labels", "nowhere.csv"], "nowhere.csv: cannot be read as labels"),
        (["--data.shards", "nowhere"], "nowhere"),
        (["--train.global_batch", "15"], "14 usable samples are fewer than train.global_batch=15"),
        (["--device", "cuda"], "--device cpu"),
        (["--data.shards="], "--data.shards is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    recipe: Path, shards: Path, tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("a GPU is no bad input here")
    output = refused(capsys, *arguments(recipe, shards, tmp_path / "run"), *options)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in output


def test_fault_20_a_bad_shard_is_refused_before_torch_is_loaded(shards: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    (damaged / "shard-00001.tar").unlink()
    (damaged / "shard-00003.tar").write_bytes(b"")
    code = "import sys\nfrom launch.pretrain import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "--data.shards", str(damaged), "--run.dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    first, *lines = done.stderr.splitlines()
    assert first == (
        f"error: {damaged}: 2 of 4 shards, 6 of 14 samples, are missing or not whole; restore them from a copy or run "
        "the build again, or leave them out with --data.exclude_bad_shards true:"
    )
    assert lines[0] == f"  {damaged}/shard-00001.tar: missing"
    assert lines[1].startswith(f"  {damaged}/shard-00003.tar: 0 bytes, dataset.json says ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fault_20_a_run_without_a_bad_shard_says_so_and_does_not_go_on_with_it(
    recipe: Path, shards: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    (damaged / "shard-00001.tar").rename(tmp_path / "aside.tar")

    def train(*options: str) -> tuple[int, str]:
        return Job(recipe, damaged, tmp_path / "run", *options, processes=1).end()

    code, output = train("--data.exclude_bad_shards", "true", "--train.steps", "2")
    assert code == 0, output
    assert output.count(f"left out: {damaged}/shard-00001.tar (4 samples): missing\n") == 1
    assert "samples: 10 take part; 4 are left out with bad shards; " in output
    (tmp_path / "aside.tar").rename(damaged / "shard-00001.tar")
    code, output = train("--train.steps", "3", "--extend", "true")
    assert code == 2, output
    assert "bad_shards: was '1 left out (shard-00001.tar of dataset 1)', is None" in output


def agree(world: World) -> list[str]:
    whole = index_only([5, 9], seed=1)
    corpus = Corpus([whole if world.is_first else replace(whole, bad_shards={1: "missing"})])
    relabelled = Corpus([whole])
    if not world.is_first:  # as by another file of the same name
        relabelled.labels = replace(relabelled.labels, values=relabelled.labels.values + 1)
    refusals = []
    for each in (Corpus([whole]), corpus, relabelled):
        loader = Loader(each, DataConfig(), num_frames=2, size=16, seed=0, global_batch=2)
        try:
            trainer.check_same_data(loader, EvalSet(each, DataConfig(), loader.rows), world)
        except ValueError as error:
            refusals.append(str(error))
    return refusals


def test_fault_20_and_fault_42_a_shard_or_a_label_that_is_other_on_one_node_stops_all_processes() -> None:
    first, second = run_ranks(agree, world=2)
    assert first == second
    bad, relabelled = first
    assert "bad_shards: None on rank 0 (" in bad
    assert "'1 left out (shard-00001.tar of dataset 1)' on rank 1 (" in bad
    assert relabelled.startswith("the processes differ: data: labels: '")
    assert relabelled.endswith("Make the same shards and the same labels reachable on every node")


@pytest.mark.launch
def test_under_the_launcher_an_error_is_told_once_with_its_exit_code(recipe: Path, tmp_path: Path) -> None:
    code, output = Job(recipe, tmp_path / "nowhere", tmp_path / "run", launcher=[*DEEPSPEED, "2"], executed=True).end()
    assert code == 2, output
    assert output.count("error: ") == 1
    assert "error on process" not in output
    assert "Traceback" not in output
