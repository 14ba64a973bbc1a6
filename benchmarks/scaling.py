"""The network traffic of a step: what it is, when it begins, and what it costs 8, 64 and 512 GPUs.

    python benchmarks/scaling.py
    unshare -n sh -c "ip link set lo up; python benchmarks/scaling.py --wire 2 4 8"      # root

Measured: two processes take steps of a small model with the real engine over gloo, for each ZeRO stage and precision,
with the settings that the product computes, with DeepSpeed's defaults, and reducing to the owners instead of
all-reducing; every collective of the third step is counted, and which of them begin while gradients are still being
made. A ring moves 2 (N - 1)/N of an all-reduced tensor's bytes through each process, (N - 1)/N of a reduced, scattered
or gathered one's; at N = 2 that is compared with the formula, bytes a parameter. `--wire` has the bytes that gloo
really sends, from the counters of a loopback that nothing else may use.

Computed, not measured: time without network over time with it, for the published sizes, with the bandwidths, the peak
and the share of it (MFU) that are given; the backward pass is two thirds of a step's FLOPs. A collective takes its
bytes over the bandwidth plus `latency`. A bucket travels while the next one is made, whose successor waits for it, as
in DeepSpeed 0.19.8 (its issue 8364).
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mae3d.training.deepspeed_config import BANDWIDTH, bucket_settings, latency

if TYPE_CHECKING:
    from mae3d.distributed import World
    from mae3d.model.config import MAEConfig

NVLINK = 450e9  # bytes a second through each GPU within a node of 8; BANDWIDTH is that across nodes
PEAK, MFU = 989e12, 0.45  # an H100's or H200's bf16 FLOP/s, and the share that a step reaches
MODELS = ("mae_vit_base_patch16", "mae_vit_large_patch16", "mae_vit_huge_patch16", "mae_vit_huge_patch14")
PRECISIONS = {0: ("fp32",)} | dict.fromkeys((1, 2, 3), ("bf16", "autocast", "fp32"))
DEFAULTS = {  # DeepSpeed's, in elements
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
}
REDUCED = {"use_multi_rank_bucket_allreduce": False}


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


def formula(stage: int, precision: str, *, reduced: bool = False) -> Traffic:
    """Return bytes per parameter, for a large world: (N - 1)/N is left to the caller."""
    size = {"bf16": 2, "autocast": 4, "fp32": 4}[precision]
    gradient = 2 if precision == "autocast" else size  # products' gradients travel in bf16
    if stage == 3:
        # Scattered to their owners. Weights are gathered for the forward pass (products' in bf16) and stay for the
        # backward one: DeepSpeed lets go of them above a billion only (stage3_max_live_parameters).
        return Traffic(gradient, gradient)
    # All-reduced, at stages 1 and 2 as well, but for `REDUCED`. Stepped weights are gathered.
    return Traffic(gradient if reduced else 2 * gradient, size if stage else 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if a stage did not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stages", type=int, nargs="*", default=[0, 1, 2, 3], help="to measure; none for the computed table alone"
    )
    parser.add_argument("--wire", type=int, nargs="*", default=[], metavar="RANKS", help="only count gloo's bytes")
    parser.add_argument("--clips", type=int, default=64, help="on each GPU")
    parser.add_argument("--mfu", type=float, default=MFU)
    parser.add_argument("--network", type=float, default=BANDWIDTH / 1e9, help="GB/s through each GPU across nodes")
    parser.add_argument("--nvlink", type=float, default=NVLINK / 1e9, help="GB/s through each GPU within a node")
    options = parser.parse_args(argv)
    if options.wire:
        print_wire(options.wire)
        return 0
    failed = 0
    if options.stages:
        print("measured: 2 processes, gloo, bytes a step and process / parameters of a small model\n")
        print("| stage, precision | settings | gradients | weights | formula | calls | sent while others are made |")
        print("|---|---|---|---|---|---|---|")
    for stage in options.stages:
        for precision in PRECISIONS[stage]:
            failed |= _print_measured(stage, precision)
    print(
        f"\ncomputed: efficiency at {options.clips} clips a GPU, bf16, {options.mfu:.0%} of {PEAK / 1e12:.0f} TFLOP/s, "
        f"{options.nvlink:.0f} GB/s in a node, {options.network:.0f} GB/s across\n"
    )
    print_computed(options.clips, mfu=options.mfu, bandwidths=(options.nvlink * 1e9, options.network * 1e9))
    return failed


def _print_measured(stage: int, precision: str) -> int:
    from mae3d.model.config import MAEConfig
    from tests.support.ranks import run_ranks

    config = MAEConfig(preset="mae_vit_small_patch16", img_size=64, num_frames=4)
    defaults = DEFAULTS | {"overlap_comm": stage == 3}
    cases: dict[str, tuple[int, dict[str, Any]]] = {"ours": (stage, {})}
    if stage:
        cases["DeepSpeed's"] = (stage, defaults)
    if stage == 2:
        cases["ours, reduced"] = (stage, REDUCED)
    try:
        (parameters, counted), *_ = run_ranks(count_steps, precision, cases, config, world=2)
    except AssertionError as error:  # what a rank raised
        print(f"| {stage}, {precision} | does not run: {str(error).strip().splitlines()[-1]} | | | | | |", flush=True)
        return 1
    for name, calls in counted.items():
        gradients = sum(c.wire(2) for c in calls if is_reduction(c))
        early = sum(c.wire(2) for c in calls if is_reduction(c) and c.phase == "backward")
        weights = sum(c.wire(2) for c in calls if not is_reduction(c))
        expected = formula(stage, precision, reduced=name.endswith("reduced"))
        kinds = {kind: sum(c.kind == kind for c in calls) for kind in sorted({c.kind for c in calls})}
        print(
            f"| {stage}, {precision} | {name} | {gradients / parameters:.2f} | {weights / parameters:.2f} "
            f"| {expected.gradients / 2:g} + {expected.weights / 2:g} "
            f"| {', '.join(f'{count} {kind}' for kind, count in kinds.items())} | {early / max(gradients, 1):.0%} |",
            flush=True,
        )
    return 0


def is_reduction(call: Collective) -> bool:
    """Return whether gradients travel: all other large traffic moves weights."""
    return "reduce" in call.kind


def count_steps(
    world: "World", precision: Any, cases: "dict[str, tuple[Any, dict[str, Any]]]", config: "MAEConfig"
) -> tuple[int, dict[str, list[Collective]]]:
    """Take three steps of a model at each case's stage and settings; return its parameters, and the third's calls."""
    import torch

    from mae3d.model.mae import MAE
    from mae3d.training.config import OptimConfig, TrainConfig
    from mae3d.training.engine import Engine
    from mae3d.training.optim import pretrain_groups

    calls: list[Collective] = []
    phase = ["build"]
    _watch(lambda kind, size: calls.append(Collective(kind, size, phase[0])))
    clips = torch.randint(0, 256, (2, config.num_frames, config.height, config.width, 3), dtype=torch.uint8)
    noise = torch.rand(2, config.num_tokens)

    def drained(*_: Any) -> None:
        phase[0] = "drain"

    counted = {}
    for name, (stage, settings) in cases.items():
        model = MAE(config)
        parameters = sum(p.numel() for p in model.parameters())
        # The first layer's gradient is the last to be made, and begins here.
        model.encoder.patch_embed.register_full_backward_pre_hook(drained)
        given = {"zero_optimization": settings} if settings else {}
        train = TrainConfig(precision=precision, zero_stage=stage, deepspeed=given)
        groups = pretrain_groups(model, weight_decay=0.05)
        engine = Engine(model, groups, train=train, optim=OptimConfig(), micro_batch=2, world=world)
        for _ in range(3):
            calls.clear()
            phase[0] = "forward"
            loss = engine(clips, noise).loss
            phase[0] = "backward"
            engine.backward(loss)
            phase[0] = "step"
            engine.step(1e-4)
        counted[name] = [call for call in calls if call.size > 64]  # flags and norms are a few bytes each
        engine.close()
    return parameters, counted


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


def print_wire(worlds: Sequence[int]) -> None:
    """Print the bytes that gloo sends per rank, over the tensor's."""
    from tests.support.ranks import run_ranks

    print("| ranks | " + " | ".join(WIRED) + " |\n|---" + "|---" * len(WIRED) + "|")
    for world in worlds:
        shares = run_ranks(count_bytes, world=world)[0]
        print(f"| {world} | " + " | ".join(f"{shares[kind]:.2f}" for kind in WIRED) + " |", flush=True)


