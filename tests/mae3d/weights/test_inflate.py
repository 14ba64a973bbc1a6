"""Image ViTs become video encoders that compute the image's features of a still clip, or are refused by their parts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mae3d.analysis.features import embed
from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.model.mae import MAE
from mae3d.weights.convert import ConvertError, encoder_from_foreign, from_foreign
from mae3d.weights.files import WeightsError, load_model, open_encoder
from mae3d.weights.frames import inflate_frames, open_frame_encoder
from mae3d.weights.inflate import Inflate, refit_normalisation
from mae3d.weights.resize import encoder_state

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HINTS = {"num_heads": 2}


def image_model(**settings: Any) -> Any:
    """Return timm's ViT with weights of which no two are alike, layer scale included."""
    torch.manual_seed(3)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = timm.models.VisionTransformer(**(sizes | settings)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def still(frames: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return a clip of equal frames, and the frame as timm takes it."""
    torch.manual_seed(4)
    pixels = torch.randint(256, (1, 1, size, size, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(IMAGENET[name]) for name in ("mean", "std"))
    image = ((pixels[0] / 255 - mean) / std).permute(0, 3, 1, 2)
    return pixels.expand(-1, frames, -1, -1, -1), image


@pytest.mark.parametrize("how", ["mean", "center"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"init_values": 0.5},
        {"class_token": False, "global_pool": "avg"},
        {"no_embed_class": True, "qkv_bias": False},
    ],
    ids=["ViT", "layer scale", "no class token", "class token without a position"],
)
def test_a_still_clip_of_one_slot_has_the_images_features(how: str, settings: dict[str, Any]) -> None:
    model = image_model(**settings)
    for u in (1, 2, 3):
        config, state = encoder_from_foreign(model.state_dict(), hints=HINTS, inflate=Inflate(how, u, u))
        encoder = Encoder(config)
        encoder.load_state_dict(state)
        clip, image = still(u)
        with torch.no_grad():
            tokens = encoder.norm(encoder(clip))
            expected = model.fc_norm(model.forward_features(image)) if "global_pool" in settings else None
            expected = model.forward_features(image) if expected is None else expected
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    assert (config.mean, config.std) == (IMAGENET["mean"], IMAGENET["std"])


def test_dinov2_as_its_training_saves_it_is_the_same_encoder() -> None:
    """The teacher's backbone, its blocks in chunks, beside heads, and a token for masks."""
    plain = image_model(init_values=0.5).state_dict()
    chunked = {}
    for name, tensor in plain.items():
        if name.startswith("blocks."):
            number = name.split(".")[1]
            name = name.replace(f"blocks.{number}.", f"blocks.{int(number) // 2}.{number}.")
        chunked[f"teacher.backbone.{name}"] = tensor
    beside = {"teacher.backbone.mask_token": torch.zeros(1, 32), "teacher.dino_head.mlp.0.weight": torch.zeros(2, 2)}
    state = encoder_from_foreign(chunked | beside, hints=HINTS, inflate=Inflate("mean", 2, 2))[1]
    expected = encoder_from_foreign(plain, hints=HINTS, inflate=Inflate("mean", 2, 2))[1]
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_mmpretrains_names_are_read() -> None:
    plain, theirs = image_model(init_values=0.5).state_dict(), {"head.layers.head.weight": torch.zeros(2, 32)}
    inner = {"norm1.": "ln1.", "norm2.": "ln2.", "mlp.fc1.": "ffn.layers.0.0.", "mlp.fc2.": "ffn.layers.1."}
    inner |= {"ls1.gamma": "attn.gamma1.weight", "ls2.gamma": "ffn.gamma2.scale"}
    for name, tensor in plain.items():
        for ours, mm in inner.items():
            name = name.replace(ours, mm)
        name = name.replace("blocks.", "layers.").replace("patch_embed.proj.", "patch_embed.projection.")
        theirs[f"backbone.{'ln1.' + name[5:] if name.startswith('norm.') else name}"] = tensor
    state = encoder_from_foreign(theirs, hints=HINTS, inflate=Inflate("mean", 2, 2))[1]
    expected = encoder_from_foreign(plain, hints=HINTS, inflate=Inflate("mean", 2, 2))[1]
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_longer_clips_repeat_the_positions_and_another_size_interpolates_them() -> None:
    config, state = encoder_from_foreign(image_model().state_dict(), hints=HINTS, inflate=Inflate("mean", 8, 2))
    assert config.grid == (4, 4, 4)
    assert not state["positions.temporal"].any()
    encoder = Encoder(config)
    encoder.load_state_dict(state)
    tokens = embed(encoder, still(8)[0], pool="tokens").unflatten(1, (4, 16))
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), rtol=1e-4, atol=1e-4)


