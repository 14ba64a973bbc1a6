"""A run's folder: what may change between two starts, and what the log looks like after a cut."""

import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mae3d.io.resume import ResumeRules
from mae3d.tracking.config import LogConfig
from mae3d.tracking.run_dir import DONE, STOPPED, Run, RunError, read_metrics

CONFIG = {
    "model": {"depth": 2, "mean": (0.4, 0.5, 0.6)},
    "train": {"steps": 10, "zero_stage": 1, "seed": 0},
    "run": {"dir": "here"},
    "data": {"shards": "a", "flip": 0.5},
}
RULES = ResumeRules(free=("run", "data.shards", "train.zero_stage"), length=("train.steps",))


def changed(section: str, key: str, value: object) -> dict:
    return CONFIG | {section: CONFIG[section] | {key: value}}


def test_fault_35_lines_that_a_full_disk_refuses_are_kept_and_none_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mae3d.tracking.progress import ProgressLogger

    monkeypatch.setattr(ProgressLogger, "say", lambda *_: None)  # pytest's file for it has the limit, too
    world: Any = SimpleNamespace(is_first=True)
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    progress = ProgressLogger(Run(tmp_path), world, first_step=0, total_steps=9, log=LogConfig())
    progress.write({"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, was[1]))  # in the middle of the second line
    try:
        progress.write({"step": 2})
        progress.write({"step": 3})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
        with pytest.raises(OSError, match="File too large"):
            progress.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
    progress.write({"step": 4})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert caplog.text.count("are kept until it can") == 1


def test_the_same_config_goes_on_and_may_lie_elsewhere(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", RULES)
    run.claim(CONFIG, extend=False)
    run.end(STOPPED, "")
    for config in (
        CONFIG,
        changed("run", "dir", "there"),
        changed("train", "zero_stage", 2),
        changed("data", "shards", "b"),
    ):
        run.check(config, extend=False)
        run.claim(config, extend=False)
    assert not (tmp_path / "run" / STOPPED).exists()


@pytest.mark.parametrize(
    ("section", "key", "value"), [("model", "depth", 3), ("data", "flip", 0.0), ("train", "seed", 1)]
)
def test_fault_33_other_settings_are_refused_by_name(tmp_path: Path, section: str, key: str, value: object) -> None:
    run = Run(tmp_path / "run", RULES)
    run.claim(CONFIG, extend=False)
    with pytest.raises(RunError, match=rf"{section}\.{key}: was .*, is {value}"):
        run.check(changed(section, key, value), extend=True)
    run.check(CONFIG, extend=False)  # the refused config left no trace


def test_a_setting_that_is_newer_than_the_run_had_its_default(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", RULES)
    run.claim(CONFIG, extend=False)
    defaults = {"model": {"mask_type": "random"}}
    with pytest.raises(RunError, match=r"model\.mask_type: was 'random', is 'tube'"):
        run.check(changed("model", "mask_type", "tube"), extend=False, defaults=defaults)
    run.check(changed("model", "mask_type", "random"), extend=False, defaults=defaults)


def test_another_length_needs_extend(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", RULES)
    run.claim(CONFIG, extend=False)
    run.end(DONE, "10 steps")
    with pytest.raises(RunError, match=r"train\.steps: was 10, is 20.*--extend"):
        run.check(changed("train", "steps", 20), extend=False)
    run.claim(CONFIG, extend=False)
    assert run.is_done
    run.check(changed("train", "steps", 20), extend=True)
    run.claim(changed("train", "steps", 20), extend=True)
    assert not run.is_done


def test_a_run_elsewhere_is_the_same_at_another_length_only(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", RULES)
    run.claim(CONFIG, extend=False)
    stored = run.stored()
    run.check_same(stored | {"train": stored["train"] | {"steps": 20}}, where="s3://b/run")
    with pytest.raises(RunError, match=r"s3://b/run holds another run than .*train\.seed: 1 there, 0 here"):
        run.check_same(stored | {"train": stored["train"] | {"seed": 1}}, where="s3://b/run")


def test_metrics_are_cut_back_to_the_restored_step_and_survive_half_a_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (10, 20, 30):
        run.write_metrics({"step": step, "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    run.cut_metrics(20)
    run.write_metrics({"step": 21, "loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 21]
