"""launch/common/sole_writer.py: whatever a command writes has one writer, on one machine, on two, and behind a URL."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from launch.common import sole_writer as module
from launch.common.sole_writer import sole_writer
from mae3d.distributed import World
from mae3d.io import lock, lock_store
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore, Owner, UrlLockStore
from mae3d.io.storage import Storage
from mae3d.tracking.run_dir import read_metrics
from tests.support.jobs import Job, arguments
from tests.support.ranks import run_ranks


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits be short."""
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(lock_store, "SETTLE_S", 0.01)


def elsewhere(job: str = "training") -> Owner:
    return replace(Owner.here(job), host="node7", machine="another boot")


def dead() -> Owner:
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return replace(Owner.here("training"), pid=int(process.stdout), started="1")


# Every command that writes into a folder: its module, its options, the lock, and what it writes first.
COMMANDS = {
    "pretrain": (["--data.shards", "{shards}", "--config", "{recipe}", "--run.dir", "{out}"], LOCK_NAME),
    "finetune": (["--data.shards", "{shards}", "--run.dir", "{out}"], LOCK_NAME),
    "evaluate": (["--run", "no", "--data.shards", "no", "--out", "{out}"], f"{LOCK_NAME}-classification"),
    "probe": (["--run", "no", "--data.shards", "no", "--test.shards", "no", "--out", "{out}"], f"{LOCK_NAME}-probes"),
    "embed": (["--run", "no", "--data.shards", "no", "--out", "{out}/a.parquet"], f"{LOCK_NAME}-a.parquet"),
    "visualize": (["--run", "no", "--out", "{out}"], f"{LOCK_NAME}-report"),
    "export": (["no", "{out}/model"], f"{LOCK_NAME}-model"),
    "preview": (["{out}", "--data.shards", "no"], f"{LOCK_NAME}-preview"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_fault_41_a_second_start_of_any_command_is_refused_with_the_owner(
    name: str, shards: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, lock_name = COMMANDS[name]
    out = tmp_path / "out"
    out.mkdir()
    owner = Owner.here("somebody's job")
    FolderLockStore(out).create(lock_name, owner)
    device = [] if name in ("preview", "export") else ["--device", "cpu"]
    argv = [option.format(shards=shards, recipe=recipe, out=out) for option in options]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"launch.{name}").main([*argv, *device])
    assert ended.value.code == 2
    told = f"error: {out}: in use by somebody's job on {owner.host}, pid {os.getpid()}, since {owner.since}; wait for"
    assert told in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [lock_name]


def test_fault_41_a_dead_owner_is_succeeded_at_once_and_an_empty_folder_does_not_stay(tmp_path: Path) -> None:
    out = tmp_path / "made" / "run"
    with sole_writer(out, job="training") as ownership:
        ownership.check()
        assert [path.name for path in out.iterdir()] == [LOCK_NAME]
    assert not out.parent.exists()
    out.mkdir(parents=True)
    FolderLockStore(out).create(LOCK_NAME, dead())
    start = time.monotonic()
    with sole_writer(out, job="training"):
        (out / "config.yaml").touch()
    assert time.monotonic() - start < 1
    assert [path.name for path in out.iterdir()] == ["config.yaml"]


def joins_after(folder: Path, event: Callable[[], None]) -> bool:
    """Return whether a start that waits for the owner gets in after the event, and not before."""
    entered = threading.Event()

    def start() -> None:
        with sole_writer(folder, job="training"):
            entered.set()

    thread = threading.Thread(target=start)
    thread.start()
    early = entered.wait(0.15)
    event()
    thread.join(10)
    return entered.is_set() and not early


def test_fault_41_a_start_waits_for_an_owner_that_is_stopping_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with sole_writer(tmp_path, job="training") as ownership:
        ownership.end_soon()
        time.sleep(0.1)
        held = ownership.locks[0]
        assert joins_after(tmp_path, held.release)
    assert "in use by training on " in (told := capsys.readouterr().out)
    assert "; it is stopping: waiting for that, up to 15 min\n" in told
    FolderLockStore(tmp_path).create(LOCK_NAME, replace(Owner.here("training"), ending=True))
    monkeypatch.setattr(lock, "ENDING_S", 0.1)
    with pytest.raises(ValueError, match="in use by training"), sole_writer(tmp_path, job="training"):
        pass


def test_fault_41_an_owner_on_another_machine_is_waited_for_until_it_is_known_whether_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, owner = FolderLockStore(tmp_path), elsewhere()
    store.create(LOCK_NAME, owner)
    os.utime(tmp_path / LOCK_NAME, (time.time() - 40, time.time() - 40))
    beat = threading.Timer(0.1, store.heartbeat, (LOCK_NAME, owner))
    beat.start()
    with pytest.raises(ValueError, match="in use by training on node7"), sole_writer(tmp_path, job="training"):
        pass
    beat.join()
    assert "its last sign of life is 40 s old: waiting for the next one" in capsys.readouterr().out
    monkeypatch.setattr(lock_store, "STALE_S", 0.3)
    with sole_writer(tmp_path, job="training"):
        assert store.read(LOCK_NAME).here  # type: ignore[union-attr]


def test_fault_41_whatever_a_start_waits_for_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, owner = FolderLockStore(tmp_path), elsewhere()
    store.create(LOCK_NAME, owner)

    def stops() -> None:
        store.replace(LOCK_NAME, replace(owner, ending=True))
        time.sleep(0.15)
        store.remove(LOCK_NAME)

    assert joins_after(tmp_path, stops)
    told = capsys.readouterr().out
    assert [told.count(text) for text in ("in use by", "waiting for the next one", "it is stopping")] == [2, 1, 1]


def test_fault_41_two_runs_at_one_url_are_refused_and_an_unreachable_url_is_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.filesystem("memory").store.clear()
    url = "memory://bucket/run"
    with sole_writer(tmp_path / "a", job="training", remote=url):
        assert UrlLockStore(Storage(url)).names() == [LOCK_NAME]
        with (
            pytest.raises(ValueError, match=rf"^{url}: in use by training on"),
            sole_writer(tmp_path / "b", job="training", remote=url),
        ):
            pass
    assert UrlLockStore(Storage(url)).names() == []
    assert not (tmp_path / "b").exists()

    def refuse(*_: Any) -> None:
        raise OSError(5, "no route to host")

    monkeypatch.setattr(Storage, "read", refuse)
    with sole_writer(tmp_path / "a", job="training", remote=url):
        assert "no lock can be kept there (no route to host); the run goes on without" in caplog.text


def test_fault_41_a_writer_that_was_taken_over_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    successor = elsewhere("another")
    with sole_writer(tmp_path, job="training") as ownership:
        ownership.check()
        FolderLockStore(tmp_path).replace(LOCK_NAME, successor)
        ownership.locks[0]._heart.join(10)
        with pytest.raises(lock.Locked, match="taken over by another on node7"):
            ownership.check()
    assert FolderLockStore(tmp_path).read(LOCK_NAME).owner == successor  # type: ignore[union-attr]


def refused_together(world: World, folder: Path) -> str:
    if world.is_first:
        FolderLockStore(folder).create(LOCK_NAME, Owner.here("another"))
    with pytest.raises(ValueError, match="in use by another") as refused, sole_writer(folder, world, job="training"):
        pass
    return str(refused.value)


def test_fault_41_all_ranks_hear_that_the_folder_is_in_use(tmp_path: Path) -> None:
    first, second = run_ranks(refused_together, tmp_path, world=2)
    assert first == second


@pytest.mark.slow
def test_fault_41_a_second_start_is_refused_and_one_while_the_first_stops_goes_on_after_its_last_checkpoint(
    recipe: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.pretrain import main

    run = tmp_path / "run"
    options = ("--train.steps", "400", "--run.checkpoint_every", "1000")
    first = Job(recipe, shards, run, *options, processes=1)
    first.wait_for_step(2)
    with pytest.raises(SystemExit):
        main([*arguments(recipe, shards, run), *options])
    (rank,) = first.ranks()
    assert f"in use by training on {Owner.here('').host}, pid {rank.pid}, since " in capsys.readouterr().err
    rank.send_signal(signal.SIGTERM)
    taken = len(read_metrics(run))
    second = Job(recipe, shards, run, *options, "--run.time_limit", "0.01", processes=1)
    code, output = first.end()
    assert code == 75, output
    code, output = second.end()
    assert code == 75, output
    assert "resumed from" in output
    steps = [row["step"] for row in read_metrics(run)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > taken
