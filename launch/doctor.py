"""The machine ─► one line per check: ok, warn or FAIL, and the remedy. The exit code is 1 if a check failed.

mae3d doctor --path /data --path /runs/a      # also: launch/doctor.py, python -m launch.doctor
"""

import argparse
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common import machine_checks as checks
from launch.common.folder_checks import check_folder
from launch.common.machine_checks import FAIL, GB, OK, WARN, Check
from mae3d.io.console import tolerate_any_text
from mae3d.io.help_page import add_help


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


def examine(paths: Sequence[str], *, hosts: int = 1, device: str = "auto") -> list[Check]:
    """Run all checks at the same time; return them in the order of the report.

    Args:
        paths: folders of shards, runs or results.
        hosts: doctors that are started on these folders at the same time, on as many hosts.
        device: "auto", or "cpu" to leave a GPU out of account.
    """
    gpus = [] if device == "cpu" or checks.hidden_gpus() else checks.gpu_names()
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    examinations: list[Callable[[], list[Check]]] = [
        lambda: [checks.check_python()],
        lambda: [checks.check_gpu(gpus)],
        lambda: [checks.check_dali(gpus)],
        lambda: [checks.check_deepspeed()],
        lambda: [checks.check_fused_adam(gpus, prebuilt=checks.prebuilt_ops(), nvcc=checks.find_nvcc(), ninja=ninja)],
        lambda: [checks.check_programs()],
        lambda: [checks.check_communication(gpus)],
        lambda: [check_shared_memory(gpus), check_cpus(gpus), check_open_files()],
        *(partial(check_folder, path, hosts=hosts) for path in paths),
    ]
    with ThreadPoolExecutor(len(examinations)) as pool:
        return list(chain.from_iterable(pool.map(lambda examine_one: examine_one(), examinations)))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mae3d doctor", description="Checks this machine and says what to do.", allow_abbrev=False, add_help=False
    )
    add_help(parser, examples=("mae3d doctor --path /data --path runs/a", "mae3d doctor --device cpu --json"))
    parser.add_argument(
        "--path",
        action="append",
        metavar="DIR",
        help="a folder for runs or shards; repeatable (default: here)",
    )
    parser.add_argument(
        "--hosts", type=int, default=1, metavar="N", help="started on N hosts at once: do they see each other's files?"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: leave GPUs alone")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; return 0 if no check failed, else 1."""
    tolerate_any_text()
    options = parser().parse_args(argv)
    results = examine(options.path or ["."], hosts=options.hosts, device=options.device)
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
