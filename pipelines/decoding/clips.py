"""Encoded batches become views on the device: a decoder per kind of device, both with the same four methods.

decoding = CpuDecoding(decoder, cropper)       # a DaliDecoder of complete frames, or of boxes
encoded, outputs = decoding.run()              # RuntimeError if DALI fails: `restart` gives the batch back
clips = decoding.clips(encoded, outputs)       # (B, R, T, size, size, C) uint8 on the device
"""

from collections import deque
from typing import Any

import torch

from pipelines.decoding.crops import Cropper
from pipelines.decoding.dali import DaliDecoder, dense_clips
from pipelines.reading.source import EncodedBatch

MAX_HELD = 2  # batches whose copies the GPU may be behind with: DALI's outputs take its memory until then


class CpuDecoding:
    """DALI's JPEG decoder and torch's resize, on the CPU."""

    def __init__(self, decoder: DaliDecoder, cropper: Cropper):
        self._decoder, self._cropper = decoder, cropper
        self.restart, self.close = decoder.restart, decoder.close

    def run(self) -> tuple[EncodedBatch, Any]:
        """Return the next batch and its decoded frames; errors as `DaliDecoder.run`."""
        encoded, (frames,) = self._decoder.run()
        return encoded, frames

    def clips(self, encoded: EncodedBatch, frames: Any) -> torch.Tensor:
        """Cut the views out of the decoded frames, (B, R, T, size, size, C)."""
        return cut_views(self._cropper, encoded, dense_clips(frames, len(encoded.clips)), boxed=self._decoder.boxes)


class GpuDecoding:
    """DALI's decoder on the GPU or the CPU, its resize on the GPU."""

    def __init__(self, decoder: DaliDecoder, device: torch.device):
        self._decoder, self._device = decoder, device
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()
        self.restart = decoder.restart

    def run(self) -> tuple[EncodedBatch, tuple[Any, ...]]:
        """Return the next batch and its views, which are ready on torch's stream; errors as `DaliDecoder.run`."""
        return self._decoder.run(torch.cuda.current_stream(self._device))

    def clips(self, encoded: EncodedBatch, outputs: tuple[Any, ...]) -> torch.Tensor:
        """Copy DALI's views into the batch; they are held until the copy has run on torch's stream."""
        batch, num_decoded = len(encoded.request.positions), len(encoded.clips)
        views = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        frame_shape = (len(views[0]) // num_decoded, *views[0].shape[1:])
        out = torch.empty((batch, encoded.request.num_views, *frame_shape), dtype=torch.uint8, device=self._device)
        by_decoded_clip = out.view(num_decoded, len(views), *frame_shape)
        for view, frames in enumerate(views):
            by_decoded_clip[:, view].copy_(frames.view(num_decoded, *frame_shape))
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self._device))
        self._held.append((copied, outputs))
        while len(self._held) > MAX_HELD:
            self._held[0][0].synchronize()
            self._held.popleft()
        while self._held and self._held[0][0].query():
            self._held.popleft()
        return out

    def close(self) -> None:
        """Wait for the copies under way; release DALI's memory."""
        while self._held:
            self._held.popleft()[0].synchronize()
        self._decoder.close()


def cut_views(
    cropper: Cropper, encoded: EncodedBatch, clips: list[torch.Tensor], *, boxed: bool = False
) -> torch.Tensor:
    """Cut a batch's views out of its decoded clips, (T, H, W, C) each ─► (B, R, T, size, size, C), on the CPU."""
    views = cropper.cut(clips, [clip.views for clip in encoded.clips], boxed=boxed)
    return views.view(len(encoded.request.positions), encoded.request.num_views, *views.shape[1:])
