"""`pretrain --init`: what is taken of which weights, in which words, and what is refused; a begun run needs no file."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from launch.common.init import InitialWeights
from launch.finetune import _open_init, complete_config
from launch.training.config import FinetuneConfig, FinetuneModelConfig, PretrainConfig
from mae3d.analysis.features import embed
from mae3d.distributed import World
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.encoder import Encoder
from mae3d.model.mae import MAE
from mae3d.tracking.run_dir import Run, read_metrics
from mae3d.weights.convert import to_foreign
from mae3d.weights.files import save_model
from mae3d.weights.frames import open_frame_encoder
from mae3d.weights.resize import TransferError, load_autoencoder
from tests.support import launch
from tests.support.jobs import SCRIPT
from tests.support.ranks import run_ranks
from tests.support.trainings import MODEL, Case, clips_and_noise, make_engine

SMALLER = replace(MODEL, img_size=16, num_frames=2, pred_t_dim=1)
RECIPE = """
model: {preset: mae_vit_tiny_patch16, img_size: 32, num_frames: 4, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2,
        decoder_embed_dim: 20, decoder_depth: 1, decoder_num_heads: 2, mask_ratio: 0.75}
data: {sampling_rate: 1, repeat_aug: 1, read_threads: 2, prefetch: 2, decode_threads: 1}
optim: {lr: 1.0e-3, warmup_steps: 0}
train: {global_batch: 4, steps: 2, precision: fp32}
log: {every: 1}
"""


class Alone:
    """Stands for the World of a single process."""

    def on_first(self, call: Callable[[], Any]) -> Any:
        return call()


def start(path: Path | str, own: MAEConfig = MODEL, *, decoder: bool = True, **settings: Any) -> tuple[str, MAE, MAE]:
    """What is told, the model, and the same model from scratch."""
    run = Run(Path(path).parent / "run")
    found = InitialWeights(str(path), own, run, Alone(), decoder=decoder, **settings)  # type: ignore[arg-type]
    torch.manual_seed(1)
    scratch = MAE(own)
    torch.manual_seed(1)
    model = MAE(own)
    found.load_into(model)
    return str(found), model, scratch


@pytest.fixture(scope="module")
def source() -> MAE:
    torch.manual_seed(5)
    return MAE(MODEL).eval()


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    both = zip(ours.parameters(), theirs.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in both)


def test_a_whole_autoencoder_is_taken_whole_or_for_its_encoder(source: MAE, tmp_path: Path) -> None:
    save_model(source, tmp_path / "model.safetensors")
    told, model, _ = start(tmp_path)
    assert told == f"encoder and decoder of {tmp_path}; optimizer and schedule from the beginning"
    assert same(model, source)
    told, model, scratch = start(tmp_path, decoder=False)
    assert f"the encoder of {tmp_path} alone, the decoder from scratch (as init_decoder says)" in told
    assert same(model.encoder, source.encoder)
    assert same(model.decoder, scratch.decoder)


def test_foreign_weights_are_taken_with_their_decoder(tmp_path: Path) -> None:
    config = replace(MODEL, embed_dim=32, decoder_embed_dim=32)
    torch.manual_seed(5)
    source = MAE(config)
    foreign = to_foreign(source.state_dict(), config, format="mae_st")
    torch.save({"model": foreign, "args": {"num_heads": 2, "decoder_num_heads": 2}}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"foreign\.pth"):
        start(tmp_path / "foreign.pth", replace(config, depth=1))
    told, model, _ = start(tmp_path / "foreign.pth", config)
    assert "encoder and decoder of" in told
    assert same(model, source)


def test_a_classifier_gives_its_encoder(tmp_path: Path) -> None:
    torch.manual_seed(5)
    classifier = Classifier(ClassifierConfig.of(MODEL, num_classes=3))
    save_model(classifier, tmp_path / "model.safetensors")
    told, model, scratch = start(tmp_path)
    assert "alone, the decoder from scratch (it is a classifier)" in told
    assert same(model.encoder, classifier.encoder)
    assert same(model.decoder, scratch.decoder)


def test_positions_of_both_are_interpolated_and_nothing_else(source: MAE, tmp_path: Path) -> None:
    save_model(source, tmp_path / "model.safetensors")
    told, model, _ = start(tmp_path, SMALLER)
    assert "positions interpolated from 2x4x4 to 1x2x2 tokens" in told
    for ours, theirs in ((model.encoder, source.encoder), (model.decoder, source.decoder)):
        mine, given = dict(ours.named_parameters()), dict(theirs.named_parameters())
        assert {name for name in mine if mine[name].shape != given[name].shape} == {
            "positions.spatial",
            "positions.temporal",
        }
        assert all(torch.equal(mine[name], given[name]) for name in mine if mine[name].shape == given[name].shape)
        spatial = given["positions.spatial"].unflatten(1, (4, 4))
        quarter = spatial[:, :2, :2].mean().item()  # bicubic weighs its neighbours in
        assert mine["positions.spatial"][0, 0].mean().item() == pytest.approx(quarter, abs=0.02)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"depth": 1}, r"another encoder: depth is 1, not 2.*--model\.depth 2$"),
        ({"qkv_bias": False}, r"qkv_bias is False, not True.*--model\.qkv_bias true$"),
        ({"decoder_depth": 2}, r"another decoder: decoder_depth is 2, not 1.*--model\.decoder_depth 1.*--init_decoder"),
        ({"pred_t_dim": 4}, r"pred_u is 2, not 1.*--model\.pred_t_dim 2"),
        ({"decoder_cls": "encoder"}, r"decoder_cls is encoder, not own"),
    ],
)
def test_other_sizes_are_refused_by_name(source: MAE, tmp_path: Path, changed: dict, told: str) -> None:
    save_model(source, tmp_path / "model.safetensors")
    own = replace(MODEL, **changed)
    with pytest.raises(ValueError, match=told):
        start(tmp_path, own)
    with pytest.raises(TransferError):
        load_autoencoder(MAE(own), source)
    if "another encoder" not in told and "qkv" not in told:
        assert "alone" in start(tmp_path, own, decoder=False)[0]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ValueError, match=str(path)):
            start(path)


def first_loss(world: World, folder: Path, stage: int) -> tuple[float, str]:
    """The loss before any step of a model that the first process alone gave weights, and what a wrong path comes to."""
    begin = InitialWeights(str(folder) if world.is_first else "/nowhere", MODEL, Run("no run"), world, decoder=True)
    engine = make_engine(world, Case(stage=stage), start=begin.load_into)
    clips, noise = (part.chunk(world.ranks.size)[world.ranks.rank] for part in clips_and_noise(0))
    loss = engine(clips, noise).loss
    engine.backward(loss)
    engine.step(0.0)
    mean = float(world.mean(loss.detach().double()))
    engine.close()
    try:
        InitialWeights("/nowhere", MODEL, Run("no run"), world, decoder=True)
    except ValueError as error:
        return mean, str(error)
    return mean, ""


def both_stages(world: World, folder: Path) -> list[tuple[float, str]]:
    return [first_loss(world, folder, stage) for stage in (1, 3)]


@pytest.mark.slow
def test_the_first_process_reads_and_all_start_alike(source: MAE, tmp_path: Path) -> None:
    save_model(source, tmp_path / "model.safetensors")
    expected = source(*clips_and_noise(0)).loss.item()
    for results in run_ranks(both_stages, tmp_path, world=2):
        for loss, error in results:
            assert loss == pytest.approx(expected, abs=1e-6)
            assert "/nowhere" in error


@pytest.mark.slow
def test_a_run_from_weights_goes_on_without_them(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["--config", str(tmp_path / "tiny.yaml"), "--data.shards", str(shards), "--device", "cpu"]
    from_first = ["--run.dir", str(second), "--init", str(first)]

    def train(*options: str) -> subprocess.CompletedProcess[str]:
        return launch.run([sys.executable, SCRIPT, *common, *options])

    done = [train("--run.dir", str(first)), train(*from_first)]
    shutil.rmtree(first)
    done.append(train(*from_first, "--train.steps", "4", "--extend", "true"))
    done.append(train("--run.dir", str(second), "--train.steps", "6", "--extend", "true"))
    output = "".join(run.stdout for run in done)
    assert [run.returncode for run in done] == [0, 0, 0, 2], output + "".join(run.stderr for run in done)
    assert "init:    from scratch" in output
    assert f"init:    encoder and decoder of {first}; optimizer" in output
    assert f"init:    {first}, when the run began" in output
    assert f"init: was '{first}', is ''" in done[-1].stderr
    assert [row["step"] for row in read_metrics(second)] == [1, 2, 3, 4]


def of_image_model(name: str) -> MAEConfig:
    """Return the settings of an autoencoder that can begin from an image ViT of timm."""
    vit = timm.create_model(name, num_classes=0)
    sizes = {"embed_dim": vit.embed_dim, "depth": len(vit.blocks), "num_heads": vit.blocks[0].attn.num_heads}
    sizes |= {"patch_size": vit.patch_embed.patch_size[0]}
    return replace(MODEL, **sizes, mlp_ratio=vit.blocks[0].mlp.fc1.out_features / vit.embed_dim)


def test_an_image_vit_of_timm_is_inflated_to_the_models_clips_and_pixels() -> None:
    own = of_image_model("test_vit")
    told, model, scratch = start("timm:test_vit", own, weights="none", inflate="mean", seed=3)
    assert "encoder of timm:test_vit alone" in told
    assert "inflated from an image model (mean)" in told
    image = open_frame_encoder("test_vit", "none", seed=3)
    block = "blocks.1.attn.proj.weight"
    assert torch.equal(model.encoder.state_dict()[block], image.vit.state_dict()[block])
    assert torch.equal(model.decoder.state_dict()["head.weight"], scratch.decoder.state_dict()["head.weight"])
    # one frame, in the image model's size, has its features though the two normalise otherwise
    larger = replace(own, img_size=160, num_frames=own.t_patch_size, pred_t_dim=1)
    assert larger.mean != image.config.mean
    encoder = start("timm:test_vit", larger, weights="none", inflate="center", seed=3)[1].encoder
    clip = torch.randint(256, (1, 1, 160, 160, 3), dtype=torch.uint8).expand(-1, own.t_patch_size, -1, -1, -1)
    expected = embed(open_frame_encoder("test_vit", "none", num_frames=own.t_patch_size, seed=3), clip, pool="tokens")
    torch.testing.assert_close(
        embed(encoder, clip, pool="tokens"), expected[:, : larger.num_tokens], rtol=1e-4, atol=1e-4
    )


def test_an_image_model_begins_no_pretraining_unless_it_is_inflated(tmp_path: Path) -> None:
    own = of_image_model("test_vit")
    with pytest.raises(ValueError, match=r"init=timm:test_vit: is an image ViT.*--init_inflate mean"):
        start("timm:test_vit", own, weights="none")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "image.pth")
    with pytest.raises(ValueError, match=r"image\.pth.*an image ViT: width 64.*--init_inflate mean"):
        start(tmp_path / "image.pth", own)
    with pytest.raises(ValueError, match=r"depth is \d+, not 6.*--model\.depth 6") as error:
        start("timm:test_vit", replace(own, depth=2), weights="none", inflate="mean")
    assert "--init_decoder" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init": "timm:test_vit"}, "has no weights.*--init_weights download"),
        ({"init": "a.pth", "init_weights": "b.pth"}, "--init_weights goes with --init timm:NAME"),
        ({"init_inflate": "mean"}, "--init_inflate goes with --init"),
        ({"init": "a.pth", "init_inflate": "sum"}, "init_inflate='sum': give mean, center or none"),
    ],
)
def test_options_of_initial_weights_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    for make in (partial(PretrainConfig, MODEL), FinetuneConfig):
        with pytest.raises(ValueError, match=said):
            make(**settings)


def test_finetuning_begins_from_an_inflated_image_model(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "image.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit", "num_attention_heads": 2}')
    model = FinetuneModelConfig(num_frames=6, t_patch_size=3)
    config = FinetuneConfig(init=str(tmp_path / "image.safetensors"), init_inflate="mean", model=model)
    alone: Any = Alone()
    encoder = _open_init(config, alone)
    assert isinstance(encoder, Encoder)
    assert (encoder.config.num_frames, encoder.config.t_patch_size) == (6, 3)
    by_name = replace(config, init="timm:test_vit", init_weights=config.init)
    assert torch.equal(encoder.blocks[0].mlp.fc1.weight, _open_init(by_name, alone).blocks[0].mlp.fc1.weight)


def test_finetuning_takes_over_rotations_and_runs_from_before_them_go_on(tmp_path: Path) -> None:
    encoder = replace(EncoderConfig(preset="mae_vit_tiny_patch16"), rope="vjepa2", cls_embed=False)
    config = FinetuneConfig(init="a.pt", model=FinetuneModelConfig(num_classes=3, multi_label=False))
    corpus: Any = SimpleNamespace(label_names=(), num_classes=3, has_multiple_labels=False)
    trained = complete_config(config, corpus, encoder)
    assert (trained.rope, trained.cls_embed) == ("vjepa2", False)
    assert complete_config(config, corpus, trained) == trained  # as the run goes on
    older = replace(encoder, rope="none")
    assert complete_config(config, corpus, older).rope == "none"
