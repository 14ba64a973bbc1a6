from dataclasses import replace
from typing import Any

import pytest

from launch.training.config import EvalConfig, FinetuneConfig, PretrainConfig, ValConfig
from launch.training.lengths import beyond_the_run
from mae3d.model.config import MAEConfig
from mae3d.tracking.config import LogConfig
from mae3d.training.config import FinetuneOptimConfig, OptimConfig, RunConfig

PRETRAIN = PretrainConfig(MAEConfig(), optim=OptimConfig(warmup_steps=0))
FINETUNE = FinetuneConfig(optim=FinetuneOptimConfig(warmup_steps=0))


@pytest.mark.parametrize(
    ("config", "changes", "names"),
    [
        (PRETRAIN, {"optim": OptimConfig()}, ["optim.warmup_epochs=5 is 100 steps", "has 60"]),
        (PRETRAIN, {"optim": OptimConfig(warmup_steps=60)}, ["optim.warmup_steps=60", "has 60"]),
        (PRETRAIN, {"eval": EvalConfig(every=61)}, ["eval.every=61", "has 60"]),
        (PRETRAIN, {"run": RunConfig(checkpoint_every=61)}, ["run.checkpoint_every=61", "has 60"]),
        (PRETRAIN, {"run": RunConfig(keep_every=1000)}, ["run.keep_every=1,000", "has 60"]),
        (PRETRAIN, {"run": RunConfig(checkpoint_every=7, keep_every=10)}, ["run.keep_every=10", "every 70th"]),
        (PRETRAIN, {"log": LogConfig(every=61)}, ["log.every=61", "has 60"]),
        (
            FINETUNE,
            {"optim": FinetuneOptimConfig(warmup_steps=0, ema=0.9999)},
            ["optim.ema=0.9999", "10,000", "has 60"],
        ),
        (FINETUNE, {"val": ValConfig(every=3.5)}, ["val.every=3.5 is 70 steps", "has 60"]),
    ],
)
def test_fault_43_a_setting_longer_than_the_run_is_told_with_both_numbers(
    config: Any, changes: dict[str, Any], names: list[str]
) -> None:
    (warning,) = beyond_the_run(replace(config, **changes), total_steps=60, steps_per_epoch=20)
    assert all(name in warning for name in names), warning
    assert beyond_the_run(replace(config, **changes), total_steps=100_000, steps_per_epoch=20) == []


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE])
def test_defaults_that_do_no_harm_are_not_mentioned(config: Any) -> None:
    assert beyond_the_run(config, total_steps=20, steps_per_epoch=20) == []
