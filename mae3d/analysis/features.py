"""A frozen model turns clips into features: of any layer, pooled over the patches, the class token's or each token's.

clip ─► tokens of a layer ─► features

    model = mae3d.load_model("OUT")
    clip = mae3d.read_clip("talk.mp4", model.config, sampling_rate=4)
    vector = mae3d.embed(model, clip)                          # (1, D) float32
    tokens = mae3d.embed(model, clip, layer=6, pool="tokens")  # (1, L, D) after the sixth block, token order t, h, w

Every token is visible, nothing is hidden. B clips, L = t * h * w tokens, D width.
"""

from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae3d.model.classifier import Classifier
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder
from mae3d.model.mae import MAE

Pool = Literal["mean", "cls", "tokens"]


@torch.no_grad()
def embed(
    model: MAE | Classifier | Encoder | FrameEncoder, clip: Tensor, *, layer: int = -1, pool: Pool = "mean"
) -> Tensor:
    """Compute features of clips; blocks behind the chosen layer are not run.

    The encoder's norm is applied to the last layer alone, for which it was trained, and after the pooling, as in
    facebookresearch/mae_st's classifier; features of other layers are the residual stream as it is. The model
    computes in its own dtype (or autocast's) and is left in the mode that it was in; without a gradient. An image ViT
    (mae3d.model.frames) normalises where timm has it, and its frames are averaged.

    Args:
        model: A masked autoencoder, a classifier or an encoder of video or of frames, on any device.
        clip: uint8 or uint16 (B, T, H, W, C), or normalised float (B, C, T, H, W); moved to the model's device.
        layer: Number of blocks that are run: 0 is the patch embedding with its positions, depth the last block;
            negative numbers count from the end, -1 is the last block.
        pool: `mean` of the patches' tokens, `cls`, the class token, or `tokens`, each patch's token.

    Returns:
        float32 on the model's device: (B, D), or (B, L, D) for `tokens`, without the class token.

    Raises:
        ValueError: The model has no such layer, pooling or class token, or the clip does not fit it.
    """
    encoder = encoder_of(model)
    blocks = layer_of(encoder, layer)
    check_pool(encoder, pool)
    was_training = encoder.training
    encoder.eval()
    try:
        clip = clip.to(next(encoder.parameters()).device, non_blocking=True)
        if isinstance(encoder, FrameEncoder):
            features = encoder.features(clip, blocks=blocks, pool=pool)
        else:
            features = _features(encoder, clip, blocks=blocks, pool=pool)
    finally:
        encoder.train(was_training)
    return features.float()


def _features(encoder: Encoder, clip: Tensor, *, blocks: int, pool: Pool) -> Tensor:
    x = encoder.embed(clip)
    for block in islice(encoder.blocks, blocks):
        x = block(x)
    if pool == "cls":
        x = x[:, 0]
    else:
        x = x[:, encoder.num_prefix :]
        x = x.mean(dim=1) if pool == "mean" else x
    features: Tensor = encoder.norm(x) if blocks == encoder.config.depth else x
    return features


def encoder_of(model: MAE | Classifier | Encoder | FrameEncoder) -> Encoder | FrameEncoder:
    """Return the encoder of a model, or the encoder that it is."""
    return model if isinstance(model, Encoder | FrameEncoder) else model.encoder


def layer_of(encoder: Encoder | FrameEncoder, layer: int) -> int:
    """Return the number of blocks that `layer` means, from 0 to depth; ValueError if there is no such layer."""
    depth = encoder.config.depth
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer={layer}: the encoder has {depth} blocks: give 0 (patch embedding) to {depth}, or -1")
    return layer if layer >= 0 else depth + 1 + layer


def check_pool(encoder: Encoder | FrameEncoder, pool: str) -> None:
    """Refuse a pooling that is unknown or that the encoder lacks a class token for; ValueError."""
    if pool not in get_args(Pool):
        raise ValueError(f"pool={pool!r}: give {', '.join(get_args(Pool))}")
    if pool == "cls" and not encoder.config.cls_embed:
        raise ValueError("pool='cls': the encoder has no class token (cls_embed is false): take the mean")


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    """Scale vectors (n, D) to length 1, in float32; zeros stay."""
    vectors = vectors.astype(np.float32)
    scaled: NDArray[Any] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled
