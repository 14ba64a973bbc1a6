"""No setting has a value that cannot work: every number of every command is tried with what users and YAML may give."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from launch.common.cli import parse
from launch.common.clip_options import ClipsConfig
from launch.embed import EmbedConfig
from launch.inference.settings import EvaluateConfig
from launch.preview import PreviewConfig
from launch.probe import ProbeConfig
from launch.training.config import FinetuneConfig, FinetuneModelConfig, PretrainConfig
from launch.visualize import VisualizeConfig
from mae3d.io.bounds import FINITE, Bounds, bounded, bounds_of, check_bounds, check_number
from mae3d.io.random import Stream, philox
from mae3d.io.resume import free, resume_rules
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.masking import mask_noise
from pipelines.config import SelectConfig
from pipelines.samples.selection import _hash_key
from preprocess.__main__ import main as preprocess
from preprocess.jobs.options import Options
from preprocess.plan.settings import Settings

CLIPS = ClipsConfig(shards="shards")
CONFIGS = {
    "pretrain": PretrainConfig(model=MAEConfig()),
    "finetune": FinetuneConfig(),
    "classifier": ClassifierConfig(),
    "embed": EmbedConfig(run="run", out="out", data=CLIPS),
    "evaluate": EvaluateConfig(run="run", data=CLIPS, out="out"),
    "probe": ProbeConfig(run="run", data=CLIPS, test=CLIPS, out="out"),
    "visualize": VisualizeConfig(run="run", data=CLIPS, out="out"),
    "preview": PreviewConfig(out="out"),
    "build": Settings(),
    "build of layout video": Settings(layout="video", fps=7.5),
    "build options": Options(),
}
TRIED = (math.nan, math.inf, -math.inf, -1, 0, 2**63, 2**64)

# Settings that may have a value which others may not, by name without their section, with the reason.
OFF = "0 switches it off"
NONE_TAKEN = "0 takes none"
NO_LIMIT = "the run only stops or acts later, or never"
ZERO = {
    "blr": "a control that learns nothing",
    "lr": "a control that learns nothing",
    "min_lr": "the rate ends at 0",
    "warmup_epochs": OFF,
    "warmup_steps": OFF,
    "betas": "Adam without momentum",
    "weight_decay": OFF,
    "ema": OFF,
    "seed": "a seed as any other",
    "max_rollbacks": "the run then stops at the first",
    "keep_every": OFF,
    "depth": "an encoder of patches alone",
    "decoder_depth": "a decoder that is linear",
    "mean": "pixels that are not shifted",
    "mask_ratio": "a baseline that sees all, where the model hides something at all",
    "decoder_mask_ratio": OFF,
    "dropout": OFF,
    "drop_path": OFF,
    "head_std": "a head that begins at 0",
    "mixup": OFF,
    "cutmix": OFF,
    "prob": OFF,
    "switch_prob": "mixup alone",
    "smoothing": OFF,
    "weights": "a dataset that is left out, if not all are",
    "per_class": OFF,
    "flip": OFF,
    "short_side": OFF,
    "colour_jitter": OFF,
    "erase": OFF,
    "decode_threads": "as many as fit the machine",
    "read_gap": "frames are read one by one",
    "retries": "the first failed read stops the run",
    "max_bad": "the first damaged sample stops the run",
    "every": OFF,
    "pool": NONE_TAKEN,
    "pictures": NONE_TAKEN,
    "layer": "the patch embedding",
    "epoch": "the first",
    "max_bad_fraction": "none may be bad",
    "crf": "without loss",
    "channels": "those of the first sample",
    "bits": "those of the first sample",
    "min_psnr": OFF,
    "encoder": "no option: a version of the program",
}
MINUS_ONE = {"read_gap": "as fits the store", "layer": "the last block", "encoder": "no option"}
HUGE = dict.fromkeys(("warmup_epochs", "clip_grad", "every", "segment_seconds", "max_gb"), NO_LIMIT)  # no counts


@dataclass(frozen=True)
class Setting:
    """A number among the settings of a command: the section that holds it, and its name there."""

    section: Any
    name: str

    def given(self, value: float) -> Any:
        """Return the section with another value, of each number if it holds several."""
        present = getattr(self.section, self.name)
        several = isinstance(present, tuple) or type_of(self.section, self.name) is tuple
        many = (value,) * max(len(present), 1) if several else value
        return replace(self.section, **{self.name: many})


def type_of(section: Any, name: str) -> Any:
    """Return int, float or tuple for a setting of numbers, None for another."""
    hint = get_type_hints(type(section))[name]
    kinds = {hint, *get_args(hint)}
    if float in kinds or int in kinds:
        return tuple if isinstance(getattr(section, name), tuple) else float if float in kinds else int
    return None


def settings_of(config: Any) -> Iterator[Setting]:
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from settings_of(value)
        elif type_of(config, entry.name):
            yield Setting(config, entry.name)


def allowed(setting: Setting, value: float) -> bool:
    if value in (0, -1):
        return setting.name in (ZERO if value == 0 else MINUS_ONE)
    return (
        value in (2**63, 2**64) and setting.name in HUGE and bounds_of(type(setting.section), setting.name).most is None
    )


@pytest.mark.parametrize("command", CONFIGS)
def test_every_number_is_within_bounds_or_refused_by_name(command: str) -> None:
    """A number that is accepted stands in a table above, with its reason."""
    settings = list(settings_of(CONFIGS[command]))
    assert settings
    wrong = []
    for setting in settings:
        for value in TRIED:
            try:
                setting.given(value)
            except ValueError as error:
                told = all(part in str(error) for part in (setting.name, "must be", f"{value}"))
                if not told and not allowed(setting, value):  # what is in bounds may not fit another setting
                    wrong.append(f"{setting.name}={value}: {error}")
            else:
                if not allowed(setting, value):
                    wrong.append(f"{setting.name}={value} is accepted")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("several", [(0.5, math.nan), [0.5, math.nan], [[0.5], [math.nan]]])
def test_each_number_of_several_is_looked_at(several: Any) -> None:
    with pytest.raises(ValueError, match=r"x=.* must be at least 0"):
        check_number("x", several, Bounds(least=0))
    check_number("x", True, Bounds(least=2))  # a switch is no number


@pytest.mark.parametrize("command", CONFIGS)
def test_every_number_has_bounds_of_its_own(command: str) -> None:
    """`layer` is compared with the model's depth, which only the model knows; `encoder` is no option."""
    without = {
        setting.name
        for setting in settings_of(CONFIGS[command])
        if bounds_of(type(setting.section), setting.name) == FINITE
    }
    assert without <= {"layer", "encoder", "slice"}


