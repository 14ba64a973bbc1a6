"""The training step on a GPU: mfu, batch, stall, optimizer, checkpoint, attention and plain of `benchmarks/gpu.py`.

Steps are those of launch/pretrain.py, by DeepSpeed's engine (step_engine.py). Milliseconds are CUDA events' on a GPU
and CPU seconds of the process on a CPU, where sizes are tiny and only try the program.
"""

import argparse
import atexit
import shutil
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from benchmarks.common import Pair, alternate, clock_of, config_of, ratio
from benchmarks.gpu_cases import Case, Skipped, Trial
from mae3d.io.console import one_line

if TYPE_CHECKING:
    from mae3d.distributed import World

SIZES = ("large", "base", "huge14", "small", "huge")  # the most telling first
BATCH = 64  # clips of a step whose MFU is measured
ADAM: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "lr": 1e-4, "weight_decay": 0.05}
BYTES_A_PARAMETER = 28  # fp32 weight, gradient and two moments are read, three of them written


def settings(trial: Trial, size: str, **others: Any) -> argparse.Namespace:
    """Return what step_engine.py takes: the published recipe on a GPU, a tiny one on the CPU."""
    common = {"device": trial.device, "heads": None, "compile": False, "rounds": 4, "batch": None, "views": 1}
    sizes = {"size": size, "frames": 16, "img_size": 224, "steps": 20}
    if not trial.on_gpu:
        sizes = {"size": "tiny", "frames": 4, "img_size": 64, "steps": 1}
    return argparse.Namespace(**{**common, **sizes, **others})


def sizes_of(trial: Trial) -> tuple[str, ...]:
    """Return the sizes that are measured."""
    return SIZES if trial.on_gpu else ("tiny",)


@cache
def world_of(device: str) -> "World":
    """Return the group of this process alone, which stays until its end: DeepSpeed keeps the first that it sees."""
    import torch

    from mae3d.distributed import start_world

    torch._dynamo.config.automatic_dynamic_shapes = False  # each batch size is compiled for itself
    world = start_world(device)
    atexit.register(world.close)
    if device == "cuda":
        from deepspeed.ops import adam

        try:
            adam.FusedAdam([torch.nn.Parameter(torch.zeros(8, device=device))])
        except Exception as error:  # each engine would try the build again, for a minute
            print(f"FusedAdam cannot be built, torch's AdamW takes its place: {error}", flush=True)
            adam.FusedAdam = None
    return world


def mfu(trial: Trial) -> list[Case]:
    """Measure steps of each size: as they are, compiled, and with activation checkpointing."""

    def matmul() -> dict[str, Any]:
        import torch

        from benchmarks.step_engine import matmul_speed

        if not trial.on_gpu:
            raise Skipped("needs a GPU")
        return {"TFLOP/s": f"{matmul_speed(torch.device('cuda')) / 1e12:.0f}"}

    def measure(size: str, *, compiled: bool, checkpointing: bool) -> dict[str, Any]:
        import torch

        from benchmarks.step_engine import count_waits, speed_of, stepping, synthetic

        options = settings(trial, size)
        config, samples = config_of(options), BATCH if trial.on_gpu else 1
        world = world_of(trial.device)
        torch._dynamo.reset()  # it compiles one code for eight models at most
        with stepping(options, world, compiled=compiled, checkpointing=checkpointing) as step:
            figures = speed_of(step, config, samples, world, steps=options.steps)
            if not compiled:
                waits = count_waits(step, synthetic(config, samples, device=world.device), on_gpu=trial.on_gpu)
                figures["host waits"] = sum(waits.values())
                print(f"{size}: what makes the host wait: {dict(waits)}", flush=True)
        return figures

    kinds = {"": (False, False), ", checkpointing": (False, True), ", compiled": (True, False)}
    kinds[", compiled, checkpointing"] = (True, True)
    cases = [Case("matrix product 8192, bf16", matmul)]
    for note, (compiled, checkpointing) in kinds.items() if trial.on_gpu else list(kinds.items())[:2]:
        for size in sizes_of(trial):
            cases.append(Case(size + note, partial(measure, size, compiled=compiled, checkpointing=checkpointing)))
    return cases


