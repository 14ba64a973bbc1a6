"""Checkpoints on a thread: what is written while training goes on, what a failure costs."""

import errno
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints.format import Slice
from mae3d.distributed import World
from mae3d.training import saver
from tests.support.ranks import run_ranks
from tests.support.savings import StandIn, make, value_of


def no_space(*arguments: Any, **named: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device", "/full/rank-00000.safetensors")


def test_training_goes_on_while_a_thread_writes_and_one_save_is_on_its_way_at_most(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, write_rank = threading.Event(), checkpoint.write_rank

    def slowly(*arguments: Any) -> Any:
        assert gate.wait(30)
        return write_rank(*arguments)

    monkeypatch.setattr(checkpoint, "write_rank", slowly)
    engine = StandIn()
    with make(tmp_path / "run", world) as saving:
        engine.set(1)
        saving.save(engine, {"x": 1}, step=1)  # returns, though nothing can be written yet
        engine.set(2)  # the next step changes the weights, not what is written
        assert checkpoint.newest(tmp_path / "run") is None
        threading.Timer(0.3, gate.set).start()
        start = time.perf_counter()
        saving.save(engine, {"x": 2}, step=2)
        assert time.perf_counter() - start > 0.2  # the first one was waited for
        assert checkpoint.step_folder(tmp_path / "run", 1).is_dir()
        saving.wait()
        assert value_of(tmp_path / "run") == 2
        (tmp_path / "run" / "checkpoints" / "latest").write_text("step-00000001\n")
        assert value_of(tmp_path / "run") == 1
    fresh = StandIn()
    state = make(tmp_path / "run", world).resume(fresh)
    assert state is not None
    assert (state["step"], state["x"], fresh.optimizer_step) == (1, 1, 1)


def test_going_back_waits_for_the_checkpoint_that_is_on_its_way(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rank = checkpoint.write_rank
    monkeypatch.setattr(checkpoint, "write_rank", lambda *a: (time.sleep(0.2), write_rank(*a))[1])
    engine = StandIn()
    with make(tmp_path / "run", world) as saving:
        for step in (1, 2):
            engine.set(step)
            saving.save(engine, {}, step=step)
        engine.set(99)
        state = saving.go_back(engine)
        assert state is not None
        assert state["step"] == engine.optimizer_step == 2


@pytest.mark.parametrize("at_once", [False, True])
def test_fault_35_a_full_disk_costs_a_warning_and_the_third_time_in_a_row_the_run(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at_once: bool
) -> None:
    engine, run = StandIn(), tmp_path / "run"
    with make(run, world) as saving:
        if at_once:  # the thread is done before `save` goes on
            start = saving._start
            monkeypatch.setattr(saving, "_start", lambda job: (start(job), wait([saving._pending])))

        def save(step: int, *, full: bool) -> None:
            with monkeypatch.context() as patched:
                if full:
                    patched.setattr(checkpoint, "stream_tensors", no_space)
                engine.set(step)
                saving.save(engine, {}, step=step)
                saving._await_pending()

        save(1, full=False)
        for step in (2, 3):
            save(step, full=True)
        assert "the checkpoint of step 2 could not be written (/full/rank-00000.safetensors: No space" in caplog.text
        assert "free some space there, or give a smaller run.keep_last. Training goes on" in caplog.text
        assert "the newest is step-00000001" in caplog.text
        assert value_of(run) == 1
        assert not list((run / "checkpoints").glob(".*"))
        save(4, full=False)  # what went before is forgiven
        assert value_of(run) == 4
        for step in (5, 6):
            save(step, full=True)
        with pytest.raises(OSError, match="No space left on device") as raised:
            save(7, full=True)
        assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/full/rank-00000.safetensors")
        assert saving.counts() == {"failed_saves": 5}
        saving._last = None  # as a run that has ended with it would not come here
        assert value_of(run) == 4


def test_fault_35_a_disk_that_is_really_full(tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        engine = StandIn()
        with make(small / "run", world, keep_last=20) as saving:
            step, held = 0, small / "filler"
            while not caplog.text:
                step += 1
                assert step < 50
                engine.set(step)
                saving.save(engine, {}, step=step)
                saving._await_pending()
                held.write_bytes(b"" if caplog.text else os.urandom(3000 * step))
            assert "No space left on device" in caplog.text
            assert str(small) in caplog.text
            assert value_of(small / "run") == step - 1
            held.unlink(missing_ok=True)
            oldest = checkpoint.step_folder(small / "run", 1)
            checkpoint.remove(oldest)
            engine.set(step + 1)
            saving.save(engine, {}, step=step + 1)
            saving.wait()
            assert value_of(small / "run") == step + 1
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("bad", [2, 99])
def test_fault_37_the_last_save_is_tried_again_before_the_run_fails(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    monkeypatch.setattr(saver, "BACK_OFF_S", (0.01, 0.01, 0.01))
    tries, stream = [], checkpoint.stream_tensors

    def stale(*arguments: Any, **named: Any) -> Any:
        tries.append(1)
        if len(tries) <= bad:
            raise OSError(errno.ESTALE, "Stale file handle", "/nfs/run")
        return stream(*arguments, **named)

    monkeypatch.setattr(checkpoint, "stream_tensors", stale)
    engine = StandIn()
    engine.set(5)
    saving = make(tmp_path / "run", world)
    if bad == 2:
        saving.save(engine, {}, step=5, final=True)
        assert value_of(tmp_path / "run") == 5
    else:
        with pytest.raises(OSError, match="Stale file handle"):
            saving.save(engine, {}, step=5, final=True)
        assert len(tries) == 4
        assert checkpoint.newest(tmp_path / "run") is None
    assert saving.counts() == {"failed_saves": min(bad, 4)}


def _two(world: World, run: str) -> list[Any]:
    """Saves while the training's own collectives go on; each process fails at times."""
    engine, rank = StandIn(rank=world.ranks.rank, size=2), world.ranks.rank
    saving = make(Path(run), world)
    write_rank, told = checkpoint.write_rank, []

    def write(staging: Path, number: int, slices: Any) -> Any:
        time.sleep(0.05 * rank)
        if int(staging.name[-8:]) in (2, 4, 5) and rank == 1:
            raise OSError(errno.EROFS, "Read-only file system", str(staging))
        return write_rank(staging, number, slices)

    finish = checkpoint.finish

    def complete(folder: Path, step: int, **named: Any) -> Path:
        if step == 6:  # of the first process alone
            raise OSError(errno.EROFS, "Read-only file system", str(checkpoint.staging_folder(folder, step)))
        return finish(folder, step, **named)

    # Of this process, which ends after this.
    checkpoint.write_rank, checkpoint.finish = write, complete  # type: ignore[assignment]
    try:
        with saving:
            for step in range(1, 8):
                engine.set(step)
                saving.save(engine, {}, step=step)
                total = torch.tensor(1.0)
                for _ in range(200):  # backward's all-reduces
                    dist.all_reduce(total.fill_(1.0))
                    assert float(total) == 2
                saving._await_pending()
                told.append((step, saving._failed_in_a_row))
    except OSError as error:
        told.append((error.errno, error.filename))
    return [told, saving.counts()]


def test_fault_35_all_processes_agree_on_a_failure_of_one_and_stop_together(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (first, counts), (second, others) = run_ranks(_two, str(run), world=2)
    staged = str(checkpoint.staging_folder(run, 6))
    assert first == second == [(1, 0), (2, 1), (3, 0), (4, 1), (5, 2), (errno.EROFS, staged)]
    assert (counts, others) == ({"failed_saves": 4}, {"failed_saves": 0})
    assert value_of(run) == 3


class Trained(StandIn):
    """An Engine's slices of a model that torch's AdamW trains."""

    def __init__(self, model: nn.Module, adam: torch.optim.Optimizer):
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._model, self._adam, self.optimizer_step = model, adam, 1

    def slices(self) -> Iterator[Slice]:
        for name, parameter in self._model.named_parameters():
            state = self._adam.state[parameter]
            kinds = {"master": parameter.data, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
            yield Slice(name, 0, parameter.numel(), {kind: tensor.view(-1) for kind, tensor in kinds.items()})


@pytest.mark.slow
def test_training_is_blocked_for_a_tenth_of_a_hundred_steps_at_most(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """Two million parameters, 25 MB a checkpoint, in steps that are shorter than any real model's."""
    caplog.set_level(logging.ERROR)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    adam = torch.optim.AdamW(model.parameters(), fused=True)

    def interval(steps: int = 100) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            adam.zero_grad()
            model(torch.randn(8, 512)).square().mean().backward()
            adam.step()
        return time.perf_counter() - start

    interval(steps=10)
    alone_s, blocked, intervals = interval(), [], []
    with make(tmp_path / "run", world) as saving:
        for step in (100, 200, 300):
            start = time.perf_counter()
            saving.save(Trained(model, adam), {}, step=step)  # type: ignore[arg-type]
            blocked.append(time.perf_counter() - start)
            intervals.append(interval())
    with capsys.disabled():
        print(
            f"\n100 steps {alone_s:.2f} s, with a save on its way {[round(s, 2) for s in intervals]} s; blocked "
            f"{[round(s, 3) for s in blocked]} s: {[f'{b / s:.1%}' for b, s in zip(blocked, intervals, strict=True)]}"
        )
    assert sorted(blocked)[1] <= 0.1 * alone_s
