"""`--data.*` and `--test.*` of the commands that probe ─► two sets of labelled samples, and the encoder as a control.

train, test = labelled_sets(config.data, config.test, frozen.trained, frozen.encoder.config, world)
control = untrained(frozen.encoder, seed=0)
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.common.clip_options import ClipsConfig

if TYPE_CHECKING:
    from launch.common.eval_set import EvalSet
    from mae3d.distributed import World
    from mae3d.model.config import EncoderConfig
    from mae3d.model.encoder import Encoder
    from mae3d.model.frames import FrameEncoder


def check_shards(data: ClipsConfig, test: ClipsConfig) -> None:
    """Refuse a train or test set without shards; ValueError."""
    for name, side in (("data", data), ("test", test)):
        if not side.shards:
            raise ValueError(f"--{name}.shards is missing: give the folder made by `mae3d preprocess build`")


def refuse_other_results(path: Path, *, names: Sequence[str]) -> None:
    """Raise ValueError if another program's file has the name of the results, which have these entries."""
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            stored = None
        if not isinstance(stored, dict) or not stored.keys() >= set(names):
            raise ValueError(
                f"{path}: not replaced, because MAE3D has not made it: move it away, or give another --out"
            )


def labelled_sets(
    data: ClipsConfig,
    test: ClipsConfig,
    trained: Mapping[str, Any],
    model_config: "EncoderConfig",
    world: "World",
    *,
    two_classes: bool,
) -> "tuple[EvalSet, EvalSet]":
    """Return the train and test samples that have a label, the test set's under the numbers of the train set.

    Args:
        data: the train set.
        test: the test set, sampled as the train set unless it says otherwise.
        trained: settings of the training's DataConfig by name.
        model_config: the model's.
        world: all ranks; rank 0 reports the samples that are left out.
        two_classes: whether train samples of one class alone are refused.

    Raises:
        ValueError: a dataset or its labels are wrong; the message gives the remedy.
    """
    from launch.inference.evaluate import open_samples
    from pipelines.samples.corpus import check_labels
    from pipelines.samples.labels import numbered_as

    train_set = open_samples(data, trained, model_config, world)
    sampling = {name: getattr(train_set.clips, name) for name in ("sampling_rate", "target_fps")}
    test_set = open_samples(test, dict(trained) | sampling, model_config, world, "test")
    sets = []
    for option, samples in (("data", train_set), ("test", test_set)):
        labelled = samples.rows[samples.corpus.labels.per_sample[samples.rows] > 0]
        if not len(labelled):
            raise ValueError(f"{samples.corpus}: no sample has a label; give labels with --{option}.labels FILE")
        if world.is_first and len(labelled) < len(samples.rows):
            print(
                f"{option}: {len(samples.rows) - len(labelled):,} samples without a label are left out", file=sys.stderr
            )
        sets.append(replace(samples, rows=labelled))
    train, tested = sets[0].corpus, sets[1].corpus
    tested.labels = numbered_as(tested.labels, train.label_names, rows=sets[1].rows, option="test")
    multi_label = train.has_multiple_labels or tested.has_multiple_labels
    for option, samples in zip(("data", "test"), sets, strict=True):
        check_labels(
            samples.corpus, samples.rows, num_classes=train.num_classes, multi_label=multi_label, option=option
        )
    classes = {label for row in sets[0].rows.tolist() for label in train.labels.of(row)}
    if two_classes and not multi_label and len(classes) < 2:
        raise ValueError(f"{train}: all train samples have one class: give samples of two or more, or no linear")
    return sets[0], sets[1]


def untrained(encoder: "Encoder | FrameEncoder", seed: int) -> "Encoder | FrameEncoder":
    """Return the encoder with which a pretraining run of this seed begins; of an image ViT, timm's random one."""
    import torch

    from mae3d.model.foreign import HookEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(encoder, HookEncoder):
            return encoder.untrained().eval()
        fresh: Encoder | FrameEncoder = type(encoder)(encoder.config)  # type: ignore[arg-type]  # of its own class
        return fresh.eval()
