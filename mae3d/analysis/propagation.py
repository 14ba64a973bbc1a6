"""Masks of a video's first frame are carried through its other frames by the features of a frozen model.

frames ─► features of each ─► affinities with earlier frames ─► soft labels per patch ─► a mask per frame

    features = frame_features(encoder, pictures, layer=-1, mode="still")            # (h * w, D) of each frame
    labels = patch_labels(mask, [1, 2], grid=(14, 14))                              # (h * w, 3)
    carried = Propagator(next(features), labels, grid=(14, 14), k=5, context=7, radius=12, temperature=0.1)
    masks = [frame_mask(carried.step(there), grid=(14, 14), size=(480, 854)) for there in features]

Label propagation as in Jabri et al. 2020 (arXiv 2006.14613), by which DINO (arXiv 2104.14294) is evaluated on DAVIS
2017 as well: nothing is trained. Memory is bounded by the context, and no bit of a result depends on threads or on the
number of clips at a time. h x w patches of a frame, D width, C labels, the background first.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mae3d.analysis.exact import each_clip, one_thread
from mae3d.analysis.features import embed
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder

Frames = NDArray[np.uint8]  # (H, W, 3)
Ids = NDArray[np.uint8]  # (H, W), a number per pixel
Mode = Literal["still", "slide"]

_AFFINITIES = 1 << 22  # that a piece of the work holds: 16 MB


def frame_features(
    encoder: Encoder | FrameEncoder, frames: Iterable[Frames], *, layer: int = -1, mode: Mode = "still", batch: int = 8
) -> Iterator[Tensor]:
    """Yield the features of each frame of a video; a clip that the video ends in repeats its last frame.

    Args:
        encoder: Any encoder; a token covers u frames and a clip t * u.
        frames: uint8 (H, W, 3) of the encoder's size, in order of time; read as they are needed.
        layer: As in `features.embed`.
        mode: `still`: a frame fills its clip alone, and its features are the mean over the clip's time; an encoder that
            `resize.resized_encoder` has fitted to clips of u frames gives the same for less. `slide`: clips of t * u
            frames follow one another, and the u frames of a token share its features.
        batch: Clips at a time.

    Yields:
        float32 (h * w, D), on the encoder's device.

    Raises:
        ValueError: There is no such layer, or the frames do not fit the encoder.
    """
    t, h, w = encoder.config.grid
    length, u = encoder.config.num_frames, encoder.config.t_patch_size
    held = length if mode == "slide" else 1

    def by_frame(clips: Tensor) -> Tensor:
        tokens = embed(encoder, clips, layer=layer, pool="tokens").unflatten(1, (t, h * w))
        return tokens.repeat_interleave(u, dim=1) if mode == "slide" else tokens.mean(dim=1, keepdim=True)

    source = iter(frames)
    while read := list(islice(source, held * batch)):
        numbers = np.arange(-(-len(read) // held) * held).clip(max=len(read) - 1)
        clips = torch.from_numpy(np.stack([read[number] for number in numbers]))
        clips = clips.unflatten(0, (-1, held)).repeat_interleave(length // held, dim=1)
        features = each_clip(by_frame, clips).flatten(0, 1)
        yield from features[: len(read)]


def patch_labels(mask: Ids, objects: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Return the share of each patch's pixels that each object has: float32 (h * w, 1 + objects), rows sum to 1.

    Args:
        mask: Numbers of objects; all other numbers are background.
        objects: The numbers, in the order of the columns behind the background's.
        grid: (h, w).
    """
    planes = [mask == number for number in objects]
    background = ~np.logical_or.reduce(planes) if planes else np.ones(mask.shape, bool)
    shares = [
        nn.functional.adaptive_avg_pool2d(torch.from_numpy(plane.astype(np.float32))[None, None], grid).flatten()
        for plane in (background, *planes)
    ]
    return torch.stack(shares, dim=1)


def frame_mask(labels: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Ids:
    """Return the column of the largest label at each pixel, after bilinear interpolation; the first of equal ones.

    Args:
        labels: (h * w, C), C at most 256.
        grid: (h, w).
        size: (H, W) of the frame.
    """
    ids, best = np.zeros(size, np.uint8), np.full(size, -np.inf, np.float32)
    for column, plane in enumerate(labels.float().cpu().T):  # by turns: a frame has up to 256 of them
        patches = plane.reshape(1, 1, *grid)
        smooth = nn.functional.interpolate(patches, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()
        better = smooth > best
        ids[better], best[better] = column, smooth[better]
    return ids


class Propagator:
    """Labels on their way through a video, with the frames that they come from: the first, and the latest ones.

    A patch takes the mean of the labels of the k patches of these frames that are nearest by the cosine of their
    features, weighted by a softmax of the cosines. Equal cosines at the k-th place share it, so that no order decides.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        grid: tuple[int, int],
        k: int,
        context: int,
        radius: int,
        temperature: float,
    ) -> None:
        """Begin at the first frame.

        Args:
            features: (h * w, D), any scale.
            labels: (h * w, C), soft labels.
            grid: (h, w).
            k: Neighbours, 1 or more.
            context: Latest frames that are looked at beside the first one, 0 or more.
            radius: Rows and columns that a neighbour may be away in any of the frames; 0 is any distance.
            temperature: Divides the cosines before the softmax, above 0.
        """
        self.k, self.radius, self.temperature = k, radius, temperature
        cells = torch.arange(grid[0] * grid[1], device=features.device)
        self._rows, self._columns = cells // grid[1], cells % grid[1]
        self._first = _unit(features), labels.to(features.device)
        self._latest: deque[tuple[Tensor, Tensor]] = deque(maxlen=context)

    def step(self, features: Tensor) -> Tensor:
        """Return the labels (h * w, C) of the next frame, of which these are the features (h * w, D)."""
        queries = _unit(features)
        references = [self._first, *self._latest]
        keys, values = (torch.cat(part) for part in zip(*references, strict=True))
        with one_thread() as spread:
            pieces = torch.arange(len(queries), device=queries.device).split(max(1, _AFFINITIES // len(keys)))
            labels = torch.cat(spread(lambda cells: self._labels(cells, queries[cells], keys, values), pieces))
        self._latest.append((queries, labels))
        return labels

    def _labels(self, cells: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the labels of the patches `cells`: their features (n, D), keys (N, D) and values (N, C) ─► (n, C)."""
        affinity = queries @ keys.T
        if self.radius:
            far = [
                (lines[cells, None] - lines[None]).abs() > self.radius  # of one frame; alike for all
                for lines in (self._rows, self._columns)
            ]
            affinity = affinity.masked_fill((far[0] | far[1]).repeat(1, len(keys) // len(self._rows)), -torch.inf)
        best = affinity.topk(min(self.k, len(keys)), dim=1).values
        last = best[:, -1:]
        above, equal = affinity > last, affinity == last
        share = (best.shape[1] - above.sum(1, keepdim=True)) / equal.sum(1, keepdim=True)
        weights = ((affinity - best[:, :1]) / self.temperature).exp() * (above + equal * share)
        return (weights / weights.sum(1, keepdim=True)) @ values


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=1)
