"""`--data.*` and a model ─► the opened shards, the rows that take part, and how their clips are sampled.

samples = open_samples(config.data, trained, encoder.config, world)
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from launch.common.clip_options import ClipsConfig, clips_config
from pipelines.config import DataConfig

if TYPE_CHECKING:
    import numpy as np

    from mae3d.distributed import World
    from mae3d.model.config import EncoderConfig
    from pipelines.samples.corpus import Corpus


@dataclass(frozen=True)
class Samples:
    """What a model looks at.

    Attributes:
        corpus: The opened shards.
        clips: How clips are sampled and decoded.
        rows: (N,) rows of the corpus, ascending.
    """

    corpus: "Corpus"
    clips: DataConfig
    rows: "np.ndarray"


def open_samples(asked: ClipsConfig, trained: Mapping[str, Any], own: "EncoderConfig", world: "World") -> Samples:
    """The clips that were asked for, sampled as in training where nothing else was; to be called by all processes.

    Args:
        asked: on the command line.
        trained: settings of the training's DataConfig by name.
        own: the model's config.
        world: all processes.

    Raises:
        ValueError: a setting or the dataset is not as it should be.
    """
    from launch.common.decode import choose_decode
    from pipelines.samples.corpus import corpus_of
    from pipelines.samples.selection import select_rows
    from pipelines.sampling.requests import check_views, usable_rows

    clips = clips_config(asked, trained)
    check_views(clips, num_frames=own.num_frames, size=own.img_size)
    corpus = corpus_of(clips)
    usable = usable_rows(corpus, clips, num_frames=own.num_frames)
    left_out = list(corpus.left_out)
    if num_short := len(corpus.readable_rows) - len(usable):
        left_out.append(f"{num_short:,} samples shorter than a clip of the model, as in its training (data.short=drop)")
    if not len(usable):
        raise ValueError(
            f"{corpus}: no sample can be used; left out: {'; '.join(left_out)}. Give other --data.shards, or a smaller "
            f"--data.sampling_rate than {clips.sampling_rate:g}, which makes clips shorter"
        )
    rows = select_rows(corpus, clips.select, rows=usable)
    decode, note = choose_decode(clips.decode, stored=None, world=world)
    if world.is_first:
        for line in [*(f"left out: {what}" for what in left_out), *([f"decode: {note}"] if note else [])]:
            print(line, file=sys.stderr, flush=True)
    return Samples(corpus, replace(clips, decode=decode), rows)
