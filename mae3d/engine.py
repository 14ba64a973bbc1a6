"""A model and its parameter groups ─► a DeepSpeed engine that steps under our schedule, and the slices of its state.

    engine = Engine(model, groups, train=train, optim=optim, micro_batch=8, world=world)
    loss = engine(clips, noise).loss
    engine.backward(loss)
    engine.step(lr)                      # steps the optimizer at the end of an accumulation

The only file that knows DeepSpeed. It relies on attributes of its ZeRO optimizer that are no public interface, which is
why setup.cfg pins deepspeed exactly; tests/test_engine.py holds both together.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mae3d.checkpoint import Slice, SliceReader
from mae3d.distributed import World
from mae3d.optim import ParamGroup
from mae3d.train_config import OptimConfig, TrainConfig

logger = logging.getLogger(__name__)


def deepspeed_config(train: TrainConfig, optim: OptimConfig, *, micro_batch: int) -> dict[str, Any]:
    """DeepSpeed's settings. The optimizer is ours, so that CPU and GPU differ in its kernel only."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": optim.clip_grad or 0.0,
        # A non-finite gradient skips the step on all ranks; stated, for the default has changed before.
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
    }


def make_adamw(groups: Sequence[ParamGroup], optim: OptimConfig, *, device: torch.device) -> torch.optim.Optimizer:
    """DeepSpeed's FusedAdam on a GPU; torch's fused AdamW on the CPU, and on a GPU where FusedAdam cannot be built."""
    settings: dict[str, Any] = {"lr": 0.0, "betas": optim.betas, "eps": optim.eps}
    plain = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    if device.type == "cuda":
        try:
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(plain, adam_w_mode=True, **settings)
        except Exception as error:  # the builder raises what it likes: no nvcc, no ninja, another CUDA than torch's
            logger.warning(
                "FusedAdam cannot be built (%s): torch's fused AdamW takes its place",
                str(error).splitlines()[0],
            )
    return torch.optim.AdamW(plain, fused=True, **settings)


