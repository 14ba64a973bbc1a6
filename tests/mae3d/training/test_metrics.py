"""FLOPs against torch's counter, and running sums that a cut does not change."""

import json
import math
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.training.metrics import Meter, memory_estimate, peak_flops, step_flops


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_pix_loss": False, "pred_t_dim": 8},
        {"cls_embed": False, "mask_ratio": 0.5},
        {"mlp_ratio": 2.0},
        {"decoder_mask_ratio": 0.5},
        {"decoder_cls": "encoder", "decoder_depth": 1},
        {"decoder_depth": 0},
    ],
)
def test_flops_are_those_that_torch_counts(options: dict) -> None:
    config = MAEConfig(**{"preset": "mae_vit_tiny_patch16", "img_size": 64, "num_frames": 8, "depth": 2} | options)
    clip = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8)
    # Fused attention computes its scores again in the backward pass; by custom MFU does not count that.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        MAE(config)(clip, torch.rand(2, config.num_tokens)).loss.backward()
    assert step_flops(config) == counter.get_total_flops() / 2


def test_the_published_sizes_cost_what_the_reference_counts() -> None:
    # reference: 261.5 and 469.5 GFLOP a clip with the last block's work on hidden tokens only, 272.5 and 482.7 without
    # and with every patch embedded.
    for preset, least, most in (("mae_vit_base_patch16", 261.5, 272.5), ("mae_vit_large_patch16", 469.5, 482.7)):
        assert least < step_flops(MAEConfig(preset=preset)) / 1e9 < most


class OneProcess:
    """A World of one, without a process group."""

    device = torch.device("cpu")
    ranks = SimpleNamespace(size=1)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def total(self, count: int) -> int:
        return count


def meter() -> Meter:
    return Meter(OneProcess(), clips_per_step=8, flops_per_clip=1.0)  # type: ignore[arg-type]


def run(meter: Meter, losses: Iterable[Tensor]) -> None:
    for loss in losses:
        meter.add(loss)
        meter.stepped()


def test_an_interval_cut_anywhere_gives_the_same_loss() -> None:
    losses = torch.rand(50)
    whole = meter()
    run(whole, losses)
    first, second = meter(), meter()
    run(first, losses[:23])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())), counts={})
    run(second, losses[23:])
    (row, each), (uncut, _) = second.row(), whole.row()
    assert row["loss"] == uncut["loss"] == pytest.approx(losses.double().mean().item(), abs=1e-12)
    assert each == losses.double().tolist()
    assert row["mfu"] is None  # no peak is known for a CPU
    run(second, losses[:2])
    assert second.row()[0]["loss"] == pytest.approx(losses[:2].mean().item())  # the interval before is forgotten


def test_a_step_is_the_mean_of_its_micro_batches_and_one_that_is_not_finite_is_left_out() -> None:
    measured = meter()
    for micro in (1.0, 3.0, math.nan, 5.0):
        measured.add(torch.tensor(micro))
        if micro != 1.0:
            measured.stepped()
    row, each = measured.row()
    assert row["loss"] == 3.5
    assert each[0] == 2.0
    assert math.isnan(each[1])
    assert each[2] == 5.0
    run(measured, [torch.tensor(math.inf)])
    assert math.isnan(measured.row()[0]["loss"])


def test_speed_and_waiting_are_measured_over_the_interval() -> None:
    measured = meter()
    with measured.waiting():
        pass
    run(measured, [torch.tensor(1.0)])
    row, _ = measured.row()
    assert row["clips_per_s"] > 0
    assert 0 <= row["data_wait"] < 1


def test_memory_falls_with_sharing_and_checkpointing() -> None:
    config = MAEConfig(preset="mae_vit_large_patch16")
    common = {"parameters": 317_731_584, "clips": 8, "bf16": True}
    alone = memory_estimate(config, zero_stage=1, world=1, checkpointing=False, **common)
    shared = memory_estimate(config, zero_stage=1, world=8, checkpointing=True, **common)
    assert alone[0] / 317_731_584 == 16  # bf16 weights and gradients, fp32 master and two moments
    assert shared[0] < alone[0] / 2
    assert shared[1] < alone[1] / 10
    assert alone[1] / 8 == pytest.approx(267e6, rel=0.3)  # bytes per clip, measured for ViT-L under autocast


def test_counts_go_on_from_those_of_the_part_before() -> None:
    first, second = meter(), meter()
    assert first.totals({"substituted": 3}) == {"substituted": 3}
    second.load_state_dict(first.state_dict(), counts=first.totals({"substituted": 3}))
    assert second.totals({"substituted": 2, "read_retries": 1}) == {"substituted": 5, "read_retries": 1}
    assert second.totals({"substituted": 4, "read_retries": 1}) == {"substituted": 7, "read_retries": 1}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_that_of_the_gpu_as_it_is_built_in(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda")) == peak
