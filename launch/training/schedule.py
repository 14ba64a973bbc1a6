"""Settings of the optimizer and the training, and the steps of an epoch ─► lengths, rates and intervals of a run.

schedule = make_schedule(config, loader, lr_batch=[256], flops_per_clip=1e12)
describe_rate(config.optim, [256])     # "0.00015 x 256/256 = 0.00015"
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from launch.training.config import TrainingConfig
from mae3d.io.hooks import codes_of

if TYPE_CHECKING:
    from mae3d.training.config import OptimConfig
    from mae3d.training.loop import TrainSchedule
    from pipelines.loader import Loader

LR_REFERENCE_BATCH = 256  # the batch that optim.blr is given for (upstream's linear rule)


def make_schedule(
    config: TrainingConfig, loader: "Loader", *, lr_batch: Sequence[int], flops_per_clip: float
) -> "TrainSchedule":
    """Return the lengths, rates and intervals of the training.

    Args:
        config: the settings.
        loader: knows the steps of an epoch.
        lr_batch: factors of the batch that optim.blr is scaled by.
        flops_per_clip: of a forward and backward pass.
    """
    from mae3d.training.loop import TrainSchedule
    from mae3d.training.optim import lr_at

    optim, train = config.optim, config.train
    total = max(train.steps or round(train.epochs * loader.steps_per_epoch), 1)
    warmup = optim.warmup_epochs * loader.steps_per_epoch if optim.warmup_steps is None else optim.warmup_steps
    peak = peak_lr(optim, lr_batch)
    if optim.min_lr > peak:
        raise ValueError(
            f"optim.min_lr={optim.min_lr:g} is above the rate that it ends, {describe_rate(optim, lr_batch)}: give a "
            "smaller one, or a larger optim.blr"
        )
    rate = {
        "lr": peak,
        "min_lr": optim.min_lr,
        "warmup_steps": min(warmup, total),
        "total_steps": total,
    }

    return TrainSchedule(
        total_steps=total,
        accumulation=train.accumulation,
        clips_per_step=train.global_batch * config.data.repeat_aug,
        flops_per_clip=flops_per_clip,
        lr=partial(lr_at, **rate),
        rate=rate,
        log=config.log,
        checkpoint_every=config.run.checkpoint_every,
        keep_last=config.run.keep_last,
        keep_every=config.run.keep_every,
        max_skipped=train.max_skipped,
        max_rollbacks=train.max_rollbacks,
        time_limit=config.run.time_limit,
        remote=config.run.remote,
        hooks=codes_of(config),
    )


def peak_lr(optim: "OptimConfig", lr_batch: Sequence[int]) -> float:
    """Return the learning rate after the warm-up: optim.lr, else optim.blr scaled by the batch."""
    return optim.blr * math.prod(lr_batch) / LR_REFERENCE_BATCH if optim.lr is None else optim.lr


def describe_rate(optim: "OptimConfig", lr_batch: Sequence[int]) -> str:
    """Return the peak learning rate, with the product that it comes from."""
    rate = f"{peak_lr(optim, lr_batch):.3g}"
    if optim.lr is not None:
        return rate
    return f"{optim.blr:.3g} x {' x '.join(map(str, lr_batch))}/{LR_REFERENCE_BATCH} = {rate}"
