"""Builds that are killed on the way: at the n-th operation on their files, or as a whole process group."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from preprocess.__main__ import main
from preprocess.encode.tar_writer import GrowingHash
from tests.support import launch
from tests.support.builds import tree


def start(*arguments: str) -> launch.Process:
    """Start `python -m preprocess` in a process group of its own."""
    return launch.Process([sys.executable, "-m", "preprocess", *arguments], cwd=launch.ROOT, merged=True)


def kill_decoders(run: launch.Process, folder: Path, pattern: str = "*shard-*.tar") -> bool:
    """Kill a build's decoders as soon as a tar in `folder` holds a sample; return False if the build ended first."""
    while run.poll() is None:
        with suppress(FileNotFoundError, psutil.NoSuchProcess):  # a tar that was moved to its final name
            if any(path.stat().st_size for path in folder.glob(pattern)):
                for child in psutil.Process(run.pid).children(recursive=True):
                    child.kill()
                return True
        time.sleep(0.0005)
    return False


def inodes(out: Path) -> dict[str, tuple[int, int]]:
    """Which files these are, and when they were written."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("shard-*")}


def done(out: Path) -> dict[str, tuple[int, int]]:
    """The files of the shards whose table is there."""
    tables = {path.stem for path in out.glob("shard-*.parquet")}
    return {name: which for name, which in inodes(out).items() if Path(name).stem in tables}


class Killed:
    """Kills its process at the n-th operation on the output's files: open, write, sync, link, move, remove."""

    EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.utime")

    def __init__(self, folder: Path, at: int):
        self._folder, self._left = str(folder), at
        sys.addaudithook(self._hear)
        os.fsync = self._counted(os.fsync)  # type: ignore[assignment]
        GrowingHash.cover = self._counted(GrowingHash.cover)  # type: ignore[method-assign]  # a sample is written

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in self.EVENTS and str(arguments[0]).startswith(self._folder):
            self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            self._count()
            return call(*arguments, **named)

        return counting


def _run_until_killed(arguments: list[str], out: Path, at: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    Killed(out, at)
    os._exit(main(arguments))


def killed_at(arguments: list[str], out: Path, at: int) -> bool:
    """Run a build in a child that is killed at its n-th operation, and return whether it came so far."""
    child = launch.call(_run_until_killed, arguments, out, at)
    code = child.wait(120)
    assert code in (0, -signal.SIGKILL), (code, child.output())
    return code != 0


def kill_at_every(points: Iterable[int], begin: Callable[[Path], list[str]], folder: Path) -> tuple[int, set[str]]:
    """A run killed at each of these operations, and rerun; how many were killed, and which trees they ended in."""
    kills, trees, seen = 0, set(), list[dict[str, str]]()
    for at in points:
        out = folder / f"at-{at}"
        arguments = begin(out)
        if not killed_at(arguments, out, at):
            return kills, trees
        kills += 1
        kept = done(out)
        seen.append({name: sha256 for name, sha256 in tree(out).items() if name.startswith("shard-")})
        assert main(arguments) == 0
        assert {name: which for name, which in inodes(out).items() if name in kept} == kept, (
            "a finished shard was redone"
        )
        there = tree(out)
        assert seen[-1].items() <= there.items(), "a file was seen that was not whole"
        trees.add(repr(there))
    return kills, trees
