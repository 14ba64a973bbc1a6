"""Small datasets built by the real preprocessing from frames that tell which sample and frame they are."""

import hashlib
import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from preprocess.__main__ import main
from preprocess.dataset.index import Dataset, Shard
from preprocess.dataset.layout import JPEG

# name, frames, height, width, label: two sizes, lengths from one frame to longer than any clip
SAMPLES = [(f"clip_{i:02d}", 1 if i == 0 else 6 + 3 * i, *((48, 64) if i % 3 else (64, 40)), i % 4) for i in range(14)]

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


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


def coloured(root: Path, words: list[str], *, seed: int, labels: list[str] | None = None, ramp: int = 0) -> Path:
    """A sample of four noisy frames of a colour for each word, labelled with it; each `ramp` brighter than the last."""
    rng = np.random.default_rng(seed)
    lines = []
    for i, word in enumerate(words):
        folder = root / "frames" / f"clip_{i:03d}"
        folder.mkdir(parents=True)
        shade = np.clip(np.array(COLOURS[word]) + rng.integers(-30, 30, 3), 0, 255)
        for frame in range(4):
            pixels = np.clip(shade + rng.integers(-20, 20, (32, 32, 3)) + ramp * frame, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"img_{frame + 1:05d}.jpg")
        lines.append(f"clip_{i:03d} 1 4 {word if labels is None else labels[i]}".rstrip())
    (root / "ledger.csv").write_text("\n".join(lines) + "\n")
    return run_build(root / "shards", "--frames", root / "frames", "--ledger", root / "ledger.csv")


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


def index_only(counts: Sequence[int], *, seed: int, root: str = "nowhere") -> Dataset:
    """A dataset without a file: `counts` samples a shard, of random lengths and sizes. For what reads no frames."""
    rng, total = np.random.default_rng(seed), sum(counts)
    num_frames = rng.integers(1, 60, total).astype(np.int32)
    keys = [f"{i:06d}" for i in range(total)]
    names = [f"s{seed}_{i}" for i in range(total)]
    content = hashlib.sha256(f"{seed} {list(counts)}".encode()).hexdigest()
    dataset = Dataset(
        root=Path(root),
        meta={},
        layout=JPEG,
        fingerprint=content,
        shards=tuple(
            Shard(f"shard-{i:05d}.tar", 1000 * count, hashlib.sha256(f"{seed} {i} {count}".encode()).hexdigest(), count)
            for i, count in enumerate(counts)
        ),
        shard=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        offset=np.zeros(total, np.int64),
        parts_at=np.cumsum(num_frames, dtype=np.int64) - num_frames,
        num_frames=num_frames,
        first=np.zeros(total, np.int64),
        fps=rng.choice([24.0, 30.0, 59.94, np.nan], total),
        start_s=np.zeros(total),
        width=rng.choice([340, 426, 256], total).astype(np.int32),
        height=rng.choice([256, 240], total).astype(np.int32),
        label_offsets=np.arange(total + 1, dtype=np.int64),
        label_values=np.arange(total, dtype=np.int32) % 5,
        splits=np.arange(total, dtype=np.int32) % 3 // 2,
        split_names=["train", "val"],
        label_names=[],
        _parts=pa.table({}),
    )
    # What a dataset on disk reads from its index file.
    vars(dataset).update(keys=pa.chunked_array([keys], pa.string()), names=pa.chunked_array([names], pa.string()))
    return dataset


def run_build(out: Path, *options: str | Path) -> Path:
    """Run `preprocess build ... --out OUT` without its output and return OUT."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        code = main(["build", *map(str, options), "--out", str(out), "--workers", "1"])
    assert code == 0, errors.getvalue()
    return out
