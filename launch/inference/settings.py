"""`launch/evaluate.py`'s options, both tasks'."""

from dataclasses import dataclass, field
from typing import Literal

from launch.common.clip_options import ClipsConfig
from mae3d.io.bounds import FILLED, bounded, check_bounds, seeded
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

    run: str = field(metadata=FILLED)
    data: ClipsConfig
    out: str = field(metadata=FILLED)
    task: Literal["classification", "reconstruction"] = "classification"
    num_clips: int = bounded(5, least=1, most=1 << 16)
    num_crops: int = bounded(3, least=1, most=1 << 16)
    mask: tuple[str, ...] = ()
    mask_ratio: float | None = bounded(None, least=0, below=1)
    draws: int = bounded(1, least=1, most=1 << 16)
    seed: int = seeded()
    reverse: bool = False
    batch: int = bounded(16, least=1, most=1 << 30)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = free("auto", local=True)

    def __post_init__(self) -> None:
        check_bounds(self)
