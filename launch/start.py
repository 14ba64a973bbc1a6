"""A command as many processes: by deepspeed on this host or on several, by srun in a SLURM allocation.

    mae3d launch -n 4 pretrain --config k400_vit_large --data.shards shards --run.dir runs/a
    mae3d launch --hosts hosts pretrain --config k400_vit_large --data.shards shards --run.dir runs/a
    mae3d launch --dry_run -n 8 evaluate --run runs/fine --data.shards val --out out/test     # prints the command line

Signals reach the processes, and the exit code is theirs: 75 after a stop on request. One process is started as it is.
"""

import argparse
import itertools
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common import entry
from launch.common.cli import EXIT_DONE, examples_of, fail
from launch.common.commands import ALL
from mae3d.io.console import tolerate_any_text
from mae3d.io.help_page import add_help

PORT = 29500  # deepspeed's own
_PORTS = 100  # from there on, that are tried
_PAGES = {"-h", "--help", "--print_config"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="mae3d launch", allow_abbrev=False, add_help=False)
    add_help(made, examples=examples_of(str(__doc__)), description=str(__doc__).partition("\n")[0])
    made.add_argument("-n", type=int, metavar="N", help="processes on each host: all GPUs, else 1")
    made.add_argument("--hosts", default="", metavar="FILE", help="lines `name slots=N`: these hosts, over ssh")
    made.add_argument("--port", type=int, metavar="PORT", help=f"where they meet: {PORT}, or the next free one")
    made.add_argument("--dry_run", "--dry-run", action="store_true", help="print the command line, and start nothing")
    launched = ", ".join(name for name, command in ALL.items() if command.has_ranks)
    made.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help=f"one of {launched}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Start the command and return its exit code; SystemExit 2 for bad usage."""
    tolerate_any_text()
    given = parser().parse_args(argv)
    try:
        command = command_line(given.command, n=given.n, hosts=given.hosts, port=given.port, environment=os.environ)
    except ValueError as error:
        fail(str(error))
    if given.dry_run:
        print(shlex.join(command))
        return EXIT_DONE
    return entry.main(command)


def command_line(
    words: Sequence[str], *, n: int | None, hosts: str, port: int | None, environment: Mapping[str, str]
) -> list[str]:
    """Return the command line that starts a command as many processes.

    Args:
        words: the command and its arguments.
        n: processes on each host; None for the launcher's choice.
        hosts: a hostfile; "" for this host, or those of the SLURM allocation.
        port: where they meet; None for a free one.
        environment: variables of SLURM and CUDA count.

    Raises:
        ValueError: there is no such command, or what is requested does not go together.
    """
    name, *rest = words or [""]
    if name not in ALL or not ALL[name].has_ranks:
        known = ", ".join(known for known, command in ALL.items() if command.has_ranks)
        alone = f"; `mae3d {name}` is one process by itself" if name in ALL else ""
        raise ValueError(f"mae3d launch {name}: give one of {known}{alone}")
    if n is not None and n < 1:
        raise ValueError(f"-n {n} must be at least 1")
    if "WORLD_SIZE" in environment:
        raise ValueError(f"a launcher has started this process already: give `mae3d {name}` without `launch`")
    program = [str(Path(__file__).with_name(f"{name}.py")), *rest]
    if _PAGES & {word.partition("=")[0] for word in rest}:  # one process prints it
        return [sys.executable, *program]
    if hosts:
        if not Path(hosts).is_file():
            raise ValueError(f"--hosts {hosts}: no such file; it has a line `name slots=N` for each host")
        return [*_deepspeed(port), "--hostfile", hosts, *(["--num_gpus", str(n)] if n else []), *program]
    if "SLURM_JOB_ID" in environment and shutil.which("srun", path=environment.get("PATH")):
        return [*_srun(n, environment), sys.executable, *program]
    visible = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    gpus = len(visible) if "CUDA_VISIBLE_DEVICES" in environment else len(_gpus())
    if n is None:
        n = max(gpus, 1)
    if n == 1:
        return [sys.executable, *program]
    if 0 < gpus < n and not _is_on_cpu(rest):
        raise ValueError(f"-n {n}: this host shows {gpus} GPUs; give -n {gpus}, or --device cpu")
    if gpus and not all(gpu.strip().isdigit() for gpu in visible):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']}: deepspeed takes numbers, neither names nor "
            "parts of GPUs (MIG): give the numbers of `nvidia-smi -L`, or start with torchrun"
        )
    # deepspeed would ignore CUDA_VISIBLE_DEVICES beside --num_gpus.
    share = ["--include", f"localhost:{','.join(visible[:n])}"] if len(visible) >= n else ["--num_gpus", str(n)]
    return [*_deepspeed(_free_port() if port is None else port), *share, *program]


def _deepspeed(port: int | None) -> list[str]:
    """Return deepspeed, that of this environment, with the port."""
    beside = Path(sys.executable).with_name("deepspeed")
    return [str(beside) if beside.exists() else "deepspeed", *(["--master_port", str(port)] if port else [])]


def _srun(n: int | None, environment: Mapping[str, str]) -> list[str]:
    """Return srun as examples/slurm.sbatch has it, with N tasks on each node of the allocation."""
    tasks = []
    if n:
        nodes = environment.get("SLURM_JOB_NUM_NODES", environment.get("SLURM_NNODES", "1"))
        tasks = [f"--ntasks={n * int(nodes)}", f"--ntasks-per-node={n}"]
    cpus = environment.get("SLURM_CPUS_PER_TASK", "1")
    return ["srun", "--kill-on-bad-exit=1", f"--cpus-per-task={cpus}", "--export=ALL", *tasks]


def _gpus() -> list[Path]:
    """Return the devices of NVIDIA's driver; those of a container are the ones that it may use."""
    return [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]


def _is_on_cpu(words: Sequence[str]) -> bool:
    return "--device=cpu" in words or ("--device", "cpu") in itertools.pairwise(words)


def _free_port() -> int:
    """Return the first port from PORT on that nobody listens at: two runs may share a host."""
    for port in range(PORT, PORT + _PORTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise ValueError(f"ports {PORT} to {PORT + _PORTS - 1} are taken: give another by --port")


if __name__ == "__main__":
    sys.exit(main())
