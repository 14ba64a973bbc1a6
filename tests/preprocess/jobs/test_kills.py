"""Row 15 of docs/failures.md: a build that is killed anywhere and run again ends in the same tree."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from mae3d.io.lock_store import LOCK_NAME
from preprocess.__main__ import main
from tests.support.builds import command, tree
from tests.support.kills import done, inodes, kill_at_every, killed_at, start


def kill_once_more_each_time(points: Iterable[int], arguments: list[str], out: Path) -> int:
    """Kill one run again and again, at these operations of each start; return how often, until it came to its end."""
    kills = 0
    for at in points:
        kept = done(out)
        if not killed_at(arguments, out, at):
            return kills
        kills += 1
        assert kept.items() <= done(out).items()
    return kills


@pytest.mark.slow
def test_fault_15_killed_at_any_file_operation_and_rerun_it_is_the_same_tree(
    archive: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    kills, trees = kill_at_every(range(2, 2000, 37), lambda out: command(archive, out), tmp_path)
    assert kills >= 4
    assert trees == {repr(whole)}


def test_fault_15_killed_again_and_again_it_comes_to_the_same_end(
    archive: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    assert kill_once_more_each_time(range(9, 2000, 24), command(archive, tmp_path / "out"), tmp_path / "out") >= 3
    assert main(command(archive, tmp_path / "out")) == 0
    assert tree(tmp_path / "out") == whole


@pytest.mark.soak
def test_fault_15_killed_at_every_single_file_operation(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kills, trees = kill_at_every(range(1, 2000), lambda out: command(archive, out), tmp_path)
    with capsys.disabled():
        print(f"\nkilled at each of {kills} file operations and rerun: {len(trees)} distinct tree")
    assert kills > 150
    assert trees == {repr(whole)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "wait_for",
    [
        "shard-00001.tar",
        pytest.param("plan.parquet", marks=pytest.mark.soak),
        pytest.param("shard-00002.parquet", marks=pytest.mark.soak),
    ],
)
def test_fault_15_kill_9_of_the_whole_process_group_with_two_workers(
    archive: Path, whole: dict[str, str], tmp_path: Path, wait_for: str
) -> None:
    for attempt in range(5):  # on a busy machine the kill may come when all is done
        out = tmp_path / f"out-{attempt}"
        run = start(*command(archive, out, workers=2))
        while not (out / wait_for).exists() and run.poll() is None:
            time.sleep(0.001)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        if (out / LOCK_NAME).exists():
            break
    assert run.returncode == -signal.SIGKILL
    assert (out / LOCK_NAME).exists()
    kept = done(out)
    assert main(command(archive, out, workers=2)) == 0
    assert kept.items() <= inodes(out).items()
    assert tree(out) == whole


@pytest.mark.soak
def test_fault_15_kill_9_at_random_times_with_two_workers(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Kill the runs of one output as a whole at any moment until one comes to its end, and so again."""
    began = time.monotonic()
    start(*command(archive, tmp_path / "undisturbed", workers=2)).communicate()
    lasts_s = time.monotonic() - began
    rng, kills, trees = random.Random(0), 0, set()
    while kills < 24:
        out = tmp_path / f"after-{kills}"
        while True:
            run = start(*command(archive, out, workers=2))
            try:
                said, _ = run.communicate(timeout=rng.uniform(0.1, 1.2) * lasts_s)
            except subprocess.TimeoutExpired:
                kept = done(out)
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
                kills += 1
                assert kept.items() <= done(out).items()
                continue
            assert run.returncode == 0, said
            break
        trees.add(repr(tree(out)))
        shutil.rmtree(out)
    with capsys.disabled():
        print(f"\nkilled {kills} times at random with two workers: {len(trees)} distinct tree")
    assert trees == {repr(whole)}


def test_fault_15_workers_end_with_their_parent(archive: Path, whole: dict[str, str], tmp_path: Path) -> None:
    run = start(*command(archive, tmp_path / "out", workers=2))
    while not (tmp_path / "out" / "shard-00000.tar").exists():
        time.sleep(0.001)
    below = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.communicate()
    assert below
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
