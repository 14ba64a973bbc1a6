"""What the doctor says of a file system is what the trainer and the preprocessing then find on it.

On each kind: the doctor's verdict of the folder, then a training that is killed and goes on there, or its refusal.
Real ones are made in files and mounted (ext4, XFS, Btrfs, tmpfs, overlay, quotas); the faults of network mounts come
from a FUSE file system of our own (faulty_fs.py) and bindfs.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from launch.common.folder_checks import check_folder
from launch.common.folder_needs import NEEDS
from launch.common.machine_checks import FAIL, OK, WARN, Check
from mae3d.tracking.run_dir import read_metrics
from tests.cluster.conftest import PATH, TOOLS, Seen, need
from tests.launch.test_launchers import exact
from tests.launch.test_two_hosts import end, start
from tests.support.jobs import ROOT, Job, wait_until
from tests.support.two_hosts import Host

NAMES = {need.name for need in NEEDS}
MEETING = """
import sys
from pathlib import Path
from launch.common.folder_meeting import meet
check = meet(Path(sys.argv[1]), hosts=2, wait_s=float(sys.argv[2]))
print(check.status, check.detail)
"""
STEPS = ("--train.steps", "8", "--run.checkpoint_every", "2")


def call(*command: str | Path) -> None:
    """Run a program that sets something up; skip the scenario if the kernel has not what it takes."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": PATH})
    if done.returncode:
        pytest.skip(f"{' '.join(map(str, command[:3]))}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


@contextmanager
def mounted(folder: Path, *options: str | Path) -> Iterator[Path]:
    """Mount at a folder, which is made, until the end of the block."""
    folder.mkdir(exist_ok=True)
    call("mount", *options, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], capture_output=True)


@contextmanager
def image(folder: Path, *make: str, megabytes: int, options: str = "loop") -> Iterator[Path]:
    """Make a file system in a file and mount it."""
    need(make[0])
    file = folder / "image"
    with file.open("wb") as opened:
        opened.truncate(megabytes << 20)
    call(*make, file)
    with mounted(folder / "mount", "-o", options, file) as at:
        yield at


class Fuse:
    """A mount of faulty_fs.py; its rules hold from the next operation on."""

    def __init__(self, folder: Path, name: str = "mount", *, behind: Path | None = None, **rules: Any):
        self.behind, self.at = behind or folder / "behind", folder / name
        self._rules, self._log = folder / f"{name}.json", folder / f"{name}.log"
        for path in (self.behind, self.at):
            path.mkdir(exist_ok=True)
        self.set(**rules)
        command = [sys.executable, "-m", "tests.cluster.faulty_fs", self.behind, self.at, self._rules]
        path = os.pathsep.join([str(ROOT), str(TOOLS)])
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log)

    def __enter__(self) -> "Fuse":
        wait_until(lambda: os.path.ismount(self.at) or self.process.poll() is not None)
        if self.process.poll() is not None:
            pytest.skip(f"no FUSE here: {self._log.read_text().strip().splitlines()[-1]}")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "--lazy", self.at], capture_output=True)
        self.process.kill()
        self.process.wait()

    def set(self, **rules: Any) -> None:
        """Give other rules."""
        aside = self._rules.with_suffix(".new")
        aside.write_text(json.dumps(rules))
        aside.replace(self._rules)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Callable[..., Fuse]]:
    """Return a function that mounts faulty_fs.py with rules."""
    if not (TOOLS / "mfusepy.py").is_file():
        pytest.skip("needs mfusepy (`make cluster` installs it)")
    need("fusermount3")
    with ExitStack() as stack:
        yield lambda **rules: stack.enter_context(Fuse(tmp_path, **rules))


