"""The lean step against a plain model of the same weights: equal results, and less kept for the backward pass."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import ablation, gpu_step, step
from benchmarks.common import ROOT, Pair, saved_bytes, saved_tensors
from benchmarks.gpu_cases import Trial, run_cases
from benchmarks.gpu_table import Journal
from mae3d.model.config import MAEConfig
from mae3d.weights.convert import to_foreign
from tests.support import launch

# Scores weigh against the rest (heads x tokens over width) a little less than at the published sizes: 36 for 49.
SMALL: dict[str, Any] = {
    "preset": "mae_vit_tiny_patch16",
    "img_size": 96,
    "patch_size": 8,
    "num_frames": 8,
    "depth": 2,
    "embed_dim": 96,
    "decoder_embed_dim": 64,
    "decoder_num_heads": 4,
}


def pair(*, batch: int = 1, precision: str = "fp32", **settings: Any) -> Pair:
    return Pair(MAEConfig(**(SMALL | settings)), batch=batch, device="cpu", precision=precision)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.detach() - b.detach()).abs().max() / b.detach().abs().max()).item()


@pytest.mark.parametrize("settings", [{}, {"norm_pix_loss": False, "pred_t_dim": 8}, {"qkv_bias": False}])
def test_loss_and_gradients_are_the_plain_models(settings: dict[str, Any]) -> None:
    both = pair(batch=2, **settings)
    lean, plain = both.lean_loss(), both.plain_loss()
    assert relative(lean, plain) < 1e-6
    lean.backward()
    plain.backward()
    grads = {name: p.grad for name, p in both.lean.named_parameters() if p.grad is not None}
    ours = to_foreign(grads, both.lean.config, format="mae_st")
    theirs = {name: p.grad for name, p in both.plain.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    # A key's bias does not move a softmax: its gradient is rounding alone.
    assert max(relative(ours[name], theirs[name]) for name in ours if not name.endswith(".k.bias")) < 1e-4


@pytest.mark.parametrize("precision", ["bf16", "cast"])
def test_bf16_losses_are_the_plain_models(precision: str) -> None:
    both = pair(batch=2, precision=precision)
    assert relative(both.lean_loss(), both.plain_loss()) < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_of_a_clip_is_less_than_half_and_no_scores(precision: str) -> None:
    kept = {}
    for name in ("lean", "plain"):
        one, two = (pair(batch=batch, precision=precision) for batch in (1, 2))
        kept[name] = [saved_bytes(getattr(p, f"{name}_loss"), getattr(p, name)) for p in (one, two)]
    lean, plain = (after - before for before, after in kept.values())
    assert 0 < lean <= 0.45 * plain
    tokens = one.lean.config.num_tokens + 1
    scores = [tensor.shape for tensor in saved_tensors(one.lean_loss, one.lean) if tensor.shape[-2:].count(tokens) == 2]
    assert scores == []
    assert any(tensor.shape[-2:].count(tokens) == 2 for tensor in saved_tensors(one.plain_loss, one.plain))


@pytest.mark.parametrize("without", ablation.TAKE_BACK.values(), ids=lambda context: context.__name__)
def test_taking_a_trick_back_changes_the_work_but_not_the_loss(without: Callable[..., Any]) -> None:
    both = pair()
    before = [tuple(t.shape) for t in saved_tensors(both.lean_loss, both.lean)]
    loss = both.lean_loss()
    with without():
        assert relative(both.lean_loss(), loss) < 1e-6
        assert [tuple(t.shape) for t in saved_tensors(both.lean_loss, both.lean)] != before or without in (
            ablation.every_patch_a_target,  # made without gradients
            ablation.clips_normalised_whole,
        )
    assert [tuple(t.shape) for t in saved_tensors(both.lean_loss, both.lean)] == before


@pytest.mark.slow
def test_comparing_prints_ratios(capsys: pytest.CaptureFixture) -> None:
    small = ["--size", "tiny", "--img-size", "64", "--frames", "4", "--device", "cpu", "--rounds", "1"]
    step.main(["compare", "--precision", "fp32", *small])  # too small to be fast
    assert "as fast as plain" in (told := capsys.readouterr().out)
    assert "0.0e+00 apart" in told or "e-0" in told
    assert step.main(["memory", "--precision", "fp32", *small]) in (0, 1)
    assert "MB a clip" in capsys.readouterr().out


@pytest.mark.soak
def test_the_engines_figures_are_printed_on_the_cpu() -> None:
    small = ["--size", "tiny", "--img-size", "64", "--frames", "4", "--device", "cpu", "--rounds", "1", "--steps", "1"]
    command = [sys.executable, "benchmarks/step.py", "mfu", *small]
    done = launch.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("mfu: CPU")
    assert any("clips/s" in line and "optimizer" in line for line in lines)
    # Of a step's own code nothing reads a value; DeepSpeed asks whether the gradient's norm is finite.
    waits = [line for line in lines if line.startswith("  ")]
    assert waits
    assert all("deepspeed" in line for line in waits)


@pytest.mark.slow
def test_sections_of_a_gpu_without_the_engine_have_figures_on_a_cpu(tmp_path: Path) -> None:
    rows = {}
    for cases in (gpu_step.attention, gpu_step.plain):
        journal = Journal.of(tmp_path, cases.__name__)
        run_cases(cases(Trial("cpu", tmp_path)), journal, seconds=60)
        rows |= {row["case"]: row for row in journal.rows}
    assert [row for row in rows.values() if "error" in row] == []
    assert rows["2 heads of 32, MATH"]["with backward, TFLOP/s"] > 0
    assert rows["tiny, fp32"]["losses apart"] < 1e-6


@pytest.mark.parametrize(("room", "largest"), [(100, 96), (64, 64), (150, 144), (5, 4), (1, 1)])
def test_the_largest_batch_is_found_with_an_engine_that_no_failed_step_has_used(
    room: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import step_engine

    @contextmanager
    def stepping(*_: Any, **__: Any) -> Iterator[Callable[[int], None]]:
        failed = []

        def step(samples: int) -> None:
            assert not failed, "a step that ran out of memory may leave its engine undone"
            if samples > room:
                failed.append(samples)
                raise torch.OutOfMemoryError

        yield step

    monkeypatch.setattr(step_engine, "stepping", stepping)
    monkeypatch.setattr(step_engine, "synthetic", lambda config, samples, device: samples)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    options = gpu_step.settings(Trial("cpu", Path()), "tiny")
    world: Any = SimpleNamespace(device=torch.device("cpu"))
    assert step_engine.largest_batch(options, world) == largest


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert step.main(["memory", "--device", "cuda"]) == 2
    assert capsys.readouterr().out.startswith("no GPU that torch can use")
