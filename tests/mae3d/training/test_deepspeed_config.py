"""A user's DeepSpeed JSON: read early, merged, refused by name, kept in config.yaml, compared on resume."""

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.common.cli import parse
from launch.training.config import PretrainConfig
from mae3d.io.resume import resume_rules
from mae3d.model.config import MAEConfig
from mae3d.tracking.run_dir import Run, RunError
from mae3d.training.config import OptimConfig, TrainConfig
from mae3d.training.deepspeed_config import (
    BANDWIDTH,
    FEWEST_BUCKETS,
    MOST_BUCKETS,
    bucket_count,
    bucket_settings,
    latency,
    merged,
    read_settings,
)
from mae3d.training.engine import deepspeed_config

VIT_L = [1_572_864, 1024] * 2 + [3_145_728, 1_048_576, 4_194_304, 4_194_304, 9216] * 24  # elements of its tensors
GOOD = {"zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": False}, "communication_data_type": "fp32"}


def written(folder: Path, settings: Any) -> str:
    path = folder / "ds.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return str(path)


def test_settings_are_merged_over_ours_without_touching_what_is_beside_them(tmp_path: Path) -> None:
    train = TrainConfig(zero_stage=2, deepspeed=written(tmp_path, GOOD))
    config = deepspeed_config(train, OptimConfig(), micro_batch=4, sizes=VIT_L, ranks=2)
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": False}
    assert config["communication_data_type"] == "fp32"
    plain = deepspeed_config(TrainConfig(zero_stage=2), OptimConfig(), micro_batch=4, sizes=VIT_L, ranks=2)
    assert {key: value for key, value in config.items() if key not in GOOD} == {
        key: value for key, value in plain.items() if key not in GOOD
    }
    assert merged({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": {"e": 4}}) == {"a": {"b": 1, "d": 3}, "c": {"e": 4}}


@pytest.mark.parametrize("sizes", [VIT_L, [10, 1000, 10], [7] * 100, [3]], ids=["L", "uneven", "even", "one"])
def test_buckets_are_many_and_hold_every_tensor(sizes: list[int]) -> None:
    for ranks, stage, precision in product((1, 2, 8, 512), (1, 2, 3), ("bf16", "autocast", "fp32")):
        settings = bucket_settings(sizes, stage=stage, precision=precision, ranks=ranks)
        bucket, total = settings["reduce_bucket_size"], sum(sizes)
        assert settings["overlap_comm"] == (ranks > 1)
        assert max(sizes) <= bucket <= max(total / 2, *sizes, 0)
        if max(sizes) < total / MOST_BUCKETS:
            assert FEWEST_BUCKETS / 2 < total / bucket <= MOST_BUCKETS
        assert settings.get("stage3_prefetch_bucket_size", bucket) == bucket
        # All losses would change if autocast gathered small weights as well, in bf16.
        assert ("stage3_param_persistence_threshold" in settings) == (stage == 3 and precision != "autocast")


def test_stage_0_has_no_buckets_and_a_users_settings_win_one_by_one() -> None:
    assert bucket_settings(VIT_L, stage=0, precision="fp32", ranks=8) == {}
    settings = {"zero_optimization": {"overlap_comm": False}}
    train = TrainConfig(zero_stage=3, deepspeed=settings)
    given = deepspeed_config(train, OptimConfig(), micro_batch=4, sizes=VIT_L, ranks=8)["zero_optimization"]
    ours = bucket_settings(VIT_L, stage=3, precision="bf16", ranks=8)
    assert given == ours | {"stage": 3, "overlap_comm": False}


def test_no_other_count_of_buckets_costs_less() -> None:
    for ranks, megabytes in product((2, 8, 64, 512), (1, 200, 1300, 5000)):
        seconds = megabytes * 1e6 / BANDWIDTH
        costs = {n: seconds / n + n * latency(ranks) for n in range(FEWEST_BUCKETS, MOST_BUCKETS + 1)}
        assert costs[bucket_count(seconds, ranks=ranks)] <= min(costs.values()) * 1.001, (ranks, megabytes)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train_batch_size": 8}, r"train_batch_size: give train\.global_batch"),
        ({"train_micro_batch_size_per_gpu": 8}, r"train_micro_batch_size_per_gpu: it follows from train\.global_batch"),
        ({"gradient_accumulation_steps": 2}, r"give train\.accumulation"),
        ({"gradient_clipping": 1.0}, r"give optim\.clip_grad"),
        ({"optimizer": {"type": "Adam"}}, r"optimizer: give optim\.betas"),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler: give optim\.lr"),
        ({"bf16": {"enabled": True}}, r"bf16: give train\.precision bf16"),
        ({"fp16": {"enabled": True}}, r"fp16: give train\.precision"),
        ({"torch_autocast": {"enabled": True}}, r"give train\.precision autocast"),
        ({"elasticity": {"enabled": True}}, r"elasticity: a run goes on"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage: give train\.zero_stage"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, r"offload_optimizer: the optimizer's state"),
        ({"zero_optimization": {"reduce_buket_size": 1}}, r"reduce_buket_size: not a setting.*reduce_bucket_size"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, r"zero_quantized_weights: not a setting"),
        ({"nonsense": 1, "train_batch_size": 8}, r"nonsense: not a setting.*; train_batch_size: give"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, r"grad_accum_dtype=fp32.*use zero_stage 2"),
        ("[1]", r"ds\.json: DeepSpeed's settings are an object"),
        ('{"comms_logger":\n {"enabled": tru}}', r"ds\.json, line 2, column 14: not JSON"),
        ('{"dump_state": true, "dump_state": false}', r"ds\.json: given twice: dump_state"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(tmp_path: Path, settings: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainConfig(deepspeed=written(tmp_path, settings))


def test_what_a_recipe_has_is_checked_as_a_file_is() -> None:
    with pytest.raises(ValueError, match=r"train\.deepspeed: fp16: give train\.precision"):
        TrainConfig(deepspeed={"fp16": {"enabled": True}})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.deepspeed=.*absent\.json: cannot be read \(No such file"):
        read_settings(tmp_path / "absent.json")


def test_the_command_line_and_config_yaml_give_the_same_settings(tmp_path: Path) -> None:
    options = ["--model.preset", "mae_vit_tiny_patch16", "--train.deepspeed", written(tmp_path, GOOD)]
    config = parse(PretrainConfig, options, prog="test", description="")
    assert config.train.deepspeed == GOOD
    (tmp_path / "ds.json").unlink()
    repeated = tmp_path / "config.yaml"
    repeated.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    assert parse(PretrainConfig, ["--config", str(repeated)], prog="test", description="") == config


def test_a_resumed_run_may_change_sizes_of_buckets_but_nothing_that_losses_depend_on(tmp_path: Path) -> None:
    rules = resume_rules(PretrainConfig(model=MAEConfig()))
    run = Run(tmp_path / "run", rules)

    def claim(settings: dict[str, Any]) -> None:
        config = {"train": asdict(TrainConfig(deepspeed=settings))}
        run.check(config, extend=False)
        run.claim(config, extend=False)

    claim(GOOD)
    claim(GOOD | {"zero_optimization": {"reduce_bucket_size": 2000}, "wall_clock_breakdown": True})
    with pytest.raises(RunError, match=r"train\.deepspeed\.communication_data_type: was 'fp32', is 'bf16'"):
        claim({"communication_data_type": "bf16"})
    with pytest.raises(RunError, match=r"train\.deepspeed\.communication_data_type: was 'fp32', is None"):
        claim({})
