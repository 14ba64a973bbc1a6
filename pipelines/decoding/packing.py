"""A clip of layout video becomes the file that DALI decodes: its groups ─► IVF, and the numbers of its frames in it.

video, numbers = clip_in_ivf(corpus, fetched)
"""

import numpy as np

from mae3d.video.ivf import window_in_ivf
from pipelines.reading.source import FetchedClip
from pipelines.samples.corpus import Corpus


def clip_in_ivf(corpus: Corpus, fetched: FetchedClip) -> tuple[bytes, list[int]]:
    """Return the file, and where the clip's frames are in it: in the clip's order, with its repeats.

    Raises:
        GroupError: a group holds fewer frames than the index says.
    """
    row = fetched.clip.row
    numbers, place_of = np.unique(fetched.clip.frames, return_inverse=True)
    parts = zip(fetched.parts, corpus.layout(row).by_part(numbers), strict=True)
    groups = [(part.tobytes(), within) for part, (_, _, within) in parts]
    video, places = window_in_ivf(groups, width=int(corpus.width[row]), height=int(corpus.height[row]))
    return video, [places[number] for number in place_of.tolist()]
