"""Finetunings of a very small model on fourteen samples: their settings, their start, and what they logged."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from launch.finetune import finetune
from launch.training.config import FinetuneConfig, FinetuneDataConfig, FinetuneModelConfig, ValConfig
from mae3d.distributed import World
from mae3d.model.config import MAEConfig, MixConfig
from mae3d.model.mae import MAE
from mae3d.tracking.config import LogConfig
from mae3d.tracking.run_dir import read_metrics
from mae3d.training.config import FinetuneOptimConfig, RunConfig, TrainConfig
from mae3d.weights.files import save_model
from pipelines.config import SelectConfig
from pipelines.samples.corpus import corpus_of
from tests.support.datasets import SAMPLES

MAE_CONFIG = MAEConfig(
    preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, embed_dim=24, depth=2, num_heads=2,
    decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.75,
)  # fmt: skip
NAMES = [name for name, *_ in SAMPLES]
STEPS = 9  # of 10 samples, 3 steps an epoch


def pretrained_model(folder: Path) -> Path:
    torch.manual_seed(1)
    path = folder / "model.safetensors"
    save_model(MAE(MAE_CONFIG), path)
    return path


def settings(folder: Path, shards: Path, model: Path) -> FinetuneConfig:
    """Everything that draws or averages is on; ten samples to train on and four others to validate on."""
    for name, chosen in (("train", NAMES[:10]), ("val", NAMES[10:])):
        (folder / name).write_text("\n".join(chosen))
    return FinetuneConfig(
        init=str(model),
        model=FinetuneModelConfig(dropout=0.2, drop_path=0.2),
        data=FinetuneDataConfig(
            shards=str(shards), select=SelectConfig(names=str(folder / "train")), sampling_rate=1, repeat_aug=2,
            rand_augment="rand-m7-mstd0.5-inc1", erase=0.5, read_threads=2, prefetch=2, decode_threads=1,
        ),
        val=ValConfig(select=SelectConfig(names=str(folder / "val")), num_clips=2, num_crops=3, batch=2),
        mix=MixConfig(mixup=0.8, cutmix=1.0),
        optim=FinetuneOptimConfig(lr=3e-2, warmup_steps=1, ema=0.7),
        train=TrainConfig(global_batch=3, accumulation=1, steps=STEPS, precision="fp32"),
        run=RunConfig(checkpoint_every=2),
        log=LogConfig(every=1),
        device="cpu",
    )  # fmt: skip


def into(config: FinetuneConfig, run: Path, **changes: Any) -> FinetuneConfig:
    return replace(config, run=replace(config.run, dir=str(run)), **changes)


def train(world: World, configs: Sequence[FinetuneConfig]) -> list[Any]:
    """Runs one after the other in this process; what refuses to start gives its message."""
    results = []
    for config in configs:
        try:
            results.append(finetune(config, corpus_of(config.data), world))
        except ValueError as error:
            results.append(str(error))
    return results


def scored(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but for what is measured in seconds."""
    return [{k: v for k, v in row.items() if k not in ("clips_per_s", "data_wait", "mfu")} for row in read_metrics(run)]
