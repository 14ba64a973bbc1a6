"""The measurements of a run: losses, speed, waiting for data, floating point operations; and estimates of them.

meter = Meter(world, clips_per_step=64, flops_per_clip=step_flops(config))
meter.add(loss)
meter.stepped()
row, losses = meter.row()        # of metrics.jsonl; starts the next interval
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mae3d.distributed import World
from mae3d.model.config import ClassifierConfig, MAEConfig

# Dense bf16 peak in FLOP/s, from NVIDIA's data sheets, for the fraction of it that is used (MFU). The first that a
# GPU's name has in it holds; a part of a GPU (MIG) has a share of the peak that its name does not say.
_PEAK_FLOPS = {
    "MIG": None,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}

# Bytes that autograd keeps for an element of a block's input in bf16, attention not materialised: measured with
# saved_tensors_hooks on ViT-B and -L (223 and 267 MB a clip), the decoder counted in. For an estimate only.
_ACTIVATION_BYTES = 44


def step_flops(config: MAEConfig | ClassifierConfig) -> float:
    """Return the FLOPs of a forward and backward pass for one clip: 2 per multiply-add, backward twice forward.

    The patch embedding needs no gradient of its input. Elementwise work is not counted, as usual for MFU.
    """
    if isinstance(config, ClassifierConfig):
        tokens, width = config.num_tokens, config.embed_dim
        embed = 2 * tokens * config.t_patch_size * config.patch_size**2 * config.in_chans * width
        times = config.num_frames if config.backbone else 1  # an image ViT attends within each frame alone
        seen = tokens // times + int(config.cls_embed)
        encoder = config.depth * times * _block_flops(seen, width, config.mlp_ratio)
        return 2.0 * embed + 3.0 * (encoder + 2 * width * config.num_classes)
    kept, predicted, cls = config.num_kept, config.num_predicted, int(config.cls_embed)
    pixels_in = config.t_patch_size * config.patch_size**2 * config.in_chans
    pixels_out = config.pred_u * config.patch_size**2 * config.in_chans
    width, decoder_width = config.embed_dim, config.decoder_embed_dim
    embed = 2 * kept * pixels_in * width
    encoder = config.depth * _block_flops(kept + cls, width, config.mlp_ratio)
    seen = kept + predicted + cls
    decoder = max(config.decoder_depth - 1, 0) * _block_flops(seen, decoder_width, config.mlp_ratio)
    if config.decoder_depth:  # the last block goes on with the predicted tokens only
        decoder += _block_flops(seen, decoder_width, config.mlp_ratio, num_outputs=predicted)
    ends = 2 * kept * width * decoder_width + 2 * predicted * decoder_width * pixels_out
    if config.decoder_cls == "encoder":
        ends += 2 * cls * width * decoder_width
    return 2.0 * embed + 3.0 * (encoder + decoder + ends)


def _block_flops(tokens: int, width: int, mlp_ratio: float, *, num_outputs: int | None = None) -> float:
    """Return a block's forward FLOPs: queries, keys and values; scores and weighting; projection and MLP."""
    out = tokens if num_outputs is None else num_outputs
    return 2 * tokens * width * 3 * width + 4 * out * tokens * width + 2 * out * width**2 * (1 + 2 * mlp_ratio)


