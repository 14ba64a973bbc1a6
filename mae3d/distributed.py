"""The launcher's environment ─► this process's place among the others, and the few things that they agree on together.

world = start_world("auto")          # under deepspeed, torchrun, srun or plain python
if world.any(stop_requested): ...    # true on every rank if it is on one
"""

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class DeviceError(ValueError):
    """The device asked for cannot be used; the message gives the remedy."""


class MeetingError(RuntimeError):
    """The processes do not find each other. It may pass: a node is late, a port is taken."""


@dataclass(frozen=True)
class Place:
    """Where a launcher put this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place_from(environment: Mapping[str, str]) -> Place:
    """Reads the variables of deepspeed, torchrun, mpirun or srun; without any: a single process.

    Only what srun started belongs together: the shell of an allocation has SLURM_NTASKS and SLURM_PROCID too, and
    a plain `python` in it would wait for processes that nobody starts.
    """
    if "RANK" in environment:  # deepspeed says LOCAL_SIZE, torchrun LOCAL_WORLD_SIZE
        local_size = environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", "1"))
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "OMPI_COMM_WORLD_RANK" in environment:  # before SLURM's: there, mpirun itself is a step of one task a node
        local_size = environment["OMPI_COMM_WORLD_LOCAL_SIZE"]
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    elif "SLURM_STEP_NUM_TASKS" in environment:
        local_size = _tasks_of_node(environment["SLURM_STEP_TASKS_PER_NODE"], int(environment["SLURM_NODEID"]))
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Place()
    rank, size, local_rank = (int(environment[name]) for name in names)
    return Place(rank, size, local_rank, int(local_size))


def _tasks_of_node(tasks_per_node: str, node: int) -> str:
    """SLURM's list of counts, such as "2(x3),1", at one node's place."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    return [count for count, times in found for _ in range(int(times or 1))][node]


def meeting_point(environment: Mapping[str, str], place: Place) -> tuple[str, str]:
    """Address and port at which the processes meet: the launcher's, else what SLURM's variables make of it.

    Raises:
        ValueError: several nodes, and nothing says where they meet.
    """
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "29500")
    is_slurm = "SLURM_STEP_NUM_TASKS" in environment
    if not address and place.size <= place.local_size:
        address = "127.0.0.1"
    elif not address and is_slurm:  # "rack[3-5,9]n[1-2],login1": the first task runs on the first node, rack3n1
        first = re.match(r"([^,[]|\[[^]]*\])*", environment.get("SLURM_STEP_NODELIST", ""))
        address = re.sub(r"\[(\d+)[^]]*\]", r"\1", first[0]) if first else None
    if not address:
        raise ValueError("several nodes, but MASTER_ADDR is not set: export the name of the first process's node")
    if is_slurm and "MASTER_PORT" not in environment and "SLURM_JOB_ID" in environment:
        # Jobs that share a node, and steps of one job at once, need ports of their own; below those that Linux lends.
        own = 10 * int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
        port = str(20000 + own % 10000)
    return address, port


def choose_device(asked: str, *, local_rank: int) -> torch.device:
    """`auto`, `cuda` or `cpu` ─► a torch device.

    Raises:
        DeviceError: a GPU was asked for and there is none, or there is one that torch cannot use: never a silent
            run on the CPU; or there are fewer than processes.
    """
    if asked not in ("auto", "cuda", "cpu"):
        raise DeviceError(f"--device {asked}: give auto, cuda or cpu")
    if asked == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if count == 1:  # of its own: srun --gpus-per-task shows no other (two processes on one GPU, NCCL refuses)
            return torch.device("cuda", 0)
        if local_rank >= count:
            raise DeviceError(
                f"process {local_rank} of this node (from 0) has no GPU of its own: there are {count}. Start one a GPU"
            )
        return torch.device("cuda", local_rank)
    if asked == "auto" and not Path("/proc/driver/nvidia/version").exists():
        return torch.device("cpu")
    raise DeviceError(
        f"there is no GPU that torch {torch.__version__} (CUDA {torch.version.cuda}) can use: "
        "`python -m launch.doctor` says why; `--device cpu` runs on the CPU"
    )


@dataclass(frozen=True)
class World:
    """All processes of a run, seen from one."""

    place: Place
    device: torch.device
    # Flags travel over gloo, so that asking for them never waits for the GPU.
    control: Any = None
    timeout: datetime.timedelta = datetime.timedelta(minutes=30)

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.place.rank == 0

    def barrier(self) -> None:
        """Waits for all."""
        dist.barrier(group=self.control)

    def any(self, flag: bool) -> bool:
        """True on every process if `flag` is on one."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def total(self, count: int) -> int:
        """Sum over all processes."""
        counts = torch.tensor(count)
        dist.all_reduce(counts, group=self.control)
        return int(counts)

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value by rank, on every process."""
        values: list[Any] = [None] * self.place.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over all processes, in place; on the device."""
        dist.all_reduce(values)
        return values.div_(self.place.size)

    def close(self) -> None:
        """Leaves the group; without it a process may abort on exit (reference: DeepSpeed's launcher, rc -6)."""
        dist.destroy_process_group()


def start_world(asked_device: str, *, timeout_minutes: float = 30) -> World:
    """Joins the process group. Call it before anything imports deepspeed: its accelerator is chosen at import.

    Raises:
        DeviceError: see `choose_device`.
        ValueError: several nodes, and nothing says where they meet.
        MeetingError: they do not meet there.
    """
    place = place_from(os.environ)
    address, port = meeting_point(os.environ, place)
    device = choose_device(asked_device, local_rank=place.local_rank)
    index = place.local_rank if device.index is None else device.index  # of the GPU: DeepSpeed takes LOCAL_RANK for it
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.size), LOCAL_RANK=str(index))
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=port, DS_ACCELERATOR=device.type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_size))
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        if place.size == 1:  # alone it has nobody to meet, and takes no port from other runs on the machine
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, timeout=timeout)
    except dist.DistNetworkError as error:
        raise MeetingError(
            f"the processes cannot meet at {address}:{port}: {str(error).splitlines()[0]} If another run on this "
            "machine has that port, give another: deepspeed --master_port, torchrun --master-port, or MASTER_PORT"
        ) from error
    return World(place, device, dist.new_group(backend="gloo", timeout=timeout), timeout)
