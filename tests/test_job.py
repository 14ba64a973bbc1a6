"""The job as a whole: killed anywhere, in slices, appended to, on a full disk, with workers that die."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from preprocess import executors
from preprocess.__main__ import main
from preprocess.archive import GrowingHash
from preprocess.boards import LOCK_NAME, FolderBoard, Owner
from preprocess.index import open_dataset
from preprocess.plan import read_plan
from tests.builds import command, make_archive, tree

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")
SMALL = (48, 32)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small clips."""
    return make_archive(tmp_path_factory.mktemp("archive") / "frames", size=SMALL)


@pytest.fixture(scope="module")
def whole(archive: Path) -> dict[str, str]:
    """The tree of the run that nothing happens to."""
    assert main(command(archive, archive.parent / "whole")) == 0
    return tree(archive.parent / "whole")


def start(*arguments: str) -> subprocess.Popen[str]:
    """`python -m preprocess` in a process group of its own."""
    run = [sys.executable, "-m", "preprocess", *arguments]
    return subprocess.Popen(
        run, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


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
    """Runs it in a child that is killed at its n-th operation; whether it came so far."""
    child = FORK.Process(target=_run_until_killed, args=(arguments, out, at))
    child.start()
    child.join(120)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


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


def kill_once_more_each_time(points: Iterable[int], arguments: list[str], out: Path) -> int:
    """One run, killed again and again at these operations of each start; how often, until it came to its end."""
    kills = 0
    for at in points:
        kept = done(out)
        if not killed_at(arguments, out, at):
            return kills
        kills += 1
        assert kept.items() <= done(out).items()
    return kills


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
    out = tmp_path / "out"
    run = start(*command(archive, out, workers=2))
    while not (out / wait_for).exists() and run.poll() is None:
        time.sleep(0.001)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
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
    """One output, whose runs are killed as a whole at any moment, until one comes to its end; eight times."""
    rng, kills, trees = random.Random(0), 0, set()
    for turn in range(8):
        out = tmp_path / f"turn-{turn}"
        while True:
            run = start(*command(archive, out, workers=2))
            try:
                said, _ = run.communicate(timeout=rng.uniform(1.0, 12.0))
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
    with capsys.disabled():
        print(f"\nkilled {kills} times at random with two workers: {len(trees)} distinct tree")
    assert kills >= 8
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


def test_fault_16_a_worker_that_is_killed_costs_its_shard_only(
    archive: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = start(*command(archive, out, workers=2))
    killed = False
    while run.poll() is None and not killed:
        time.sleep(0.001)
        for path in out.glob(".tmp-*-shard-*.tar"):  # .tmp-<host>-<pid>-shard-00001.tar
            os.kill(int(path.name.split("-shard-")[0].rpartition("-")[2]), signal.SIGKILL)
            killed = True
            break
    said, _ = run.communicate()
    assert killed
    assert run.returncode == 0, said
    assert "died; it is done again" in said
    assert tree(out) == whole


def _dies() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_fault_16_a_shard_whose_workers_always_die_is_named() -> None:
    with executors.local_workers(2) as workers:
        results = executors.run_tasks([7], lambda number: _dies, workers)
        with pytest.raises(ChildProcessError, match=r"shard-00007: its worker died 3 times, perhaps for"):
            next(results)


def test_fault_18_a_second_run_at_one_output_is_told_whose_it_is(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    run = start(*command(archive, out))
    while not (out / "plan.parquet").exists():
        time.sleep(0.001)
    for more in ([], ["--overwrite"], ["--append"]):
        assert main(command(archive, out, *more)) == 2
        told = capsys.readouterr().err
        assert f"in use by build on {os.uname().nodename}, pid {run.pid}, since 20" in told
    run.communicate()
    assert run.returncode == 0
    assert tree(out) == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterable[Path]:
    """A folder on a disk of 600 kB of its own."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield small
    subprocess.run(["umount", "-l", str(small)], check=True)


def fill(disk: Path, *, leave: int) -> None:
    """Leaves so many bytes of a disk free."""
    stat = os.statvfs(disk)
    (disk / "filler").write_bytes(os.urandom(max(0, stat.f_bavail * stat.f_frsize - leave)))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_fault_17_a_disk_that_is_really_full_ends_with_3_and_goes_on_after_space(
    archive: Path, whole: dict[str, str], small_disk: Path, capsys: pytest.CaptureFixture, workers: int
) -> None:
    out = small_disk / "out"
    fill(small_disk, leave=120_000)
    assert main(command(archive, out, "--ignore-space", workers=workers)) == 3
    told = capsys.readouterr().err
    assert "No space left on device: some " in told
    assert "GB more are needed; free some; run the same command again to go on" in told
    assert not list(out.glob(".*"))
    kept = done(out)
    (small_disk / "filler").unlink()
    assert main(command(archive, out, workers=workers)) == 0
    assert kept.items() <= inodes(out).items()
    assert tree(out) == whole


@pytest.mark.parametrize("leave", [0, 4096, 8192, 16384, 24576, 32768, 49152])
def test_fault_17_no_room_for_the_plan_or_the_index_leaves_the_old_dataset_as_it_was(
    archive: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture, leave: int
) -> None:
    """Appended to with less and less room, until all of it fits."""
    out, more = small_disk / "out", make_archive(tmp_path / "more", first=24, clips=7, size=SMALL)
    assert main(command(archive, out)) == 0
    before = tree(out)
    fill(small_disk, leave=leave)
    assert main(command(more, out, "--append", "--ignore-space")) == 3
    assert "No space left on device" in capsys.readouterr().err
    assert not list(out.glob(".*"))
    for name, sha256 in before.items():
        assert name in ("plan.parquet", "rejected.parquet") or tree(out)[name] == sha256
    assert len(open_dataset(out)) == 24
    (small_disk / "filler").unlink()
    assert main(command(more, out, "--append")) == 0
    assert len(open_dataset(out)) == 31


def test_fault_17_a_read_only_disk_ends_with_3(archive: Path, small_disk: Path, capsys: pytest.CaptureFixture) -> None:
    (small_disk / "out").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(command(archive, small_disk / "out")) == 3
    assert "Read-only file system" in capsys.readouterr().err


def test_slices_and_a_merge_are_one_run(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    runs = [start(*command(archive, out, "--slice", f"{i}/3")) for i in (0, 1)]  # at once: one of them makes the plan
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert "2 of 5 shards are of this slice, 2 were built now" in said[0]
    assert main(["merge", str(out), "--slices", "3"]) == 2
    assert "1 of 5 shards are not there: shard-00002 (slice 2/3); run these slices again" in capsys.readouterr().err
    assert main(command(archive, out, "--slice", "2/3")) == 0
    kept = inodes(out)
    assert main(["merge", str(out)]) == 0
    assert "24 samples, 96 frames" in capsys.readouterr().out
    assert tree(out) == whole
    assert inodes(out) == kept


def test_a_killed_slice_is_taken_up_and_its_leftovers_are_swept(
    archive: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for at in (12, 40, 70):
        assert killed_at(command(archive, out, "--slice", "0/2"), out, at)
    for i in (0, 1):
        assert main(command(archive, out, "--slice", f"{i}/2")) == 0
    (out / ".tmp-elsewhere-7-shard-00001.tar").write_bytes(b"of a slice on another machine")
    assert main(["merge", str(out)]) == 0
    assert tree(out) == whole


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--slice", "3"], "two numbers, as in 0/50"),
        (["--slice", "3/3"], "slices of 3 count from 0"),
        (["--slice", "0/2", "--append"], "--slice goes with neither"),
        (["--append", "--overwrite"], "exclude each other"),
        (["--scheduler", "tcp://127.0.0.1:9", "--workers", "0"], "workers = 0"),
    ],
)
def test_wrong_options_are_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture, wrong: list[str], message: str
) -> None:
    assert main(command(archive, tmp_path / "out", *wrong)) == 2
    assert message in capsys.readouterr().err


def test_a_slice_waits_for_a_merge_and_a_merge_for_no_slice(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["merge", str(tmp_path / "nothing")]) == 2
    assert "no plan.parquet" in capsys.readouterr().err
    assert main(command(archive, out, "--slice", "0/1")) == 0
    FolderBoard(out).create(f"{LOCK_NAME}.slice-1-of-2", Owner.here("slice 1/2"))
    assert main(["merge", str(out)]) == 2
    assert "in use by slice 1/2" in capsys.readouterr().err


def test_appending_leaves_what_is_there_and_adds_samples_shards_and_labels(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, more = tmp_path / "out", make_archive(tmp_path / "more", first=24, clips=7, size=SMALL)
    ledger = (more / "ledger.csv").read_text().replace("dog", "bee")
    (more / "ledger.csv").write_text(ledger)
    assert main(command(archive, out)) == 0
    running, kept = open_dataset(out), inodes(out)
    assert main(command(more, out, "--append", "--split", "late")) == 0
    assert "appended: 7 samples in 2 shards" in capsys.readouterr().out
    dataset = open_dataset(out)
    assert [dataset.name(i) for i in range(31)] == [f"v{i}" for i in range(31)]
    assert [dataset.key(i) for i in (0, 23, 24, 30)] == ["000000000", "000000023", "000000024", "000000030"]
    assert dataset.label_names == ["cat", "dog", "bee"]
    assert [dataset.labels_of(i) for i in (0, 1, 24, 25)] == [[1], [0], [2], [0]]
    assert dataset.shard.tolist() == [i // 5 for i in range(24)] + [5] * 5 + [6] * 2
    assert [dataset.split_names[code] for code in dataset.splits] == [""] * 24 + ["late"] * 7
    assert {name: which for name, which in inodes(out).items() if name in kept} == kept
    # A trainer that has the earlier index open keeps it.
    assert whole.keys() <= tree(out).keys()
    assert len(running) == 24
    assert [running.name(i) for i in (0, 23)] == ["v0", "v23"]
    assert main(["verify", str(out), "--full"]) == 0
    # Once more, and the first command once more: nothing is new.
    there = tree(out)
    assert main(command(more, out, "--append", "--split", "late")) == 0
    assert "nothing new to append" in capsys.readouterr().out
    assert main(command(archive, out)) == 0
    assert tree(out) == there
    assert {name: which for name, which in inodes(out).items() if name in kept} == kept


def test_an_archive_that_grew_is_appended_to_by_the_same_command(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frames, out = make_archive(tmp_path / "frames", clips=7, size=SMALL), tmp_path / "out"
    nightly = command(frames, out, "--append")
    assert main(nightly) == 0  # nothing there yet: a build
    make_archive(frames, clips=9, size=SMALL)
    with (frames / "ledger.csv").open("a") as file:
        file.write("v1 4 one dog\n")
    assert main([*nightly, "--max-bad-fraction", "0.5"]) == 0
    assert "appended: 2 samples in 1 shards" in capsys.readouterr().out
    assert [open_dataset(out).name(i) for i in range(9)] == [f"v{i}" for i in range(9)]
    assert main(nightly) == 0
    said = capsys.readouterr().out
    assert "nothing new to append" in said
    assert "rejected: 1: 1 bad_row" in said
    assert len(read_plan(out / "plan.parquet")) == 9


def test_the_same_names_in_another_folder_are_other_samples(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for day in ("monday", "tuesday"):
        assert main(command(make_archive(tmp_path / day, clips=2, size=SMALL), out, "--append")) == 0
    assert [open_dataset(out).name(i) for i in range(4)] == ["v0", "v1", "v0", "v1"]


def test_appending_with_other_settings_is_refused_by_name(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, more = tmp_path / "out", make_archive(tmp_path / "more", first=24, clips=2, size=SMALL)
    assert main(command(archive, out)) == 0
    there = tree(out)
    assert main(command(more, out, "--append", "--quality", "80")) == 2
    assert "--append: quality = 90 there, 80 asked for" in capsys.readouterr().err
    assert tree(out) == there


def append_to_copy(whole: Path, more: Path, out: Path) -> list[str]:
    """A copy of a finished dataset, and the command that appends to it."""
    out.mkdir()
    for path in whole.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return command(more, out, "--append")


def test_fault_15_an_append_killed_at_any_file_operation_ends_in_the_same_tree(
    archive: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    more = make_archive(tmp_path / "more", first=24, clips=7, size=SMALL)
    begin = lambda out: append_to_copy(archive.parent / "whole", more, out)  # noqa: E731
    assert main(begin(tmp_path / "uncut")) == 0
    kills, trees = kill_at_every(range(3, 2000, 31), begin, tmp_path)
    assert kills >= 2
    assert trees == {repr(tree(tmp_path / "uncut"))}


def test_an_append_that_was_not_finished_is_finished_by_its_own_sources_only(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more, out = make_archive(tmp_path / "more", first=24, clips=7, size=SMALL), tmp_path / "out"
    other = make_archive(tmp_path / "other", first=40, clips=2, size=SMALL)
    append_to_copy(archive.parent / "whole", more, out)
    at = next(at for at in range(5, 200, 5) if killed_at(command(more, out, "--append"), out, at) and grown(out))
    assert at
    for wrong in (command(other, out, "--append"), command(archive, out)):
        assert main(wrong) == 2
        assert "of the build --append of ledger.csv are not there yet; finish that first" in capsys.readouterr().err
    assert len(open_dataset(out)) == 24  # all the while
    assert main(command(more, out, "--append")) == 0
    assert main(command(other, out, "--append")) == 0
    assert len(open_dataset(out)) == 33


def grown(out: Path) -> bool:
    return len(read_plan(out / "plan.parquet")) == 31


def test_progress_tells_shards_samples_and_rejects_and_what_was_kept(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    out = tmp_path / "out"
    assert main(command(archive, out)) == 0
    assert "24 of 24 samples, " in caplog.text
    assert "5 of 5 shards, " in caplog.text
    for path in out.glob("shard-00003.*"):
        path.unlink()
    caplog.clear()
    assert main(command(archive, out)) == 0
    assert "4 of 5 shards are there already and are kept" in caplog.text


def test_the_executors_are_those_of_concurrent_futures() -> None:
    with executors.local_workers(1) as inline:
        future = inline.executor.submit(divmod, 1, 0)
        assert isinstance(future.exception(), ZeroDivisionError)
        assert inline.executor.submit(divmod, 7, 2).result() == (3, 1)
