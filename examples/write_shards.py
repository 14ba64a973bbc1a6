"""Write a dataset from a program: discs that drift over a gradient, labelled by where they go.

    python examples/write_shards.py out/discs --clips 64
    python -m preprocess report out/discs
    python examples/torch_loop.py out/discs --steps 20

Frames may come from anywhere: a simulation, a decoder of one's own, arrays on disk. Several processes write several
datasets, which are read as one: `Loader.open(["out/discs-0", "out/discs-1"], ...)`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preprocess import ShardWriter

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def drifting_disc(direction: str, rng: np.random.Generator, *, frames: int, size: int) -> np.ndarray:
    """Return a clip, uint8 (frames, size, size, 3)."""
    y, x = np.mgrid[:size, :size] / size
    paper, ink = rng.uniform(60, 200, 3), rng.uniform(0, 255, 3)
    tilt = rng.uniform(-80, 80, 2)
    ground = paper + (tilt[0] * y + tilt[1] * x)[..., None]
    step, radius = np.array(DIRECTIONS[direction]) * rng.uniform(0.01, 0.03), rng.uniform(0.1, 0.2)
    middle = 0.5 - step * frames / 2 + rng.uniform(-0.15, 0.15, 2)
    places = middle + step * np.arange(frames)[:, None]
    inside = [np.hypot(y - top, x - left) < radius for top, left in places]
    return np.stack([np.where(disc[..., None], ink, ground) for disc in inside]).clip(0, 255).astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the dataset and print its totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the dataset, new or empty; or one that was not finished")
    parser.add_argument("--clips", type=int, default=64, help="samples (%(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="frames of each (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width (%(default)s)")
    options = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    with ShardWriter(options.out, label_names=sorted(DIRECTIONS), fps=30, quality=95, shard_size=100) as writer:
        for number in range(options.clips):
            direction = list(DIRECTIONS)[number % len(DIRECTIONS)]
            clip = drifting_disc(direction, rng, frames=options.frames, size=options.size)
            split = "val" if number % 8 >= 6 else "train"
            writer.add(clip, name=f"{direction}/{number:04d}", label=direction, split=split)
    print(f"{writer.num_samples} samples: {options.out}")


if __name__ == "__main__":
    main()
