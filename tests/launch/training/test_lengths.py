from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

import pytest

from launch.training.config import EvalConfig, FinetuneConfig, FinetuneDataConfig, PretrainConfig, ValConfig
from launch.training.lengths import Length, beyond_the_run
from mae3d.model.config import MAEConfig
from mae3d.tracking.config import LogConfig
from mae3d.training.config import FinetuneOptimConfig, OptimConfig, RunConfig, TrainConfig
from pipelines.config import DataConfig, SelectConfig

PRETRAIN = PretrainConfig(MAEConfig(), optim=OptimConfig(warmup_steps=0))
FINETUNE = FinetuneConfig(optim=FinetuneOptimConfig(warmup_steps=0))
SHORT = Length(steps=60, steps_per_epoch=20, global_batch=8)
LONG = Length(steps=100_000, steps_per_epoch=20, global_batch=8)


@pytest.mark.parametrize(
    ("config", "changes", "names"),
    [
        (PRETRAIN, {"optim": OptimConfig()}, ["optim.warmup_epochs=5 is 100 steps", "has 60"]),
        (PRETRAIN, {"optim": OptimConfig(warmup_steps=60)}, ["optim.warmup_steps=60", "has 60"]),
        (PRETRAIN, {"eval": EvalConfig(every=61)}, ["eval.every=61", "has 60"]),
        (PRETRAIN, {"run": RunConfig(checkpoint_every=61)}, ["run.checkpoint_every=61", "has 60"]),
        (PRETRAIN, {"run": RunConfig(keep_every=1000)}, ["run.keep_every=1,000", "has 60"]),
        (PRETRAIN, {"run": RunConfig(checkpoint_every=8, keep_every=9)}, ["run.keep_every=9", "up to 60", "every=8"]),
        (PRETRAIN, {"log": LogConfig(every=61)}, ["log.every=61", "has 60"]),
        (PRETRAIN, {"train": TrainConfig(max_skipped=61)}, ["train.max_skipped=61", "has 60"]),
        (PRETRAIN, {"data": DataConfig(max_bad=480)}, ["data.max_bad=480", "has 480 samples", "60 steps of 8"]),
        (
            FINETUNE,
            {"optim": FinetuneOptimConfig(warmup_steps=0, ema=0.9999)},
            ["optim.ema=0.9999", "10,000", "has 60"],
        ),
        (FINETUNE, {"val": ValConfig(every=3.5)}, ["val.every=3.5 is 70 steps", "has 60"]),
        (FINETUNE, {"data": FinetuneDataConfig(max_bad=1000)}, ["data.max_bad=1,000", "has 480 samples"]),
    ],
)
def test_fault_43_a_setting_longer_than_the_run_is_told_with_both_numbers(
    config: Any, changes: dict[str, Any], names: list[str]
) -> None:
    (warning,) = beyond_the_run(replace(config, **changes), SHORT)
    assert all(name in warning for name in names), warning
    assert beyond_the_run(replace(config, **changes), LONG) == []


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (PRETRAIN, {}),
        (FINETUNE, {}),
        # an evaluation, and the last step, write checkpoints as well
        (PRETRAIN, {"eval": EvalConfig(every=9), "run": RunConfig(checkpoint_every=8, keep_every=9)}),
        (FINETUNE, {"val": ValConfig(every=0.45), "run": RunConfig(checkpoint_every=8, keep_every=9)}),
        (PRETRAIN, {"run": RunConfig(checkpoint_every=7, keep_every=20)}),
        (PRETRAIN, {"run": RunConfig(checkpoint_every=60, keep_every=60)}),  # the last step's
        (FINETUNE, {"val": ValConfig(every=3.01)}),  # 60.2 steps: the 60th
        (PRETRAIN, {"optim": OptimConfig(warmup_steps=59)}),
        (FINETUNE, {"optim": FinetuneOptimConfig(warmup_steps=0, ema=0.98)}),
    ],
)
def test_what_comes_within_the_run_or_is_a_harmless_default_is_not_mentioned(
    config: Any, changes: dict[str, Any]
) -> None:
    assert beyond_the_run(replace(config, **changes), SHORT) == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"eval": EvalConfig(shards="held")}, ["eval.every is 0", "eval.shards"]),
        ({"eval": EvalConfig(select=SelectConfig(split="val"))}, ["eval.every is 0", "eval.select.split"]),
        ({"val": ValConfig(every=None, num_crops=3)}, ["val.every is null", "val.num_crops"]),
    ],
)
def test_fault_43_an_evaluation_that_is_set_up_and_off_is_told(changes: dict[str, Any], names: list[str]) -> None:
    (warning,) = beyond_the_run(replace(FINETUNE if "val" in changes else PRETRAIN, **changes), LONG)
    assert all(name in warning for name in names), warning


# Numbers that a warning compares with the run's length.
COMPARED = {
    "data.max_bad", "eval.every", "log.every", "optim.ema", "optim.warmup_epochs", "optim.warmup_steps",
    "run.checkpoint_every", "run.keep_every", "train.max_skipped", "val.every",
}  # fmt: skip
# Numbers that count steps, epochs, samples or checkpoints, and why none of them can be too large for a run.
HARMLESS = {
    "train.epochs": "it is the run's length",
    "train.steps": "it is the run's length",
    "train.global_batch": "an epoch must have one; the loader refuses a larger one",
    "train.accumulation": "it must divide the global batch",
    "train.max_rollbacks": "it ends a run earlier, never later",
    "run.keep_last": "checkpoints; of fewer all are kept",
    "run.time_limit": "minutes; a run that ends before has ended",
    "run.timeout": "minutes",
    "data.mix_shards": "of fewer shards all are mixed",
    "data.prefetch": "batches ahead of the last are not read",
    "data.retries": "attempts of one read",
    "data.select.per_class": "at most so many; the start has the number of samples that take part",
    "data.select.fraction": "a share",
    "eval.samples": "at most so many; the start has their number",
    "eval.pool": "at most so many; the start has their number",
    "eval.pictures": "at most so many",
    "few_shot": "at most so many a class; the start of each run has the number of samples",
    "seeds": "runs, each of its own length",
}
COUNTS = (
    "every",
    "epochs",
    "steps",
    "samples",
    "batch",
    "max_",
    "keep",
    "limit",
    "pool",
    "pictures",
    "prefetch",
    "retries",
)


def numbers(config_class: Any, prefix: str = "") -> dict[str, Any]:
    """Return the dotted names of a config's numbers with their types."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(config_class).items():
        if is_dataclass(kind):
            found |= numbers(kind, f"{prefix}{name}.")
        elif any(part in str(kind) for part in ("int", "float")) and "Literal" not in str(kind):
            found[f"{prefix}{name}"] = kind
    return found


@pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])
def test_every_setting_that_counts_is_compared_with_the_length_or_cannot_be_too_large(config_class: Any) -> None:
    """A new setting of steps, epochs or samples must be given a warning, or a reason here."""
    known = COMPARED | HARMLESS.keys()
    sizes = {"val.batch", "eval.batch"}  # samples at a time
    counting = {name for name in numbers(config_class) if any(part in name.rpartition(".")[2] for part in COUNTS)}
    assert len(counting) > 10
    assert counting - known - sizes == set()
    assert {entry.name for entry in fields(config_class)} >= {name.partition(".")[0] for name in counting}


def test_every_compared_setting_exists() -> None:
    names = numbers(PretrainConfig) | numbers(FinetuneConfig)
    assert (COMPARED | HARMLESS.keys()) - names.keys() == set()
