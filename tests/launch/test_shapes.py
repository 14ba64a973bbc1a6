"""Grey frames that are not square go the whole way: pretraining, finetuning, pages, tables, an exported folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from launch import embed, export, preview, propagate, timeline, visualize
from launch.pretrain import pretrain
from launch.training.config import (
    EvalConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    FinetuneModelConfig,
    PretrainConfig,
    ValConfig,
)
from mae3d.distributed import World
from mae3d.model.config import MAEConfig, MixConfig
from mae3d.model.mae import MAE
from mae3d.tracking.config import LogConfig
from mae3d.tracking.run_dir import read_metrics
from mae3d.training.config import OptimConfig, RunConfig, TrainConfig
from mae3d.weights.files import load_classifier, load_model, save_model
from pipelines.config import DataConfig
from pipelines.samples.corpus import corpus_of
from tests.support.finetunings import train
from tests.support.media import make_dataset, make_video
from tests.support.ranks import run_ranks

MODEL = MAEConfig(
    preset="mae_vit_tiny_patch16", img_size=(32, 48), in_chans=1, mean=0.4, num_frames=4, embed_dim=24, depth=1,
    num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.5,
)  # fmt: skip
TRAIN = TrainConfig(global_batch=2, steps=2, precision="fp32")
READ: dict[str, Any] = {"sampling_rate": 1, "read_threads": 1, "prefetch": 1, "decode_threads": 1}


def train_both(world: World, folder: Path) -> list[Any]:
    """Pretrain, then finetune once in that shape and once turned, in colour."""
    shards, held_out = str(folder / "train" / "shards"), str(folder / "val" / "shards")
    config = PretrainConfig(
        model=MODEL, data=DataConfig(shards=shards, repeat_aug=1, **READ),
        eval=EvalConfig(shards=held_out, every=2, batch=2), optim=OptimConfig(warmup_steps=1), train=TRAIN,
        run=RunConfig(dir=str(folder / "run")), log=LogConfig(every=1), device="cpu",
    )  # fmt: skip
    finished = pretrain(config, corpus_of(config.data), world)
    first = FinetuneConfig(
        init=str(folder / "run"), data=FinetuneDataConfig(shards=shards, rand_augment="rand-m7-n4-p1", **READ),
        val=ValConfig(shards=held_out, num_crops=3, batch=2), mix=MixConfig(mixup=0.8, cutmix=1.0), train=TRAIN,
        run=RunConfig(dir=str(folder / "fine")), log=LogConfig(every=1), device="cpu",
    )  # fmt: skip
    turned = FinetuneModelConfig(img_size=(48, 32), in_chans=3)
    second = replace(first, model=turned, run=RunConfig(dir=str(folder / "turned")))
    return [finished, *train(world, [first, second])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    make_dataset(folder / "train", samples=4, frames=6, labels=["0", "1", "0", "1"])
    make_dataset(folder / "val", samples=2, frames=6, labels=["0", "1"])
    make_video(folder / "a.mp4", 12)
    assert run_ranks(train_both, folder, world=1) == [[True, True, True]]
    return folder


def test_a_training_learns_of_grey_frames_that_are_not_square(trained: Path) -> None:
    rows = read_metrics(trained / "run")
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["eval_loss"] > 0
    assert load_model(trained / "run").config == MODEL
    with Image.open(next((trained / "run" / "eval").glob("*.png"))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() < 30  # letters apart it has no colour


def test_a_classifier_takes_the_shape_or_another(trained: Path) -> None:
    ours, turned = (load_classifier(trained / name).config for name in ("fine", "turned"))
    assert (ours.img_size, ours.in_chans, ours.mean) == ((32, 48), 1, 0.4)
    assert (turned.img_size, turned.in_chans, turned.grid) == ((48, 32), 3, (2, 3, 2))


def test_pages_tables_and_folders_are_made_of_it(trained: Path, tmp_path: Path) -> None:
    run, shards, video = str(trained / "run"), str(trained / "val" / "shards"), str(trained / "a.mp4")
    cpu = ("--device", "cpu")
    shown = ["--show", "reconstruction", "attention", "--run", run, *cpu]
    assert visualize.main([*shown, "--data.shards", shards, "--samples", "1", "--out", str(tmp_path / "page")]) == 0
    assert visualize.main([*shown, "--videos", video, "--out", str(tmp_path / "video")]) == 0
    assert "4 frames of 32 x 48" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert embed.main(["--run", run, "--data.shards", shards, "--out", str(tmp_path / "a.parquet"), *cpu]) == 0
    every = ("--every", "0.5", "--data.target_fps", "10", "--data.sampling_rate", "1")
    assert embed.main(["--run", run, "--videos", video, *every, "--out", str(tmp_path / "b.parquet"), *cpu]) == 0
    for name in ("a", "b"):
        vectors = np.stack(pq.read_table(tmp_path / f"{name}.parquet")["vector"].to_numpy(zero_copy_only=False))
        assert vectors.shape[1] == 24
        assert np.isfinite(vectors).all()
    rate = ("--target_fps", "10", "--sampling_rate", "1")
    assert timeline.main(["--run", run, "--videos", video, *rate, "--out", str(tmp_path / "line"), *cpu]) == 0
    for form in ("mae3d", "mae_st"):
        export.main([run, str(tmp_path / form), "--format", form])
        assert "32 x 48 pixels of 1 channel," in (tmp_path / form / "README.md").read_text(encoding="utf-8")
        opened = load_model(tmp_path / form)
        assert opened.config.img_size == (32, 48)
        assert torch.equal(opened.encoder.patch_embed.weight, load_model(run).encoder.patch_embed.weight)


def test_the_preview_takes_shape_and_channels_from_a_recipe_or_options(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model:\n  img_size: [32, 48]\n  in_chans: 1\n  num_frames: 4\n")
    more = ["--data.shards", str(trained / "val" / "shards"), "--batch", "2", "--data.sampling_rate", "1"]
    sheets = []
    for number, options in enumerate(
        (["--config", str(tmp_path / "recipe.yaml")], ["--size", "32", "48", "--channels", "1", "--num_frames", "4"])
    ):
        assert preview.main([str(tmp_path / str(number)), *options, *more]) == 0
        sheets.append((tmp_path / str(number) / "epoch-0-batch-000.png").read_bytes())
    assert sheets[0] == sheets[1]


def test_channels_that_the_shards_do_not_have_are_one_line_before_anything_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = ["--data.shards", str(trained / "val" / "shards")], tmp_path / "out"
    save_model(MAE(replace(MODEL, in_chans=4)), tmp_path / "model.safetensors")
    model = ["--run", str(tmp_path / "model.safetensors"), "--device", "cpu"]
    for command, argv in (
        (preview.main, [str(out), "--channels", "4", "--batch", "2", *shards]),
        (embed.main, [*model, "--out", str(out), *shards]),
        (embed.main, [*model, "--out", str(out), "--videos", str(trained / "a.mp4")]),
        (visualize.main, [*model, "--out", str(out), *shards]),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(argv)
        assert stopped.value.code == 2
        told = capsys.readouterr().err
        assert "4 channels" in told
        assert told.count("\n") == 1
        assert not out.exists()


def test_masks_are_carried_by_grey_features_of_frames_that_are_not_square(trained: Path, tmp_path: Path) -> None:
    frames, masks = tmp_path / "frames" / "a", tmp_path / "masks" / "a"
    frames.mkdir(parents=True)
    masks.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    for number in range(3):
        Image.fromarray(pixels).save(frames / f"{number:05d}.png")
    mask = np.zeros((60, 100), np.uint8)
    mask[30:, :35] = 1
    Image.fromarray(mask).save(masks / "00000.png")
    argv = ["--run", str(trained / "run"), "--frames", str(frames.parent), "--masks", str(masks.parent)]
    for name, size in (("own", ()), ("finer", ("--size", "64", "96"))):
        out = tmp_path / name
        assert propagate.main([*argv, "--out", str(out), "--device", "cpu", *size]) == 0
        carried = np.asarray(Image.open(next(out.rglob("00002.png"))))
        assert carried.shape == (60, 100)  # a still video keeps its mask, to whole patches
        assert (carried[45:, :20] == 1).all()
        assert (carried[:15, 70:] == 0).all()
