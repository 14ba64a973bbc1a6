"""Learning rates by step and parameter groups by model, pure functions: a resumed run needs no scheduler's state.

lr = lr_at(step, lr=1.6e-3, min_lr=0.0, warmup_steps=5 * steps_per_epoch, total_steps=100 * steps_per_epoch)
for group in optimizer.param_groups:
    group["lr"] = lr * group["lr_scale"]
"""

import inspect
import math
import re
from typing import TypedDict

import torch
from torch import nn

# Beginnings of names before the blocks, of the video encoder and of timm's ViTs (FrameEncoder): tokens and positions,
# which are not decayed, and the rest.
_TOKENS = (
    "encoder.cls_token",
    "encoder.positions.",
    "encoder.vit.cls_token",
    "encoder.vit.reg_token",
    "encoder.vit.pos_embed",
)
_STEM = ("encoder.patch_embed.", "encoder.vit.patch_embed.", "encoder.vit.norm_pre.", "encoder.vit.rope.")


class ParamGroup(TypedDict):
    """A group of parameters as torch's optimizers and DeepSpeed take it, with the parameters' names."""

    params: list[nn.Parameter]
    names: list[str]
    weight_decay: float
    lr_scale: float


class AdamW(torch.optim.AdamW):
    """torch's AdamW past the decorators of its methods, which load torch's compiler in any case: over a CPU second."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def lr_at(step: float, *, lr: float, min_lr: float, warmup_steps: float, total_steps: float) -> float:
    """Return the rate: linear warm-up from 0, then half a cosine down to `min_lr`: upstream's schedule, in steps.

    Args:
        step: Optimizer steps done before this one; 0 gives 0 if there is a warm-up.
        lr: The peak.
        min_lr: Where it ends; also after `total_steps`.
        warmup_steps: Length of the warm-up.
        total_steps: Length of the run, the warm-up included.
    """
    if step < warmup_steps:
        return lr * step / warmup_steps
    if step >= total_steps:
        return min_lr
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(step: int, decay: float) -> float:
    """Return the decay of the weights' moving average at an update: min(decay, (1 + step) / (10 + step)).

    A constant decay of 0.9999 would still hold 99.4 % of the first weights after 60 updates; so it holds none, and the
    average reaches back over about the last tenth of the updates until they are many (TensorFlow's rule, which timm's
    trainers have as `--model-ema-warmup` in another form).

    Args:
        step: updates done before this one.
        decay: the largest.
    """
    return min(decay, (1 + step) / (10 + step))


def pretrain_groups(model: nn.Module, *, weight_decay: float) -> list[ParamGroup]:
    """Return parameters with and without weight decay, in the order of `named_parameters`.

    As upstream: vectors (norms) and parameters called `.bias` are not decayed; class and mask tokens and
    tables of positions are 3-D and are decayed. Frozen parameters are left out, and so is a group without
    any.
    """
    decayed = ParamGroup(params=[], names=[], weight_decay=weight_decay, lr_scale=1.0)
    plain = ParamGroup(params=[], names=[], weight_decay=0.0, lr_scale=1.0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = plain if parameter.ndim == 1 or name.endswith(".bias") else decayed
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in (decayed, plain) if group["params"]]


def finetune_groups(model: nn.Module, *, weight_decay: float, layer_decay: float) -> list[ParamGroup]:
    """Group a classifier's parameters by learning rate and weight decay, in the order of `named_parameters`.

    As upstream: with n blocks, what comes before them (patches, class token, positions) learns at
    layer_decay^(n + 1) of the rate, block i at layer_decay^(n - i), the last norm and the head at the whole
    rate. Not decayed are vectors (biases, norms), the class token and the tables of positions: in pretraining
    those two are. Frozen parameters are left out.

    Args:
        model: A `Classifier`, or anything with an `encoder`.
        weight_decay: Of the matrices.
        layer_decay: From block to block, above 0 and at most 1; 1 gives every layer the same rate.

    Raises:
        ValueError: `layer_decay` is out of its range.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be above 0 and at most 1; 1 switches it off")
    named = list(model.named_parameters())
    depth = 1 + max((_block(name) for name, _ in named), default=-1)
    groups: dict[tuple[float, float], ParamGroup] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        token = name.startswith(_TOKENS)
        layer = _layer(name, depth=depth)
        scale = layer_decay ** (depth + 1 - layer)
        decay = 0.0 if parameter.ndim == 1 or token or name.endswith(".bias") else weight_decay
        group = groups.setdefault((scale, decay), ParamGroup(params=[], names=[], weight_decay=decay, lr_scale=scale))
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _block(name: str) -> int:
    """Return the number of the encoder's block that a parameter belongs to, -1 for none."""
    match = re.match(r"encoder\.(?:vit\.)?blocks\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def _layer(name: str, *, depth: int) -> int:
    """Return 0 for parameters before the blocks, i + 1 for block i, depth + 1 for those after them."""
    if name.startswith((*_TOKENS, *_STEM)):
        return 0
    block = _block(name)
    return depth + 1 if block < 0 else block + 1
