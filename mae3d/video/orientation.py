"""Decoded frames are turned upright: the orientation that their container stores."""

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

Orientation = tuple[bool, bool, bool]


def orientation(frame: av.VideoFrame, known: dict[int, Orientation] | None = None) -> Orientation:
    """Return how a stored frame becomes upright: (axes swapped, then mirrored in x, then mirrored in y).

    It is read from the display matrix of the container (FFmpeg's libavutil/display.h): x' = a x + c y, y' = b x + d y.

    Args:
        frame: A decoded frame.
        known: The orientations of other frames of the video, by rotation. Callers with many frames must give it,
            because a frame whose side data was read lives until the garbage collector comes by.
    """
    if known is not None and frame.rotation in known:
        return known[frame.rotation]
    side_data: Any = frame.side_data  # its stub says that it maps from str
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        upright: Orientation = (False, False, False)
    else:
        a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4")[:5].tolist()
        upright = (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
    if known is not None:
        known[frame.rotation] = upright
    return upright


def turned(pixels: np.ndarray, way: Orientation) -> np.ndarray:
    """Return pixels (H, W, ...) turned upright, as `orientation` says; a view."""
    swapped, flip_x, flip_y = way
    if swapped:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
