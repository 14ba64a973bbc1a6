"""transformers' VideoMAE and ours give the same outputs, whichever of the two has made the folder."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mae3d
from launch.export import export
from mae3d.model.classifier import Classifier
from mae3d.model.mae import MAE
from mae3d.weights.files import load_classifier, open_encoder
from tests.launch.test_export_formats import CLASSIFIER, CONFIG, MODELS, clips, drawn, expected_of, saved, videomae_like

pytestmark = pytest.mark.peers
transformers = pytest.importorskip("transformers")

SIZES = {
    "image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 3, "intermediate_size": 192, "layer_norm_eps": 1e-6,
}  # fmt: skip


def theirs_of(clip: Tensor, folder: Path) -> Tensor:
    """Return a clip as transformers' own processor makes it from the folder's settings."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels: Tensor = processor([list(one.numpy()) for one in clip], return_tensors="pt")["pixel_values"]
    return pixels


def loaded(kind: str, folder: Path) -> torch.nn.Module:
    """Open a folder by transformers; no name of its tensors may be missing or left over."""
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    opened: torch.nn.Module = model.eval()
    return opened


@torch.no_grad()
@pytest.mark.parametrize("pos_init", ["normal", "fixed"])
def test_our_encoder_in_transformers(pos_init: Any, tmp_path: Path) -> None:
    model = MAE(replace(CONFIG, cls_embed=False, sep_pos_embed=False, pos_init=pos_init))
    model = drawn(model) if pos_init == "fixed" else videomae_like(model)
    out = export(saved(model, tmp_path / "model"), tmp_path / "out", format="transformers")
    theirs = loaded("VideoMAEModel", out)
    for number in (1, 3):
        tokens = theirs(theirs_of(clips(number), out)).last_hidden_state
        expected = mae3d.embed(model, clips(number), pool="tokens")
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_our_classifier_in_transformers(tmp_path: Path) -> None:
    model = videomae_like(Classifier(CLASSIFIER))
    out = export(saved(model, tmp_path / "model"), tmp_path / "out", format="transformers")
    theirs = loaded("VideoMAEForVideoClassification", out)
    assert theirs.config.id2label == {0: "ant", 1: "bee", 2: "cow"}
    logits = theirs(theirs_of(clips(3), out)).logits
    torch.testing.assert_close(logits, model(clips(3)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["VideoMAEModel", "VideoMAEForPreTraining"])
def test_their_encoder_here_and_there_again(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(**SIZES, use_mean_pooling=False)
    first = drawn(getattr(transformers, kind)(config))
    first.save_pretrained(tmp_path / "theirs")
    processor = transformers.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "theirs")
    torch.save(first.state_dict(), tmp_path / "theirs" / "state.pth")  # the names in memory, not those of their files
    of_state = open_encoder(tmp_path / "theirs" / "state.pth")
    ours = open_encoder(tmp_path / "theirs")
    assert torch.equal(mae3d.embed(of_state, clips(1)), mae3d.embed(ours, clips(1)))
    assert ours.config.mean == tuple(processor.image_mean)  # theirs are not always ImageNet's
    pixels = theirs_of(clips(2), tmp_path / "theirs")
    expected = getattr(first, "videomae", first)(pixels).last_hidden_state
    torch.testing.assert_close(mae3d.embed(ours, clips(2), pool="tokens"), expected, rtol=1e-5, atol=1e-5)
    out = export(tmp_path / "theirs", tmp_path / "out", format="transformers")
    again = loaded("VideoMAEModel", out)
    torch.testing.assert_close(again(theirs_of(clips(2), out)).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_their_classifier_here_and_there_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = {0: "cat", 1: "dog"}
    config = transformers.VideoMAEConfig(**SIZES, id2label=labels, label2id={name: i for i, name in labels.items()})
    first = drawn(transformers.VideoMAEForVideoClassification(config))
    first.save_pretrained(tmp_path / "theirs")
    transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path / "theirs")
    expected = first(theirs_of(clips(2), tmp_path / "theirs")).logits
    ours = load_classifier(tmp_path / "theirs")
    assert ours.config.class_names == ("cat", "dog")
    assert ours.config.pooling == "patches"
    torch.testing.assert_close(ours(clips(2)), expected, rtol=1e-5, atol=1e-5)
    out = export(tmp_path / "theirs", tmp_path / "out", format="transformers")
    again = loaded("VideoMAEForVideoClassification", out)
    torch.testing.assert_close(again(theirs_of(clips(2), out)).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Yield while transformers copies code to a folder of the tests; it puts that on sys.path once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.setattr(sys, "path", [*sys.path])
        yield


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_any_model_opens_by_its_own_code(kind: str, tmp_path: Path, code_cache: None) -> None:
    model = drawn(MODELS[kind]())
    out = export(saved(model, tmp_path / "model"), tmp_path / f"out_{kind}", format="encoder")
    opened, report = transformers.AutoModel.from_pretrained(out, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values()), report
    results = opened.eval()(clips(2))
    results = [results] if isinstance(results, Tensor) else list(results)
    torch.testing.assert_close(results, expected_of(model, clips(2)), rtol=1e-6, atol=1e-6)
