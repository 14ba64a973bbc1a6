"""`python -m mae3d.checkpoint inspect RUN`: what is there, what is damaged and why."""

import sys
from pathlib import Path

import pytest

from mae3d.checkpoint import main
from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints import retention
from mae3d.checkpoints.mirror import Mirror
from mae3d.io.resume import ResumeRules
from mae3d.tracking.run_dir import Run
from tests.mae3d.checkpoints.test_format import save, save_scored
from tests.support import launch


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    Run(folder).claim({"run": {"remote": ""}}, extend=False)
    save_scored(folder, 1000, 0.75)
    save(folder, 2000, world=3)
    Run(folder).write_metrics({"step": 1000, "epoch": 2.5, "loss": 0.12345})
    return folder


def told(capsys: pytest.CaptureFixture, *arguments: str | Path) -> tuple[int, list[str], str]:
    code = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def test_a_table_of_all_checkpoints(run: Path, capsys: pytest.CaptureFixture) -> None:
    (checkpoint.step_folder(run, 1000) / "manifest.json").write_text("{}")  # rewritten by save_scored without it
    code, lines, _ = told(capsys, run)
    assert code == 0
    assert lines[0].split() == ["step", "epoch", "loss", "score", "processes", "size", "files"]
    assert lines[1].split()[:5] + lines[1].split()[-2:] == ["1,000", "2.50", "0.1235", "0.75", "2", "ok", "best"]
    assert lines[2].split()[:5] + lines[2].split()[-2:] == ["2,000", "-", "-", "-", "3", "ok", "latest"]


def test_damage_is_named_and_exit_2_only_if_nothing_is_whole(run: Path, capsys: pytest.CaptureFixture) -> None:
    retention.keep_best(run, checkpoint.step_folder(run, 2000), score=1.0)
    victim = checkpoint.step_folder(run, 2000) / "rank-00002.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    save(run, 1000)
    assert "DAMAGED" not in str(told(capsys, run)[1])  # by size it is whole
    code, lines, _ = told(capsys, run, "--full")
    assert code == 0
    assert f"damaged: {victim}: not the bytes that were written" in lines
    code, lines, _ = told(capsys, run, "--step", "2000", "--full")
    assert code == 2
    assert sum(line.endswith("  ok") for line in lines) == 4
    assert sum("rank-00002.safetensors" in line and line.endswith("not the bytes that were written") for line in lines)
    victim.write_bytes(data[:-1])
    (checkpoint.step_folder(run, 1000) / "state.json").unlink()
    code, lines, _ = told(capsys, run)
    assert code == 2
    assert f"damaged: {victim}: {len(data) - 1} bytes, not the {len(data)} that were written" in lines
    assert any(line.endswith("step-00001000/state.json: missing") for line in lines)


def test_the_mirror_is_shown(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    there = tmp_path / "there"
    Run(run, ResumeRules(free=("run",))).claim({"run": {"remote": str(there)}}, extend=False)
    mirror = Mirror(run, str(there), keep_last=2, keep_every=0)
    mirror.push()
    mirror.finish()
    checkpoint.remove(checkpoint.step_folder(run, 1000))
    save(run, 3000)
    code, lines, _ = told(capsys, run)
    assert code == 0
    assert lines[0].split()[-1] == "remote"
    assert [line.split()[8] for line in lines[1:3]] == ["there", "-"]  # a size is two words
    assert f"{run}/checkpoints/best names 'step-00001000', which is not there" in lines
    assert lines[-1] == f"remote: {there}, which also has step-00001000"


def test_bad_usage_is_exit_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, error = told(capsys, tmp_path / "nowhere")
    assert (code, error) == (2, f"error: {tmp_path}/nowhere/checkpoints: no checkpoints are here\n")
    code, _, error = told(capsys, run, "--step", "7")
    assert (code, error) == (2, f"error: {run}/checkpoints: no checkpoint of step 7\n")


def test_it_is_started_as_a_module(run: Path) -> None:
    command = [sys.executable, "-m", "mae3d.checkpoint", "inspect", str(run), "--step", "2000"]
    done = launch.run(command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2,000" in done.stdout
