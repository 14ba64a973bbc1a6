"""Foreign formats: PySlowFast, cyrilzakka/MAE3D and VideoMAE, in names, round trips and numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
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
from mae3d.weights.files import open_encoder

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
VIDEOMAE = ENCODER | {"cls_embed": False, "sep_pos_embed": False} | IMAGENET


def model_of(variant: dict[str, Any]) -> MAE:
    torch.manual_seed(0)
    model = MAE(MAEConfig(**(SMALL | variant)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # no two alike, none zero
    return model


def videomae_checkpoint() -> dict[str, Tensor]:
    """Return a checkpoint as VideoMAE's pretraining saves it (docs/upstream.md), with a part of its decoder."""
    torch.manual_seed(0)
    names: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (48, 3, 2, 8, 8), "patch_embed.proj.bias": (48,)}
    for i in range(2):
        names |= {f"blocks.{i}.{norm}.{kind}": (48,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        names |= {f"blocks.{i}.attn.{name}": (48,) for name in ("q_bias", "v_bias", "proj.bias")}
        names |= {f"blocks.{i}.attn.qkv.weight": (144, 48), f"blocks.{i}.attn.proj.weight": (48, 48)}
        names |= {f"blocks.{i}.mlp.fc1.weight": (192, 48), f"blocks.{i}.mlp.fc1.bias": (192,)}
        names |= {f"blocks.{i}.mlp.fc2.weight": (48, 192), f"blocks.{i}.mlp.fc2.bias": (48,)}
    names |= {"norm.weight": (48,), "norm.bias": (48,)}
    decoder: dict[str, tuple[int, ...]] = {"encoder_to_decoder.weight": (24, 48), "mask_token": (1, 1, 24)}
    decoder |= {"decoder.blocks.0.attn.qkv.weight": (72, 24), "decoder.head.bias": (384,)}
    shapes = {f"encoder.{name}": shape for name, shape in names.items()} | decoder
    return {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}


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
    with pytest.raises(ConvertError, match="unknown format 'torch'; known: mae_st"):
        to_foreign(state, model.config, format="torch")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConvertError, match=r"no known names of tensors \(fc\.weight"):
        from_foreign({"fc.weight": torch.zeros(2, 2)})


def test_a_videomae_encoder(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    foreign = videomae_checkpoint()
    config, state = encoder_from_foreign(foreign, hints=HINTS)
    assert replace(config, preset=VIDEOMAE["preset"]) == EncoderConfig(**VIDEOMAE)
    assert "4 tensors beside the encoder are left out" in caplog.text
    encoder = Encoder(config)
    encoder.load_state_dict(state)
    query, key, value = state["blocks.0.attn.qkv.bias"].chunk(3)
    assert torch.equal(query, foreign["encoder.blocks.0.attn.q_bias"])
    assert torch.equal(value, foreign["encoder.blocks.0.attn.v_bias"])
    assert not key.any()
    # sin and cos in turn; the second pair of dimensions has the wavelength 2 pi x 10000^(2/48)
    angle = torch.tensor(5 / 10_000 ** (2 / 48))
    torch.testing.assert_close(state["positions.joint"][0, 5, 2:4], torch.stack([angle.sin(), angle.cos()]))
    torch.testing.assert_close(state["positions.joint"][0, 0], torch.tensor([0.0, 1.0]).repeat(24))
    back = encoder_to_foreign(encoder.state_dict(), config, format="videomae")
    assert back.keys() == {name for name in foreign if name.startswith("encoder.")}
    assert all(torch.equal(back[name], foreign[name]) for name in back)


def test_a_finetuned_videomae_and_its_left_over_keys() -> None:
    pretrained = videomae_checkpoint()
    foreign = {n.removeprefix("encoder."): t for n, t in pretrained.items() if n.startswith("encoder.")}
    foreign = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in foreign.items()
    }
    _, state = encoder_from_foreign(foreign | {"head.weight": torch.zeros(5, 48)}, hints=HINTS)
    assert torch.equal(state["norm.weight"], pretrained["encoder.norm.weight"])
    with pytest.raises(ConvertError, match=r"left over: blocks\.0\.gamma_1"):
        encoder_from_foreign(foreign | {"blocks.0.gamma_1": torch.ones(48)}, hints=HINTS)


def test_videomae_cannot_hold_learned_positions_or_a_bias_of_the_keys() -> None:
    config, state = encoder_from_foreign(videomae_checkpoint(), hints=HINTS)
    for name, message in (("positions.joint", "positions are fixed"), ("blocks.1.attn.qkv.bias", "bias of the keys")):
        with pytest.raises(ConvertError, match=message):
            encoder_to_foreign(state | {name: state[name] + 1}, config, format="videomae")


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


def in_transformers_names(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make VideoMAE's state dict as transformers.VideoMAEForPreTraining saves it."""
    inner = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    inner |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    outer = {"encoder.patch_embed.proj": "embeddings.patch_embeddings.projection", "encoder.norm": "layernorm"}
    theirs: dict[str, Tensor] = {}
    for name, tensor in foreign.items():
        module, _, kind = name.rpartition(".")
        if module in outer:
            theirs[f"videomae.{outer[module]}.{kind}"] = tensor
        elif name.startswith("encoder.blocks."):
            _, _, number, part = module.split(".", 3)
            layer = f"videomae.encoder.layer.{number}"
            if part == "attn":
                theirs[f"{layer}.attention.attention.{kind}"] = tensor
            elif part == "attn.qkv":
                for x, matrix in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    theirs[f"{layer}.attention.attention.{x}.weight"] = matrix
            else:
                theirs[f"{layer}.{inner[part]}.{kind}"] = tensor
        else:
            theirs[name] = tensor
    return theirs


def test_videomae_in_the_names_of_transformers_is_the_same_encoder(tmp_path: Path) -> None:
    foreign = videomae_checkpoint()
    theirs = in_transformers_names(foreign)
    assert recognise(theirs) == "videomae"
    assert recognise({name: tensor for name, tensor in theirs.items() if "encoder_to" not in name}) == "videomae"
    assert not any(".blocks." in name for name in theirs if name.startswith("videomae."))
    config, state = encoder_from_foreign(foreign, hints=HINTS)
    again, same_state = encoder_from_foreign(theirs, hints=HINTS)
    assert again == config
    assert state.keys() == same_state.keys()
    assert all(torch.equal(state[name], same_state[name]) for name in state)
    lost = {
        name: tensor for name, tensor in theirs.items() if not name.endswith("layer.1.attention.attention.key.weight")
    }
    with pytest.raises(ConvertError, match=r"missing: blocks\.1\.attn\.qkv\.weight; left over: .*query\.weight"):
        encoder_from_foreign(lost, hints=HINTS)
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, tmp_path / "model.safetensors")
    sizes = {"model_type": "videomae", "num_attention_heads": 3, "image_size": 32, "num_frames": 4}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    for file in ("model.safetensors", "pytorch_model.bin"):
        opened = open_encoder(tmp_path / file)
        assert opened.config == config
        assert all(torch.equal(opened.state_dict()[name], tensor) for name, tensor in state.items())
