"""Trainings that tests launch as users do: started, watched, signalled.

job = Job(recipe, shards, run, "--train.steps", "20", processes=2)      # forked; or launcher=[*DEEPSPEED, "2"]
job.wait_for_step(5)
code, output = job.end()
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from mae3d.tracking.run_dir import read_metrics
from tests.support import launch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "launch" / "pretrain.py")
PORT = str(29600 + os.getpid() % 300)
DEEPSPEED = ["deepspeed", "--master_port", PORT, "--num_gpus"]
STEPS = 14  # the dataset of the fixture `shards` has 3 steps an epoch

# A small model, what is tested is not it; and many views, so that a step leaves time to be killed in.
TINY = """
model: {preset: mae_vit_tiny_patch16, img_size: 32, num_frames: 4, embed_dim: 24, depth: 1, num_heads: 2,
        decoder_embed_dim: 16, decoder_depth: 1, decoder_num_heads: 2, mask_ratio: 0.75}
data: {sampling_rate: 1, repeat_aug: 8, windows: own, read_threads: 2, prefetch: 2, decode_threads: 1}
optim: {lr: 1.0e-2, warmup_steps: 2, clip_grad: 1.0}
train: {global_batch: 4, steps: 14, precision: fp32}
run: {checkpoint_every: 4}
log: {every: 1}
"""


class Launched:
    """A command that trains, whose ranks can be found and signalled."""

    process: "subprocess.Popen[str] | launch.Process | launch.Ranks"

    def __init__(self, command: Sequence[str | Path], run: Path, *, cwd: Path | None = None):
        self.run = run
        cwd = cwd or run.parent
        if command[0] == "deepspeed":  # a script that imports all of DeepSpeed, to start a process that does so again
            script = Path(sys.executable).with_name("deepspeed")
            self.process = launch.Process([sys.executable, script, *command[1:]], cwd=cwd, merged=True)
        else:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd
            )

    def ranks(self) -> list[psutil.Process]:
        """Return the trainers below a launcher, without the launcher and the trainers' children."""

        def is_rank(process: psutil.Process | None) -> bool:
            try:
                if process is None or not any(part.endswith("launch/pretrain.py") for part in process.cmdline()):
                    return False
                return bool({"RANK", "SLURM_STEP_ID"} & process.environ().keys())
            except psutil.Error:  # launchers have helpers that end within the blink of an eye
                return False

        if isinstance(self.process, launch.Ranks):
            return [psutil.Process(rank.pid) for rank in self.process.processes]
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if is_rank(child) and not is_rank(child.parent())]

    def wait_for_ranks(self, count: int) -> list[psutil.Process]:
        """Return the trainers as soon as all are there, long before their first step: the run is over in no time."""
        wait_until(lambda: self.process.poll() is not None or len(self.ranks()) == count)
        assert self.process.poll() is None, f"it ended before it had {count} ranks: {self.end()}"
        return self.ranks()

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is in the metrics, or the command has ended."""
        wait_until(
            lambda: any(row["step"] >= step for row in read_metrics(self.run)) or self.process.poll() is not None
        )

    def end(self) -> tuple[int, str]:
        """Wait for the end and return the exit code and all output."""
        output = self.process.communicate(timeout=240)[0]
        code = self.process.poll()
        assert code is not None
        return code, output


class Job(Launched):
    """A pretraining on `processes` ranks that are forked (tests.support.launch), or that a real launcher starts.

    A launcher's ranks are forked as well, unless they are to be `executed`.
    """

    def __init__(
        self,
        recipe: Path,
        shards: Path,
        run: Path,
        *options: str,
        processes: int = 1,
        launcher: Sequence[str | Path] = (),
        executed: bool = False,
    ):
        command = [SCRIPT, *arguments(recipe, shards, run), *options]
        if launcher:
            super().__init__([*launcher, *([] if executed else [launch.__file__]), *command], run)
        else:
            self.run = run
            self.process = launch.Ranks([sys.executable, *command], world=processes, cwd=run.parent)


def arguments(recipe: Path, shards: Path, run: Path) -> list[str]:
    """What follows the script on the command line."""
    return ["--config", str(recipe), "--data.shards", str(shards), "--run.dir", str(run), "--device", "cpu"]


def wait_until(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def losses(run: Path) -> list[float]:
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows]