WIRED = ("all_reduce", "reduce", "reduce_scatter", "all_gather")


def count_bytes(world: "World") -> dict[str, float]:
    """Return for each collective the bytes that all ranks send, over the tensor's and their number."""
    import torch
    import torch.distributed as dist

    whole, size = torch.ones(4_000_000), world.ranks.size
    part = torch.ones(whole.numel() // size)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: dist.all_reduce(whole),
        lambda: dist.reduce(whole, 0),
        lambda: dist.reduce_scatter_tensor(part, whole),
        lambda: dist.all_gather_into_tensor(whole, part),
    )
    shares = {}
    for kind, call in zip(WIRED, calls, strict=True):
        world.barrier()
        before = _sent()
        call()
        world.barrier()
        shares[kind] = (_sent() - before) / (whole.nbytes * size)
    return shares


def _sent() -> int:
    """Return the bytes that have been sent over the loopback of this network namespace."""
    rows = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    return next(int(row.split()[9]) for row in rows if row.strip().startswith("lo:"))


def print_computed(clips: int, *, mfu: float, bandwidths: tuple[float, float]) -> None:
    """Print per published size the efficiency before and after, and the clips per GPU from which traffic hides."""
    print(
        "| | M parameters | GPUs | buckets | stages 1, 2: DeepSpeed's | ours | ours, reduced | gradients hide from "
        "| stage 3: DeepSpeed's | ours | all hides from |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for preset in MODELS:
        sizes, flops = size_of(preset)
        parameters, clip = sum(sizes), flops / (mfu * PEAK)
        for gpus, bandwidth in ((8, bandwidths[0]), (64, bandwidths[1]), (512, bandwidths[1])):
            step = Step(sizes, clips * clip, gpus, bandwidth)
            unit = 2 * parameters * (gpus - 1) / gpus / bandwidth  # seconds of one pass of bf16
            shown = [
                step.partitioned(None),
                step.partitioned(step.ours(1)),
                step.partitioned(step.ours(2), reduced=True),
            ]
            sharded = [step.sharded(DEFAULTS), step.sharded(step.ours(3))]
            print(
                f"| {preset.removeprefix('mae_vit_')} | {parameters / 1e6:.1f} | {gpus} "
                f"| {-(-parameters // step.ours(1)['reduce_bucket_size'])} | "
                + " | ".join(f"{step.seconds / seconds:.1%}" for seconds in shown)
                + f" | {2 * unit / (clip * 2 / 3):.1f} clips | "
                + " | ".join(f"{step.seconds / seconds:.1%}" for seconds in sharded)
                # The gather hides behind the forward pass, the gradients behind the backward one.
                + f" | {max(unit / (clip * 2 / 3), unit / (clip / 3)):.1f} clips |"
            )


@dataclass(frozen=True)
class Step:
    """A step of bf16 that takes so many seconds without a network, on GPUs with a bandwidth each."""

    sizes: Sequence[int]
    seconds: float
    gpus: int
    bandwidth: float

    def ours(self, stage: int) -> dict[str, Any]:
        """Return the product's settings."""
        return bucket_settings(self.sizes, stage=stage, precision="bf16", ranks=self.gpus)

    def travel(self, passes: float) -> float:
        """Return the seconds of all gradients or weights, by so many passes of a ring, without latency."""
        return passes * 2 * sum(self.sizes) * (self.gpus - 1) / self.gpus / self.bandwidth

    def pipelined(self, made: float, travelling: float, size: int) -> float:
        """Return the seconds until the last bucket of `size` elements has arrived that takes `made` in all to make."""
        count = -(-sum(self.sizes) // size)
        one, sent = made / count, travelling / count + latency(self.gpus)
        return one + (count - 1) * max(one, sent) + sent

    def partitioned(self, settings: Mapping[str, Any] | None, *, reduced: bool = False) -> float:
        """Return a step's seconds at stages 1 and 2, with None for DeepSpeed's defaults: nothing overlaps."""
        forward, backward, lag = self.seconds / 3, self.seconds * 2 / 3, latency(self.gpus)
        gather = self.travel(1) + 2 * lag  # of two groups of parameters, after the step
        if settings is None:
            count = -(-sum(self.sizes) // DEFAULTS["reduce_bucket_size"])
            return forward + backward + self.travel(2) + count * lag + gather
        if not reduced:
            return forward + self.pipelined(backward, self.travel(2), settings["reduce_bucket_size"]) + gather
        # A bucket's owners are reduced to one after the other, and DeepSpeed waits for the GPU before each: only the
        # last of them travels while gradients are made. There are more, because groups end within a bucket.
        count = -(-sum(self.sizes) // settings["reduce_bucket_size"])
        owners = 1 + -(-self.gpus // count)
        alone = self.travel(1) * (owners - 1) / owners + count * (owners - 1) * lag
        return (
            forward + alone + self.pipelined(backward, self.travel(1) / owners, settings["reduce_bucket_size"]) + gather
        )

    def sharded(self, settings: Mapping[str, Any]) -> float:
        """Return a step's seconds at stage 3."""
        forward, backward = self.seconds / 3, self.seconds * 2 / 3
        late = sum(size <= settings["stage3_param_persistence_threshold"] for size in self.sizes)
        return (
            self.pipelined(forward, self.travel(1), settings["stage3_prefetch_bucket_size"])
            + self.pipelined(backward, self.travel(1), settings["reduce_bucket_size"])
            + late * latency(self.gpus)  # gathered after the step, each by a call
        )


def size_of(preset: str) -> tuple[list[int], float]:
    """Return the sizes of all parameters, and FLOPs of a step for one clip."""
    import torch

    from mae3d.model.config import MAEConfig
    from mae3d.model.mae import MAE
    from mae3d.training.metrics import step_flops

    config = MAEConfig(preset=preset)
    with torch.device("meta"):
        return [p.numel() for p in MAE(config).parameters() if p.requires_grad], step_flops(config)


if __name__ == "__main__":
    from benchmarks import scaling  # the ranks, other processes, know functions by this name

    sys.exit(scaling.main())
