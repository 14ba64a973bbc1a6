"""A section of `benchmarks/gpu.py` is a list of cases; they are measured one by one, and each leaves a row.

def attention(trial: Trial) -> list[Case]:
    return [Case("16 heads", lambda: {"ms": 1.5}), ...]
"""

import datetime
import gc
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import ROOT
from benchmarks.gpu_table import Journal
from mae3d.io.console import one_line

PACKAGES = ("torch", "nvidia-dali-cuda120", "deepspeed", "triton", "timm", "av", "numpy")


class Skipped(Exception):
    """The reason why a case cannot be measured here; it is no failure."""


class Case(NamedTuple):
    """A measurement: its name in its section, and the function that gives its figures."""

    name: str
    measure: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """What is measured on, and with.

    Attributes:
        device: "cuda", or "cpu", which means tiny sizes.
        out: folder of the results; the pictures that the section `footage` makes lie below.
        videos: folder of footage; None for made pictures.
    """

    device: str
    out: Path
    videos: Path | None = None

    @property
    def on_gpu(self) -> bool:
        """Return whether a GPU is measured, at full sizes."""
        return self.device == "cuda"

    @property
    def shards(self) -> Path:
        """Return the dataset of frames of 340 x 256, or of the footage."""
        return self.out / "footage" / "shards"

    @property
    def demo(self) -> Path:
        """Return the dataset of the demo's clips."""
        return self.out / "footage" / "demo"


def run_cases(cases: Sequence[Case], journal: Journal, *, seconds: float) -> None:
    """Measure the cases that have no row yet.

    A case that hangs is ended, with the process, by SIGALRM's default; the caller starts another process, which goes on
    with the next.

    Args:
        cases: all of the section.
        journal: gets a row for each.
        seconds: the section's limit; of several cases none may take more than half of it.
    """
    done = {row["case"] for row in journal.rows}
    for case in cases:
        if case.name in done:
            continue
        journal.write(began=case.name)
        signal.alarm(int(seconds / 2 if len(cases) > 1 else seconds) + 1)
        row: dict[str, Any] = {"case": case.name}
        start = time.perf_counter()
        try:
            row |= case.measure()
        except Skipped as reason:
            row["skipped"] = str(reason)
        except Exception as error:  # whatever a library raises: the next case may do
            row["error"] = f"{type(error).__name__}: {one_line(error)}"
            print(f"{case.name}: {row['error']}", file=sys.stderr, flush=True)
        signal.alarm(0)
        journal.write(row=row | {"s": round(time.perf_counter() - start, 1)})
        free_memory()
    journal.write(finished=True)


def free_memory() -> None:
    """Give back what an earlier case has left on the GPU."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        with suppress(RuntimeError):  # a GPU that has failed
            torch.cuda.empty_cache()


def facts(device: str) -> dict[str, Any]:
    """Return the device, the versions, the date and the commit that the figures belong to."""
    cores = len(os.sched_getaffinity(0))
    known: dict[str, Any] = {"device": f"the CPU: {processor()}, {cores} cores"}
    if device == "cuda":
        import torch

        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        known = {"device": f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, {torch.cuda.device_count()} there"}
        known |= {"CUDA": f"{torch.version.cuda}, driver {driver()}", "CPU": f"{processor()}, {cores} cores"}
    versions = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    now = datetime.datetime.now(datetime.UTC)
    return known | {"versions": ", ".join(versions), "date": f"{now:%Y-%m-%d %H:%M} UTC", "commit": commit()}


def processor() -> str:
    """Return the CPU's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def driver() -> str:
    """Return the NVIDIA driver's version."""
    with suppress(OSError):
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    return "unknown"


def commit() -> str:
    """Return the commit that is checked out, with a mark if files differ from it."""
    with suppress(OSError):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"
