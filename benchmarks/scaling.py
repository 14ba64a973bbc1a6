"""The network traffic of a step, and the clips per GPU from which it hides behind the backward pass.

    python benchmarks/scaling.py

Measured: two processes take steps of a small model with the real engine over gloo, for each ZeRO stage and precision;
every collective of the third step is counted, and which of them begin while gradients are still being made. A ring
moves 2 (N - 1)/N of an all-reduced tensor's bytes through each process, (N - 1)/N of a scattered or gathered one's; at
N = 2 that is compared with the formula, bytes a parameter.

Computed, not measured: the same formula for the published sizes at 8, 64 and 512 GPUs, with the bandwidths, the peak
and the share of it (MFU) that are given; the backward pass is two thirds of a step's FLOPs. Latency is left out.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    import torch

    from mae3d.distributed import World

NVLINK, NETWORK = 450e9, 50e9  # bytes a second through each GPU: within a node of 8, and across nodes
PEAK, MFU = 989e12, 0.45  # an H100's or H200's bf16 FLOP/s, and the share that a step reaches
MODELS = ("mae_vit_base_patch16", "mae_vit_large_patch16", "mae_vit_huge_patch16", "mae_vit_huge_patch14")
PRECISIONS = {0: ("fp32",)} | dict.fromkeys((1, 2, 3), ("bf16", "autocast", "fp32"))
DEFAULTS = {"reduce_bucket_size": 500_000_000, "stage3_prefetch_bucket_size": 50_000_000}  # DeepSpeed's


@dataclass(frozen=True)
class Collective:
    """A collective call: the bytes of the entire tensor, and its time."""

    kind: str
    size: int
    phase: str  # forward, backward (gradients are still being made), drain (they are all there), step

    def wire(self, world: int) -> float:
        """Return the bytes that a ring moves through each process."""
        share = (world - 1) / world
        return self.size * share * (2 if self.kind == "all_reduce" else 1)


@dataclass(frozen=True)
class Traffic:
    """A step's bytes through each process, by a ring, over the model's parameters, in the limit of many processes."""

    gradients: float
    weights: float

    @property
    def total(self) -> float:
        """Return the sum of both."""
        return self.gradients + self.weights


def formula(stage: int, precision: str) -> Traffic:
    """Return bytes per parameter, for a large world: (N - 1)/N is left to the caller."""
    size = {"bf16": 2, "autocast": 4, "fp32": 4}[precision]
    gradient = 2 if precision == "autocast" else size  # products' gradients travel in bf16
    if stage == 3:
        # Scattered to their owners. Weights are gathered for the forward pass and stay for the backward one: DeepSpeed
        # lets go of them above a billion only (stage3_max_live_parameters).
        return Traffic(gradient, size)
    # All-reduced, at stages 1 and 2 as well: DeepSpeed's use_multi_rank_bucket_allreduce. Stepped weights are gathered.
    return Traffic(2 * gradient, size if stage else 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables; return 1 if a stage did not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stages", type=int, nargs="*", default=[0, 1, 2, 3], help="to measure; none for the second table"
    )
    parser.add_argument("--mfu", type=float, default=MFU)
    parser.add_argument("--network", type=float, default=NETWORK / 1e9, help="GB/s through each GPU across nodes")
    parser.add_argument("--nvlink", type=float, default=NVLINK / 1e9, help="GB/s through each GPU within a node")
    options = parser.parse_args(argv)
    failed = 0
    if options.stages:
        print("measured: 2 processes, gloo, bytes a step and process / parameters of a small model\n")
        print(
            "| stage, precision | gradients | weights | formula | calls | gradients sent while others are being made |"
        )
        print("|---|---|---|---|---|---|")
    for stage in options.stages:
        for precision in PRECISIONS[stage]:
            failed |= _print_measured(stage, precision)
    print(
        f"\ncomputed: batch of clips a GPU from which it hides, {options.mfu:.0%} of {PEAK / 1e12:.0f} TFLOP/s, "
        f"{options.nvlink:.0f} GB/s in a node, {options.network:.0f} GB/s across\n"
    )
    print_computed(mfu=options.mfu, bandwidths=(options.nvlink * 1e9, options.network * 1e9))
    return failed


def _print_measured(stage: int, precision: str) -> int:
    from tests.support.ranks import run_ranks

    try:
        (parameters, calls), *_ = run_ranks(count_step, stage, precision, world=2)
    except AssertionError as error:  # what a rank raised
        print(f"| {stage}, {precision} | does not run: {str(error).strip().splitlines()[-1]} | | | | |", flush=True)
        return 1
    gradients = sum(c.wire(2) for c in calls if c.phase in ("backward", "drain") and is_reduction(c))
    early = sum(c.wire(2) for c in calls if c.phase == "backward" and is_reduction(c))
    weights = sum(c.wire(2) for c in calls if not is_reduction(c))
    expected = formula(stage, precision)
    kinds = {kind: sum(c.kind == kind for c in calls) for kind in sorted({c.kind for c in calls})}
    print(
        f"| {stage}, {precision} | {gradients / parameters:.2f} | {weights / parameters:.2f} "
        f"| {expected.gradients / 2:.0f} + {expected.weights / 2:.0f} "
        f"| {', '.join(f'{count} {kind}' for kind, count in kinds.items())} "
        f"| {'not told' if stage == 3 else f'{early / max(gradients, 1):.0%}'} |",
        flush=True,
    )
    return 0


def is_reduction(call: Collective) -> bool:
    """Return whether gradients travel: all other large traffic moves weights."""
    return "reduce" in call.kind


def count_step(world: "World", stage: Any, precision: Any, settings: dict[str, Any]) -> tuple[int, list[Collective]]:
    """Take three steps of a small model on this process; return its parameters, and the collectives of the third."""
    import torch

    calls: list[Collective] = []
    phase = ["build"]
    _watch(lambda kind, size: calls.append(Collective(kind, size, phase[0])))
    from mae3d.model.config import MAEConfig
    from mae3d.model.mae import MAE
    from mae3d.training.config import OptimConfig, TrainConfig
    from mae3d.training.engine import Engine
    from mae3d.training.optim import pretrain_groups

    torch.manual_seed(0)
    config = MAEConfig(preset="mae_vit_small_patch16", img_size=64, num_frames=4)
    model = MAE(config)
    parameters = sum(p.numel() for p in model.parameters())
    train = TrainConfig(precision=precision, zero_stage=stage, deepspeed={"zero_optimization": settings} if settings else {})
    groups = pretrain_groups(model, weight_decay=0.05)

    def drained(*_: Any) -> None:
        phase[0] = "drain"

    # The first layer's gradient is the last to be made, and begins here.
    model.encoder.patch_embed.register_full_backward_pre_hook(drained)
    engine = Engine(model, groups, train=train, optim=OptimConfig(), micro_batch=2, world=world)
    clips = torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8)
    noise = torch.rand(2, config.num_tokens)
    for _ in range(3):
        calls.clear()
        phase[0] = "forward"
        loss = engine(clips, noise).loss
        phase[0] = "backward"
        engine.backward(loss)
        phase[0] = "step"
        engine.step(1e-4)
    made = list(calls)
    engine.close()
    # Flags and norms are a few bytes each.
    return parameters, [call for call in made if call.size > 64]


def _watch(note: Callable[[str, int], None]) -> None:
    """Record every collective that is called from now on: its kind, and the bytes of the entire tensor."""
    import torch.distributed as dist

    whole: dict[str, Callable[..., Any]] = {
        "all_reduce": lambda tensor: tensor,
        "reduce": lambda tensor: tensor,
        "broadcast": lambda tensor: tensor,
        "all_gather": lambda tensor_list: tensor_list,
        "all_gather_into_tensor": lambda output_tensor: output_tensor,
        "reduce_scatter": lambda output, input_list: input_list,
        "reduce_scatter_tensor": lambda output, input: input,
        "all_to_all_single": lambda output: output,
    }
    for kind, pick in whole.items():
        setattr(dist, kind, _noting(getattr(dist, kind), kind, pick, note))


def _noting(
    call: Callable[..., Any], kind: str, pick: Callable[..., Any], note: Callable[[str, int], None]
) -> Callable[..., Any]:
    names = pick.__code__.co_varnames

    def noted(*args: Any, **kwargs: Any) -> Any:
        given = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]
        picked = pick(*given)
        tensors = picked if isinstance(picked, list | tuple) else [picked]
        note(kind, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        return call(*args, **kwargs)

    return noted


def print_computed(*, mfu: float, bandwidths: tuple[float, float]) -> None:
    """Print per published size the clips per GPU from which the traffic hides behind the backward pass."""
    print(
        "| bf16 | M parameters | GPUs | stages 1, 2: gradients hide from | then the weights' gather adds | "
        "as much at 64 clips | stage 3: all hides from |"
    )
    print("|---|---|---|---|---|---|---|")
    for preset in MODELS:
        parameters, flops = size_of(preset)
        step = flops / (mfu * PEAK)  # seconds a clip
        for gpus, bandwidth in ((8, bandwidths[0]), (64, bandwidths[1]), (512, bandwidths[1])):
            seconds = parameters * (gpus - 1) / gpus / bandwidth  # of a byte a parameter
            shared, sharded = formula(2, "bf16"), formula(3, "bf16")
            hidden = shared.gradients * seconds / (step * 2 / 3)
            gather = shared.weights * seconds
            # The gather hides behind the forward pass, the gradients behind the backward one.
            all_hidden = max(
                sharded.gradients * seconds / (step * 2 / 3),
                sharded.weights * seconds / (step / 3),
            )
            print(
                f"| {preset.removeprefix('mae_vit_')} | {parameters / 1e6:.1f} | {gpus} | {hidden:.1f} clips "
                f"| {gather * 1e3:.1f} ms, {gather / (gather + max(hidden, 1) * step):.0%} of a step "
                f"| {gather / (gather + 64 * step):.1%} | {all_hidden:.1f} clips |"
            )


def size_of(preset: str) -> tuple[int, float]:
    """Return parameters, and FLOPs of a step for one clip."""
    import torch

    from mae3d.model.config import MAEConfig
    from mae3d.model.mae import MAE
    from mae3d.training.metrics import step_flops

    config = MAEConfig(preset=preset)
    with torch.device("meta"):
        return sum(p.numel() for p in MAE(config).parameters()), step_flops(config)


if __name__ == "__main__":
    sys.exit(main())