@pytest.mark.parametrize(
    ("config_class", "arguments", "told"),
    [
        (FinetuneConfig, ["--val.select.fraction", ".nan"], "val.select.fraction=nan must be above 0 and at most 1"),
        (FinetuneConfig, ["--model.std", "0.2 .inf 0.2"], "model.std=[0.2, inf, 0.2] must be above 0 and at most 1"),
        (FinetuneConfig, ["--optim.lr", "1e-7"], "optim.min_lr=1e-06 is above optim.lr=1e-07"),
        (FinetuneConfig, ["--few_shot", "5", "--train.seed", f"{2**63 - 2}"], "leaves no room for seeds=3"),
        (PretrainConfig, ["--optim.blr", "nan"], "optim.blr=nan must be a finite number"),
        (PretrainConfig, ["--train.seed", f"{2**63}"], f"train.seed={2**63} must be at least 0 and at most"),
        (PretrainConfig, ["--eval.sampling_rate=-1"], "eval.sampling_rate=-1.0 must be above 0"),
        (ProbeConfig, ["--run=r", "--out=", "--data.shards=a", "--test.shards=b"], "out='' is empty: give one"),
        (ProbeConfig, ["--run=r", "--out=o", "--test.cache_gb=.nan"], "test.cache_gb=nan must be above 0"),
        (EmbedConfig, ["--run= ", "--out=o", "--data.shards=a"], "give either --run RUN or --encoder timm:NAME"),
    ],
)
def test_a_command_line_is_refused_under_the_options_name(
    config_class: type, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(config_class, arguments, prog="command", description="")
    assert end.value.code == 2
    assert told in capsys.readouterr().err


def test_a_recipe_is_held_to_the_same_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optim:\n  betas: [0.9, .nan]\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parse(PretrainConfig, ["--config", str(recipe)], prog="command", description="")
    assert "optim.betas" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["build", "--videos", ".", "--out", "out", "--fps", "nan"], "fps=nan must be above 0 and at most"),
        (["build", "--videos", ".", "--out", "out", "--quality", "0"], "quality=0 must be at least 1 and at most 100"),
        (["build", "--videos", ".", "--out", "out", "--timeout", "inf"], "timeout_s=inf must be above 0 and at most"),
        (["build", "--videos", ".", "--out", "out", "--max-gb=-1"], "max_gb=-1.0 must be above 0"),
        (["build", "--videos", ".", "--out", "out", "--scratch-gb", "nan"], "scratch_gb=nan must be above 0"),
        (["build", "--videos", ".", "--out", "out", "--max-bad-fraction", "nan"], "max_bad_fraction=nan must be at"),
        (["merge", "out", "--slices", "0"], "slices=0 must be at least 1"),
        (["split", "out", "--by", "name", "--fractions", "train=inf,val=0"], "--fractions train=inf"),
        (["split", "out", "--by", "name", "--seed", f"{2**63}"], f"seed={2**63} must be a finite number"),
        (["verify", "out", "--workers", "0"], "workers=0 must be at least 1"),
        (["report", "out", "--seed", "-1"], "seed=-1 must be at least 0"),
        (["demo", "--out", "out", "--frames", "1"], "frames=1 must be at least 2"),
    ],
)
def test_an_option_of_preprocess_is_refused_before_a_file_is_made(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert preprocess(arguments) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_seed_draws_its_own_numbers() -> None:
    """From 2^63 on NumPy rounds a list of a seed and a small number to floats, and neighbours become one."""
    seeds = [0, 1, 10**16 - 1, 10**16, 10**16 + 1, 2**53 + 1, 2**63 - 2, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
    assert len({philox(seed, Stream.ORDER).integers(2**63) for seed in seeds}) == len(seeds)
    noises = {float(mask_noise(seed=seed, epoch=0, positions=[0], views=1, tokens=1)) for seed in seeds}
    assert len(noises) == len(seeds)
    keys = [_hash_key(seed) for seed in [*seeds, int("1234567890123456", 16)]]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {16}
    with pytest.raises(OverflowError):
        philox(2**64, Stream.ORDER)


def test_seeds_of_before_draw_what_they_drew() -> None:
    old = np.random.Generator(np.random.Philox(key=[7, Stream.CROP], counter=[0, 1, 2, 3]))
    assert philox(7, Stream.CROP, epoch=3, position=2, view=1).integers(2**63) == old.integers(2**63)
    assert _hash_key(SelectConfig(seed=7).seed) == "0000000000000007"


def test_a_field_keeps_its_rule_and_its_class_its_bounds() -> None:
    @dataclass(frozen=True)
    class First:
        threads: int = bounded(free(4), least=1, hint="give some")

        def __post_init__(self) -> None:
            check_bounds(self, "first.")

    @dataclass(frozen=True)
    class Second(First):
        threads: int = 8

    assert resume_rules(First()).is_free("threads")
    assert bounds_of(Second, "threads") == Bounds(least=1, hint="give some")
    with pytest.raises(ValueError, match=r"first\.threads=0 must be at least 1; give some"):
        Second(threads=0)


def test_the_finetuned_models_bounds_are_the_classifiers() -> None:
    shared = {entry.name for entry in fields(FinetuneModelConfig)} & {entry.name for entry in fields(ClassifierConfig)}
    for name in shared:
        assert bounds_of(FinetuneModelConfig, name) == bounds_of(ClassifierConfig, name)