def test_center_sees_the_middle_frame_alone_and_mean_all() -> None:
    clip = torch.randint(256, (1, 2, 32, 32, 3), dtype=torch.uint8)
    other = torch.cat([255 - clip[:, :1], clip[:, 1:]], dim=1)
    for how, is_same in (("center", True), ("mean", False)):
        config, state = encoder_from_foreign(image_model().state_dict(), hints=HINTS, inflate=Inflate(how, 2, 2))
        encoder = Encoder(config)
        encoder.load_state_dict(state)
        assert torch.equal(embed(encoder, clip), embed(encoder, other)) == is_same


def test_an_image_mae_predicts_as_a_video_mae_what_it_predicts_of_an_image() -> None:
    """Its decoder is written out here: embed, un-shuffle, positions, blocks, norm, prediction."""
    model = image_model(init_values=0.5)
    torch.manual_seed(5)
    parts = nn.ModuleDict(
        {
            "decoder_embed": nn.Linear(32, 32),
            "decoder_blocks": nn.ModuleList([timm.models.vision_transformer.Block(32, 2, qkv_bias=True)]),
            "decoder_norm": nn.LayerNorm(32, eps=1e-6),
            "decoder_pred": nn.Linear(32, 8 * 8 * 3),
        }
    )
    for norm in (parts["decoder_blocks"][0].norm1, parts["decoder_blocks"][0].norm2):
        norm.eps = 1e-6
    tables = {"decoder_pos_embed": torch.randn(1, 17, 32), "mask_token": torch.randn(1, 1, 32)}
    foreign = model.state_dict() | parts.state_dict() | tables
    config, state = from_foreign(foreign, hints={"num_heads": 2, "decoder_num_heads": 2}, inflate=Inflate("mean", 2, 2))
    video = MAE(config).eval()
    video.load_state_dict(state)
    assert (config.decoder_depth, config.pred_u) == (1, 1)
    clip, image = still(2)
    noise = torch.rand(1, 16)
    with torch.no_grad():
        out = video(clip, noise, full=True)
        x = model.patch_embed(image) + model.pos_embed[:, 1:]
        kept = noise.argsort(dim=1)[0, : config.num_kept]
        x = torch.cat([model.cls_token + model.pos_embed[:, :1], x[:, kept]], dim=1)
        x = parts["decoder_embed"](model.norm(model.blocks(x)))
        whole = tables["mask_token"].repeat(1, 16, 1)
        whole[:, kept] = x[:, 1:]
        x = torch.cat([x[:, :1], whole], dim=1) + tables["decoder_pos_embed"]
        expected = parts["decoder_pred"](parts["decoder_norm"](parts["decoder_blocks"][0](x)))[:, 1:]
    torch.testing.assert_close(out.pred, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"reg_tokens": 4}, r"register tokens \(reg_token \(1, 4, 32\)\)"),
        ({"qk_norm": True}, r"norms of queries and keys"),
        ({"pre_norm": True}, r"norm before its blocks"),
        ({"mlp_layer": timm.layers.SwiGLU}, r"SwiGLU"),
        ({"pos_embed": "none"}, r"no table of positions"),
    ],
)
def test_what_our_blocks_lack_is_refused_by_name(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ConvertError, match=rf"width 32, 2 blocks, patches of 8 px.*{name}.*--encoder timm:NAME"):
        encoder_from_foreign(image_model(**settings).state_dict(), hints=HINTS, inflate=Inflate("mean"))


