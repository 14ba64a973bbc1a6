"""mae3d.model.config: presets, derived sizes and refusals."""

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from mae3d.model.config import PRESETS, EncoderConfig, MAEConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_complete_and_repeat_from_their_own_values(preset: str) -> None:
    config = MAEConfig(preset=preset)
    assert None not in asdict(config).values()
    assert MAEConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_a_size_wins_over_the_preset() -> None:
    config = MAEConfig(preset="mae_vit_tiny_patch16", depth=3, decoder_depth=0)
    assert (config.depth, config.decoder_depth, config.embed_dim) == (3, 0, 192)


def test_published_numbers() -> None:
    large = MAEConfig()
    assert (large.num_tokens, large.num_kept, large.pred_t_dim, large.pred_u) == (1568, 156, 8, 1)
    huge = MAEConfig(preset="mae_vit_huge_patch14", pred_t_dim=16)
    assert (huge.num_tokens, huge.num_kept, huge.pred_u) == (2048, 204, 2)


def test_three_colours_come_back_from_json_as_tuples() -> None:
    config = EncoderConfig(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])  # type: ignore[arg-type]
    assert config.mean == (0.485, 0.456, 0.406)
    assert hash(config) == hash(EncoderConfig(**json.loads(json.dumps(asdict(config)))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "mae_vit_larg_patch16"}, "did you mean mae_vit_large_patch16"),
        ({"img_size": 100}, "img_size=100 must be a multiple of patch_size=16; 112 is one"),
        ({"num_frames": 15}, "num_frames=15"),
        ({"num_heads": 7}, "num_heads=7"),
        ({"decoder_num_heads": 5}, "decoder_num_heads=5"),
        ({"pred_t_dim": 6}, "these fit: 8, 16"),
        ({"pred_t_dim": 32}, "these fit: 8, 16"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"mask_ratio": -0.1}, "mask_ratio=-0.1"),
        ({"mask_ratio": 0.9999}, "keeps 0 of 1568"),
        ({"mask_ratio": 0.0}, "keeps 1568 of 1568"),
        ({"embed_dim": 0}, "embed_dim=0"),
        ({"depth": -1}, "depth=-1"),
        ({"std": 0.0}, "std=0.0"),
        ({"pos_init": "sine"}, "pos_init='sine' must be normal or sines or fixed"),
        ({"pos_init": "sines", "embed_dim": 18, "num_heads": 3}, "embed_dim=18 must be a multiple of 4"),
        ({"pos_init": "fixed"}, "cls_embed=false and sep_pos_embed=false"),
        ({"pos_init": "sines", "decoder_embed_dim": 18, "decoder_num_heads": 3}, "decoder_embed_dim=18"),
        ({"mean": (0.5, 0.5)}, "three"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAEConfig(**settings)


def test_reading_the_config_does_not_import_torch() -> None:
    code = "import sys, mae3d, mae3d.model.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import mae3d

    assert set(mae3d.__all__) <= set(dir(mae3d))
    with pytest.raises(AttributeError, match="Autoencoder"):
        _ = mae3d.Autoencoder
