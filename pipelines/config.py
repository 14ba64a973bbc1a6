"""What `--data.*` sets: the input pipeline's defaults. Standard library only, so that `--help` is quick.

DataConfig(shards="out/shards", sampling_rate=8, repeat_aug=4, windows="shared")
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Which clips are read and how they are cut. Frame count and image size belong to the model's config.

    Attributes:
        shards: folder made by `python -m preprocess build`.
        sampling: `strided` (num_frames, one every sampling_rate frames at target_fps) or `segments`
            (num_segments x frames_per_segment, the frame-folder loaders' rule).
        sampling_rate: distance of two frames, in frames at target_fps; in stored frames where fps is unknown.
        target_fps: frame rate that sampling_rate refers to.
        num_segments: `segments` only.
        frames_per_segment: `segments` only; num_segments x frames_per_segment must be the model's num_frames.
        short: what a sample shorter than a clip gets: `loop` it, `pad` with its last frame, or `drop` it.
        repeat_aug: R, views of each sample in a batch.
        windows: `own`, a new temporal window for each view (the paper), or `shared`, one decode for all R crops.
        area: least and greatest area of the random crop, as a fraction of the frame.
        aspect: least and greatest aspect ratio (width / height) of the random crop.
        flip: probability of a horizontal flip; 0 where left and right matter (Something-Something).
        decode: `auto`, `mixed` (GPU) or `cpu`.
        read_threads: threads that read shards, a process.
        decode_threads: DALI's threads, a process; 0 = the cores of the node divided by its processes, at most 8.
        prefetch: batches read ahead.
        max_bad: substituted samples after which a run stops.
    """

    shards: str = ""
    sampling: Literal["strided", "segments"] = "strided"
    sampling_rate: float = 4
    target_fps: float = 30
    num_segments: int = 8
    frames_per_segment: int = 2
    short: Literal["loop", "pad", "drop"] = "loop"
    repeat_aug: int = 4
    windows: Literal["own", "shared"] = "own"
    area: tuple[float, float] = (0.5, 1.0)
    aspect: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    decode: Literal["auto", "mixed", "cpu"] = "auto"
    read_threads: int = 8
    decode_threads: int = 0
    prefetch: int = 4
    max_bad: int = 100

    def __post_init__(self) -> None:
        positive = ("sampling_rate", "target_fps", "num_segments", "frames_per_segment", "repeat_aug")
        for name in (*positive, "read_threads", "prefetch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.{name}={getattr(self, name)} must be greater than 0")
        for name, bound in (("area", 1.0), ("aspect", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= bound:
                raise ValueError(f"data.{name}={[low, high]} must rise and lie in (0, {bound:g}]")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.flip={self.flip} is a probability: give 0 to 1")
