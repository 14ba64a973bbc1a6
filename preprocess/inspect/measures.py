"""The thumbnails of a sample become measures: motion, frozen runs, darkness, cuts, and a signature of its content.

thumbs, frames = thumbnails(dataset, 7, most=96)          # uint8 (M, 32, 32, 3), and their numbers in the sample
measured = measure(thumbs, frames, dataset, 7, settings)

A sample's frames are thinned out evenly to `most`; a cut or a frozen run is so known to within that distance.
"""

from dataclasses import dataclass

import numpy as np

from preprocess.dataset.index import Dataset
from preprocess.inspect.curate_options import CurateSettings
from preprocess.inspect.filmstrip import stored_frames

SIDE = 32  # of a thumbnail, pixels
FEW, SMALL = 8, 16  # frames of a signature, and the side of their pictures
HASH_BITS = 64
FLAT_LEVELS = 4.0  # standard deviation of a picture below which its hash is noise
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Measured:
    """Measures of a sample; None or NaN if it has too few frames that decode.

    Attributes:
        motion: Mean distance of the frames from their mean, in grey levels.
        frozen_s: The longest run of equal frames in seconds; NaN without a time base.
        frozen_share: The same as a share of the sample.
        black_share: Share of black frames.
        cut_frames: First frames after a cut; None if they were not looked for.
        frames_read: Frames that were decoded, or tried.
        frames_damaged: Of these, frames that do not decode.
        hashes: uint64 (FEW,) of frames from all over the sample.
        pictures: uint8 (FEW, SMALL, SMALL) grey, of the same frames.
        is_flat: Whether these have no content: there is nothing to compare.
    """

    motion: float
    frozen_s: float
    frozen_share: float
    black_share: float
    cut_frames: list[int] | None
    frames_read: int
    frames_damaged: int
    hashes: np.ndarray
    pictures: np.ndarray
    is_flat: bool


def thumbnails(dataset: Dataset, i: int, *, most: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a sample's thumbnails uint8 (M, SIDE, SIDE, 3), their frame numbers, and how many more are damaged."""
    count = int(dataset.num_frames[i])
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
    pictures = stored_frames(dataset, i, chosen, (SIDE, SIDE))
    whole = [n for n, picture in enumerate(pictures) if picture is not None]
    thumbs = [np.asarray(pictures[n]) for n in whole]
    stacked = np.stack(thumbs) if thumbs else np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return stacked, chosen[whole], len(chosen) - len(whole)


def measure(
    thumbs: np.ndarray, frames: np.ndarray, damaged: int, dataset: Dataset, i: int, settings: CurateSettings
) -> Measured:
    """Return the measures of sample i from its thumbnails."""
    grey = thumbs.astype(np.float32) @ _LUMA
    if not len(grey):
        nothing = np.zeros(FEW, np.uint64), np.zeros((FEW, SMALL, SMALL), np.uint8)
        cuts: list[int] | None = [] if settings.cuts else None
        return Measured(np.nan, np.nan, 0.0, 0.0, cuts, damaged, damaged, *nothing, is_flat=True)
    run = _longest_run(grey, frames, settings.frozen_levels)
    black = (grey.mean((1, 2)) <= settings.black_levels) & (grey.std((1, 2)) <= settings.black_spread)
    few = grey[np.linspace(0, len(grey) - 1, FEW).round().astype(np.int64)]
    return Measured(
        motion=float(np.abs(grey - grey.mean(0)).mean()) if len(grey) > 1 else np.nan,
        frozen_s=run / float(dataset.fps[i]),
        frozen_share=run / max(1, int(dataset.num_frames[i]) - 1),
        black_share=float(black.mean()),
        cut_frames=_cuts(thumbs, frames, settings) if settings.cuts else None,
        frames_read=len(grey) + damaged,
        frames_damaged=damaged,
        hashes=picture_hashes(few),
        pictures=few.reshape(FEW, SMALL, SIDE // SMALL, SMALL, SIDE // SMALL).mean((2, 4)).round().astype(np.uint8),
        is_flat=bool(np.median(few.std((1, 2))) < FLAT_LEVELS),
    )


def picture_hashes(grey: np.ndarray) -> np.ndarray:
    """Return a perceptual hash per picture, uint64 (n,): the signs of the lowest 64 frequencies but the mean.

    Frequencies are those of the discrete cosine transform, as in pHash (Zauner, "Implementation and benchmarking of
    perceptual image hash functions", 2010), without its median: mirroring a picture changes exactly the signs of odd
    horizontal frequencies (`mirrored`).

    Args:
        grey: (n, SIDE, SIDE).
    """
    from scipy.fft import dctn

    waves = dctn(grey, axes=(1, 2), norm="ortho")
    bits = np.stack([waves[:, v, u] > 0 for v, u in _frequencies()], axis=1)
    hashes: np.ndarray = np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0].astype(np.uint64)
    return hashes


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes of the pictures turned left to right."""
    mask = sum(1 << bit for bit, (_, u) in enumerate(_frequencies()) if u % 2)
    return hashes ^ np.uint64(mask)


def _frequencies() -> list[tuple[int, int]]:
    """Return (vertical, horizontal) of the hash's bits, the lowest first."""
    all_of_them = [(v, u) for v in range(HASH_BITS) for u in range(HASH_BITS) if v + u]
    return sorted(all_of_them, key=lambda one: (sum(one), one))[:HASH_BITS]


def _longest_run(grey: np.ndarray, frames: np.ndarray, levels: float) -> int:
    """Return the length of the longest run of equal frames, in stored frames from its first to its last."""
    equal = np.abs(np.diff(grey, axis=0)).max((1, 2), initial=0) <= levels
    longest = begin = 0
    for step, same in enumerate(equal.tolist()):
        if not same:
            begin = step + 1
        else:
            longest = max(longest, int(frames[step + 1] - frames[begin]))
    return longest


def _cuts(thumbs: np.ndarray, frames: np.ndarray, settings: CurateSettings) -> list[int]:
    """Return the first frames after hard cuts (PySceneDetect's adaptive detector)."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(
        adaptive_threshold=settings.cut_threshold, min_content_val=settings.cut_levels, min_scene_len=1
    )
    moments = []
    for number, thumb in enumerate(thumbs):
        moments += detector.process_frame(FrameTimecode(number, fps=1.0), thumb[..., ::-1].copy())
    moments += detector.post_process(FrameTimecode(len(thumbs) - 1, fps=1.0))
    return sorted({int(frames[one.frame_num]) for one in moments})
