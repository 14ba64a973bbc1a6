"""A kill at any operation of a save leaves a whole checkpoint."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mae3d.checkpoints import format as checkpoint
from tests.support import launch
from tests.support.jobs import wait_until
from tests.support.savings import StandIn, alone, make, value_of


class Killed:
    """Audit hook that kills its process at the n-th operation on files below a folder, in whichever thread."""

    EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")

    def __init__(self, folder: Path, at: int):
        self._folder, self._left = str(folder), at

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in self.EVENTS and str(arguments[0]).startswith(self._folder):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _train_until_killed(run: Path, at: int, steps: int) -> None:
    torch.set_num_threads(1)
    world, engine = alone(), StandIn()
    sys.addaudithook(Killed(run, at))
    with make(run, world) as saving:
        state = saving.resume(engine)
        first = state["step"] + 1 if state else 1
        for step in range(first, first + steps):
            engine.set(step)
            saving.save(engine, {}, step=step, score=random.Random(step).random())
            (run / "reached").write_text(str(step - 1))  # the one before is there: it was waited for


def kill_at_every(run: Path, points: Iterator[int]) -> int:
    """Children that are killed at these operations, one after the other, in the same run; how many were killed."""
    kills = 0
    for at in points:
        child = launch.call(_train_until_killed, run, at, 4)
        code = child.wait(120)
        kills += code == -signal.SIGKILL
        if (run / "checkpoints").is_dir() and list((run / "checkpoints").glob("step-*")):
            reached = (run / "reached").read_text() if (run / "reached").exists() else ""
            assert value_of(run) >= int(reached or 0)
            best = checkpoint.pointed(run, "best")
            if best is not None:
                checkpoint.verify(run / "checkpoints" / best)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, child.output()
    return kills


@pytest.mark.slow
def test_fault_30_a_kill_during_any_save_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    assert kill_at_every(tmp_path, iter(range(5, 150, 13))) >= 8


@pytest.mark.soak
def test_fault_30_a_kill_at_every_file_operation_of_four_saves(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kills = kill_at_every(tmp_path, iter(range(1, 2000)))
    with capsys.disabled():
        print(f"\nkilled at each of {kills} file operations of resuming and four saves: every time a whole checkpoint")
    assert kills > 80


def _write_slowly(run: Path) -> None:
    write = checkpoint.stream_tensors

    def stream(shapes: Any, read: Any, path: Path, **named: Any) -> str:
        def slow(name: str) -> torch.Tensor:
            time.sleep(0.01)
            (run / "writing").touch()
            return read(name)

        return write(shapes, slow, path, **named)

    world, engine = alone(), StandIn()
    saving = make(run, world)
    engine.set(1)
    saving.save(engine, {}, step=1)
    saving.wait()
    checkpoint.stream_tensors = stream
    engine.set(2)
    saving.save(engine, {}, step=2)
    time.sleep(60)


def test_fault_30_a_kill_while_the_thread_writes_leaves_half_a_file_that_is_swept(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    child = launch.call(_write_slowly, tmp_path)
    wait_until((tmp_path / "writing").exists, 60)
    child.kill()
    child.wait()
    assert len(list((tmp_path / "checkpoints").glob(".staged-*/.tmp-*-rank-*"))) == 1
    engine = StandIn()
    state = make(tmp_path, request.getfixturevalue("world")).resume(engine)  # joined after the fork
    assert state is not None
    assert state["step"] == 1
    assert not list((tmp_path / "checkpoints").glob(".*"))
