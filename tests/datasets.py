"""Small datasets built by the real preprocessing from frames that tell which sample and frame they are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# name, frames, height, width, label: two sizes, lengths from one frame to longer than any clip
SAMPLES = [(f"clip_{i:02d}", 1 if i == 0 else 6 + 3 * i, *((48, 64) if i % 3 else (64, 40)), i % 4) for i in range(14)]


def colour_of(sample: int, frame: int) -> tuple[int, int, int]:
    """The flat colour of a frame: red tells the sample, green the frame (JPEG keeps both to within 3)."""
    return 16 * sample + 8, (4 * frame + 8) % 256, 128


def write_frames(root: Path) -> Path:
    """Frame folders and a ledger as the seeds show them; returns the ledger."""
    rows = []
    for i, (name, frames, height, width, label) in enumerate(SAMPLES):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for frame in range(frames):
            image = np.full((height, width, 3), colour_of(i, frame), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"img_{frame + 1:05d}.jpg", quality=95, subsampling=0)
        rows.append(f"{name} 1 {frames} {label}\n")
    ledger = root / "ledger.csv"
    ledger.write_text("".join(rows))
    return ledger


def build_shards(root: Path, *options: str) -> Path:
    """`write_frames` through the preprocessing; returns the dataset's folder."""
    ledger = write_frames(root / "frames")
    return run_build(root / "shards", "--frames", root / "frames", "--ledger", ledger, *options)


def build_named(root: Path, labels: dict[str, str], *, frames: int = 4) -> Path:
    """A dataset of one sample a name, whose labels are words; returns its folder."""
    for name in labels:
        (root / "frames" / name).mkdir(parents=True)
        for frame in range(frames):
            image = Image.new("RGB", (32, 24), colour_of(len(name), frame))
            image.save(root / "frames" / name / f"img_{frame + 1:05d}.jpg")
    ledger = root / "ledger.csv"
    ledger.write_text("".join(f"{name} 1 {frames} {label}\n" for name, label in labels.items()))
    return run_build(root / "shards", "--frames", root / "frames", "--ledger", ledger)


def build_many_shards(root: Path, *, shards: int, samples: int) -> Path:
    """Shards of `samples` samples of two frames of 16 x 16 pixels, whose red and green count the samples."""
    rows = []
    for i in range(shards * samples):
        folder = root / "frames" / "train" / f"clip_{i:05d}"
        folder.mkdir(parents=True)
        image = Image.new("RGB", (16, 16), (i % 64 * 4, i // 64 * 4, 128))
        for frame in range(2):
            image.save(folder / f"img_{frame + 1:05d}.jpg", quality=95, subsampling=0)
        rows.append(f"clip_{i:05d} 1 2 0\n")
    ledger = root / "frames" / "ledger.csv"
    ledger.write_text("".join(rows))
    frames = root / "frames"
    return run_build(root / "shards", "--frames", frames, "--ledger", ledger, "--shard-size", str(samples))


def run_build(out: Path, *options: str | Path) -> Path:
    """Runs `python -m preprocess build ... --out OUT` and returns OUT."""
    command = [sys.executable, "-m", "preprocess", "build", *map(str, options), "--out", str(out), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out