def batch(trial: Trial) -> list[Case]:
    """Search the largest batch of each size, without activation checkpointing."""

    def search(size: str) -> dict[str, Any]:
        from benchmarks.step_engine import largest_batch

        return {"clips": largest_batch(settings(trial, size), world_of(trial.device))}

    return [Case(size, partial(search, size)) for size in sizes_of(trial)]


def stall(trial: Trial) -> list[Case]:
    """Compare steps on the Loader's clips with steps on clips that lie on the device."""

    def measure(size: str, views: int) -> dict[str, Any]:
        from benchmarks.step_engine import stall_of

        rounds = 3 if trial.on_gpu else 1
        return stall_of(settings(trial, size, views=views, rounds=rounds), world_of(trial.device), trial.shards)

    pairs = [(size, views) for size in ("base", "large") for views in (4, 1)] if trial.on_gpu else [("tiny", 2)]
    return [Case(f"{size}, {views} views", partial(measure, size, views)) for size, views in pairs]


def optimizer(trial: Trial) -> list[Case]:
    """Time AdamW over flat fp32 partitions, decayed and not, as ZeRO 1 has them on one GPU."""
    counts = {"base": 100e6, "large": 318e6, "huge": 646e6} if trial.on_gpu else {"tiny": 1e4}

    failures: list[str] = []  # of a build, which takes a minute and is not tried again

    def adamw(kind: str, groups: list[dict[str, Any]]) -> Any:
        import torch

        if kind != "FusedAdam":
            fused = kind == "torch fused"
            return torch.optim.AdamW(groups, **ADAM, fused=fused, foreach=not fused)
        if not trial.on_gpu:
            raise Skipped("needs a GPU")
        if failures:
            raise Skipped(f"it cannot be built: {failures[0]}")
        from deepspeed.ops.adam import FusedAdam

        try:
            return FusedAdam(groups, adam_w_mode=True, **ADAM)
        except Exception as error:
            failures.append(one_line(error))
            raise

    def built() -> dict[str, Any]:
        import torch

        start = time.perf_counter()
        adamw("FusedAdam", [{"params": [torch.nn.Parameter(torch.zeros(8, device=trial.device))]}])
        return {"seconds": time.perf_counter() - start}

    def measure(kind: str, elements: float) -> dict[str, Any]:
        import torch

        parts = [
            torch.nn.Parameter(torch.randn(int(n), device=trial.device)) for n in (0.998 * elements, 0.002 * elements)
        ]
        for part in parts:
            part.grad = torch.randn_like(part)
        optimizer = adamw(kind, [{"params": [part]} for part in parts])
        milliseconds = milliseconds_of(optimizer.step, trial, repeats=10)
        return {"ms": milliseconds, "GB/s": BYTES_A_PARAMETER * elements / milliseconds / 1e6}

    cases = [Case("build of FusedAdam", built)]
    for size, elements in counts.items():
        for kind in ("FusedAdam", "torch fused", "torch foreach"):
            cases.append(Case(f"{size}, {kind}", partial(measure, kind, elements)))
    return cases


def milliseconds_of(block: Callable[[], Any], trial: Trial, *, repeats: int) -> float:
    """Return the median milliseconds of a block."""
    times = repeats if trial.on_gpu else 1

    def many() -> None:
        for _ in range(times):
            block()

    clock, wait = clock_of(trial.device)
    seconds = alternate({"block": many}, rounds=5 if trial.on_gpu else 1, clock=clock, wait=wait)["block"]
    return 1000 * statistics.median(seconds) / times


