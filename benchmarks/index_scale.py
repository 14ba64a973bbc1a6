"""The index at its designed size, ten million samples of 300 million frames: size, merge, opening, memory.

    python benchmarks/index_scale.py out/scale         # some ten minutes and 11 GB of disk; then remove out/scale

Makes the tables of 10,000 shards (as build_shard writes them, with random numbers), empty tars of the right sizes, and
merges them by the program's own writer. Every figure is taken in a fresh process.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preprocess.dataset.index import open_dataset
from preprocess.dataset.layout import JPEG
from preprocess.dataset.schema import SHARD_SCHEMA
from preprocess.dataset.writer import write_dataset

PROCESSES, DRAWS, SPAN = 8, 1000, 16


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=1000, help="in a shard")
    parser.add_argument("--frames", type=int, default=30, help="of a sample, on average")
    parser.add_argument("--step", choices=["merge", "draw"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    out: Path = asked.out
    if asked.step:
        merge(out) if asked.step == "merge" else draw(out)
        return
    if not list(out.glob("shard-*.parquet")):
        out.mkdir(parents=True, exist_ok=True)
        for number in range(asked.shards):
            make_tables(out, number, asked.samples, asked.frames)
    report(out)


def make_tables(out: Path, number: int, samples: int, frames: int) -> None:
    """Make one shard without its frames: the table, and a sparse tar of the right size."""
    rng = np.random.default_rng(number)
    counts = rng.integers(frames // 2, frames + frames // 2 + 1, samples).astype(np.int32)
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    sizes = rng.integers(8_000, 24_000, bounds[-1]).astype(np.int32)
    ends = JPEG.offsets(np.append(sizes, 0), start=0)
    first = number * samples
    numbers = range(first, first + samples)
    starts: Any = pa.array(bounds)  # the stubs cannot tell of what
    rows: dict[str, Any] = {
        "key": [f"{i:09d}" for i in numbers],
        "name": [f"site_{i % 50:02d}/2026-11-{i % 28 + 1:02d}/camera_{i % 7}/clip_{i:09d}.mp4" for i in numbers],
        "labels": [[i % 400] for i in numbers],
        "split": [("train", "train", "train", "val")[i % 4] for i in numbers],
        "offset": ends[bounds[:-1]] + 1536 * np.arange(1, samples + 1),
        "num_frames": counts,
        "first": np.zeros(samples, np.int64),
        "fps": np.full(samples, 15.0),
        "start_s": rng.random(samples) * 3600,
        "width": np.full(samples, 340, np.int32),
        "height": np.full(samples, 256, np.int32),
        "sizes": pa.ListArray.from_arrays(starts, pa.array(sizes)),
        "crc32s": pa.ListArray.from_arrays(starts, pa.array(rng.integers(0, 2**32, len(sizes), dtype=np.uint32))),
        "file": [""] * samples,
        "line": np.full(samples, -1, np.int32),
        "frame": np.full(samples, -1, np.int64),
        "reason": [""] * samples,
        "message": [""] * samples,
    }
    tar_bytes = int(ends[-1]) + 1536 * samples + 10_240
    table = out / f"shard-{number:05d}.parquet"
    metadata = {"tar_bytes": str(tar_bytes), "tar_sha256": f"{number:064x}"}
    pq.write_table(pa.table(rows, schema=SHARD_SCHEMA.with_metadata(metadata)), table)
    table.with_suffix(".idx").write_text("v1.2 0\n")
    with table.with_suffix(".tar").open("wb") as tar:
        tar.truncate(tar_bytes)


def report(out: Path) -> None:
    """Merge, open and draw, each in processes of their own, and print the cost."""
    merged = wait_for([start(out, "merge")])[0]
    meta = json.loads((out / "dataset.json").read_text())
    totals = meta["totals"]
    print(f"{totals['samples']:,} samples, {totals['frames']:,} frames, {len(meta['shards']):,} shards")
    sizes = {stem: meta["files"][stem]["bytes"] / 1e6 for stem in ("index", "rows", "frames")}
    sizes["dataset.json"] = (out / "dataset.json").stat().st_size / 1e6
    print("on disk: " + ", ".join(f"{stem} {size:,.1f} MB" for stem, size in sizes.items()))
    print("merge: {seconds:.0f} s, {cpu_s:.0f} CPU s, memory of its own at most {peak_mb:.0f} MB".format(**merged))
    for count in (1, PROCESSES):
        drawn = wait_for([start(out, "draw") for _ in range(count)])
        print(f"{count} processes at a time, each with {DRAWS} x {SPAN} random frames:")
        for key in drawn[0]:
            print(f"  {key}: {min(one[key] for one in drawn):.3g} to {max(one[key] for one in drawn):.3g}")
        together = {key: sum(one[key] for one in drawn) for key in drawn[0] if key.endswith("_mb")}
        print("  all together: " + ", ".join(f"{key} {value:,.0f}" for key, value in together.items()))


def start(out: Path, step: str) -> subprocess.Popen[str]:
    """Start one step in a process of its own."""
    command = [sys.executable, __file__, str(out), "--step", step]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(processes: list[subprocess.Popen[str]]) -> list[dict[str, float]]:
    """Return the processes' results: once all are ready they measure memory, and none ends before all have."""
    for process in processes:
        lines(process)[1].readline()
    for process in processes:
        lines(process)[0].write("look\n")
        lines(process)[0].flush()
    answers = [json.loads(lines(process)[1].readline()) for process in processes]
    for process in processes:
        process.communicate()
    return answers


