"""`train.precision auto`: what is faster here, decided once for a run and on rank 0 for all."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from launch.training import precision
from launch.training.precision import agreed_precision, bf16_gain, has_bf16
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.tracking.run_dir import Run
from mae3d.training.config import TrainConfig
from mae3d.training.engine import Engine

MODEL = MAEConfig(preset="mae_vit_tiny_patch16", num_frames=4, img_size=64)


def no_trial(model: object) -> float:
    raise AssertionError("nothing may be tried here")


def world(device: str = "cpu", *, first: bool = True, of_first: tuple[Any, ...] = ()) -> Any:
    """Return a rank's view; one that is not the first gets `of_first`, rank 0's answers, in turn."""
    answers = iter(of_first)
    on_first: Callable[[Any], Any] = (lambda call: call()) if first else (lambda call: next(answers))
    share: Callable[[Any], Any] = (lambda value: value) if first else (lambda value: next(answers))
    return SimpleNamespace(device=torch.device(device), is_first=first, on_first=on_first, share=share, any=bool)


def run_begun_with(folder: Path, stored: str | None) -> Run:
    if stored:
        (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"precision": stored}}))
    return Run(folder)


@pytest.mark.parametrize(
    ("given", "stored", "bf16", "gain", "choice", "said"),
    [
        ("auto", None, True, 1.5, "bf16", "precision auto: bf16, bf16 is 1.50 times as fast as fp32 here"),
        ("auto", None, True, 0.4, "fp32", "precision auto: fp32, bf16 is 0.40 times as fast"),
        ("auto", None, True, 1.05, "fp32", "1.05"),  # too little for less exact sums
        ("auto", None, False, None, "fp32", "no instructions for bf16"),
        ("auto", "fp32", True, None, "fp32", ""),  # kept, though bf16 might win now
        ("auto", "bf16", False, None, "bf16", ""),
        ("auto", "autocast", True, None, "autocast", ""),
        ("bf16", None, False, None, "bf16", ""),
        ("fp32", "bf16", True, None, "fp32", ""),  # refused where config.yaml is compared
    ],
)
def test_a_new_run_takes_the_faster_one_and_a_begun_one_keeps_its_own(
    given: Any, stored: str | None, bf16: bool, gain: float | None, choice: str, said: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(precision, "has_bf16", lambda: bf16)
    monkeypatch.setattr(precision, "bf16_gain", no_trial if gain is None else lambda model: gain)
    train = agreed_precision(TrainConfig(precision=given), MODEL, run_begun_with(tmp_path, stored), world())
    assert train == TrainConfig(precision=choice)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert said in out
    assert bool(said) == bool(out)


def test_other_ranks_take_rank_0s_choice_and_neither_try_nor_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda: pytest.fail("rank 0 looks"))
    monkeypatch.setattr(precision, "bf16_gain", no_trial)
    for of_first, choice in (((None, True, 1.5), "bf16"), ((None, True, 0.5), "fp32"), (("autocast",), "autocast")):
        train = agreed_precision(TrainConfig(), MODEL, Run(tmp_path), world(first=False, of_first=of_first))
        assert train.precision == choice
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("supported", "choice"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_takes_bf16_only_if_it_has_it_itself(
    supported: bool, choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_gain", no_trial)
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert agreed_precision(TrainConfig(), MODEL, Run(tmp_path), world("cuda")).precision == choice
    unsharded = agreed_precision(TrainConfig(zero_stage=0), MODEL, Run(tmp_path), world("cuda"))
    assert unsharded.precision == "fp32"  # the only one there


def test_instructions_are_read_as_whole_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    assert not has_bf16()  # no such file
    for line, has in (
        ("flags : fpu avx512f avx512_bf16 vnni", True),
        ("flags : fpu amx_bf16 amx_tile", True),
        ("Features : fp asimd i8mm bf16", True),
        ("flags : fpu avx512f avx512_vnni no_bf16_here", False),
    ):
        (tmp_path / "cpuinfo").write_text(line + "\n")
        assert has_bf16() == has


def test_the_gain_weighs_each_kind_of_block_by_its_number_and_takes_shortest_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    slow = {"first": 50.0}  # kernels are made at the first call of each

    def step_of(kind: Any, dtype: torch.dtype) -> Callable[[], None]:
        seconds = 0.01 * kind.width * (1.0 if dtype == torch.float32 else 0.5 if kind.tokens > 9 else 2.0)
        calls = 0

        def step() -> None:
            nonlocal now, calls
            now += seconds * (slow["first"] if calls == 0 else 3.0 if calls == 2 else 1.0)
            calls += 1

        return step

    monkeypatch.setattr(precision, "_step_of", step_of)
    model = MAEConfig(
        preset="mae_vit_tiny_patch16", num_frames=4, img_size=64, embed_dim=6, num_heads=1, depth=5,
        decoder_embed_dim=12, decoder_num_heads=1, decoder_depth=2, mask_ratio=0.75,
    )  # fmt: skip
    assert (model.num_kept, model.num_tokens) == (8, 32)
    assert bf16_gain(model, clock=lambda: now) == pytest.approx((5 * 6 + 2 * 12) / (5 * 6 * 2 + 2 * 12 * 0.5))
    encoder = {name: getattr(model, name) for name in ("embed_dim", "num_heads", "depth", "num_frames", "img_size")}
    assert bf16_gain(ClassifierConfig(**encoder), clock=lambda: now) == pytest.approx(2.0)  # all tokens, no decoder


def test_the_trial_of_a_small_model_is_real_and_leaves_the_weights_to_come_alone() -> None:
    assert 0.01 < bf16_gain(MODEL) < 100


def test_an_engine_refuses_what_the_commands_have_not_decided() -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match=r"train\.precision=auto.*bf16, autocast or fp32"):
        Engine(nothing, [], train=TrainConfig(), optim=nothing, micro_batch=1, world=nothing)
