"""Formats are other projects' names for the parts of our model, and the settings that their tensors do not determine.

The names and shapes are facts of those projects' checkpoints; nothing of their code is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mae3d.model.config import EncoderConfig, MAEConfig

State = Mapping[str, Tensor]


class ConvertError(ValueError):
    """Mismatch of a state dict and its format, or of a model and a format; the message names the keys."""


@dataclass(frozen=True)
class Format:
    """A project's names for the parts of our model, and the settings that its tensors do not determine.

    Attributes:
        title: The project.
        qkv: `split`: three matrices; `fused`: one, as ours; `biased`: one, with a bias for query and value only.
        decoder_blocks: Names of the decoder's blocks, before their number; "" if its decoder is not ours.
        decoder_norm: Name of the decoder's norm; {depth} stands for the number of blocks.
        decoder_head: Name of the layer that predicts pixels.
        decoder_tables: Name of separate decoder positions, before spatial, temporal and class.
        defaults: Settings of MAEConfig, as that project publishes them.
    """

    title: str
    qkv: str
    decoder_blocks: str = ""
    decoder_norm: str = "decoder_norm"
    decoder_head: str = "decoder_pred"
    decoder_tables: str = "decoder_pos_embed_"
    defaults: Mapping[str, Any] = field(default_factory=dict)


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FORMATS = {
    "mae_st": Format(
        "facebookresearch/mae_st and eminorhan/mae_st",
        qkv="split",
        decoder_blocks="decoder_blocks",
        defaults={"decoder_num_heads": 16, "norm_pix_loss": True, "mask_ratio": 0.9},
    ),
    "m3d": Format(
        "cyrilzakka/MAE3D",
        qkv="fused",
        decoder_blocks="decoder_blocks",
        defaults={"decoder_num_heads": 16, "norm_pix_loss": False, "mask_ratio": 0.9, "decoder_cls": "encoder"}
        | _IMAGENET,
    ),
    "pyslowfast": Format(
        "PySlowFast, where the official weights of mae_st were trained",
        qkv="fused",
        decoder_blocks="pred_head.transforms.0",
        decoder_norm="pred_head.transforms.0.{depth}",
        decoder_head="pred_head.projections.0",
        decoder_tables="dec_pos_embed_",
        defaults={"norm_pix_loss": True, "mask_ratio": 0.9, "decoder_cls": "encoder", "target_rule": "stride"},
    ),
    "videomae": Format("MCG-NJU/VideoMAE, the encoder", qkv="biased", defaults=_IMAGENET),
    "vjepa": Format("V-JEPA, the encoder", qkv="fused", defaults=_IMAGENET),
    "vjepa2": Format("V-JEPA 2, the encoder", qkv="fused", defaults=_IMAGENET | {"rope": "vjepa2"}),
    "vjepa2_1": Format("V-JEPA 2.1, the encoder", qkv="fused", defaults=_IMAGENET | {"rope": "vjepa2_1"}),
    "image": Format(
        "an image ViT, inflated: image MAE, timm, DINOv2",
        qkv="fused",
        decoder_blocks="decoder_blocks",
        defaults={"decoder_num_heads": 16, "norm_pix_loss": True, "mask_ratio": 0.9, "decoder_cls": "encoder"}
        | _IMAGENET,
    ),
}
JEPA = ("vjepa", "vjepa2", "vjepa2_1")
HEAD_WIDTH = 64  # width of a head of PySlowFast's decoder; the number of heads follows


def check_holds(name: str, config: EncoderConfig) -> None:
    """Refuse a model that a format cannot hold bit for bit.

    Raises:
        ConvertError: The format cannot hold it; the message names every setting that differs.
    """
    if backbone := getattr(config, "backbone", ""):
        raise ConvertError(f"the format {name} ({FORMATS[name].title}) cannot hold an image ViT, timm:{backbone}")
    required: dict[str, Any] = {"rope": FORMATS[name].defaults.get("rope", "none")}
    if name == "videomae":
        required |= {"cls_embed": False, "sep_pos_embed": False, "qkv_bias": True}
    elif name in JEPA:
        required |= {"cls_embed": False, "qkv_bias": True} | ({"sep_pos_embed": False} if name == "vjepa" else {})
    elif isinstance(config, MAEConfig):
        if name == "mae_st":
            required |= {"decoder_sep_pos_embed": config.sep_pos_embed}
            required |= {"decoder_cls": "own"} if config.cls_embed else {}
        elif name == "m3d":
            required |= {"cls_embed": True, "sep_pos_embed": True, "decoder_sep_pos_embed": True, "qkv_bias": True}
            required |= {"decoder_cls": "encoder", "pred_t_dim": config.num_frames}
        elif name == "pyslowfast":
            required |= {"decoder_num_heads": max(config.decoder_embed_dim // HEAD_WIDTH, 1)}
            required |= {"decoder_cls": "encoder"} if config.cls_embed else {}
    differing = [
        f"{key}={getattr(config, key)!r} (it has {value!r})"
        for key, value in required.items()
        if getattr(config, key) != value
    ]
    if not FORMATS[name].decoder_blocks and isinstance(config, MAEConfig):
        differing.append("a decoder (its own is another; convert the encoder alone)")
    if differing:
        raise ConvertError(f"the format {name} ({FORMATS[name].title}) cannot hold " + ", ".join(differing))
