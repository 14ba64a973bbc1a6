"""The options of `launch/evaluate.py`, both tasks', and of `launch/timeline.py`."""

from dataclasses import dataclass, field
from typing import Literal

from launch.common.clip_options import ClipsConfig
from launch.common.encoders import EncoderChoice
from mae3d.io.bounds import FILLED, bounded, check_bounds, seeded
from mae3d.io.resume import free
from mae3d.model.config import MaskType
from pipelines.config import RATE


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
        num_crops: Classification: crops of the model's shape of each clip, spread along one side; 1 is the middle.
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


@dataclass(frozen=True)
class TimelineConfig(EncoderChoice):
    """Run a model along video files.

    Attributes:
        videos: Video files: `--videos a.mp4 b.mp4`.
        out: Folder for windows.parquet (vectors, what the model computes), timeline.parquet (a row per window),
            changes.csv, timeline.html and a PNG per file; with events agreement.csv and .json.
        every: Seconds between the windows, each a clip of the model; they overlap if a clip is longer.
        sampling_rate: Distance of two frames of a clip at target_fps; null takes the run's, or 4.
        target_fps: Frame rate that sampling_rate refers to; null takes the run's, or 30.
        layer: Blocks that are run for novelty and changes; 0 is the patch embedding, -1 the last block.
        pool: `mean` over the patches' tokens, or `cls`, the class token.
        mask: Surprise: what is hidden of a clip, by the names of docs/masks.md; all windows have the same mask.
        mask_ratio: Surprise: share of the tokens that is hidden; null takes the model's.
        seed: Surprise: of a mask that is drawn.
        apart: Novelty: seconds that lie between a window and an earlier one at least; windows never overlap.
        change_penalty: Evidence that a change point needs, in multiples of the noise; more finds fewer.
        change_min: Seconds between two change points, at least.
        events: A list of the true phases, `name,start_s,end_s,label` or another form of docs/lists.md; names are the
            files as given, or without folder or suffix. Change points are compared with it, and a classifier's classes.
        smooth: Classifier: seconds over which classes are smoothed; 0 = not at all; `auto` chooses for each file what
            agrees best on the other files (needs --events).
        smoothing: `median` of each class's scores over a window of `smooth`, or `hmm`: the most probable path, in which
            a class lasts `smooth` on average.
        batch: Windows at a time.
        precision: `fp32`, or `bf16`: faster on a GPU; it moves scores in the third digit.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    videos: tuple[str, ...]
    out: str = field(metadata=FILLED)
    every: float = bounded(1.0, least=1e-3)
    sampling_rate: float | None = bounded(None, **RATE)
    target_fps: float | None = bounded(None, **RATE)
    layer: int = -1
    pool: Literal["mean", "cls"] = "mean"
    mask: MaskType = "prospective"
    mask_ratio: float | None = bounded(None, least=0, below=1)
    seed: int = seeded()
    apart: float = bounded(0.0, least=0)
    change_penalty: float = bounded(12.0, above=0)
    change_min: float = bounded(2.0, least=0)
    events: str = ""
    smooth: float | Literal["auto"] = 0.0
    smoothing: Literal["median", "hmm"] = "median"
    batch: int = bounded(8, least=1, most=1 << 30)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = free("auto", local=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.videos:
            raise ValueError("--videos is missing: give one or more video files")
        if len(set(self.videos)) < len(self.videos):
            raise ValueError("--videos: a file is given twice")
        if self.smooth == "auto" and not self.events:
            raise ValueError("--smooth auto chooses by the agreement with --events: give these, or a number of seconds")
        if self.smooth != "auto" and self.smooth < 0:
            raise ValueError(f"--smooth {self.smooth:g} must be 0 or more seconds, or auto")
