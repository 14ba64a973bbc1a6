"""Step -> learning rate; model -> parameter groups. Pure, so that a resumed run needs no scheduler's state.

lr = lr_at(step, lr=1.6e-3, min_lr=0.0, warmup_steps=5 * steps_per_epoch, total_steps=100 * steps_per_epoch)
for group in optimizer.param_groups:
    group["lr"] = lr * group["lr_scale"]
"""

import math
from typing import TypedDict

from torch import nn


class ParamGroup(TypedDict):
    """A group of parameters as torch's optimizers and DeepSpeed take it, with the parameters' names."""

    params: list[nn.Parameter]
    names: list[str]
    weight_decay: float
    lr_scale: float


def lr_at(step: float, *, lr: float, min_lr: float, warmup_steps: float, total_steps: float) -> float:
    """Linear warm-up from 0, then half a cosine down to `min_lr`: upstream's schedule, in steps.

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


def pretrain_groups(model: nn.Module, *, weight_decay: float) -> list[ParamGroup]:
    """Parameters with and without weight decay, in the order of `named_parameters`.

    As upstream: vectors (norms) and whatever is called `.bias` are not decayed; class and mask tokens and
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
