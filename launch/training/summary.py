"""A run that is about to start, or that has ended ─► what the console says of it, one line per subject."""

import errno
import itertools
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from launch.training.config import TrainingConfig
from mae3d.io.shapes import Size, sides, size_text
from preprocess.dataset.layout import GROUP

if TYPE_CHECKING:
    import numpy as np

    from mae3d.distributed import World
    from mae3d.model.config import ClassifierConfig, MAEConfig
    from mae3d.tracking.run_dir import Run
    from mae3d.training.loop import TrainSchedule
    from pipelines.config import DataConfig
    from pipelines.loader import Loader
    from pipelines.samples.corpus import Corpus


_CLIPS_TRIED = 64  # whose packets are counted before a run from videos as they lie


def start_summary(
    config: TrainingConfig,
    corpus: "Corpus",
    loader: "Loader",
    schedule: "TrainSchedule",
    world: "World",
    model_config: "MAEConfig | ClassifierConfig",
    *,
    parameters: int,
    model_note: str,
    rate: str,
) -> dict[str, str]:
    """Return the lines that a person wants to read before a run starts, by their heads.

    Args:
        config: the settings.
        corpus: the datasets.
        loader: their selection and order.
        schedule: lengths and rates.
        world: all ranks.
        model_config: the model's.
        parameters: how many it has.
        model_note: a further clause about the model.
        rate: the peak learning rate, described.
    """
    from mae3d.training.metrics import memory_estimate

    data, train, ranks = config.data, config.train, world.ranks
    epochs = schedule.total_steps / loader.steps_per_epoch
    states, activations = memory_estimate(
        model_config,
        parameters=parameters,
        clips=loader.micro_batch * data.repeat_aug,
        bf16=train.precision == "bf16",
        zero_stage=train.zero_stage,
        world=ranks.size,
        checkpointing=train.grad_checkpointing,
    )
    size = f"{model_config.num_frames}x{model_config.height}x{model_config.width}"
    if model_config.in_chans != 3:
        size += f", channels {model_config.in_chans}"
    return {
        "model": f"{model_config.preset}, {parameters / 1e6:.1f} M parameters, clips {size}, {model_note}",
        **_data_lines(data, corpus, loader, num_frames=model_config.num_frames),
        **_mismatches(data, corpus, loader.rows, size=model_config.img_size),
        **_in_place(data, corpus, loader, num_frames=model_config.num_frames),
        "step": f"{train.global_batch} samples x {data.repeat_aug} views = {schedule.clips_per_step} clips "
        f"(processes {ranks.size} x micro-batches {train.accumulation} x samples {loader.micro_batch})",
        "rate": f"{rate}; {_course(schedule)}",
        "length": f"{schedule.total_steps:,} steps = {epochs:.1f} epochs of {loader.steps_per_epoch}",
        "memory": f"about {(states + activations) / 2**30:.1f} GiB per rank ({states / 2**30:.1f} for weights and "
        f"optimizer, about {activations / 2**30:.1f} for activations)",
        "device": f"{world.device.type}, {train.precision}, ZeRO {train.zero_stage}; {_decoding(data, corpus)}",
    }


def _decoding(data: "DataConfig", corpus: "Corpus") -> str:
    if corpus.layouts == {"jpeg"}:
        return f"JPEG decoding: {data.decode}"
    on_gpu = corpus.layouts == {"video"} and data.decode == "mixed"
    return "decoding: mixed, by DALI" if on_gpu else "decoding: cpu, by PyAV"


