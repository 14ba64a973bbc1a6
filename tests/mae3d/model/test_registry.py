"""Models by name: mae3d.list_models, mae3d.create_model, and hubconf.py for torch.hub."""

import runpy
from pathlib import Path

import pytest
import torch

import mae3d
from mae3d.model.config import PRESETS

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"img_size": 32, "num_frames": 4, "depth": 1, "mask_ratio": 0.5}


def test_names_are_listed_by_patterns() -> None:
    assert mae3d.list_models() == list(PRESETS)
    assert mae3d.list_models("*base*") == ["mae_vit_base_patch16"]
    assert mae3d.list_models(["*base*", "*tiny*"]) == ["mae_vit_tiny_patch16", "mae_vit_base_patch16"]
    assert mae3d.list_models("*huge*", exclude_filters="*14") == ["mae_vit_huge_patch16"]
    assert mae3d.list_models("base") == []


def test_a_model_is_made_by_its_name() -> None:
    model = mae3d.create_model("mae_vit_tiny_patch16", **SMALL)
    assert isinstance(model, mae3d.MAE)
    assert (model.config.embed_dim, model.config.img_size) == (192, 32)
    classifier = mae3d.create_model("mae_vit_tiny_patch16", num_classes=5, img_size=32, num_frames=4, depth=1)
    assert isinstance(classifier, mae3d.Classifier)
    assert classifier.config.num_classes == 5
    with pytest.raises(ValueError, match="mae_vit_tiny_patch16"):
        mae3d.create_model("mae_vit_tiny")
    with pytest.raises(ValueError, match=r"'img_sise'.*mae3d\.MAEConfig"):
        mae3d.create_model("mae_vit_tiny_patch16", img_sise=32)


def test_torch_hub_loads_from_a_checkout(tmp_path: Path) -> None:
    entries = {name for name, value in runpy.run_path(str(ROOT / "hubconf.py")).items() if callable(value)}
    assert {name for name in entries if name[0] != "_"} == {*PRESETS, "load_classifier", "load_model", "open_encoder"}
    torch.manual_seed(0)
    model = torch.hub.load(str(ROOT), "mae_vit_tiny_patch16", source="local", **SMALL)
    assert type(model).__name__ == "MAE"
    assert model.config.embed_dim == 192
    mae3d.save_model(model, tmp_path / "model.safetensors")
    opened = torch.hub.load(str(ROOT), "load_model", str(tmp_path), source="local")
    assert torch.equal(opened.encoder.norm.weight, model.encoder.norm.weight)
    assert opened.config == model.config
