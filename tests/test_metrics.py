"""FLOPs against torch's counter, and running sums that a cut does not change."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mae3d.config import MAEConfig
from mae3d.mae import MAE
from mae3d.metrics import Meter, memory_estimate, step_flops


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_pix_loss": False, "pred_t_dim": 8},
        {"cls_embed": False, "mask_ratio": 0.5},
        {"mlp_ratio": 2.0},
        {"decoder_mask_ratio": 0.5},
    ],
)
def test_flops_are_those_that_torch_counts(options: dict) -> None:
    config = MAEConfig(preset="mae_vit_tiny_patch16", img_size=64, num_frames=8, depth=2, **options)
    clip = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        MAE(config)(clip, torch.rand(2, config.num_tokens)).loss.backward()
    assert step_flops(config) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_the_published_sizes_cost_what_the_reference_counts() -> None:
    # reference: 261.5 and 469.5 GFLOP a clip with the last block's work on hidden tokens only, 272.5 and 482.7 without
    # and with every patch embedded.
    for preset, least, most in (("mae_vit_base_patch16", 261.5, 272.5), ("mae_vit_large_patch16", 469.5, 482.7)):
        assert least < step_flops(MAEConfig(preset=preset)) / 1e9 < most


class OneProcess:
    """A World of one, without a process group."""

    device = torch.device("cpu")
    place = SimpleNamespace(size=1)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def total(self, count: int) -> int:
        return count


def meter() -> Meter:
    return Meter(OneProcess(), clips_per_step=8, flops_per_clip=1.0)  # type: ignore[arg-type]


def test_an_interval_cut_anywhere_gives_the_same_loss() -> None:
    losses = torch.rand(50)
    whole = meter()
    for loss in losses:
        whole.add(loss)
    first, second = meter(), meter()
    for loss in losses[:23]:
        first.add(loss)
    second.load_state_dict(first.state_dict(), counts={})
    for loss in losses[23:]:
        second.add(loss)
    row = second.row()
    assert row["loss"] == whole.row()["loss"] == pytest.approx(losses.double().mean().item(), abs=1e-12)
    assert row["mfu"] is None  # no peak is known for a CPU
    for loss in losses[:2]:
        second.add(loss)
    assert second.row()["loss"] == pytest.approx(losses[:2].mean().item())  # the interval before is forgotten


def test_speed_and_waiting_are_measured_over_the_interval() -> None:
    measured = meter()
    with measured.waiting():
        pass
    measured.add(torch.tensor(1.0))
    measured.stepped()
    row = measured.row()
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
    assert alone[1] / 8 == pytest.approx(267e6, rel=0.3)  # measured for ViT-L (reference/performance.md)


def test_counts_go_on_from_those_of_the_part_before() -> None:
    first, second = meter(), meter()
    assert first.totals({"substituted": 3}) == {"substituted": 3}
    second.load_state_dict(first.state_dict(), counts=first.totals({"substituted": 3}))
    assert second.totals({"substituted": 2, "read_retries": 1}) == {"substituted": 5, "read_retries": 1}
    assert second.totals({"substituted": 4, "read_retries": 1}) == {"substituted": 7, "read_retries": 1}
