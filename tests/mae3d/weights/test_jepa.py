"""V-JEPA's encoders are known by their fixed positions or by having none; tests/peers compares outputs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae3d.analysis.features import embed
from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.weights.convert import ConvertError, encoder_from_foreign, encoder_to_foreign, recognise
from mae3d.weights.files import WeightsError, load_model, open_encoder
from mae3d.weights.jepa import fixed_grid, fixed_positions

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WIDTH = 192


def jepa(side: int = 14, t: int = 8, *, even: bool = True, table: bool = True) -> dict[str, Tensor]:
    """Return a small V-JEPA's encoder: 12 blocks of mae_vit_tiny_patch16's width, with a tiny MLP."""
    torch.manual_seed(0)
    config = EncoderConfig(
        **{"preset": "mae_vit_tiny_patch16", "mlp_ratio": 0.25, "cls_embed": False, "sep_pos_embed": False},
        **{"img_size": 32, "num_frames": 2},
    )
    state = encoder_to_foreign(Encoder(config).state_dict(), config, format="vjepa")
    del state["pos_embed"]
    return state | ({"pos_embed": fixed_positions(t, side, WIDTH, even=even)[None]} if table else {})


def test_the_fixed_table_is_sines_and_cosines_of_time_row_and_column() -> None:
    table = fixed_positions(3, 4, 60, even=True).unflatten(0, (3, 4, 4))
    angles = torch.tensor([2.0, 3.0, 1.0])[:, None] / 10_000 ** (torch.arange(10) / 10)
    torch.testing.assert_close(table[2, 3, 1], torch.stack([angles.sin(), angles.cos()], 1).flatten())
    half = fixed_positions(3, 4, 64, even=False).unflatten(0, (3, 4, 4))[2, 3, 1]
    assert (half[1], half[33], half[49]) == tuple(
        torch.tensor(n / 10_000 ** (1 / part)).sin() for n, part in ((2, 16), (3, 8), (1, 8))
    )
    for even in (True, False):
        for t, side in ((8, 14), (4, 2), (32, 16), (1, 3)):
            assert fixed_grid({"pos_embed": fixed_positions(t, side, 60 + 4, even=even)[None].bfloat16()}) == (t, side)
    assert fixed_grid({"pos_embed": torch.randn(1, 32, 64)}) is None


@pytest.mark.parametrize(
    ("side", "t", "name", "size"),
    [
        (14, 8, "vjepa", (224, 16)),
        (24, 8, "vjepa", (384, 16)),
        (16, 32, "vjepa2", (256, 64)),
        (24, 32, "vjepa2", (384, 64)),
    ],
)
def test_the_tables_grid_says_which_of_the_two_it_is(
    side: int, t: int, name: str, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    foreign = jepa(side, t)
    assert recognise(foreign, described=False) == name
    config, state = encoder_from_foreign({f"module.backbone.{key}": tensor for key, tensor in foreign.items()})
    assert (config.img_size, config.num_frames) == size
    assert (config.mean, config.std) == IMAGENET
    assert config.rope == ("none" if name == "vjepa" else "vjepa2")
    assert ("positions.joint" in state) == (name == "vjepa")
    assert "taken as that" in caplog.text


def test_a_config_decides_what_the_tensors_leave_open(tmp_path: Path) -> None:
    torch.save({"encoder": jepa(), "predictor": {"predictor_norm.weight": torch.ones(3)}}, tmp_path / "a.pt")
    found = open_encoder(tmp_path / "a.pt").config
    assert found.rope == "none"
    sizes = {"mlp_ratio": 0.25, "cls_embed": False, "img_size": 32, "num_frames": 4}
    config = EncoderConfig(preset="mae_vit_tiny_patch16", rope="vjepa2", **sizes)
    encoder = open_encoder(tmp_path / "a.pt", config=config)
    assert encoder.config == config
    assert not hasattr(encoder, "positions")
    with pytest.raises(WeightsError, match=r"V-JEPA.*mae3d\.open_encoder"):
        load_model(tmp_path / "a.pt")


def test_without_positions_it_is_v_jepa_2_of_64_frames_of_256_pixels() -> None:
    config, state = encoder_from_foreign(jepa(table=False))
    assert (config.rope, config.img_size, config.num_frames) == ("vjepa2", 256, 64)
    foreign = encoder_to_foreign(state, config, format="vjepa2")
    assert foreign.keys() == jepa(table=False).keys()
    with pytest.raises(ConvertError, match=r"cannot hold .*rope='vjepa2' \(it has 'none'\)"):
        encoder_to_foreign(state, config, format="vjepa")


@pytest.mark.parametrize(("width", "depth", "heads", "hidden"), [(1024, 24, 16, 4096), (1408, 40, 22, 6144)])
def test_published_sizes_have_their_heads(width: int, depth: int, heads: int, hidden: int) -> None:
    with torch.device("meta"):
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": hidden / width}
        config = EncoderConfig(**sizes, img_size=256, num_frames=64, patch_size=16, rope="vjepa2", cls_embed=False)
        state = Encoder(config).state_dict()
    found, converted = encoder_from_foreign(encoder_to_foreign(state, config, format="vjepa2"))
    assert (found.num_heads, found.depth) == (heads, depth)
    assert converted["blocks.1.mlp.fc1.weight"].shape == (hidden, width)
    with pytest.raises(ConvertError, match=r"width 64 with 1 blocks is no published size"):
        encoder_from_foreign(odd_size())


def odd_size() -> dict[str, Tensor]:
    config = EncoderConfig(embed_dim=64, depth=1, num_heads=2, rope="vjepa2", cls_embed=False)
    with torch.device("meta"):
        return encoder_to_foreign(Encoder(config).state_dict(), config, format="vjepa2")


def test_what_v_jepa_2_1_adds_to_all_tokens_goes_into_the_bias() -> None:
    plain = jepa(table=False)
    added = torch.randn(1, 1, WIDTH)
    norms = {f"norms_block.{i}.{kind}": torch.full((WIDTH,), i + 0.5) for i in range(4) for kind in ("weight", "bias")}
    theirs = {name: tensor for name, tensor in plain.items() if not name.startswith("norm.")} | norms
    theirs |= {"video_mod_embed": added, "img_mod_embed": added + 1}
    theirs |= {f"patch_embed_img.proj.{kind}": torch.zeros(1) for kind in ("weight", "bias")}
    config, state = encoder_from_foreign(theirs, hints={"img_size": 32, "num_frames": 4})
    assert (config.rope, config.grid) == ("vjepa2_1", (2, 2, 2))
    assert torch.equal(state["norm.bias"], norms["norms_block.3.bias"])
    encoder = Encoder(config)
    encoder.load_state_dict(state)
    clip = torch.randint(256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    without = encoder_from_foreign(theirs | {"video_mod_embed": 0 * added}, hints={"img_size": 32, "num_frames": 4})[1]
    difference = embed(encoder, clip, layer=0, pool="tokens")
    encoder.load_state_dict(without)
    difference = difference - embed(encoder, clip, layer=0, pool="tokens")
    torch.testing.assert_close(difference, added.expand_as(difference), rtol=1e-4, atol=1e-5)
