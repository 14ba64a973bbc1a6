"""What launchers say about a process's place, and which device it takes."""

import socket

import pytest
import torch

from mae3d.distributed import DeviceError, Place, choose_device, place_from, start_world


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, Place(3, 8, 1, 2)),  # deepspeed
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(3, 8, 1, 2)),  # torchrun
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4(x2)"},
            Place(5, 8, 1, 4),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, Place(0, 1, 0, 1)),
    ],
)
def test_every_launcher_is_understood(environment: dict[str, str], place: Place) -> None:
    assert place_from(environment) == place


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


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", local_rank=3) == torch.device("cuda", 3)


def test_several_nodes_must_know_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "4"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="MASTER_ADDR is not set"):
        start_world("cpu")


def test_a_port_that_another_run_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "DS_ACCELERATOR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}.get(name, "0"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(ValueError, match=r"cannot meet at 127\.0\.0\.1:.*another: deepspeed --master_port"):
            start_world("cpu")
