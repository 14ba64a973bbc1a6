"""`launch/evaluate.py`'s options, both tasks'."""

from dataclasses import dataclass
from typing import Literal

from launch.common.clip_options import ClipsConfig
from mae3d.io.resume import free


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a model on clips.

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
    device: str = free("auto", local=True)

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_crops", "draws", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: give 1 or more")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: give 0 or more")
