"""CPU seconds that a command takes from its start to its first step, and how many of them go where.

    python benchmarks/start.py                      # pretrain: fresh and resumed starts in turn, by phase
    python benchmarks/start.py deepspeed            # the same under the launcher, and what the launcher takes itself
    python benchmarks/start.py commands             # finetune, evaluate and embed, whole

Seconds are those of all threads of a process and of the children that it has waited for; files are in the cache.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # run as a file: the checkout's packages, not this folder's modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ROOT = Path(__file__).resolve().parents[1]
MARKS = "MAE3D_START_MARKS"  # the file that a child writes

# The end of each phase: the call of a function, by the module that has it. In this order.
ENDS = {
    "command line": ("launch.common.cli", "parse"),
    "data opened": ("pipelines.samples.corpus", "corpus_of"),
    "torch, ranks": ("mae3d.distributed", "start_world"),
    "DALI, loader": ("pipelines.loader", "Loader.__init__"),
    "model": ("launch.training.summary", "start_summary"),
    "DeepSpeed, engine": ("mae3d.training.engine", "Engine.__init__"),
    "first batch": ("pipelines.loader", "Loader.__next__"),
    "first step": ("mae3d.training.loop", "TrainingLoop.take_step"),
}


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="pretrain", choices=["pretrain", "deepspeed", "commands"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder for the dataset and the runs, which is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        work = options.work or Path(made)
        shards = tiny_shards(work)
        if options.what == "commands":
            commands(work, shards, rounds=options.rounds)
        else:
            launcher = ["deepspeed", "--num_gpus", "1"] if options.what == "deepspeed" else [sys.executable]
            starts(launcher, work, shards, rounds=options.rounds)


def tiny_shards(work: Path) -> Path:
    """Return shards of 40 clips of the demo, made unless they are there."""
    from benchmarks.common import build

    shards = work / "shards"
    if not shards.exists():
        frames = work / "frames"
        demo = [sys.executable, "-m", "preprocess", "demo", "--out", str(frames), "--clips", "40"]
        subprocess.run(demo, check=True, capture_output=True, cwd=ROOT)
        build(shards, "--frames", frames, "--ledger", frames / "ledger.csv")
    return shards


def starts(launcher: Sequence[str], work: Path, shards: Path, *, rounds: int) -> None:
    """Print the seconds of fresh and of resumed starts by phase, after one of each that is not counted."""
    seconds: dict[str, list[dict[str, float]]] = {"fresh": [], "resumed": []}
    for number in range(rounds + 1):
        run = Path(tempfile.mkdtemp(dir=work)) / "run"
        command = [*launcher, str(Path(__file__)), *pretrain_arguments(shards, run)]
        for kind in seconds:  # the first stops after a step, with a checkpoint, and the second goes on from it
            phases = measured(command)
            if number:
                seconds[kind].append(phases)
    for kind, rows in seconds.items():
        print(f"{kind} start, CPU seconds of {rounds}:")
        for phase in rows[0]:
            print(f"  {phase:18} {spread([row[phase] for row in rows])}")


def pretrain_arguments(shards: Path, run: Path) -> list[str]:
    """Return `pretrain` with the demo's model on the CPU."""
    options = ["--config", "demo", "--data.shards", str(shards), "--run.dir", str(run), "--device", "cpu"]
    return [str(ROOT / "launch/pretrain.py"), *options]


