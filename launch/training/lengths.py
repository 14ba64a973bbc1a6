"""Settings that count steps or epochs are compared with the length of the run: config ─► warnings with both numbers.

beyond_the_run(config, total_steps=60, steps_per_epoch=20)
# ["optim.warmup_epochs=5 is 100 steps, and the run has 60: the rate never comes to its peak"]

A setting that is at its default and does no harm beyond the end (an interval whose last step is taken anyway) is not
mentioned.
"""

import math

from launch.training.config import FinetuneConfig, TrainingConfig
from mae3d.tracking.config import LogConfig
from mae3d.training.config import RunConfig

_RUN, _LOG = RunConfig(), LogConfig()


def beyond_the_run(config: TrainingConfig, *, total_steps: int, steps_per_epoch: int) -> list[str]:
    """Return a warning per setting that the run is too short for.

    Args:
        config: the settings.
        total_steps: the run's length.
        steps_per_epoch: to convert epochs.
    """
    has = f"the run has {total_steps:,}"
    warnings = [_warm_up(config, total_steps, steps_per_epoch, has)]
    if isinstance(config, FinetuneConfig):
        every = math.ceil((config.val.every or 0) * steps_per_epoch)
        if config.optim.ema and (span := 1 / (1 - config.optim.ema)) > total_steps:
            warnings.append(
                f"optim.ema={config.optim.ema:g} averages over some {span:,.0f} steps, and {has}: its decay rises with "
                f"the steps, so that it averages over about the last {max(1, round(total_steps / 9)):,}"
            )
        if every > total_steps:
            warnings.append(f"val.every={config.val.every:g} is {every:,} steps, and {has}: only the last is validated")
    elif config.eval.every > total_steps:
        warnings.append(f"eval.every={config.eval.every:,}, and {has}: only the last step is evaluated")
    run = config.run
    if run.checkpoint_every > total_steps and run.checkpoint_every != _RUN.checkpoint_every:
        warnings.append(f"run.checkpoint_every={run.checkpoint_every:,}, and {has}: only the last has a checkpoint")
    if run.keep_every and (kept := math.lcm(run.keep_every, run.checkpoint_every)) > total_steps:
        by = f", of which every {kept:,}th has a checkpoint (run.checkpoint_every={run.checkpoint_every:,})"
        warnings.append(
            f"run.keep_every={run.keep_every:,}{by if kept != run.keep_every else ''}, and {has}: none is kept for good"
        )
    if config.log.every > total_steps and config.log.every != _LOG.every:
        warnings.append(f"log.every={config.log.every:,}, and {has}: only the last step is logged")
    return [warning for warning in warnings if warning]


def _warm_up(config: TrainingConfig, total_steps: int, steps_per_epoch: int, has: str) -> str:
    """Return a warning of a warm-up as long as the run."""
    optim = config.optim
    steps = optim.warmup_epochs * steps_per_epoch if optim.warmup_steps is None else optim.warmup_steps
    if not steps or steps < total_steps:
        return ""
    set_by = f"optim.warmup_steps={steps:,}"
    if optim.warmup_steps is None:
        set_by = f"optim.warmup_epochs={optim.warmup_epochs:g} is {steps:,.0f} steps"
    return f"{set_by}, and {has}: the rate never comes to its peak; give a shorter one"
