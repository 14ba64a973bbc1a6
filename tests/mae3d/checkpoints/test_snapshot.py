"""A snapshot's memory: pinned once, let go before it is given back, read when the copies have arrived."""

import logging
from typing import Any

import pytest
import torch

from mae3d.checkpoints.format import Slice
from mae3d.checkpoints.snapshot import Snapshot


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]


class Cuda:
    """The parts of torch.cuda that pin memory and wait; in the order in which they are called."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[Any] = []
        self.status = status

    def cudart(self) -> "Cuda":
        return self

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        self.calls.append(("pin", pointer, size))
        return self.status

    def cudaHostUnregister(self, pointer: int) -> int:
        self.calls.append(("unpin", pointer))
        return 0

    def Event(self, *, blocking: bool) -> "Cuda":
        assert blocking
        return self

    def record(self) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("wait")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    monkeypatch.setattr("torch.cuda.cudart", cuda.cudart)
    monkeypatch.setattr("torch.cuda.Event", cuda.Event)
    return cuda


def slices_of(*values: float, size: int = 3, on_gpu: bool = True) -> list[Slice]:
    tensors = [torch.full((size,), value) for value in values]
    if on_gpu:
        tensors = [tensor.as_subclass(OnGpu) for tensor in tensors]
    return [Slice(f"p{i}", 0, size, {"master": tensor}) for i, tensor in enumerate(tensors)]


def test_memory_is_pinned_once_for_a_size_and_let_go_before_it_is_given_back(cuda: Cuda) -> None:
    snapshot = Snapshot()
    for values in ((1.0, 2.0), (3.0, 4.0)):
        copies = snapshot.take(slices_of(*values))
        snapshot.wait()
        assert [float(copy.tensors["master"].sum()) / 3 for copy in copies] == list(values)
    pointer = snapshot._buffer.data_ptr()
    assert cuda.calls == [("pin", pointer, 24), "record", "wait", "record", "wait"]
    cuda.calls.clear()
    snapshot.take(slices_of(5.0))
    assert cuda.calls[:2] == ["wait", ("unpin", pointer)]  # copies on their way would end in memory of others
    assert cuda.calls[2:] == [("pin", snapshot._buffer.data_ptr(), 12), "record"]
    pointer = snapshot._buffer.data_ptr()
    cuda.calls.clear()
    snapshot.close()
    assert cuda.calls == ["wait", ("unpin", pointer)]
    assert len(snapshot._buffer) == 0


def test_memory_that_cannot_be_pinned_serves_as_well(cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    cuda.status = 2
    snapshot = Snapshot()
    with caplog.at_level(logging.WARNING):
        (copy,) = snapshot.take(slices_of(7.0))
    assert "CUDA error 2" in caplog.text
    assert "ulimit -l unlimited" in caplog.text
    assert copy.tensors["master"].tolist() == [7.0] * 3
    snapshot.close()
    assert not [call for call in cuda.calls if call[0] == "unpin"]


def test_a_cpus_slices_need_no_cuda(cuda: Cuda) -> None:
    snapshot = Snapshot()
    slices = slices_of(1.0, 2.0, on_gpu=False)
    copies = snapshot.take(slices)
    snapshot.wait()
    slices[0].tensors["master"].zero_()  # the next step
    assert copies[0].tensors["master"].tolist() == [1.0] * 3
    snapshot.close()
    assert cuda.calls == []
