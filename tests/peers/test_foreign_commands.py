"""The commands take a V-JEPA 2 that transformers has saved, and train from it and from an inflated DINOv2."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from launch import compare, embed, probe, propagate, timeline
from launch.common.tables import read_vectors
from mae3d.analysis import features
from mae3d.weights.files import load_classifier, load_model, open_encoder
from pipelines.config import DataConfig
from pipelines.samples.corpus import open_corpus
from pipelines.stream import evaluation_clips
from tests.support.datasets import COLOURS, coloured
from tests.support.media import make_video

pytestmark = pytest.mark.peers
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TRAIN = ("--train.global_batch", "4", "--train.steps", "2", "--train.precision", "fp32", "--device", "cpu")
TRAIN = (*TRAIN, "--optim.warmup_steps", "0", "--data.sampling_rate", "1", "--log.every", "1")


@pytest.fixture(scope="module")
def vjepa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vjepa2")
    torch.manual_seed(0)
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    config = transformers.VJEPA2Config(crop_size=32, frames_per_clip=4, **SIZES, **predictor)
    transformers.VJEPA2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    train, test = (tmp_path_factory.mktemp(name) for name in ("train", "test"))
    return coloured(train, list(COLOURS) * 8, seed=0), coloured(test, list(COLOURS) * 4, seed=1)


def test_frozen_it_embeds_probes_and_is_compared(vjepa: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    train, test = sets
    own = ("--run", str(vjepa), "--device", "cpu")
    options = ("--data.shards", str(train), "--data.sampling_rate", "1")
    table = tmp_path / "vectors.parquet"
    assert embed.main([*own, *options, "--out", str(table)]) == 0
    encoder, corpus = open_encoder(vjepa), open_corpus([train])
    vectors, rows = read_vectors(table)
    sampling = DataConfig(sampling_rate=1)
    stream = evaluation_clips(corpus, sampling, rows=rows, num_frames=4, size=32, batch_size=len(rows))
    expected = features.embed(encoder, next(stream).clips[:, 0])
    stream.close()
    torch.testing.assert_close(torch.tensor(vectors), expected, rtol=1e-4, atol=1e-4)
    assert probe.main([*own, *options, "--test.shards", str(test), "--out", str(tmp_path / "probe")]) == 0
    assert json.loads((tmp_path / "probe" / "probe.json").read_text())["probes"]
    models = ("--models", f"vjepa={vjepa}", "--test.shards", str(test), "--out", str(tmp_path / "compared"))
    assert compare.main([*models, *options, "--device", "cpu", "--few_shot", "1", "--time_order", "false"]) == 0


def test_it_looks_along_a_video_and_carries_a_mask(vjepa: Path, tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", 24)
    own = ("--run", str(vjepa), "--device", "cpu")
    rates = ("--sampling_rate", "1", "--target_fps", "10")
    assert timeline.main([*own, *rates, "--videos", str(video), "--out", str(tmp_path / "line")]) == 0
    assert pq.read_table(tmp_path / "line" / "timeline.parquet").num_rows
    frames = tmp_path / "frames"
    frames.mkdir()
    for i in range(4):
        Image.fromarray(np.full((48, 64, 3), 60 * i, np.uint8)).save(frames / f"{i:05}.jpg")
    mask = np.zeros((48, 64), np.uint8)
    mask[8:20, 8:30] = 1
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.save(tmp_path / "00000.png")
    carried = ("--frames", str(frames), "--masks", str(tmp_path / "00000.png"), "--out", str(tmp_path / "carried"))
    assert propagate.main([*own, *carried, "--size", "64"]) == 0


def start(script: str, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / script), *options, *TRAIN],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_finetuning_and_pretraining_begin_from_it(vjepa: Path, sets: tuple[Path, Path], tmp_path: Path) -> None:
    data = ("--data.shards", str(sets[0]), "--optim.lr", "0", "--optim.min_lr", "0", "--optim.weight_decay", "0")
    val = ("--val.shards", str(sets[1]))
    start("finetune.py", "--init", str(vjepa), *data, *val, "--run.dir", str(tmp_path / "fine"))
    source = open_encoder(vjepa)
    tuned = load_classifier(tmp_path / "fine")
    assert tuned.config.rope == "vjepa2"
    torch.testing.assert_close(tuned.encoder.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)
    model: dict[str, Any] = {"rope": "vjepa2", "cls_embed": "false", "embed_dim": 48, "depth": 2, "num_heads": 2}
    model |= {"img_size": 32, "num_frames": 4, "preset": "mae_vit_tiny_patch16", "mask_ratio": 0.5}
    options = [text for name, value in model.items() for text in (f"--model.{name}", str(value))]
    start("pretrain.py", "--init", str(vjepa), *data, *options, "--run.dir", str(tmp_path / "pre"))
    torch.testing.assert_close(
        load_model(tmp_path / "pre").encoder.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight
    )


def test_finetuning_begins_from_an_inflated_dinov2(sets: tuple[Path, Path], tmp_path: Path) -> None:
    config = transformers.Dinov2Config(**SIZES, mlp_ratio=2, image_size=32, patch_size=16)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    data = ("--data.shards", str(sets[0]), "--val.shards", str(sets[1]), "--model.num_frames", "4")
    init = ("--init", str(tmp_path / "dino"), "--init_inflate", "mean")
    start("finetune.py", *init, *data, "--optim.lr", "1e-4", "--run.dir", str(tmp_path / "fine"))
    assert load_classifier(tmp_path / "fine").config.grid == (2, 2, 2)
