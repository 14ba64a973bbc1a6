"""The weights of an image ViT become those of a video encoder, exactly in what they compute of a still clip.

names and tensors of an image model ─► names and tensors of the format `image`

    video = inflated(state, Inflate("mean", num_frames=16, t_patch_size=2))

The kernel of the patches is spread over the u frames of a token, divided by u (`mean`), or stands on the middle one
(`center`). Positions are theirs in space, and zero in time: at first the order of the time slots is invisible, and a
clip of u equal frames has the image's features. Layer scale goes into the layers that it scales. An image MAE's decoder
is inflated alike. What our blocks lack is refused by name.
"""

import math
import re
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder
from mae3d.weights.formats import ConvertError, State

Inflation = Literal["mean", "center"]


class Inflate(NamedTuple):
    """The way in which an image model becomes one of clips.

    Attributes:
        how: `mean` or `center`.
        num_frames: Frames of a clip.
        t_patch_size: Frames of a token.
    """

    how: str
    num_frames: int = EncoderConfig.num_frames
    t_patch_size: int = EncoderConfig.t_patch_size


_KERNEL = "patch_embed.proj.weight"
_HEADS = ("head.", "head_dist.", "fc.", "pooler.", "attn_pool.", "classifier.", "dino_head.", "ibot_head.")
# Patterns in names, and what a model with such has that our blocks lack.
_LACKING = (
    (r"(reg_token|register_tokens)", "register tokens"),
    (r"dist_token", "a token for distillation"),
    (r"(.*\.mlp\.(w12|w3|w1|w2|fc1_g|fc1_x|weights_in|norm)\.).*", "MLPs with gates (SwiGLU)"),
    (r"norm_pre\..*", "a norm before its blocks (as CLIP)"),
    (r".*\.attn\.[qk]_norm\..*", "norms of queries and keys"),
    (r".*(rel_pos|relative_position|\.q_bias).*", "relative positions (as BEiT)"),
    (r"attn_pool\..*", "a pooling by attention (as SigLIP), whose activation the file does not tell"),
)
_SCALES = (("attn.proj", "ls1.gamma", "gamma_1"), ("mlp.fc2", "ls2.gamma", "gamma_2"))


def wish_of(inflate: Inflate | str | None) -> Inflate | None:
    """Return `mean` and `center` as an `Inflate` of the usual clip, others as they are."""
    return Inflate(inflate) if isinstance(inflate, str) else inflate


def is_image(state: State) -> bool:
    """Return whether a state dict is an image ViT's: its patches have no frames."""
    return _KERNEL in state and state[_KERNEL].ndim == 4


def describe_image(state: State) -> str:
    """Return what an image ViT is, for messages."""
    width, colours, height, _ = state[_KERNEL].shape
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    made = "an image MAE, with its decoder" if "decoder_embed.weight" in state else "an image ViT"
    return f"{made}: width {width}, {blocks} blocks, patches of {height} px, {colours} colours"


def folded(state: State) -> dict[str, Tensor]:
    """Multiply the layers that layer scale scales by it: the same function without it."""
    result = dict(state)
    for name in state:
        block, part = match.groups() if (match := re.fullmatch(r"(blocks\.\d+\.)(.*)", name)) else ("", name)
        for layer, *scales in _SCALES:
            if part in scales and f"{block}{layer}.weight" in state:
                gamma = result.pop(name)
                for name in (f"{block}{layer}.weight", f"{block}{layer}.bias"):
                    if name in result:
                        result[name] = (gamma[:, None] if result[name].ndim == 2 else gamma) * result[name]
    return result


