"""The complete training step, as launch/pretrain.py takes it: DeepSpeed's engine, masks, clips.

    python benchmarks/step.py mfu --size base --compile true
    python benchmarks/step.py input --size base --shards out/shards

`mfu` finds the largest batch (GPU), times steps on clips that lie on the device, splits off the optimizer's share and
counts what makes the host wait for the device. `input` takes turns between blocks of steps on the Loader's clips and on
clips that are there already: the share of time by which real ones are slower is the stall.
"""

import argparse
import collections
import gc
import itertools
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import ROOT, alternate, clock_of, config_of, ratio
from benchmarks.gpu_loader import make_shards
from launch.pretrain import masked_loss
from launch.training.config import PretrainConfig
from mae3d.distributed import World, start_world
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.training.config import TrainConfig
from mae3d.training.engine import Engine
from mae3d.training.metrics import peak_flops, step_flops
from mae3d.training.optim import pretrain_groups
from pipelines.config import DataConfig
from pipelines.stream import Batch

WARM_UP = 5
_WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "_unique2",
)  # read a tensor's values


def main(options: argparse.Namespace) -> int:
    """Run `mfu` or `input`."""
    torch._dynamo.config.automatic_dynamic_shapes = False  # each batch size is compiled for itself
    world = start_world(options.device)
    try:
        return (mfu if options.what == "mfu" else input_stall)(options, world)
    finally:
        world.close()


@dataclass
class Step:
    """An engine that takes steps on batches."""

    engine: Engine
    loss_of: Callable[..., torch.Tensor]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss."""
        return self.loss_of(self.engine, batch, step=0, micro=0)

    def __call__(self, batch: Batch) -> None:
        """Run forward, backward and the optimizer."""
        self.engine.backward(self.forward(batch))
        self.engine.step(1e-5)


@contextmanager
def stepping(
    options: argparse.Namespace, world: World, *, views: int = 1, compiled: bool, checkpointing: bool = False
) -> Iterator[Step]:
    """Yield a fresh model and engine: bf16 and ZeRO 1 on a GPU, fp32 on the CPU."""
    torch.manual_seed(0)
    config, on_gpu = config_of(options), world.device.type == "cuda"
    train = TrainConfig(precision="bf16" if on_gpu else "fp32", zero_stage=1, compile=compiled)
    settings = PretrainConfig(model=config, train=train, data=DataConfig(repeat_aug=views))
    with world.device:  # where a large one is drawn sooner
        model = MAE(config)
    model.set_grad_checkpointing(checkpointing)
    groups = pretrain_groups(model, weight_decay=0.05)
    engine = Engine(model, groups, train=train, optim=settings.optim, micro_batch=1, world=world)
    del model, groups
    try:
        yield Step(engine, masked_loss(settings))
    finally:
        engine.close()
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def synthetic(config: MAEConfig, samples: int, *, views: int = 1, device: torch.device) -> Batch:
    """Return a batch of noise that lies on the device."""
    shape = (samples, views, config.num_frames, config.height, config.width, config.in_chans)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    numbers = torch.arange(samples)
    by_view = numbers[:, None].expand(samples, views)
    return Batch(clips, by_view, numbers, 0, torch.zeros_like(by_view, dtype=torch.int8), by_view)


def mfu(options: argparse.Namespace, world: World) -> int:
    """Measure at the largest batch and smaller ones: time, MFU, the optimizer's share; then the host's waits."""
    config, on_gpu = config_of(options), world.device.type == "cuda"
    limit = options.batch or (largest_batch(options, world) if on_gpu else 2)
    print(f"largest batch: {limit}" if not options.batch else f"batch: {limit}", flush=True)
    batches = sorted({limit} if options.batch else {min(16, limit), min(64, limit), limit // 8 * 8 or limit})
    if on_gpu:
        print(f"a bf16 matrix product of 8192 x 8192 does {matmul_speed(world.device) / 1e12:.0f} TFLOP/s")
    with stepping(options, world, compiled=options.compile) as step:
        for samples in batches:
            figures = speed_of(step, config, samples, world, steps=options.steps)
            print(
                f"{options.size} x {samples}, decoder heads {config.decoder_num_heads}, compile {options.compile}: "
                + ", ".join(f"{name} {value}" for name, value in figures.items()),
                flush=True,
            )
        waits = count_waits(step, synthetic(config, batches[0], device=world.device), on_gpu=on_gpu)
    print(f"host waits a step: {sum(waits.values())}" + ("" if on_gpu else " (values read, on the CPU)"))
    for line, times in waits.most_common(10):
        print(f"  {times:3} x {line}")
    return 0


def speed_of(step: Step, config: MAEConfig, samples: int, world: World, *, steps: int) -> dict[str, Any]:
    """Return a step's figures: time, clips per second, FLOP/s, MFU, the optimizer's share, the first step, memory."""
    batch, on_gpu = synthetic(config, samples, device=world.device), world.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step(batch)
    settle_device(on_gpu=on_gpu)
    first = time.perf_counter() - began
    both, whole = time_steps(step, batch, steps=steps, device=world.device.type)
    flops, peak = step_flops(config) * samples / whole, peak_flops(world.device)
    figures = {"ms": f"{whole * 1e3:.1f}", "clips/s": f"{samples / whole:.1f}", "TFLOP/s": f"{flops / 1e12:.2f}"}
    figures |= {"MFU": "-" if peak is None else f"{flops / peak:.1%}", "optimizer": f"{1 - both / whole:.1%}"}
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if on_gpu else "-"
    return {"batch": samples} | figures | {"first step, s": f"{first:.1f}", "GiB": memory}


def largest_batch(options: argparse.Namespace, world: World) -> int:
    """Return the most clips that a step has memory for, to an eighth."""
    config = config_of(options)

    def fits(step: Step, samples: int) -> bool:
        try:
            for _ in range(2):
                step(synthetic(config, samples, device=world.device))
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            return False
        return True

    low = 1
    with stepping(options, world, compiled=False) as step:
        while fits(step, 2 * low):
            low *= 2
    for part in (0.5, 0.25, 0.125) if low >= 8 else ():
        with stepping(options, world, compiled=False) as step:  # a step that failed may leave its engine undone
            low += int(low * part) if fits(step, low + int(low * part)) else 0
    return low


def time_steps(step: Step, batch: Batch, *, steps: int, device: str) -> tuple[float, float]:
    """Return median seconds of forward and backward, and of the entire step, each step on its own."""
    clock, _ = clock_of(device)
    both, whole = [], []
    if device == "cpu":
        for _ in range(min(steps, 5)):
            start = clock()
            step.engine.backward(step.forward(batch))
            middle = clock()
            step.engine.step(1e-5)
            both.append(middle - start)
            whole.append(clock() - start)
        return statistics.median(both), statistics.median(whole)
    for _ in range(WARM_UP):
        step(batch)
    events = []
    for _ in range(steps + 1):  # nothing waits in between: the host may run ahead as in training
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        marks[0].record()
        step.engine.backward(step.forward(batch))
        marks[1].record()
        step.engine.step(1e-5)
        marks[2].record()
        events.append(marks)
    torch.cuda.synchronize()
    both = [a.elapsed_time(b) / 1e3 for a, b, _ in events]
    # From start to start: a gap in which the device has nothing to do belongs to the step.
    whole = [a[0].elapsed_time(b[0]) / 1e3 for a, b in itertools.pairwise(events)]
    return statistics.median(both), statistics.median(whole)


def matmul_speed(device: torch.device, size: int = 8192) -> float:
    """Return FLOP/s of a square bf16 product, the device's practical limit."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    clock, _ = clock_of("cuda")
    for _ in range(3):
        a @ a
    start = clock()
    for _ in range(20):
        a @ a
    return 20 * 2 * size**3 / (clock() - start)


