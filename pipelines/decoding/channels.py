"""Frames of the datasets' channels become frames of the model's: as stored, or between grey and colour.

    channels = check_channels(corpus, 1, config)      # before anything is read; ValueError says what does not go
    frames = with_channels(frames, channels)          # (..., C) as stored ─► (..., channels)

Grey becomes colour by repetition, colour becomes grey by its luma (ITU-R BT.601). No other number becomes another one.
JPEGs and videos are decoded to either; lossless frames hold a number of their own, and 8 or 16 bits.
"""

import numpy as np

from pipelines.config import DataConfig
from pipelines.samples.corpus import Corpus

_GREY_AND_COLOUR = {1, 3}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def check_channels(corpus: Corpus, channels: int | None, config: DataConfig | None = None) -> int:
    """Return the number of channels that frames are decoded to.

    Args:
        corpus: the datasets.
        channels: the model's number; None = as stored.
        config: settings of a training, whose changes of colour must fit.

    Raises:
        ValueError: a dataset has another number, datasets differ, or a setting of the augmentation does not fit.
    """
    layouts = [(str(dataset.location), dataset.layout) for dataset in corpus.datasets]
    if channels is None:
        channels = max(layout.channels for _, layout in layouts)
    for where, layout in layouts:
        if layout.channels != channels and {layout.channels, channels} != _GREY_AND_COLOUR:
            if layout.name in ("jpeg", "video", "files"):
                held = f"layout {layout.name} holds grey or colour"
                remedy = "build it with --layout png from sources that have them, or give model.in_chans 1 or 3"
            else:
                held = f"its frames have {layout.channels}"
                remedy = f"give model.in_chans {layout.channels}"
            raise ValueError(f"{where}: no frames of {channels} channels, {held}: {remedy}")
    bits = {layout.bits for _, layout in layouts}
    if len(bits) > 1:
        raise ValueError(f"{corpus}: frames of {' and of '.join(map(str, sorted(bits)))} bits do not mix in a batch")
    for name in ("rand_augment", "colour_jitter"):
        if config is not None and getattr(config, name) and (channels not in _GREY_AND_COLOUR or bits != {8}):
            raise ValueError(
                f"data.{name} is for frames of 1 or 3 channels and 8 bits, and these have {channels} of "
                f"{bits.pop()} bits: switch it off"
            )
    return channels


def with_channels(frames: np.ndarray, channels: int) -> np.ndarray:
    """Return frames (..., C), uint8 or uint16, with another number of channels: grey in three, or luma of three."""
    if frames.shape[-1] == channels:
        return frames
    if channels == 3:
        return np.repeat(frames, 3, axis=-1)
    return np.rint(frames.astype(np.float32) @ _LUMA).astype(frames.dtype)[..., None]
