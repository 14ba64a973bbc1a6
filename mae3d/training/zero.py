"""The layouts of DeepSpeed's ZeRO optimizers: where each parameter's fp32 master and moments lie on this rank.

    layout = make_layout(stage, deepspeed_engine, parameters, rank=0)
    for piece in layout.pieces():      # of a parameter: its elements start ... stop are flat[within]
        ...

Read off the attributes of DeepSpeed 0.19.8, which are no public interface: setup.cfg pins it exactly, and
tests/mae3d/training/test_engine.py holds both together.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Piece(NamedTuple):
    """Elements start ... stop of a flattened parameter, and their position in the tensors that AdamW steps here."""

    name: str
    start: int
    stop: int
    flat: Tensor
    within: slice


class Layout(Protocol):
    """The interface of DeepSpeed's ways to share the fp32 masters out."""

    def flats(self) -> Iterator[Tensor]:
        """Return the tensors that AdamW steps on this rank, and keeps state for."""

    def pieces(self) -> Iterator[Piece]:
        """Return this rank's pieces; those of all ranks are every parameter once (at stage 0: of each rank)."""

    def publish(self) -> None:
        """Update the module's weights, of any dtype, from changed masters; a collective."""


def make_layout(stage: int, engine: Any, parameters: Mapping[str, nn.Parameter], *, rank: int) -> Layout:
    """Return the layout of a DeepSpeed engine.

    Args:
        stage: its ZeRO stage.
        engine: from `deepspeed.initialize`.
        parameters: the trainable ones by name, the same objects as in the module.
        rank: of this process.
    """
    if stage == 0:
        return _Replicated(parameters)
    names = {id(parameter): name for name, parameter in parameters.items()}
    return (_Sharded if stage == 3 else _Partitioned)(engine.optimizer, names, rank)


class _Replicated:
    """Stage 0: every rank steps everything, in the parameters themselves."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self._parameters = parameters

    def flats(self) -> Iterator[Tensor]:
        yield from self._parameters.values()

    def pieces(self) -> Iterator[Piece]:
        for name, parameter in self._parameters.items():
            yield Piece(name, 0, parameter.numel(), parameter, slice(None))

    def publish(self) -> None:
        """Do nothing, because the parameters are the masters."""


class _Partitioned:
    """Stages 1 and 2: a group's parameters are concatenated and cut into as many parts as ranks."""

    def __init__(self, zero: Any, names: Mapping[int, str], rank: int):
        self._zero, self._names, self._rank = zero, names, rank

    def flats(self) -> Iterator[Tensor]:
        yield from self._zero.single_partition_of_fp32_groups

    def pieces(self) -> Iterator[Piece]:
        zero = self._zero
        for i, flat in enumerate(self.flats()):
            low = self._rank * int(zero.partition_size[i])
            high = low + int(zero.partition_size[i])
            placed = zip(zero.round_robin_bit16_groups[i], zero.round_robin_bit16_offsets[i], strict=True)
            for parameter, offset in placed:
                first, last = max(offset, low), min(offset + parameter.numel(), high)
                if first < last:
                    name, within = self._names[id(parameter)], slice(first - low, last - low)
                    yield Piece(name, first - offset, last - offset, flat, within)

    def publish(self) -> None:
        self._zero.update_lp_params()


class _Sharded:
    """Stage 3: each parameter is cut into as many equal parts as ranks, the last of them padded."""

    def __init__(self, zero: Any, names: Mapping[int, str], rank: int):
        self._zero, self._names, self._rank = zero, names, rank

    def flats(self) -> Iterator[Tensor]:
        yield from self._zero.fp32_partitioned_groups_flat

    def pieces(self) -> Iterator[Piece]:
        for flat, parameters in zip(self.flats(), self._zero.fp16_groups, strict=True):
            at = 0
            for parameter in parameters:
                size = int(parameter.ds_tensor.ds_numel)
                start = self._rank * size
                stop = min(start + size, int(parameter.ds_numel))
                if start < stop:
                    yield Piece(self._names[id(parameter)], start, stop, flat, slice(at, at + stop - start))
                at += size

    def publish(self) -> None:
        """Update as the end of DeepSpeed's step does: small parameters are kept on every rank, and gathered anew."""
        zero = self._zero
        zero._partition_all_parameters()
        for i in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(i)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


KINDS = ("exp_avg", "exp_avg_sq")  # AdamW's moments


def moments(adam: torch.optim.Optimizer, flat: Tensor) -> dict[str, Tensor]:
    """Return a tensor's moments, flattened views; empty before the first step."""
    state = adam.state.get(flat, {})
    return {kind: state[kind].view(-1) for kind in KINDS if kind in state}


def count_steps(adam: torch.optim.Optimizer) -> int:
    """Return the steps that AdamW has taken, without skipped ones: its bias correction depends on it.

    torch counts in a tensor with each parameter's state, DeepSpeed's FusedAdam in an int: with the state, but of a
    group's last parameter alone, or (older ones, and Apex's) with the group. So the greatest count is the right one.
    """
    counts = [int(state["step"]) for state in adam.state.values() if "step" in state]
    return max([*counts, *(int(group["step"]) for group in adam.param_groups if "step" in group)], default=0)


def start_state(adam: torch.optim.Optimizer, layout: Layout, *, steps: int) -> None:
    """Return the state, with moments of zero, that AdamW makes at its first step, for a given count of steps."""
    in_tensor = isinstance(adam, torch.optim.AdamW)
    for flat in layout.flats():
        adam.state[flat] = {
            "step": torch.tensor(float(steps), device=flat.device) if in_tensor else steps,
            **{kind: torch.zeros_like(flat) for kind in KINDS},
        }
    if not in_tensor:
        for group in adam.param_groups:
            group["step"] = steps
