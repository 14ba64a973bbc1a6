"""launch/export.py --format for other programs: outputs are ours where MAE3D is not installed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mae3d
from launch import export
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.encoder import Encoder, token_sines
from mae3d.model.mae import MAE
from mae3d.weights.files import load_classifier, open_encoder, save_model
from mae3d.weights.resize import load_encoder, resized_encoder
from tests.launch.test_export import facts, refused

SMALL = {"img_size": 32, "num_frames": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
CONFIG = MAEConfig(
    preset="mae_vit_tiny_patch16", **SMALL, decoder_embed_dim=24, decoder_depth=1, mask_ratio=0.5,
    mean=(0.5, 0.4, 0.3),
)  # fmt: skip
# As VideoMAE is: no class token, a table of sines.
VIDEOMAE = EncoderConfig(**SMALL, cls_embed=False, sep_pos_embed=False, mean=(0.5, 0.4, 0.3), std=0.25)
CLASSIFIER = ClassifierConfig.of(VIDEOMAE, num_classes=3, pooling="patches", class_names=("ant", "bee", "cow"))


def clips(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """Draw all weights, so that none is 0 or too small to be seen."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def videomae_like(model: Classifier | MAE) -> Classifier | MAE:
    """Draw all weights but the positions, which get VideoMAE's table."""
    drawn(model)
    with torch.no_grad():
        model.encoder.positions.joint.copy_(token_sines(model.config.num_tokens, model.config.embed_dim))
    return model


def saved(model: torch.nn.Module, folder: Path) -> Path:
    folder.mkdir()
    save_model(model, folder / "model.safetensors")  # type: ignore[arg-type]
    return folder


def expected_of(model: torch.nn.Module, clip: Tensor) -> list[Tensor]:
    if isinstance(model, Classifier):
        return [model(clip).detach()]
    assert isinstance(model, MAE)
    return [mae3d.embed(model, clip, pool="tokens"), mae3d.embed(model, clip)]


MODELS = {
    "autoencoder": lambda: MAE(CONFIG),
    "joint": lambda: MAE(replace(CONFIG, sep_pos_embed=False, cls_embed=False, qkv_bias=False, std=0.25)),
    "classifier": lambda: Classifier(CLASSIFIER),
    "fixed": lambda: MAE(replace(CONFIG, sep_pos_embed=False, cls_embed=False, pos_init="fixed")),
    "cls": lambda: Classifier(ClassifierConfig.of(CONFIG, num_classes=3, pooling="cls")),
    "mean": lambda: Classifier(ClassifierConfig.of(VIDEOMAE, num_classes=3, pooling="mean")),
}


