"""The speed of a training step, forward and backward, and its distance from the device's limit.

    python benchmarks/step.py compare --size base --precision fp32 bf16     # against the plain model, in turns
    python benchmarks/step.py memory --size base                            # bytes kept for the backward pass
    python benchmarks/step.py ablation --size base                          # what each exact trick gives
    python benchmarks/step.py mfu --size base --compile true                # the engine: MFU, optimizer, host syncs
    python benchmarks/step.py input --size base --shards out/shards         # the Loader's clips against synthetic ones

The plain model (plain_mae.py) has the same weights and does all that ours leaves out. Candidates take turns in one
process, forwards then backwards (ABBA), each precision in a process of its own; ratios are medians of a round's pairs
with their range. Seconds are CPU seconds of one thread on the CPU, and CUDA events on a GPU. FLOPs are
mae3d.training.metrics.step_flops: a fused kernel's recomputation is not counted. `--device cpu --size tiny` tries
everything on any machine; `make gpu` measures a GPU.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import SIZES, Pair, alternate, clock_of, config_of, ratio, saved_bytes

MUST_SPEED = {"fp32": 1.7, "bf16": 1.3, "cast": 1.15}  # of the plain model, on the CPU
MUST_LOSS = {"fp32": 1e-6, "bf16": 1e-3, "cast": 1e-3}  # relative difference
MUST_BYTES = 0.45


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return 1 if a figure misses its bound, 2 without a GPU."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    if options.what == "compare" and len(options.precision) > 1:
        # One precision leaves memory with malloc, and spares the next one's plain model its page faults.
        command = [sys.executable, __file__, *argv, "--precision"]
        return max([subprocess.run([*command, name], check=False).returncode for name in options.precision])
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured (--device cpu tries the benchmark itself)")
        return 2
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    batch = f", batch {options.batch}" if options.batch else ""
    print(f"{options.what}: {where}, torch {torch.__version__}, {options.size}{batch}", flush=True)
    if options.what in ("mfu", "input"):
        from benchmarks import step_engine

        return step_engine.main(options)
    if options.what == "ablation":
        from benchmarks.ablation import ablate

        return ablate(options)
    return {"compare": compare, "memory": memory}[options.what](options)


def compare(options: argparse.Namespace) -> int:
    """Compare ours with the plain model: losses, then time."""
    missed = 0
    for precision in options.precision:
        pair = Pair(config_of(options), batch=options.batch, device=options.device, precision=precision)
        ours, theirs = pair.lean_loss().item(), pair.plain_loss().item()
        apart = abs(ours - theirs) / theirs
        if options.compile:
            pair.lean.compile()
        clock, wait = clock_of(options.device)
        blocks = {"lean": pair.lean_step, "plain": pair.plain_step}
        seconds = alternate(blocks, rounds=options.rounds, clock=clock, wait=wait)
        gain = ratio(seconds["plain"], seconds["lean"])
        lean, plain = (sorted(seconds[name])[options.rounds // 2] for name in ("lean", "plain"))
        print(
            f"{precision}: {gain} as fast as plain ({plain:.3f} -> {lean:.3f} s); "
            f"losses {ours:.9f} and {theirs:.9f}, {apart:.1e} apart",
            flush=True,
        )
        if apart > MUST_LOSS[precision] or (options.device == "cpu" and gain.median < MUST_SPEED[precision]):
            print(f"  MISSED: must be {MUST_SPEED[precision]}x and {MUST_LOSS[precision]:.0e}")
            missed = 1
    return missed


def memory(options: argparse.Namespace) -> int:
    """Compare the bytes that autograd keeps for a clip, ours and the plain model's."""
    missed = 0
    for precision in options.precision:
        per_clip = {}
        for name in ("lean", "plain"):
            kept = []
            for batch in (1, 2):  # what does not grow with the batch are weights in another precision
                pair = Pair(config_of(options), batch=batch, device=options.device, precision=precision)
                kept.append(saved_bytes(getattr(pair, f"{name}_loss"), getattr(pair, name)))
            per_clip[name] = kept[1] - kept[0]
        lean, plain = per_clip.values()
        print(
            f"{precision}: {lean / 1e6:.1f} MB a clip, plain {plain / 1e6:.1f} MB: {lean / plain:.3f} of it", flush=True
        )
        missed |= int(lean / plain > MUST_BYTES)
    return missed


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compare", "memory", "ablation", "mfu", "input"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default=None, help="default: a GPU where there is one")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--precision", nargs="+", choices=MUST_SPEED, default=["fp32", "bf16"], help="bf16 is autocast")
    parser.add_argument(
        "--batch", type=int, default=None, help="clips; default: 1 on the CPU, 8 on a GPU, mfu's largest"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="of mfu and of a block of input")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--heads", type=int, default=None, help="of the decoder; default: the published 16")
    parser.add_argument("--compile", type=lambda text: text == "true", default=False)
    parser.add_argument("--shards", type=Path, default=None, help="a dataset, for input; without it one is made")
    parser.add_argument("--views", type=int, default=4, help="data.repeat_aug, for input")
    options = parser.parse_args(argv)
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.batch is None and options.what not in ("mfu", "input"):
        options.batch = 8 if options.device == "cuda" else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    return options


if __name__ == "__main__":
    sys.exit(main())
