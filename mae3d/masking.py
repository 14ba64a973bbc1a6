"""Which tokens are hidden: (seed, epoch, position, view) -> noise -> ids, the same on any machine.

    noise_BL = mask_noise(seed=0, epoch=3, positions=batch.positions, views=2, tokens=config.num_tokens)
    mask = random_mask(noise_BL, 0.9)
    mask.ids_keep, mask.ids_masked         # (B, K), (B, L - K)

Nothing here has a state: the same sample at the same place of the same epoch gets the same mask at every
world size, batch size and after every resume.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

STREAM = 0x6D61736B  # "mask": keeps this stream apart from those of order, crop and flip under the same seed


class Mask(NamedTuple):
    """A random mask of B clips.

    Attributes:
        ids_keep: int64 (B, K), visible tokens, in the order of their noise.
        ids_masked: int64 (B, L - K), hidden tokens, likewise.
        ids_restore: int64 (B, L): `cat([kept, masked])[ids_restore]` is in token order.
        mask: float32 (B, L) in token order, 1 where hidden.
    """

    ids_keep: Tensor
    ids_masked: Tensor
    ids_restore: Tensor
    mask: Tensor


def random_mask(noise: Tensor, mask_ratio: float) -> Mask:
    """Keep the tokens with the smallest noise, agnostic of space and time (MAE-ST's random sampling).

    Args:
        noise: float32 (B, L). Ties are common (24 random bits, L in the thousands); the sort is stable, so
            that CPU and GPU break them alike.
        mask_ratio: Share that is hidden; `int(L * (1 - mask_ratio))` stay visible, truncated as upstream
            does.
    """
    assert noise.dtype == torch.float32, noise.dtype
    kept = int(noise.shape[1] * (1 - mask_ratio))
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= kept).float()
    return Mask(ids_shuffle[:, :kept], ids_shuffle[:, kept:], ids_restore, mask)


def mask_noise(*, seed: int, epoch: int, positions: Iterable[int], views: int, tokens: int) -> Tensor:
    """Uniform noise for the masks of a batch, a pure function of its arguments (counter-based: Philox 4x64).

    Args:
        seed: The run's seed, 0 or more.
        epoch: The epoch, 0 or more.
        positions: Each sample's position in the epoch's global order.
        views: Views of a sample (R).
        tokens: Tokens of a view (L).

    Returns:
        float32 (B*R, L) on [0, 1), on the CPU; the views of a sample follow one another.
    """
    noise = np.empty((len(positions := list(positions)), views, tokens), dtype=np.float32)
    for row, position in enumerate(positions):
        for view in range(views):
            # The lowest word counts the draws of one view; the three above name it.
            bits = np.random.Philox(key=[seed, STREAM], counter=[0, view, int(position), epoch])
            noise[row, view] = np.random.Generator(bits).random(tokens, dtype=np.float32)
    return torch.from_numpy(noise.reshape(-1, tokens))
