"""Files of other trainers are recognised for certain, whatever they are wrapped in, or refused with what was found."""

import fractions
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.weights.convert import ConvertError, encoder_from_foreign, encoder_to_foreign
from mae3d.weights.files import WeightsError, open_encoder
from mae3d.weights.recognition import recognise

CONFIG = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, depth=1)
HINTS = {"num_heads": 3}


@pytest.fixture(scope="module")
def foreign() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return encoder_to_foreign(Encoder(CONFIG).state_dict(), CONFIG, format="mae_st")


def shared_names() -> dict[str, Tensor]:
    """Return an encoder under names that V-JEPA, timm and PySlowFast share: one qkv, one table, no class token."""
    return {
        "patch_embed.proj.weight": torch.zeros(8, 3, 2, 16, 16),
        "patch_embed.proj.bias": torch.zeros(8),
        "blocks.0.attn.qkv.weight": torch.zeros(24, 8),
        "pos_embed": torch.zeros(1, 8, 8),
    }


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "encoder.", "backbone.", "module._orig_mod.", "module.backbone."]
)
@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "target_encoder", "ema", ""])
def test_wrappers_of_trainers_are_seen_through(
    foreign: dict[str, Tensor], tmp_path: Path, prefix: str, key: str
) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in foreign.items()}
    torch.save(({key: state, "epoch": 3} if key else state) | {"args": HINTS}, tmp_path / "a.pth")
    encoder = open_encoder(tmp_path / "a.pth")
    _, ours = encoder_from_foreign(foreign, hints=HINTS)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in encoder.state_dict().items())


def test_an_averaged_models_counter_is_no_weight(foreign: dict[str, Tensor]) -> None:
    averaged = {"n_averaged": torch.tensor(7)} | {f"module.{name}": tensor for name, tensor in foreign.items()}
    assert encoder_from_foreign(averaged, hints=HINTS)[1].keys() == Encoder(CONFIG).state_dict().keys()


def test_several_state_dicts_are_not_chosen_from(foreign: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"encoder": foreign, "target_encoder": foreign, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"several state dicts, encoder \(\d+ tensors\), target_encoder"):
        open_encoder(tmp_path / "a.pth")


def test_names_that_several_projects_share_are_refused_unless_described() -> None:
    """Their mean and std differ, and a wrong one is seen in no message."""
    state = shared_names()
    assert recognise(state) == "pyslowfast"
    for told in (state, state | {"head.weight": torch.zeros(2, 8)}, state | {"cls_token": torch.zeros(1, 1, 8)}):
        with pytest.raises(ConvertError, match=r"V-JEPA, PySlowFast and others .*nothing in the file"):
            recognise(told, described=False)
    assert recognise(state | {"pos_embed_spatial": torch.zeros(1, 4, 8)}, described=False) == "pyslowfast"
    with pytest.raises(ConvertError, match="V-JEPA"):
        encoder_from_foreign(state, hints=HINTS)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("patch_embed.proj.weight", (8, 3, 16, 16), "image model"),
        ("vit.embeddings.patch_embeddings.projection.weight", (8, 3, 16, 16), "image model"),
        ("patch_embed.proj.weight", (8, 1, 2, 16, 16), r"\(width, 3, frames, p, p\)"),
        ("patch_embed.proj.weight", (8, 3, 2, 16, 14), r"\(width, 3, frames, p, p\)"),
        ("patch_embed.proj.weight", (8, 768), r"\(width, 3, frames, p, p\)"),
    ],
)
def test_patches_of_another_shape_are_refused_with_it(name: str, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(ConvertError, match=told) as error:
        encoder_from_foreign(
            shared_names() | {"patch_embed.proj.weight": torch.zeros(8, 3, 2, 16, 16), name: torch.zeros(shape)}
        )
    assert str(shape) in str(error.value)


def test_unknown_names_are_told_with_shapes_and_the_closest_format() -> None:
    state = {"blocks.3.norm1.weight": torch.zeros(8), "patch_embed.proj.bias": torch.zeros(8), "x": torch.zeros(2, 3)}
    with pytest.raises(ConvertError, match=r"norm1\.weight \(8,\), .*x \(2, 3\)\); closest to \w+, of whose names"):
        recognise(state)


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (fractions.Fraction(1, 3), r"fractions\.Fraction"),
        (Path("a"), r"pathlib\.\w*PosixPath"),
        (CONFIG, "EncoderConfig"),
    ],
)
def test_a_refused_pickle_says_what_was_refused(thing: Any, name: str, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "config": thing}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=f"refused, it holds an object of .*{name}.*save its state dict alone"):
        open_encoder(tmp_path / "a.pth")


def test_a_file_that_is_no_pickle_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match="refused, it is damaged") as error:
        open_encoder(tmp_path / "a.pth")
    assert "weights_only" not in str(error.value)
