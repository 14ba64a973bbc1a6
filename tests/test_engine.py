"""DeepSpeed against plain torch, and its slices through a checkpoint into every other layout."""

from pathlib import Path

import pytest
import torch

from mae3d import checkpoint
from mae3d.config import MAEConfig
from mae3d.distributed import World
from mae3d.engine import Engine
from mae3d.mae import MAE
from mae3d.optim import pretrain_groups
from mae3d.train_config import OptimConfig, TrainConfig
from tests.ranks import run_ranks

MODEL = MAEConfig(
    preset="mae_vit_tiny_patch16",
    img_size=32,
    num_frames=4,
    patch_size=8,
    embed_dim=24,
    depth=2,
    num_heads=2,
    decoder_embed_dim=20,  # the last partition ends in padding
    decoder_depth=1,
    decoder_num_heads=2,
    mask_ratio=0.75,
)
OPTIM = OptimConfig(clip_grad=0.5)
BATCH = 4
LR = 3e-3


def clips_and_noise(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    clips = torch.randint(0, 256, (BATCH, 4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return clips, torch.rand(BATCH, MODEL.num_tokens, generator=generator)


def make_engine(world: World, *, stage: int, precision: str, accumulation: int = 1) -> Engine:
    torch.manual_seed(0)
    model = MAE(MODEL)
    return Engine(
        model,
        pretrain_groups(model, weight_decay=OPTIM.weight_decay),
        train=TrainConfig(global_batch=BATCH, accumulation=accumulation, zero_stage=stage, precision=precision),
        optim=OPTIM,
        micro_batch=BATCH // (world.place.size * accumulation),
        world=world,
    )


def train(
    world: World, stage: int, precision: str, steps: range, load: Path | None, save: Path | None, accumulation: int = 1
) -> list[float]:
    """Losses of some steps, between two checkpoints."""
    engine = make_engine(world, stage=stage, precision=precision, accumulation=accumulation)
    if load is not None:
        state = checkpoint.read_state(load)
        engine.load(checkpoint.SliceReader(load), optimizer_step=state["optimizer_step"])
    losses = []
    for step in steps:
        clips, noise = (t.chunk(world.place.size * accumulation) for t in clips_and_noise(step))
        total = torch.zeros((), dtype=torch.float64)
        for part in range(accumulation):
            mine = world.place.rank * accumulation + part
            loss = engine(clips[mine], noise[mine]).loss
            engine.backward(loss)
            total += loss.detach() / accumulation
            engine.step(LR)
        losses.append(float(world.mean(total)))
    if save is not None:
        last = steps[-1] + 1
        checkpoint.write_rank(checkpoint.staging_folder(save, last), world.place.rank, engine.slices())
        world.barrier()
        if world.is_first:
            state = {"step": last, "optimizer_step": engine.optimizer_step}
            checkpoint.finish(save, last, shapes=engine.shapes, config=MODEL, state=state)
        world.barrier()
    assert engine.skipped_steps == 0
    engine.close()
    return losses


def several(world: World, calls: list[tuple]) -> list[list[float]]:
    """Several trainings one after the other in one process: an import of DeepSpeed costs seconds."""
    return [train(world, *call) for call in calls]


def plain_losses(steps: int) -> list[float]:
    """The same training with torch alone."""
    torch.manual_seed(0)
    model = MAE(MODEL)
    groups = pretrain_groups(model, weight_decay=OPTIM.weight_decay)
    plain = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
    adam = torch.optim.AdamW(plain, lr=LR, betas=OPTIM.betas, eps=OPTIM.eps)
    losses = []
    for step in range(steps):
        loss = model(*clips_and_noise(step)).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_grad)
        adam.step()
        losses.append(loss.item())
    return losses


def test_fault_33_stages_processes_and_accumulation_equal_torch_and_each_other_through_checkpoints(
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    half, end = 4, 8
    expected = plain_losses(end)
    first, second = range(half), range(half, end)

    two_ranks = [(1, "fp32", range(end), None, None), (1, "fp32", first, None, two), (2, "fp32", first, None, None, 2)]
    uncut, before_cut, accumulated = run_ranks(several, two_ranks, world=2)[0]
    saved_by_two = checkpoint.step_folder(two, half)
    one_rank = [
        (1, "fp32", first, None, one),
        (1, "fp32", second, saved_by_two, None),
        (2, "fp32", second, saved_by_two, None),
        (0, "fp32", second, saved_by_two, None),
    ]
    on_one, *after_two = run_ranks(several, one_rank, world=1)[0]
    same_world, one_to_two = run_ranks(
        several,
        [(1, "fp32", second, saved_by_two, None), (1, "fp32", second, checkpoint.step_folder(one, half), None)],
        world=2,
    )[0]

    assert uncut == pytest.approx(expected, abs=1e-5)
    assert accumulated == pytest.approx(expected[:half], abs=1e-5)
    assert on_one == pytest.approx(expected[:half], abs=1e-5)
    assert before_cut + same_world == uncut  # to the last bit: same world, same sums
    for losses in (*after_two, one_to_two):
        assert losses == pytest.approx(expected[half:], abs=1e-5)
    assert expected[-1] < expected[0]  # the steps did something


def test_bf16_keeps_fp32_masters_and_resumes(tmp_path: Path) -> None:
    half, end = 4, 8
    saved = checkpoint.step_folder(tmp_path, half)
    calls = [
        (1, "bf16", range(end), None, None),
        (1, "bf16", range(half), None, tmp_path),
        (1, "bf16", range(half, end), saved, None),
    ]
    uncut, _, resumed = run_ranks(several, calls, world=1)[0]
    assert uncut == pytest.approx(plain_losses(end), abs=2e-2)
    assert resumed == pytest.approx(uncut[half:], abs=1e-3)
    reader = checkpoint.SliceReader(saved)
    master = reader.whole("encoder.blocks.0.attn.qkv.weight", "master")
    assert not torch.equal(master, master.bfloat16().float())
