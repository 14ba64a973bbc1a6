"""mae3d.distributed and mae3d.meeting: every launcher's ranks, their meeting point, and the device that each takes."""

import datetime
import pickle
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mae3d import meeting
from mae3d.distributed import DeviceError, World, choose_device, start_world
from mae3d.meeting import DisagreementError, MeetingError, RankInfo, meeting_point, rank_info
from tests.support import launch
from tests.support.ranks import run_ranks

# What a process of the second node sees of `srun` with two tasks on each of two nodes and one on a third.
SRUN = {
    "SLURM_JOB_ID": "3141592",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[07-08],login1",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
# The shell of a batch script, or an interactive one, in an allocation for eight tasks.
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
INTERACTIVE = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, RankInfo(0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, RankInfo(3, 8, 1, 2)),  # deepspeed
        (
            {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            RankInfo(3, 8, 1, 2),
        ),  # torchrun
        (SRUN, RankInfo(3, 5, 1, 2)),
        (SRUN | {"SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}, RankInfo(4, 5, 0, 1)),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "2"}, RankInfo(0, 2, 0, 2)),
        (SRUN | MPIRUN, RankInfo(3, 4, 1, 2)),
        (ALLOCATION, RankInfo(0, 1, 0, 1)),
        (ALLOCATION | INTERACTIVE, RankInfo(0, 1, 0, 1)),
    ],
)
def test_every_launcher_is_understood(environment: dict[str, str], ranks: RankInfo) -> None:
    assert rank_info(environment) == ranks


def test_fault_24_a_gpu_that_cannot_be_used_is_an_error_never_a_silent_cpu_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)  # the kernel's driver is there
    with pytest.raises(DeviceError, match=r"mae3d doctor"):
        choose_device("auto", local_rank=0)
    assert choose_device("cpu", local_rank=0).type == "cpu"
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    assert choose_device("auto", local_rank=0).type == "cpu"
    with pytest.raises(DeviceError, match="--device cpu"):
        choose_device("cuda", local_rank=0)
    with pytest.raises(DeviceError, match="give auto, cuda or cpu"):
        choose_device("gpu", local_rank=0)


def test_each_rank_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", local_rank=3) == torch.device("cuda", 3)


def test_a_rank_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto", local_rank=3) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=r"rank 3 .* has 2"):
        choose_device("auto", local_rank=3)


@pytest.mark.parametrize(
    ("environment", "point"),
    [
        ({}, ("127.0.0.1", "29500")),
        (SRUN, ("gpu07", "25921")),
        (SRUN | {"SLURM_STEP_NODELIST": "rack[3-5,9]n[1-2],x"}, ("rack3n1", "25921")),
        (SRUN | {"SLURM_STEP_NODELIST": "a-1.b,c"}, ("a-1.b", "25921")),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "5", "SLURM_NODEID": "0"}, ("127.0.0.1", "25921")),
        (SRUN | {"MASTER_ADDR": "host", "MASTER_PORT": "1234"}, ("host", "1234")),
        (MPIRUN | {"MASTER_ADDR": "host"}, ("host", "29500")),
    ],
)
def test_ranks_meet_at_the_launchers_address_or_slurms(environment: dict[str, str], point: tuple[str, str]) -> None:
    assert meeting_point(environment, rank_info(environment)) == point


@pytest.mark.parametrize("environment", [MPIRUN, {**SRUN, "SLURM_STEP_NODELIST": ""}])
def test_nodes_without_an_address_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="MASTER_ADDR is not set"):
        meeting_point(environment, rank_info(environment))


def test_jobs_and_their_steps_have_different_ports() -> None:
    steps = [
        SRUN | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in range(70, 90) for step in range(5)
    ]
    ports = {int(meeting_point(step, rank_info(step))[1]) for step in steps}
    assert len(ports) == len(steps)
    assert min(ports) >= 20000
    assert max(ports) < 32768  # where Linux begins to lend ports to clients


def test_a_port_that_another_run_has_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "DS_ACCELERATOR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}.get(name, "0"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(MeetingError, match=r"cannot meet at 127\.0\.0\.1:.*another: deepspeed --master_port"):
            start_world("cpu")


ALIKE = {"folder": "/runs/a", "code": "mae3d 1, sources 3f2a", "optim.lr": 1e-3, "data.area": (0.5, 1.0)}


def meet(*facts: dict[str, Any], ranks: list[int] | None = None, size: int | None = None) -> list[str]:
    """Return what each process hears when all meet at one store, which is theirs before there is any group."""
    store, heard = dist.HashStore(), [""] * len(facts)
    store.set_timeout(datetime.timedelta(seconds=5))

    def start(process: int, rank: int) -> None:
        try:
            meeting.meet(store, RankInfo(rank, size or len(facts)), facts[process], "node-a:29500")
        except (DisagreementError, MeetingError) as error:
            heard[process] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=start, args=pair) for pair in enumerate(ranks or range(len(facts)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(meeting, "LATE_S", 0.0)
    return socket.gethostname()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"optim.lr": 9e-3}, "optim.lr: 0.001 on ranks 0, 2-3 ({host}), 0.009 on rank 1 ({host})"),
        (
            {"code": "mae3d 1, sources 77"},
            "code: 'mae3d 1, sources 3f2a' on ranks 0, 2-3 ({host}), 'mae3d 1, sources 77'",
        ),
        ({"folder": "/runs/b"}, "folder: '/runs/a' on ranks 0, 2-3 ({host}), '/runs/b' on rank 1 ({host})"),
        ({"device": "cuda"}, "device: None on ranks 0, 2-3 ({host}), 'cuda' on rank 1"),
        ({f"s{i}": i for i in range(20)}, "s7: None on ranks 0, 2-3 ({host}), 7 on rank 1 ({host}); and 12 more"),
    ],
)
def test_fault_42_whatever_differs_ends_all_ranks_and_is_named_with_its_ranks(
    host: str, other: dict[str, Any], told: str
) -> None:
    heard = meet(ALIKE, ALIKE | other, ALIKE, ALIKE)
    assert len(set(heard)) == 1
    assert heard[0].startswith("DisagreementError: the processes that meet at node-a:29500 have not been started alike")
    assert told.format(host=host) in heard[0]


