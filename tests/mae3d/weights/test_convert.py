"""mae3d.weights.convert: round trips, settings read off tensors, every key accounted for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mae3d.model.config import MAEConfig
from mae3d.model.encoder import Encoder
from mae3d.model.mae import MAE
from mae3d.weights.convert import ConvertError, encoder_from_foreign, from_foreign, infer_config, to_foreign

SMALL: dict[str, Any] = {
    "preset": "mae_vit_tiny_patch16",
    "img_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "depth": 2,
    "num_heads": 3,
    "decoder_num_heads": 3,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"cls_embed": False},
    {"sep_pos_embed": False},
    {"sep_pos_embed": False, "cls_embed": False, "pred_t_dim": 8},
    {"qkv_bias": False, "t_patch_size": 4, "pred_t_dim": 4, "mlp_ratio": 2.0},
]
HINTS = {"num_heads": 3, "decoder_num_heads": 3, "img_size": 32, "norm_pix_loss": True, "mask_ratio": 0.9}


def model_of(variant: dict[str, Any]) -> MAE:
    model = MAE(MAEConfig(**(SMALL | variant)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # no two alike, none zero
    return model


def foreign_of(variant: dict[str, Any]) -> dict[str, Tensor]:
    model = model_of(variant)
    return to_foreign(model.state_dict(), model.config, format="mae_st")


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back(variant: dict[str, Any]) -> None:
    model = model_of(variant)
    foreign = to_foreign(model.state_dict(), model.config, format="mae_st")
    _, back = from_foreign(foreign, model.config, format="mae_st")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    assert all(tensor.is_contiguous() for tensor in foreign.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_are_read_off_the_tensors(variant: dict[str, Any]) -> None:
    inferred = infer_config(foreign_of(variant), hints=HINTS)
    expected = MAEConfig(**(SMALL | variant))
    assert replace(inferred, preset=expected.preset) == expected


def test_names_and_shapes_of_the_published_large_model() -> None:
    with torch.device("meta"):
        config = MAEConfig()
        foreign = to_foreign(MAE(config).state_dict(), config, format="mae_st")
    shapes = {name: tuple(tensor.shape) for name, tensor in foreign.items()}
    assert len(shapes) == 467
    assert sum(tensor.numel() for tensor in foreign.values()) == 317_731_584
    assert shapes["patch_embed.proj.weight"] == (1024, 3, 2, 16, 16)
    assert shapes["blocks.23.attn.q.weight"] == (1024, 1024)
    assert shapes["pos_embed_spatial"] == (1, 196, 1024)
    assert shapes["decoder_pos_embed_class"] == (1, 1, 512)
    assert shapes["decoder_pred.weight"] == (768, 512)


def test_published_large_model_is_recognised_without_hints(caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        config = MAEConfig()
        foreign = to_foreign(MAE(config).state_dict(), config, format="mae_st")
    assert infer_config(foreign, hints={}) == config
    assert "norm_pix_loss" in caplog.text


def test_wrapped_names_lose_their_prefix() -> None:
    foreign = {f"module.{name}": tensor for name, tensor in foreign_of({}).items()}
    config, state = from_foreign(foreign, hints=HINTS, format="mae_st")
    MAE(config).load_state_dict(state)


def test_of_two_keys_for_one_tensor_none_is_dropped() -> None:
    foreign = foreign_of({})
    with pytest.raises(ConvertError, match=r"norm\.bias and module\.norm\.bias are the same tensor by name"):
        from_foreign(foreign | {"module.norm.bias": torch.ones(192)}, hints=HINTS, format="mae_st")


def test_a_missing_and_a_left_over_key_are_named() -> None:
    foreign = foreign_of({})
    foreign["head.weight"] = foreign.pop("blocks.1.attn.k.bias")
    with pytest.raises(ConvertError, match=r"missing: blocks\.1\.attn\.k\.bias; left over: head\.weight"):
        from_foreign(foreign, hints=HINTS, format="mae_st")


def test_a_key_missing_on_our_side_is_named() -> None:
    model = model_of({})
    state = model.state_dict()
    del state["decoder.mask_token"]
    with pytest.raises(ConvertError, match=r"missing: decoder\.mask_token"):
        to_foreign(state, model.config, format="mae_st")


def test_what_is_no_pretraining_checkpoint_is_refused() -> None:
    with pytest.raises(ConvertError, match=r"no tensor 'patch_embed\.proj\.weight'"):
        from_foreign({"fc.weight": torch.zeros(2, 2)}, format="mae_st")


def test_heads_of_an_unpublished_size_must_be_given() -> None:
    foreign = foreign_of({})
    with pytest.raises(ConvertError, match="num_heads"):
        infer_config(foreign, hints={})


def test_an_encoder_alone() -> None:
    foreign = foreign_of({})
    config = MAEConfig(**SMALL)
    names = {n for n in foreign if not n.startswith("decoder_") and n != "mask_token"}
    state = encoder_from_foreign({name: foreign[name] for name in names}, config, format="mae_st")[1]
    Encoder(config).load_state_dict(state)
