"""Rules and settings describe other projects' checkpoints: the tensors that make each of ours, and their sizes.

format, config ─► rules; format, tensors ─► settings

    rules = autoencoder_rules("pyslowfast", config)     # for all weights of MAE(config)
    settings = encoder_settings("mae_st", state, hints={})

The names and shapes are facts of those checkpoints; nothing of their code is here. A `Rule` re-indexes one tensor or
joins two or three, so that it converts gradients and optimizer moments as well.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mae3d.model.config import PRESETS, EncoderConfig, MAEConfig

State = Mapping[str, Tensor]


class ConvertError(ValueError):
    """Mismatch of a state dict and its format, or of a model and a format; the message names the keys."""


@dataclass(frozen=True)
class Rule:
    """A tensor of ours and the foreign ones that it is made of; by default equal parts along the first axis."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor] = lambda parts: parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
    split: Callable[[Tensor], Sequence[Tensor]] | None = None

    def parts(self, tensor: Tensor) -> Sequence[Tensor]:
        """Split our tensor into the foreign ones, in the order of `theirs`."""
        return self.split(tensor) if self.split else tensor.chunk(len(self.theirs))


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
}
_TRANSFORMERS_KEY = "embeddings.patch_embeddings.projection.weight"
HEAD_WIDTH = 64  # width of a head of PySlowFast's decoder; the number of heads follows


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
    names = {re.sub(r"\d+", "0", name) for name in foreign}
    config = EncoderConfig(preset="mae_vit_tiny_patch16", depth=1)
    shares = []
    for name in FORMATS:
        settings = replace(config, cls_embed=False, sep_pos_embed=False) if name == "videomae" else config
        expected = {theirs for rule in encoder_rules(name, settings) for theirs in rule.theirs}
        shares.append((len(expected & names) / len(expected), name, sorted(expected - names)))
    share, name, missing = max(shares)
    return f"; closest to {name}, of whose names {', '.join(missing[:3])}, ... are missing" if share else ""


def _check_patches(foreign: State) -> None:
    """Refuse weights whose patches are those of pictures, or of other than three colours."""
    for name, tensor in foreign.items():
        if not name.endswith(("patch_embed.proj.weight", _TRANSFORMERS_KEY)):
            continue
        shape = tuple(tensor.shape)
        if len(shape) == 4:
            raise ConvertError(
                f"{name} has the shape {shape}, that of an image model, and weights of images are not read: a model of "
                "clips has (width, 3, frames, p, p)"
            )
        if len(shape) != 5 or shape[1] != 3 or shape[3] != shape[4]:
            raise ConvertError(f"{name} has the shape {shape}; a model of clips has (width, 3, frames, p, p)")


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


