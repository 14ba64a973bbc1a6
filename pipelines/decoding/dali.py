"""Encoded frames ─► decoded (and, on a GPU, cropped) frames: the only file that imports nvidia.dali.

    decoder = DaliDecoder(next_batch, max_frames=64, decode="cpu", resize=None, num_views=1, size=224, threads=2)
    decoder.run()      # ─► EncodedBatch and what DALI made of it, in the order in which they were handed in

DALI's own random numbers are never used: crops come in as data. No reader of DALI's is used either: only a source that
picks frames by offset can draw another window every epoch, shuffle globally and resume anywhere.
"""

import io
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import Pipeline, __version__, pipeline_def
from PIL import Image

from pipelines.reading.source import EncodedBatch
from pipelines.sampling.augment import Crop, View
from pipelines.sampling.requests import BatchRequest, ClipRequest

HW_DECODER_LOAD = 0.65  # DALI's default; 0.9 gave 2 % end to end for twice the longest wait (NVIDIA/DALI#6366)


@pipeline_def(enable_conditionals=False)
def _graph(
    source: Callable[[], tuple[Any, ...]],
    *,
    decode: str,
    resize: str | None,
    slices: bool,
    num_views: int,
    size: int,
    hw_decoder_load: float,
) -> tuple[Any, ...]:
    if slices:
        jpegs, start, shape = fn.external_source(source=source, num_outputs=3, batch=True)
        return (
            fn.decoders.image_slice(
                jpegs, start, shape, axis_names="HW", device=decode, output_type=types.DALIImageType.RGB
            ),
        )
    crops_in = 3 * num_views if resize else 0
    jpegs, *crops = fn.external_source(source=source, num_outputs=1 + crops_in, batch=True)
    images = fn.decoders.image(
        jpegs, device=decode, output_type=types.DALIImageType.RGB, hw_decoder_load=hw_decoder_load
    )
    if resize is None:
        return (images,)
    if resize == "gpu":
        images = images.gpu()  # nothing to do for the mixed decoder's
    views = []
    for view in range(num_views):
        start, end, mirror = crops[3 * view : 3 * view + 3]
        views.append(
            fn.resize_crop_mirror(
                images,
                size=(size, size),
                crop=(size, size),
                roi_start=start,
                roi_end=end,
                mirror=mirror,
                interp_type=types.DALIInterpType.INTERP_LINEAR,
                antialias=True,
            )
        )
    return tuple(views)


class DaliDecoder:
    """A DALI pipeline fed by a function; keeps the batches that DALI has pulled ahead, and can begin anew with them."""

    def __init__(
        self,
        next_batch: Callable[[], EncodedBatch | None],
        *,
        max_frames: int,
        decode: Literal["cpu", "mixed"],
        resize: Literal["cpu", "gpu"] | None,
        num_views: int,
        size: int,
        threads: int,
        boxes: bool = False,
        device_id: int | None = None,
        hw_decoder_load: float = HW_DECODER_LOAD,
    ):
        """Build the graph.

        Args:
            next_batch: gives the next batch, None at the end; runs in the thread that calls `run`.
            max_frames: most frames in a batch.
            decode: `mixed` is nvJPEG on the GPU.
            resize: where views are cropped and resized; None leaves that to the caller, who gets whole frames.
            num_views: crops of each clip.
            size: height and width of a view, in pixels.
            threads: DALI's CPU threads.
            boxes: without `resize`, of clips with one view: decodes the view's box alone, to the same pixels. Not with
                `mixed`, whose decoding of boxes can crash (NVIDIA/nvImageCodec#55).
            device_id: GPU, None without one.
            hw_decoder_load: share of the frames that the GPU's JPEG engines take, the rest goes to its cores.
        """
        self._next_batch = next_batch
        assert not (boxes and (resize or num_views != 1 or decode == "mixed"))
        self.boxes = boxes
        self._with_crops = resize is not None
        self._num_views = num_views
        self._again: deque[EncodedBatch] = deque()  # handed to a pipeline that is no more
        self._pulled: deque[EncodedBatch] = deque()  # handed in, not yet come out
        self._build = partial(
            _graph,
            self._pull,
            decode=decode,
            resize=resize,
            slices=boxes,
            num_views=num_views,
            size=size,
            hw_decoder_load=hw_decoder_load,
            batch_size=max_frames,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=2,
        )
        self._pipeline: Pipeline | None = self._build()
        self._pipeline.build()

    def run(self, stream: torch.cuda.Stream | None = None) -> tuple[EncodedBatch, tuple[Any, ...]]:
        """Return the next batch and DALI's outputs for it: complete frames, or one list of resized frames per view.

        Args:
            stream: stream on which GPU outputs are ready; None waits for them on the host.

        Raises:
            StopIteration: after the last batch.
            RuntimeError: DALI could not decode a frame.
        """
        assert self._pipeline is not None, "closed"
        outputs = self._pipeline.run(stream)
        return self._pulled.popleft(), outputs

    def restart(self) -> EncodedBatch | None:
        """Build the pipeline anew after an error, which ends the old one in DALI.

        Returns:
            The batch that did not come out, None if none was handed in; those behind it go into the new pipeline.

        Raises:
            RuntimeError: DALI cannot build it.
        """
        self._again = self._pulled + self._again
        self._pulled = deque()
        lost = self._again.popleft() if self._again else None
        self.close()  # before the new one takes memory
        self._pipeline = self._build()
        self._pipeline.build()
        return lost

    def close(self) -> None:
        """Release the pipeline's threads and memory; outputs that are still held stay valid."""
        self._pipeline = None

    def _pull(self) -> tuple[Any, ...]:
        batch = self._again.popleft() if self._again else self._next_batch()
        if batch is None:
            raise StopIteration
        self._pulled.append(batch)
        if self.boxes:
            start, end, _ = self._crop_inputs(batch)
            return batch.frames, start.astype(np.int32), (end - start).astype(np.int32)
        return (batch.frames, *self._crop_inputs(batch)) if self._with_crops else (batch.frames,)

    def _crop_inputs(self, batch: EncodedBatch) -> list[np.ndarray]:
        """Return per view: start (y, x) and end (y, x) of the box in pixels, and the mirror flag, one per frame."""
        frames_per_clip = len(batch.frames) // len(batch.clips)
        inputs: list[np.ndarray] = []
        for view in range(self._num_views):
            crops = np.array([clip.views[view].crop for clip in batch.clips], dtype=np.float32)
            per_frame = np.repeat(crops, frames_per_clip, axis=0)
            start = np.ascontiguousarray(per_frame[:, :2])
            inputs += [start, start + per_frame[:, 2:4], per_frame[:, 4].astype(np.int32)]
        return inputs


