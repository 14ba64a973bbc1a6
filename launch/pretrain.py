"""Shards ─► a pretrained masked autoencoder.

    deepspeed launch/pretrain.py --config demo --data.shards out/shards --run.dir out/run --train.steps 50

Starting the same command again resumes. torchrun, srun and plain python start it as well.
"""

import dataclasses
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.cli import EXIT_DONE, EXIT_STOPPED, defaults_of, fail, parse, telling
from mae3d.config import MAEConfig
from mae3d.train_config import LogConfig, OptimConfig, RunConfig, TrainConfig
from pipelines.config import DataConfig

if TYPE_CHECKING:
    import torch

    from mae3d.distributed import World
    from mae3d.engine import Engine
    from mae3d.fit import Plan
    from pipelines.corpus import Corpus
    from pipelines.loader import Batch, Loader

LR_REFERENCE_BATCH = 256  # the batch that optim.blr is given for (upstream's linear rule)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that one command line sets.

    Attributes:
        model: the autoencoder
        data: the clips
        optim: the optimizer
        train: the training
        run: the run's folder
        log: what is written
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
        extend: go on with a run under another train.steps or train.epochs.
    """

    model: MAEConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    log: LogConfig = field(default_factory=LogConfig)
    device: str = "auto"
    extend: bool = False


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(PretrainConfig, arguments, prog="pretrain.py", description=__doc__)
    for option, value in (("--data.shards", config.data.shards), ("--run.dir", config.run.dir)):
        if not value:
            fail(
                f"{option} is missing: give the folder"
                + (" made by `python -m preprocess build`" if "shards" in option else "")
            )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # OpenMP's threads spin while they wait, by default: on a CPU that anything else uses, steps then take five times as
    # long (measured with one busy neighbour on two cores). It is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipelines.corpus import corpus_of
    from preprocess.index import DatasetError

    try:  # before torch: a wrong path is told within a second
        corpus = corpus_of(config.data)
    except DatasetError as error:
        fail(str(error))
    from mae3d.distributed import start_world

    try:
        world = start_world(config.device)
    except ValueError as error:  # the device, or where the nodes meet
        fail(str(error))
    try:
        with telling(config.run.dir):
            return _train(config, corpus, world)
    finally:
        world.close()


def _train(config: PretrainConfig, corpus: "Corpus", world: "World") -> int:
    import torch

    from mae3d.engine import Engine
    from mae3d.fit import fit
    from mae3d.mae import MAE
    from mae3d.optim import pretrain_groups
    from mae3d.run import Run

    run = Run(config.run.dir)
    config = _with_decode(config, run, world)
    loader = _loader(config, corpus, world)
    _agree(loader, world)
    plan = _plan(config, loader, world)
    _claim(run, config, world)
    if run.is_done:
        if world.is_first:
            print(f"{run.folder}: finished already; --extend true with a larger train.steps goes on")
        return EXIT_DONE
    torch.manual_seed(config.train.seed)
    model = MAE(config.model)
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    if world.is_first:
        print(_summary(config, corpus, loader, plan, world, parameters=sum(p.numel() for p in model.parameters())))
    engine = Engine(
        model,
        pretrain_groups(model, weight_decay=config.optim.weight_decay),
        train=config.train,
        optim=config.optim,
        micro_batch=loader.micro_batch,
        world=world,
    )
    try:
        finished = fit(
            engine,
            loader,
            masked_loss(config),
            plan=plan,
            run=run,
            world=world,
            model_config=config.model,
        )
    finally:
        loader.close()
        engine.close()
    if world.is_first:
        print(f"{'finished' if finished else 'stopped, the same command goes on'}: {run.folder}")
    return EXIT_DONE if finished else EXIT_STOPPED


def masked_loss(config: PretrainConfig) -> Any:
    """The loss of a batch: every view is a clip of its own under a mask of its own, drawn by position."""
    from mae3d.masking import mask_noise

    def loss_of(engine: "Engine", batch: "Batch") -> "torch.Tensor":
        noise = mask_noise(
            seed=config.train.seed,
            epoch=batch.epoch,
            positions=batch.positions.tolist(),
            views=config.data.repeat_aug,
            tokens=config.model.num_tokens,
        )
        clips = batch.clips.flatten(0, 1)
        loss: torch.Tensor = engine(clips, noise.to(clips.device, non_blocking=True)).loss
        return loss

    return loss_of


def _with_decode(config: PretrainConfig, run: Any, world: "World") -> PretrainConfig:
    """data.decode as it will be, on all processes alike; config.yaml keeps it."""
    from launch.decode import choose_decode

    stored = world.share(run.setting("data", "decode") if world.is_first else None)
    decode, note = choose_decode(config.data.decode, stored=stored, world=world)
    if note and world.is_first:
        print(f"decode: {note}", flush=True)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, decode=decode))


def _loader(config: PretrainConfig, corpus: "Corpus", world: "World") -> "Loader":
    from pipelines.loader import Loader

    return Loader(
        corpus,
        config.data,
        num_frames=config.model.num_frames,
        size=config.model.img_size,
        seed=config.train.seed,
        global_batch=config.train.global_batch,
        rank=world.place.rank,
        world=world.place.size,
        local_world=world.place.local_size,
        accumulation=config.train.accumulation,
        device=world.device,
    )


def _agree(loader: "Loader", world: "World") -> None:
    """Refuses, on all processes alike, to train where they see other data (a node without a shard): orders differ."""
    mine = loader.state_dict()["fingerprint"]
    first = world.share(mine)
    differing = [f"{key}: {mine.get(key)!r}" for key in sorted(first.keys() | mine) if mine.get(key) != first.get(key)]
    if differing:
        logging.error("process %d sees other data than the first one: %s", world.place.rank, "; ".join(differing))
    if world.any(bool(differing)):
        raise ValueError("not all processes see the same data: make the same shards reachable on every node")


def _plan(config: PretrainConfig, loader: "Loader", world: "World") -> "Plan":
    from mae3d.fit import Plan
    from mae3d.metrics import step_flops
    from mae3d.optim import lr_at

    optim, train = config.optim, config.train
    total = train.steps or round(train.epochs * loader.steps_per_epoch)
    warmup = optim.warmup_epochs * loader.steps_per_epoch if optim.warmup_steps is None else optim.warmup_steps
    peak = _peak_lr(config)

    def lr(step: int) -> float:
        return lr_at(step, lr=peak, min_lr=optim.min_lr, warmup_steps=min(warmup, total), total_steps=total)

    return Plan(
        total_steps=max(total, 1),
        accumulation=train.accumulation,
        clips_per_step=train.global_batch * config.data.repeat_aug,
        flops_per_clip=step_flops(config.model),
        lr=lr,
        log_every=config.log.every,
        checkpoint_every=config.run.checkpoint_every,
        keep_last=config.run.keep_last,
        keep_every=config.run.keep_every,
    )


def _peak_lr(config: PretrainConfig) -> float:
    if config.optim.lr is not None:
        return config.optim.lr
    return config.optim.blr * config.train.global_batch / LR_REFERENCE_BATCH


def _claim(run: Any, config: PretrainConfig, world: "World") -> None:
    """The first process checks and writes config.yaml; all fail alike if it cannot."""
    from mae3d.run import RunError

    refused = None
    if world.is_first:
        try:
            run.claim(dataclasses.asdict(config), extend=config.extend, defaults=defaults_of(config))
        except RunError as error:
            refused = str(error)
    refused = world.share(refused)
    if refused:
        raise RunError(refused)


def _summary(
    config: PretrainConfig,
    corpus: "Corpus",
    loader: "Loader",
    plan: "Plan",
    world: "World",
    *,
    parameters: int,
) -> str:
    from mae3d.metrics import memory_estimate

    model, data, train, place = config.model, config.data, config.train, world.place
    states, activations = memory_estimate(
        model,
        parameters=parameters,
        clips=loader.micro_batch * data.repeat_aug,
        bf16=train.precision == "bf16",
        zero_stage=train.zero_stage,
        world=place.size,
        checkpointing=train.grad_checkpointing,
    )
    rate = f"{_peak_lr(config):.3g}"
    if config.optim.lr is None:
        rate = f"{config.optim.blr:.3g} x {train.global_batch}/{LR_REFERENCE_BATCH} = {rate}"
    shape = f"{model.num_frames}x{model.img_size}x{model.img_size}"
    epochs = plan.total_steps / loader.steps_per_epoch
    lines = {
        "model": f"{model.preset}, {parameters / 1e6:.1f} M parameters, clips {shape}, "
        f"{model.num_kept} of {model.num_tokens} tokens visible",
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


def _data_lines(data: DataConfig, corpus: "Corpus", loader: "Loader") -> dict[str, str]:
    """Which datasets, which of their samples, in which order."""
    from pipelines.selection import describe_selection

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


if __name__ == "__main__":
    sys.exit(main())
