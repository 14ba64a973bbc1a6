"""launch/finetune.py --init timm:NAME: an image ViT on clips of frames, stopped, resumed, evaluated, opened."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import evaluate
from launch.training.config import FinetuneConfig, FinetuneModelConfig
from mae3d.distributed import World
from mae3d.model.frames import FrameEncoder
from mae3d.training.config import RunConfig
from mae3d.weights.files import load_classifier, open_encoder
from mae3d.weights.frames import open_frame_encoder
from tests.support.finetunings import into, scored, train
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow


def image(base: FinetuneConfig, run: Path, **changes: Any) -> FinetuneConfig:
    model = FinetuneModelConfig(img_size=32, num_frames=2, drop_path=0.2)
    of_image = replace(base, init="timm:test_vit", init_weights="none", model=model)
    of_image = replace(of_image, train=replace(base.train, steps=3), val=replace(base.val, num_crops=1))
    return into(of_image, run, **changes)


def stopped_and_resumed(world: World, config: FinetuneConfig) -> list[Any]:
    """The run is out of time after its first step; the same command goes on."""
    limited = replace(config, run=RunConfig(dir=config.run.dir, checkpoint_every=2, time_limit=1e-6))
    return train(world, [limited, config])


@pytest.fixture(scope="module")
def runs(base: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uncut run, one that was stopped, one of larger frames that begins from the first, and one that is refused."""
    folder = tmp_path_factory.mktemp("runs")
    larger = FinetuneModelConfig(img_size=48, drop_path=0.0)
    at_zero = {"optim": replace(base.optim, lr=0.0, min_lr=0.0, ema=0.0, weight_decay=0.0)}
    others = [
        image(base, folder / "uncut"),
        image(base, folder / "larger", init=str(folder / "uncut"), init_weights="", model=larger, **at_zero),
        image(base, folder / "refused", model=FinetuneModelConfig(depth=2)),
    ]
    assert run_ranks(stopped_and_resumed, image(base, folder / "stopped"), world=1) == [[False, True]]
    ((first, second, refused),) = run_ranks(train, others, world=1)
    assert (first, second) == (True, True)
    assert "test_vit has depth 6, not 2" in refused
    return folder


def test_stopped_and_resumed_it_is_the_uncut_run(runs: Path) -> None:
    assert scored(runs / "stopped") == scored(runs / "uncut")
    assert len(scored(runs / "uncut")) >= 3


def test_it_learns_end_to_end_and_opens_as_an_image_vit(runs: Path) -> None:
    model = load_classifier(runs / "uncut")
    assert (model.config.backbone, model.config.embed_dim, model.config.grid) == ("test_vit", 64, (2, 2, 2))
    start = open_frame_encoder("test_vit", "none", num_frames=2, img_size=32).state_dict()
    moved = {name for name, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == start.keys()
    encoder = open_encoder(runs / "uncut")
    assert isinstance(encoder, FrameEncoder)


def test_larger_frames_begin_from_interpolated_positions(runs: Path) -> None:
    small, large = (open_encoder(runs / name).state_dict() for name in ("uncut", "larger"))
    assert large["vit.pos_embed"].shape == (1, 10, 64)
    for name, tensor in small.items():
        if name != "vit.pos_embed":
            assert torch.equal(large[name], tensor), name


def test_it_is_evaluated(runs: Path, shards: Path, tmp_path: Path) -> None:
    command = ["--run", str(runs / "uncut"), "--data.shards", str(shards), "--out", str(tmp_path), "--device", "cpu"]
    assert evaluate.main([*command, "--num_clips", "1", "--num_crops", "1"]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["samples"] == 14
