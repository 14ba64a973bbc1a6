"""Decoded clips and boxes ─► a batch of views on the CPU.

cropper = Cropper(size=224, threads=2)
cropper.cut(clips, views, shape=(8, 4, 16, 224, 224, 3))      # clips: one (T, H, W, C) for each of views

DALI's own resize on the CPU takes nine times as long (reference: benchmarks/RESULTS.md), hence torch's.
"""

import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pipelines.sampling.augment import Crop, View


class Cropper:
    """Cuts and resizes into memory that is used again once nobody holds the batch."""

    def __init__(self, *, size: int, threads: int):
        self._size = size
        # torch's uint8 resize runs on the calling thread alone.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crop") if threads > 1 else None
        self._arrays: list[np.ndarray] = []

    def cut(self, clips: Sequence[torch.Tensor], views: Sequence[tuple[View, ...]], *, boxed: bool) -> torch.Tensor:
        """Return the views of all clips, concatenated.

        Args:
            clips: (T, H, W, C) uint8 or uint16 each; sizes may differ.
            views: of each clip, R of them.
            boxed: the clips hold nothing but the box of their only view.

        Returns:
            (len(clips) * R, T, size, size, C) of the clips' type, nobody else's.
        """
        crops = [view.crop for of_clip in views for view in of_clip]
        whole = [clip for clip, of_clip in zip(clips, views, strict=True) for _ in of_clip]
        boxes = whole if boxed else [cut_box(clip, crop) for clip, crop in zip(whole, crops, strict=True)]
        out = self._memory((len(boxes), len(clips[0]), self._size, self._size, clips[0].shape[-1]), clips[0].dtype)
        run = map if self._pool is None else self._pool.map
        deque(run(resize, boxes, [crop.flip for crop in crops], out), maxlen=0)
        return out

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _memory(self, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
        """Return memory for a batch.

        It is used again, because fresh pages would cost half as much again as the crops at four views."""
        dtype = np.dtype(np.uint16 if kind == torch.uint16 else np.uint8)
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
    clips: Sequence[torch.Tensor], views: Sequence[tuple[View, ...]], *, size: int, device: torch.device
) -> torch.Tensor:
    """Return the views of all clips as `Cropper.cut` does, cut and resized on a device; within 1 of its pixels.

    Args:
        clips: (T, H, W, C) uint8 or uint16 each, on the CPU; sizes may differ.
        views: of each clip, R of them.
        size: height and width of a view, in pixels.
        device: of the result, (len(clips) * R, T, size, size, C) of the clips' type.
    """
    cut = []
    for clip, of_clip in zip(clips, views, strict=True):
        there = clip.to(device, non_blocking=True)
        for view in of_clip:
            # CUDA has no antialiased resize of whole numbers.
            pixels = _resized_in_floats(cut_box(there, view.crop), (size, size), flip=view.crop.flip)
            cut.append(pixels.to(clip.dtype))
    return torch.stack(cut)


def cut_box(frames: torch.Tensor, crop: Crop) -> torch.Tensor:
    """Return the crop's box, (T, H, W, C) ─► (T, h, w, C), without a copy."""
    return frames[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def resize(box: torch.Tensor, flip: bool, out: torch.Tensor) -> None:
    """Resize the frames of a box: bilinear, antialiased, to within 1 of Pillow's; mirrored if requested.

    Args:
        box: (T, h, w, C) uint8 or uint16.
        flip: mirror left and right.
        out: (T, size, size, C) of the same type, receives the view.
    """
    if box.dtype != torch.uint8:  # torch resizes no others
        out.numpy()[:] = _resized_in_floats(box, tuple(out.shape[1:3]), flip=flip).numpy()
        return
    channels_first = box.permute(0, 3, 1, 2)
    if flip:  # before the resize, which copies a box that lies scattered anyway; the filter is symmetric
        channels_first = channels_first.flip(-1)
    # What torch.nn.functional.interpolate calls, but into the batch's own memory.
    target = out.permute(0, 3, 1, 2)
    torch.ops.aten._upsample_bilinear2d_aa.out(channels_first, out.shape[1:3], False, None, None, out=target)


def _resized_in_floats(box: torch.Tensor, size: tuple[int, ...], *, flip: bool) -> torch.Tensor:
    """Return the resized frames of a box, (T, h, w, C) ─► (T, *size, C) float, rounded: levels of the box's type."""
    floats = box.permute(0, 3, 1, 2).float()
    most = 255 if box.dtype == torch.uint8 else 65535
    if floats.shape[2:] != size:  # of the same size it would change nothing
        floats = torch.nn.functional.interpolate(floats, size, mode="bilinear", antialias=True)
    levels = floats.round().clamp_(0, most)
    return (levels.flip(-1) if flip else levels).permute(0, 2, 3, 1)
