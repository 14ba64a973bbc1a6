"""The launcher's environment ─► this process's place among the others, and the few things that they agree on together.

world = start_world("auto")          # under deepspeed, torchrun, srun or plain python
if world.any(stop_requested): ...    # true on every rank if it is on one
"""

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class DeviceError(ValueError):
    """The device asked for cannot be used; the message gives the remedy."""


@dataclass(frozen=True)
class Place:
    """Where a launcher put this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place_from(environment: Mapping[str, str]) -> Place:
    """Reads the variables of deepspeed, torchrun or srun; without any: a single process."""
    if "RANK" in environment:  # deepspeed says LOCAL_SIZE, torchrun LOCAL_WORLD_SIZE
        local_size = environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", "1"))
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        local_size = environment.get("SLURM_NTASKS_PER_NODE", "1").partition("(")[0]
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return Place()
    rank, size, local_rank = (int(environment[name]) for name in names)
    return Place(rank, size, local_rank, int(local_size))


def choose_device(asked: str, *, local_rank: int) -> torch.device:
    """`auto`, `cuda` or `cpu` ─► a torch device.

    Raises:
        DeviceError: a GPU was asked for and there is none, or there is one that torch cannot use: never a silent
            run on the CPU.
    """
    if asked not in ("auto", "cuda", "cpu"):
        raise DeviceError(f"--device {asked}: give auto, cuda or cpu")
    if asked == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
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
        ValueError: several nodes, and nothing says where they meet; or they cannot meet there.
    """
    place = place_from(os.environ)
    if place.size > place.local_size and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            "several nodes, but MASTER_ADDR is not set: export the first node's name, as in "
            "MASTER_ADDR=$(scontrol show hostnames | head -n 1)"
        )
    device = choose_device(asked_device, local_rank=place.local_rank)
    os.environ["DS_ACCELERATOR"] = device.type
    for name, value in (("RANK", place.rank), ("WORLD_SIZE", place.size), ("LOCAL_RANK", place.local_rank)):
        os.environ[name] = str(value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
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
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(
            f"the processes cannot meet at {where}: {str(error).splitlines()[0]} If another run on this machine has "
            "that port, give another: deepspeed --master_port, torchrun --master-port, or MASTER_PORT"
        ) from error
    return World(place, device, dist.new_group(backend="gloo", timeout=timeout))
