"""`train.precision` and the run so far ─► the precision that all ranks compute in.

train = agreed_precision(config.train, model_config, run, world)    # precision="bf16", no "auto" any more

Which of bf16 and fp32 is faster on a CPU depends on the processor and on the model's widths, so that it is tried.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mae3d.model.config import EncoderConfig, MAEConfig
from mae3d.training.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from mae3d.distributed import World
    from mae3d.tracking.run_dir import Run

_GAIN = 1.1  # by which bf16 must be faster than fp32, which is the more exact of the two
_SECONDS, _ROUNDS = 2.0, 5  # of a trial, whichever ends first
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # words of /proc/cpuinfo: x86's two kinds, and Arm's
_CPUINFO = Path("/proc/cpuinfo")


def agreed_precision(train: TrainConfig, model: EncoderConfig, run: "Run", world: "World") -> TrainConfig:
    """Return the settings with `auto` replaced by one choice for all ranks, which all call it; rank 0 prints it.

    A run keeps the precision that it began with, even if another would be chosen now: its losses depend on it.

    Args:
        train: the settings.
        model: the model's sizes, complete.
        run: its config.yaml has the precision of an earlier start.
        world: all ranks.
    """
    if train.precision != "auto":
        return train
    stored = world.share(run.stored().get("train", {}).get("precision") if world.is_first else None)
    if stored:
        return replace(train, precision=stored)
    precision, reason = _choose(train, model, world)
    if world.is_first:
        print(f"precision auto: {precision}, {reason}", flush=True)
    return replace(train, precision=precision)


def _choose(train: TrainConfig, model: EncoderConfig, world: "World") -> tuple[Literal["bf16", "fp32"], str]:
    """Return a new run's precision and the reason."""
    import torch

    if train.zero_stage == 0:
        return "fp32", "the only one at train.zero_stage=0"
    if world.device.type == "cuda":
        if world.any(not torch.cuda.is_bf16_supported(including_emulation=False)):
            return "fp32", "because a GPU has no bf16"
        return "bf16", "which the GPU has"
    if not world.on_first(has_bf16):
        return "fp32", "because the processor has no instructions for bf16"
    gain = world.on_first(lambda: bf16_gain(model))
    return "bf16" if gain > _GAIN else "fp32", f"bf16 is {gain:.2f} times as fast as fp32 here"


def has_bf16() -> bool:
    """Return whether the processor multiplies in bf16 itself; without such instructions it is slower than in fp32."""
    try:
        return bool(_BF16 & set(_CPUINFO.read_text(encoding="utf-8").split()))
    except OSError:
        return False


def bf16_gain(model: EncoderConfig, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure how many times as fast the model's blocks are in bf16 as in fp32, forward and backward, on one clip.

    One block of each kind is tried, in both precisions in turn; the shortest of its times counts.
    """
    import torch

    kinds, dtypes = _kinds_of_blocks(model), (torch.float32, torch.bfloat16)
    steps = [(i, dtype, _step_of(kind, dtype)) for i, kind in enumerate(kinds) for dtype in dtypes]
    shortest = dict.fromkeys([(i, dtype) for i, dtype, _ in steps], float("inf"))
    end = clock() + _SECONDS
    for turn in range(_ROUNDS + 1):
        for i, dtype, step in steps[:: 1 if turn % 2 else -1]:
            start = clock()
            step()
            shortest[i, dtype] = min(shortest[i, dtype], clock() - start)  # the first one makes kernels
        if turn and clock() > end:
            break
    in_fp32, in_bf16 = (sum(kind.number * shortest[i, dtype] for i, kind in enumerate(kinds)) for dtype in dtypes)
    return in_fp32 / in_bf16


class _Kind(NamedTuple):
    """Blocks of one size."""

    number: int
    width: int
    heads: int
    mlp_ratio: float
    tokens: int


def _kinds_of_blocks(model: EncoderConfig) -> list[_Kind]:
    """Return the encoder's blocks, and the decoder's if there is one."""
    tokens = model.num_kept if isinstance(model, MAEConfig) else model.num_tokens
    kinds = [_Kind(model.depth, model.embed_dim, model.num_heads, model.mlp_ratio, tokens)]
    if isinstance(model, MAEConfig) and model.decoder_depth:
        sizes = model.decoder_embed_dim, model.decoder_num_heads, model.mlp_ratio
        kinds.append(_Kind(model.decoder_depth, *sizes, model.num_tokens))
    return kinds


def _step_of(kind: _Kind, dtype: "torch.dtype") -> Callable[[], None]:
    """Return a forward and backward pass of a block, whose sizes decide the time, not its values."""
    import torch

    from mae3d.model.blocks import Block

    block = Block(kind.width, num_heads=kind.heads, mlp_ratio=kind.mlp_ratio, qkv_bias=True).to(dtype)
    x = torch.randn(1, kind.tokens, kind.width, dtype=dtype, requires_grad=True)

    def step() -> None:
        block.zero_grad()
        block(x).float().square().mean().backward()

    return step
