"""A state dict's format is recognised for certain, by its names and shapes, or refused with what was found.

names, shapes ─► format
"""

import re
from dataclasses import replace

import torch
from torch import Tensor

from mae3d.model.config import EncoderConfig
from mae3d.weights.formats import FORMATS, ConvertError, State
from mae3d.weights.rules import encoder_rules

_TRANSFORMERS_KEY = "embeddings.patch_embeddings.projection.weight"


def recognise(foreign: State, *, described: bool = True) -> str:
    """Return the name of a state dict's format, recognised by its keys and the shape of its patches.

    Args:
        foreign: Names and tensors, without a wrapper's prefix.
        described: Whether a config or a card says what tensors do not: then names that several projects share will do.

    Raises:
        ConvertError: The format is unknown, or it is none for clips, or several projects' files look like this one.
    """
    _check_patches(foreign)
    if "encoder_to_decoder.weight" in foreign or any(
        name.endswith((".attn.q_bias", _TRANSFORMERS_KEY)) for name in foreign
    ):
        return "videomae"
    if any(name.startswith("pred_head.") for name in foreign):
        return "pyslowfast"
    if "blocks.0.attn.q.weight" in foreign:
        return "mae_st"
    if "blocks.0.attn.qkv.weight" in foreign and "patch_embed.proj.weight" in foreign:
        if "decoder_embed.weight" in foreign:
            return "m3d"
        if described or "pos_embed_spatial" in foreign or "head.projection.weight" in foreign:
            return "pyslowfast"
        raise ConvertError(
            f"{_found(foreign)}: V-JEPA, PySlowFast and others have an encoder of these names, and nothing in the file "
            "tells whose it is, nor mean and std: if it is PySlowFast's, give its config (`config=`)"
        )
    raise ConvertError(
        f"no known names of tensors ({_found(foreign)}){_closest(foreign)}: give a checkpoint of "
        + "; ".join(f"{name} ({form.title})" for name, form in FORMATS.items())
    )


def _found(foreign: State) -> str:
    """Return what a state dict holds, for a message: some names with their shapes."""
    shown = [f"{name} {tuple(foreign[name].shape)}" for name in sorted(foreign)[:4]]
    return ", ".join(shown) + (f", ...; {len(foreign)} tensors" if len(foreign) > len(shown) else "")


def _closest(foreign: State) -> str:
    """Return the format most of whose encoder's names are there, numbers of blocks aside, as a clause; "" if none."""
    names = {re.sub(r"\.\d+\.", ".0.", name) for name in foreign}
    config = EncoderConfig(preset="mae_vit_tiny_patch16", depth=1)
    shares = []
    for name in FORMATS:
        settings = replace(config, cls_embed=False, sep_pos_embed=False) if name == "videomae" else config
        expected = {theirs for rule in encoder_rules(name, settings) for theirs in rule.theirs}
        shares.append((len(expected & names) / len(expected), name, sorted(expected - names)))
    share, name, missing = max(shares)
    return f"; closest to {name}, of whose names {', '.join(missing[:3])}, ... are missing" if share else ""


def _check_patches(foreign: State) -> None:
    """Refuse weights whose patches are those of pictures, or no squares."""
    for name, tensor in foreign.items():
        if not name.endswith(("patch_embed.proj.weight", _TRANSFORMERS_KEY)):
            continue
        shape = tuple(tensor.shape)
        if len(shape) == 4:
            raise ConvertError(
                f"{name} has the shape {shape}, that of an image model, and weights of images are not read: a model of "
                "clips has (width, channels, frames, p, p)"
            )
        if len(shape) != 5 or shape[3] != shape[4]:
            raise ConvertError(f"{name} has the shape {shape}; a model of clips has (width, channels, frames, p, p)")


# Hugging Face transformers' names of VideoMAE's modules, beginnings first, and VideoMAE's own.
_TRANSFORMERS = (
    ("videomae.", ""),
    ("embeddings.patch_embeddings.projection.", "encoder.patch_embed.proj."),
    ("encoder.layer.", "encoder.blocks."),
    ("layernorm.", "encoder.norm."),
    ("classifier.", "head."),
    (".attention.attention.", ".attn."),
    (".attention.output.dense.", ".attn.proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
)


def from_transformers(foreign: State) -> dict[str, Tensor]:
    """Translate VideoMAE's names in Hugging Face's transformers to VideoMAE's; return other state dicts as they are.

    The query, key and value are three matrices and become one. Only the encoder's names and the head's are translated.
    """
    if not any(name.endswith(_TRANSFORMERS_KEY) for name in foreign):
        return dict(foreign)
    renamed: dict[str, Tensor] = {}
    for name, tensor in foreign.items():
        for theirs, original in _TRANSFORMERS:
            if not theirs.startswith("."):
                name = original + name.removeprefix(theirs) if name.startswith(theirs) else name
            elif name.startswith("encoder.blocks."):
                name = name.replace(theirs, original)
        renamed[name] = tensor
    for name in [name for name in renamed if name.startswith("encoder.") and name.endswith(".attn.query.weight")]:
        block = name.removesuffix("query.weight")
        parts = [f"{block}{part}.weight" for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            renamed[f"{block}qkv.weight"] = torch.cat([renamed.pop(part) for part in parts])
    return renamed
