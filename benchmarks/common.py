"""What the benchmarks share: a dataset, memory, and paired measurement in which candidates take turns in one process.

What is reported are ratios of CPU or wall time.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and their range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def alternate(
    candidates: Mapping[str, Callable[[], None]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    wait: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Runs every candidate once a round, in turn forwards and backwards, after one round that is not counted.

    Args:
        candidates: name ─► a block of work; blocks of one call must be of one size to be compared.
        rounds: counted rounds.
        clock: `time.process_time` counts the CPU seconds of all threads, which a busy machine changes least.
        wait: returns when a block's work is over; None is `settle`.

    A block ends when the process is idle: what it makes threads do ahead belongs to it.

    Returns:
        Seconds of every block, a list of `rounds` for each name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        names = list(candidates)[:: 1 if round_number % 2 else -1]
        for name in names:
            start = clock()
            candidates[name]()
            (wait or settle)()
            if round_number:
                seconds[name].append(clock() - start)
    return seconds


def settle() -> None:
    """Waits until no thread of this process has worked for 20 ms."""
    quiet = 0
    while quiet < 2:
        before = time.process_time()
        time.sleep(0.01)
        quiet = quiet + 1 if time.process_time() - before < 0.001 else 0


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """How many times as long `slower` took, round by round."""
    pairs = [a / b for a, b in zip(slower, faster, strict=True)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


def build(out: Path, *options: object) -> None:
    """`python -m preprocess build` with these options."""
    command = [sys.executable, "-m", "preprocess", "build", "--out", out, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
