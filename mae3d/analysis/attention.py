"""Attention maps show the tokens that an encoder draws on: of a chosen block by head, or rolled out over all blocks.

clip, query ─► maps (B, heads, N) or paths (B, N)

    query = query_of(model.encoder.config, "4,3,3")                # the token at slot 4, row 3, column 3; "cls", "mean"
    maps = layer_attention(model.encoder, clip, query, layer=-1)   # (B, heads, N), the last block
    paths = rollout(model.encoder, clip, query)                    # (B, N), over all blocks

A query is a distribution over tokens: all on one of them, or even over all patches. Its attention is a distribution
over tokens as well: each row sums to 1. Every token is visible. The encoder runs with fused attention; probabilities
are computed in float32 from the blocks' inputs, a chunk of queries at a time, so that no (N, N) matrix of all heads is
ever held.

B clips, N = num_prefix + L tokens (a class token first if there is one), t * h * w = L, D width.
"""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mae3d.model.blocks import Attention
from mae3d.model.config import EncoderConfig
from mae3d.model.encoder import Encoder

_MAX_PROBABILITIES = 2**24  # held at a time: 64 MiB of float32


def query_of(config: EncoderConfig, text: str) -> Tensor:
    """Parse a query: `cls`, `mean` (even over the patches) or `T,Y,X` (a patch) ─► a distribution over tokens.

    Args:
        config: The encoder's config.
        text: The query; T, Y and X count the grid's time slots, rows and columns from 0.

    Returns:
        (N,) float32, sums to 1.

    Raises:
        ValueError: The text is no query, lies outside of the grid, or the encoder has no class token.
    """
    prefix = int(config.cls_embed)
    query = torch.zeros(prefix + config.num_tokens)
    if text == "mean":
        query[prefix:] = 1 / config.num_tokens
    elif text == "cls":
        if not prefix:
            raise ValueError("query cls: this encoder has no class token (cls_embed is false): give mean or T,Y,X")
        query[0] = 1
    else:
        query[prefix + _token(config, text)] = 1
    return query


def _token(config: EncoderConfig, text: str) -> int:
    t, h, w = config.grid
    try:
        slot, row, column = (int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"query {text!r}: give cls, mean or T,Y,X, a patch's slot, row and column") from None
    if not (0 <= slot < t and 0 <= row < h and 0 <= column < w):
        raise ValueError(f"query {text}: the grid has {t} slots, {h} rows and {w} columns, counted from 0")
    return (slot * h + row) * w + column


def block_of(config: EncoderConfig, layer: int) -> int:
    """Return the number of a layer's block from 0: layers are 1 to depth, or -1 (the last) to -depth.

    Raises:
        ValueError: There is no such layer.
    """
    depth = config.depth
    if not (1 <= layer <= depth or -depth <= layer <= -1):
        raise ValueError(f"layer {layer}: the encoder has {depth} blocks: give 1 to {depth}, or -1 for the last")
    return layer - 1 if layer > 0 else depth + layer


@torch.no_grad()
def layer_attention(encoder: Encoder, clip: Tensor, query: Tensor, *, layer: int = -1) -> Tensor:
    """Compute a query's attention in one block by head: softmax(q k^T / sqrt(D / heads)), averaged over the query.

    Args:
        encoder: The encoder on any device; its mode is left as it is.
        clip: uint8 or uint16 (B, T, H, W, C), or normalised float (B, C, T, H, W), on the same device.
        query: (N,), from `query_of`.
        layer: The block, 1 to depth, or -1, the last, to -depth.

    Returns:
        (B, heads, N) float32.

    Raises:
        ValueError: There is no such layer, or the clip does not fit the encoder.
    """
    last = block_of(encoder.config, layer)
    inputs = _attention_inputs(encoder, clip, blocks=last + 1)
    query_BN = query.to(clip.device).expand(len(clip), -1)
    block: Any = encoder.blocks[last]
    return _attend(block.attn, inputs[last], query_BN)


@torch.no_grad()
def rollout(encoder: Encoder, clip: Tensor, query: Tensor) -> Tensor:
    """Trace a query's content through all blocks: attention rollout (Abnar & Zuidema, arXiv 2005.00928).

    The result is the query's row of A_depth ... A_2 A_1 with each block's A = 0.5 (mean of the heads' attention) +
    0.5 I: half of a token is taken to pass by on the residual path. Rows of A sum to 1 as they are. Arguments and
    errors are those of `layer_attention`.

    Returns:
        (B, N) float32.
    """
    inputs = _attention_inputs(encoder, clip, blocks=encoder.config.depth)
    flow_BN = query.to(clip.device).expand(len(clip), -1)
    blocks: list[Any] = list(encoder.blocks)
    for block, x in zip(reversed(blocks), reversed(inputs), strict=True):
        flow_BN = 0.5 * _attend(block.attn, x, flow_BN).mean(dim=1) + 0.5 * flow_BN
    return flow_BN


def _attention_inputs(encoder: Encoder, clip: Tensor, *, blocks: int) -> list[Tensor]:
    """Compute the inputs (B, N, D) of the first blocks' attention, in evaluation mode, without dropped paths."""
    was_training = encoder.training
    encoder.eval()
    try:
        x, inputs = encoder.embed(clip), []
        block: Any
        for block in islice(encoder.blocks, blocks):
            inputs.append(block.norm1(x))
            x = block(x)
    finally:
        encoder.train(was_training)
    return inputs


def _attend(attention: Attention, x_BND: Tensor, query_BN: Tensor) -> Tensor:
    """Average the attention of each token with the query's weights: (B, N, D), (B, N) ─► (B, heads, N)."""
    batch, tokens, _ = x_BND.shape
    qkv = attention.qkv(x_BND).unflatten(-1, (3, attention.num_heads, -1))
    q, k = (part.transpose(1, 2).float() for part in qkv.unbind(2)[:2])  # (B, heads, N, D / heads)
    rows = query_BN.any(dim=0).nonzero()[:, 0]
    attended = q.new_zeros(batch, attention.num_heads, tokens)
    for chunk in rows.split(max(1, _MAX_PROBABILITIES // (batch * attention.num_heads * tokens))):
        probabilities = (q[:, :, chunk] * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        attended += (query_BN[:, None, None, chunk] @ probabilities)[:, :, 0]
    return attended
