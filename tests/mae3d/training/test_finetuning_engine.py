"""A classifier on the engine: drop path, dropout, mixing and layer-wise rates through a checkpoint, to the last bit."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mae3d.checkpoints import format as checkpoint
from mae3d.distributed import World
from mae3d.model.classifier import Classifier, classification_loss, drop_seed
from mae3d.model.config import ClassifierConfig, MixConfig
from mae3d.training.config import OptimConfig, TrainConfig
from mae3d.training.engine import Engine
from mae3d.training.mixing import draw_mix, mix_clips, mix_targets, soft_targets
from mae3d.training.optim import finetune_groups
from mae3d.weights.files import load_classifier
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

MODEL = ClassifierConfig(
    preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, depth=2, num_classes=4, dropout=0.3, drop_path=0.2
)
MIX = MixConfig(mixup=0.8, cutmix=1.0)
OPTIM = OptimConfig(betas=(0.9, 0.999), clip_grad=5.0)
BATCH = 4


def train(world: World, steps: range, load: Path | None, save: Path | None) -> list[float]:
    """Losses of some steps of finetuning, between two checkpoints."""
    torch.manual_seed(0)
    model = Classifier(MODEL)
    engine = Engine(
        model,
        finetune_groups(model, weight_decay=OPTIM.weight_decay, layer_decay=0.75),
        train=TrainConfig(global_batch=BATCH * world.ranks.size, precision="fp32"),
        optim=OPTIM,
        micro_batch=BATCH,
        world=world,
    )
    if load is not None:
        engine.load(checkpoint.SliceReader(load), optimizer_step=checkpoint.read_state(load)["optimizer_step"])
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 4, (BATCH,), generator=generator)
        clips = (labels * 60).to(torch.uint8)[:, None, None, None, None].expand(-1, 4, 32, 32, 3).clone()
        mix = draw_mix(MIX, seed=0, step=step, rank=world.ranks.rank, height=32, width=32)
        targets = mix_targets(soft_targets(labels, num_classes=4, smoothing=0.1), mix)
        torch.manual_seed(drop_seed(0, step=step, rank=world.ranks.rank))
        loss = classification_loss(engine(mix_clips(clips, mix)), targets, multi_label=False)
        engine.backward(loss)
        engine.step(1e-3)
        losses.append(float(world.mean(loss.detach().double())))
    if save is not None:
        checkpoint.write_rank(checkpoint.staging_folder(save, len(steps)), world.ranks.rank, engine.slices())
        world.barrier()
        if world.is_first:
            state = {"step": len(steps), "optimizer_step": engine.optimizer_step}
            checkpoint.finish(save, len(steps), shapes=engine.shapes, config=MODEL, state=state)
        world.barrier()
    engine.close()
    return losses


def several(world: World, calls: list[tuple]) -> list[list[float]]:
    return [train(world, *call) for call in calls]


def test_finetuning_resumes_to_the_last_bit_and_its_checkpoint_is_a_classifier(tmp_path: Path) -> None:
    saved = checkpoint.step_folder(tmp_path, 3)
    calls = [(range(6), None, None), (range(3), None, tmp_path), (range(3, 6), saved, None)]
    uncut, before, after = run_ranks(several, calls, world=1)[0]
    assert before + after == uncut
    assert len(set(uncut)) == 6
    model = load_classifier(saved)
    assert model.config == MODEL
    torch.manual_seed(0)
    start = dict(Classifier(MODEL).named_parameters())
    moved = {name: float((p - start[name]).detach().abs().max()) for name, p in model.named_parameters()}
    # Adam moves every weight by about the rate a step, and the rate falls by 0.75 from block to block.
    first, last = moved["encoder.blocks.0.mlp.fc1.weight"], moved["encoder.blocks.1.mlp.fc1.weight"]
    assert first / last == pytest.approx(0.75, rel=0.15)
    assert moved["encoder.patch_embed.weight"] < first < last < moved["head.weight"]


def averages(world: World, stage: int, accumulation: int, folder: Path) -> tuple[float, float, float]:
    """How far the average is from one made of the masters; from itself after a checkpoint; and from the masters."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    decay, batch = 0.8, 2
    config = TrainConfig(
        global_batch=batch * accumulation * world.ranks.size, accumulation=accumulation, precision="fp32",
        zero_stage=stage,
    )  # fmt: skip

    def engine_of(seed: int) -> Engine:
        torch.manual_seed(seed)
        model = Classifier(MODEL)
        groups = finetune_groups(model, weight_decay=0.05, layer_decay=0.75)
        return Engine(model, groups, train=config, optim=OPTIM, micro_batch=batch, world=world, ema=decay)

    def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
        assert ours.keys() == theirs.keys()
        return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)

    def masters_of(engine: Engine) -> dict[str, torch.Tensor]:
        """In fp32 the module's parameters are the masters; at stage 3 they are put together for the purpose."""
        parameters = dict(engine.module.named_parameters())
        with GatheredParameters(list(parameters.values()), enabled=stage == 3):
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    engine = engine_of(0)
    expected = masters_of(engine)
    for step in range(3 * accumulation):
        clips = torch.randint(0, 255, (batch, 4, 32, 32, 3), dtype=torch.uint8)
        engine.backward(engine(clips).logsumexp(dim=1).mean())
        engine.step(1e-2)
        if (step + 1) % accumulation == 0:
            for name, master in masters_of(engine).items():
                updates = step // accumulation  # (1 + t) / (10 + t) is below the decay throughout
                expected[name].lerp_(master, 1 - (1 + updates) / (10 + updates))
    ours, masters = engine.weights(), masters_of(engine)
    with engine.evaluating() as model:
        assert not model.training
        assert distance(dict(model.named_parameters()), expected) < 1e-6
    assert engine.module.training
    checkpoint.write_rank(folder, world.ranks.rank, engine.slices())
    world.barrier()
    engine.close()
    again = engine_of(1)
    again.load(checkpoint.SliceReader(folder), optimizer_step=3)
    loaded = again.weights()
    again.close()
    return distance(ours, expected), distance(loaded, ours), distance(ours, masters)


def all_averages(world: World, cases: list[tuple[int, int]], folder: Path) -> list[tuple[float, float, float]]:
    return [averages(world, stage, parts, folder / f"{stage}") for stage, parts in cases]


@pytest.mark.parametrize(("world", "cases"), [(1, [(1, 1), (3, 1)]), (2, [(0, 2), (1, 2), (2, 1), (3, 2)])])
def test_the_moving_average_is_of_the_masters_at_steps_and_outlives_a_checkpoint(
    tmp_path: Path, world: int, cases: list[tuple[int, int]]
) -> None:
    """Stage and accumulation."""
    for results in run_ranks(all_averages, cases, tmp_path, world=world):
        for off, reloaded, from_masters in results:
            assert off < 1e-6
            assert reloaded == 0
            assert from_masters > 1e-3
    parameters = sum(parameter.numel() for parameter in Classifier(MODEL).parameters())
    for stage, _ in cases:
        written: Counter[str] = Counter()  # kind -> elements
        for path in (tmp_path / f"{stage}").glob("rank-*.safetensors"):
            for name, tensor in load_file(path).items():
                written[name.partition("|")[0]] += tensor.numel()
        assert written == dict.fromkeys(("master", "exp_avg", "exp_avg_sq", "ema"), parameters)
