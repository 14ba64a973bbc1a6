"""Ranks meet at a store before they are a group: they compare what they have in common, and report failures.

environment ─► RankInfo, address; facts of all ranks ─► none, or an error on every rank

ranks = rank_info(os.environ)
store = come(*meeting_point(os.environ, ranks), ranks, {"shards": 12}, timeout)     # on every rank, or all raise
"""

import datetime
import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from mae3d.io.console import output_is_lost


class MeetingError(RuntimeError):
    """Failure of the ranks to meet, perhaps a passing one: a node is late, a port is taken."""


class DisagreementError(ValueError):
    """An error because ranks differ in what they must have in common; the message has all values and their ranks."""


Facts = Mapping[str, Any]  # values of JSON by name

OTHER_PORT = (
    "If another run has that port, give another: deepspeed --master_port, torchrun --master-port, or MASTER_PORT"
)
SAME_START = "Give all nodes the same command and the same code"
_SHOWN = 8  # facts that a message lists
LATE_S = 3.0  # that it stays for ranks that are late: without it they would wait for as long as for a node
_READ_S = 10.0  # that rank 0, which keeps the store, waits for the others to read why all end
_REPORT_S = 5.0  # that a rank which has failed tries to reach the others
_POLL_S = 0.05
_has_come = False  # whether this process was at the store, where the others notice its end by themselves


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
        raise ValueError(
            "the ranks lie on several nodes and MASTER_ADDR is not set: export the name of rank 0's node "
            "(under mpirun: -x MASTER_ADDR=NODE)"
        )
    if is_slurm and "MASTER_PORT" not in environment and "SLURM_JOB_ID" in environment:
        # Jobs that share a node, and steps of one job at once, need different ports, below Linux's ephemeral ones.
        step = 10 * int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
        port = str(20000 + step % 10000)
    return address, port


def come(address: str, port: str, ranks: RankInfo, facts: Facts, timeout: datetime.timedelta) -> dist.TCPStore:
    """Return the store of all ranks once they have met there; errors as `meet`, or dist.DistNetworkError."""
    global _has_come
    _has_come = True
    store = open_store(address, port, ranks, timeout)
    meet(dist.PrefixStore("mae3d", store), ranks, facts, f"{address}:{port}")
    return store


def meet(store: dist.Store, ranks: RankInfo, facts: Facts, where: str) -> None:
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
            if output_is_lost():
                raise MeetingError(f"nobody reads the output of rank {ranks.rank} any more: its launcher has gone")
            if time.monotonic() > end:
                raise dist.DistStoreError(f"rank {rank} has not come within {timeout}.")
            time.sleep(_POLL_S)
        return store.get(key).decode()

    if store.add(f"came as rank {ranks.rank}", 1) > 1:
        raise MeetingError(f"another process has met at {where} as rank {ranks.rank}. {OTHER_PORT}")
    host = socket.gethostname()
    if ranks.rank == 0:
        store.set("first", json.dumps(facts, default=str))
        others = [json.loads(get(f"rank {rank}", rank)) for rank in range(1, ranks.size)]
        text = describe_differences(facts, [(host, {}), *((other["host"], other["facts"]) for other in others)])
        store.set("judgement", text)
    else:
        mine = differing_facts(json.loads(get("first", 0)), facts)
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
        f"the processes that meet at {where} have not been started alike: {text}. {SAME_START}. {OTHER_PORT}"
    )


def open_store(address: str, port: str, ranks: RankInfo, timeout: datetime.timedelta) -> dist.TCPStore:
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


def differing_facts(first: Facts, mine: Facts) -> dict[str, Any]:
    """Return those of my facts that differ from rank 0's; None for one that I lack."""
    names = [*first, *(name for name in mine if name not in first)]
    texts = [{name: json.dumps(value, default=str) for name, value in facts.items()} for facts in (first, mine)]
    return {name: mine.get(name) for name in names if texts[0].get(name) != texts[1].get(name)}


def describe_differences(first: Facts, everybody: Sequence[tuple[str, Facts]]) -> str:
    """Return all facts that differ with their values and ranks; "" if none does.

    Args:
        first: rank 0's facts.
        everybody: host and `differing_facts` of each rank, by rank.
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


def report_failure(message: str) -> None:
    """Let the ranks that wait for this one know why it does not come; nothing if it has come, or is alone."""
    if _has_come:
        return
    with suppress(Exception):  # nobody is there
        ranks = rank_info(os.environ)
        if ranks.size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun ends them itself
            return
        tcp_store = open_store(*meeting_point(os.environ, ranks), ranks, datetime.timedelta(seconds=_REPORT_S))
        store = dist.PrefixStore("mae3d", tcp_store)
        failure = {"rank": ranks.rank, "host": socket.gethostname(), "message": message}
        store.set("failure", json.dumps(failure))
        store.add("read", 1)
        _wait_for_readers(store, ranks)
