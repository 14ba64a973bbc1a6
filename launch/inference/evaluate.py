"""A model and `--data.*` ─► a table with one row per sample, filled on all ranks.

samples = open_samples(config.data, trained_data(file), model.config, world)
table, is_new = evaluate_into_table(path, samples, model.config, columns_of, settings=settings, ...)
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.common.clip_options import ClipsConfig, agreed_model_hash, clips_config
from launch.common.eval_set import SAME_DATA, EvalSet, sample_facts, selected_rows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from launch.inference.settings import EvaluateConfig
    from launch.inference.sharded_table import ShardedTable
    from mae3d.distributed import World
    from mae3d.model.config import EncoderConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch


def open_samples(
    options: ClipsConfig,
    trained: Mapping[str, Any],
    model_config: "EncoderConfig",
    world: "World",
    option: str = "data",
) -> EvalSet:
    """Open the requested clips, sampled as in training unless the options say otherwise; all ranks call it.

    Args:
        options: the command line's.
        trained: settings of the training's DataConfig by name.
        model_config: the model's.
        world: all ranks.
        option: section of the command line that the options are of, for messages.

    Raises:
        ValueError: a setting or the dataset is wrong, or ranks see different ones; the message gives the remedy.
    """
    from launch.common.decode import choose_decode
    from pipelines.decoding.channels import check_channels
    from pipelines.samples.corpus import corpus_of
    from pipelines.samples.selection import describe_flagged
    from pipelines.sampling.requests import check_views, usable_rows

    clips = clips_config(options, trained)
    check_views(clips, num_frames=model_config.num_frames, size=model_config.img_size)
    corpus = corpus_of(clips, option=option)
    check_channels(corpus, model_config.in_chans)
    usable = usable_rows(corpus, clips, num_frames=model_config.num_frames)
    left_out = list(corpus.left_out)
    if num_short := len(corpus.readable_rows) - len(usable):
        left_out.append(f"{num_short:,} samples shorter than a clip of the model, as in its training (data.short=drop)")
    if not len(usable):
        raise ValueError(
            f"{corpus}: no sample can be used; left out: {'; '.join(left_out)}. Give other --{option}.shards, or a "
            f"smaller --{option}.sampling_rate than {clips.sampling_rate:g}, which makes clips shorter"
        )
    rows = selected_rows(corpus, clips, num_frames=model_config.num_frames, option=option)
    if flagged := describe_flagged(corpus, clips.select):
        left_out.append(flagged)
    decode, note = choose_decode(clips.decode, stored=None, world=world, layouts=corpus.layouts)
    if world.is_first:
        for line in [*(f"left out: {reason}" for reason in left_out), *([f"decode: {note}"] if note else [])]:
            print(line, file=sys.stderr, flush=True)
    samples = EvalSet(corpus, replace(clips, decode=decode), rows)
    world.check_same(sample_facts(samples, option), SAME_DATA)
    return samples


def evaluate_into_table(
    path: Path,
    samples: EvalSet,
    model_config: "EncoderConfig",
    columns_of: "Callable[[Batch], Mapping[str, pa.Array]]",
    *,
    settings: Mapping[str, Any],
    world: "World",
    batch_size: int,
    keys_of: "Callable[[np.ndarray], Mapping[str, pa.Array]] | None" = None,
    starts: "np.ndarray | None" = None,
    num_clips: int = 1,
    num_crops: int = 1,
    row_bytes: int = 0,
    unit: str = "clips",
    beside: Sequence[str] = (),
) -> "tuple[ShardedTable, bool]":
    """Fill a table with the columns that a model gives for each sample; all ranks call it.

    Args:
        path: of the table, a Parquet file; its folder must exist.
        samples: one row of the table each.
        model_config: the model's, for the number of frames and the size.
        columns_of: a batch ─► columns with one value per sample; null for samples that cannot be read.
        settings: all that the rows depend on, `sample_settings` included.
        world: all ranks.
        batch_size: samples per batch; the same values make the same table.
        keys_of: row numbers of the table ─► the columns that come first; None for `sample_keys`.
        starts: (N,) first frames of each row's one clip instead of clips that are spread over the sample.
        num_clips: clips of each sample.
        num_crops: crops of each clip.
        row_bytes: of a row on the disk, at least.
        unit: the progress bar's.
        beside: names of the files that the caller writes beside the table.

    Returns:
        The table, and whether this start wrote it; False if it was finished already.

    Raises:
        ValueError: a TableError, because the table was begun with other settings.
        OSError: the table cannot be written.
    """
    from launch.inference.sharded_table import ShardedTable, fill_missing_shards

    def open_stream(numbers: "np.ndarray") -> Any:
        return samples.stream(
            model_config,
            rows=samples.rows[numbers],
            starts=None if starts is None else starts[numbers],
            num_clips=num_clips,
            num_crops=num_crops,
            batch_size=batch_size,
            local_world=world.ranks.local_size,
            device=world.device,
        )

    table = ShardedTable(
        path,
        num_rows=len(samples.rows),
        batch_size=batch_size,
        settings=settings,
        row_bytes=row_bytes,
        beside=beside,
    )
    is_new = fill_missing_shards(
        table,
        world=world,
        open_stream=open_stream,
        keys_of=keys_of or (lambda numbers: sample_keys(samples.corpus, samples.rows[numbers])),
        columns_of=columns_of,
        unit=unit,
    )
    return table, is_new


def sample_keys(corpus: "Corpus", rows: "np.ndarray") -> "dict[str, pa.Array]":
    """Return the columns that a table begins with: key, name, labels (list of int32; empty = unlabelled).

    Args:
        corpus: the opened shards.
        rows: (n,) rows of the corpus.
    """
    import pyarrow as pa

    numbers = rows.tolist()
    return {
        "key": pa.array([corpus.key(row) for row in numbers], pa.string()),
        "name": pa.array([corpus.name(row) for row in numbers], pa.string()),
        "labels": pa.array([corpus.labels_of(row) for row in numbers], pa.list_(pa.int32())),
    }


def sample_settings(samples: "EvalSet") -> dict[str, Any]:
    """Return the settings of a table that come from its data: datasets, labels, samples, and the sampling of clips."""
    facts = sample_facts(samples, "data")
    names = ("decode", "sampling", "short", "sampling_rate", "target_fps", "num_segments", "frames_per_segment")
    return {
        "dataset": facts["data: datasets"],
        "labels": facts["data: labels"],
        "samples": facts["data: samples"],
        "data": {name: getattr(samples.clips, name) for name in names},
    }


def common_settings(config: "EvaluateConfig", file: Path, samples: EvalSet, world: "World") -> dict[str, object]:
    """Return the settings that the table of either task of evaluate.py depends on; all ranks call it."""
    return {
        "task": config.task,
        "model": agreed_model_hash(file, world),
        "batch": config.batch,  # the last bits depend on it
        "precision": config.precision,
        "device": world.device.type,
        **sample_settings(samples),
    }


def describe_end(out: Path, *, is_new: bool) -> str:
    """Return the last line of a command's report."""
    return f"{'written' if is_new else 'finished already'}: {out}"
