"""Ranks find one another by the launcher's environment, and agree on a few things together.

environment, device ─► RankInfo ─► World

world = start_world("auto")          # under deepspeed, torchrun, srun or plain python
world.check_same({"shards": 12}, "give all nodes the same shards")     # on every rank, or all raise
if world.any(stop_requested): ...    # true on every rank if it is on one
"""

import datetime
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


class DeviceError(ValueError):
    """Failure to use the requested device; the message gives the remedy."""


class MeetingError(RuntimeError):
    """Failure of the ranks to meet, perhaps a passing one: a node is late, a port is taken."""


class DisagreementError(ValueError):
    """An error because ranks differ in what they must have in common; the message has all values and their ranks."""


Facts = Mapping[str, Any]  # values of JSON by name
T = TypeVar("T")

_OTHER_PORT = (
    "If another run has that port, give another: deepspeed --master_port, torchrun --master-port, or MASTER_PORT"
)
_SAME_START = "Give all nodes the same command and the same code"
_SHOWN = 8  # facts that a message lists
LATE_S = 3.0  # that it stays for ranks that are late: without it they would wait for as long as for a node
_READ_S = 10.0  # that rank 0, which keeps the store, waits for the others to read why all end
_REPORT_S = 5.0  # that a rank which has failed tries to reach the others
_POLL_S = 0.05
_has_come = False  # whether this process has been at the store, where the others hear of its end by themselves


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
        everybody = self.gather((socket.gethostname(), _differing(first, facts)))
        if text := _describe_differences(first, everybody):
            raise DisagreementError(f"the processes differ: {text}. {remedy}")

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average a tensor of the device over all ranks, in place."""
        dist.all_reduce(values)
        return values.div_(self.ranks.size)

    def close(self) -> None:
        """Leave the group; a process that does not may abort on exit (DeepSpeed's launcher then reports -6)."""
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
    global _has_come
    _has_come = True
    try:
        if ranks.size == 1:  # a single rank takes no port from other runs on the machine
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        else:
            if keeps_store:
                store, _, _ = next(rendezvous("env://", timeout=timeout))
                store.set_timeout(timeout)
            else:
                store = _store(address, port, ranks, timeout)
                _meet(dist.PrefixStore("mae3d", store), ranks, common, f"{address}:{port}")
            group_store = dist.PrefixStore(f"default_pg {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            dist.init_process_group(backend, timeout=timeout, store=group_store, rank=ranks.rank, world_size=ranks.size)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise MeetingError(
            f"the ranks cannot meet at {address}:{port}: {' '.join(str(error).split())} {_OTHER_PORT}"
        ) from error
    world = World(ranks, device, dist.new_group(backend="gloo", timeout=timeout), timeout)
    if keeps_store:
        try:
            world.check_same(common, f"{_SAME_START}. {_OTHER_PORT}")
        except DisagreementError:
            world.close()
            raise
    return world


def report_failure(message: str) -> None:
    """Let the ranks that wait for this one know why it does not come; nothing if it has come, or is alone."""
    if _has_come:
        return
    with suppress(Exception):  # nobody is there
        ranks = rank_info(os.environ)
        if ranks.size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun ends them itself
            return
        tcp_store = _store(*meeting_point(os.environ, ranks), ranks, datetime.timedelta(seconds=_REPORT_S))
        store = dist.PrefixStore("mae3d", tcp_store)
        failure = {"rank": ranks.rank, "host": socket.gethostname(), "message": message}
        store.set("failure", json.dumps(failure))
        store.add("read", 1)
        _wait_for_readers(store, ranks)


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether a collective failed because another rank is gone: gloo raises plain RuntimeErrors."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        words in text
        for words in ("connection closed by peer", "connection reset by peer", "timed out waiting", "gloo")
    )