def attention(trial: Trial) -> list[Case]:
    """Time attention alone, forward and backward, at the decoder's shapes: 16 heads of 32, and 8 of 64."""
    clips, tokens, width = (16, 1568, 512) if trial.on_gpu else (1, 64, 64)

    def measure(heads: int, backend: str) -> dict[str, Any]:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        shape = (clips, heads, tokens, width // heads)
        inputs: Any = [torch.randn(shape, device=trial.device, dtype=torch.bfloat16, requires_grad=True) for _ in "qkv"]
        gradient = torch.randn(shape, device=trial.device, dtype=torch.bfloat16)

        def forward() -> Any:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return scaled_dot_product_attention(*inputs)

        def both() -> None:
            torch.autograd.grad(forward(), inputs, gradient)

        flops = 4 * clips * tokens**2 * width
        row: dict[str, Any] = {"shape": str(shape)}
        for name, block, times in (("forward", forward, 1), ("with backward", both, 3)):
            try:
                milliseconds = milliseconds_of(block, trial, repeats=20)
            except RuntimeError as error:  # not built, or not for this shape
                raise Skipped(str(error).splitlines()[0]) from error
            row |= {f"{name}, ms": milliseconds, f"{name}, TFLOP/s": times * flops / milliseconds / 1e9}
        return row

    return [
        Case(f"{heads} heads of {width // heads}, {backend}", partial(measure, heads, backend))
        for heads in ((16, 8) if trial.on_gpu else (2,))
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
    ]


def plain(trial: Trial) -> list[Case]:
    """Compare our forward and backward pass with the plain model's of the same weights, in turns."""

    def measure(size: str, precision: str) -> dict[str, Any]:
        pair = Pair(
            config_of(settings(trial, size)), batch=8 if trial.on_gpu else 1, device=trial.device, precision=precision
        )
        ours, theirs = pair.lean_loss().item(), pair.plain_loss().item()
        clock, wait = clock_of(trial.device)
        blocks = {"ours": pair.lean_step, "plain": pair.plain_step}
        seconds = alternate(blocks, rounds=7 if trial.on_gpu else 1, clock=clock, wait=wait)
        milliseconds = {f"{name}, ms": 1000 * statistics.median(seconds[name]) for name in blocks}
        gain = str(ratio(seconds["plain"], seconds["ours"]))
        return {"ours is": gain, **milliseconds, "losses apart": abs(ours - theirs) / theirs}

    pairs = [(size, precision) for precision in ("bf16", "fp32") for size in ("base", "large")]
    return [
        Case(f"{size}, {precision}", partial(measure, size, precision))
        for size, precision in (pairs if trial.on_gpu else [("tiny", "fp32")])
    ]


def checkpoint(trial: Trial) -> list[Case]:
    """Measure what a save costs the training: a block of steps with one at its beginning, against one without."""

    def measure(size: str) -> dict[str, Any]:
        from benchmarks.step_engine import settle_device, stepping, synthetic
        from mae3d.tracking.run_dir import Run
        from mae3d.training.saver import Saver

        options = settings(trial, size)
        config, clips = config_of(options), 16 if trial.on_gpu else 1
        folder = trial.out / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        row: dict[str, Any] = {}
        world = world_of(trial.device)
        with stepping(options, world, compiled=False) as step:
            made = synthetic(config, clips, device=world.device)
            step(made)
            with Saver(Run(folder), world, model_config=config, keep_last=1, keep_every=0) as saver:

                def block(number: int) -> tuple[float, float]:
                    settle_device(on_gpu=trial.on_gpu)
                    start, copied = time.perf_counter(), 0.0
                    if number:
                        saver.save(step.engine, {}, step=number)
                        copied = time.perf_counter() - start
                    for _ in range(options.steps):
                        step(made)
                    settle_device(on_gpu=trial.on_gpu)
                    return copied, time.perf_counter() - start

                _, alone = block(0)
                for number, name in ((1, "first"), (2, "second")):  # the first pins the memory
                    copied, seconds = block(number)
                    start = time.perf_counter()
                    saver.wait()
                    row |= {
                        f"{name} save returns after, s": copied,
                        f"{name} save's stall, s": seconds - alone,
                        f"{name} file written after, s": seconds + time.perf_counter() - start,
                    }
                row |= {"step, ms": 1000 * alone / options.steps}
        size_gb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
        shutil.rmtree(folder)
        return {"GB": size_gb, **row}

    return [Case(size, partial(measure, size)) for size in (("huge",) if trial.on_gpu else ("tiny",))]
