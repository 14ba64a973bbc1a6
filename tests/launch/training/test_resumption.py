"""launch/training/resumption.py: only longer runs go on, and both schedules' rates are reported."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from launch.training.config import FinetuneConfig, FinetuneModelConfig, PretrainConfig
from launch.training.resumption import claim
from launch.training.schedule import make_schedule
from mae3d.io.resume import resume_rules
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.tracking.run_dir import CONFIG, DONE, Run, RunError
from mae3d.training.config import OptimConfig, TrainConfig
from mae3d.training.optim import lr_at
from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.samples.corpus import Corpus
from tests.support.datasets import index_only

ALONE: Any = SimpleNamespace(is_first=True, on_first=lambda call: call())
BEFORE = PretrainConfig(
    model=MAEConfig(preset="mae_vit_tiny_patch16"),
    optim=OptimConfig(lr=1.0, warmup_epochs=1),
    data=DataConfig(on_change="new-epoch"),
    train=TrainConfig(global_batch=2, steps=12),
)
SHARDS = [5, 9]  # 14 samples, so that an epoch is 7 steps


def loader_of(config: PretrainConfig, shards: list[int]) -> Loader:
    corpus = Corpus([index_only(shards, seed=1)])
    return Loader(corpus, config.data, num_frames=2, size=16, seed=0, global_batch=config.train.global_batch)


def start(run: Path, config: PretrainConfig, shards: list[int] = SHARDS) -> str:
    """Claim a run as the trainer does."""
    loader = loader_of(config, shards)
    schedule = make_schedule(config, loader, lr_batch=[2], flops_per_clip=1.0)
    return claim(Run(run, resume_rules(config)), config, loader, schedule, ALONE, model_config=config.model)


def save(run: Path, step: int, config: PretrainConfig = BEFORE, *, keeps_rate: bool = True) -> None:
    """Leave the state of a checkpoint; nothing else of it is read before a run goes on."""
    loader = loader_of(config, SHARDS)
    schedule = make_schedule(config, loader, lr_batch=[2], flops_per_clip=1.0)
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    state = {"step": step, "loader": loader.state_dict()} | ({"rate": schedule.rate} if keeps_rate else {})
    (folder / "state.json").write_text(json.dumps(state))
    (folder.parent / "latest").write_text(folder.name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of 12 steps that is finished."""
    assert start(tmp_path, BEFORE) == ""
    save(tmp_path, 12)
    Run(tmp_path).end(DONE, "12 steps")
    return tmp_path


def longer(config: PretrainConfig = BEFORE, **train: Any) -> PretrainConfig:
    return replace(config, extend=True, train=replace(config.train, **train))


@pytest.mark.parametrize(
    ("config", "shards", "told"),
    [
        (
            longer(steps=8),
            SHARDS,
            "12 steps long and has a checkpoint of step 12; this start would make it 8. ",
        ),
        (longer(steps=11), SHARDS, "give train.steps of 12 or more; the file .*/STOP ends it early"),
        (longer(steps=None, epochs=1), SHARDS, "this start would make it 7"),
        (longer(steps=24, seed=1), SHARDS, "train.seed: was 0, is 1"),
        (longer(steps=24), [5, 8], "the order of the samples cannot go on"),
        (replace(longer(steps=24), data=DataConfig()), [5, 9, 4], "add --data.on_change new-epoch"),
    ],
    ids=["fewer steps", "one fewer", "fewer epochs", "another setting", "other data", "grown data, refused"],
)
def test_fault_33_what_cannot_go_on_is_refused_and_nothing_is_written(
    run: Path, config: PretrainConfig, shards: list[int], told: str
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=told):
        start(run, config, shards)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert (run / DONE).exists()


@pytest.mark.parametrize("taken", [0, 5])
def test_a_run_that_is_not_at_its_end_is_not_made_shorter_either(tmp_path: Path, taken: int) -> None:
    start(tmp_path, BEFORE)
    if taken:
        save(tmp_path, taken)
    with pytest.raises(RunError, match=rf"12 steps long and has a checkpoint of step {taken}; .* make it 10"):
        start(tmp_path, longer(steps=10))
    assert Run(tmp_path).stored() == json.loads(json.dumps(asdict(BEFORE)))


