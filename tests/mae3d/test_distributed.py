"""mae3d.distributed: every launcher's ranks, their meeting point, and the device that each takes."""

import socket

import pytest
import torch

from mae3d.distributed import DeviceError, MeetingError, RankInfo, choose_device, meeting_point, rank_info, start_world

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
    with pytest.raises(DeviceError, match=r"launch\.doctor"):
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