def doctor(path: Path, *, answer_s: float = 60) -> dict[str, Check]:
    """Return what the doctor says of a folder, by need; and that it leaves nothing there."""
    before = sorted(path.iterdir())
    verdict = {check.name.split()[0]: check for check in check_folder(str(path), answer_s=answer_s)}
    assert "remove" not in verdict
    assert (sorted(path.iterdir())) == before
    return verdict


def notable(verdict: dict[str, Check]) -> str:
    """Return in words what is not as it should be; a small disk aside."""
    lines = [f"{need} {check.status}: {check.detail}" for need, check in verdict.items() if check.status != OK]
    return "; ".join(line for line in lines if "GB free" not in line) or "all ok"


def fails(verdict: dict[str, Check]) -> set[str]:
    return {need for need, check in verdict.items() if check.status == FAIL}


def killed_and_gone_on(recipe: Path, shards: Path, run: Path, uncut: Path) -> None:
    """Train two ranks, kill them after a checkpoint, start again: the losses are those of a run that nothing met."""
    job = Job(recipe, shards, run, processes=2)
    wait_until((run / "checkpoints" / "latest").exists)
    for rank in job.ranks():
        rank.send_signal(signal.SIGKILL)
    job.end()
    code, output = Job(recipe, shards, run, processes=2).end()
    assert code == 0, output
    assert "resumed from" in output
    assert exact(run) == exact(uncut)
    assert not [path.name for path in run.rglob(".tmp-mae3d-*")]


