"""The benchmarks share a dataset, a pair of models, clocks, and paired measurement with candidates taking turns.

They report ratios of CPU or wall time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mae3d.model.config import MAEConfig

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and their range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def alternate(
    candidates: Mapping[str, Callable[[], None]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    wait: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Run every candidate once per round, in turn forwards and backwards, after one round that is not counted.

    Args:
        candidates: name ─► a block of work; blocks of one call must be of one size to be compared.
        rounds: counted rounds.
        clock: `time.process_time` counts the CPU seconds of all threads, which a busy machine changes least.
        wait: returns when a block's work is over; None is `settle`.

    A block ends when the process is idle: what it makes threads do ahead belongs to it.

    Returns:
        Seconds of every block, a list of `rounds` for each name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        names = list(candidates)[:: 1 if round_number % 2 else -1]
        for name in names:
            start = clock()
            candidates[name]()
            (wait or settle)()
            if round_number:
                seconds[name].append(clock() - start)
    return seconds


def settle() -> None:
    """Wait until no thread of this process has worked for 20 ms."""
    quiet = 0
    while quiet < 2:
        before = time.process_time()
        time.sleep(0.01)
        quiet = quiet + 1 if time.process_time() - before < 0.001 else 0


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """Return how many times as long `slower` took, round by round."""
    pairs = [a / b for a, b in zip(slower, faster, strict=True)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


def build(out: Path, *options: object) -> None:
    """Run `python -m preprocess build` with these options."""
    command = [sys.executable, "-m", "preprocess", "build", "--out", out, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)


def resident_mb() -> float:
    """Return the memory of this process that is in RAM, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


SIZES = {name: f"mae_vit_{name}_patch16" for name in ("tiny", "small", "base", "large", "huge")}


SIZES["huge14"] = "mae_vit_huge_patch14"


def config_of(options: argparse.Namespace) -> "MAEConfig":
    """Return the published recipe at the requested size."""
    from mae3d.model.config import MAEConfig

    config = MAEConfig(preset=SIZES[options.size], num_frames=options.frames, img_size=options.img_size)
    return config if not options.heads else MAEConfig(**vars(config) | {"decoder_num_heads": options.heads})


class Pair:
    """Our model and the plain one with the same weights, and the same clips as each takes them."""

    def __init__(self, config: "MAEConfig", *, batch: int, device: str, precision: str):
        import torch

        from benchmarks.plain_mae import PlainMAE
        from mae3d.model.mae import MAE
        from mae3d.model.patches import normalise
        from mae3d.weights.convert import to_foreign

        torch.manual_seed(0)
        self.lean, self.plain = MAE(config), PlainMAE(config)
        self.plain.load_state_dict(to_foreign(self.lean.state_dict(), config, format="mae_st"))
        for model in (self.lean, self.plain):
            model.to(device, torch.bfloat16 if precision == "cast" else torch.float32)
        shape = (batch, config.num_frames, config.height, config.width, config.in_chans)
        self.clip = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        # Upstream's loader hands out normalised floats: that work is not counted against it.
        pixels = normalise(self.clip, mean=config.mean, std=config.std)
        self.normalised = pixels.permute(0, 4, 1, 2, 3).contiguous()
        self.noise = torch.rand(batch, config.num_tokens, device=device)
        self._cast: Callable[[], AbstractContextManager[Any]] = (
            (lambda: torch.autocast(device, torch.bfloat16)) if precision == "bf16" else nullcontext
        )

    def lean_loss(self) -> "torch.Tensor":
        """Return our model's loss."""
        with self._cast():
            loss: torch.Tensor = self.lean(self.clip, self.noise).loss
        return loss

    def plain_loss(self) -> "torch.Tensor":
        """Return the plain model's loss."""
        with self._cast():
            loss: torch.Tensor = self.plain(self.normalised, self.noise)
        return loss

    def lean_step(self) -> None:
        """Run our forward and backward pass."""
        self.lean.zero_grad(set_to_none=True)
        self.lean_loss().backward()

    def plain_step(self) -> None:
        """Run the plain model's forward and backward pass."""
        self.plain.zero_grad(set_to_none=True)
        self.plain_loss().backward()


def saved_tensors(loss_of: "Callable[[], torch.Tensor]", model: "torch.nn.Module") -> "list[torch.Tensor]":
    """Return the tensors that autograd keeps of a forward pass for the backward pass, parameters left out."""
    from torch.autograd.graph import saved_tensors_hooks

    kept: list[torch.Tensor] = []

    def pack(tensor: "torch.Tensor") -> "torch.Tensor":
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in parameters]


def saved_bytes(loss_of: "Callable[[], torch.Tensor]", model: "torch.nn.Module") -> int:
    """Return the bytes behind all that is kept of a forward pass; views of one tensor count once."""
    kept = saved_tensors(loss_of, model)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


def clock_of(device: str) -> tuple[Callable[[], float], Callable[[], None]]:
    """Return a clock in seconds and its wait: CPU seconds, or the GPU's time from CUDA events."""
    if device == "cpu":
        return time.process_time, settle
    import torch

    first = torch.cuda.Event(enable_timing=True)
    first.record()

    def clock() -> float:
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return first.elapsed_time(now) / 1e3

    return clock, lambda: None  # the next event comes after all that was launched