def test_an_image_model_is_inflated_only_when_requested_and_a_video_model_never(tmp_path: Path) -> None:
    save_file(image_model().state_dict(), tmp_path / "image.safetensors")
    with pytest.raises(WeightsError, match=r"an image ViT: width 32, 2 blocks.*--init_inflate mean.*timm:NAME"):
        open_encoder(tmp_path / "image.safetensors")
    with pytest.raises(WeightsError, match="num_heads"):  # no published width, and the file does not tell
        open_encoder(tmp_path / "image.safetensors", inflate=Inflate("mean"))
    (tmp_path / "config.json").write_text('{"model_type": "vit", "num_attention_heads": 2}')
    assert open_encoder(tmp_path / "image.safetensors", inflate=Inflate("mean", 4, 2)).config.grid == (2, 4, 4)
    assert open_encoder(tmp_path / "image.safetensors", inflate="center").config.grid == (8, 4, 4)
    torch.save(image_model(num_classes=3).state_dict(), tmp_path / "image.pth")
    with pytest.raises(WeightsError, match=r"no tensor 'decoder_embed\.weight'.*mae3d\.open_encoder"):
        load_model(tmp_path / "image.pth", inflate="mean")
    for wish, said in ((Inflate("sum"), "mean or center"), (Inflate("mean", 5, 2), "num_frames=5.*t_patch_size=2")):
        with pytest.raises(WeightsError, match=said):
            open_encoder(tmp_path / "image.safetensors", inflate=wish)
    state = image_model().state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, None]
    with pytest.raises(ConvertError, match="of clips already"):
        encoder_from_foreign(state, hints=HINTS, inflate=Inflate("mean"))


def test_timms_own_model_tells_heads_mean_and_std(tmp_path: Path) -> None:
    image = open_frame_encoder("test_vit", "none", num_frames=2)
    encoder = inflate_frames(image, Inflate("mean", 2, 2))
    assert (encoder.config.num_heads, encoder.config.mean) == (image.config.num_heads, image.config.mean)
    clip = torch.randint(256, (1, 1, 160, 160, 3), dtype=torch.uint8).expand(-1, 2, -1, -1, -1)
    expected = embed(image, clip, pool="tokens")[:, : encoder.config.num_tokens]
    torch.testing.assert_close(embed(encoder, clip, pool="tokens"), expected, rtol=1e-5, atol=1e-5)
    other = open_frame_encoder("test_vit", "none", num_frames=2)
    other.vit.blocks[1].mlp.act = nn.GELU(approximate="tanh")
    with pytest.raises(WeightsError, match=r"timm:test_vit.*exact GELU"):
        inflate_frames(other, Inflate("mean"))
    other.vit.blocks[1].mlp.act, other.vit.norm.eps = nn.GELU(), 1e-5
    with pytest.raises(WeightsError, match=r"timm:test_vit.*eps 1e-05"):
        inflate_frames(other, Inflate("mean"))


def test_another_normalisation_goes_into_the_patches() -> None:
    config, state = encoder_from_foreign(image_model().state_dict(), hints=HINTS, inflate=Inflate("mean", 2, 2))
    clip = torch.randint(256, (1, 2, 32, 32, 3), dtype=torch.uint8)
    encoder = Encoder(config)
    encoder.load_state_dict(state)
    before = embed(encoder, clip)
    target = replace(config, mean=EncoderConfig.mean, std=EncoderConfig.std)
    refit_normalisation(encoder, target)
    assert encoder.config == target
    torch.testing.assert_close(embed(encoder, clip), before, rtol=1e-5, atol=1e-5)


def test_an_inflated_encoder_of_grey_frames_sees_what_it_saw_of_colour_without_colours() -> None:
    clip = still(2)[0][..., :1].contiguous()
    config, state = encoder_from_foreign(
        image_model().state_dict(), hints=HINTS | IMAGENET, inflate=Inflate("mean", 2, 2)
    )
    encoder = Encoder(config)
    encoder.load_state_dict(state)
    before = embed(encoder, clip.expand(-1, -1, -1, -1, 3))
    grey = Encoder(replace(config, in_chans=1, mean=(0.3,), std=(0.2,)))
    refit_normalisation(encoder, grey.config)
    grey.load_state_dict(encoder_state(encoder.state_dict(), encoder.config, grey.config))
    torch.testing.assert_close(embed(grey, clip), before, rtol=1e-5, atol=1e-5)
