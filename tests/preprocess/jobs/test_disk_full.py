"""Row 17 of docs/failures.md: a full or read-only disk ends with exit code 3 and the old data as they were."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from tests.support.builds import SMALL, command, make_archive, tree
from tests.support.kills import done, inodes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterable[Path]:
    """Yield a folder on a disk of 600 kB of its own."""
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