def _meet(store: dist.Store, ranks: RankInfo, facts: Facts, where: str) -> None:
    """Compare the facts of all ranks over the store; all raise, or none.

    It works where no group can be made: among processes of two runs, with other devices, or of other numbers. Each rank
    compares with rank 0, which collects what differs and passes judgement.

    Raises:
        DisagreementError: the facts differ.
        MeetingError: another process has come as this rank, so that at least one of them is of another run; or a rank
            has failed and reported it.
        dist.DistStoreError: a rank does not come.
    """

    timeout: datetime.timedelta = store.timeout  # type: ignore[attr-defined]  # missing in torch's stubs

    def get(key: str, rank: int) -> str:
        """Wait for a value that a rank sets, or for the message of one that has failed."""
        end = time.monotonic() + timeout.total_seconds()
        while not store.check([key]):
            if store.check(["failure"]):
                failure = json.loads(store.get("failure"))
                store.add("read", 1)
                _wait_for_readers(store, ranks)
                raise MeetingError(
                    f"rank {failure['rank']} ({failure['host']}) failed before the ranks met: {failure['message']}"
                )
            if time.monotonic() > end:
                raise dist.DistStoreError(f"rank {rank} has not come within {timeout}.")
            time.sleep(_POLL_S)
        return store.get(key).decode()

    if store.add(f"came as rank {ranks.rank}", 1) > 1:
        raise MeetingError(f"another process has met at {where} as rank {ranks.rank}. {_OTHER_PORT}")
    host = socket.gethostname()
    if ranks.rank == 0:
        store.set("first", json.dumps(facts, default=str))
        others = [json.loads(get(f"rank {rank}", rank)) for rank in range(1, ranks.size)]
        text = _describe_differences(facts, [(host, {}), *((other["host"], other["facts"]) for other in others)])
        store.set("judgement", text)
    else:
        mine = _differing(json.loads(get("first", 0)), facts)
        store.set(f"rank {ranks.rank}", json.dumps({"host": host, "facts": mine}, default=str))
        text = get("judgement", 0)
        store.add("read", 1)
    if not text:
        return
    store.add("read", int(ranks.rank == 0))
    _wait_for_readers(store, ranks)
    if ranks.rank == 0:
        time.sleep(LATE_S)
    raise DisagreementError(
        f"the processes that meet at {where} have not been started alike: {text}. {_SAME_START}. {_OTHER_PORT}"
    )


def _store(address: str, port: str, ranks: RankInfo, timeout: datetime.timedelta) -> dist.TCPStore:
    """Return the store of all ranks, which rank 0 keeps; it does not wait for them."""
    return dist.TCPStore(
        address, int(port), ranks.size, ranks.rank == 0, timeout, wait_for_workers=False, multi_tenant=True
    )


def _wait_for_readers(store: dist.Store, ranks: RankInfo) -> None:
    """Keep the store, on rank 0, until all ranks have read why they end."""
    if ranks.rank > 0:
        return
    end = time.monotonic() + _READ_S
    while store.add("read", 0) < ranks.size and time.monotonic() < end:
        time.sleep(_POLL_S)


def _differing(first: Facts, mine: Facts) -> dict[str, Any]:
    """Return those of my facts that differ from rank 0's; None for one that I lack."""
    names = [*first, *(name for name in mine if name not in first)]
    texts = [{name: json.dumps(value, default=str) for name, value in facts.items()} for facts in (first, mine)]
    return {name: mine.get(name) for name in names if texts[0].get(name) != texts[1].get(name)}


def _describe_differences(first: Facts, everybody: Sequence[tuple[str, Facts]]) -> str:
    """Return all facts that differ with their values and ranks; "" if none does.

    Args:
        first: rank 0's facts.
        everybody: host and `_differing` of each rank, by rank.
    """
    lines = []
    names = dict.fromkeys(name for _, differing in everybody for name in differing)
    for name in list(names)[:_SHOWN]:
        ranks_of: dict[str, list[int]] = {}
        for rank, (_, differing) in enumerate(everybody):
            ranks_of.setdefault(repr(differing.get(name, first.get(name))), []).append(rank)
        values = (f"{value} on {_ranks_in_words(ranks, everybody)}" for value, ranks in ranks_of.items())
        lines.append(f"{name}: {', '.join(values)}")
    more = len(names) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def _ranks_in_words(ranks: Sequence[int], everybody: Sequence[tuple[str, Facts]]) -> str:
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    numbers = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    hosts = list(dict.fromkeys(everybody[rank][0] for rank in ranks))
    return f"rank{'s' if len(ranks) > 1 else ''} {numbers} ({hosts[0]}{', …' if len(hosts) > 1 else ''})"
