"""Foreign state dicts <-> ours. Now: facebookresearch/mae_st and what shares its names (eminorhan/mae_st).

    config, state = from_mae_st(foreign)                 # sizes are read off the tensors
    foreign = to_mae_st(state, config)

Every rule re-indexes one tensor (or joins three), so that what holds for weights holds for gradients and
optimizer moments. Every key is accounted for: one that is left over or missing is an error that names it. The
foreign names and shapes are facts of those projects' checkpoints; heads and the kind of target leave no trace
in the tensors.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mae3d.config import PRESETS, EncoderConfig, MAEConfig

State = Mapping[str, Tensor]

logger = logging.getLogger(__name__)


class ConvertError(ValueError):
    """A state dict is not what it was taken for; the message names the keys."""


@dataclass(frozen=True)
class _Rule:
    """One of our tensors and the foreign ones that it is made of: equal parts along the first axis."""

    ours: str
    theirs: tuple[str, ...]
    to_ours: Callable[[Tensor], Tensor] | None = None
    to_theirs: Callable[[Tensor], Tensor] | None = None


def from_mae_st(
    foreign: State, config: MAEConfig | None = None, *, hints: Mapping[str, Any] | None = None
) -> tuple[MAEConfig, dict[str, Tensor]]:
    """Convert a mae_st pretraining state dict.

    Args:
        foreign: Names and tensors, possibly prefixed with `module.`.
        config: What the model is; None reads it off the tensors (`infer_config`).
        hints: Settings that tensors do not tell, under upstream's names (the `args` of its checkpoints).

    Returns:
        The config, and a state dict for `MAE(config)`. Tensors may share memory with `foreign`.

    Raises:
        ConvertError: A key is missing or left over, or a shape does not fit.
    """
    foreign = strip_prefix(foreign, "module.")
    config = config or infer_config(foreign, hints=hints or {})
    return config, _apply(foreign, mae_st_rules(config))


def encoder_from_mae_st(foreign: State, config: EncoderConfig) -> dict[str, Tensor]:
    """Convert a state dict that holds a mae_st encoder only, for `Encoder(config)`.

    Raises:
        ConvertError: A key is missing or left over.
    """
    rules = _tower_rules("", config, depth=config.depth, foreign_blocks="blocks", foreign_prefix="")
    return _apply(strip_prefix(foreign, "module."), [*rules, *_patch_embed_rules("", config)])


def to_mae_st(state: State, config: MAEConfig) -> dict[str, Tensor]:
    """Convert a state dict of `MAE(config)` into facebookresearch/mae_st's names and shapes.

    Raises:
        ConvertError: A key is missing or left over.
    """
    rules = mae_st_rules(config)
    _account({rule.ours for rule in rules}, set(state), whose="the model's state dict")
    foreign = {}
    for rule in rules:
        for name, part in zip(rule.theirs, state[rule.ours].chunk(len(rule.theirs)), strict=True):
            foreign[name] = rule.to_theirs(part) if rule.to_theirs else part
    return foreign


def infer_config(foreign: State, *, hints: Mapping[str, Any]) -> MAEConfig:
    """Read a mae_st model's settings off its tensors.

    Args:
        foreign: Names and tensors, without `module.`.
        hints: Upstream's `args`, as far as the file has them. They decide what leaves no trace in the
            tensors: heads, the kind of target, the mask ratio, and the clip's size where positions are joint.

    Raises:
        ConvertError: A tensor that tells a size is missing, or a setting can be known from neither.
    """
    try:
        width, _, u, p, _ = foreign["patch_embed.proj.weight"].shape
        decoder_width = foreign["decoder_embed.weight"].shape[0]
        pred_u = foreign["decoder_pred.weight"].shape[0] // (3 * p * p)
        mlp_ratio = foreign["blocks.0.mlp.fc1.weight"].shape[0] / width
        cls = "cls_token" in foreign
        img_size, num_frames = _clip_size(foreign, hints, patch_size=p, t_patch_size=u, cls=cls)
    except KeyError as error:
        raise ConvertError(f"no tensor {error}: not a pretraining checkpoint with mae_st's names") from None
    depth = _count_blocks(foreign, "blocks.")
    preset = _published(width, depth, p)
    if preset is None and "num_heads" not in hints:
        raise ConvertError(f"width {width} with {depth} blocks is no published size: say num_heads in a config")
    known = {"decoder_num_heads": 16, "norm_pix_loss": True, "mask_ratio": 0.9}
    for name, default in known.items():
        if name not in hints:
            logger.warning("%s is not told by the checkpoint: taken as %s, as published", name, default)
    return MAEConfig(
        preset=preset or MAEConfig.preset,
        img_size=img_size,
        num_frames=num_frames,
        patch_size=p,
        t_patch_size=u,
        embed_dim=width,
        depth=depth,
        num_heads=hints.get("num_heads") or PRESETS[preset or MAEConfig.preset]["num_heads"],
        mlp_ratio=mlp_ratio,
        qkv_bias="blocks.0.attn.q.bias" in foreign,
        sep_pos_embed="pos_embed_spatial" in foreign,
        cls_embed=cls,
        decoder_embed_dim=decoder_width,
        decoder_depth=_count_blocks(foreign, "decoder_blocks."),
        pred_t_dim=pred_u * num_frames // u,
        **{name: hints.get(name, default) for name, default in known.items()},
    )


def _published(width: int, depth: int, patch_size: int) -> str | None:
    """The preset of this width and depth, with this patch size if there are several."""
    fitting = [name for name, sizes in PRESETS.items() if (sizes["embed_dim"], sizes["depth"]) == (width, depth)]
    exact = [name for name in fitting if PRESETS[name]["patch_size"] == patch_size]
    return next(iter(exact + fitting), None)


def _clip_size(
    foreign: State, hints: Mapping[str, Any], *, patch_size: int, t_patch_size: int, cls: bool
) -> tuple[int, int]:
    """(img_size, num_frames) from the tables of positions; a joint table tells only their product."""
    if "pos_embed_spatial" in foreign:
        side = math.isqrt(foreign["pos_embed_spatial"].shape[1])
        return side * patch_size, foreign["pos_embed_temporal"].shape[1] * t_patch_size
    tokens = foreign["pos_embed"].shape[1] - int(cls)
    img_size = hints.get("img_size", 224)
    t, rest = divmod(tokens, (img_size // patch_size) ** 2)
    if t == 0 or rest:
        raise ConvertError(
            f"{tokens} joint positions are no whole number of {img_size} px frames: say img_size in a config"
        )
    return img_size, t * t_patch_size


def _count_blocks(foreign: State, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in foreign if name.startswith(prefix)})


def strip_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """Take a wrapper's prefix (DistributedDataParallel's `module.`) off every key that has it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def mae_st_rules(config: MAEConfig) -> list[_Rule]:
    """What becomes of what, for the whole autoencoder."""
    encoder = _tower_rules("encoder.", config, depth=config.depth, foreign_blocks="blocks", foreign_prefix="")
    decoder = _tower_rules(
        "decoder.",
        config,
        depth=config.decoder_depth,
        foreign_blocks="decoder_blocks",
        foreign_prefix="decoder_",
    )
    rest = [_Rule("decoder.mask_token", ("mask_token",))]
    for ours, theirs in (("decoder.embed", "decoder_embed"), ("decoder.head", "decoder_pred")):
        rest += _same(ours, theirs)
    return [*_patch_embed_rules("encoder.", config), *encoder, *decoder, *rest]