def foreseen(run: "Run", config: TrainingConfig, schedule: "TrainSchedule") -> dict[str, str]:
    """Return the lines of a dry run: where a start writes, and where it begins.

    Raises:
        OSError: the folder cannot be written.
    """
    from mae3d.checkpoints import format as checkpoint
    from mae3d.io.lock_store import LOCK_NAME, FolderLockStore

    there = next(path for path in (run.folder.absolute(), *run.folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OSError(errno.EACCES, "cannot be written", str(there))
    held = FolderLockStore(run.folder).read(LOCK_NAME)
    in_use = f"; in use by {held.owner_text()}: a start waits, or is refused" if held and held.alive else ""
    newest = next((folder for folder in reversed(checkpoint.up_to_latest(run.folder)) if folder.is_dir()), None)
    begins = f"resumes from step {checkpoint.step_of(newest.name):,}" if newest else "begins at step 0"
    remote = f"; a newer checkpoint in {config.run.remote} would be fetched first" if config.run.remote else ""
    every = config.run.checkpoint_every
    return {
        "writes": f"{run.folder.absolute()}: {begins} of {schedule.total_steps:,}, a checkpoint every {every:,}"
        f"{remote}{in_use}",
        "dry run": "nothing was written",
    }


def report_finished(run: "Run", world: "World") -> None:
    """Print, on rank 0, that an earlier start took the last step."""
    if world.is_first:
        print(f"{run.folder}: finished already; --extend true with a larger train.steps goes on", flush=True)


def report_end(run: "Run", world: "World", *, finished: bool) -> None:
    """Print, on rank 0, how the run ended, and the summary of its history."""
    from mae3d.tracking import history

    if world.is_first:
        print(f"{'finished' if finished else 'stopped, the same command goes on'}: {run.folder}", flush=True)
        with suppress(ValueError, OSError):  # stopped before the first line of metrics.jsonl
            print(history.summary(run.folder), flush=True)


def _course(schedule: "TrainSchedule") -> str:
    """Return how the rate goes on: defaults of ours stand here that another trainer does not have."""
    warmup, end = schedule.rate["warmup_steps"], schedule.rate["min_lr"]
    begins = f"warm-up of {warmup:,.0f} steps" if warmup else "no warm-up"
    return f"{begins}, then {'constant' if end == schedule.rate['lr'] else f'a cosine to {end:.3g}'}"


def _mismatches(data: "DataConfig", corpus: "Corpus", rows: "np.ndarray", *, size: "Size") -> dict[str, str]:
    """Return what the stored samples have less of than the clips: pixels, and frames a second."""
    import numpy as np

    lines = {}
    height, width = sides(size)
    shares = np.minimum(corpus.height[rows] / height, corpus.width[rows] / width)
    if small := int((shares < 1).sum()):
        smallest = rows[shares.argmin()]
        stored = f"{corpus.height[smallest]} x {corpus.width[smallest]}"
        lines["pixels"] = (
            f"{small:,} of {len(rows):,} samples are smaller than {size_text(size)}, down to {stored}: upscaled; "
            "shards of a larger --short-side, or a smaller model.img_size, would fit"
        )
    if data.sampling == "strided":
        rates = corpus.fps[rows]
        slow = rates < data.target_fps / data.sampling_rate  # NaN is not
        if count := int(slow.sum()):
            lines["frames"] = (
                f"{count:,} of {len(rows):,} samples have fewer frames a second than the clips "
                f"({data.target_fps / data.sampling_rate:g} = data.target_fps / data.sampling_rate), down to "
                f"{rates[slow].min():g}: frames are repeated; shards of a larger --fps, or a larger "
                "data.sampling_rate, would fit"
            )
    return lines


def _in_place(data: "DataConfig", corpus: "Corpus", loader: "Loader", *, num_frames: int) -> dict[str, str]:
    """Return what training from videos as they lie costs, and what a build would cost and give instead."""
    import numpy as np

    from pipelines.reading.shard_reader import DataError
    from pipelines.reading.source import cost_in_place

    if "files" not in corpus.layouts:
        return {}
    clips = (clip for request in loader.requests() for clip in request.clips)
    try:
        cost = cost_in_place(corpus, itertools.islice(clips, _CLIPS_TRIED))
    except DataError:  # the loader tries again, and reports it
        return {}
    if cost is None:
        return {}
    costs = []
    if cost.num_opened < cost.num_clips:
        costs.append(
            f"videos as they lie: {cost.packets_a_frame:.1f} packets are decoded for each frame used, "
            f"{cost.bytes_a_clip / 1000:.0f} kB are read a clip"
        )
    if cost.num_opened:
        costs.append(f"{cost.num_opened} of {cost.num_clips} clips tried need their video opened, which is slow")
    fps = data.target_fps / data.sampling_rate if data.sampling == "strided" else float(np.nanmedian(corpus.fps))
    frames = float(np.nansum(corpus.num_frames / corpus.fps)) * fps
    costs.append(
        f"`mae3d preprocess build --layout video --fps {fps:g}` would store some {frames:,.0f} frames, of which "
        f"{1 + (GROUP - 1) / 2 / num_frames:.1f} are decoded for each one used; its --plan-only tells bytes "
        "and hours"
    )
    return {"archive": f";\n{'':9}".join(costs)}


def _data_lines(data: "DataConfig", corpus: "Corpus", loader: "Loader", *, num_frames: int) -> dict[str, str]:
    """Return the datasets, the samples that take part, and their order."""
    from pipelines.samples.selection import describe_flagged, describe_selection

    datasets = []
    for dataset, (_, take) in zip(corpus.datasets, loader.order.shares, strict=True):
        weighted = f", {take:,} of them an epoch" if data.weights else ""
        frames = int(dataset.num_frames.sum())
        datasets.append(f"{dataset.location}: {len(dataset):,} samples{weighted}, {frames:,} frames")
    if data.weights:
        datasets.append(f"mixed {' : '.join(f'{weight:g}' for weight in data.weights)}")
    samples = [f"{loader.num_samples:,} take part"]
    if lost := len(corpus) - len(corpus.readable_rows):
        samples.append(f"{lost:,} are left out with bad shards")
    if described := describe_selection(data.select):
        samples.append(described)
    if flagged := describe_flagged(corpus, data.select):
        samples.append(flagged)
    if loader.num_short:
        seconds = (num_frames - 1) * data.sampling_rate / data.target_fps
        span = f" ({num_frames} frames over {seconds:.3g} s)" if data.sampling == "strided" else ""
        samples.append(f"{loader.num_short:,} of all are shorter than a clip{span}: {data.short}")
    lines = {"data": f"\n{'':9}".join(datasets), "samples": "; ".join(samples), "order": str(loader.order)}
    return lines | ({"labels": corpus.labels.note} if corpus.labels.note else {})
