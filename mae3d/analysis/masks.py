"""Masks of objects are compared with the true ones as on DAVIS: by their regions (J) and by their outlines (F).

mask, true mask ─► J and F of a frame ─► mean, recall and decay over a video

    j = [region_similarity(mask == 1, truth == 1) for mask, truth in zip(masks, truths, strict=True)]
    f = [contour_accuracy(mask == 1, truth == 1) for mask, truth in zip(masks, truths, strict=True)]
    over_video(j).mean, over_video(f).decay

Perazzi et al. 2016 (A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR); DAVIS 2017
(Pont-Tuset et al., arXiv 1704.00675) takes their mean over all objects of all videos. H x W pixels of a frame.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]  # (H, W)

TOLERANCE = 0.008  # of the frame's diagonal: how far apart two outlines may be and still match
_HIT = 0.5  # a frame above this counts in the recall
_PARTS = 4  # of a video; the decay compares the first and the last


class OverVideo(NamedTuple):
    """A figure of one object over a video.

    Attributes:
        mean: Over the frames.
        recall: Share of the frames in which it is above 0.5.
        decay: Mean over the first quarter of the frames less that over the last; NaN for fewer than four frames.
    """

    mean: float
    recall: float
    decay: float


def region_similarity(mask: Mask, truth: Mask) -> float:
    """Return J: intersection over union; 1 if both are empty."""
    union = int(np.count_nonzero(mask | truth))
    return int(np.count_nonzero(mask & truth)) / union if union else 1.0


def contour_accuracy(mask: Mask, truth: Mask, tolerance: float = TOLERANCE) -> float:
    """Return F: the harmonic mean of precision and recall of the outline's pixels; 1 if neither mask has an outline.

    A pixel of an outline is matched if a pixel of the other outline lies within the tolerance, which is what a dilation
    by a disk finds: Perazzi et al.'s approximation of a bipartite matching.

    Args:
        mask: The mask.
        truth: The true one.
        tolerance: Radius of the disk, in diagonals of the frame; rounded up to whole pixels.
    """
    radius = math.ceil(tolerance * math.hypot(*mask.shape))
    outlines = outline(mask), outline(truth)
    lengths = [int(np.count_nonzero(line)) for line in outlines]
    if not all(lengths):
        return float(not any(lengths))
    near = [_dilated(line, radius) for line in outlines]
    precision = int(np.count_nonzero(outlines[0] & near[1])) / lengths[0]
    recall = int(np.count_nonzero(outlines[1] & near[0])) / lengths[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: Mask) -> Mask:
    """Return the mask's pixels with a pixel of another kind beside, above or below them; the frame's edge is none."""
    from scipy.ndimage import binary_erosion

    inside: Mask = binary_erosion(mask, border_value=1)  # by the cross of four neighbours
    return mask & ~inside


def over_video(values: Sequence[float]) -> OverVideo:
    """Return the mean, recall and decay of a figure's values, one per counted frame, at least one.

    The quarters are `numpy.array_split`'s: the first ones are longer by a frame if four does not divide the number.
    """
    frames = np.array(values)
    parts = np.array_split(frames, _PARTS)
    decay = float(parts[0].mean() - parts[-1].mean()) if len(frames) >= _PARTS else math.nan
    return OverVideo(float(frames.mean()), float((frames > _HIT).mean()), decay)


def _dilated(line: Mask, radius: int) -> Mask:
    """Return all pixels that a disk around a pixel of the line covers."""
    from scipy.ndimage import distance_transform_edt

    near: Mask = distance_transform_edt(~line) <= radius  # as the dilation, in a time that the radius does not change
    return near
