"""A trained model and long videos ─► what it says about every second: a table, change points, a page to look at.

python launch/timeline.py --run FINE --videos operation.mp4 --out DIR --events phases.csv --smooth 10
torchrun --nproc-per-node 8 -- launch/timeline.py --run RUN --videos day1.mp4 day2.mp4 --out DIR --every 0.5

A classifier gives the scores of its classes; a masked autoencoder surprise, the loss of predicting each clip's hidden
part (by default its future), beside the loss of copying the last visible frame; every model novelty, the distance to
the nearest earlier window, and change points. Killed and started again, on any number of ranks, it goes on where it
was. torchrun needs the `--`, because it has an option --run of its own.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, EXIT_ERROR, WAIT_MINUTES, joined, parse, set_threads
from launch.common.clip_options import ClipsConfig, agreed_model_file, agreed_model_hash, clips_config, trained_data
from launch.common.sole_writer import sole_writer
from mae3d.io.bounds import FILLED, bounded, check_bounds, seeded
from mae3d.io.resume import free
from mae3d.model.config import MaskType
from pipelines.config import RATE

if TYPE_CHECKING:
    from mae3d.distributed import World


@dataclass(frozen=True)
class TimelineConfig:
    """Run a model along video files.

    Attributes:
        run: A run, a checkpoint's folder, a model file, or a foreign checkpoint.
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
        events: Classifier: a list of the true phases, `name,start_s,end_s,label` or another form of docs/lists.md;
            names are the files as given, or without folder or suffix.
        smooth: Classifier: seconds over which classes are smoothed; 0 = not at all; `auto` chooses for each file what
            agrees best on the other files (needs --events).
        smoothing: `median` of each class's scores over a window of `smooth`, or `hmm`: the most probable path, in which
            a class lasts `smooth` on average.
        batch: Windows at a time.
        precision: `fp32`, or `bf16`: faster on a GPU; it moves scores in the third digit.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    run: str = field(metadata=FILLED)
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
    change_penalty: float = bounded(3.0, above=0)
    change_min: float = bounded(2.0, least=0)
    events: str = ""
    smooth: float | Literal["auto"] = 0.0
    smoothing: Literal["median", "hmm"] = "median"
    batch: int = bounded(8, least=1, most=1 << 30)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = free("auto", local=True)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.videos:
            raise ValueError("--videos is missing: give one or more video files")
        if len(set(self.videos)) < len(self.videos):
            raise ValueError("--videos: a file is given twice")
        if self.smooth == "auto" and not self.events:
            raise ValueError("--smooth auto chooses by the agreement with --events: give these, or a number of seconds")
        if self.smooth != "auto" and self.smooth < 0:
            raise ValueError(f"--smooth {self.smooth:g} must be 0 or more seconds, or auto")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 if a video cannot be read; SystemExit 2: usage, 3: I/O."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(TimelineConfig, arguments, prog="timeline.py", description=str(__doc__))
    set_threads()
    with (
        joined(config, where=config.out, timeout_minutes=WAIT_MINUTES) as world,
        sole_writer(Path(config.out), world, job="timeline", what="timeline"),
    ):
        unreadable = timeline(config, world)
        for message in unreadable if world.is_first else ():
            print(f"error: {message}", file=sys.stderr)
        return EXIT_ERROR if unreadable else EXIT_DONE


def timeline(config: TimelineConfig, world: "World") -> list[str]:
    """Make the table on all ranks, and what follows from it on rank 0.

    Returns:
        Errors of the files that cannot be read, whose rows have no figures.

    Raises:
        ValueError: A setting, the model or the events are wrong; the message gives the remedy.
        OSError: A file cannot be written.
    """
    from launch.inference.embeddings import files_hash
    from launch.inference.phases import read_truth
    from launch.inference.timeline import Reader, finish, read_windows
    from mae3d.video.windows import plan_windows

    file = agreed_model_file(config.run, world)
    model_sha256 = agreed_model_hash(file, world)
    reader = Reader(file, config, world.device)
    truth = world.on_first(lambda: read_truth(config, reader.class_names))
    sampling = ClipsConfig(shards=config.videos, sampling_rate=config.sampling_rate, target_fps=config.target_fps)
    clips = clips_config(sampling, trained_data(file) | {"sampling": "strided"})
    plan = world.on_first(
        lambda: plan_windows(
            config.videos,
            num_frames=reader.config.num_frames,
            step_s=clips.sampling_rate / clips.target_fps,
            every_s=config.every,
        )
    )
    settings = {
        "model": model_sha256,
        "videos": world.on_first(lambda: files_hash(config.videos)),
        "data": {"sampling_rate": clips.sampling_rate, "target_fps": clips.target_fps},
        "every_s": config.every,
        **reader.settings,
    }
    read_windows(config, reader, plan, settings, world)
    if world.is_first:
        print(finish(config, reader, truth))
    return list(plan.unreadable.values())


if __name__ == "__main__":
    raise SystemExit(main())
