"""Ranks find one another by the launcher's environment, and agree on a few things together.

environment, device ─► RankInfo ─► World

world = start_world("auto")          # under deepspeed, torchrun, srun or plain python
world.check_same({"shards": 12}, "give all nodes the same shards")     # on every rank, or all raise
if world.any(stop_requested): ...    # true on every rank if it is on one
"""

import datetime
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mae3d.meeting import (
    OTHER_PORT,
    SAME_START,
    DisagreementError,
    Facts,
    MeetingError,
    RankInfo,
    come,
    describe_differences,
    differing_facts,
    meeting_point,
    rank_info,
    report_failure,
)

T = TypeVar("T")
Closable = TypeVar("Closable", bound="Closes")


class Closes(Protocol):
    """A thing with an end."""

    def close(self) -> None:
        """Release what it holds."""


class DeviceError(ValueError):
    """Failure to use the requested device; the message gives the remedy."""


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
        "`mae3d doctor`, or run on the CPU with `--device cpu`"
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

    def on_first(self, call: Callable[[], T]) -> T:
        """Return, on every rank, what a call returns on rank 0, which alone makes it; all ranks call this.

        Raises:
            ValueError: the call raised one; all ranks raise it.
            OSError: likewise.
        """
        value: Any = None
        problem: Exception | None = None
        portable: Exception | None = None
        if self.is_first:
            try:
                value = call()
            except ValueError as error:
                problem, portable = error, ValueError(str(error))
            except OSError as error:
                name = str(error.filename) if error.filename else None
                problem, portable = error, OSError(error.errno, error.strerror or str(error), name)
        value, portable = self.share((value, portable))
        if portable is not None:
            raise problem or portable
        return cast(T, value)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on every rank."""
        values: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def check_same(self, facts: Facts, remedy: str) -> None:
        """Return if the facts are the same on all ranks; a collective.

        Raises:
            DisagreementError: they differ, on all ranks; the message ends with the remedy.
        """
        first = self.share(facts if self.is_first else None)
        everybody = self.gather((socket.gethostname(), differing_facts(first, facts)))
        if text := describe_differences(first, everybody):
            raise DisagreementError(f"the processes differ: {text}. {remedy}")

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average a tensor of the device over all ranks, in place."""
        dist.all_reduce(values)
        return values.div_(self.ranks.size)

    @property
    def hangs_alone(self) -> bool:
        """True if a rank that fails alone must not wait for its GPU: there may be kernels that wait for other ranks."""
        return self.device.type == "cuda" and self.ranks.size > 1

    @contextmanager
    def closing(self, thing: Closable) -> Iterator[Closable]:
        """Yield a thing and close it at the end, but not after an error that leaves this rank alone (`hangs_alone`).

        DeepSpeed's engine and a loader wait for their GPU before they release its memory.
        """
        try:
            yield thing
        except BaseException:
            if not self.hangs_alone:
                thing.close()
            raise
        thing.close()

    def close(self) -> None:
        """Leave the group; a process that does not may abort on exit (DeepSpeed's launcher then reports -6).

        All ranks do, and NCCL waits until they have: it frees a communicator for all ranks of a node together.
        """
        dist.destroy_process_group()


def start_world(requested_device: str, *, timeout_minutes: float = 30, facts: Callable[[], Facts] = dict) -> World:
    """Join the process group; to be called before deepspeed is imported, which chooses its accelerator then.

    Args:
        requested_device: `auto`, `cuda` or `cpu`.
        timeout_minutes: Longest wait of a rank for another.
        facts: Returns what all ranks have in common, if they have been started alike.

    Raises:
        DisagreementError: They have not, on all ranks, before the group is made: it would hang.
        DeviceError: The device cannot be used; see `choose_device`.
        ValueError: There are two nodes or more, and no variable names an address.
        MeetingError: The ranks do not meet at their address.
    """
    ranks = rank_info(os.environ)
    address, port = meeting_point(os.environ, ranks)
    try:
        device = choose_device(requested_device, local_rank=ranks.local_rank)
        common = {**facts(), "device": device.type, "number of processes": ranks.size} if ranks.size > 1 else {}
    except (ValueError, OSError) as error:
        report_failure(str(error))
        raise
    gpu = ranks.local_rank if device.index is None else device.index  # DeepSpeed takes LOCAL_RANK for the GPU's number
    os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.size), LOCAL_RANK=str(gpu))
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=port, DS_ACCELERATOR=device.type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_size))
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # torchrun's own store outlives the ranks: those that it starts again would find what the last ones have left, such
    # as addresses at which nobody listens any more.
    keeps_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        if ranks.size == 1:  # a single rank takes no port from other runs on the machine
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        else:
            if keeps_store:
                store, _, _ = next(rendezvous("env://", timeout=timeout))
                store.set_timeout(timeout)
            else:
                store = come(address, port, ranks, common, timeout)
            group_store = dist.PrefixStore(f"default_pg {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            dist.init_process_group(backend, timeout=timeout, store=group_store, rank=ranks.rank, world_size=ranks.size)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise MeetingError(
            f"the ranks cannot meet at {address}:{port}: {' '.join(str(error).split())} {OTHER_PORT}"
        ) from error
    world = World(ranks, device, dist.new_group(backend="gloo", timeout=timeout), timeout)
    if keeps_store:
        try:
            world.check_same(common, f"{SAME_START}. {OTHER_PORT}")
        except DisagreementError:
            world.close()
            raise
    return world


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether a collective failed because another rank is gone: gloo raises plain RuntimeErrors."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        words in text
        for words in ("connection closed by peer", "connection reset by peer", "timed out waiting", "gloo")
    )
