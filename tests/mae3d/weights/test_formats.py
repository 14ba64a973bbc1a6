"""Foreign formats: mae_st, PySlowFast and cyrilzakka/MAE3D, in names, round trips and numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.encoder import Encoder
from mae3d.model.mae import MAE
from mae3d.weights.convert import (
    ConvertError,
    classifier_from_foreign,
    classifier_to_foreign,
    encoder_from_foreign,
    encoder_to_foreign,
    from_foreign,
    infer_config,
    is_classifier,
    recognise,
    to_foreign,
)

# Two heads of 64 in the decoder, as PySlowFast would have it; the other formats do not mind.
SMALL: dict[str, Any] = {
    "preset": "mae_vit_tiny_patch16", "img_size": 32, "patch_size": 8, "num_frames": 4, "embed_dim": 48, "depth": 2,
    "num_heads": 3, "decoder_embed_dim": 128, "decoder_depth": 2, "decoder_num_heads": 2,
}  # fmt: skip
HINTS = {"num_heads": 3, "img_size": 32, "num_frames": 4, "decoder_num_heads": 2}
OFFICIAL = {"decoder_cls": "encoder", "decoder_sep_pos_embed": False, "target_rule": "stride"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
M3D = {"decoder_cls": "encoder", "pred_t_dim": 4, "norm_pix_loss": False} | IMAGENET
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mae_st", {}),
    ("mae_st", {"cls_embed": False, "sep_pos_embed": False, "qkv_bias": False}),
    ("pyslowfast", OFFICIAL),
    ("pyslowfast", OFFICIAL | {"decoder_sep_pos_embed": True}),
    ("pyslowfast", OFFICIAL | {"sep_pos_embed": False, "decoder_depth": 3}),
    ("pyslowfast", OFFICIAL | {"cls_embed": False, "qkv_bias": False, "pred_t_dim": 4}),
    ("m3d", M3D),
]
ENCODER: dict[str, Any] = {name: SMALL[name] for name in SMALL if not name.startswith("decoder")}


def model_of(variant: dict[str, Any]) -> MAE:
    torch.manual_seed(0)
    model = MAE(MAEConfig(**(SMALL | variant)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # no two alike, none zero
    return model


def loss_of(config: MAEConfig, state: dict[str, Tensor]) -> Tensor:
    model = MAE(config)
    model.load_state_dict(state)
    torch.manual_seed(1)
    clip = torch.randint(256, (2, config.num_frames, config.img_size, config.img_size, 3), dtype=torch.uint8)
    loss: Tensor = model(clip, torch.rand(2, config.num_tokens)).loss
    return loss.detach()


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_there_and_back_the_same_bits_under_its_own_name(name: str, variant: dict[str, Any]) -> None:
    model = model_of(variant)
    foreign = to_foreign(model.state_dict(), model.config, format=name)
    assert recognise(foreign) == name
    wrapped = {f"module.{key}": tensor for key, tensor in foreign.items()}
    config, back = from_foreign(wrapped, hints=HINTS | {"norm_pix_loss": model.config.norm_pix_loss})
    assert replace(config, preset=model.config.preset) == model.config  # settings are read off the tensors
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in model.state_dict().items())
    assert all(tensor.is_contiguous() for tensor in foreign.values())


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_key_too_many_and_one_too_few_are_named(name: str, variant: dict[str, Any]) -> None:
    model = model_of(variant)
    foreign = to_foreign(model.state_dict(), model.config, format=name)
    foreign["gamma"] = foreign.pop("decoder_embed.bias")
    with pytest.raises(ConvertError, match=r"missing: decoder_embed\.bias; left over: gamma"):
        from_foreign(foreign, model.config, format=name)


def test_names_and_shapes_of_the_official_large_checkpoint() -> None:
    """docs/upstream.md: fused qkv, the decoder under pred_head, joint decoder positions, none for a class token."""
    with torch.device("meta"):
        config = MAEConfig(decoder_num_heads=8, **OFFICIAL)
        foreign = to_foreign(MAE(config).state_dict(), config, format="pyslowfast")
    shapes = {name: tuple(tensor.shape) for name, tensor in foreign.items()}
    assert shapes["blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert shapes["pred_head.transforms.0.3.attn.qkv.bias"] == (1536,)
    assert shapes["pred_head.transforms.0.4.weight"] == (512,)
    assert shapes["pred_head.projections.0.weight"] == (768, 512)
    assert shapes["decoder_pos_embed"] == (1, 1569, 512)
    assert shapes["pos_embed_class"] == (1, 1, 1024)
    assert "decoder_cls_token" not in shapes
    assert infer_config(foreign, hints={}, format="pyslowfast") == config  # eight heads follow from the width


def test_an_official_checkpoint_reconstructs_as_the_same_weights_by_mae_st_names() -> None:
    """Without a class token, with joint positions and all frames predicted, both projects have the same model."""
    variant = {"cls_embed": False, "sep_pos_embed": False, "pred_t_dim": 4}
    model = model_of(variant)
    by_mae_st = to_foreign(model.state_dict(), model.config, format="mae_st")
    official = {}
    for key, tensor in by_mae_st.items():  # renamed here, not by the code under test
        key = key.replace("decoder_blocks.", "pred_head.transforms.0.").replace(
            "decoder_pred", "pred_head.projections.0"
        )
        key = key.replace("decoder_norm", "pred_head.transforms.0.2")
        official[key] = tensor
    for key in [key for key in official if ".attn.q." in key]:
        split = [official.pop(key.replace(".attn.q.", f".attn.{x}.")) for x in "qkv"]
        official[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(split)
    loss = loss_of(*from_foreign(official, hints=HINTS))
    assert torch.isfinite(loss)
    torch.testing.assert_close(loss, loss_of(*from_foreign(by_mae_st, hints=HINTS)), rtol=0, atol=0)


def test_an_official_checkpoint_with_a_class_token_needs_what_mae_st_cannot_say() -> None:
    """The token that is passed on, the joint positions and the heads all reach the loss."""
    model = model_of(OFFICIAL)
    foreign = to_foreign(model.state_dict(), model.config, format="pyslowfast")
    config, state = from_foreign(foreign, hints=HINTS)
    loss = loss_of(config, state)
    assert torch.isfinite(loss)
    assert loss != loss_of(replace(config, decoder_num_heads=4), state)
    assert loss != loss_of(replace(config, target_rule="even"), state)
    separate = replace(config, decoder_cls="own")
    assert loss != loss_of(separate, state | {"decoder.cls_token": torch.zeros(1, 1, 128)})
    with pytest.raises(ConvertError, match=r"decoder_sep_pos_embed=False .* decoder_cls='encoder' \(it has 'own'\)"):
        to_foreign(model.state_dict(), model.config, format="mae_st")


@pytest.mark.parametrize("variant", [OFFICIAL, M3D, {"decoder_sep_pos_embed": False}])
def test_the_decoder_sees_what_upstream_says(variant: dict[str, Any]) -> None:
    """docs/upstream.md step by step: embed all, un-shuffle, class token first, add every position."""
    model = model_of(variant)
    config, decoder = model.config, model.decoder
    clip = torch.randint(256, (2, config.num_frames, config.img_size, config.img_size, 3), dtype=torch.uint8)
    noise = torch.rand(2, config.num_tokens)
    with torch.no_grad():
        out = model(clip, noise, full=True)
        ids_keep = noise.argsort(dim=1)[:, : config.num_kept]
        embedded = decoder.embed(model.encoder.norm(model.encoder(clip, ids_keep)))
        x = torch.cat([embedded[:, 1:], decoder.mask_token.expand(2, config.num_tokens - config.num_kept, -1)], dim=1)
        x = x.gather(1, out.ids_restore[..., None].expand(-1, -1, x.shape[-1]))
        cls = embedded[:, :1] if config.decoder_cls == "encoder" else decoder.cls_token.expand(2, -1, -1)
        tables = decoder.positions
        if config.decoder_sep_pos_embed:
            table = torch.cat(
                [tables.cls, (tables.temporal[:, :, None] + tables.spatial[:, None]).flatten(1, 2)], dim=1
            )
        else:
            table = tables.joint
        x = decoder.blocks(torch.cat([cls, x], dim=1) + table)
        expected = decoder.head(decoder.norm(x))[:, 1:]
    torch.testing.assert_close(out.pred, expected, rtol=1e-5, atol=1e-5)


def test_what_a_format_cannot_hold_is_refused_by_name() -> None:
    model = model_of({})
    state = model.state_dict()
    with pytest.raises(ConvertError, match=r"m3d .*cannot hold decoder_cls='own' .*, pred_t_dim=2 \(it has 4\)"):
        to_foreign(state, model.config, format="m3d")
    with pytest.raises(ConvertError, match=r"pyslowfast .*cannot hold decoder_cls='own'"):
        to_foreign(state, model.config, format="pyslowfast")
    with pytest.raises(ConvertError, match="cannot hold decoder_num_heads=4"):
        to_foreign(state, replace(model.config, decoder_cls="encoder", decoder_num_heads=4), format="pyslowfast")
    with pytest.raises(ConvertError, match=r"cannot hold cls_embed=True .* a decoder"):
        to_foreign(state, model.config, format="videomae")
    turned = MAE(replace(model.config, rope="vjepa2"))
    for name in ("mae_st", "m3d", "pyslowfast", "videomae", "image"):
        with pytest.raises(ConvertError, match=r"cannot hold .*rope='vjepa2' \(it has 'none'\)"):
            to_foreign(turned.state_dict(), turned.config, format=name)
    with pytest.raises(ConvertError, match=r"vjepa2 .*cannot hold .*a decoder"):
        to_foreign(turned.state_dict(), turned.config, format="vjepa2")
    with pytest.raises(ConvertError, match="unknown format 'torch'; known: mae_st"):
        to_foreign(state, model.config, format="torch")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConvertError, match=r"no known names of tensors \(fc\.weight"):
        from_foreign({"fc.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_encoder_of_a_whole_checkpoint_and_of_one_without_a_decoder(name: str, variant: dict[str, Any]) -> None:
    model = model_of(variant)
    foreign = to_foreign(model.state_dict(), model.config, format=name)
    alone = encoder_to_foreign(model.encoder.state_dict(), model.config, format=name)
    assert set(alone) < set(foreign)
    for given in (foreign, alone):
        config, state = encoder_from_foreign(given, format=name, hints=HINTS)
        Encoder(config).load_state_dict(state)
        assert all(torch.equal(state[key], tensor) for key, tensor in model.encoder.state_dict().items())


@pytest.mark.parametrize("name", ["mae_st", "pyslowfast"])
def test_a_finetuned_classifier_there_and_back(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = ClassifierConfig(**ENCODER, num_classes=7)
    model = Classifier(config)
    foreign = classifier_to_foreign(model.state_dict(), config, format=name)
    assert {"head.weight", "head.bias", "norm.weight"} <= foreign.keys()
    assert is_classifier(foreign)
    caplog.set_level("WARNING")
    again, state = classifier_from_foreign(foreign, hints={"num_heads": config.num_heads})
    assert replace(again, preset=config.preset) == config
    assert "pooling" in caplog.text
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    official = {key.replace("head.", "head.projection."): tensor for key, tensor in foreign.items()}
    assert is_classifier(official)
    assert classifier_from_foreign(official, config)[1].keys() == state.keys()
    with pytest.raises(ConvertError, match=r"left over: fc_norm\.weight"):
        classifier_from_foreign(foreign | {"fc_norm.weight": torch.zeros(1)}, config)
    del foreign["head.bias"]
    with pytest.raises(ConvertError, match=r"missing: head\.bias"):
        classifier_from_foreign(foreign, config)


def test_what_is_no_classifier_of_ours_is_refused() -> None:
    autoencoder = model_of({})
    assert not is_classifier(to_foreign(autoencoder.state_dict(), autoencoder.config, format="mae_st"))
    with pytest.raises(ConvertError, match=r"videomae .* has another classifier"):
        classifier_from_foreign({}, format="videomae")
