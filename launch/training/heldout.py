"""`--val.*` or `--eval.*` ─► samples that are not trained on, and what a model says of each, from all processes.

held = open_held_out(config.eval, config.data, corpus, loader.rows, option="eval", num_frames=16)
found, losses = over_samples(held, losses_of, own=model.config, world=world, batch=8, stopping=stopping)
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from launch.common.clip_options import ClipsConfig, clips_config
from pipelines.config import DataConfig

if TYPE_CHECKING:
    from mae3d.distributed import World
    from mae3d.model.config import EncoderConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch

Asked = TypeVar("Asked", bound=ClipsConfig)


@dataclass(frozen=True)
class HeldOut:
    """Samples to look at between steps.

    Attributes:
        corpus: The opened shards.
        clips: How clips are sampled and decoded.
        rows: (N,) rows of the corpus, ascending.
    """

    corpus: "Corpus"
    clips: DataConfig
    rows: np.ndarray


def open_held_out(
    asked: ClipsConfig,
    data: DataConfig,
    train: "Corpus",
    train_rows: np.ndarray,
    *,
    option: str,
    num_frames: int,
    classes: Sequence[str] | None = None,
) -> HeldOut:
    """Opens the shards and refuses what is trained on.

    Args:
        asked: on the command line; without shards, others of the training shards are meant.
        data: how the training clips are sampled, where nothing else is said; its decoder was tried.
        train: the training datasets.
        train_rows: rows of it that are trained on.
        option: `val` or `eval`, for messages.
        num_frames: of the model's clips.
        classes: names by number that labels are matched to; None leaves the labels as they are.

    Raises:
        ValueError: no sample is left, or samples are trained on.
    """
    from pipelines.samples.corpus import corpus_of
    from pipelines.samples.selection import select_rows
    from pipelines.sampling.requests import usable_rows

    own_shards = bool(asked.shards)
    if not own_shards:
        asked = _of_training_shards(asked, data)
    decode = data.decode if asked.decode == "auto" else asked.decode
    clips = replace(clips_config(asked, asdict(data)), decode=decode)
    corpus = corpus_of(clips, classes=classes)
    rows = select_rows(corpus, clips.select, rows=usable_rows(corpus, clips, num_frames=num_frames))
    if not own_shards and np.isin(rows, train_rows).any():
        what, off = ("validation", "null") if option == "val" else ("evaluation", "0")
        raise ValueError(
            f"{what} on samples that are trained on: give --{option}.shards FOLDER, or take others of the training "
            f"shards with --{option}.select.split val and --data.select.split train; --{option}.every {off} goes "
            "without"
        )
    if not len(rows):
        raise ValueError(f"{corpus}: no samples to look at; see {option}.select")
    return HeldOut(corpus, clips, rows)


def over_samples(
    held: HeldOut,
    look: "Callable[[Batch], np.ndarray]",
    *,
    own: "EncoderConfig",
    world: "World",
    batch: int,
    stopping: Callable[[], bool],
    num_clips: int = 1,
    num_crops: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """What `look` says of each sample that can be read; all processes call it, each looks at as many batches.

    Args:
        held: the samples.
        look: a batch ─► (B, ...), on this process.
        own: the model's config.
        world: all processes.
        batch: samples at a time.
        stopping: whether to leave off, the same on all processes; asked after each batch.
        num_clips: clips of each sample.
        num_crops: crops of each clip.

    Returns:
        (n,) rows of the corpus, in order, and (n, ...) what was said of them: on every process, from all of them.

    Raises:
        Interrupted: it was left off.
    """
    from mae3d.training.stop_request import Interrupted
    from pipelines.stream import evaluation_clips

    stream = evaluation_clips(
        held.corpus,
        held.clips,
        rows=held.rows,
        num_frames=own.num_frames,
        size=own.img_size,
        num_clips=num_clips,
        num_crops=num_crops,
        batch_size=batch,
        rank=world.place.rank,
        world=world.place.size,
        local_world=world.place.local_size,
        device=world.device,
    )
    positions, said = [], []
    try:
        for some in stream:
            whole = (some.status == 0).numpy()  # neither padding nor another sample in a damaged one's place
            positions.append(some.positions.numpy()[whole])
            said.append(look(some)[whole])
            if stopping():
                raise Interrupted
    finally:
        stream.close()
    parts = world.gather((np.concatenate(positions), np.concatenate(said)))
    found = np.concatenate([part[0] for part in parts])
    order = np.argsort(found)
    return held.rows[found[order]], np.concatenate([part[1] for part in parts])[order]


def _of_training_shards(asked: Asked, data: DataConfig) -> Asked:
    """The training shards, opened and labelled as for training where nothing else is said."""
    return replace(
        asked,
        shards=data.shards,
        labels=asked.labels or data.labels,
        exclude_bad_shards=asked.exclude_bad_shards or data.exclude_bad_shards,
        cache=asked.cache or data.cache,
        cache_gb=asked.cache_gb if asked.cache else data.cache_gb,
    )
