"""AdamW's count of steps wherever optimizers keep it, the fall-back where FusedAdam is missing, fp32 under autocast."""

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae3d.model.mae import MAE
from mae3d.training.config import OptimConfig
from mae3d.training.engine import make_adamw
from mae3d.training.zero import count_steps, make_layout, moments, start_state
from tests.support.trainings import MODEL, clips_and_noise


def deepspeeds_fused_adam() -> Any:
    """Return DeepSpeed's FusedAdam from its file, over a kernel that a CPU can run; an import would take seconds."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "ops" / "adam" / "fused_adam.py").read_text(encoding="utf-8")
    names = {
        "torch": torch,
        "FusedAdamBuilder": lambda: SimpleNamespace(load=lambda: SimpleNamespace(multi_tensor_adam=adam_kernel)),
        "get_accelerator": lambda: SimpleNamespace(IntTensor=torch.IntTensor),
        "multi_tensor_applier": lambda kernel, *arguments: kernel(65536, *arguments),
    }
    exec(text[text.index("class FusedAdam") :], names)
    return names["FusedAdam"]


@torch.no_grad()
def adam_kernel(
    chunk: int,
    overflow: Tensor,
    lists: list[list[Tensor]],
    lr: float,
    first: float,
    second: float,
    eps: float,
    step: int,
    adam_w: int,
    corrected: int,
    decay: float,
) -> None:
    """Step as csrc/adam/multi_tensor_adam.cu does: one count of steps for all tensors of the lists."""
    assert (adam_w, corrected) == (1, 1)
    for gradient, p, exp_avg, exp_avg_sq in zip(*lists, strict=True):
        exp_avg.lerp_(gradient, 1 - first)
        exp_avg_sq.lerp_(gradient.square(), 1 - second)
        p.mul_(1 - lr * decay)
        root = (exp_avg_sq / (1 - second**step)).sqrt() + eps
        p.addcdiv_(exp_avg, root, value=-lr / (1 - first**step))


FusedAdam = deepspeeds_fused_adam()


class FakeGroupAdam(FusedAdam):  # type: ignore[misc, valid-type]
    """Keeps `step` with the group and nowhere else, as Apex's FusedAdam and older ones of DeepSpeed's do."""

    def step(self, closure: Any = None) -> None:
        counts = [group.get("step", 0) for group in self.param_groups]
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    self.state[p]["step"] = group["step"]
        super().step()
        for group, count in zip(self.param_groups, counts, strict=True):
            group["step"] = count + 1
            for p in group["params"]:
                del self.state[p]["step"]


def optimizers() -> list[type[torch.optim.Optimizer]]:
    return [torch.optim.AdamW, FusedAdam, FakeGroupAdam]


@pytest.mark.parametrize("kind", optimizers())
def test_steps_are_counted_and_taken_up_wherever_an_optimizer_keeps_them(kind: Any) -> None:
    torch.manual_seed(0)
    model, again = nn.Linear(3, 2), nn.Linear(3, 2)
    adam = kind(model.parameters(), lr=0.1)
    assert count_steps(adam) == 0

    def step(model: nn.Module, adam: torch.optim.Optimizer, seed: int) -> None:
        adam.zero_grad()
        model(torch.full((1, 3), float(seed + 1))).sum().square().backward()
        adam.step()

    for seed in range(3):
        step(model, adam, seed)
    assert count_steps(adam) == 3

    again.load_state_dict(model.state_dict())
    second = kind(again.parameters(), lr=0.1)
    layout = make_layout(0, None, dict(again.named_parameters()), rank=0)
    start_state(second, layout, steps=count_steps(adam))
    for theirs, ours in zip(model.parameters(), again.parameters(), strict=True):
        for name, moment in moments(second, ours).items():
            moment.copy_(moments(adam, theirs)[name])
    assert count_steps(second) == 3
    for seed in (3, 4):
        step(model, adam, seed)
        step(again, second, seed)
    assert count_steps(second) == 5
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("message", ["Error building extension\nnvcc: fatal error: no such architecture", ""])
def test_fault_24_where_fused_adam_cannot_be_built_torch_steps_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, message: str
) -> None:
    class Unbuildable:
        def __init__(self, *_: Any, **__: Any):
            raise OSError(message)

    fake = ModuleType("deepspeed.ops.adam")
    fake.FusedAdam = Unbuildable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", fake)
    groups: Any = [{"params": [nn.Parameter(torch.zeros(2))], "names": ["p"], "weight_decay": 0.1, "lr_scale": 0.5}]
    with caplog.at_level(logging.WARNING):
        adam = make_adamw(groups, OptimConfig(), device=torch.device("cuda"))
    assert isinstance(adam, torch.optim.AdamW)
    (record,) = caplog.records
    assert "torch's fused AdamW takes its place" in record.message
    assert "\n" not in record.message
    assert (message.splitlines() or ["OSError"])[-1] in record.message
    assert adam.param_groups[0]["lr_scale"] == 0.5


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_targets_and_loss_stay_in_fp32_under_autocast(norm_pix_loss: bool) -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    model = MAE(replace(MODEL, norm_pix_loss=norm_pix_loss))
    clips, noise = clips_and_noise(0)
    ids = noise.argsort(dim=1)[:, model.config.num_kept :]
    prediction = torch.randn(*ids.shape, 8 * 8 * 3).bfloat16()
    expected, targets = model.loss(clips, prediction, ids), model.targets(clips, ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.targets(clips, ids), targets)
        assert torch.equal(model.loss(clips, prediction, ids), expected)
        whole = model(clips, noise)
    assert whole.loss.dtype == torch.float32
    assert whole.pred.dtype == torch.bfloat16  # autocast was on
