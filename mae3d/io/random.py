"""Randomness is a pure function of its purpose: counter-based generators, and the tags that keep them apart.

    rng = philox(seed, Stream.CROP, epoch=3, position=4096, view=1)

The same clips, crops and masks come out at every world size and after every resume, because nothing else is drawn from.
"""

from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray


@unique
class Stream(IntEnum):
    """The second word of a Philox key: one per purpose, so that draws under the same seed never coincide.

    The numbers are the ASCII codes of four letters; they are part of every run's reproducibility and never change.
    """

    ORDER = 0x6F726465  # which samples an epoch visits, and when
    WINDOW = 0x77696E64  # the temporal window of a view
    CROP = 0x63726F70  # crop and flip of a view
    RAND_AUGMENT = 0x72616E64
    JITTER = 0x6A697474
    ERASE = 0x65726173
    AUGMENT = 0x6175676D  # augmentations of the user's
    SUBSTITUTE = 0x73756273  # the sample that stands in for a damaged one
    MASK = 0x6D61736B
    DROP = 0x64726F70  # dropout and drop path
    MIX = 0x6D6978  # mixup and cutmix
    PROBE = 0x70726F62  # splits and minibatches of probes
    EVAL = 0x6576616C  # held-out samples in pretraining, and their masks
    SHOW = 0x73686F77  # samples that visualize shows
    POOL = 0x706F6F6C  # samples among which visualize searches for neighbours
    BOOTSTRAP = 0x626F6F74  # test samples that are drawn again
    CURATE = 0x63757261  # the orders of bits in which hashes are sorted
    OBSERVE = 0x6F627365  # metrics and callbacks of the user's


def philox(
    seed: int, stream: Stream, *, epoch: int = 0, position: int = 0, view: int = 0, number: int = 0
) -> np.random.Generator:
    """Return a generator that depends on nothing but its arguments (counter-based: Salmon et al., SC 2011).

    `number` separates those who draw for the same view: each has 2^48 blocks of four numbers.
    """
    counter = [number << 48, view, position, epoch]
    return np.random.Generator(np.random.Philox(key=philox_key(seed, stream), counter=counter))


def philox_key(seed: int, stream: Stream) -> NDArray[np.uint64]:
    """Return the key of a purpose; OverflowError for a seed that does not fit into 64 bits without a sign.

    Of a plain list with a number from 2^63 on NumPy makes floats, and neighbouring seeds become one.
    """
    return np.array([seed, stream], dtype=np.uint64)
