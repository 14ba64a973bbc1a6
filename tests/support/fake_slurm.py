"""A fake SLURM: `srun`, `scontrol` and `sbatch` that start on this machine what a cluster would start on its nodes.

    Launched([*batch(folder, script, nodes=["localhost", "elsewhere"], job="31415"), *arguments], run, cwd=ROOT)
    requeued(folder)        # the jobs that `scontrol requeue` named

The variables are those that srun(1) and sbatch(1) document; the nodes exist by name only.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support import launch

SRUN = """
import os, subprocess, sys, time
options, command = {}, sys.argv[1:]
while command[0].startswith("-"):
    name, _, value = command.pop(0).partition("=")
    options[name] = value
if "FAKE_PYTHON" in os.environ:
    command[command.index("python")] = sys.executable
    command.insert(1 + command.index(sys.executable), os.environ["FAKE_PYTHON"])
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

# Runs a job, or all jobs of an array at once, before it returns; a job that depends on one that failed is cancelled.
SBATCH = """
import os, subprocess, sys
options, command = {}, sys.argv[1:]
while command[0].startswith("-"):
    name, _, value = command.pop(0).partition("=")
    options[name] = value
folder = os.environ["FAKE_SLURM"]
job = str(1000 + sum(name.startswith("ended-") for name in os.listdir(folder)))
after = options.get("--dependency", "").removeprefix("afterok:")
if after and open(f"{folder}/ended-{after}").read() != "0":
    assert options["--kill-on-invalid-dep"] == "yes"
    codes = ["cancelled"]
else:
    first, _, last = options.get("--array", "0-0").partition("-")
    runs = []
    for task in range(int(first), int(last) + 1):
        place = {"SLURM_JOB_ID": job, "SLURM_CPUS_PER_TASK": "1"}
        if "--array" in options:
            place |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)}
        log = open(f"{folder}/job-{job}-{task}.log", "w")
        runs.append(subprocess.Popen(["bash", *command], env=os.environ | place, stdout=log, stderr=log))
    codes = [str(run.wait()) for run in runs]
with open(f"{folder}/ended-{job}", "w") as file:
    file.write(max(codes))
print(job if "--parsable" in options else f"Submitted batch job {job}")
"""


def login(folder: Path) -> dict[str, str]:
    """The environment of a shell whose sbatch runs what is submitted and leaves job-<job>-<task>.log in the folder.

    It is that of an interactive job, as users have for larger work on many clusters.
    """
    return os.environ | {"PATH": _programs(folder), "FAKE_SLURM": str(folder), "SLURM_JOB_ID": "999"}


def ended(folder: Path) -> list[str]:
    """The exit code of every job that was submitted, in order; "cancelled" for one that was never begun."""
    return [path.read_text() for path in sorted(folder.glob("ended-*"))]


def batch(folder: Path, script: Path, *, nodes: Sequence[str], job: str, tasks_per_node: int = 1) -> list[str]:
    """The command that runs a batch script as SLURM's first node would, to be followed by the script's arguments."""
    path = f"PATH={_programs(folder)}"
    forked = f"FAKE_PYTHON={launch.__file__}"
    return ["env", path, forked, f"FAKE_SLURM={folder}", *allocation(nodes, job, tasks_per_node), "bash", str(script)]


def _programs(folder: Path) -> str:
    """PATH with the fake programs first."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sbatch", SBATCH)):
        (programs / name).write_text(f"#!{sys.executable}\n{text}")
        (programs / name).chmod(0o755)
    return f"{programs}{os.pathsep}{os.environ['PATH']}"


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
