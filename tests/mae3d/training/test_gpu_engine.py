"""The engine on a real GPU, where it differs from the CPU's: NCCL, FusedAdam, SDPA, autocast, pinned checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints.snapshot import Snapshot
from mae3d.distributed import World, start_world
from mae3d.training.config import OptimConfig
from mae3d.training.engine import make_adamw
from tests.support.trainings import Case, make_engine, plain_training, train

pytestmark = pytest.mark.gpu

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


@pytest.fixture(scope="module")
def started() -> Iterator[World]:
    """Yield a single rank on the GPU; DeepSpeed keeps to the first process group that it sees."""
    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHERS:
            patch.setenv(name, "")  # restored afterwards: start_world sets them
            patch.delenv(name)
        world = start_world("cuda")
        yield world
        world.close()


@pytest.fixture
def world(started: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return the rank, with the variables that tests/conftest.py takes away before each test."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", str(started.device.index or 0))):
        monkeypatch.setenv(name, value)
    return started


@pytest.mark.parametrize(
    ("stage", "precision", "tolerance"),
    [*((stage, "fp32", 1e-4) for stage in range(4)), (1, "bf16", 2e-2), (1, "autocast", 2e-2)],
)
def test_a_gpu_trains_as_torch_does_on_a_cpu(world: World, stage: int, precision: str, tolerance: float) -> None:
    outcome = train(world, Case(stage=stage, precision=precision))
    assert outcome.losses == pytest.approx(plain_training(steps=6).losses, rel=tolerance)
    assert outcome.skipped == 0
    assert outcome.evaluated == pytest.approx(outcome.evaluated_in_training, rel=1e-3)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_a_gpus_checkpoint_goes_on_in_another_stage(world: World, tmp_path: Path, before: int, after: int) -> None:
    uncut = train(world, Case(stage=before))
    train(world, Case(stage=before, steps=range(3), save=tmp_path))
    again = train(world, Case(stage=after, steps=range(3, 6), load=checkpoint.step_folder(tmp_path, 3)))
    assert again.losses == pytest.approx(uncut.losses[3:], rel=1e-4)
    assert again.optimizer_step == uncut.optimizer_step == 6


def test_fused_adam_steps_as_torchs_does() -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    starts = [torch.randn(size, device=gpu) for size in (1, 1023, 70_001)]
    adams = []
    for build in (make_adamw, lambda groups, optim, device: torch.optim.AdamW(groups, 0.0, optim.betas, optim.eps)):
        groups: Any = [{"params": [start.clone().requires_grad_()], "weight_decay": 0.05} for start in starts]
        adams.append(build(groups, OptimConfig(), device=gpu))
    for step in range(5):
        gradients = [torch.randn_like(start) for start in starts]
        for adam in adams:
            for group, gradient in zip(adam.param_groups, gradients, strict=True):
                group["lr"] = 1e-2 * (step + 1)
                group["params"][0].grad = gradient.clone()
            adam.step()
    for ours, theirs in zip(*(adam.param_groups for adam in adams), strict=True):
        torch.testing.assert_close(ours["params"][0], theirs["params"][0], rtol=1e-5, atol=1e-6)


def test_the_slices_of_a_checkpoint_are_those_of_the_step_however_long_their_copies_take(world: World) -> None:
    engine, snapshot = make_engine(world, Case()), Snapshot()
    a = torch.randn(4096, 4096, device=world.device)
    for _ in range(2):
        slices = list(engine.slices())
        expected = [slice_.tensors["master"].clone() for slice_ in slices]
        for _ in range(50):  # the copies have to wait for these
            a = (a @ a).tanh()
        copies = snapshot.take(slices)
        for slice_ in slices:
            slice_.tensors["master"].add_(1)  # as the next step does
        snapshot.wait()
        for copy, values in zip(copies, expected, strict=True):
            assert torch.equal(copy.tensors["master"], values)
    assert snapshot._pinned
    snapshot.close()
    engine.close()