@pytest.mark.parametrize("kind", MODELS)
def test_an_encoder_for_torch_alone_is_ours(kind: str, tmp_path: Path) -> None:
    from mae3d.weights import bare_encoder

    model = drawn(MODELS[kind]())
    out = export.export(saved(model, tmp_path / "model"), tmp_path / "out", format="encoder")
    names = ["README.md", "config.json", "encoder.py", "model.safetensors", "modeling_mae3d.py"]
    assert sorted(path.name for path in out.iterdir()) == names
    opened = bare_encoder.load(out)
    for number in (1, 3):
        results = opened(clips(number))
        results = [results] if isinstance(results, Tensor) else list(results)
        torch.testing.assert_close(results, expected_of(model, clips(number)), rtol=1e-6, atol=1e-6)
    normalised = (clips(2).float() / 255 - torch.tensor(model.config.mean)) / torch.tensor(model.config.std)
    torch.testing.assert_close(opened(normalised.permute(0, 4, 1, 2, 3)), opened(clips(2)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="does not make"):
        opened(clips(1)[:, :2])


def test_a_program_of_torch_export_takes_any_number_of_clips(tmp_path: Path) -> None:
    model = drawn(MODELS["autoencoder"]())
    out = export.export(saved(model, tmp_path / "model"), tmp_path / "out", format="torch_export")
    program = torch.export.load(out / "model.pt2").module()
    for number in (1, 2, 5):
        results = list(program(clips(number)))
        torch.testing.assert_close(results, expected_of(model, clips(number)), rtol=1e-6, atol=1e-6)
    assert facts(out)["kind"] == "Encoder"
    assert "decoder_depth" not in facts(out)["model"]  # type: ignore[operator]


def test_a_videomae_folder_is_read_back_as_it_was(tmp_path: Path) -> None:
    model = videomae_like(Classifier(CLASSIFIER))
    out = export.export(saved(model, tmp_path / "model"), tmp_path / "out", format="transformers")
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    described = json.loads((out / "config.json").read_text())
    assert described["model_type"] == "videomae"
    assert described["id2label"] == {"0": "ant", "1": "bee", "2": "cow"}
    opened = load_classifier(out)
    assert replace(opened.config, preset=CLASSIFIER.preset, std=0.25) == CLASSIFIER  # presets are recognised by sizes
    torch.testing.assert_close(opened(clips(2)), model(clips(2)), rtol=1e-5, atol=1e-6)
    again = export.export(out, tmp_path / "again", format="transformers")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    encoder = open_encoder(out)
    torch.testing.assert_close(mae3d.embed(encoder, clips(1)), mae3d.embed(model, clips(1)), rtol=1e-5, atol=1e-6)


def test_an_encoder_without_its_decoder_goes_into_these_formats_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = videomae_like(MAE(replace(CONFIG, cls_embed=False, sep_pos_embed=False)))
    out = export.export(saved(model, tmp_path / "model"), tmp_path / "out", format="transformers")
    assert isinstance(open_encoder(out), Encoder)
    bare = export.export(out, tmp_path / "bare", format="encoder")
    assert facts(bare)["kind"] == "Encoder"
    assert facts(bare)["mean"] == list(CONFIG.mean)  # type: ignore[arg-type]
    message = refused(capsys, str(out), str(tmp_path / "ours"))
    assert "open the encoder with mae3d.open_encoder" in message


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [
        ({}, ["a class token (cls_embed=true)", "learned positions"]),
        ({"cls_embed": False}, ["learned positions"]),
        ({"cls_embed": False, "sep_pos_embed": False, "pos_init": "sines"}, ["learned positions"]),
    ],
)
def test_what_videomae_cannot_hold_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, object], reasons: list[str]
) -> None:
    model = saved(MAE(replace(CONFIG, **settings)), tmp_path / "model")  # type: ignore[arg-type]
    message = refused(capsys, str(model), str(tmp_path / "out"), "--format", "transformers")
    assert all(reason in message for reason in reasons)
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_classifier_that_pools_otherwise_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(videomae_like(Classifier(replace(CLASSIFIER, pooling="mean"))), tmp_path / "model")
    message = refused(capsys, str(model), str(tmp_path / "out"), "--format", "transformers")
    assert "cannot hold model.pooling=mean" in message
    patches = saved(Classifier(CLASSIFIER), tmp_path / "patches")
    message = refused(capsys, str(patches), str(tmp_path / "out"), "--format", "mae_st")
    assert "cannot hold pooling='patches'" in message


def test_fixed_positions_are_in_no_file_and_come_back(tmp_path: Path) -> None:
    model = drawn(MODELS["fixed"]())
    assert not any(name.startswith("encoder.positions") for name in model.state_dict())
    folder = saved(model, tmp_path / "model")
    opened = mae3d.load_model(folder)
    assert torch.equal(mae3d.embed(opened, clips(2)), mae3d.embed(model, clips(2)))
    out = export.export(folder, tmp_path / "out", format="transformers")
    read = open_encoder(out)  # as others' VideoMAE is: with a table that may be learned
    torch.testing.assert_close(mae3d.embed(read, clips(2)), mae3d.embed(model, clips(2)), rtol=1e-5, atol=1e-6)
    assert read.config.pos_init == "normal"
    classifier = Classifier(ClassifierConfig.of(opened.config, num_classes=3, pooling="patches"))
    load_encoder(classifier, read)  # the table is the fixed one, and left out
    load_encoder(classifier, opened.encoder)
    learned = Classifier(ClassifierConfig.of(opened.config, num_classes=3, pos_init="normal", img_size=48))
    load_encoder(learned, opened.encoder)  # interpolated from the fixed one
    larger = Classifier(ClassifierConfig.of(opened.config, num_classes=3, img_size=48))
    with pytest.raises(ValueError, match="give pos_init=normal"):
        load_encoder(larger, opened.encoder)
    assert resized_encoder(opened.encoder, img_size=48, num_frames=4).config.pos_init == "normal"
