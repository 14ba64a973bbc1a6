"""Settings that count steps, epochs or samples are compared with the run's length.

config, length ─► warnings with both numbers

beyond_the_run(config, Length(steps=60, steps_per_epoch=20, global_batch=8))
# ["optim.warmup_epochs=5 is 100 steps, and the run has 60: the rate never comes to its peak; give a shorter one"]

A setting that is at its default and does no harm beyond the end (an interval whose last step is taken anyway) is not
mentioned.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from launch.training.config import EvalConfig, FinetuneConfig, TrainingConfig, ValConfig
from mae3d.io.resume import dotted
from mae3d.training.config import FinetuneOptimConfig, OptimConfig


class Length(NamedTuple):
    """The length of a run, in optimizer steps and in samples."""

    steps: int
    steps_per_epoch: int
    global_batch: int

    @property
    def has(self) -> str:
        """Return the clause of a message that has the run's length."""
        return f"and the run has {self.steps:,}"


def beyond_the_run(config: TrainingConfig, length: Length) -> list[str]:
    """Return a warning per setting that the run is too short for, or that is about an evaluation that never comes."""
    if isinstance(config, FinetuneConfig):
        evaluated_every = config.val.every_steps(length.steps_per_epoch)
        evaluation = list(_validation(config.val, evaluated_every, length))
    else:
        evaluated_every = config.eval.every
        evaluation = list(_evaluation(config.eval, length))
    return [
        *_warm_up(config.optim, length),
        *_average(config.optim, length),
        *evaluation,
        *_checkpoints(config, evaluated_every, length),
        *_intervals(config, length),
    ]


def _warm_up(optim: OptimConfig, length: Length) -> Iterator[str]:
    steps = optim.warmup_epochs * length.steps_per_epoch if optim.warmup_steps is None else optim.warmup_steps
    if steps and steps >= length.steps:
        set_by = f"optim.warmup_steps={steps:,}"
        if optim.warmup_steps is None:
            set_by = f"optim.warmup_epochs={optim.warmup_epochs:g} is {steps:,.0f} steps"
        yield f"{set_by}, {length.has}: the rate never comes to its peak; give a shorter one"


def _average(optim: OptimConfig, length: Length) -> Iterator[str]:
    ema = optim.ema if isinstance(optim, FinetuneOptimConfig) else 0
    if ema and (span := 1 / (1 - ema)) > length.steps:
        yield (
            f"optim.ema={ema:g} averages over some {span:,.0f} steps, {length.has}: its decay rises with the steps, so "
            f"that it averages over about the last {max(1, round(length.steps / 9)):,}"
        )


def _validation(val: ValConfig, every: int, length: Length) -> Iterator[str]:
    if val.every is None and (given := _given(val, ValConfig())):
        yield f"val.every is null: nothing is validated, and val.{given} has no effect; give --val.every"
    if every > length.steps:
        yield f"val.every={val.every:g} is {every:,} steps, {length.has}: only the last is validated"


def _evaluation(evaluation: EvalConfig, length: Length) -> Iterator[str]:
    if not evaluation.every and (given := _given(evaluation, EvalConfig())):
        yield f"eval.every is 0: nothing is evaluated, and eval.{given} has no effect; give --eval.every"
    if evaluation.every > length.steps:
        yield f"eval.every={evaluation.every:,}, {length.has}: only the last step is evaluated"


def _checkpoints(config: TrainingConfig, evaluated_every: int, length: Length) -> Iterator[str]:
    run = config.run
    if run.checkpoint_every > length.steps and run.checkpoint_every != type(run).checkpoint_every:
        yield f"run.checkpoint_every={run.checkpoint_every:,}, {length.has}: only the last has a checkpoint"
    if not run.keep_every:
        return
    saved = [every for every in (run.checkpoint_every, evaluated_every) if every]
    if run.keep_every > length.steps:
        yield f"run.keep_every={run.keep_every:,}, {length.has}: no checkpoint is kept for good"
    elif length.steps % run.keep_every and all(math.lcm(run.keep_every, every) > length.steps for every in saved):
        yield (
            f"run.keep_every={run.keep_every:,}, and none of its multiples up to {length.steps:,} has a checkpoint "
            f"(run.checkpoint_every={run.checkpoint_every:,}): none is kept for good; give a multiple of that"
        )


def _intervals(config: TrainingConfig, length: Length) -> Iterator[str]:
    log, train, data = config.log, config.train, config.data
    if log.every > length.steps and log.every != type(log).every:
        yield f"log.every={log.every:,}, {length.has}: only the last step is logged"
    if train.max_skipped > length.steps and train.max_skipped != type(train).max_skipped:
        yield f"train.max_skipped={train.max_skipped:,}, {length.has}: no number of failed steps ends it"
    samples = length.steps * length.global_batch
    if data.max_bad >= samples and data.max_bad != type(data).max_bad:
        yield (
            f"data.max_bad={data.max_bad:,}, and the run has {samples:,} samples ({length.steps:,} steps of "
            f"{length.global_batch:,}): no number of damaged ones ends it"
        )


def _given(config: Any, defaults: Any) -> str:
    """Return the first setting of an evaluation that is not at its default, besides its interval; "" if none."""
    values, usual = (dotted(asdict(one)) for one in (config, defaults))
    return next((name for name, value in values.items() if name != "every" and value != usual[name]), "")
