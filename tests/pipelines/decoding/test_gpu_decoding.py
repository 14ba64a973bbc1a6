"""What DALI hands to torch on a GPU: on which stream, how long it is held; with stand-ins where there is no GPU."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali.backend_impl import DLDeviceType

from pipelines.decoding import clips as clips_module
from pipelines.decoding.clips import MAX_HELD, GpuDecoding, copied_views
from pipelines.decoding.dali import DaliDecoder, JpegGraph
from pipelines.decoding.self_test import _plain_batch

B, T = 2, 8
CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
BATCH = _plain_batch(np.array([[200, 60, 40], [30, 90, 220]]))


class Frames:
    """DALI's output of one view: B * T frames of 4 x 6 pixels, all of them the number of their batch."""

    def __init__(self, number: int):
        self._frames = torch.full((B * T, 4, 6, 3), number, dtype=torch.uint8)

    def as_tensor(self) -> torch.Tensor:
        return self._frames


class Decoder:
    """A DaliDecoder's `run` and `close`."""

    def __init__(self) -> None:
        self.runs: list[tuple[Any, Any]] = []
        self.is_closed = False

    def run(self, stream: Any) -> tuple[Any, tuple[Frames, ...]]:
        self.runs.append((stream, Cuda.current))
        return BATCH, (Frames(len(self.runs)),)

    def close(self) -> None:
        self.is_closed = True


class Event:
    """A CUDA event; `Cuda.done` of those that were recorded have been reached."""

    def record(self, stream: Any) -> None:
        self.number, self.stream = len(Cuda.recorded), stream
        Cuda.recorded.append(self)

    def query(self) -> bool:
        return self.number < Cuda.done

    def synchronize(self) -> None:
        if not self.query():
            Cuda.waited.append(self.number)
            Cuda.done = self.number + 1


class Cuda:
    """The state of all GPUs."""

    current: torch.device | None
    recorded: list[Event]
    waited: list[int]
    done: int


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> GpuDecoding:
    """GpuDecoding for the second GPU, whose batches are made on the CPU."""

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        Cuda.current = device
        yield
        Cuda.current = None

    Cuda.current, Cuda.recorded, Cuda.waited, Cuda.done = None, [], [], 0
    monkeypatch.setattr("torch.cuda.device", current)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: f"the stream of {device}")
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr(clips_module, "copied_views", lambda encoded, outputs, _: copied_views(encoded, outputs, CPU))
    decoder: Any = Decoder()
    return GpuDecoding(decoder, GPU)


def test_outputs_are_requested_on_the_stream_and_the_gpu_that_use_them(decoding: GpuDecoding) -> None:
    decoding.run()
    assert decoding._decoder.runs == [("the stream of cuda:1", GPU)]  # type: ignore[attr-defined]


def test_outputs_are_held_until_their_copy_has_run(decoding: GpuDecoding) -> None:
    outputs = []
    for number in range(1, 8):
        encoded, frames = decoding.run()
        batch = decoding.clips(encoded, frames)
        assert torch.equal(batch, torch.full_like(batch, number))
        outputs.append(weakref.ref(frames[0]))
        del frames
        living = [at for at, one in enumerate(outputs) if one() is not None]
        assert living == list(range(Cuda.done, number))
        assert len(living) <= MAX_HELD
        assert Cuda.recorded[-1].stream == "the stream of cuda:1"
    assert Cuda.waited == list(range(7 - MAX_HELD))  # the host is held up for the oldest alone
    Cuda.done = 7
    encoded, frames = decoding.run()
    decoding.clips(encoded, frames)
    assert len(Cuda.waited) == 7 - MAX_HELD  # copies that have run are waited for no more
    assert [one() for one in outputs] == [None] * 7


def test_the_pipeline_ends_after_the_copies(decoding: GpuDecoding) -> None:
    for _ in range(2):
        decoding.clips(*decoding.run())
    decoding.close()
    assert Cuda.waited == [0, 1]
    assert decoding._decoder.is_closed  # type: ignore[attr-defined]


class OnGpu:
    """A TensorGPU of DALI's, for torch's side of DLPack: 0 is no stream there, 1 is the usual one."""

    def __init__(self) -> None:
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[Any, int]:
        return DLDeviceType.kDLCUDA, 0

    def __dlpack__(self, stream: int | None = None, **_: Any) -> Any:
        self.streams.append(stream)
        return torch.zeros(1).__dlpack__()


@pytest.mark.parametrize(("number", "passed"), [(0, 1), (77, 77)])
def test_torch_lets_dali_know_the_stream_that_reads(monkeypatch: pytest.MonkeyPatch, number: int, passed: int) -> None:
    class Stream:
        cuda_stream = number

    monkeypatch.setattr("torch.cuda.current_stream", lambda *_: Stream())
    tensor = OnGpu()
    torch.from_dlpack(tensor)
    assert tensor.streams == [passed]


def test_outputs_of_this_dali_may_be_held_and_may_come_on_a_stream() -> None:
    decoder = DaliDecoder(lambda: BATCH, JpegGraph(B * T, "cpu", None, 1, 32), threads=1)
    assert decoder._pipeline is not None
    assert decoder._pipeline.exec_dynamic  # else DALI overwrites outputs, and refuses a stream
    decoder.close()


@pytest.mark.gpu
@pytest.mark.parametrize("decode", ["mixed", "cpu"])
def test_a_gpus_batches_stay_as_they_were_while_it_is_behind(decode: Any) -> None:
    colours = np.array([[200, 60, 40], [30, 90, 220]])
    made = iter(range(20))

    def next_batch() -> Any:
        return _plain_batch((colours + next(made) * 2) % 256) if made.__length_hint__() else None

    gpu = torch.device("cuda", torch.cuda.current_device())
    graph = JpegGraph(B * T, decode, "gpu", 1, 32)
    decoding = GpuDecoding(DaliDecoder(next_batch, graph, threads=2, device_id=gpu.index), gpu)
    a = torch.randn(4096, 4096, device=gpu)
    kept = []
    for _ in range(20):
        for _ in range(20):  # the copies have to wait for these
            a = (a @ a).tanh()
        kept.append(decoding.clips(*decoding.run()))
    for number, batch in enumerate(kept):
        pixels = batch.cpu().numpy().reshape(B, -1, 3).astype(int)
        assert np.abs(pixels - ((colours + number * 2) % 256)[:, None]).max() <= 8, number
    decoding.close()
