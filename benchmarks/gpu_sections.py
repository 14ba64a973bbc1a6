"""The process of a section of `benchmarks/gpu.py`, which starts it; it measures the section's cases.

    python benchmarks/gpu_sections.py mfu --device cpu --out /tmp/gpu --seconds 60

Here are the sections that run other programs (doctor, tests, footage, losses) and that of embeddings; those of pixels
are in gpu_loader.py and gpu_video.py, those of the model in gpu_step.py.
"""

import argparse
import ctypes
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, build
from benchmarks.gpu_cases import Case, Skipped, Trial, facts, run_cases
from benchmarks.gpu_table import Journal

DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
FPS, SEGMENT = 7.5, 24  # of footage: frames a second, frames a sample
STEPS = 20  # of the runs whose losses are compared


def doctor(trial: Trial) -> list[Case]:
    """Return the doctor's report."""

    def examine() -> dict[str, Any]:
        device = [] if trial.on_gpu else ["--device", "cpu"]
        command = [sys.executable, "-m", "launch.doctor", "--json", "--path", str(trial.out), *device]
        report = json.loads(output_of(command, may_fail=True))
        bad = [f"{check['status']} {check['name']}: {check['detail']}" for check in report if check["status"] != "ok"]
        if any(line.startswith("FAIL") for line in bad):
            raise RuntimeError("; ".join(bad))
        details = {check["name"]: check["detail"] for check in report}
        return {"checks": len(report), "warnings": "; ".join(bad) or "none"} | {
            name: details[name] for name in ("DALI", "DeepSpeed", "FusedAdam", "communication") if name in details
        }

    return [Case("doctor", examine)]


def tests(trial: Trial) -> list[Case]:
    """Return the outcome of the tests that are marked gpu, the files without one left out."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]

    def run() -> dict[str, Any]:
        report = trial.out / "tests.xml"
        options = ["-m", "gpu", "-p", "no:xdist", "-p", "no:cacheprovider", f"--junitxml={report}"]
        output_of(
            [sys.executable, "-m", "pytest", *options, *map(str, files)],
            may_fail=True,
            environment={"MAE3D_REQUIRE_GPU": "1"} if trial.on_gpu else {},
        )
        tests = list(ET.parse(report).iter("testcase"))
        bad = [test for test in tests if test.find("failure") is not None or test.find("error") is not None]
        skipped = [test for test in tests if test.find("skipped") is not None]
        if bad or not tests:
            raise RuntimeError(f"{len(bad)} of {len(tests)} failed: {', '.join(test.attrib['name'] for test in bad)}")
        if len(skipped) == len(tests):
            raise Skipped(f"needs an NVIDIA GPU: {len(tests)} tests are there")
        return {"passed": len(tests) - len(skipped), "skipped tests": len(skipped), "files": len(files)}

    return [Case("pytest -m gpu", run)]


def footage(trial: Trial) -> list[Case]:
    """Make the datasets that other sections read: frames of 340 x 256 or of the footage, and the demo's clips."""

    def frames() -> dict[str, Any]:
        from benchmarks.gpu_loader import make_shards
        from pipelines.samples.corpus import open_corpus

        if not (trial.shards / "dataset.json").exists():
            shutil.rmtree(trial.shards.parent, ignore_errors=True)
            if trial.videos is not None:
                rate = ("--fps", FPS, "--segment-frames", SEGMENT)
                trial.shards.parent.mkdir(parents=True)
                build(trial.shards, "--videos", trial.videos, *rate)
            elif trial.on_gpu:
                make_shards(trial.shards.parent, samples=128)
            else:
                make_shards(trial.shards.parent, samples=4, length=16)
        tars = sum(path.stat().st_size for path in trial.shards.glob("*.tar"))
        samples = len(open_corpus([trial.shards]))
        return {"samples": samples, "MB": tars / 1e6, "source": str(trial.videos or "made, 340 x 256, quality 90")}

    def demo() -> dict[str, Any]:
        if not (trial.demo / "dataset.json").exists():
            clips = trial.demo.with_name("demo-frames")
            for folder in (clips, trial.demo):
                shutil.rmtree(folder, ignore_errors=True)
            count = ["--clips", "64" if trial.on_gpu else "16"]
            output_of([sys.executable, "-m", "preprocess", "demo", "--out", str(clips), *count])
            build(trial.demo, "--frames", clips, "--ledger", clips / "ledger.csv")
        return {"samples": 64 if trial.on_gpu else 16, "source": "python -m preprocess demo"}

    return [Case("frames", frames), Case("demo", demo)]


