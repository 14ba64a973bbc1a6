"""VideoMAE's encoder, in its own names and those of Hugging Face's transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.weights.convert import ConvertError, encoder_from_foreign, encoder_to_foreign, recognise
from mae3d.weights.files import open_encoder

HINTS = {"num_heads": 3, "img_size": 32, "num_frames": 4}
VIDEOMAE: dict[str, Any] = {
    "preset": "mae_vit_tiny_patch16", "img_size": 32, "patch_size": 8, "num_frames": 4, "embed_dim": 48, "depth": 2,
    "num_heads": 3, "cls_embed": False, "sep_pos_embed": False, "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}  # fmt: skip


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
    with pytest.raises(ConvertError, match=r"left over: blocks\.0\.gamma_3"):
        encoder_from_foreign(foreign | {"blocks.0.gamma_3": torch.ones(48)}, hints=HINTS)


def test_layer_scale_goes_into_the_layers_that_it_scales() -> None:
    foreign, gamma = videomae_checkpoint(), torch.rand(48)
    plain = encoder_from_foreign(foreign, hints=HINTS)[1]
    scaled = {"encoder.blocks.0.gamma_1": gamma, "encoder.blocks.1.gamma_2": 2 * gamma}
    state = encoder_from_foreign(foreign | scaled, hints=HINTS)[1]
    changed = {name for name in state if not torch.equal(state[name], plain[name])}
    parts = ("blocks.0.attn.proj", "blocks.1.mlp.fc2")
    assert changed == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    x = torch.randn(3, 192)
    ours = x @ state["blocks.1.mlp.fc2.weight"].T + state["blocks.1.mlp.fc2.bias"]
    theirs = 2 * gamma * (x @ plain["blocks.1.mlp.fc2.weight"].T + plain["blocks.1.mlp.fc2.bias"])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def in_mmactions_names(foreign: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make VideoMAE's state dict as mmaction2 saves its finetuned recognizer."""
    inner = {"patch_embed.proj.": "patch_embed.projection.", "mlp.fc1.": "mlp.layers.0.0.", "mlp.fc2.": "mlp.layers.1."}
    theirs = {"cls_head.fc_cls.weight": torch.zeros(5, 48), "cls_head.fc_cls.bias": torch.zeros(5)}
    for name, tensor in foreign.items():
        if name.startswith("encoder."):
            name = name.removeprefix("encoder.").replace("norm.", "fc_norm.", int(name.startswith("encoder.norm")))
            for original, mm in inner.items():
                name = name.replace(original, mm)
            theirs[f"backbone.{name}"] = tensor
    return theirs


def test_videomae_of_mmaction2_is_the_same_encoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    foreign = videomae_checkpoint()
    config, state = encoder_from_foreign(foreign, hints=HINTS)
    theirs = in_mmactions_names(foreign) | {"backbone.pos_embed": state["positions.joint"].clone()}
    torch.save({"meta": {"epoch": 3}, "state_dict": theirs, "message_hub": {}}, tmp_path / "epoch_3.pth")
    again, same = encoder_from_foreign(torch.load(tmp_path / "epoch_3.pth")["state_dict"], hints=HINTS)
    assert again == config
    assert all(torch.equal(same[name], tensor) for name, tensor in state.items())
    assert "2 tensors outside backbone are left out: cls_head.fc_cls.bias" in caplog.text
    with pytest.raises(ConvertError, match="pos_embed is learned"):
        encoder_from_foreign(theirs | {"backbone.pos_embed": state["positions.joint"] + 1}, hints=HINTS)


def test_videomae_cannot_hold_learned_positions_or_a_bias_of_the_keys() -> None:
    config, state = encoder_from_foreign(videomae_checkpoint(), hints=HINTS)
    for name, message in (("positions.joint", "positions are fixed"), ("blocks.1.attn.qkv.bias", "bias of the keys")):
        with pytest.raises(ConvertError, match=message):
            encoder_to_foreign(state | {name: state[name] + 1}, config, format="videomae")


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
    in_version_5 = {
        name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias"): t for name, t in theirs.items()
    }
    _, newest = encoder_from_foreign(in_version_5, hints=HINTS)
    assert all(torch.equal(state[name], newest[name]) for name in state)
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
