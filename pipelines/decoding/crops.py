"""Decoded clips and boxes ─► a batch of views on the CPU.

cropper = Cropper(size=224, threads=2)
cropper.cut(clips, views, shape=(8, 4, 16, 224, 224, 3))      # clips: one (T, H, W, C) for each of views

DALI's own resize on the CPU takes nine times as long as torch's, and torch's three times as long as the compiled one
that gives the same pixels (benchmarks/RESULTS.md).
"""

import logging
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch

from mae3d.io.shapes import Size, sides
from pipelines.decoding.native import NativeError, Resize, compiled
from pipelines.sampling.augment import Crop, View

logger = logging.getLogger(__name__)


class Cropper:
    """Cuts and resizes into memory that is used again once nobody holds the batch."""

    def __init__(self, *, size: Size, threads: int):
        self._size = sides(size)
        # A resize runs on the calling thread alone.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crop") if threads > 1 else None
        self._arrays: list[np.ndarray] = []

    def cut(self, clips: Sequence[torch.Tensor], views: Sequence[tuple[View, ...]], *, boxed: bool) -> torch.Tensor:
        """Return the views of all clips, concatenated.

        Args:
            clips: (T, H, W, C) uint8 or uint16 each; sizes may differ.
            views: of each clip, R of them.
            boxed: the clips hold nothing but the box of their only view.

        Returns:
            (len(clips) * R, T, height, width, C) of the clips' kind, nobody else's.
        """
        crops = [view.crop for of_clip in views for view in of_clip]
        whole = [clip for clip, of_clip in zip(clips, views, strict=True) for _ in of_clip]
        boxes = whole if boxed else [cut_box(clip, crop) for clip, crop in zip(whole, crops, strict=True)]
        out = self._memory((len(boxes), len(clips[0]), *self._size, clips[0].shape[-1]), clips[0].dtype)
        _native()  # compiled before the threads begin
        run = map if self._pool is None else self._pool.map
        deque(run(resize, boxes, [crop.flip for crop in crops], out), maxlen=0)
        return out

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _memory(self, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
        """Return memory for a batch; used again, because fresh pages cost half as much as the crops of four views."""
        dtype = np.uint16 if kind == torch.uint16 else np.uint8
        for i in range(len(self._arrays)):
            # torch holds the array as long as any tensor lives that shares its memory: two references, the list's and
            # getrefcount's own argument, mean that there is none.
            same = self._arrays[i].shape == shape and self._arrays[i].dtype == dtype
            if same and sys.getrefcount(self._arrays[i]) == 2:
                return torch.from_numpy(self._arrays[i])
        self._arrays = [array for array in self._arrays if array.shape == shape and array.dtype == dtype]
        self._arrays.append(np.empty(shape, dtype=dtype))
        return torch.from_numpy(self._arrays[-1])


def cut_on_device(
    clips: Sequence[torch.Tensor], views: Sequence[tuple[View, ...]], *, size: Size, device: torch.device
) -> torch.Tensor:
    """Return the views of all clips as `Cropper.cut` does, cut and resized on a device; within 1 of its pixels.

    Args:
        clips: (T, H, W, C) uint8 or uint16 each, on the CPU; sizes may differ.
        views: of each clip, R of them.
        size: of a view, in pixels.
        device: of the result, (len(clips) * R, T, height, width, C) of the clips' kind.
    """
    shape = (sum(map(len, views)), len(clips[0]), *sides(size), clips[0].shape[-1])
    out = torch.empty(shape, dtype=clips[0].dtype, device=device)
    free = iter(out)
    for clip, of_clip in zip(clips, views, strict=True):
        there = clip.to(device, non_blocking=True)
        for view in of_clip:
            # CUDA has no antialiased resize of uint8.
            _resize_floats(cut_box(there, view.crop), view.crop.flip, next(free))
    return out


def cut_box(frames: torch.Tensor, crop: Crop) -> torch.Tensor:
    """Return the crop's box, (T, H, W, C) ─► (T, h, w, C), without a copy."""
    return frames[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def resize(box: torch.Tensor, flip: bool, out: torch.Tensor) -> None:
    """Resize the frames of a box: bilinear, antialiased, to within 1 of Pillow's; mirrored if requested.

    Args:
        box: (T, h, w, C) uint8 or uint16.
        flip: mirror left and right.
        out: (T, height, width, C) of the same kind, receives the view.
    """
    if box.dtype != torch.uint8:
        _resize_floats(box, flip, out)
        return
    native = _native()
    if native is not None and box[0, 0].is_contiguous() and out.is_contiguous():
        native(box, flip, out)
    else:
        resize_by_torch(box, flip, out)


def resize_by_torch(box: torch.Tensor, flip: bool, out: torch.Tensor) -> None:
    """Resize as `resize` does, bytes only, without the compiled function."""
    channels_first = box.permute(0, 3, 1, 2)
    if flip:  # before the resize, which copies a box that lies scattered anyway; the filter is symmetric
        channels_first = channels_first.flip(-1)
    # What torch.nn.functional.interpolate calls, but into the batch's own memory.
    target = out.permute(0, 3, 1, 2)
    torch.ops.aten._upsample_bilinear2d_aa.out(channels_first, out.shape[1:3], False, None, None, out=target)


@cache
def _native() -> Resize | None:
    """Return the compiled function if its pixels are those of torch here, which a run may go back to."""
    try:
        native = compiled()
    except NativeError as error:
        logger.info("crops are resized by torch, which takes three times as long: %s", error)
        return None
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8))
    for (height, width), flip in zip(((40, 50), (29, 47), (17, 11), (40, 2)), (False, True, True, False), strict=True):
        ours, theirs = torch.empty(2, 3, 24, 32, 3, dtype=torch.uint8)
        native(noise[:, :height, -width:], flip, ours)
        resize_by_torch(noise[:, :height, -width:], flip, theirs)
        if not torch.equal(ours, theirs):
            logger.warning(
                "crops are resized by torch %s, whose pixels the compiled function does not give", torch.__version__
            )
            return None
    return native


def _resize_floats(box: torch.Tensor, flip: bool, out: torch.Tensor) -> None:
    """Resize as `resize` does, by way of floats: on any device, for 8 and 16 bits."""
    pixels = torch.nn.functional.interpolate(
        box.permute(0, 3, 1, 2).float(), out.shape[1:3], mode="bilinear", antialias=True
    )
    pixels = pixels.round_().clamp_(0, torch.iinfo(out.dtype).max)
    out.copy_((pixels.flip(-1) if flip else pixels).permute(0, 2, 3, 1))
