"""Memory and disk space that can be had, compared with what a command will need before it begins its long part.

    require_memory(16 * samples * classes, f"scores of {samples:,} samples", "evaluate in parts")
    require_disk(out, 4 * rows * width, f"a table of {rows:,} rows", "give an --out with more room")

What is needed is a lower bound: what is refused cannot work, what is accepted may still turn out to be too large.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that can be had without swapping: of the machine, and below the limits of its containers.

    Args:
        root: the folder with proc/ and sys/.
    """
    try:
        machine = 1024 * _counters(root / "proc/meminfo")["MemAvailable:"]
    except (OSError, KeyError):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([machine, *_below_limits(root)]))


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Refuse what does not fit into memory.

    Args:
        needed: bytes.
        what: the beginning of the message, with the sizes that make it so much.
        remedy: the end of the message.

    Raises:
        ValueError: less is available.
    """
    available = available_memory()
    if needed > available:
        raise ValueError(
            f"{what}: {_gb(needed)} of memory are needed, and {_gb(available)} are available here: {remedy}"
        )


def require_disk(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Refuse what does not fit into the file system of a folder; the other arguments are those of `require_memory`.

    Raises:
        OSError: less is free.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    if usage.total and needed > usage.free:  # some network mounts report no sizes at all
        problem = f"{what}: {_gb(needed)} of disk are needed, and {_gb(usage.free)} are free: {remedy}"
        raise OSError(errno.ENOSPC, problem, str(folder))


def _below_limits(root: Path) -> Iterator[int]:
    """Yield the bytes that are left below each limit of this process's control groups (cgroup v2 and v1).

    The cache of files counts as use, but the kernel drops it before a limit is exceeded.
    """
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for _, controllers, path in groups:
        if not controllers:
            top, limit, use, prefix = mounts, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit, use, prefix = mounts / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        group = top / path.lstrip("/")  # in a container it may be the host's path, which is not mounted there
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                try:
                    most = int((folder / limit).read_text(encoding="utf-8"))
                    used = int((folder / use).read_text(encoding="utf-8"))
                    counters = _counters(folder / "memory.stat")
                except (OSError, ValueError):  # no such group, or "max"
                    continue
                cache = sum(counters.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                yield most - used + cache


def _counters(path: Path) -> dict[str, int]:
    """Return the first number of each line behind its name."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def _gb(size: int) -> str:
    return f"{size / 1e9:,.4g} GB"
