"""Encoded batches become views on the device: by DALI on the CPU or the GPU, or by threads, with the same four methods.

decoding = CpuDecoding(decoder, cropper, boxed=False)     # a DaliDecoder of a JpegGraph: complete frames, or boxes
encoded, outputs = decoding.run()          # RuntimeError if DALI fails: `restart` gives the batch back
clips = decoding.clips(encoded, outputs)   # (B, R, T, H, W, C) uint8 on the device
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from mae3d.io.shapes import Size
from pipelines.decoding.clip_decoder import BadFrameError, ClipDecoder
from pipelines.decoding.crops import Cropper, cut_on_device
from pipelines.decoding.dali import DaliDecoder, dense_clips
from pipelines.decoding.fallback import decode_again
from pipelines.reading.source import ClipSource, EncodedBatch, FetchedClip

AHEAD = 2  # batches that threads decode before they are needed, as many as DALI queues
MAX_HELD = 2  # batches whose copies the GPU may be behind with: DALI's outputs take its memory until then


class Decoding(Protocol):
    """The methods that a stream calls."""

    def run(self) -> tuple[EncodedBatch, Any]:
        """Return the next batch and the input of `clips`."""

    def clips(self, encoded: EncodedBatch, outputs: Any) -> torch.Tensor:
        """Return the views, (B, R, T, H, W, C) uint8 on the device."""

    def restart(self) -> EncodedBatch | None:
        """Begin anew after a RuntimeError of `run`, and return the batch that did not come out."""

    def close(self) -> None:
        """Stop threads, release memory."""


class CpuDecoding:
    """DALI's JPEG decoder and torch's resize, on the CPU."""

    def __init__(self, decoder: DaliDecoder, cropper: Cropper, *, boxed: bool):
        self._decoder, self._cropper, self._boxed = decoder, cropper, boxed

    def run(self) -> tuple[EncodedBatch, Any]:
        """Return the next batch and its decoded frames; errors as `DaliDecoder.run`."""
        encoded, (frames,) = self._decoder.run()
        return encoded, frames

    def clips(self, encoded: EncodedBatch, frames: Any) -> torch.Tensor:
        """Cut the views out of the decoded frames, (B, R, T, H, W, C)."""
        return cut_views(self._cropper, encoded, dense_clips(frames, len(encoded.clips)), boxed=self._boxed)

    def restart(self) -> EncodedBatch | None:
        """Build the pipeline anew, as `DaliDecoder.restart`."""
        return self._decoder.restart()

    def close(self) -> None:
        """Release DALI's memory."""
        self._decoder.close()


class GpuDecoding:
    """DALI's decoder on the GPU or the CPU, its resize on the GPU."""

    def __init__(self, decoder: DaliDecoder, device: torch.device):
        self._decoder, self._device = decoder, device
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()

    def run(self) -> tuple[EncodedBatch, tuple[Any, ...]]:
        """Return the next batch and its views, which are ready on torch's stream; errors as `DaliDecoder.run`."""
        with torch.cuda.device(self._device):  # torch's usual stream has no number: DALI takes the current GPU's
            return self._decoder.run(torch.cuda.current_stream(self._device))

    def clips(self, encoded: EncodedBatch, outputs: tuple[Any, ...]) -> torch.Tensor:
        """Copy DALI's views into the batch; they are held until the copy has run on torch's stream."""
        out = copied_views(encoded, outputs, self._device)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self._device))
        self._held.append((copied, outputs))
        while len(self._held) > MAX_HELD:
            self._held[0][0].synchronize()
            self._held.popleft()
        while self._held and self._held[0][0].query():
            self._held.popleft()
        return out

    def restart(self) -> EncodedBatch | None:
        """Build the pipeline anew, as `DaliDecoder.restart`."""
        return self._decoder.restart()

    def close(self) -> None:
        """Wait for the copies under way; release DALI's memory."""
        while self._held:
            self._held.popleft()[0].synchronize()
        self._decoder.close()


