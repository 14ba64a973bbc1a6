"""Encoded frames ─► decoded (and, on a GPU, cropped) frames: the only file that imports nvidia.dali.

    decoder = Decoder(next_batch, max_frames=64, decode="cpu", resize=None, num_views=1, size=224, threads=2)
    decoder.run()      # ─► EncodedBatch and what DALI made of it, in the order in which they were handed in

DALI's own random numbers are never used: crops come in as data. No reader of DALI's is used either: only a source that
picks frames by offset can draw another window every epoch, shuffle globally and resume anywhere.
"""

import io
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import Pipeline, __version__, pipeline_def

from pipelines.source import EncodedBatch


@pipeline_def(enable_conditionals=False)
def _graph(
    source: Callable[[], tuple[Any, ...]],
    *,
    decode: str,
    resize: str | None,
    slices: bool,
    num_views: int,
    size: int,
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
    images = fn.decoders.image(jpegs, device=decode, output_type=types.DALIImageType.RGB)
    if resize is None:
        return (images,)
    if resize == "gpu":
        images = images.gpu()
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


class Decoder:
    """A DALI pipeline fed by a function; keeps the requests of the batches that DALI has pulled ahead."""

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
        device_id: int | None = None,
    ):
        """Builds the graph.

        Args:
            next_batch: gives the next batch, None at the end; runs in the thread that calls `run`.
            max_frames: most frames in a batch.
            decode: `mixed` is nvJPEG on the GPU.
            resize: where views are cropped and resized; None leaves that to the caller. It then gets whole frames, or,
                with one view on the CPU, the view's box: what lies outside is not decoded, the pixels are the same.
            num_views: crops of each clip.
            size: height and width of a view, in pixels.
            threads: DALI's CPU threads.
            device_id: GPU, None without one.
        """
        self._next_batch = next_batch
        self.gives_boxes = resize is None and num_views == 1 and decode == "cpu"
        self._with_crops = resize is not None
        self._num_views = num_views
        self._pulled: deque[EncodedBatch] = deque()
        self._pipeline: Pipeline = _graph(
            self._pull,
            decode=decode,
            resize=resize,
            slices=self.gives_boxes,
            num_views=num_views,
            size=size,
            batch_size=max_frames,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=2,
        )
        self._pipeline.build()

    def run(self, stream: torch.cuda.Stream | None = None) -> tuple[EncodedBatch, tuple[Any, ...]]:
        """The next batch and DALI's outputs for it: whole frames, or one list of resized frames a view.

        Args:
            stream: stream on which GPU outputs are ready; None waits for them on the host.

        Raises:
            StopIteration: after the last batch.
            RuntimeError: DALI could not decode a frame.
        """
        outputs = self._pipeline.run(stream)
        return self._pulled.popleft(), outputs

    def _pull(self) -> tuple[Any, ...]:
        batch = self._next_batch()
        if batch is None:
            raise StopIteration
        self._pulled.append(batch)
        if self.gives_boxes:
            start, end, _ = self._crop_inputs(batch)
            return batch.frames, start.astype(np.int32), (end - start).astype(np.int32)
        return (batch.frames, *self._crop_inputs(batch)) if self._with_crops else (batch.frames,)

    def _crop_inputs(self, batch: EncodedBatch) -> list[np.ndarray]:
        """For each view: start (y, x) and end (y, x) of the box in pixels, and the mirror flag, one a frame."""
        frames_per_clip = len(batch.frames) // len(batch.clips)
        inputs: list[np.ndarray] = []
        for view in range(self._num_views):
            crops = np.array([clip.views[view].crop for clip in batch.clips], dtype=np.float32)
            per_frame = np.repeat(crops, frames_per_clip, axis=0)
            start = np.ascontiguousarray(per_frame[:, :2])
            inputs += [start, start + per_frame[:, 2:4], per_frame[:, 4].astype(np.int32)]
        return inputs


def dense_clips(frames: Any, num_clips: int) -> list[torch.Tensor]:
    """DALI's frames on the CPU ─► one (T, H, W, C) tensor a clip; sizes may differ between clips, never within one.

    They are views of DALI's own memory, which it uses again two batches later.
    """
    shapes = frames.shape()
    per_clip = len(shapes) // num_clips
    # DALI lays a batch out in one piece, whatever the sizes; copying clips of several sizes took a tenth of all time.
    whole = torch.from_dlpack(frames.as_reshaped_tensor([sum(math.prod(shape) for shape in shapes)]))
    sizes = [per_clip * math.prod(shape) for shape in shapes[::per_clip]]
    return [clip.view(per_clip, *shape) for clip, shape in zip(whole.split(sizes), shapes[::per_clip], strict=True)]


def decode_self_test(device: Literal["cpu", "mixed"]) -> str:
    """Decodes a small JPEG on the device and returns DALI's version.

    Raises:
        RuntimeError: it cannot; the message is DALI's.
    """
    from PIL import Image

    jpeg = io.BytesIO()
    Image.fromarray(np.full((64, 96, 3), 128, dtype=np.uint8)).save(jpeg, "JPEG")
    data = np.frombuffer(jpeg.getvalue(), dtype=np.uint8)

    @pipeline_def
    def one_image() -> Any:
        encoded = fn.external_source(source=lambda: [data], batch=True)
        return fn.decoders.image(encoded, device=device, output_type=types.DALIImageType.RGB)

    (images,) = one_image(batch_size=1, num_threads=1, device_id=None if device == "cpu" else 0).run()
    shape = tuple(images.as_cpu().as_tensor().shape()) if device == "mixed" else tuple(images.as_tensor().shape())
    if shape != (1, 64, 96, 3):
        raise RuntimeError(f"DALI decoded a 64x96 JPEG to {shape}")
    return __version__
