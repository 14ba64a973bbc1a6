"""A training on a bad storage, for as long as it is given: 5 % of all reads fail, 1 % bring other bytes.

    python benchmarks/soak.py --seconds 3600 --work /tmp/soak            # 100,000 samples in 100 row groups

It is `launch/pretrain.py` itself with a tiny model on the CPU, checkpoints included; only `shard_reader.pread` is
replaced. A line a minute has the steps, the samples substituted, the reads tried again, the resident memory, threads
and open files. The last line says PASS, or FAIL with the reason: the training ended early, nothing was found, or
memory, threads or files grew after the first tenth of the time.
"""

import argparse
import errno
import io
import os
import random
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FRAMES, SHARD_SAMPLES, ROW_GROUP = 4, 1000, 1000
MUST_GROWTH = {"resident": 1.15, "threads": 1.2, "files": 1.2}  # from the end of the first tenth to the end, at most
STOPPED = 75  # exit code of a training that its time limit has stopped

MODEL = [
    "--model.preset", "mae_vit_tiny_patch16", "--model.img_size", "32", "--model.num_frames", "4",
    "--model.patch_size", "8", "--model.depth", "1", "--model.mask_ratio", "0.75",
    "--model.embed_dim", "24", "--model.num_heads", "2", "--model.decoder_embed_dim", "16",
    "--model.decoder_depth", "1", "--model.decoder_num_heads", "2", "--train.precision", "fp32",
    "--train.global_batch", "16", "--train.steps", "100000000", "--optim.warmup_steps", "10",
    "--data.sampling_rate", "1", "--data.decode_threads", "1", "--log.every", "20",
    "--run.checkpoint_every", "2000",
]  # fmt: skip


class State(NamedTuple):
    """What the process holds at one moment."""

    resident: float  # MB
    threads: int
    files: int


def main(argv: Sequence[str] | None = None) -> int:
    """Train on a bad storage; return 1 if it did not bear it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--work", type=Path, required=True, help="folder for the dataset, which is kept, and the run")
    parser.add_argument("--read-threads", type=int, default=16)
    options = parser.parse_args(argv)
    shards, run = options.work / "shards", options.work / "run"
    if not (shards / "dataset.json").exists():
        write_samples(shards, options.samples)
    shutil.rmtree(run, ignore_errors=True)

    from launch.pretrain import main as pretrain
    from pipelines.reading import shard_reader

    seen: list[State] = []
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(run, options.seconds, seen, over), daemon=True)
    watch.start()
    arguments = [
        *MODEL, "--data.shards", str(shards), "--data.read_threads", str(options.read_threads), "--run.dir", str(run),
        "--data.max_bad", str(10**9), "--run.time_limit", str(options.seconds / 60),
    ]  # fmt: skip
    with mock.patch.object(shard_reader, "pread", bad_storage(shard_reader.pread, failing=0.05, damaged=0.01)):
        code = pretrain(arguments)
    over.set()
    watch.join()
    wrong = _wrong(code, run, seen)
    print(f"FAIL: {wrong}" if wrong else "PASS", flush=True)
    return int(bool(wrong))


def bad_storage(
    pread: Callable[[int, int, int], bytes], *, failing: float, damaged: float
) -> Callable[[int, int, int], bytes]:
    """Return a `pread` that fails now and then, or brings bytes that were not written."""
    luck = random.Random(0)

    def read(descriptor: int, size: int, offset: int) -> bytes:
        drawn = luck.random()
        if drawn < failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data = pread(descriptor, size, offset)
        return data if drawn < 1 - damaged else data[: len(data) // 2] + bytes(len(data) - len(data) // 2)

    return read


def write_samples(root: Path, samples: int) -> None:
    """Write a dataset of many shards and row groups, of one small picture, by the program's own writers."""
    from PIL import Image

    from preprocess.dataset import writer
    from preprocess.dataset.layout import BLOCK
    from preprocess.dataset.schema import write_shard_table

    root.mkdir(parents=True)
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((32, 32)).save(buffer, "JPEG", quality=60, subsampling=0)
    jpeg = buffer.getvalue()
    member = bytes(BLOCK) + jpeg + bytes(-len(jpeg) % BLOCK)
    tables = []
    for start in range(0, samples, SHARD_SAMPLES):
        stem = root / f"shard-{start // SHARD_SAMPLES:05d}"
        count = min(SHARD_SAMPLES, samples - start)
        tar = member * (FRAMES * count)
        stem.with_suffix(".tar").write_bytes(tar)
        stem.with_suffix(".idx").write_bytes(b"v1.2 0\n")
        rows = [_row(start + i, i * FRAMES * len(member) + BLOCK, jpeg) for i in range(count)]
        tables.append(stem.with_suffix(".parquet"))
        write_shard_table(tables[-1], rows, tar_bytes=len(tar), tar_sha256="0" * 64)
    with mock.patch.object(writer, "_ROWS_PER_GROUP", ROW_GROUP):
        writer.write_dataset(root, tables=tables, settings={"made by": "benchmarks/soak.py"})


def _row(number: int, offset: int, jpeg: bytes) -> dict[str, object]:
    return {
        "key": f"{number:09d}", "name": f"video_{number}", "labels": [number % 5], "split": "", "file": "",
        "line": -1, "frame": -1, "reason": "", "message": "", "offset": offset, "num_frames": FRAMES, "first": 0,
        "fps": 30.0, "start_s": 0.0, "width": 32, "height": 32, "sizes": [len(jpeg)] * FRAMES,
        "crc32s": [zlib.crc32(jpeg)] * FRAMES,
    }  # fmt: skip


def _watch(run: Path, seconds: float, seen: list[State], over: threading.Event) -> None:
    import psutil  # type: ignore[import-untyped]

    process, start = psutil.Process(), time.monotonic()
    while not over.wait(min(60.0, seconds / 20)):
        last = _last_row(run)
        state = State(process.memory_info().rss / 1e6, process.num_threads(), process.num_fds())
        if last:
            seen.append(state)
        print(
            f"soak {time.monotonic() - start:6.0f} s: step {last.get('step', 0)}, loss {last.get('loss')}, "
            f"substituted {last.get('substituted')}, read_retries {last.get('read_retries')}, "
            f"decode_errors {last.get('decode_errors')}, resident {state.resident:.0f} MB, threads {state.threads}, "
            f"files {state.files}",
            flush=True,
        )


def _last_row(run: Path) -> dict[str, float]:
    from mae3d.tracking.run_dir import read_metrics

    rows = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    return rows[-1] if rows else {}


def _wrong(code: int, run: Path, seen: list[State]) -> str:
    last = _last_row(run)
    if code != STOPPED:
        return f"the training ended with exit code {code}"
    if not (last.get("substituted") and last.get("read_retries")):
        return f"no damage was found, or no read was tried again: {last}"
    early, late = seen[len(seen) // 10], seen[-1]
    for name, most in MUST_GROWTH.items():
        if getattr(late, name) > most * getattr(early, name):
            return f"{name} grew from {getattr(early, name):.0f} to {getattr(late, name):.0f}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
