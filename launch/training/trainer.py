"""What every training command does around its loop: open, join, check, plan, claim the run.

return run_training(config, train)           # train(config, corpus, world) -> finished?
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from launch.common.cli import EXIT_DONE, EXIT_STOPPED, defaults_of, fail, joined, set_threads
from launch.training.config import FinetuneConfig, PretrainConfig, TrainingConfig

if TYPE_CHECKING:
    from launch.common.decode import Decode
    from mae3d.distributed import World
    from mae3d.model.config import ClassifierConfig, MAEConfig
    from mae3d.tracking.run_dir import Run
    from mae3d.training.config import OptimConfig
    from mae3d.training.loop import Plan
    from pipelines.config import DataConfig
    from pipelines.loader import Loader
    from pipelines.samples.corpus import Corpus

LR_REFERENCE_BATCH = 256  # the batch that optim.blr is given for (upstream's linear rule)


Config = TypeVar("Config", PretrainConfig, FinetuneConfig)


def run_training(config: Config, train: "Callable[[Config, Corpus, World], bool]") -> int:
    """Opens the shards, joins the processes and trains; the exit code. `train` returns False after an agreed stop.

    Raises:
        SystemExit: what is wrong was told.
    """
    for option, value in (("--data.shards", config.data.shards), ("--run.dir", config.run.dir)):
        if not value:
            fail(
                f"{option} is missing: give the folder"
                + (" made by `python -m preprocess build`" if "shards" in option else "")
            )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_threads()
    from pipelines.samples.corpus import corpus_of
    from preprocess.dataset.index import DatasetError

    try:  # before torch: a wrong path is told within a second
        corpus = corpus_of(config.data)
    except DatasetError as error:
        fail(str(error))
    with joined(config.device, where=config.run.dir, timeout_minutes=config.run.timeout) as world:
        return EXIT_DONE if train(config, corpus, world) else EXIT_STOPPED


def restore(config: TrainingConfig, world: "World") -> None:
    """Brings the run back from run.remote if it is newer there; before anything looks into the run's folder.

    The first process does it, for all: run.dir is on storage that they share.

    Raises:
        ValueError: what lies there is damaged, or another run.
        OSError: it cannot be asked, and the folder has no checkpoint.
    """
    if not config.run.remote:
        return
    from mae3d.checkpoints.mirror import restore as restored

    error: Exception | None = None
    if world.is_first:
        try:
            if told := restored(Path(config.run.dir), config.run.remote):
                print(told, flush=True)
        except ValueError as caught:
            error = ValueError(str(caught))
        except OSError as caught:
            error = OSError(caught.errno, caught.strerror or str(caught), caught.filename)
    if error := world.share(error):
        raise error


def decode_of(config: TrainingConfig, run: "Run", world: "World") -> "Decode":
    """`data.decode` as it will be, on all processes alike; config.yaml keeps it."""
    from launch.common.decode import choose_decode

    stored = world.share(run.stored().get("data", {}).get("decode") if world.is_first else None)
    decode, note = choose_decode(config.data.decode, stored=stored, world=world)
    if note and world.is_first:
        print(f"decode: {note}", flush=True)
    return decode


def make_loader(config: TrainingConfig, corpus: "Corpus", world: "World", *, num_frames: int, size: int) -> "Loader":
    """The training clips of this process, the same data on all of them.

    Raises:
        ValueError: as `Loader`; or a process sees other data than the first one (a node without a shard): its order
            would differ.
    """
    from pipelines.loader import Loader

    loader = Loader(
        corpus,
        config.data,
        num_frames=num_frames,
        size=size,
        seed=config.train.seed,
        global_batch=config.train.global_batch,
        rank=world.place.rank,
        world=world.place.size,
        local_world=world.place.local_size,
        accumulation=config.train.accumulation,
        device=world.device,
    )
    agree(loader, world)
    return loader


def agree(loader: "Loader", world: "World") -> None:
    """Refuses, on all processes alike, to train where they see other data."""
    mine = loader.state_dict()["fingerprint"]
    first = world.share(mine)
    differing = [f"{key}: {mine.get(key)!r}" for key in sorted(first.keys() | mine) if mine.get(key) != first.get(key)]
    if differing:
        logging.error("process %d sees other data than the first one: %s", world.place.rank, "; ".join(differing))
    if world.any(bool(differing)):
        raise ValueError("not all processes see the same data: make the same shards reachable on every node")


def make_plan(config: TrainingConfig, loader: "Loader", *, lr_batch: Sequence[int], flops_per_clip: float) -> "Plan":
    """Lengths, rates and intervals.

    Args:
        config: the settings.
        loader: knows the steps of an epoch.
        lr_batch: factors of the batch that optim.blr is scaled by.
        flops_per_clip: of a forward and backward pass.
    """
    from mae3d.training.loop import Plan
    from mae3d.training.optim import lr_at

    optim, train = config.optim, config.train
    total = max(train.steps or round(train.epochs * loader.steps_per_epoch), 1)
    warmup = optim.warmup_epochs * loader.steps_per_epoch if optim.warmup_steps is None else optim.warmup_steps
    peak = _peak_lr(optim, lr_batch)

    def lr(step: int) -> float:
        return lr_at(step, lr=peak, min_lr=optim.min_lr, warmup_steps=min(warmup, total), total_steps=total)

    return Plan(
        total_steps=total,
        accumulation=train.accumulation,
        clips_per_step=train.global_batch * config.data.repeat_aug,
        flops_per_clip=flops_per_clip,
        lr=lr,
        log=config.log,
        checkpoint_every=config.run.checkpoint_every,
        keep_last=config.run.keep_last,
        keep_every=config.run.keep_every,
        max_skipped=train.max_skipped,
        max_rollbacks=train.max_rollbacks,
        time_limit=config.run.time_limit,
        remote=config.run.remote,
    )


def _peak_lr(optim: "OptimConfig", lr_batch: Sequence[int]) -> float:
    return optim.blr * math.prod(lr_batch) / LR_REFERENCE_BATCH if optim.lr is None else optim.lr


def claim(run: "Run", config: TrainingConfig, world: "World") -> None:
    """The first process checks and writes config.yaml; all fail alike if it cannot."""
    from mae3d.tracking.run_dir import RunError

    refused = None
    if world.is_first:
        try:
            values = dataclasses.asdict(config)
            run.claim(values, extend=config.extend, defaults=defaults_of(config))
        except RunError as error:
            refused = str(error)
    refused = world.share(refused)
    if refused:
        raise RunError(refused)


def is_finished(run: "Run", world: "World") -> bool:
    """Whether the run has ended before; tells so."""
    if run.is_done and world.is_first:
        print(f"{run.folder}: finished already; --extend true with a larger train.steps goes on", flush=True)
    return run.is_done


def tell_end(run: "Run", world: "World", *, finished: bool) -> None:
    """The last lines: what the run came to."""
    from mae3d.tracking.history import summary as told

    if world.is_first:
        print(f"{'finished' if finished else 'stopped, the same command goes on'}: {run.folder}", flush=True)
        with suppress(ValueError, OSError):  # stopped before the first line
            print(told(run.folder), flush=True)


def summary(
    config: TrainingConfig,
    corpus: "Corpus",
    loader: "Loader",
    plan: "Plan",
    world: "World",
    *,
    own: "MAEConfig | ClassifierConfig",
    parameters: int,
    more: str,
    lr_batch: Sequence[int],
) -> str:
    """What a person wants to know before a run starts, one subject a line.

    Args:
        config: the settings.
        corpus: the datasets.
        loader: their selection and order.
        plan: lengths and rates.
        world: all processes.
        own: the model's config.
        parameters: how many it has.
        more: what else is to be said of the model.
        lr_batch: factors of the batch that optim.blr is scaled by.
    """
    from mae3d.training.metrics import memory_estimate

    data, train, place = config.data, config.train, world.place
    rate = f"{_peak_lr(config.optim, lr_batch):.3g}"
    if config.optim.lr is None:
        rate = f"{config.optim.blr:.3g} x {' x '.join(map(str, lr_batch))}/{LR_REFERENCE_BATCH} = {rate}"
    epochs = plan.total_steps / loader.steps_per_epoch
    states, activations = memory_estimate(
        own,
        parameters=parameters,
        clips=loader.micro_batch * data.repeat_aug,
        bf16=train.precision == "bf16",
        zero_stage=train.zero_stage,
        world=place.size,
        checkpointing=train.grad_checkpointing,
    )
    size = f"{own.num_frames}x{own.img_size}x{own.img_size}"
    lines = {
        "model": f"{own.preset}, {parameters / 1e6:.1f} M parameters, clips {size}, {more}",
        **_data_lines(data, corpus, loader),
        "step": f"{train.global_batch} samples x {data.repeat_aug} views = {plan.clips_per_step} clips "
        f"(processes {place.size} x micro-batches {train.accumulation} x samples {loader.micro_batch})",
        "rate": rate,
        "length": f"{plan.total_steps:,} steps = {epochs:.1f} epochs of {loader.steps_per_epoch}",
        "memory": f"about {(states + activations) / 2**30:.1f} GiB a process ({states / 2**30:.1f} for weights and "
        f"optimizer, some {activations / 2**30:.1f} for activations)",
        "device": f"{world.device.type}, {train.precision}, ZeRO {train.zero_stage}; JPEG decoding: {data.decode}",
    }
    return "\n".join(f"{name + ':':9}{text}" for name, text in lines.items())


def _data_lines(data: "DataConfig", corpus: "Corpus", loader: "Loader") -> dict[str, str]:
    """Which datasets, which of their samples, in which order."""
    from pipelines.samples.selection import describe_selection

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
    if loader.num_short:
        samples.append(f"{loader.num_short:,} of all are shorter than a clip: {data.short}")
    lines = {"data": f"\n{'':9}".join(datasets), "samples": "; ".join(samples), "order": str(loader.order)}
    return lines | ({"labels": corpus.labels.note} if corpus.labels.note else {})
