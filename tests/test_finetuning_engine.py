"""A classifier on the engine: drop path, dropout, mixing and layer-wise rates through a checkpoint, to the last bit."""

from pathlib import Path

import pytest
import torch

from mae3d import checkpoint
from mae3d.classifier import Classifier, classification_loss, drop_seed
from mae3d.config import ClassifierConfig, MixConfig
from mae3d.distributed import World
from mae3d.engine import Engine
from mae3d.mixing import draw_mix, mix_clips, mix_targets, soft_targets
from mae3d.optim import finetune_groups
from mae3d.train_config import OptimConfig, TrainConfig
from mae3d.weights import load_classifier
from tests.ranks import run_ranks

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
        train=TrainConfig(global_batch=BATCH * world.place.size, precision="fp32"),
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
        mix = draw_mix(MIX, seed=0, step=step, rank=world.place.rank, height=32, width=32)
        targets = mix_targets(soft_targets(labels, num_classes=4, smoothing=0.1), mix)
        torch.manual_seed(drop_seed(0, step=step, rank=world.place.rank))
        loss = classification_loss(engine(mix_clips(clips, mix)), targets, multi_label=False)
        engine.backward(loss)
        engine.step(1e-3)
        losses.append(float(world.mean(loss.detach().double())))
    if save is not None:
        checkpoint.write_rank(checkpoint.staging_folder(save, len(steps)), world.place.rank, engine.slices())
        world.barrier()
        if world.is_first:
            shapes = {name: parameter.shape for name, parameter in engine.module.named_parameters()}
            state = {"step": len(steps), "optimizer_step": engine.optimizer_step}
            checkpoint.finish(save, len(steps), shapes=shapes, config=MODEL, state=state)
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
