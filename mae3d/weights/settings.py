"""Settings of a foreign model are read off its tensors, its checkpoint's `args`, and what its project publishes.

format, tensors, hints ─► settings

    settings = encoder_settings("mae_st", state, hints={})
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from mae3d.io.shapes import Size, plain_size, sides, size_text
from mae3d.model.config import PRESETS, MAEConfig
from mae3d.weights.formats import FORMATS, HEAD_WIDTH, ConvertError, State

logger = logging.getLogger(__name__)


def infer_config(foreign: State, *, hints: Mapping[str, Any], format: str = "mae_st") -> MAEConfig:
    """Read a model's settings off its tensors.

    Args:
        foreign: Names and tensors, without `module.`.
        hints: Upstream's `args`, as far as the file has them. They determine the settings without a trace in the
            tensors: heads, the kind of target, the mask ratio, and the clip's size if positions are joint.
        format: A key of FORMATS that has a decoder.

    Raises:
        ConvertError: A tensor that determines a size is missing, or a setting is in neither tensors nor hints.
    """
    form = FORMATS[format]
    try:
        settings = encoder_settings(format, foreign, hints=hints)
        p, u, num_frames = settings["patch_size"], settings["t_patch_size"], settings["num_frames"]
        decoder_width = foreign["decoder_embed.weight"].shape[0]
        pred_u = foreign[f"{form.decoder_head}.weight"].shape[0] // (settings["in_chans"] * p * p)
    except KeyError as error:
        raise ConvertError(
            f"no tensor {error}: not a pretraining checkpoint with {format}'s names"
            + (" (an encoder alone? mae3d.open_encoder opens it)" if "patch_embed.proj.weight" in foreign else "")
        ) from None
    for name in ("decoder_num_heads", "norm_pix_loss", "mask_ratio"):
        if name in form.defaults and name not in hints:
            logger.warning("%s is not in the checkpoint: taken as %s, as published", name, form.defaults[name])
    hinted = {name: hints.get(name, default) for name, default in form.defaults.items()}
    return MAEConfig(
        **settings
        | {
            "decoder_embed_dim": decoder_width,
            "decoder_num_heads": max(decoder_width // HEAD_WIDTH, 1),  # PySlowFast's; else `hinted` has them
            "decoder_depth": count_blocks(foreign, f"{form.decoder_blocks}."),
            "decoder_sep_pos_embed": f"{form.decoder_tables}spatial" in foreign,
            "pred_t_dim": pred_u * num_frames // u,
        }
        | hinted
    )


def encoder_settings(name: str, foreign: State, *, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Read the settings of an EncoderConfig off a state dict.

    Args:
        name: The format.
        foreign: Names and tensors.
        hints: Settings that the tensors do not determine, under upstream's names: num_heads, img_size, num_frames; mean
            and std of files that launch/export.py made.

    Raises:
        KeyError: A tensor that determines a size is missing.
        ConvertError: A setting is in neither tensors nor hints.
    """
    width, channels, u, p, _ = foreign["patch_embed.proj.weight"].shape
    depth, cls = count_blocks(foreign, "blocks."), "cls_token" in foreign
    mlp_ratio = foreign["blocks.0.mlp.fc1.weight"].shape[0] / width
    img_size, num_frames = _clip_size(foreign, hints, patch_size=p, t_patch_size=u, cls=cls)
    preset = _published(width, depth, p)
    if preset is None and "num_heads" not in hints:
        raise ConvertError(f"width {width} with {depth} blocks is no published size: give num_heads in a config")
    biases = ("blocks.0.attn.q.bias", "blocks.0.attn.qkv.bias", "blocks.0.attn.q_bias")
    pixels = {**FORMATS[name].defaults, **hints}
    return {key: pixels[key] for key in ("mean", "std") if key in pixels} | {
        "preset": preset or MAEConfig.preset,
        "img_size": img_size,
        "in_chans": channels,
        "num_frames": num_frames,
        "patch_size": p,
        "t_patch_size": u,
        "embed_dim": width,
        "depth": depth,
        "num_heads": hints.get("num_heads") or PRESETS[preset or MAEConfig.preset]["num_heads"],
        "mlp_ratio": mlp_ratio,
        "qkv_bias": any(bias in foreign for bias in biases),
        "sep_pos_embed": "pos_embed_spatial" in foreign,
        "cls_embed": cls,
    }


def count_blocks(foreign: State, prefix: str) -> int:
    """Count the blocks under `prefix`, which have attention; a norm there has none."""
    blocks = (name for name in foreign if name.startswith(prefix) and ".attn." in name)
    return len({name.removeprefix(prefix).split(".")[0] for name in blocks})


def _published(width: int, depth: int, patch_size: int) -> str | None:
    """Return the preset of this width and depth, if possible with this patch size."""
    fitting = [name for name, sizes in PRESETS.items() if (sizes["embed_dim"], sizes["depth"]) == (width, depth)]
    exact = [name for name in fitting if PRESETS[name]["patch_size"] == patch_size]
    return next(iter(exact + fitting), None)


def _clip_size(
    foreign: State, hints: Mapping[str, Any], *, patch_size: int, t_patch_size: int, cls: bool
) -> tuple[Size, int]:
    """Read (img_size, num_frames) off the tables of positions.

    A joint table determines only their product, VideoMAE has none: hints and defaults serve. So they do for the height
    and width of frames that are not square, of which a table for space determines the product.
    """
    img_size = plain_size(hints.get("img_size", 224))
    height, width = (side // patch_size for side in sides(img_size))
    if "pos_embed_spatial" in foreign:
        plane = foreign["pos_embed_spatial"].shape[1]
        if not ("img_size" in hints and height * width == plane):
            side = math.isqrt(plane)
            if side * side != plane:
                raise ConvertError(f"{plane} positions in space are of no square: give img_size in a config")
            img_size = side * patch_size
        return img_size, foreign["pos_embed_temporal"].shape[1] * t_patch_size
    if "pos_embed" not in foreign and any(name.endswith(".attn.q_bias") for name in foreign):
        return img_size, hints.get("num_frames", 16)
    tokens = foreign["pos_embed"].shape[1] - int(cls)
    t, rest = divmod(tokens, height * width)
    if t == 0 or rest:
        raise ConvertError(
            f"{tokens} joint positions are no whole number of {size_text(img_size)} px frames: give img_size in a "
            "config"
        )
    return img_size, t * t_patch_size
