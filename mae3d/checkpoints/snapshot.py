"""A rank's slices are copied into host memory, from which a thread can write them while training goes on.

snapshot = Snapshot()
slices = snapshot.take(engine.slices())      # training may go on
snapshot.wait()                              # in the thread: the copies have arrived
"""

import logging
from collections.abc import Iterable

import torch

from mae3d.checkpoints.format import Slice

logger = logging.getLogger(__name__)


class Snapshot:
    """A buffer in host memory, pinned if the slices come from a GPU, which every copy is taken into."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self._pinned = False
        self._arrived: torch.cuda.Event | None = None

    def take(self, slices: Iterable[Slice]) -> list[Slice]:
        """Copy slices; the previous result of `take` is overwritten.

        From a GPU the copies are only queued, on the stream of the training: later kernels do not overtake them.
        """
        slices = list(slices)
        tensors = [tensor for piece in slices for tensor in piece.tensors.values()]
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        self._reserve(sum(tensor.numel() for tensor in tensors), on_gpu=on_gpu)
        copies, at = [], 0
        for piece in slices:
            kinds = {}
            for kind, tensor in piece.tensors.items():
                kinds[kind] = self._buffer[at : at + tensor.numel()].copy_(tensor.detach(), non_blocking=True)
                at += tensor.numel()
            copies.append(Slice(piece.name, piece.start, piece.stop, kinds))
        if on_gpu:
            self._arrived = torch.cuda.Event(blocking=True)  # the thread sleeps until then, and takes no core
            self._arrived.record()
        return copies

    def wait(self) -> None:
        """Wait until the result of `take` holds the values; any thread may wait."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def close(self) -> None:
        """Release the memory."""
        if self._pinned:
            self.wait()
            torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())
        self._buffer, self._pinned = torch.empty(0), False

    def _reserve(self, elements: int, *, on_gpu: bool) -> None:
        if len(self._buffer) == elements:
            return
        self.close()
        self._buffer = torch.empty(elements)
        if on_gpu:
            # torch's own pinned memory comes in powers of two: up to twice what is needed.
            status = torch.cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), self._buffer.nbytes, 0)
            self._pinned = int(status) == 0
            if not self._pinned:
                logger.warning(
                    "%.1f GB of host memory cannot be pinned (CUDA error %d): copying checkpoints off the GPU takes "
                    "longer; `ulimit -l unlimited` may help",
                    self._buffer.nbytes / 1e9,
                    int(status),
                )