class Engine:
    """Forward, backward and step of a model on this rank."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        *,
        train: TrainConfig,
        optim: OptimConfig,
        micro_batch: int,
        world: World,
        ema: float = 0.0,
    ):
        """Hands the model to DeepSpeed.

        Args:
            model: on any device; with bf16 it is cast, the fp32 masters are DeepSpeed's.
            groups: its trainable parameters, each with weight_decay and lr_scale.
            train: precision, ZeRO stage, accumulation.
            optim: AdamW's constants and the clipping.
            micro_batch: samples of one forward pass on this rank.
            world: all processes.
            ema: decay a step of a moving average of the fp32 masters, kept by whoever holds them; 0 for none.
        """
        import deepspeed

        if world.device.type == "cpu":
            # Its communicator would be compiled for half a minute at the first start; gloo does.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.logger.setLevel(logging.WARNING)
        deepspeed.init_distributed(dist_init_required=False)
        self._groups = list(groups)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._stage, self._rank, self._device = train.zero_stage, world.place.rank, world.device
        self._adam = make_adamw(groups, optim, device=world.device)
        self._engine, *_ = deepspeed.initialize(
            model=model.to(world.device),
            optimizer=self._adam,
            config=deepspeed_config(train, optim, micro_batch=micro_batch),
            dist_init_required=False,
        )
        if train.compile:
            self._engine.compile()
        self._decay = ema
        self._averages = [master.clone() for *_, master, _ in self._shares()] if ema else []

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Adds this micro-batch's gradients; accumulation divides them."""
        self._engine.backward(loss)

    def step(self, lr: float) -> None:
        """Counts a micro-batch; at the end of an accumulation steps AdamW.

        The rate and each group's own settings are set every time: whatever a library keeps in its groups, ours hold.
        """
        for live, group in zip(self._adam.param_groups, self._groups, strict=True):
            live["lr"] = lr * group["lr_scale"]
            live["weight_decay"] = group["weight_decay"]
        ends = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        if ends and self._averages:
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, [master for *_, master, _ in self._shares()], 1 - self._decay)

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out for a non-finite gradient."""
        return int(self._engine.skipped_steps)

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last gradient before clipping; None where DeepSpeed does not compute it (stage 0)."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    @property
    def module(self) -> nn.Module:
        """The model as it runs."""
        module: nn.Module = self._engine.module
        return module

    def slices(self) -> Iterator[Slice]:
        """This rank's share of masters, moments and averages, as views; zeros for moments before the first step."""
        if self._stage == 0 and self._rank:  # every rank holds everything: the first one writes it
            return
        for (name, start, stop, master, state), average in self._averaged_shares():
            tensors = {"master": master}
            for kind in ("exp_avg", "exp_avg_sq"):
                tensors[kind] = state[kind] if kind in state else torch.zeros_like(master)
            if average is not None:
                tensors["ema"] = average
            yield Slice(name, start, stop, tensors)

    @property
    def kind(self) -> str:
        """Which of a slice's tensors are the weights to use: "ema" where an average is kept, else "master"."""
        return "ema" if self._averages else "master"

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """All weights to use (`kind`), float32 on the device, on every rank; all of them call it."""
        flat = {
            name: torch.zeros(parameter.numel(), device=self._device)
            for name, parameter in self.module.named_parameters()
        }
        for (name, start, stop, master, _), average in self._averaged_shares():
            flat[name][start:stop] = master if average is None else average
        if self._stage:  # each rank put its own share into zeros
            for whole in flat.values():
                torch.distributed.all_reduce(whole)
        return {name: flat[name].view(parameter.shape) for name, parameter in self.module.named_parameters()}

    @property
    def optimizer_step(self) -> int:
        """Steps that AdamW has taken, skipped ones not counted: its bias correction depends on it."""
        for state in self._adam.state.values():
            return int(state["step"])
        return 0

    @torch.no_grad()
    def load(self, reader: SliceReader, *, optimizer_step: int) -> None:
        """Takes over masters, moments and step from a checkpoint of any world size and stage.

        Args:
            reader: over the checkpoint's rank files.
            optimizer_step: AdamW's step count.

        Raises:
            CheckpointError: the checkpoint belongs to another model.
        """
        self._make_adam_state(optimizer_step)
        for (name, start, stop, master, state), average in self._averaged_shares():
            master.copy_(reader.read(name, "master", start, stop))
            for kind in ("exp_avg", "exp_avg_sq"):
                state[kind].copy_(reader.read(name, kind, start, stop))
            if average is not None:
                average.copy_(reader.read(name, "ema", start, stop))
        # The module's own weights, bf16 or fp32, follow their masters as after a step.
        for name, parameter in self.module.named_parameters():
            parameter.copy_(reader.whole(name, "master").view(parameter.shape))

    def close(self) -> None:
        """Lets go of DeepSpeed's buffers and hooks."""
        self._engine.destroy()

    def _make_adam_state(self, step: int) -> None:
        """The state that AdamW makes at its first step, for it is loaded before any."""
        # torch counts steps in a tensor, DeepSpeed's FusedAdam in an int.
        on_device = isinstance(self._adam, torch.optim.AdamW)
        for group in self._adam.param_groups:
            for flat in group["params"]:
                self._adam.state[flat] = {
                    "step": torch.tensor(float(step), device=flat.device) if on_device else step,
                    "exp_avg": torch.zeros_like(flat),
                    "exp_avg_sq": torch.zeros_like(flat),
                }

    def _averaged_shares(self) -> Iterator[tuple[tuple[str, int, int, Tensor, dict[str, Tensor]], Tensor | None]]:
        """What `_shares` gives, each with its moving average."""
        for i, share in enumerate(self._shares()):
            yield share, self._averages[i] if self._averages else None

    def _shares(self) -> Iterator[tuple[str, int, int, Tensor, dict[str, Tensor]]]:
        """(parameter, start, stop, flat view of the master, flat views of its moments) of what this rank steps."""
        if self._stage == 0:
            # Every rank holds everything, and loads it.
            for group in self._groups:
                for parameter in group["params"]:
                    state = {kind: value.view(-1) for kind, value in self._moments(parameter).items()}
                    yield self._names[id(parameter)], 0, parameter.numel(), parameter.data.view(-1), state
            return
        zero = self._engine.optimizer
        for i, flat in enumerate(zero.single_partition_of_fp32_groups):
            low = self._rank * int(zero.partition_size[i])
            high = low + int(zero.partition_size[i])
            moments = self._moments(flat)
            placed = zip(zero.round_robin_bit16_groups[i], zero.round_robin_bit16_offsets[i], strict=True)
            for parameter, offset in placed:
                first, last = max(offset, low), min(offset + parameter.numel(), high)
                if first < last:
                    mine = slice(first - low, last - low)
                    yield (
                        self._names[id(parameter)],
                        first - offset,
                        last - offset,
                        flat.data[mine],
                        {kind: value[mine] for kind, value in moments.items()},
                    )

    def _moments(self, flat: Tensor) -> dict[str, Tensor]:
        state = self._adam.state.get(flat, {})
        return {kind: state[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in state}
