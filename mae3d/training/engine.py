"""A model and its parameter groups become a DeepSpeed engine under our schedule, and the slices of its state.

    engine = Engine(model, groups, train=train, optim=optim, micro_batch=8, world=world)
    loss = engine(clips, noise).loss
    engine.backward(loss)
    engine.step(lr)                      # steps the optimizer at the end of an accumulation

This file and zero.py, which says where the slices lie, are the only ones that know DeepSpeed.
"""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mae3d.checkpoints.format import Slice, SliceReader
from mae3d.distributed import World
from mae3d.io.collector import uncollected
from mae3d.io.console import one_line
from mae3d.model.blocks import without_weights
from mae3d.training.config import OptimConfig, TrainConfig
from mae3d.training.deepspeed_config import bucket_settings, merged
from mae3d.training.optim import AdamW, ParamGroup, ema_decay
from mae3d.training.zero import KINDS, Piece, count_steps, make_layout, moments, start_state

logger = logging.getLogger(__name__)


def deepspeed_config(
    train: TrainConfig, optim: OptimConfig, *, micro_batch: int, sizes: Sequence[int], ranks: int
) -> dict[str, Any]:
    """Return DeepSpeed's settings for trained tensors of these sizes, the user's over ours.

    The optimizer is ours: CPU and GPU differ in its kernel only."""
    ours = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": train.accumulation,
        # Stage 0 neither returns a norm nor skips a step that is not finite: there we clip.
        "gradient_clipping": optim.clip_grad or 0.0 if train.zero_stage else 0.0,
        # A non-finite gradient skips the step on all ranks; stated, because the default has changed before.
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": True},
        "torch_autocast": {"enabled": train.precision == "autocast", "dtype": "bfloat16"},
        "zero_optimization": {
            "stage": train.zero_stage,
            **bucket_settings(sizes, stage=train.zero_stage, precision=train.precision, ranks=ranks),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
    }
    assert isinstance(train.deepspeed, dict), "TrainConfig reads a file's settings"
    return merged(ours, train.deepspeed)


def make_adamw(groups: Sequence[ParamGroup], optim: OptimConfig, *, device: torch.device) -> torch.optim.Optimizer:
    """Return DeepSpeed's FusedAdam on a GPU, else torch's fused AdamW; also on a GPU if FusedAdam cannot be built."""
    settings: dict[str, Any] = {"lr": 0.0, "betas": optim.betas, "eps": optim.eps}
    plain = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    if device.type == "cuda":
        try:
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(plain, adam_w_mode=True, **settings)
        except Exception as error:  # the builder raises what it likes: no nvcc, no ninja, another CUDA than torch's
            logger.warning(
                "FusedAdam cannot be built (%s): torch's fused AdamW takes its place, with the same steps",
                one_line(error),
            )
    return AdamW(plain, fused=True, **settings)


def import_deepspeed(device: torch.device) -> Any:
    """Return DeepSpeed, without compilers that it loads and does not use here: a second and a half.

    Its ZeRO optimizers import Muon to see whether ours is one, and Muon's decorators load torch's compiler. Kernels for
    mixtures of experts load triton: on the CPU they find none, as on a machine that lacks it.
    """
    import deepspeed
    from deepspeed.runtime import compiler
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    decorator, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    hidden = device.type == "cpu" and "triton" not in sys.modules
    if hidden:
        sys.modules["triton"] = None  # type: ignore[assignment]  # an import of it raises ImportError
    try:
        import deepspeed.ops.triton_ops
        import deepspeed.runtime.zero.muon.original_muon
    finally:
        compiler.compile = decorator
        if hidden:
            del sys.modules["triton"]
    if AdamW not in ZERO_SUPPORTED_OPTIMIZERS:  # else it warns of an untested one
        ZERO_SUPPORTED_OPTIMIZERS.append(AdamW)
    return deepspeed