def test_fault_42_ranks_that_were_started_alike_hear_nothing(host: str) -> None:
    assert meet(ALIKE, ALIKE | {"data.area": [0.5, 1.0]}, ALIKE) == ["", "", ""]


def test_fault_42_processes_of_two_runs_at_one_port_all_stop(host: str) -> None:
    """One run's first rank, and the second ranks of both, in whichever order they come."""
    heard = meet(ALIKE, ALIKE | {"folder": "/runs/b"}, ALIKE, ranks=[0, 1, 1], size=2)
    assert "folder: '/runs/a' on rank 0" in heard[0] or not heard[0]  # its own second rank was the first to come
    late = [text for text in heard if "another process has met at node-a:29500 as rank 1" in text]
    assert len(late) == 1
    assert "deepspeed --master_port, torchrun --master-port, or MASTER_PORT" in late[0]
    assert heard[1]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rank_that_fails_before_it_joins_ends_the_others_soon_who_name_it_and_why(
    host: str, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever comes first: those that wait, or the one that has failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    heard: list[str] = []

    def wait(rank: int) -> None:
        place = RankInfo(rank, 3)
        store = meeting.open_store("127.0.0.1", str(port), place, datetime.timedelta(seconds=20))
        try:
            meeting.meet(dist.PrefixStore("mae3d", store), place, ALIKE, "node-a:29500")
        except MeetingError as error:
            heard.append(str(error))

    threads = [threading.Thread(target=wait, args=(rank,)) for rank in range(3) if rank != failing]
    for thread in threads:
        thread.start()
    for name, value in (("RANK", failing), ("WORLD_SIZE", 3), ("LOCAL_RANK", 0), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(meeting, "_has_come", False)
    with pytest.raises(DeviceError):
        start_world("cuda")
    for thread in threads:
        thread.join(10)
    assert len(heard) == 2
    assert set(heard) == {next(iter(heard))}
    assert f"rank {failing} ({host}) failed before the ranks met: torch" in heard[0]
    assert "can use no GPU here" in heard[0]


def test_a_rank_that_never_comes_is_named(host: str) -> None:
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(seconds=0.2))
    with pytest.raises(dist.DistStoreError, match=r"rank 1 has not come within 0:00:00\.2"):
        meeting.meet(store, RankInfo(0, 2), ALIKE, "node-a:29500")


def started_differently(rank: int) -> str:
    meeting.LATE_S = 0.0
    with pytest.raises(DisagreementError) as refused:
        start_world("cpu", facts=lambda: {"optim.lr": rank})
    return str(refused.value)


def same_later(world: World) -> str:
    world.check_same({"samples": 3}, "")
    with pytest.raises(DisagreementError) as refused:
        world.check_same({"samples": 3 + world.ranks.rank}, "Restore them")
    return str(refused.value)


def test_fault_42_real_ranks_stop_before_there_is_a_group_and_after(host: str) -> None:
    ranks = [launch.call(started_differently, rank, env=place) for rank, place in enumerate(launch.places(2))]
    first, second = [launch.result_of(rank, timeout=60) for rank in ranks]
    assert first == second
    assert f"optim.lr: 0 on rank 0 ({host}), 1 on rank 1 ({host})" in first
    later = run_ranks(same_later, world=2)
    assert later == 2 * [f"the processes differ: samples: 3 on rank 0 ({host}), 4 on rank 1 ({host}). Restore them"]


def test_rank_0_makes_a_call_and_all_ranks_have_its_result_or_its_error() -> None:
    said: list[Any] = []

    class Told(World):
        def share(self, value: Any) -> Any:
            said.append(value) if self.is_first else None
            return pickle.loads(pickle.dumps(said[-1]))  # as it travels

    class Refused(ValueError):
        def __init__(self, message: str, what: object):  # which pickle cannot make again
            super().__init__(message)

    def refuse() -> None:
        raise Refused("no such model", object())

    def fail() -> None:
        raise FileNotFoundError(2, "No such file", Path("x.pth"))

    first, second = (Told(RankInfo(rank, 2), torch.device("cpu")) for rank in range(2))
    assert (first.on_first(lambda: 7), second.on_first(refuse)) == (7, 7)
    for call, kind, text in ((refuse, ValueError, "no such model"), (fail, FileNotFoundError, "No such file")):
        for world in (first, second):
            with pytest.raises(kind, match=text):
                world.on_first(call)
