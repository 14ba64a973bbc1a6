"""Each setting of a training is decided: it may differ between two starts of a run, or it may not."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from launch.training.config import FinetuneConfig, PretrainConfig
from mae3d.io.resume import resume_rules
from mae3d.model.config import MAEConfig

CONFIGS = {"pretrain": PretrainConfig(model=MAEConfig()), "finetune": FinetuneConfig()}

# Decided by hand, in groups; a new setting belongs in one of the two tables, and into `free(...)` if in the first.
FREE = {
    *("device", "extend", "dry_run", "eval", "run", "log"),
    *("data.shards", "data.moved", "data.exclude_bad_shards", "data.order", "data.mix_shards", "data.on_change"),
    *("data.decode", "data.read_threads", "data.decode_threads", "data.prefetch", "data.read_gap", "data.retries"),
    *("data.max_bad", "data.missing_classes", "data.cache", "data.cache_gb"),
    *("val.shards", "val.exclude_bad_shards", "val.decode", "val.batch", "val.cache", "val.cache_gb"),
    *("train.accumulation", "train.max_skipped", "train.max_rollbacks", "train.zero_stage", "train.grad_checkpointing"),
    *(f"train.deepspeed.{key}" for key in ("zero_optimization", "comms_logger", "wall_clock_breakdown")),
    *(f"train.deepspeed.{key}" for key in ("memory_breakdown", "dump_state", "steps_per_print")),
}
LENGTH = {"train.steps", "train.epochs"}
FIXED_SECTIONS = ("model.", "mix.", "optim.", "data.select.", "val.select.")
FIXED = {
    *("init", "init_weights", "init_inflate", "init_decoder", "few_shot", "seeds"),
    *("data.weights", "data.labels", "data.sampling", "data.sampling_rate", "data.target_fps", "data.num_segments"),
    *("data.frames_per_segment", "data.short", "data.repeat_aug", "data.windows", "data.area", "data.aspect"),
    *("data.flip", "data.short_side", "data.rand_augment", "data.colour_jitter", "data.erase", "data.augment"),
    *("val.labels", "val.sampling", "val.sampling_rate", "val.target_fps", "val.every"),
    *("val.num_clips", "val.num_crops"),
    *("train.global_batch", "train.seed", "train.precision", "train.compile", "train.deepspeed"),
}


def settings(config: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize("name", CONFIGS)
def test_each_setting_is_decided_and_its_field_says_so(name: str) -> None:
    config = CONFIGS[name]
    rules = resume_rules(config)
    for setting in settings(config):
        free = any(setting == entry or setting.startswith(f"{entry}.") for entry in FREE)
        fixed = setting in FIXED or setting.startswith(FIXED_SECTIONS)
        assert free + fixed + (setting in LENGTH) == 1, f"{setting}: decide whether it may differ at a resume"
        assert (rules.is_free(setting), setting in rules.length) == (free, setting in LENGTH), setting


def test_of_deepspeeds_settings_those_that_touch_speed_and_logs_alone_are_free() -> None:
    rules = resume_rules(CONFIGS["pretrain"])
    assert rules.is_free("train.deepspeed.zero_optimization.reduce_bucket_size")
    assert rules.is_free("train.deepspeed.dump_state")
    assert not rules.is_free("train.deepspeed.communication_data_type")
    assert not rules.is_free("train.deepspeed")