def check_holds(name: str, config: EncoderConfig) -> None:
    """Refuse a model that a format cannot hold bit for bit.

    Raises:
        ConvertError: The format cannot hold it; the message names every setting that differs.
    """
    required: dict[str, Any] = {}
    if name == "videomae":
        required = {"cls_embed": False, "sep_pos_embed": False, "qkv_bias": True}
    elif isinstance(config, MAEConfig):
        if name == "mae_st":
            required = {"decoder_sep_pos_embed": config.sep_pos_embed}
            required |= {"decoder_cls": "own"} if config.cls_embed else {}
        elif name == "m3d":
            required = {"cls_embed": True, "sep_pos_embed": True, "decoder_sep_pos_embed": True, "qkv_bias": True}
            required |= {"decoder_cls": "encoder", "pred_t_dim": config.num_frames}
        else:
            required = {"decoder_num_heads": max(config.decoder_embed_dim // HEAD_WIDTH, 1)}
            required |= {"decoder_cls": "encoder"} if config.cls_embed else {}
    differing = [
        f"{key}={getattr(config, key)!r} (it has {value!r})"
        for key, value in required.items()
        if getattr(config, key) != value
    ]
    if name == "videomae" and isinstance(config, MAEConfig):
        differing.append("a decoder (its own is another; convert the encoder alone)")
    if differing:
        raise ConvertError(f"the format {name} ({FORMATS[name].title}) cannot hold " + ", ".join(differing))


def autoencoder_rules(name: str, config: MAEConfig) -> list[Rule]:
    """Return the rules for all weights of the autoencoder."""
    form = FORMATS[name]
    tables = {"joint": "decoder_pos_embed"}
    if config.decoder_sep_pos_embed:
        tables = _separate(form.decoder_tables, cls=config.cls_embed)
    rules = encoder_rules(name, config, prefix="encoder.")
    rules += [Rule(f"decoder.positions.{ours}", (theirs,)) for ours, theirs in tables.items()]
    if config.cls_embed and config.decoder_cls == "own":
        rules.append(Rule("decoder.cls_token", ("decoder_cls_token",)))
    for i in range(config.decoder_depth):
        rules += _block(form.qkv, f"decoder.blocks.{i}", f"{form.decoder_blocks}.{i}", config)
    rules.append(Rule("decoder.mask_token", ("mask_token",)))
    norm = form.decoder_norm.format(depth=config.decoder_depth)
    for ours, theirs in (("embed", "decoder_embed"), ("norm", norm), ("head", form.decoder_head)):
        rules += _same(f"decoder.{ours}", theirs)
    return rules


def classifier_rules(name: str, config: EncoderConfig) -> list[Rule]:
    """Return the rules for all weights of a finetuned classifier."""
    return [*encoder_rules(name, config, prefix="encoder."), *_same("head", "head")]


def encoder_rules(name: str, config: EncoderConfig, *, prefix: str = "") -> list[Rule]:
    """Return the rules for the weights of the encoder; `prefix` goes before our names."""
    rules = [*_patch_embed(prefix, config), *_same(f"{prefix}norm", "norm")]
    if name == "videomae":
        fixed = partial(_sinusoids, config)
        rules.append(Rule(f"{prefix}positions.joint", (), lambda _: fixed(), partial(_equal_to, fixed)))
    else:
        tables = {"joint": "pos_embed"}
        if config.sep_pos_embed:
            tables = _separate("pos_embed_", cls=config.cls_embed)
        rules += [Rule(f"{prefix}positions.{ours}", (theirs,)) for ours, theirs in tables.items()]
    if config.cls_embed:
        rules.append(Rule(f"{prefix}cls_token", ("cls_token",)))
    for i in range(config.depth):
        rules += _block(FORMATS[name].qkv, f"{prefix}blocks.{i}", f"blocks.{i}", config)
    return rules


def _separate(prefix: str, *, cls: bool) -> dict[str, str]:
    tables = {"spatial": f"{prefix}spatial", "temporal": f"{prefix}temporal"}
    return tables | ({"cls": f"{prefix}class"} if cls else {})


def _same(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def _patch_embed(prefix: str, config: EncoderConfig) -> list[Rule]:
    u, p = config.t_patch_size, config.patch_size

    def flat(kernel: Sequence[Tensor]) -> Tensor:  # (D, c, u, p, q) ─► (D, u*p*q*c)
        return kernel[0].permute(0, 2, 3, 4, 1).flatten(1)

    def kernel(flat: Tensor) -> Sequence[Tensor]:
        return (flat.unflatten(1, (u, p, p, 3)).permute(0, 4, 1, 2, 3).contiguous(),)

    return [
        Rule(f"{prefix}patch_embed.weight", ("patch_embed.proj.weight",), flat, kernel),
        Rule(f"{prefix}patch_embed.bias", ("patch_embed.proj.bias",)),
    ]


def _block(qkv: str, ours: str, theirs: str, config: EncoderConfig) -> list[Rule]:
    rules = []
    for part in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
        rules += _same(f"{ours}.{part}", f"{theirs}.{part}")
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    if qkv == "split":
        parts = [(kind, tuple(f"{theirs}.attn.{x}.{kind}" for x in "qkv")) for kind in kinds]
    else:
        parts = [(kind, (f"{theirs}.attn.qkv.{kind}",)) for kind in kinds]
    rules += [Rule(f"{ours}.attn.qkv.{kind}", names) for kind, names in parts]
    if qkv == "biased":
        names = (f"{theirs}.attn.q_bias", f"{theirs}.attn.v_bias")
        rules[-1] = Rule(f"{ours}.attn.qkv.bias", names, _with_zero_key_bias, _without_key_bias)
    return rules


def _with_zero_key_bias(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]])


def _without_key_bias(bias: Tensor) -> Sequence[Tensor]:
    query, key, value = bias.chunk(3)
    if key.any():
        raise ConvertError("VideoMAE has no bias of the keys, and this model's is not 0")
    return query, value


def _sinusoids(config: EncoderConfig) -> Tensor:
    """Compute VideoMAE's fixed positions (1, L, D): sines and cosines in turn of the token (Vaswani et al. 2017)."""
    width = config.embed_dim
    exponents = 2 * (torch.arange(width, dtype=torch.float64) // 2) / width
    angles = torch.arange(config.num_tokens, dtype=torch.float64)[:, None] / 10_000**exponents
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()[None]


def _equal_to(fixed: Callable[[], Tensor], table: Tensor) -> Sequence[Tensor]:
    if not torch.equal(table.float().cpu(), fixed()):
        raise ConvertError("VideoMAE's positions are fixed sines, and this model's positions are learned")
    return ()


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
    width, _, u, p, _ = foreign["patch_embed.proj.weight"].shape
    depth, cls = count_blocks(foreign, "blocks."), "cls_token" in foreign
    mlp_ratio = foreign["blocks.0.mlp.fc1.weight"].shape[0] / width
    img_size, num_frames = _clip_size(foreign, hints, patch_size=p, t_patch_size=u, cls=cls)
    preset = _published(width, depth, p)
    if preset is None and "num_heads" not in hints:
        raise ConvertError(f"width {width} with {depth} blocks is no published size: give num_heads in a config")
    biases = ("blocks.0.attn.q.bias", "blocks.0.attn.qkv.bias", "blocks.0.attn.q_bias")
    pixels = {**FORMATS[name].defaults, **hints}
    return {key: pixels[key] for key in _IMAGENET if key in pixels} | {
        "preset": preset or MAEConfig.preset,
        "img_size": img_size,
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
) -> tuple[int, int]:
    """Read (img_size, num_frames) off the tables of positions.

    A joint table determines only their product, VideoMAE has none: hints and defaults serve.
    """
    if "pos_embed_spatial" in foreign:
        side = math.isqrt(foreign["pos_embed_spatial"].shape[1])
        return side * patch_size, foreign["pos_embed_temporal"].shape[1] * t_patch_size
    img_size = hints.get("img_size", 224)
    if "pos_embed" not in foreign and any(name.endswith(".attn.q_bias") for name in foreign):
        return img_size, hints.get("num_frames", 16)
    tokens = foreign["pos_embed"].shape[1] - int(cls)
    t, rest = divmod(tokens, (img_size // patch_size) ** 2)
    if t == 0 or rest:
        raise ConvertError(
            f"{tokens} joint positions are no whole number of {img_size} px frames: give img_size in a config"
        )
    return img_size, t * t_patch_size