def count_waits(step: Step, batch: Batch, *, on_gpu: bool) -> "collections.Counter[str]":
    """Count what makes the host wait for the device in a step, by the line of code.

    On a GPU torch's own debug mode reports it; on the CPU reads of a tensor's value are counted, which would wait.
    """
    for _ in range(2):
        step(batch)
    if not on_gpu:
        with _Reads() as reads:
            step(batch)
        return reads.places
    torch.cuda.synchronize()
    waits: collections.Counter[str] = collections.Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchronizing" in str(warning.message):
            waits[f"{warning.filename}:{warning.lineno}"] += 1
    return waits


class _Reads(TorchDispatchMode):
    """A counter of reads of tensors' values by the line of code."""

    def __init__(self) -> None:
        super().__init__()
        self.places: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] in _WAITS:
            frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
            where = frames[-1]
            self.places[f"{where.filename.removeprefix(f'{ROOT}/')}:{where.lineno} {where.line}"] += 1
        return func(*args, **(kwargs or {}))


def input_stall(options: argparse.Namespace, world: World) -> int:
    """Print `stall_of` the dataset, or of one that is made."""
    with tempfile.TemporaryDirectory(prefix="mae3d-step-") as work:
        samples = options.batch or 64
        shards = options.shards or make_shards(Path(work), samples=2 * samples)
        figures = stall_of(options, world, shards)
    print(f"{options.size}: " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
    return 0


def stall_of(options: argparse.Namespace, world: World, shards: Path) -> dict[str, Any]:
    """Time blocks of steps on the Loader's clips and on clips in memory, in turns; wall time."""
    from launch.common.decode import choose_decode
    from pipelines.loader import Loader
    from pipelines.samples.corpus import corpus_of

    config, on_gpu, views = config_of(options), world.device.type == "cuda", options.views
    data = DataConfig(shards=str(shards), repeat_aug=views, windows="shared", sampling_rate=1)
    corpus = corpus_of(data)
    samples = options.batch or max(1, min(64 // views, len(corpus)))
    decode, _ = choose_decode("auto", stored=None, world=world, layouts=corpus.layouts)
    loader = Loader(
        corpus,
        replace(data, decode=decode),
        num_frames=config.num_frames,
        size=config.img_size,
        seed=0,
        global_batch=samples,
        device=world.device,
    )
    kept = synthetic(config, samples, views=views, device=world.device)
    try:
        with stepping(options, world, views=views, compiled=options.compile) as step:

            def block(source: Callable[[], Batch]) -> None:
                for _ in range(options.steps):
                    step(source())

            def wait() -> None:
                settle_device(on_gpu=on_gpu)

            blocks = {"real": lambda: block(lambda: next(loader)), "synthetic": lambda: block(lambda: kept)}
            seconds = alternate(blocks, rounds=options.rounds, clock=time.perf_counter, wait=wait)
    finally:
        loader.close()
    longer = ratio(seconds["real"], seconds["synthetic"])
    clips = samples * views * options.steps
    return {
        "samples": samples,
        "views": views,
        "decode": decode,
        "stall": f"{1 - 1 / longer.median:.1%} ({1 - 1 / longer.low:.1%} to {1 - 1 / longer.high:.1%})",
        "clips/s": f"{clips / statistics.median(seconds['real']):.1f}",
        "synthetic clips/s": f"{clips / statistics.median(seconds['synthetic']):.1f}",
    }


def settle_device(*, on_gpu: bool) -> None:
    """Wait until the device has finished its work."""
    if on_gpu:
        torch.cuda.synchronize()
