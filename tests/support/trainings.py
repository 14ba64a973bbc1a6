"""Short trainings of a tiny autoencoder, with our engine and with torch alone, on the same clips and masks.

    outcomes = run_ranks(train_all, {"stage 3": Case(stage=3)}, world=2)[0]
    assert outcomes["stage 3"].losses == pytest.approx(plain_training(steps=6).losses, abs=1e-5)

Many cases share one start of the processes: an import of DeepSpeed costs seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mae3d.checkpoints import format as checkpoint
from mae3d.distributed import World
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.training.config import OptimConfig, TrainConfig
from mae3d.training.engine import Engine
from mae3d.training.optim import pretrain_groups

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
TINY = MAEConfig(preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, depth=2, decoder_depth=1, mask_ratio=0.5)
BATCH = 4
LR = 3e-3
SMALL_PARTS = {"zero_optimization": {"sub_group_size": 2000, "stage3_param_persistence_threshold": 100}}

ONE_BUCKET = {  # DeepSpeed's defaults: nothing travels before the last gradient is made
    "zero_optimization": {
        "reduce_bucket_size": 500_000_000,
        "overlap_comm": False,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
    }
}


@dataclass(frozen=True)
class Case:
    """How to train, from where, and where to leave a checkpoint."""

    stage: int = 1
    precision: str = "fp32"
    steps: range = range(6)
    accumulation: int = 1
    clip: float | None = 0.5
    ema: float = 0.0
    checkpointing: bool = False
    compiled: bool = False
    deepspeed: dict[str, Any] = field(default_factory=dict)
    poisoned: int | None = None  # the step in which the last process's loss is NaN
    load: Path | None = None
    save: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    losses: list[float]
    norms: list[float]
    skipped: int
    evaluated: float  # the loss of other clips, with the weights to use, by the first process alone
    evaluated_in_training: float  # the same clips' loss as a training step would have it, at the end
    names: tuple[str, ...]  # of the weights
    optimizer_step: int


def clips_and_noise(step: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    clips = torch.randint(0, 256, (BATCH, 4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return clips.to(device), torch.rand(BATCH, MODEL.num_tokens, generator=generator).to(device)


def optim_of(case: Case) -> OptimConfig:
    return OptimConfig(clip_grad=case.clip)


def make_engine(world: World, case: Case, *, start: Callable[[MAE], None] | None = None) -> Engine:
    torch.manual_seed(world.ranks.rank)  # what the first process has drawn is broadcast
    model = MAE(MODEL)
    if start is not None:
        start(model)
    model.set_grad_checkpointing(case.checkpointing)
    optim = optim_of(case)
    return Engine(
        model,
        pretrain_groups(model, weight_decay=optim.weight_decay),
        train=TrainConfig(
            global_batch=BATCH,
            accumulation=case.accumulation,
            zero_stage=case.stage,
            precision=case.precision,
            compile=case.compiled,
            deepspeed=case.deepspeed,
        ),
        optim=optim,
        micro_batch=BATCH // (world.ranks.size * case.accumulation),
        world=world,
        ema=case.ema,
    )


def train(world: World, case: Case) -> Outcome:
    """Takes the case's steps."""
    engine = make_engine(world, case)
    if case.load is not None:
        state = checkpoint.read_state(case.load)
        engine.load(checkpoint.SliceReader(case.load), optimizer_step=state["optimizer_step"])
    losses, norms = [], []
    for step in case.steps:
        clips, noise = (t.chunk(world.ranks.size * case.accumulation) for t in clips_and_noise(step, world.device))
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        for part in range(case.accumulation):
            mine = world.ranks.rank * case.accumulation + part
            loss = engine(clips[mine], noise[mine]).loss
            assert loss.dtype == torch.float32
            if step == case.poisoned and world.ranks.rank == world.ranks.size - 1:
                loss = loss * torch.nan
            engine.backward(loss)
            total += loss.detach() / case.accumulation
            engine.step(LR)
        losses.append(float(world.mean(total)))
        assert engine.grad_norm is not None
        norms.append(engine.grad_norm)
    if case.save is not None:
        _save(engine, case.save, world, last=case.steps[-1] + 1)
    evaluated = 0.0
    with torch.no_grad():
        in_training = float(engine(*clips_and_noise(10_000, world.device)).loss)
    with engine.evaluating() as model:
        if world.is_first:
            evaluated = float(model(*clips_and_noise(10_000, world.device)).loss)
    weights = engine.weights()
    assert all(weights[name].shape == shape for name, shape in engine.shapes.items())
    outcome = Outcome(
        losses, norms, engine.skipped_steps, evaluated, in_training, tuple(weights), engine.optimizer_step
    )
    engine.close()
    return outcome


def train_all(world: World, cases: dict[str, Case]) -> dict[str, Outcome]:
    return {name: train(world, case) for name, case in cases.items()}


def _save(engine: Engine, run: Path, world: World, *, last: int) -> None:
    checkpoint.write_rank(checkpoint.staging_folder(run, last), world.ranks.rank, engine.slices())
    world.barrier()
    if world.is_first:
        state = {"step": last, "optimizer_step": engine.optimizer_step}
        checkpoint.finish(run, last, shapes=engine.shapes, config=MODEL, state=state, kind=engine.kind)
    world.barrier()


def plain_training(
    *, steps: int, clip: float | None = 0.5, without: int | None = None, autocast: bool = False
) -> Outcome:
    """The same training with torch alone, in one process; `without` is a step that is left out."""
    torch.manual_seed(0)
    model, optim = MAE(MODEL), OptimConfig()
    plain = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in pretrain_groups(model, weight_decay=optim.weight_decay)
    ]
    adam = torch.optim.AdamW(plain, lr=LR, betas=optim.betas, eps=optim.eps)
    losses, norms, done = [], [], 0
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(*clips_and_noise(step)).loss
        adam.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip or torch.inf)))
        if step != without:
            adam.step()
            done += 1
        losses.append(loss.item())
    with torch.no_grad():
        evaluated = float(model(*clips_and_noise(10_000)).loss)
    return Outcome(losses, norms, 0, evaluated, evaluated, tuple(dict(model.named_parameters())), done)