def peak_flops(device: torch.device) -> float | None:
    """Return the device's dense bf16 FLOP/s; None for a CPU, or a GPU that is not known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK_FLOPS.items() if key in name), None)


def memory_estimate(
    config: MAEConfig | ClassifierConfig,
    *,
    parameters: int,
    clips: int,
    bf16: bool,
    zero_stage: int,
    world: int,
    checkpointing: bool,
) -> tuple[float, float]:
    """Estimate the bytes of weights, gradients and optimizer per rank, and of activations (rough, 30 %).

    Args:
        config: the model's.
        parameters: how many it has.
        clips: clips of one forward pass on this process.
        bf16: weights and gradients in bf16, with fp32 masters.
        zero_stage: 1 and 2 share masters and moments out over the processes.
        world: processes.
        checkpointing: activations inside blocks are recomputed.
    """
    shared_by = world if zero_stage else 1
    bytes_each = 2 if bf16 else 4
    states = parameters * (2 * bytes_each + 12 / shared_by)
    if isinstance(config, ClassifierConfig):
        elements = (config.num_tokens + 1) * config.embed_dim * config.depth
    else:
        elements = (config.num_kept + 1) * config.embed_dim * config.depth
        elements += (config.num_kept + config.num_predicted + 1) * config.decoder_embed_dim * config.decoder_depth
    kept = 2 if checkpointing else _ACTIVATION_BYTES
    return states, clips * elements * kept * bytes_each / 2


class Meter:
    """Running sums of one log interval; the device is read only when a row is requested."""

    def __init__(self, world: World, *, clips_per_step: int, flops_per_clip: float):
        """Start an interval.

        Args:
            world: all processes, over which losses are averaged.
            clips_per_step: clips of one optimizer step over all processes.
            flops_per_clip: of the forward and backward pass.
        """
        self._world, self._clips, self._flops = world, clips_per_step, flops_per_clip
        self._losses: list[Tensor] = []  # of the interval's steps, on the device: none is waited for before `row`
        self._step: list[Tensor] = []  # of this step's micro-batches
        self._waited = 0.0
        self._steps = 0  # since `_since`
        self._since = time.perf_counter()
        self._peak = peak_flops(world.device)
        self._counts: dict[str, int] = {}  # of the parts of the run before this one

    def add(self, loss: Tensor) -> None:
        """Add one micro-batch's loss on this rank."""
        self._step.append(loss.detach())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Exclude the time of the block from the training's speed."""
        if self._world.device.type == "cuda":
            torch.cuda.synchronize()  # steps that are still on their way are
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def stepped(self) -> Tensor:
        """End an optimizer step; return its loss on this rank, on the device."""
        # float64: means of float32 losses come out alike wherever a run was cut.
        loss = torch.stack(self._step).double().mean()
        self._losses.append(loss)
        self._step = []
        self._steps += 1
        return loss

    def losses(self) -> list[float]:
        """Return the loss of each step of the interval: means over micro-batches and ranks; a collective."""
        return self._world.mean(torch.stack(self._losses)).tolist() if self._losses else []

    def row(self) -> tuple[dict[str, Any], list[float]]:
        """Return the interval's figures, and `losses`; start the next interval.

        `loss` is the mean over the steps whose loss was finite (nan without any), `clips_per_s` is over all processes.
        """
        losses = self.losses()
        finite = [loss for loss in losses if math.isfinite(loss)]
        seconds = time.perf_counter() - self._since
        clips_per_s = self._steps * self._clips / seconds
        size = self._world.ranks.size
        row = {
            "loss": math.fsum(finite) / len(finite) if finite else math.nan,
            "clips_per_s": clips_per_s,
            "data_wait": self._waited / seconds,
            "mfu": clips_per_s * self._flops / (size * self._peak) if self._peak else None,
        }
        self.restart([])
        return row, losses

    def restart(self, losses: Sequence[float]) -> None:
        """Continue an interval with these losses, 0-d float64 each; speed is measured from here."""
        self._losses = [torch.tensor(loss, dtype=torch.float64, device=self._world.device) for loss in losses]
        self._step, self._steps, self._waited, self._since = [], 0, 0.0, time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return the unfinished interval, so that a resumed run's rows are those of an uncut one."""
        return {"losses": self.losses()}

    def totals(self, counts: dict[str, int]) -> dict[str, int]:
        """Sum this rank's counts since the start over all ranks, and since the run's first start."""
        return {name: self._counts.get(name, 0) + self._world.total(count) for name, count in counts.items()}

    def load_state_dict(self, state: dict[str, Any], *, counts: dict[str, int]) -> None:
        """Continue an unfinished interval and the counts of `totals`."""
        self._counts = counts
        self.restart(state["losses"])
