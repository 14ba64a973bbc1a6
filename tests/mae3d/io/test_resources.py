"""Memory and disk: what a container leaves counts, and what cannot fit is refused with both sizes."""

import errno
import shutil
from pathlib import Path

import pytest

from mae3d.io import resources
from mae3d.io.resources import available_memory, require_disk, require_memory

GB = 10**9
UNLIMITED = 9223372036854771712  # what v1 has for no limit


def machine(root: Path, groups: str, **files: str) -> int:
    """Return the memory available where /proc and /sys have these texts, and 64 GB are free."""
    texts = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {64 * GB // 1024} kB\n", "proc/self/cgroup": groups}
    for name, text in (texts | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return available_memory(root)


def v2(folder: str, limit: int | str, used: int, cache: int = 0) -> dict[str, str]:
    stat = f"anon 5\nactive_file {cache // 4}\ninactive_file {cache - cache // 4}\n"
    return {f"{folder}memory.max": f"{limit}\n", f"{folder}memory.current": f"{used}\n", f"{folder}memory.stat": stat}


def v1(folder: str, limit: int, used: int, cache: int = 0) -> dict[str, str]:
    return {
        f"memory/{folder}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{folder}memory.usage_in_bytes": f"{used}\n",
        f"memory/{folder}memory.stat": f"active_file 1\ntotal_active_file {cache}\ntotal_inactive_file 0\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("", {}, 64),
        ("0::/\n", v2("", 8 * GB, 3 * GB), 5),
        ("0::/\n", v2("", 8 * GB, 8 * GB, cache=6 * GB), 6),  # the cache of files is given up
        ("0::/\n", v2("", "max", 3 * GB), 64),
        ("0::/slurm/job/step\n", v2("slurm/job/step/", "max", 1) | v2("slurm/job/", 9 * GB, 2 * GB), 7),  # above it
        ("0::/\n", v2("", 2 * GB, 3 * GB), 0),
        ("5:cpu:/\n4:memory:/job\n0::/\n", v1("job/", 8 * GB, 5 * GB, cache=GB) | v1("", UNLIMITED, 9 * GB), 4),
        ("4:cpu,memory:/docker/of/the/host\n", v1("", 6 * GB, GB), 5),  # a container sees its own group at the top
    ],
)
def test_memory_is_what_the_machine_and_its_containers_leave(
    tmp_path: Path, groups: str, files: dict[str, str], left: int
) -> None:
    assert machine(tmp_path, groups, **files) == pytest.approx(left * GB, rel=1e-6)


def test_what_cannot_fit_is_refused_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 3 * GB)
    require_memory(3 * GB, "the scores", "take fewer")
    with pytest.raises(
        ValueError, match="the scores: 4 GB of memory are needed, and 3 GB are available here: take fewer"
    ):
        require_memory(4 * GB, "the scores", "take fewer")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: usage._replace(free=3 * GB))
    require_disk(tmp_path, 3 * GB, "the table", "take fewer")
    with pytest.raises(OSError, match="the table: 4 GB of disk are needed, and 3 GB are free: take fewer") as refused:
        require_disk(tmp_path / "new" / "out", 4 * GB, "the table", "take fewer")
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(tmp_path / "new" / "out"))
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: usage._replace(total=0, free=0))
    require_disk(tmp_path, 4 * GB, "the table", "a mount that reports no sizes is not refused")


def test_this_machine_has_some_memory() -> None:
    assert available_memory() > 10**8