def inflated(state: State, wish: Inflate, *, checked: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a video model, in the names of the format `image`.

    Args:
        state: An image ViT's, in timm's names, as DINOv2 and image MAE have them, layer scale `folded`; heads for
            classes are left out.
        wish: The kernel's and the clip's.
        checked: Whether timm's own model has shown that activations and norms are ours.

    Raises:
        ConvertError: The model has parts that ours lacks, or sizes do not fit.
    """
    how, num_frames, t_patch_size = wish
    if not is_image(state):
        raise ConvertError("the weights are of a model of clips already: inflate is for those of image models")
    if how not in get_args(Inflation):
        raise ConvertError(f"inflate={how!r}: give {' or '.join(get_args(Inflation))}")
    if num_frames % t_patch_size:
        raise ConvertError(f"num_frames={num_frames} must be a multiple of t_patch_size={t_patch_size}")
    lacking = [
        f"{words} ({name} {tuple(state[name].shape)})"
        for pattern, words in _LACKING
        if not (checked and pattern.startswith("attn_pool"))
        for name in [next((name for name in sorted(state) if re.fullmatch(pattern, name)), "")]
        if name
    ]
    if "pos_embed" not in state:
        lacking.append("no table of positions (as EVA-02 and DINOv3, which rotate)")
    if lacking:
        raise ConvertError(
            f"{describe_image(state)}; it cannot become a video encoder, because it has {', '.join(lacking)}: give "
            "another, or take it frame by frame as --encoder timm:NAME (finetune: --init timm:NAME)"
        )
    drop = ("mask_token",) if "decoder_embed.weight" not in state else ()
    kept = {name: tensor for name, tensor in state.items() if not name.startswith((*_HEADS, *drop))}
    if "norm.weight" not in kept:  # of models that pool before they normalise, as our classifier does
        kept = {re.sub(r"^fc_norm\.", "norm.", name): tensor for name, tensor in kept.items()}
    video = kept
    video[_KERNEL] = _over_time(video[_KERNEL], how, t_patch_size)
    for prefix in ("", "decoder_"):
        if f"{prefix}pos_embed" in video:
            table = video.pop(f"{prefix}pos_embed")
            video |= _positions(table, prefix, cls="cls_token" in video, slots=num_frames // t_patch_size)
    return video


@torch.no_grad()
def refit_normalisation(encoder: Encoder, target: EncoderConfig) -> None:
    """Let an encoder compute the same of pixels that the mean and std of another config normalise, and have those.

    The change is affine in each channel, and so are the patches: their kernel and bias take it, exactly. Of a config
    with another number of channels, to which the kernel is fitted afterwards, the averages count.
    """
    source = encoder.config
    pixels = {name: _for_channels(getattr(target, name), source.in_chans) for name in ("mean", "std")}
    old_mean, old_std, mean, std = (
        torch.tensor(value, dtype=torch.float64).expand(source.in_chans)
        for value in (source.mean, source.std, pixels["mean"], pixels["std"])
    )
    weight, bias = encoder.patch_embed.weight, encoder.patch_embed.bias
    by_channel = weight.double().unflatten(1, (-1, source.in_chans))
    bias.copy_(bias + (by_channel * ((mean - old_mean) / old_std)).sum(dim=(1, 2)))
    weight.copy_((by_channel * (std / old_std)).flatten(1))
    encoder.config = replace(source, **pixels)


def _for_channels(value: float | tuple[float, ...], channels: int) -> Any:
    """Return a mean or deviation for so many channels."""
    return value if not isinstance(value, tuple) or len(value) == channels else sum(value) / len(value)


def _over_time(kernel: Tensor, how: str, frames: int) -> Tensor:
    """Return the kernel (D, 3, frames, p, p) of one of (D, 3, p, p)."""
    if how == "mean":
        return (kernel / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
    video = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    video[:, :, frames // 2] = kernel
    return video


def _positions(table: Tensor, prefix: str, *, cls: bool, slots: int) -> dict[str, Tensor]:
    """Return tables for space, for time, which is zero, and for the class token."""
    rows = table.shape[1]
    first = 0 if math.isqrt(rows) ** 2 == rows else 1
    if math.isqrt(rows - first) ** 2 != rows - first or (first and not cls):
        raise ConvertError(f"{prefix}pos_embed has {rows} positions, which are those of no square image")
    tables = {
        f"{prefix}pos_embed_spatial": table[:, first:],
        f"{prefix}pos_embed_temporal": table.new_zeros(1, slots, table.shape[2]),
    }
    if cls:  # without a row of its own the class token has no position
        tables[f"{prefix}pos_embed_class"] = table[:, :1] if first else table.new_zeros(1, 1, table.shape[2])
    return tables
