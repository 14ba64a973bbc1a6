"""`--val.*` or `--eval.*` ─► samples that are not trained on, and the scores of a model on them, from all ranks.

held_out = open_held_out(config.eval, train, option="eval", num_frames=16)
rows, losses = score_samples(held_out, losses_of, model_config=config.model, world=world, batch=8, stopping=stopping)
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from launch.common.clip_options import ClipsConfig, clips_config
from launch.common.eval_set import EvalSet, selected_rows
from pipelines.config import DataConfig

if TYPE_CHECKING:
    from mae3d.distributed import World
    from mae3d.model.config import EncoderConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch

Options = TypeVar("Options", bound=ClipsConfig)


def open_held_out(
    options: ClipsConfig,
    train: EvalSet,
    *,
    option: str,
    num_frames: int,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
) -> EvalSet:
    """Open the held-out samples, and refuse samples that are trained on.

    Args:
        options: the command line's; without shards, they select among the training shards.
        train: the training samples; their settings, with the decoder that was tried, hold if options gives none.
        option: `val` or `eval`, for messages.
        num_frames: of the model's clips.
        channels: of their frames; None = as stored.
        classes: names by number that labels are matched to; None leaves the labels as they are.

    Raises:
        ValueError: no sample is left, samples are trained on or have other channels, or a decoder is requested that
            was not tried.
    """
    from pipelines.decoding.channels import check_channels
    from pipelines.samples.corpus import corpus_of
    from pipelines.samples.labels import numbered_as

    has_shards = bool(options.shards)
    if not has_shards:
        options = _of_training_shards(options, train.clips)
    clips = clips_config(options, asdict(train.clips))
    corpus = corpus_of(clips, option=option)
    check_channels(corpus, channels)
    clips = replace(clips, decode=_tried_decode(options, corpus, train, option=option))
    rows = selected_rows(corpus, clips, num_frames=num_frames, option=option)
    if classes is not None:  # of the samples that take part
        corpus.labels = numbered_as(corpus.labels, classes, rows=rows, option=option)
    if not has_shards and np.isin(rows, train.rows).any():
        kind, off = ("validation", "null") if option == "val" else ("evaluation", "0")
        raise ValueError(
            f"{kind} on samples that are trained on: give --{option}.shards FOLDER, or take others of the training "
            f"shards with --{option}.select.split val and --data.select.split train; --{option}.every {off} goes "
            "without"
        )
    if not len(rows):
        raise ValueError(f"{corpus}: no sample is held out; give another {option}.select")
    return EvalSet(corpus, clips, rows)


def _tried_decode(
    options: ClipsConfig, corpus: "Corpus", train: EvalSet, *, option: str
) -> Literal["auto", "mixed", "cpu"]:
    """Return the decoder of held-out samples; H.264 is decoded on a GPU only if the training tried that."""
    was_tried = corpus.layouts == train.corpus.layouts and train.clips.decode == "mixed"
    if options.decode == "auto":
        return train.clips.decode if corpus.layouts == train.corpus.layouts else "cpu"
    if options.decode == "mixed" and "video" in corpus.layouts and not was_tried:
        raise ValueError(
            f"{option}.decode=mixed decodes H.264 on the GPU only beside training data of layout video with "
            f"--data.decode mixed, which tries it first; give that, or --{option}.decode cpu"
        )
    return options.decode


def score_samples(
    samples: EvalSet,
    score_batch: "Callable[[Batch], np.ndarray]",
    *,
    model_config: "EncoderConfig",
    world: "World",
    batch: int,
    stopping: Callable[[], bool],
    num_clips: int = 1,
    num_crops: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Score each sample that can be read; all ranks call it, and score as many batches each.

    Args:
        samples: the samples.
        score_batch: a batch ─► (B, ...), on this rank.
        model_config: the model's.
        world: all ranks.
        batch: samples per batch.
        stopping: whether to stop, the same on all ranks; called after each batch.
        num_clips: clips of each sample.
        num_crops: crops of each clip.

    Returns:
        (n,) rows of the corpus, in order, and (n, ...) their scores: all of them, on every rank.

    Raises:
        Interrupted: `stopping()` was true.
    """
    from mae3d.training.stop_request import Interrupted

    stream = samples.stream(
        model_config,
        num_clips=num_clips,
        num_crops=num_crops,
        batch_size=batch,
        rank=world.ranks.rank,
        world=world.ranks.size,
        local_world=world.ranks.local_size,
        device=world.device,
    )
    positions, scores = [], []
    try:
        for clips in stream:
            readable = clips.is_whole.numpy()
            positions.append(clips.positions.numpy()[readable])
            scores.append(score_batch(clips)[readable])
            if stopping():
                raise Interrupted
    finally:
        stream.close()
    parts = world.gather((np.concatenate(positions), np.concatenate(scores)))
    position = np.concatenate([part[0] for part in parts])
    order = np.argsort(position)
    return samples.rows[position[order]], np.concatenate([part[1] for part in parts])[order]


def _of_training_shards(options: Options, data: DataConfig) -> Options:
    """Return the options with the training shards, opened and labelled as for training if they give nothing else."""
    return replace(
        options,
        shards=data.shards,
        labels=options.labels or data.labels,
        exclude_bad_shards=options.exclude_bad_shards or data.exclude_bad_shards,
        cache=options.cache or data.cache,
        cache_gb=options.cache_gb if options.cache else data.cache_gb,
    )
