"""Shards ─► a pretrained masked autoencoder.

    deepspeed launch/pretrain.py --config demo --data.shards out/shards --run.dir out/run --train.steps 50

Starting the same command again resumes. torchrun, srun and plain python start it as well.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import parse
from launch.training.config import PretrainConfig
from launch.training.trainer import (
    claim,
    decode_of,
    is_finished,
    make_loader,
    make_plan,
    restore,
    run_training,
    summary,
    tell_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from mae3d.distributed import World
    from mae3d.training.engine import Engine
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_training(parse(PretrainConfig, arguments, prog="pretrain.py", description=str(__doc__)), pretrain)


def pretrain(config: PretrainConfig, corpus: "Corpus", world: "World") -> bool:
    """Trains to the end; False after an agreed stop.

    Raises:
        ValueError: a setting, the data or the run's folder is not as it should be; the message says what to do.
        TrainingError: the loss is not finite.
        DataError: too much of the data is damaged.
        OSError: a checkpoint or the log cannot be written.
    """
    import torch

    from launch.common.init import Start
    from launch.training.pretrain_eval import Monitor
    from mae3d.model.mae import MAE
    from mae3d.tracking.run_dir import Run
    from mae3d.training.engine import Engine
    from mae3d.training.loop import fit
    from mae3d.training.metrics import step_flops
    from mae3d.training.optim import pretrain_groups

    restore(config, world)
    run, own, batch = Run(config.run.dir), config.model, config.train.global_batch
    config = replace(config, data=replace(config.data, decode=decode_of(config, run, world)))
    loader = make_loader(config, corpus, world, num_frames=own.num_frames, size=own.img_size)
    plan = make_plan(config, loader, lr_batch=[batch], flops_per_clip=step_flops(own))
    monitor = Monitor(config.eval, config.data, own, corpus, loader.rows, run, world)
    start = Start(config.init, own, run, world, decoder=config.init_decoder)
    claim(run, config, world)
    if is_finished(run, world):
        return True
    torch.manual_seed(config.train.seed)
    model = MAE(own)
    start.load_into(model)
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    if world.is_first:
        told = summary(
            config,
            corpus,
            loader,
            plan,
            world,
            own=own,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            more=f"{own.num_kept} of {own.num_tokens} tokens visible",
            lr_batch=[batch],
        )
        print(told)
        print(f"{'init:':9}{start}")
        print(f"{'eval:':9}{monitor}", flush=True)
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
            model_config=own,
            validation=monitor.of(engine),
        )
    finally:
        loader.close()
        engine.close()
    tell_end(run, world, finished=finished)
    return finished


def masked_loss(config: PretrainConfig) -> "Callable[..., torch.Tensor]":
    """The loss of a batch: every view is a clip of its own under a mask of its own, drawn by position."""
    from mae3d.model.masking import mask_noise

    def loss_of(engine: "Engine", batch: "Batch", *, step: int, micro: int) -> "torch.Tensor":
        noise = mask_noise(
            seed=config.train.seed,
            epoch=batch.epoch,
            positions=batch.positions.tolist(),
            views=config.data.repeat_aug,
            tokens=config.model.num_tokens,
        )
        clips = batch.clips.flatten(0, 1)
        if clips.is_cuda:  # from pageable memory the copy would wait for the device
            noise = noise.pin_memory()
        loss: torch.Tensor = engine(clips, noise.to(clips.device, non_blocking=True)).loss
        return loss

    return loss_of


if __name__ == "__main__":
    sys.exit(main())
