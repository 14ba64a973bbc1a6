"""The machine ─► one line per check: ok, warn or FAIL, and the remedy. The exit code is 1 if a check failed.

python -m launch.doctor --dir /data      # also: launch/doctor.py, mae3d-doctor
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common import machine_checks as checks
from launch.common.machine_checks import FAIL, OK, WARN, Check
from mae3d.io.console import tolerate_any_text

GB = 1e9


def check_shared_memory(gpus: Sequence[str], *, folder: Path = Path("/dev/shm")) -> Check:
    """Check /dev/shm: NCCL passes data between the GPUs of a node through it; containers have 64 MB by default."""
    is_shared = len(gpus) > 1  # a single process shares nothing
    if not folder.is_dir():
        return Check("/dev/shm", WARN if is_shared else OK, "not there", "mount a tmpfs there" if is_shared else "")
    size = shutil.disk_usage(folder).total
    if is_shared and size < GB:
        remedy = "docker run --ipc=host or --shm-size=8g; Kubernetes: an emptyDir with medium: Memory"
        return Check("/dev/shm", WARN, f"{size / GB:.2f} GB", remedy)
    return Check("/dev/shm", OK, f"{size / GB:.1f} GB")


def check_disk(folder: Path, *, megabytes: int = 64) -> Check:
    """Check the free space of a folder, and how fast it takes a file that is then flushed."""
    name = f"disk {folder}"
    block = os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".mae3d-doctor-") as file:
            start = time.perf_counter()
            for _ in range(megabytes):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - start
        free = shutil.disk_usage(folder).free
    except OSError as problem:
        return Check(name, FAIL, f"cannot be written: {problem.strerror}", "name a folder that can be: --dir DIR")
    speed = megabytes * (1 << 20) / 1e6 / seconds
    detail = f"{free / GB:.0f} GB free, writes {speed:.0f} MB/s"
    if free < 10 * GB:
        return Check(
            name,
            WARN,
            detail,
            "a ViT-L checkpoint takes 4 GB, several are kept: make room, or --run.dir elsewhere",
        )
    if speed < 50:
        return Check(name, WARN, detail, "keep shards and runs on a faster disk, not on a slow network mount")
    return Check(name, OK, detail)


def check_cpus(gpus: Sequence[str], *, cores: int | None = None) -> Check:
    """Check the cores that this process may use (its affinity): DALI's feeding threads need a few for each GPU."""
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    few = cores < 4 * len(gpus)
    remedy = "request 4 cores or more per GPU from the scheduler (--cpus-per-task, --cpus)" if few else ""
    return Check("CPU cores", WARN if few else OK, f"{cores}", remedy)


def check_open_files(limit: int | None = None) -> Check:
    """Check how many files a process may have open: each rank keeps the shards that it reads open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    few = 0 <= limit < 4096
    return Check("open files", WARN if few else OK, f"at most {limit}", "ulimit -n 65536" if few else "")


def examine(folder: Path, *, device: str = "auto") -> list[Check]:
    """Run all checks at the same time; return them in the order of the report.

    Args:
        folder: where shards or runs would lie.
        device: "auto", or "cpu" to leave a GPU out of account.
    """
    gpus = [] if device == "cpu" or checks.hidden_gpus() else checks.gpu_names()
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    examinations: list[Callable[[], Check]] = [
        checks.check_python,
        lambda: checks.check_gpu(gpus),
        lambda: checks.check_dali(gpus),
        checks.check_deepspeed,
        lambda: checks.check_fused_adam(gpus, prebuilt=checks.prebuilt_ops(), nvcc=checks.find_nvcc(), ninja=ninja),
        checks.check_programs,
        lambda: checks.check_communication(gpus),
        lambda: check_shared_memory(gpus),
        lambda: check_disk(folder),
        lambda: check_cpus(gpus),
        check_open_files,
    ]
    with ThreadPoolExecutor(len(examinations)) as pool:
        return list(pool.map(lambda examine_one: examine_one(), examinations))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; return 0 if no check failed, else 1."""
    tolerate_any_text()
    parser = argparse.ArgumentParser(prog="doctor", description="Checks this machine and says what to do.")
    parser.add_argument("--dir", type=Path, default=Path(), help="folder whose disk is tried (default: here)")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: leave GPUs alone")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    options = parser.parse_args(argv)
    results = examine(options.dir, device=options.device)
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        width = max(len(result.name) for result in results)
        for result in results:
            remedy = f"  ─► {result.remedy}" if result.remedy else ""
            print(f"{result.status:4}  {result.name:{width}}  {result.detail}{remedy}")
    return int(any(result.status == FAIL for result in results))


if __name__ == "__main__":
    sys.exit(main())
