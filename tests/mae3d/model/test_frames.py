"""mae3d.model.frames: features are timm's own, averaged over frames; what timm's models do not fit is refused."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor

from mae3d.analysis.features import check_pool, embed
from mae3d.model.blocks import DropPath, Mlp
from mae3d.model.frames import FrameEncoder, frame_config

CLIP = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
# A class token; a register without one, normalised after pooling; pooled by attention; a norm before the blocks; rotary
# positions.
NAMES = ("test_vit", "test_vit2", "test_vit3", "vit_xsmall_patch16_clip_224", "eva02_tiny_patch14_224")


def clip_of(size: int) -> Tensor:
    return torch.nn.functional.interpolate(CLIP.flatten(0, 1).permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)[None]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_are_those_of_timms_own_forward_pass(name: str) -> None:
    size = 28 if "14" in name else 32
    torch.manual_seed(0)
    encoder = FrameEncoder(frame_config(name, num_frames=6, img_size=size)).eval()
    for parameter in encoder.vit.parameters():  # norms, scales and tokens that do nothing at first would hide errors
        parameter.add_(0.05 * torch.randn_like(parameter))
    config, clip = encoder.config, clip_of(size)
    assert config.grid == (6, 2, 2)
    theirs = timm.create_model(name, num_classes=0, img_size=size).eval()
    theirs.load_state_dict(encoder.vit.state_dict(), strict=False)  # without its pooling by attention
    pixels = (clip[0] / 255 - torch.tensor(config.mean)) / torch.tensor(config.std)
    tokens = theirs.forward_features(pixels.permute(0, 3, 1, 2))
    patches = tokens[:, theirs.num_prefix_tokens :]
    mean = theirs.fc_norm(patches.mean(dim=1)).mean(dim=0)[None]
    torch.testing.assert_close(embed(encoder, clip), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(clip), mean, rtol=1e-4, atol=1e-5)
    each = theirs.fc_norm(patches).flatten(0, 1)[None]
    torch.testing.assert_close(embed(encoder, clip, pool="tokens"), each, rtol=1e-4, atol=1e-5)
    if config.cls_embed:
        cls = theirs.fc_norm(tokens[:, 0]).mean(dim=0)[None]
        torch.testing.assert_close(embed(encoder, clip, pool="cls"), cls, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_layer_is_the_number_of_blocks_that_were_run() -> None:
    encoder = FrameEncoder(frame_config("test_vit2", num_frames=3, img_size=32)).eval()
    vit = encoder.vit
    x = vit._pos_embed(vit.patch_embed((CLIP[0].permute(0, 3, 1, 2) / 255 - 0.5) / 0.5))
    for blocks in range(encoder.config.depth):
        expected = x[:, 1:].flatten(0, 1)[None]
        torch.testing.assert_close(embed(encoder, CLIP[:1], layer=blocks, pool="tokens"), expected)
        x = vit.blocks[blocks](x)
    last = vit.fc_norm(x[:, 1:].mean(dim=1)).mean(dim=0)[None]
    torch.testing.assert_close(embed(encoder, CLIP[:1], layer=encoder.config.depth), last)


@torch.no_grad()
def test_a_clip_backwards_or_normalised_before_has_the_same_features() -> None:
    encoder = FrameEncoder(frame_config("test_vit", num_frames=3, img_size=32)).eval()
    torch.testing.assert_close(embed(encoder, CLIP.flip(1)), embed(encoder, CLIP))
    normalised = ((CLIP / 255 - 0.5) / 0.5).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(embed(encoder, normalised), embed(encoder, CLIP))


@torch.no_grad()
def test_clips_of_a_batch_do_not_mix() -> None:
    encoder = FrameEncoder(frame_config("test_vit", num_frames=3, img_size=32)).eval()
    for pool in ("mean", "cls", "tokens"):
        each = [encoder.features(clip[None], blocks=6, pool=pool) for clip in CLIP]
        torch.testing.assert_close(encoder.features(CLIP, blocks=6, pool=pool), torch.cat(each), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(CLIP), torch.cat([encoder(clip[None]) for clip in CLIP]), rtol=1e-4, atol=1e-5)


def test_models_and_sizes_that_do_not_fit_are_refused() -> None:
    for name, said in (
        ("test_vitt", "did you mean test_vit"),
        ("test_convnext", "ConvNeXt.*VisionTransformer"),
        ("test_vit_relpos", "VisionTransformerRelPos"),
    ):
        with pytest.raises(ValueError, match=f"timm:{name}.*{said}"):
            frame_config(name)
    with pytest.raises(ValueError, match=r"img_size=40.*patch_size=16"):
        frame_config("test_vit", img_size=40)
    config = frame_config("test_vit", num_frames=3)
    assert (config.img_size, config.mean, config.grid) == (160, (0.5, 0.5, 0.5), (3, 10, 10))
    with pytest.raises(ValueError, match=r"test_vit has depth 6, not 2"):
        FrameEncoder(replace(config, depth=2))
    encoder = FrameEncoder(frame_config("test_vit2", num_frames=3, img_size=32))
    with pytest.raises(ValueError, match="class token"):
        check_pool(encoder, "cls")  # its one prefix is a register
    with pytest.raises(ValueError, match=r"3 frames, 32 x 32 pixels"):
        embed(encoder, CLIP[:, :2])


@torch.no_grad()
def test_the_video_encoders_blocks_compute_and_drop_as_timms() -> None:
    tokens = torch.randn(6, 5, 8)
    ours, theirs = Mlp(8, 16), timm.layers.Mlp(8, 16)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(tokens), theirs(tokens))
    for share in (0.3, 1.0):
        dropped = []
        for kind in (DropPath, timm.layers.DropPath):
            torch.manual_seed(0)
            dropped.append(kind(share)(tokens))
        assert torch.equal(*dropped)
        assert DropPath(share).eval()(tokens) is tokens