def dense_clips(frames: Any, num_clips: int) -> list[torch.Tensor]:
    """Split DALI's frames on the CPU into one (T, H, W, C) tensor per clip.

    Sizes may differ between clips, never within one.

    They are views of DALI's own memory, which it uses again two batches later.
    """
    shapes = frames.shape()
    per_clip = len(shapes) // num_clips
    # DALI lays a batch out in one piece for any sizes; copying clips of several sizes took a tenth of all time.
    whole = torch.from_dlpack(frames.as_reshaped_tensor([sum(math.prod(shape) for shape in shapes)]))
    sizes = [per_clip * math.prod(shape) for shape in shapes[::per_clip]]
    return [clip.view(per_clip, *shape) for clip, shape in zip(whole.split(sizes), shapes[::per_clip], strict=True)]


def decode_self_test(device: Literal["cpu", "mixed"], *, device_id: int = 0) -> str:
    """Decode, crop and resize batches of two sizes of frames as training would, and check the pixels.

    Args:
        device: `mixed` decodes and resizes on the GPU.
        device_id: the GPU.

    Returns:
        DALI's version.

    Raises:
        RuntimeError: it cannot, or the pixels are wrong.
    """
    colours = np.array([[200, 60, 40], [30, 90, 220]])
    batch = _plain_batch(colours)
    decoder = DaliDecoder(
        lambda: batch,
        max_frames=len(batch.frames),
        decode=device,
        resize="gpu" if device == "mixed" else "cpu",
        num_views=1,
        size=32,
        threads=2,
        device_id=device_id if device == "mixed" else None,
    )
    for _ in range(4):
        _, (images,) = decoder.run()
        pixels = np.asarray(images.as_cpu().as_tensor()).reshape(len(colours), -1, 3).astype(int)
        if np.abs(pixels - colours[:, None]).max() > 8:
            raise RuntimeError(f"DALI ({device}) decoded frames of the colours {colours.tolist()} to other pixels")
    return __version__


def _plain_batch(colours: np.ndarray) -> EncodedBatch:
    """Return a clip of eight plain frames per colour, each clip of another size."""
    clips, parts = [], []
    for number, colour in enumerate(colours):
        height, width = 240, 320 + 96 * number
        jpeg = io.BytesIO()
        Image.fromarray(np.full((height, width, 3), colour, dtype=np.uint8)).save(jpeg, "JPEG")
        view = View(Crop(10, 20, 200, 160, bool(number)))
        clips.append(ClipRequest(number, np.arange(8), (view,)))
        parts.append([np.frombuffer(jpeg.getvalue(), dtype=np.uint8)] * 8)
    request = BatchRequest(0, np.arange(len(clips)), tuple(clips), 1)
    return EncodedBatch(request, request.clips, tuple(parts), (False,) * len(clips))
