"""A fake SLURM: `srun` and `scontrol` that start on this machine what a cluster would start on its nodes.

    Launched([*batch(folder, script, nodes=["localhost", "elsewhere"], job="31415"), *arguments], run, cwd=ROOT)
    requeued(folder)        # the jobs that `scontrol requeue` named

The variables are those that srun(1) and sbatch(1) document; the nodes exist by name only.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

SRUN = """
import os, subprocess, sys, time
options, command = {}, sys.argv[1:]
while command[0].startswith("-"):
    name, _, value = command.pop(0).partition("=")
    options[name] = value
nodes = os.environ["SLURM_JOB_NODELIST"].split(",")
here = int(os.environ["FAKE_TASKS_PER_NODE"])
step = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
    "SLURM_STEP_NUM_TASKS": str(here * len(nodes)),
    "SLURM_STEP_TASKS_PER_NODE": f"{here}(x{len(nodes)})" if len(nodes) > 1 else str(here),
}
tasks = []
for task in range(here * len(nodes)):
    place = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % here), "SLURM_NODEID": str(task // here)}
    tasks.append(subprocess.Popen(command, env=os.environ | step | place))
while any(task.poll() is None for task in tasks):
    if options.get("--kill-on-bad-exit") == "1" and any(task.poll() for task in tasks):
        for task in tasks:
            task.kill()
    time.sleep(0.05)
# The highest exit code, or 128 + the signal that ended a task.
sys.exit(max(128 - task.returncode if task.returncode < 0 else task.returncode for task in tasks))
"""

SCONTROL = """
import os, sys
verb, job = sys.argv[1:]
assert verb == "requeue", verb
with open(os.environ["FAKE_SLURM"] + "/requeued", "a") as file:
    file.write(job + "\\n")
"""


def batch(folder: Path, script: Path, *, nodes: Sequence[str], job: str, tasks_per_node: int = 1) -> list[str]:
    """The command that runs a batch script as SLURM's first node would, to be followed by the script's arguments."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(f"#!{sys.executable}\n{text}")
        (programs / name).chmod(0o755)
    path = f"PATH={programs}{os.pathsep}{os.environ['PATH']}"
    return ["env", path, f"FAKE_SLURM={folder}", *allocation(nodes, job, tasks_per_node), "bash", str(script)]


def srun(*, nodes: Sequence[str], tasks_per_node: int) -> list[str]:
    """The command that starts Python as the tasks of a step."""
    return ["env", *allocation(nodes, str(os.getpid()), tasks_per_node), sys.executable, "-c", SRUN, sys.executable]


def allocation(nodes: Sequence[str], job: str, tasks_per_node: int) -> list[str]:
    """The variables of a job, which the batch script's own shell has, though it is no step."""
    variables = {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": ",".join(nodes),
        "SLURM_NTASKS": len(nodes) * tasks_per_node,
        "SLURM_PROCID": 0,
        "SLURM_LOCALID": 0,
        "SLURM_NODEID": 0,
        "FAKE_TASKS_PER_NODE": tasks_per_node,
    }
    return [f"{name}={value}" for name, value in variables.items()]


def requeued(folder: Path) -> list[str]:
    """The jobs that asked to be queued again, in order."""
    path = folder / "requeued"
    return path.read_text().split() if path.exists() else []


def directives(script: Path) -> dict[str, str]:
    """The #SBATCH lines of a batch script as option -> value."""
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", script.read_text(), flags=re.MULTILINE)
    return dict(lines)