def losses(trial: Trial) -> list[Case]:
    """Compare the losses of short runs of launch/pretrain.py with those of plain `python` on the CPU, step by step."""
    runs = trial.out / "losses"

    def trained(name: str, launcher: Sequence[str], *options: str) -> list[float]:
        from mae3d.tracking.run_dir import read_metrics

        if (runs / name / "DONE").exists():
            return [float(row["loss"]) for row in read_metrics(runs / name)]
        steps = STEPS if trial.on_gpu else 3
        device = [] if name != "cpu" and trial.on_gpu else ["--device", "cpu"]
        settings = ["--train.steps", str(steps), "--log.every", "1", "--train.precision", "fp32", *device, *options]
        data = ["--config", "demo", "--data.shards", str(trial.demo), "--run.dir", str(runs / name)]
        output_of([sys.executable, *launcher, "launch/pretrain.py", *data, *settings])
        return [float(row["loss"]) for row in read_metrics(runs / name)]

    def compared(name: str, launcher: Sequence[str], *options: str) -> dict[str, Any]:
        reference = trained("cpu", ["-u"], "--data.decode", "cpu")
        here = trained(name, launcher, *options)
        if len(here) != len(reference):
            raise RuntimeError(f"{len(here)} losses, {len(reference)} on the CPU")
        apart = [abs(a - b) / b for a, b in zip(here, reference, strict=True)]
        return {
            "steps": len(here), "first loss": f"{here[0]:.7f}", "last loss": f"{here[-1]:.7f}",
            "CPU's last": f"{reference[-1]:.7f}", "first apart": apart[0], "most apart": max(apart),
        }  # fmt: skip

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    deepspeed = ["-m", "deepspeed.launcher.runner", "--master_port", port, "--num_gpus", "1"]
    cpu_pixels = ("--data.decode", "cpu")
    cases = [Case("deepspeed, fp32, the CPU's pixels", partial(compared, "deepspeed", deepspeed, *cpu_pixels))]
    if trial.on_gpu:
        bf16, compiled = ("--train.precision", "bf16"), ("--train.compile", "true")
        cases += [
            Case("deepspeed, fp32, the GPU's pixels", partial(compared, "mixed", deepspeed, "--data.decode", "mixed")),
            Case("deepspeed, bf16, the CPU's pixels", partial(compared, "bf16", deepspeed, *cpu_pixels, *bf16)),
            Case("python, fp32, compiled", partial(compared, "compiled", ["-u"], *cpu_pixels, *compiled)),
        ]
    return cases


def embed(trial: Trial) -> list[Case]:
    """Measure clips/s of frozen encoders by the clock, their copy to the device included, and samples/s of kNN."""
    sizes = ("mae_vit_base_patch16", "mae_vit_large_patch16", "mae_vit_huge_patch14")

    def clips_per_s(preset: str, precision: Any) -> dict[str, Any]:
        import torch

        from launch.inference.embeddings import Embedder
        from mae3d.model.config import MAEConfig
        from mae3d.model.mae import MAE

        config = MAEConfig(preset=preset) if trial.on_gpu else MAEConfig(preset=preset, img_size=64, num_frames=4)
        device = torch.device(trial.device)
        with device:
            model = MAE(config)
        embedder = Embedder(model, device, precision=precision)
        batch, enough_s, rounds = (32, 3.0, 0) if trial.on_gpu else (1, 0.0, 0)
        shape = (batch, 1, config.num_frames, config.height, config.width, config.in_chans)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8)
        for _ in range(2):
            embedder(clips)
        start = time.perf_counter()
        while not rounds or time.perf_counter() - start < enough_s:
            embedder(clips)  # ends on the CPU, so nothing is left on its way
            rounds += 1
        return {"clips/s": rounds * batch / (time.perf_counter() - start), "batch": batch}

    def neighbours() -> dict[str, Any]:
        import numpy as np

        from mae3d.analysis.probes import knn_scores

        rng = np.random.default_rng(0)
        train, test, classes = (100_000, 1_000, 400) if trial.on_gpu else (500, 20, 4)
        features = rng.standard_normal((train + test, 1024), dtype=np.float32)
        targets = np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, train)]
        start, cpu = time.perf_counter(), time.process_time()
        knn_scores(features[:train], targets, features[train:])
        seconds = time.perf_counter() - start
        return {"samples/s": test / seconds, "of": train, "cores": (time.process_time() - cpu) / seconds}

    cases = [
        Case(f"{preset.removeprefix('mae_vit_')}, {precision}", partial(clips_per_s, preset, precision))
        for preset in (sizes if trial.on_gpu else ["mae_vit_tiny_patch16"])
        for precision in (("bf16", "fp32") if trial.on_gpu else ("fp32",))
    ]
    return [*cases, Case("kNN, 1024 numbers each", neighbours)]


def output_of(command: Sequence[str], *, may_fail: bool = False, environment: dict[str, str] | None = None) -> str:
    """Run a command in the checkout; return its standard output.

    Raises:
        RuntimeError: it failed; the message ends with its last lines.
    """
    print("$", " ".join(command), flush=True)
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | (environment or {}), capture_output=True, encoding="utf-8",
        errors="replace", check=False,
    )  # fmt: skip
    print(done.stdout + done.stderr, flush=True)
    if done.returncode and not may_fail:
        lines = (done.stdout + done.stderr).splitlines()
        errors = [line for line in lines if "rror" in line] or lines
        raise RuntimeError(f"exit code {done.returncode}: {' '.join(errors[-2:])}")
    return done.stdout


HERE: dict[str, Callable[[Trial], list[Case]]] = {
    "doctor": doctor, "tests": tests, "footage": footage, "losses": losses, "embed": embed,
}  # fmt: skip
MODULES = {
    "jpeg": "gpu_loader", "clips": "gpu_loader", "nvdec": "gpu_video", "attention": "gpu_step", "mfu": "gpu_step",
    "optimizer": "gpu_step", "stall": "gpu_step", "plain": "gpu_step", "batch": "gpu_step", "checkpoint": "gpu_step",
}  # fmt: skip


def cases_of(section: str) -> Callable[[Trial], list[Case]]:
    """Return the function that lists a section's cases."""
    if section in HERE:
        return HERE[section]
    listed: Callable[[Trial], list[Case]] = getattr(importlib.import_module(f"benchmarks.{MODULES[section]}"), section)
    return listed


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a section's cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=[*HERE, *MODULES])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--videos", type=Path, default=None, help="folder of footage")
    parser.add_argument("--seconds", type=float, default=600, help="the section's limit")
    options = parser.parse_args(argv)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)  # the caller starts the section again, and one is enough
    if os.getppid() != parent:
        return 1
    trial = Trial(options.device, options.out, options.videos)
    journal = Journal.of(options.out, options.section)
    journal.write(facts=facts(options.device))
    run_cases(cases_of(options.section)(trial), journal, seconds=options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
