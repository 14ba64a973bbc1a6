"""A trained model and shards ─► how good it is: one row a sample in a Parquet file, tables, plots and a summary.

    deepspeed launch/evaluate.py --run FINE --data.shards VAL --out out/test
    torchrun --nproc-per-node 8 -- launch/evaluate.py --run FINE ...      # without -- torchrun takes --run as its own
    python launch/evaluate.py --task reconstruction --run RUN --data.shards VAL --mask prospective tube --out out/losses

A classifier, or a masked autoencoder's prediction losses under chosen masks. Each sample counts once on any number of
processes; starting the same command again goes on where it was killed. srun and plain python start it as well.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import WAIT_MINUTES, joined, parse, set_threads
from launch.common.clip_options import ClipsConfig

if TYPE_CHECKING:
    from launch.inference.samples import Samples
    from mae3d.distributed import World


@dataclass(frozen=True)
class EvaluateConfig:
    """What is evaluated, on what, and how.

    Attributes:
        run: A run, a checkpoint's folder, a model file, or a foreign checkpoint; of a run the best checkpoint, if
            validation chose one, else the latest.
        data: The clips.
        out: Folder for the results.
        task: `classification` for a finetuned classifier, `reconstruction` for a masked autoencoder.
        num_clips: Classification: clips of each sample, spread evenly over it. Published: mae_st 10 x 3; VideoMAE
            5 x 3 on Kinetics, 2 x 3 on Something-Something.
        num_crops: Classification: square crops of each clip along the longer side; 1 is the centre.
        mask: Reconstruction: what is hidden: one or several of random, tube, frame, block, prospective, retrospective,
            interpolation (docs/masks.md), or `all`. Default: the model's.
        mask_ratio: Reconstruction: share of the tokens that is hidden; null takes the model's.
        draws: Reconstruction: random masks of each clip, whose losses are averaged.
        seed: Reconstruction: of the masks.
        reverse: Reconstruction: play each clip backwards.
        batch: Clips that go through the model at once.
        precision: `fp32`, or `bf16` (autocast), faster on a GPU; it moves scores in the third digit.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    run: str
    data: ClipsConfig
    out: str
    task: Literal["classification", "reconstruction"] = "classification"
    num_clips: int = 5
    num_crops: int = 3
    mask: tuple[str, ...] = ()
    mask_ratio: float | None = None
    draws: int = 1
    seed: int = 0
    reverse: bool = False
    batch: int = 16
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_crops", "draws", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: give 1 or more")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: give 0 or more")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0; SystemExit 2: bad usage or input, 3: I/O, 1: too much damage."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(EvaluateConfig, arguments, prog="evaluate.py", description=str(__doc__))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_threads(same_sums=True)
    from launch.inference.classification import classify
    from launch.inference.reconstruction_loss import predict

    with joined(config.device, where=config.out, timeout_minutes=WAIT_MINUTES) as world:
        told = (classify if config.task == "classification" else predict)(config, world)
        if world.is_first:
            print(told)
    return 0


def common_settings(config: EvaluateConfig, file: Path, samples: "Samples", world: "World") -> dict[str, object]:
    """What the results of either task depend on (`parts.Parts`); to be called by all processes."""
    from launch.inference.sharded_table import sample_settings
    from mae3d.io.files import sha256_of

    return {
        "task": config.task,
        "model": world.share(sha256_of(file) if world.is_first else None),
        "batch": config.batch,  # the last bits depend on it
        "precision": config.precision,
        "device": world.device.type,
        **sample_settings(samples.corpus, samples.clips, samples.rows),
    }


if __name__ == "__main__":
    raise SystemExit(main())
