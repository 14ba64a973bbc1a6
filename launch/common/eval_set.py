"""Opened shards ─► an EvalSet: the rows that a model is evaluated on, and their clips at fixed positions.

samples = EvalSet(corpus, clips, selected_rows(corpus, clips, num_frames=16))
for batch in samples.stream(model.config, batch_size=8, device=device):
    ...
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.config import DataConfig

if TYPE_CHECKING:
    import numpy as np

    from mae3d.io.random import Stream
    from mae3d.model.config import EncoderConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import ClipStream


SAME_DATA = "Make the same shards and the same labels reachable on every node"


@dataclass(frozen=True)
class EvalSet:
    """Samples that a model is evaluated on.

    Attributes:
        corpus: The opened shards.
        clips: How clips are sampled and decoded.
        rows: (N,) rows of the corpus, ascending.
    """

    corpus: "Corpus"
    clips: DataConfig
    rows: "np.ndarray"

    def stream(self, model_config: "EncoderConfig", *, rows: "np.ndarray | None" = None, **views: Any) -> "ClipStream":
        """Return the batches of the samples, in clips of the model's size.

        Args:
            model_config: The model's, for the number of frames, their size and channels.
            rows: (n,) rows of the corpus instead of `self.rows`.
            views: Further arguments of `pipelines.stream.evaluation_clips`: the views, the batch size, rank and device.
        """
        from pipelines.stream import evaluation_clips

        return evaluation_clips(
            self.corpus,
            self.clips,
            rows=self.rows if rows is None else rows,
            num_frames=model_config.num_frames,
            size=model_config.img_size,
            channels=model_config.in_chans,
            **views,
        )


def selected_rows(corpus: "Corpus", clips: DataConfig, *, num_frames: int, option: str = "data") -> "np.ndarray":
    """Return the (n,) rows that `clips.select` takes of the samples from which a clip can be made, ascending.

    Messages name the options of the section `option`.
    """
    from pipelines.samples.selection import select_rows
    from pipelines.sampling.requests import usable_rows

    return select_rows(corpus, clips.select, rows=usable_rows(corpus, clips, num_frames=num_frames), option=option)


def sample_facts(samples: EvalSet, option: str) -> dict[str, str]:
    """Return what distinguishes samples and their labels from all others, by name, wherever the shards lie.

    Args:
        samples: the samples.
        option: the group of options that chose them, for the names.
    """
    import numpy as np

    labels = samples.corpus.labels
    of_labels = (labels.offsets.astype(np.int64).tobytes(), labels.values.astype(np.int32).tobytes())
    return {
        f"{option}: datasets": samples.corpus.fingerprint,
        f"{option}: labels": short_hash(*of_labels, "\n".join(labels.names).encode()),
        f"{option}: samples": short_hash(samples.rows.astype(np.int64).tobytes()),
    }


def short_hash(*parts: bytes) -> str:
    """Return the first digits of a hash over all bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def draw_rows(rows: "np.ndarray", count: int, *, seed: int, stream: "Stream") -> "np.ndarray":
    """Return at most `count` of the rows, drawn by (seed, stream), in their order."""
    import numpy as np

    from mae3d.io.random import philox

    return np.sort(philox(seed, stream).choice(rows, size=min(count, len(rows)), replace=False))