def lines(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    """Exchange lines with a process."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def answer(found: dict[str, float], **more: Callable[[], float]) -> None:
    """Answer `wait_for`; `more` is measured when all are ready."""
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(found | {name: look() for name, look in more.items()}), flush=True)
    sys.stdin.read()


def merge(out: Path) -> None:
    """Merge, while a thread measures the memory of this process."""
    peak, done = 0.0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, memory_mb("Anonymous"))

    watcher = threading.Thread(target=look)
    watcher.start()
    began, cpu = time.perf_counter(), time.process_time()
    write_dataset(out, tables=sorted(out.glob("shard-*.parquet")), settings={})
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    done.set()
    watcher.join()
    answer({"seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak})


def draw(out: Path) -> None:
    """Open the dataset and request random spans of frames, as a trainer's source does."""
    base = memory_mb("Anonymous")
    began, cpu = time.perf_counter(), time.process_time()
    dataset = open_dataset(out)
    opened, opened_cpu = time.perf_counter() - began, time.process_time() - cpu
    rng = np.random.default_rng(os.getpid())
    began = time.process_time()
    for i in rng.integers(0, len(dataset), DRAWS).tolist():
        first = int(rng.integers(0, max(1, int(dataset.num_frames[i]) - SPAN)))
        dataset.spans(i, np.arange(first, min(first + SPAN, int(dataset.num_frames[i]))))
    drawn = time.process_time() - began
    drawn_mb = memory_mb("Anonymous") - base
    began = time.perf_counter()
    dataset.key(len(dataset) // 3)
    dataset.name(len(dataset) // 3)
    named = time.perf_counter() - began
    answer(
        {
            "seconds to open": opened,
            "CPU seconds to open": opened_cpu,
            "CPU us a span": drawn / DRAWS * 1e6,
            "memory of the index, MB": drawn_mb,
            "seconds for the first key and name": named,
            "memory of these, MB": memory_mb("Anonymous") - base - drawn_mb,
        },
        private_mb=lambda: memory_mb("Private_Clean") + memory_mb("Private_Dirty"),
        anonymous_mb=lambda: memory_mb("Anonymous"),
        proportional_mb=lambda: memory_mb("Pss"),
    )


def memory_mb(kind: str) -> float:
    """Return the memory of this process by kind.

    Anonymous is its own for good; Private_* also counts mapped pages of files that no other process has touched; Pss
    counts its share of pages that others have as well."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{kind}:")) / 1e3


if __name__ == "__main__":
    main()