@pytest.mark.parametrize("keeps_rate", [True, False], ids=["", "checkpoint of an older version"])
@pytest.mark.parametrize("taken", [5, 12])
def test_a_longer_run_reports_the_rates_of_both_schedules(tmp_path: Path, taken: int, keeps_rate: bool) -> None:
    start(tmp_path, BEFORE)
    save(tmp_path, taken, keeps_rate=keeps_rate)
    old, new = ({"lr": 1.0, "min_lr": 0.0, "warmup_steps": 7, "total_steps": total} for total in (12, 24))
    change = start(tmp_path, longer(steps=24))
    assert change.startswith("total_steps was 12, is 24. ")
    last, by_old, by_new = lr_at(taken - 1, **old), lr_at(taken, **old), lr_at(taken, **new)
    assert f"The rate was {last:.3g} in step {taken}; the next one has {by_old:.3g} by the old schedule" in change
    assert f", and {by_new:.3g} by this one" in change
    assert (f", {by_new / last:.3g} times the last" in change) == (taken == 12)
    assert Run(tmp_path).stored()["train"]["steps"] == 24


@pytest.mark.parametrize(
    ("config", "shards", "told"),
    [
        (
            BEFORE,
            [*SHARDS, 10],
            "warmup_steps was 7, is 12. The rate was 0.571 in step 5; the next one has 0.714 ",
        ),
        (longer(), SHARDS, "none: 12 steps as before (train.steps=12 wins over train.epochs)"),
        (BEFORE, SHARDS, ""),
        (replace(BEFORE, train=replace(BEFORE.train, accumulation=2)), SHARDS, ""),
    ],
    ids=["grown data lengthens the warm-up", "extended by nothing", "the same", "another layout"],
)
def test_whatever_changes_the_schedule_is_reported(
    tmp_path: Path, config: PretrainConfig, shards: list[int], told: str
) -> None:
    start(tmp_path, BEFORE)
    save(tmp_path, 5)
    change = start(tmp_path, config, shards)
    assert change.startswith(told) if told else change == ""


def test_the_newest_state_that_can_be_read_counts(tmp_path: Path) -> None:
    start(tmp_path, BEFORE)
    for step in (5, 7, 9):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000009" / "state.json").write_text("{")
    assert "The rate was 0.857 in step 7; " in start(tmp_path, longer(steps=24))


def test_after_a_step_without_a_rate_there_is_no_leap_to_report(tmp_path: Path) -> None:
    start(tmp_path, BEFORE)
    save(tmp_path, 1)
    change = start(tmp_path, longer(steps=24))
    assert change.endswith(
        "The rate was 0 in step 1; the next one has 0.143 by the old schedule, and 0.143 by this one"
    )


def test_ranks_but_the_first_write_nothing_and_hear_what_it_found(tmp_path: Path) -> None:
    loader = loader_of(BEFORE, SHARDS)
    schedule = make_schedule(BEFORE, loader, lr_batch=[2], flops_per_clip=1.0)
    follower: Any = SimpleNamespace(on_first=lambda call: "total_steps was 12, is 24")
    run = Run(tmp_path, resume_rules(BEFORE))
    told = claim(run, BEFORE, loader, schedule, follower, model_config=BEFORE.model)
    assert told == "total_steps was 12, is 24"
    assert not list(tmp_path.iterdir())


def test_a_run_by_epochs_of_grown_data_is_longer(tmp_path: Path) -> None:
    by_epochs = replace(BEFORE, train=replace(BEFORE.train, steps=None, epochs=2))
    start(tmp_path, by_epochs)
    save(tmp_path, 5, by_epochs)
    assert start(tmp_path, by_epochs, [*SHARDS, 10]).startswith(
        "warmup_steps was 7, is 12; total_steps was 14, is 24. The rate was "
    )
    assert start(tmp_path, by_epochs, [*SHARDS, 40]).endswith(", and 0.185 by this one, 0.324 times the last")


def test_a_finetuning_from_before_a_setting_of_the_model_goes_on(tmp_path: Path) -> None:
    model = ClassifierConfig(preset="mae_vit_tiny_patch16", num_classes=3)
    config = FinetuneConfig(model=FinetuneModelConfig(**asdict(model)), train=TrainConfig(steps=4))
    loader: Any = None  # without a checkpoint nothing of the data is compared
    schedule: Any = SimpleNamespace(rate={"total_steps": 4}, total_steps=4)
    run = Run(tmp_path, resume_rules(config))
    assert claim(run, config, loader, schedule, ALONE, model_config=model) == ""
    stored = run.stored()
    newer = ("in_chans", "rope", "pooling")
    stored["model"] = {name: value for name, value in stored["model"].items() if name not in newer}
    (tmp_path / CONFIG).write_text(yaml.safe_dump(stored))
    assert claim(run, config, loader, schedule, ALONE, model_config=model) == ""
    other = replace(config, model=replace(config.model, in_chans=1))
    with pytest.raises(RunError, match=r"model\.in_chans: was 3, is 1"):
        claim(run, other, loader, schedule, ALONE, model_config=replace(model, in_chans=1))
