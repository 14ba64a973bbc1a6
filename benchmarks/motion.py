"""The value of pretraining on the demo's motions: 2,000 clips, a small model from scratch and pretrained.

    python benchmarks/motion.py out/motion             # an hour or more on two CPU cores; started again it goes on

Twelve motions of a camera over 17 pictures (a photograph, drawn noise and shapes); validation on 600 clips over another
photograph, which is in none of the training clips. The same model, the same ten epochs of finetuning, three seeds each,
each start at its own best of the rates 3e-4, 1e-3 and 3e-3 (of seed 0). Then kNN and linear probes of the frozen
encoder beside the same encoder untrained. Writes motion.png (curves) into the folder and prints the tables.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, build
from mae3d.tracking.run_dir import read_metrics
from preprocess.demo.camera import MOTIONS
from preprocess.demo.clips import render_demo

SEEDS = (0, 1, 2)
RATES = ("3e-4", "1e-3", "3e-3")
STARTS = ("from scratch", "from a pretraining run")
CLIPS: dict[str, dict[str, Any]] = {
    "train": {"clips": 2000, "seed": 0, "textures": ("china", "noise", "shapes")},
    "val": {"clips": 600, "seed": 1, "textures": ("flower",)},
}
SIZE = {
    "preset": "mae_vit_tiny_patch16",
    "img_size": 32,
    "num_frames": 8,
    "patch_size": 8,
    "depth": 4,
    "pos_init": "sines",
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    out, device = asked.out.resolve(), asked.device
    out.mkdir(parents=True, exist_ok=True)
    for part in CLIPS:
        frames = render_clips(out / f"{part}-frames", part)
        build(out / part, "--frames", frames, "--ledger", frames / "ledger.csv")
    pretrain = ["--config", "motion_pretrain", "--data.shards", out / "train", "--run.dir", out / "pre"]
    run("pretrain.py", *pretrain, "--device", device)
    curves: dict[str, list[list[float]]] = {}
    for start in STARTS:
        tried = {rate: finetune(out, start, rate, 0, device=device) for rate in RATES}
        _, best = max((accuracies[-1], rate) for rate, accuracies in tried.items())
        for rate, accuracies in tried.items():
            print(f"{start}, rate {rate}, seed 0: {accuracies[-1]:.1%}", flush=True)
        curves[f"{start}, rate {best}"] = [
            tried[best] if seed == 0 else finetune(out, start, best, seed, device=device) for seed in SEEDS
        ]
    for name, runs in curves.items():
        print(f"{name}: {spread([accuracies[-1] for accuracies in runs])} after the last epoch", flush=True)
    draw(curves, out / "motion.png")
    for name, more in (("pretrained", ()), ("untrained", ("--random_init", "true"))):
        folder = out / f"probe-{name}"
        sets = ["--data.shards", out / "train", "--test.shards", out / "val"]
        run("probe.py", "--run", out / "pre", *sets, "--out", folder, "--batch", "50", "--device", device, *more)
        for row in json.loads((folder / "probe.json").read_text())["probes"]:
            print(f"{name}: {row}", flush=True)


def render_clips(frames: Path, part: str, *, lossless: bool = False) -> Path:
    """Render the clips of a part, 48 x 48 pixels and 16 frames, unless they exist; return their folder."""
    if not (frames / "ledger.csv").exists():
        render_demo(frames, size=48, frames=16, motions=MOTIONS, objects="digits", lossless=lossless, **CLIPS[part])
    return frames


def finetune(out: Path, start: str, rate: str, seed: int, *, device: str) -> list[float]:
    """Return validation accuracies, one per epoch."""
    folder = out / f"finetune-{'pretrained' if start == STARTS[1] else 'scratch'}-{rate}-{seed}"
    options: list[Any] = ["--init", out / "pre"] if start == STARTS[1] else []
    for name, value in SIZE.items() if start == STARTS[0] else ():
        options += [f"--model.{name}", value]
    data = ["--data.shards", out / "train", "--val.shards", out / "val", "--run.dir", folder]
    rates = ["--optim.lr", rate, "--train.seed", seed, "--device", device]
    run("finetune.py", "--config", "finetune_motion", *options, *data, *rates)
    return [row["val_top1"] for row in read_metrics(folder) if "val_top1" in row]


def run(script: str, *options: Any) -> None:
    """Run a command of launch/, its output into OUT's log; a failure ends everything."""
    command = [sys.executable, str(ROOT / "launch" / script), *map(str, options)]
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(done.stderr)


def spread(values: Iterable[float]) -> str:
    """Format mean and standard deviation, in per cent, and the values."""
    values = list(values)
    listed = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f} % ({listed})"


def draw(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Draw validation accuracy by epoch: a thin line per run, a thick one for their mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for i, (name, runs) in enumerate(curves.items()):
        epochs = range(1, len(runs[0]) + 1)
        for accuracies in runs:
            axes.plot(epochs, [100 * value for value in accuracies], color=f"C{i}", linewidth=0.8, alpha=0.5)
        mean = [100 * statistics.mean(values) for values in zip(*runs, strict=True)]
        axes.plot(epochs, mean, color=f"C{i}", linewidth=2.2, label=name)
    axes.axhline(100 / 12, color="grey", linewidth=0.8, linestyle="--", label="chance")
    axes.set(xlabel="epoch of finetuning", ylabel="validation top-1, %", ylim=(0, 100))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