def _same(ours: str, theirs: str) -> list[_Rule]:
    return [_Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def _patch_embed_rules(prefix: str, config: EncoderConfig) -> list[_Rule]:
    u, p = config.t_patch_size, config.patch_size

    def flat(kernel: Tensor) -> Tensor:  # (D, c, u, p, q) -> (D, u*p*q*c)
        return kernel.permute(0, 2, 3, 4, 1).flatten(1)

    def kernel(flat: Tensor) -> Tensor:
        return flat.unflatten(1, (u, p, p, 3)).permute(0, 4, 1, 2, 3).contiguous()

    return [
        _Rule(f"{prefix}patch_embed.weight", ("patch_embed.proj.weight",), flat, kernel),
        _Rule(f"{prefix}patch_embed.bias", ("patch_embed.proj.bias",)),
    ]


def _tower_rules(
    prefix: str, config: EncoderConfig, *, depth: int, foreign_blocks: str, foreign_prefix: str
) -> list[_Rule]:
    """The rules that encoder and decoder share: blocks, norm, class token, positions."""
    rules = _same(f"{prefix}norm", f"{foreign_prefix}norm")
    tables = {"spatial": "pos_embed_spatial", "temporal": "pos_embed_temporal"}
    if not config.sep_pos_embed:
        tables = {"joint": "pos_embed"}
    elif config.cls_embed:
        tables["cls"] = "pos_embed_class"
    rules += [_Rule(f"{prefix}positions.{a}", (f"{foreign_prefix}{b}",)) for a, b in tables.items()]
    if config.cls_embed:
        rules.append(_Rule(f"{prefix}cls_token", (f"{foreign_prefix}cls_token",)))
    for i in range(depth):
        ours, theirs = f"{prefix}blocks.{i}", f"{foreign_blocks}.{i}"
        for part in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            rules += _same(f"{ours}.{part}", f"{theirs}.{part}")
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            rules.append(_Rule(f"{ours}.attn.qkv.{kind}", tuple(f"{theirs}.attn.{x}.{kind}" for x in "qkv")))
    return rules


def _apply(foreign: State, rules: list[_Rule]) -> dict[str, Tensor]:
    _account({name for rule in rules for name in rule.theirs}, set(foreign), whose="the foreign state dict")
    state = {}
    for rule in rules:
        parts = [foreign[name] for name in rule.theirs]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        state[rule.ours] = rule.to_ours(whole) if rule.to_ours else whole
    return state


def _account(wanted: set[str], given: set[str], *, whose: str) -> None:
    """Every wanted key must be there, and no other."""
    problems = []
    for kind, names in (("missing", sorted(wanted - given)), ("left over", sorted(given - wanted))):
        if names:
            shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
            problems.append(f"{kind}: {shown}")
    if problems:
        raise ConvertError(f"{whose} does not fit the config; " + "; ".join(problems))
