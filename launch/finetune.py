"""Shards with labels, and the weights of a pretraining ─► a classifier of clips.

    mae3d finetune --init RUN --data.shards TRAIN --val.shards VAL --run.dir FINE
    mae3d launch -n 8 finetune --config finetune_k400_vit_large --init RUN --data.shards TRAIN --val.shards VAL \\
        --run.dir FINE
    mae3d finetune --init "" --model.preset NAME ...             # from scratch
    mae3d finetune --init RUN ... --few_shot 1,10,50 --seeds 3   # K samples per class; one table
    mae3d finetune --init timm:vit_small_patch14_dinov2 --init_weights FILE ...  # an image ViT, by frames

Starting the same command again resumes. `deepspeed launch/finetune.py`, torchrun and srun start it as well.
"""

import sys
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import parse
from launch.common.encoders import TIMM
from launch.common.init import has_checkpoint_from, open_init
from launch.training.config import FinetuneConfig, FinetuneModelConfig
from launch.training.trainer import run_task, run_training
from mae3d.io.hooks import is_hook
from mae3d.model.config import ClassifierConfig, EncoderConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    import torch

    from launch.training.finetune_eval import Validator
    from mae3d.distributed import World
    from mae3d.model.classifier import Classifier
    from mae3d.model.encoder import Encoder
    from mae3d.model.frames import FrameEncoder
    from mae3d.tracking.run_dir import Run
    from mae3d.training.engine import Engine
    from pipelines.loader import Loader
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(FinetuneConfig, arguments, prog="mae3d finetune", description=str(__doc__))
    if config.few_shot:
        from launch.training.few_shot import few_shot

        return run_training(config, partial(few_shot, train=finetune))
    return run_training(config, finetune)


def finetune(config: FinetuneConfig, corpus: "Corpus", world: "World") -> bool:
    """Train to the end, or to an agreed stop, as `run_task` does; False after a stop."""
    return run_task(FinetuneTask, config, corpus, world)


class FinetuneTask:
    """A classifier, its loss on mixed clips, and validation."""

    def __init__(self, config: FinetuneConfig, corpus: "Corpus", run: "Run", world: "World"):
        """Open the initial weights, number the labels and complete the model's config.

        The arguments are `run_task`'s.

        Raises:
            ValueError: the weights or the labels do not fit the settings.
        """
        from pipelines.samples.labels import numbered_as

        if config.model.class_names:
            corpus.labels = numbered_as(corpus.labels, config.model.class_names)
        self._config, self._corpus, self._world = config, corpus, world
        begun = has_checkpoint_from(run, config.init)
        self._encoder = _open_init(config, world) if config.init and not begun else None
        trained: EncoderConfig | None = self._encoder.config if self._encoder else None
        if begun:
            trained = ClassifierConfig(**run.stored()["model"])
        self.model_config = complete_config(config, corpus, trained)
        self.stored_config = replace(config, model=FinetuneModelConfig(**asdict(self.model_config)))
        self.lr_batch = [config.train.global_batch, config.data.repeat_aug]
        self.ema = config.optim.ema
        classes = (
            f"{self.model_config.num_classes} classes{', several a clip' if self.model_config.multi_label else ''}"
        )
        self.model_note = f"{classes}; {f'encoder of {config.init}' if config.init else 'from scratch'}"
        self.notes: Mapping[str, str] = {}

    def open_evaluation(self, loader: "Loader") -> "Validator":
        """Check the labels and the batch, and open the clips of `--val.*`."""
        from launch.common.eval_set import EvalSet
        from launch.training.finetune_eval import Validator
        from mae3d.training.mixing import check_batch
        from pipelines.samples.corpus import check_labels

        config, model = self._config, self.model_config
        missing = config.data.missing_classes
        check_labels(
            self._corpus,
            loader.rows,
            num_classes=model.num_classes,
            multi_label=model.multi_label,
            missing_classes="ignore" if missing == "warn" and not self._world.is_first else missing,
        )
        check_batch(config.mix, clips=loader.micro_batch * config.data.repeat_aug)
        train = EvalSet(self._corpus, config.data, loader.rows)
        return Validator(config.val, train, model, self._world, steps_per_epoch=loader.steps_per_epoch)

    def build_model(self) -> "Classifier":
        """Return the classifier with the encoder's initial weights."""
        from mae3d.model.classifier import Classifier
        from mae3d.weights.resize import load_encoder

        model = Classifier(self.model_config)
        if self._encoder is not None:
            load_encoder(model, self._encoder)
            self._encoder = None
        return model

    def parameter_groups(self, model: "Classifier") -> "Iterable[Any]":
        """Return the groups by layer, with and without weight decay."""
        from mae3d.training.optim import finetune_groups

        optim = self._config.optim
        return finetune_groups(model, weight_decay=optim.weight_decay, layer_decay=optim.layer_decay)

    def loss(self) -> "Callable[..., torch.Tensor]":
        """Return `classified_loss`."""
        return classified_loss(self._config, self.model_config, self._world)


