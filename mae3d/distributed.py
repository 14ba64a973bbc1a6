"""Ranks find one another by the launcher's environment, and agree on a few things together.

environment, device ─► RankInfo ─► World

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
    """Failure to use the requested device; the message gives the remedy."""


class MeetingError(RuntimeError):
    """Failure of the ranks to meet, perhaps a passing one: a node is late, a port is taken."""


@dataclass(frozen=True)
class RankInfo:
    """The rank of this process among all ranks and among those of its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def rank_info(environment: Mapping[str, str]) -> RankInfo:
    """Read the variables of deepspeed, torchrun, mpirun or srun; without any, the process is alone.

    Only processes that srun started belong together: the shell of an allocation has SLURM_NTASKS and SLURM_PROCID too,
    and a plain `python` in it would wait for ranks that nobody starts.
    """
    if "RANK" in environment:  # deepspeed sets LOCAL_SIZE, torchrun LOCAL_WORLD_SIZE
        local_size = environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", "1"))
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "OMPI_COMM_WORLD_RANK" in environment:  # before SLURM's: mpirun is a step of one task per node there
        local_size = environment["OMPI_COMM_WORLD_LOCAL_SIZE"]
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    elif "SLURM_STEP_NUM_TASKS" in environment:
        local_size = _tasks_of_node(environment["SLURM_STEP_TASKS_PER_NODE"], int(environment["SLURM_NODEID"]))
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return RankInfo()
    rank, size, local_rank = (int(environment[name]) for name in names)
    return RankInfo(rank, size, local_rank, int(local_size))


def _tasks_of_node(tasks_per_node: str, node: int) -> str:
    """Return a node's count out of SLURM's list, such as "2(x3),1"."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    return [count for count, nodes in runs for _ in range(int(nodes or 1))][node]


def meeting_point(environment: Mapping[str, str], ranks: RankInfo) -> tuple[str, str]:
    """Return address and port at which the ranks meet: the launcher's, else those that SLURM's variables give.

    Raises:
        ValueError: There are two nodes or more, and no variable names an address.
    """
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "29500")
    is_slurm = "SLURM_STEP_NUM_TASKS" in environment
    if not address and ranks.size <= ranks.local_size:
        address = "127.0.0.1"
    elif not address and is_slurm:  # "rack[3-5,9]n[1-2],login1": the first task runs on the first node, rack3n1
        first = re.match(r"([^,[]|\[[^]]*\])*", environment.get("SLURM_STEP_NODELIST", ""))
        address = re.sub(r"\[(\d+)[^]]*\]", r"\1", first[0]) if first else None
    if not address:
        raise ValueError("the ranks lie on several nodes and MASTER_ADDR is not set: export the name of rank 0's node")
    if is_slurm and "MASTER_PORT" not in environment and "SLURM_JOB_ID" in environment:
        # Jobs that share a node, and steps of one job at once, need different ports, below Linux's ephemeral ones.
        step = 10 * int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
        port = str(20000 + step % 10000)
    return address, port


def choose_device(requested: str, *, local_rank: int) -> torch.device:
    """Choose the torch device of a rank.

    Args:
        requested: `auto`, `cuda` or `cpu`.
        local_rank: The rank among those of its node.

    Raises:
        DeviceError: The requested GPU is missing, or torch cannot use the GPU of the machine: the CPU is never taken
            silently; or the node has fewer GPUs than ranks.
    """
    if requested not in ("auto", "cuda", "cpu"):
        raise DeviceError(f"--device {requested}: give auto, cuda or cpu")
    if requested == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if count == 1:  # srun --gpus-per-task shows each rank its GPU only (NCCL refuses two ranks on one GPU)
            return torch.device("cuda", 0)
        if local_rank >= count:
            raise DeviceError(
                f"local rank {local_rank} (from 0) has no GPU, because this node has {count}: start one rank per GPU"
            )
        return torch.device("cuda", local_rank)
    if requested == "auto" and not Path("/proc/driver/nvidia/version").exists():
        return torch.device("cpu")
    raise DeviceError(
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) can use no GPU here: find the reason with "
        "`python -m launch.doctor`, or run on the CPU with `--device cpu`"
    )


@dataclass(frozen=True)
class World:
    """All ranks of a run, seen from one."""

    ranks: RankInfo
    device: torch.device
    # Flags travel over gloo, so that agreeing on them never waits for the GPU.
    control: Any = None
    timeout: datetime.timedelta = datetime.timedelta(minutes=30)

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes the files that are written once."""
        return self.ranks.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)

    def any(self, flag: bool) -> bool:
        """Return True on every rank if `flag` is true on one."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def total(self, count: int) -> int:
        """Sum a count over all ranks."""
        counts = torch.tensor(count)
        dist.all_reduce(counts, group=self.control)
        return int(counts)

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on every rank."""
        values: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average a tensor of the device over all ranks, in place."""
        dist.all_reduce(values)
        return values.div_(self.ranks.size)

    def close(self) -> None:
        """Leave the group; a process that does not may abort on exit (DeepSpeed's launcher then reports -6)."""
        dist.destroy_process_group()


def start_world(requested_device: str, *, timeout_minutes: float = 30) -> World:
    """Join the process group; to be called before deepspeed is imported, which chooses its accelerator then.

    Args:
        requested_device: `auto`, `cuda` or `cpu`.
        timeout_minutes: Longest wait of a rank for another.

    Raises:
        DeviceError: The device cannot be used; see `choose_device`.
        ValueError: There are two nodes or more, and no variable names an address.
        MeetingError: The ranks do not meet at their address.
    """
    ranks = rank_info(os.environ)
    address, port = meeting_point(os.environ, ranks)
    device = choose_device(requested_device, local_rank=ranks.local_rank)
    gpu = ranks.local_rank if device.index is None else device.index  # DeepSpeed takes LOCAL_RANK for the GPU's number
    os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.size), LOCAL_RANK=str(gpu))
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=port, DS_ACCELERATOR=device.type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_size))
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        if ranks.size == 1:  # a single rank takes no port from other runs on the machine
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, timeout=timeout)
    except dist.DistNetworkError as error:
        raise MeetingError(
            f"the ranks cannot meet at {address}:{port}: {str(error).splitlines()[0]} If another run on this "
            "machine has that port, give another: deepspeed --master_port, torchrun --master-port, or MASTER_PORT"
        ) from error
    return World(ranks, device, dist.new_group(backend="gloo", timeout=timeout), timeout)
