"""Clips and labels of a batch are mixed with one another (mixup, cutmix), labels becoming soft targets.

    mix = draw_mix(MixConfig(mixup=0.8, cutmix=1.0), seed=0, step=step, rank=rank, height=224, width=224)
    clips = mix_clips(clips, mix)                                      # uint8 or float, as they came
    targets = mix_targets(soft_targets(labels, num_classes=400, smoothing=0.1), mix)

The partner of clip i is clip B - 1 - i, and one draw serves the whole batch and all of its frames, as upstream has
it. What is drawn is a pure function of (seed, step, micro-batch, rank). mixup: Zhang et al., arXiv 1710.09412;
cutmix: Yun et al., arXiv 1905.04899. B batch, C classes.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mae3d.io.random import Stream, philox_key
from mae3d.model.config import MixConfig
from mae3d.model.patches import LEVELS


class Mix(NamedTuple):
    """The mixing of one batch.

    Attributes:
        share: Of a clip's own label in its target; 1 for a batch that is left as it is.
        box: (top, left, height, width) that the partner fills (cutmix); None where pixels are blended (mixup).
    """

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(config: MixConfig, *, seed: int, step: int, rank: int, height: int, width: int, micro: int = 0) -> Mix:
    """Draw the mixing of one batch (counter-based: Philox 4x64).

    Args:
        config: Which kinds, how often and how strongly.
        seed: The run's seed, 0 or more.
        step: The optimizer step, 0 or more.
        rank: The process.
        height: Of the clips, in pixels.
        width: Of the clips, in pixels.
        micro: The micro-batch within the step, where gradients are accumulated.
    """
    # The lowest word counts the draws; the three above name the batch.
    bits = np.random.Philox(key=philox_key(seed, Stream.MIX), counter=[0, micro, rank, step])
    generator = np.random.Generator(bits)
    mixed, switch = generator.random(2)
    if not config.mixes or mixed >= config.prob:
        return Mix(1.0)
    if config.cutmix > 0 and (config.mixup == 0 or switch < config.switch_prob):
        share = generator.beta(config.cutmix, config.cutmix)
        box = _box(share, *generator.random(2), height=height, width=width)
        return Mix(1 - box[2] * box[3] / (height * width), box)  # the box was clipped: what it really covers
    return Mix(float(generator.beta(config.mixup, config.mixup)))


def _box(share: float, y: float, x: float, *, height: int, width: int) -> tuple[int, int, int, int]:
    """Return a box of 1 - share of the area around a point anywhere in the frame, clipped at the frame's edges."""
    edges = []
    for at, size in ((y, height), (x, width)):
        middle, half = int(at * size), int(size * math.sqrt(1 - share)) // 2
        edges.append((max(0, middle - half), min(size, middle + half)))
    (top, bottom), (left, right) = edges
    return top, left, bottom - top, right - left


def mix_clips(clips: Tensor, mix: Mix) -> Tensor:
    """Mix each clip with its partner; a batch that is not mixed is returned unchanged.

    Args:
        clips: uint8 or uint16 (B, T, H, W, C), or float (B, C, T, H, W). Blended whole numbers are rounded, at most
            half a step: blending commutes with the normalisation that follows.
        mix: What `draw_mix` drew.

    Returns:
        New clips of the same shape and dtype; `clips` is not written to.

    Raises:
        ValueError: There is one clip only, which has no partner.
    """
    if mix.share == 1:
        return clips
    _check_partners(len(clips))
    partners = clips.flip(0)
    if mix.box is not None:
        top, left, height, width = mix.box
        rows, columns = slice(top, top + height), slice(left, left + width)
        inside = (..., rows, columns, slice(None)) if clips.dtype in LEVELS else (..., rows, columns)
        mixed = clips.clone()
        mixed[inside] = partners[inside]
        return mixed
    if clips.dtype in LEVELS:
        return clips.float().lerp_(partners.float(), 1 - mix.share).round_().to(clips.dtype)
    return clips.lerp(partners, 1 - mix.share)


def soft_targets(labels: Tensor, *, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Convert labels to a share per class.

    Args:
        labels: int64 (B,), one class each; or float (B, C) of 0 and 1, several.
        num_classes: C.
        smoothing: Spread evenly over all classes: a label's own class gets 1 - s + s / C, another s / C.

    Returns:
        float32 (B, C).

    Raises:
        ValueError: The labels do not fit the number of classes.
    """
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        hard = labels.float()
    elif labels.ndim == 1 and not labels.is_floating_point():
        # A GPU's labels are not checked here, because that would wait for it at every step: the loss reports them.
        if (
            labels.device.type == "cpu"
            and len(labels)
            and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes
        ):
            wrong = labels[(labels < 0) | (labels >= num_classes)].tolist()
            raise ValueError(f"labels {wrong[:8]} lie outside 0 to {num_classes - 1}; -1 is a clip without a label")
        hard = torch.nn.functional.one_hot(labels, num_classes).float()
    else:
        raise ValueError(
            f"labels {tuple(labels.shape)} of {labels.dtype} are neither one class number a clip (B,) nor 0 and 1 for "
            f"each of {num_classes} classes (B, {num_classes})"
        )
    return hard * (1 - smoothing) + smoothing / num_classes


def mix_targets(targets: Tensor, mix: Mix) -> Tensor:
    """Mix the targets (B, C) of a batch as its clips were.

    Raises:
        ValueError: There is one clip only, which has no partner.
    """
    if mix.share == 1:
        return targets
    _check_partners(len(targets))
    return targets.lerp(targets.flip(0), 1 - mix.share)


def check_batch(config: MixConfig, *, clips: int) -> None:
    """Check, before training, that a micro-batch can be mixed.

    Raises:
        ValueError: Batches shall be mixed, but there is one clip only.
    """
    if config.mixes:
        _check_partners(clips)


def _check_partners(clips: int) -> None:
    if clips < 2:
        raise ValueError(
            f"mixup and cutmix need two clips or more in a micro-batch, got {clips}: take a larger batch, fewer "
            "processes or less accumulation, or mixup=0 and cutmix=0"
        )