def _open_init(config: FinetuneConfig, world: "World") -> "Encoder | FrameEncoder":
    """Open the encoder that `init` names; an image ViT, or one of the user's, for clips of the classifier's size."""
    from launch.common.clip_options import agreed_model_file

    is_file = not config.init.startswith(TIMM) and not is_hook(config.init)
    size = (
        config.model.num_frames or EncoderConfig.num_frames,
        config.model.t_patch_size or EncoderConfig.t_patch_size,
    )
    return open_init(
        str(agreed_model_file(config.init, world)) if is_file else config.init,
        config.init_weights,
        config.init_inflate,
        size=size,
        seed=config.train.seed,
        img_size=config.model.img_size,
    )


def classified_loss(
    config: FinetuneConfig, model_config: ClassifierConfig, world: "World"
) -> "Callable[..., torch.Tensor]":
    """Return the loss of a batch: its views as single clips, mixed and dropped by (seed, step, micro-batch, rank)."""
    import torch

    from mae3d.model.classifier import classification_loss, drop_seed
    from mae3d.training.mixing import draw_mix, mix_clips, mix_targets, soft_targets

    seed, rank = config.train.seed, world.ranks.rank
    size = {"height": model_config.height, "width": model_config.width}

    def loss_of(engine: "Engine", batch: "Batch", *, step: int, micro: int) -> "torch.Tensor":
        labels = fit_labels(batch.labels.flatten(0, 1), model_config)
        targets = soft_targets(labels, num_classes=model_config.num_classes, smoothing=config.mix.smoothing)
        mix = draw_mix(config.mix, seed=seed, step=step, micro=micro, rank=rank, **size)
        torch.manual_seed(drop_seed(seed, step=step, micro=micro, rank=rank))
        logits = engine(mix_clips(batch.clips.flatten(0, 1), mix))
        return classification_loss(logits, mix_targets(targets, mix), multi_label=model_config.multi_label)

    return loss_of


def fit_labels(labels: "torch.Tensor", model_config: ClassifierConfig) -> "torch.Tensor":
    """Return the labels of clips, laid out by the whole dataset, in the layout of the classifier."""
    from torch.nn.functional import one_hot, pad

    if labels.ndim == 2:  # the samples that are trained on have none of the classes that only one of the two has
        return pad(labels, (0, model_config.num_classes - labels.shape[1]))
    if not model_config.multi_label:
        return labels
    # No sample of the dataset has more than one label, -1 for none: 0 and 1 for each class.
    return one_hot(labels + 1, model_config.num_classes + 1)[:, 1:].float()


def complete_config(config: FinetuneConfig, corpus: "Corpus", encoder: EncoderConfig | None) -> ClassifierConfig:
    """Return the classifier's config: the command line's settings, then the encoder's and the data's.

    Raises:
        ValueError: there are neither weights nor a preset, or they contradict each other.
    """
    given = {entry.name: getattr(config.model, entry.name) for entry in fields(config.model)}
    given = {name: value for name, value in given.items() if value is not None}
    given["backbone"] = getattr(encoder, "backbone", "")
    if config.model.backbone not in ("", given["backbone"]):
        kind = given["backbone"] or "a video encoder"
        raise ValueError(
            f"model.backbone={config.model.backbone}: the classifier's encoder is {kind}; give --init timm:NAME instead"
        )
    given.setdefault("num_classes", corpus.num_classes)
    given.setdefault("multi_label", corpus.has_multiple_labels)
    further = range(len(corpus.label_names), given["num_classes"])
    if not given["class_names"] and corpus.label_names and len(corpus.label_names) <= given["num_classes"]:
        given["class_names"] = (*corpus.label_names, *(f"(class {number})" for number in further))
    preset = config.model.preset
    if encoder is None and preset is None:
        raise ValueError(
            "there is no model to train: give --init RUN (or weights), or --model.preset NAME to train from scratch"
        )
    if encoder is None:
        return ClassifierConfig(**given)
    if preset is not None:
        sizes = {entry.name for entry in fields(EncoderConfig)} & given.keys()
        of_preset = EncoderConfig(**{name: given[name] for name in sizes})
        for name in ("embed_dim", "depth", "num_heads"):
            requested, stored = getattr(of_preset, name), getattr(encoder, name)
            if requested != stored:
                raise ValueError(
                    f"model.preset={preset} has {name} {requested}, the weights of {config.init} have {stored}: "
                    "leave model.preset out, because init has its own size"
                )
    return ClassifierConfig.of(encoder, **given)


if __name__ == "__main__":
    sys.exit(main())