def measured(command: Sequence[str]) -> dict[str, float]:
    """Run a command that starts this file as its child; return its seconds by phase, and those of the launcher."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as marks:
        before = children_seconds()
        done = subprocess.run(
            command, env=os.environ | {MARKS: marks.name}, cwd=ROOT, capture_output=True, encoding="utf-8", check=False
        )
        whole = children_seconds() - before
        if done.returncode != 75:
            raise SystemExit(done.stdout + done.stderr)
        phases: dict[str, float] = json.load(marks)
    child = phases.pop("child")
    return {**phases, "to the first step": sum(phases.values()), "launcher and end": whole - child}


def commands(work: Path, shards: Path, *, rounds: int) -> None:
    """Print the seconds of other commands, from their start to their end."""
    split = ["--by", "name", "--fractions", "train=0.8,val=0.2"]
    train, val = (["--data.shards", str(shards), "--data.select.split", name] for name in ("train", "val"))
    val_of_training = ["--val.shards", str(shards), "--val.select.split", "val"]
    epoch = ["--train.global_batch", "8", "--train.epochs", "1", "--optim.warmup_epochs", "0"]
    seconds: dict[str, list[float]] = {}
    run_whole("-m", "preprocess", "split", str(shards), *split)
    for number in range(rounds + 1):
        made = Path(tempfile.mkdtemp(dir=work))
        init, fine = ["--init", str(made / "run")], ["--run.dir", str(made / "fine")]
        lines = {
            "pretrain, 1 step": [*pretrain_arguments(shards, made / "run"), "--train.steps", "1"],
            "finetune, 1 epoch": [
                "finetune",
                "--config",
                "finetune_motion",
                *init,
                *fine,
                *train,
                *val_of_training,
                *epoch,
            ],
            "evaluate": ["evaluate", "--run", str(made / "fine"), *val, "--out", str(made / "scores")],
            "embed": ["embed", "--run", str(made / "run"), *val, "--out", str(made / "vectors")],
        }
        for name, (program, *options) in lines.items():
            script = program if program.endswith(".py") else str(ROOT / f"launch/{program}.py")
            spent = run_whole(script, *options, "--device", "cpu")
            if number:
                seconds.setdefault(name, []).append(spent)
    for name, values in seconds.items():
        print(f"{name:18} {spread(values)}")


def run_whole(*arguments: str) -> float:
    """Run a Python command to its end and return its CPU seconds."""
    before = children_seconds()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    spent = children_seconds() - before
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return spent


def children_seconds() -> float:
    """Return the CPU seconds of all children that have been waited for."""
    times = os.times()
    return times.children_user + times.children_system


def spread(values: Sequence[float]) -> str:
    """Return median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


class Marker(importlib.abc.MetaPathFinder):
    """A child's clock: wraps the functions that end a phase as soon as their modules are loaded."""

    def __init__(self, file: Path):
        self.file, self.at = file, dict[str, float]()

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module that holds an end, with a loader that wraps it."""
        ends = {phase: function for phase, (module, function) in ENDS.items() if module == name}
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if ends else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for phase, function in ends.items():
                owner, _, attribute = function.rpartition(".")
                holder = getattr(module, owner) if owner else module
                setattr(holder, attribute, self.marked(phase, getattr(holder, attribute)))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def marked(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose first return ends a phase; the last phase ends the run, as SLURM would."""

        @wraps(function)
        def timed(*arguments: Any, **settings: Any) -> Any:
            result = function(*arguments, **settings)
            if phase not in self.at:
                self.at[phase] = cpu_seconds()
                if phase == next(reversed(ENDS)):
                    os.kill(os.getpid(), signal.SIGTERM)
            return result

        return timed

    def write(self) -> None:
        """Write the seconds between the marks."""
        phases, before = {}, 0.0
        for phase in ENDS:
            phases[phase], before = self.at[phase] - before, self.at[phase]
        self.file.write_text(json.dumps({**phases, "child": cpu_seconds()}))


def cpu_seconds() -> float:
    """Return the seconds of this process, its threads and the children that it has waited for."""
    return sum(os.times()[:4])


def child(file: Path) -> None:
    """Run the program that the arguments name, with marks."""
    marker = Marker(file)
    sys.meta_path.insert(0, marker)
    sys.argv = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        marker.write()


if __name__ == "__main__":
    if MARKS in os.environ:
        child(Path(os.environ[MARKS]))
    else:
        main()
