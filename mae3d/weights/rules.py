"""Rules say of which foreign tensors each of ours is made.

format, config ─► rules

    rules = autoencoder_rules("pyslowfast", config)     # for all weights of MAE(config)

A `Rule` re-indexes one tensor or joins two or three, so that it converts gradients and optimizer moments as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mae3d.model.config import EncoderConfig, MAEConfig
from mae3d.model.encoder import token_sines
from mae3d.weights.formats import FORMATS, ConvertError


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
        if config.pos_init != "fixed":
            fixed = partial(token_sines, config.num_tokens, config.embed_dim)
            rules.append(Rule(f"{prefix}positions.joint", (), lambda _: fixed(), partial(_equal_to, fixed)))
    elif config.rope == "none":
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
        return (flat.unflatten(1, (u, p, p, config.in_chans)).permute(0, 4, 1, 2, 3).contiguous(),)

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


def _equal_to(fixed: Callable[[], Tensor], table: Tensor) -> Sequence[Tensor]:
    if not torch.equal(table.float().cpu(), fixed()):
        raise ConvertError("VideoMAE's positions are fixed sines, and this model's positions are learned")
    return ()