class Engine:
    """Forward, backward and step of a model on this rank."""

    @uncollected()
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
        """Hand the model to DeepSpeed.

        Args:
            model: MAE or Classifier, on any device; with bf16 it is cast, the fp32 masters are DeepSpeed's.
            groups: its trainable parameters, each with weight_decay and lr_scale.
            train: precision, ZeRO stage, accumulation.
            optim: AdamW's constants and the clipping.
            micro_batch: samples of one forward pass on this rank.
            world: all processes.
            ema: largest decay a step (`ema_decay`) of a moving average of the fp32 masters, kept by the rank that holds
                them; 0 for none.

        Raises:
            ValueError: DeepSpeed refuses a setting of train.deepspeed; or the precision is `auto`, which the training
                commands replace by their choice.
        """
        if train.precision == "auto":
            raise ValueError("train.precision=auto is for the training commands: give bf16, autocast or fp32")
        deepspeed = import_deepspeed(world.device)
        if world.device.type == "cpu":
            # Its communicator would be compiled for half a minute at the first start; gloo does.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.logger.setLevel(logging.WARNING)
        deepspeed.init_distributed(dist_init_required=False)
        self._groups = list(groups)
        self._stage, self._rank, self._device = train.zero_stage, world.ranks.rank, world.device
        self._clip, self._decay = optim.clip_grad, ema
        self._dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        self._autocast = train.precision == "autocast"
        # Stage 3 leaves the parameters in place, but empty.
        parameters = dict(model.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._adam = make_adamw(groups, optim, device=world.device)
        self._engine, *_ = deepspeed.initialize(
            model=model.to(world.device),
            optimizer=self._adam,
            config=deepspeed_config(
                train,
                optim,
                micro_batch=micro_batch,
                sizes=[parameter.numel() for group in groups for parameter in group["params"]],
                ranks=world.ranks.size,
            ),
            dist_init_required=False,
        )
        # DeepSpeed's own group waits half an hour for a lost process, even if ours do not. Older
        # torch has no public name for this.
        set_timeout = (
            getattr(torch.distributed, "set_timeout", None) or torch.distributed.distributed_c10d._set_pg_timeout
        )
        set_timeout(world.timeout, deepspeed.utils.groups._get_data_parallel_group())
        if train.compile:
            self._engine.compile()  # in place: no name changes
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self._layout = make_layout(self._stage, self._engine, trained, rank=self._rank)
        self._norm: float | None = None  # where we clip
        self._skipped = 0
        self._averages = [self._master(piece).clone() for piece in self._layout.pieces()] if ema else []
        self._updates = 0  # of the averages: AdamW's count, which is read from every parameter's state

    def __call__(self, *inputs: Any) -> Any:
        """Run the module's forward pass."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients; accumulation divides them."""
        self._engine.backward(loss)

    def step(self, lr: float) -> None:
        """Count a micro-batch; at the end of an accumulation step AdamW.

        The rate and each group's settings are set every time, because a library may keep others in its groups.
        A gradient that is not finite on one rank skips the step on all.
        """
        for live, group in zip(self._adam.param_groups, self._groups, strict=True):
            live["lr"] = lr * group["lr_scale"]
            live["weight_decay"] = group["weight_decay"]
        ends, skipped = self._engine.is_gradient_accumulation_boundary(), self.skipped_steps
        if ends and self._stage == 0:
            self._clip_gradients()
        self._engine.step()
        if ends and self._averages and self.skipped_steps == skipped:
            with torch.no_grad():
                masters = [self._master(piece) for piece in self._layout.pieces()]
                torch._foreach_lerp_(self._averages, masters, 1 - ema_decay(self._updates, self._decay))
            self._updates += 1

    def _clip_gradients(self) -> None:
        """Clip as ZeRO's optimizers do themselves; DeepSpeed has averaged the gradients over the ranks by now."""
        parameters = [parameter for group in self._groups for parameter in group["params"]]
        self._norm = float(nn.utils.clip_grad_norm_(parameters, self._clip or math.inf))
        if not math.isfinite(self._norm):
            self._skipped += 1
            for parameter in parameters:
                parameter.grad = None  # AdamW passes it over

    @property
    def skipped_steps(self) -> int:
        """Return the number of steps that were skipped for a non-finite gradient."""
        return int(self._engine.skipped_steps) + self._skipped

    @property
    def grad_norm(self) -> float | None:
        """Return the norm of the last gradient before clipping; not finite if the step was skipped, None before any."""
        norm = self._engine.get_global_grad_norm() if self._stage else self._norm
        return None if norm is None else float(norm)

    @property
    def module(self) -> nn.Module:
        """Return the model in training. At ZeRO stage 3 its parameters are empty outside of its forward pass."""
        module: nn.Module = self._engine.module
        return module

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Return every parameter's name and full shape."""
        return self._shapes

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Yield the model with the weights to use (`kind`): no gradients or dropout, training's precision.

        All processes enter the block; in it the model is whole on each, which may call it as often as it likes.
        """
        module = self.module
        if self._averages or self._stage == 3:
            with without_weights():
                model = type(module)(module.config)
            model.load_state_dict(self.weights(), assign=True)
            model.to(self._dtype)
        else:
            model = module
        training = module.training
        model.eval()
        try:
            with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                yield model
        finally:
            module.train(training)

    def slices(self) -> Iterator[Slice]:
        """Return this rank's masters, moments and averages, as views; zeros for moments before the first step."""
        if self._stage == 0 and self._rank:  # every rank holds everything: the first one writes it
            return
        for piece, average in self._averaged_pieces():
            tensors = {"master": self._master(piece)}
            state = moments(self._adam, piece.flat)
            for kind in KINDS:
                tensors[kind] = state[kind][piece.within] if kind in state else torch.zeros_like(tensors["master"])
            if average is not None:
                tensors["ema"] = average
            yield Slice(piece.name, piece.start, piece.stop, tensors)

    @property
    def kind(self) -> str:
        """Return which of a slice's tensors are the weights to use: "ema" if an average is kept, else "master"."""
        return "ema" if self._averages else "master"

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Yield all weights to use (`kind`), float32 on the device, on every rank; a collective."""
        flat = {name: torch.zeros(shape.numel(), device=self._device) for name, shape in self._shapes.items()}
        for piece, average in self._averaged_pieces():
            flat[piece.name][piece.start : piece.stop] = self._master(piece) if average is None else average
        if self._stage:  # each rank put its own share into zeros
            for whole in flat.values():
                torch.distributed.all_reduce(whole)
        return {name: flat[name].view(shape) for name, shape in self._shapes.items()}

    @property
    def optimizer_step(self) -> int:
        """Return the steps that AdamW has taken, without skipped ones: its bias correction depends on it."""
        return count_steps(self._adam)

    @torch.no_grad()
    def load(self, reader: SliceReader, *, optimizer_step: int) -> None:
        """Load masters, moments and step from a checkpoint of any world size and stage; a collective.

        Args:
            reader: over the checkpoint's rank files.
            optimizer_step: AdamW's step count.

        Raises:
            CheckpointError: the checkpoint belongs to another model.
        """
        start_state(self._adam, self._layout, steps=optimizer_step)
        self._updates = optimizer_step
        for piece, average in self._averaged_pieces():
            name, start, stop = piece.name, piece.start, piece.stop
            self._master(piece).copy_(reader.read(name, "master", start, stop))
            state = moments(self._adam, piece.flat)
            for kind in KINDS:
                state[kind][piece.within].copy_(reader.read(name, kind, start, stop))
            if average is not None:
                average.copy_(reader.read(name, "ema", start, stop))
        self._layout.publish()

    def close(self) -> None:
        """Release DeepSpeed's buffers and hooks."""
        self._engine.destroy()

    def _averaged_pieces(self) -> Iterator[tuple[Piece, Tensor | None]]:
        """Return the pieces that this rank steps, each with its moving average."""
        for i, piece in enumerate(self._layout.pieces()):
            yield piece, self._averages[i] if self._averages else None

    @staticmethod
    def _master(piece: Piece) -> Tensor:
        """Return a piece's masters, a flat view."""
        return piece.flat.data.view(-1)[piece.within]