class ThreadDecoding:
    """Threads that decode clips of any layout on the CPU; a GPU resizes them.

    Clips of one row, such as the windows of a sample in evaluation, are decoded together.
    """

    def __init__(
        self,
        decoder: ClipDecoder,
        source: ClipSource,
        next_batch: Callable[[], EncodedBatch | None],
        cropper: Cropper,
        device: torch.device,
        *,
        size: Size,
        threads: int,
    ):
        """Take the parts; nothing is decoded before the first `run`.

        Args:
            decoder: of clips.
            source: reads substitutes.
            next_batch: gives the next batch, None at the end; runs in the thread that calls `run`.
            cropper: cuts views on the CPU.
            device: where they are needed.
            size: of a view, in pixels.
            threads: clips that are decoded at once.
        """
        self._decoder, self._source, self._next_batch = decoder, source, next_batch
        self._cropper, self._device, self._size = cropper, device, size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode-clip")
        self._ahead: deque[tuple[EncodedBatch, list[tuple[list[int], Future[list[torch.Tensor]]]]]] = deque()
        self._is_at_end = False

    def run(self) -> tuple[EncodedBatch, list[torch.Tensor]]:
        """Return the next batch and its clips, (T, H, W, C) each on the CPU; what does not decode is substituted.

        Raises:
            StopIteration: after the last batch.
            DataError: the storage fails, or no substitute of a clip decodes.
        """
        while not self._is_at_end and len(self._ahead) <= AHEAD:
            batch = self._next_batch()
            if batch is None:
                self._is_at_end = True
            else:
                self._ahead.append((batch, self._begin(batch)))
        if not self._ahead:
            raise StopIteration
        encoded, parts = self._ahead.popleft()
        clips: dict[int, torch.Tensor] = {}
        try:
            for places, decoded in parts:
                clips.update(zip(places, decoded.result(), strict=True))
        except BadFrameError:
            encoded, again, _ = decode_again(self._decoder, self._source, encoded)
            return encoded, again
        return encoded, [clips[number] for number in range(len(encoded.clips))]

    def clips(self, encoded: EncodedBatch, decoded: list[torch.Tensor]) -> torch.Tensor:
        """Cut the views out of the decoded clips, (B, R, T, H, W, C) on the device."""
        if self._device.type == "cpu":
            return cut_views(self._cropper, encoded, decoded)
        views = cut_on_device(decoded, [clip.views for clip in encoded.clips], size=self._size, device=self._device)
        return views.view(len(encoded.request.positions), encoded.request.num_views, *views.shape[1:])

    def restart(self) -> EncodedBatch | None:
        """Return None: there is no pipeline that could have lost a batch."""
        return None

    def close(self) -> None:
        """Stop the threads; what was decoded ahead is lost."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, batch: EncodedBatch) -> list[tuple[list[int], Future[list[torch.Tensor]]]]:
        """Begin to decode a batch, the clips of one row together, and return their places in it with the results."""
        places: dict[int, list[int]] = {}
        for number, clip in enumerate(batch.clips):
            places.setdefault(clip.row, []).append(number)
        fetched = [FetchedClip(clip, parts) for clip, parts in zip(batch.clips, batch.parts, strict=True)]
        return [
            (of_row, self._pool.submit(self._decoder.decode_all, [fetched[number] for number in of_row]))
            for of_row in places.values()
        ]


def copied_views(encoded: EncodedBatch, outputs: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Copy DALI's outputs, frames or clips of a view each, into a batch, (B, R, T, H, W, C) on the device."""
    batch, num_decoded = len(encoded.request.positions), len(encoded.clips)
    views = [torch.from_dlpack(output.as_tensor()) for output in outputs]
    views = [frames.view(num_decoded, -1, *frames.shape[-3:]) for frames in views]
    clip_shape = views[0].shape[1:]
    out = torch.empty((batch, encoded.request.num_views, *clip_shape), dtype=torch.uint8, device=device)
    by_decoded_clip = out.view(num_decoded, len(views), *clip_shape)
    for view, frames in enumerate(views):
        by_decoded_clip[:, view].copy_(frames)
    return out


def cut_views(
    cropper: Cropper, encoded: EncodedBatch, clips: list[torch.Tensor], *, boxed: bool = False
) -> torch.Tensor:
    """Cut a batch's views out of its decoded clips, (T, H, W, C) each ─► (B, R, T, H, W, C), on the CPU."""
    views = cropper.cut(clips, [clip.views for clip in encoded.clips], boxed=boxed)
    return views.view(len(encoded.request.positions), encoded.request.num_views, *views.shape[1:])