def built(out: Path, frames: Path) -> tuple[int, str]:
    """Preprocess into a folder; return exit code and output."""
    ledger = ("--frames", str(frames / "frames"), "--ledger", str(frames / "frames" / "ledger.csv"))
    command = [sys.executable, "-m", "preprocess", "build", *ledger, "--out", str(out), "--shard-size", "4"]
    done = subprocess.run([*command, "--workers", "1"], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def same_shards(out: Path, shards: Path) -> bool:
    names = sorted(path.name for path in shards.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    return all((out / name).read_bytes() == (shards / name).read_bytes() for name in names)


GOOD = {
    "ext4": (("mkfs.ext4", "-q"), 128),
    "xfs": (("mkfs.xfs", "-q"), 400),
    "btrfs": (("mkfs.btrfs", "-q"), 200),
}


@pytest.mark.parametrize("kind", [*GOOD, "tmpfs", "overlay"])
def test_a_local_file_system_keeps_runs_and_shards(
    kind: str, recipe: Path, shards: Path, uncut: Path, tmp_path: Path, seen: Seen
) -> None:
    with ExitStack() as stack:
        if kind in GOOD:
            make, megabytes = GOOD[kind]
            at = stack.enter_context(image(tmp_path, *make, megabytes=megabytes))
        elif kind == "tmpfs":
            at = stack.enter_context(mounted(tmp_path / "mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs"))
        else:
            layers = [tmp_path / name for name in ("lower", "upper", "work")]
            for layer in layers:
                layer.mkdir()
            lower, upper, work = layers
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            at = stack.enter_context(mounted(tmp_path / "mount", "-t", "overlay", "-o", options, "overlay"))
        verdict = doctor(at)
        assert verdict["folder"].detail.startswith(kind)
        assert notable(verdict) == "all ok"
        killed_and_gone_on(recipe, shards, at / "run", uncut)
        code, output = built(at / "shards", shards.parent)
        assert code == 0, output
        assert same_shards(at / "shards", shards)
        seen("doctor: all ok; killed and gone on: losses equal; shards equal")


@dataclass(frozen=True)
class Case:
    """Faults of a file system, what the doctor must say of it, and how trainings and preprocessing must end there.

    Attributes:
        rules: of faulty_fs.py.
        warned: needs that are met half.
        failed: needs that are not met.
        trains: a training that is killed goes on, and its losses are equal; else it ends with 3.
        builds: preprocessing gives the same shards; else it ends with 3.
    """

    rules: dict[str, Any]
    warned: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    trains: bool = True
    builds: bool = True


CASES = {
    "without a fault": Case({}),
    "without hard links": Case({"fail": {"link": "EOPNOTSUPP"}}),
    "where links are not allowed": Case({"fail": {"link": "EPERM"}}),
    "where links leave the quota's folder": Case({"fail": {"link": "EXDEV"}}),
    "that syncs no folders": Case({"fail": {"fsyncdir": "EINVAL"}}, warned={"sync"}),
    "that refuses to replace what is open (CIFS)": Case(
        {"open_targets": True, "fail": {"link": "EOPNOTSUPP"}, "ignore_case": True, "mount": {"hard_remove": True}},
        warned={"replace", "rewrite"},
        builds=False,  # a file without a name is lost there
    ),
    "whose files are all another user's": Case({"owner": 12345}, warned={"cache"}),
    "without flock": Case({"fail": {"flock": "ENOLCK"}}, warned={"cache"}),
    "without utime": Case({"fail": {"utimens": "EPERM"}}, warned={"lock", "cache"}),
    "without shared maps (direct_io)": Case({"mount": {"direct_io": True}}, warned={"map"}),
    "with short names": Case({"longest": 143}, warned={"names"}),
    "without chmod": Case({"fail": {"chmod": "EPERM", "chown": "EPERM"}}),
    "that writes in order only": Case({"append_only": True}, warned={"rewrite"}, builds=False),
    "that replaces no file": Case({"no_replace": True}, failed={"replace", "folders", "lock"}, trains=False),
    "that renames no folder": Case({"fail": {"rename_folder": "EOPNOTSUPP"}}, failed={"folders"}, trains=False),
    "whose syncs fail": Case(
        {"fail": {"fsync": "EIO"}}, failed={"room", "replace", "sync"}, trains=False, builds=False
    ),
    "with stale handles": Case(
        {"fail": {"open": "ESTALE"}},
        failed={"replace", "lock", "sync", "append", "map"},
        trains=False,
        builds=False,
    ),
    "that is read-only": Case(
        {"fail": {"create": "EROFS", "mkdir": "EROFS"}}, failed={"folder"}, trains=False, builds=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_a_file_system_behaves_as_the_doctor_says(
    kind: str, recipe: Path, shards: Path, uncut: Path, faulty: Callable[..., Fuse], seen: Seen
) -> None:
    case, mount = CASES[kind], faulty(**CASES[kind].rules)
    verdict = doctor(mount.at)
    seen(f"doctor: {notable(verdict)}")
    by_status = {status: {name for name, check in verdict.items() if check.status == status} for status in (WARN, FAIL)}
    assert by_status[WARN] - {"room"} == case.warned
    assert by_status[FAIL] == case.failed
    assert all(check.remedy for check in verdict.values() if check.status != OK)
    if case.trains:
        killed_and_gone_on(recipe, shards, mount.at / "run", uncut)
        seen("trains, is killed, goes on: losses equal")
    else:
        code, output = Job(recipe, shards, mount.at / "run", *STEPS).end()
        error = next(line for line in reversed(output.splitlines()) if line.startswith("error: "))
        assert code == 3, output
        assert str(mount.at) in error
        seen(f"the trainer ends with 3: {error.rpartition(': ')[2]}")
    code, output = built(mount.at / "shards", shards.parent)
    if case.builds:
        assert code == 0, output
        assert same_shards(mount.at / "shards", shards)
        seen("builds the same shards")
    else:
        assert code == 3, output
        assert str(mount.at) in output.splitlines()[-1]
        seen("the build ends with 3")


def test_bindfs_without_deletion_or_renames(recipe: Path, shards: Path, tmp_path: Path, seen: Seen) -> None:
    need("bindfs")
    for option, failed in (("--delete-deny", set(NAMES)), ("--rename-deny", {"replace", "folders", "lock"})):
        behind, at = tmp_path / f"behind{option}", tmp_path / f"mount{option}"
        behind.mkdir()
        at.mkdir()
        call("bindfs", option, behind, at)
        try:
            verdict = {check.name.split()[0]: check for check in check_folder(str(at), answer_s=60)}
            code, output = Job(recipe, shards, at / "run", *STEPS).end()
        finally:
            subprocess.run(["umount", "--lazy", at], capture_output=True)
        assert failed - {"room"} <= fails(verdict)  # a slow disk there is a warning, and no deletion needed
        assert code == 3, output
        seen(f"{option}: doctor FAIL {', '.join(sorted(fails(verdict)))}; the trainer ends with 3")


def test_a_mount_that_hangs_is_told_by_the_doctor_and_waited_for_by_a_training(
    recipe: Path, shards: Path, uncut: Path, faulty: Callable[..., Fuse], seen: Seen
) -> None:
    mount = faulty()
    run = mount.at / "run"
    job = Job(recipe, shards, run, processes=2)
    wait_until((mount.behind / "run" / "checkpoints" / "latest").exists)
    mount.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    command = [sys.executable, "-m", "launch.doctor", "--device", "cpu", "--json", "--path", str(mount.at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    seconds = time.monotonic() - start
    assert done.returncode == 1
    (line,) = [line for line in json.loads(done.stdout) if line["name"].endswith(str(mount.at))]
    assert line["status"] == FAIL
    assert line["detail"].startswith("no answer in 20 s from fuse")
    assert job.process.poll() is None
    mount.process.send_signal(signal.SIGCONT)
    code, output = job.end()
    assert code == 0, output
    assert exact(run) == exact(uncut)
    seen(f"doctor after {seconds:.0f} s: {line['name'].split()[0]} FAIL: {line['detail'].partition(' at ')[0]}")
    seen("the mount back, the training has gone on by itself: losses equal")


def test_a_read_only_mount_costs_checkpoints_and_ends_with_3_and_a_restart_goes_on(
    recipe: Path, shards: Path, uncut: Path, tmp_path: Path, seen: Seen
) -> None:
    with mounted(tmp_path / "mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs") as at:
        job = Job(recipe, shards, at / "run", processes=2)
        wait_until((at / "run" / "checkpoints" / "latest").exists)
        while subprocess.run(["mount", "-o", "remount,ro", at], capture_output=True).returncode:
            assert job.process.poll() is None  # busy: a file is being written
        code, output = job.end()
        assert code == 3, output
        (folder,) = doctor(at).values()
        assert folder.status == FAIL
        assert "Read-only file system" in output
        assert "Read-only file system" in folder.detail
        call("mount", "-o", "remount,rw", at)
        code, output = Job(recipe, shards, at / "run", processes=2).end()
        assert code == 0, output
        assert exact(at / "run") == exact(uncut)
    seen("ends with 3 and the reason, as the doctor says it; writable again, it goes on: losses equal")


def use_up(at: Path, what: str) -> None:
    """Leave no byte, or no name, in a file system."""
    try:
        for number in range(10**6):
            with (at / f"filler-{number}").open("wb") as file:
                while what == "bytes":
                    file.write(bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@pytest.mark.parametrize("limit", ["quota", "bytes", "inodes"])
def test_a_limit_is_told_by_the_doctor_and_ends_a_training_that_goes_on_with_more(
    limit: str, recipe: Path, shards: Path, uncut: Path, tmp_path: Path, seen: Seen
) -> None:
    with ExitStack() as stack:
        if limit == "quota":  # btrfs's, because this kernel has no others (no QFMT_V2, no XFS_QUOTA)
            need("btrfs")
            at = stack.enter_context(image(tmp_path, "mkfs.btrfs", "-q", megabytes=20_000))  # sparse
            call("btrfs", "quota", "enable", at)
            call("btrfs", "subvolume", "create", at / "home")
            call("btrfs", "qgroup", "limit", "1G", at / "home")
            at /= "home"
        else:
            make = ("mkfs.ext4", "-q", "-N", "256")
            at = stack.enter_context(image(tmp_path, *make, megabytes=160))
        before = doctor(at)
        name = {"quota": "room", "inodes": "files", "bytes": "room"}[limit]
        seen(f"doctor before: {name} {before[name].status}: {before[name].detail}")
        if limit != "bytes":
            assert before["room" if limit == "quota" else "files"].status == WARN
        run = at / "run"
        job = Job(recipe, shards, run, "--train.steps", "400", processes=2)
        wait_until((run / "checkpoints" / "latest").exists)
        if limit == "quota":
            call("btrfs", "qgroup", "limit", "1M", at)
        else:
            use_up(at, limit)
        code, output = job.end()
        assert code == 3, output
        during = {check.name.split()[0]: check for check in check_folder(str(at), answer_s=60)}
        reason = "Disk quota exceeded" if limit == "quota" else "No space left on device"
        assert reason in output
        assert any(check.status == FAIL and reason in check.detail for check in during.values())
        seen(f"used up: exit 3, {reason}; doctor: {', '.join(sorted(fails(during)))} FAIL")
        if limit == "quota":
            call("btrfs", "qgroup", "limit", "none", at)
        for filler in at.glob("filler-*"):
            filler.unlink()
        code, output = Job(recipe, shards, run, "--train.steps", "400", processes=2).end()
        assert code == 0, output
        assert "resumed from" in output
        assert [row["step"] for row in read_metrics(run)] == list(range(1, 401))
    seen("with more it goes on to its end")


def views(hosts: Sequence[Host], mounts: Sequence[Path], common: Path) -> list[Host]:
    """Return hosts that see each its mount at the same path."""
    bind = ("sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"')
    return [
        replace(host, prefix=(*host.prefix, *bind, str(mount), str(common)))
        for host, mount in zip(hosts, mounts, strict=True)
    ]


def test_two_doctors_on_two_hosts_see_each_other(hosts: list[Host], tmp_path: Path, seen: Seen) -> None:
    folders = [tmp_path / name for name in ("shared", "other", "common")]
    for folder in folders:
        folder.mkdir()
    shared, other, common = folders

    def met(mounts: Sequence[Path], wait_s: float) -> list[str]:
        started = [
            subprocess.Popen(
                [*host.prefix, sys.executable, "-c", MEETING, common, str(wait_s)],
                cwd=ROOT, stdout=subprocess.PIPE, text=True,
            )
            for host in views(hosts, mounts, common)
        ]  # fmt: skip
        return [process.communicate(timeout=240)[0].strip() for process in started]

    both = met([shared, shared], 120)
    assert all(line.startswith("ok 2 see each other") for line in both), both
    alone = met([shared, other], 10)
    assert all(line.startswith("FAIL 1 of 2 are to be seen after 10 s: node-") for line in alone), alone
    assert [*shared.iterdir(), *other.iterdir()] == []
    seen(f"one file system: {both[0]}; two at the same path: {alone[0].partition(':')[0]}; nothing is left")


def test_two_hosts_that_see_each_others_files_late_write_the_losses_of_one(
    hosts: list[Host], recipe: Path, shards: Path, uncut: Path, faulty: Callable[..., Fuse], tmp_path: Path, seen: Seen
) -> None:
    first, run = faulty(name="view-a", delay=3), tmp_path / "run"
    second = faulty(name="view-b", delay=3)
    run.mkdir()
    codes = end(start(views(hosts, [first.at, second.at], run), recipe, shards, run))
    print([row["failed_saves"] for row in read_metrics(first.behind)])
    assert codes == [0, 0]
    assert exact(first.behind) == exact(uncut)
    assert read_metrics(first.behind)[-1]["failed_saves"] == 0
    seen("names show on the other host after 3 s: no checkpoint fails, losses equal")
