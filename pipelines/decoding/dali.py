"""Encoded clips ─► decoded (and, on a GPU, cropped) frames: the only file that imports nvidia.dali.

    graph = JpegGraph(max_frames=64, decode="cpu", resize=None, num_views=1, size=224)
    decoder = DaliDecoder(next_batch, graph, threads=2)
    decoder.run()      # ─► EncodedBatch and what DALI made of it, in the order in which they were handed in

A graph says what DALI does and what it is fed with, one for each layout; the decoder feeds it, and starts it anew.
DALI's own random numbers are never used: crops come in as data. No reader of DALI's is used either: only a source that
picks frames by offset can draw another window every epoch, shuffle globally and resume anywhere.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import Pipeline, __version__, pipeline_def

from mae3d.io.shapes import Size, sides
from mae3d.video.groups import GroupError
from pipelines.reading.source import EncodedBatch, FetchedClip

VERSION: str = __version__
HW_DECODER_LOAD = 0.65  # DALI's default; 0.9 gave 2 % end to end for twice the longest wait (NVIDIA/DALI#6366)
Source = Callable[[], tuple[Any, ...]]
Packer = Callable[[FetchedClip], tuple[bytes, list[int]]]
_COLOURS = {1: types.DALIImageType.GRAY, 3: types.DALIImageType.RGB}  # by the number of channels
_UNREADABLE = b"\0"  # DALI refuses it, at the batch that it belongs to


class Graph(Protocol):
    """The part of a pipeline that depends on what is decoded."""

    @property
    def batch_size(self) -> int:
        """Return how many items of a batch DALI handles at most."""

    def outputs(self, source: Source) -> tuple[Any, ...]:
        """Return the nodes of the outputs, fed by a function."""

    def inputs(self, batch: EncodedBatch) -> tuple[Any, ...]:
        """Return what the function gives for a batch."""


@dataclass(frozen=True)
class JpegGraph:
    """JPEGs ─► complete frames, boxes, or one list of resized frames per view.

    Attributes:
        max_frames: most frames in a batch.
        decode: `mixed` is nvJPEG on the GPU.
        resize: where views are cropped and resized; None leaves that to the caller, who gets whole frames.
        num_views: crops of each clip.
        size: of a view, in pixels.
        channels: of a frame: 3, or 1 for luma.
        boxes: without `resize`, of clips with one view: decodes the view's box alone, to the same pixels. Not with
            `mixed`, whose decoding of boxes can crash (NVIDIA/nvImageCodec#55).
        hw_decoder_load: share of the frames that the GPU's JPEG engines take, the rest goes to its cores.
    """

    max_frames: int
    decode: Literal["cpu", "mixed"]
    resize: Literal["cpu", "gpu"] | None
    num_views: int
    size: Size
    channels: int = 3
    boxes: bool = False
    hw_decoder_load: float = HW_DECODER_LOAD

    def __post_init__(self) -> None:
        assert not (self.boxes and (self.resize or self.num_views != 1 or self.decode == "mixed"))

    @property
    def batch_size(self) -> int:
        """Return `max_frames`: DALI handles single frames."""
        return self.max_frames

    def outputs(self, source: Source) -> tuple[Any, ...]:
        """Decode, and crop if so configured."""
        colours = _COLOURS[self.channels]
        if self.boxes:
            jpegs, start, shape = fn.external_source(source=source, num_outputs=3, batch=True)
            return (
                fn.decoders.image_slice(jpegs, start, shape, axis_names="HW", device=self.decode, output_type=colours),
            )
        crops_in = 3 * self.num_views if self.resize else 0
        jpegs, *crops = fn.external_source(source=source, num_outputs=1 + crops_in, batch=True)
        images = fn.decoders.image(jpegs, device=self.decode, output_type=colours, hw_decoder_load=self.hw_decoder_load)
        if self.resize is None:
            return (images,)
        if self.resize == "gpu":
            images = images.gpu()  # nothing to do for the mixed decoder's
        return tuple(
            _resized(images, self.size, *crops[3 * view : 3 * view + 2], mirror=crops[3 * view + 2])
            for view in range(self.num_views)
        )

    def inputs(self, batch: EncodedBatch) -> tuple[Any, ...]:
        """Return the frames, and the crops of each."""
        if not self.boxes and not self.resize:
            return (batch.frames,)
        crops = _crop_inputs(batch, self.num_views, repeat=len(batch.frames) // len(batch.clips))
        if self.boxes:
            start, end, _ = crops
            return batch.frames, start.astype(np.int32), (end - start).astype(np.int32)
        return batch.frames, *crops


@dataclass(frozen=True)
class VideoGraph:
    """Small video files, one a clip ─► one list of clips of resized frames per view.

    Attributes:
        max_clips: most clips in a batch.
        decode: `mixed` is NVDEC on the GPU; `cpu` decodes no H.264.
        num_views: crops of each clip.
        size: of a view, in pixels.
        pack: makes the file of a clip, and the numbers in it of the clip's frames; GroupError if it cannot.
        channels: of a frame: 3, or 1 for luma.
    """

    max_clips: int
    decode: Literal["cpu", "mixed"]
    num_views: int
    size: Size
    pack: Packer
    channels: int = 3

    @property
    def batch_size(self) -> int:
        """Return `max_clips`: DALI handles whole clips."""
        return self.max_clips

    def outputs(self, source: Source) -> tuple[Any, ...]:
        """Decode, crop, and mirror."""
        videos, frames, *crops = fn.external_source(source=source, num_outputs=2 + 3 * self.num_views, batch=True)
        # Without pad_mode="none" frames that are not there would come out black, without an error.
        clips = fn.decoders.video(videos, device=self.decode, frames=frames, pad_mode="none")
        if self.channels == 1:
            clips = fn.color_space_conversion(clips, image_type=_COLOURS[3], output_type=_COLOURS[1])
        views = []
        for view in range(self.num_views):
            start, end, mirror = crops[3 * view : 3 * view + 3]
            # resize_crop_mirror mirrors sequences upside down (DALI 2.4), hence a node of its own.
            views.append(fn.flip(_resized(clips, self.size, start, end), horizontal=mirror))
        return tuple(views)

    def inputs(self, batch: EncodedBatch) -> tuple[Any, ...]:
        """Return the files, the numbers of the frames in them, and the crops of each clip."""
        videos, frames = [], []
        for clip, parts in zip(batch.clips, batch.parts, strict=True):
            try:
                video, numbers = self.pack(FetchedClip(clip, parts))
            except GroupError:  # an error here would end the pipeline at a batch before this one
                video, numbers = _UNREADABLE, [0] * len(clip.frames)
            videos.append(np.frombuffer(video, np.uint8))
            frames.append(np.array(numbers, np.int32))
        return videos, frames, *_crop_inputs(batch, self.num_views)


def _resized(images: Any, size: Size, start: Any, end: Any, **mirror: Any) -> Any:
    return fn.resize_crop_mirror(
        images,
        size=sides(size),
        crop=sides(size),
        roi_start=start,
        roi_end=end,
        interp_type=types.DALIInterpType.INTERP_LINEAR,
        antialias=True,
        **mirror,
    )


def _crop_inputs(batch: EncodedBatch, num_views: int, *, repeat: int = 1) -> list[np.ndarray]:
    """Return per view: start (y, x) and end (y, x) of the box in pixels, mirror flag; `repeat` of each for a clip."""
    inputs: list[np.ndarray] = []
    for view in range(num_views):
        crops = np.array([clip.views[view].crop for clip in batch.clips], dtype=np.float32)
        crops = np.repeat(crops, repeat, axis=0)
        start = np.ascontiguousarray(crops[:, :2])
        inputs += [start, start + crops[:, 2:4], crops[:, 4].astype(np.int32)]
    return inputs


@pipeline_def(enable_conditionals=False)
def _pipeline(graph: Graph, source: Source) -> tuple[Any, ...]:
    return graph.outputs(source)


class DaliDecoder:
    """A DALI pipeline fed by a function; keeps the batches that DALI has pulled ahead, and can begin anew with them."""

    def __init__(
        self,
        next_batch: Callable[[], EncodedBatch | None],
        graph: Graph,
        *,
        threads: int,
        device_id: int | None = None,
    ):
        """Build the pipeline.

        Args:
            next_batch: gives the next batch, None at the end; runs in the thread that calls `run`.
            graph: what is decoded, and to what.
            threads: DALI's CPU threads.
            device_id: GPU, None without one.
        """
        self._next_batch = next_batch
        self.graph = graph
        self._again: deque[EncodedBatch] = deque()  # handed to a pipeline that is no more
        self._pulled: deque[EncodedBatch] = deque()  # handed in, not yet come out
        self._build = partial(
            _pipeline,
            graph,
            self._pull,
            batch_size=graph.batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=2,
        )
        self._pipeline: Pipeline | None = self._build()
        self._pipeline.build()

    def run(self, stream: torch.cuda.Stream | None = None) -> tuple[EncodedBatch, tuple[Any, ...]]:
        """Return the next batch and DALI's outputs for it, as its graph has them.

        Args:
            stream: stream on which GPU outputs are ready; None waits for them on the host.

        Raises:
            StopIteration: after the last batch.
            RuntimeError: DALI could not decode.
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
        return self.graph.inputs(batch)


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
