"""Shards with labels, and the weights of a pretraining ─► a classifier of clips.

    deepspeed launch/finetune.py --config finetune_k400_vit_large --init RUN --data.shards TRAIN --val.shards VAL \\
        --run.dir FINE
    deepspeed launch/finetune.py --init "" --model.preset NAME ...             # from scratch
    deepspeed launch/finetune.py --init RUN ... --few_shot 1,10,50 --seeds 3   # K samples a class; one table

Starting the same command again resumes. torchrun, srun and plain python start it as well.
"""

import sys
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import parse
from launch.common.init import has_begun
from launch.training.config import FinetuneConfig, FinetuneModelConfig
from launch.training.trainer import (
    claim,
    decode_of,
    is_finished,
    make_loader,
    make_plan,
    restore,
    run_training,
    summary,
    tell_end,
)
from mae3d.model.config import ClassifierConfig, EncoderConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from mae3d.distributed import World
    from mae3d.training.engine import Engine
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch


_ENCODER = {entry.name for entry in fields(EncoderConfig)}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(FinetuneConfig, arguments, prog="finetune.py", description=str(__doc__))
    if config.few_shot:
        from launch.training.few_shot import few_shot

        return run_training(config, partial(few_shot, train=finetune))
    return run_training(config, finetune)


def finetune(config: FinetuneConfig, corpus: "Corpus", world: "World") -> bool:
    """Trains to the end; False after an agreed stop.

    Raises:
        ValueError: a setting, the weights, the data or the run's folder is not as it should be; the message says what
            to do.
        TrainingError: the loss is not finite.
        DataError: too much of the data is damaged.
        OSError: a checkpoint or the log cannot be written.
    """
    import torch

    from launch.training.finetune_eval import Validator
    from mae3d.model.classifier import Classifier
    from mae3d.tracking.run_dir import Run
    from mae3d.training.engine import Engine
    from mae3d.training.loop import fit
    from mae3d.training.metrics import step_flops
    from mae3d.training.mixing import check_batch
    from mae3d.training.optim import finetune_groups
    from mae3d.weights.files import open_encoder
    from mae3d.weights.resize import load_encoder
    from pipelines.samples.corpus import check_labels
    from pipelines.samples.labels import numbered_as

    restore(config, world)
    run, train, optim = Run(config.run.dir), config.train, config.optim
    if config.model.class_names:
        corpus.labels = numbered_as(corpus.labels, config.model.class_names)
    # A run that has begun needs the weights that it started from no more: they may be gone.
    begun = has_begun(run, config.init)
    encoder = open_encoder(config.init) if config.init and not begun else None
    known = encoder.config if encoder else ClassifierConfig(**run.stored()["model"]) if begun else None
    own = _model_config(config, corpus, known)
    config = replace(config, data=replace(config.data, decode=decode_of(config, run, world)))
    loader = make_loader(config, corpus, world, num_frames=own.num_frames, size=own.img_size)
    check_labels(corpus, loader.rows, num_classes=own.num_classes, several=own.multi_label)
    check_batch(config.mix, clips=loader.micro_batch * config.data.repeat_aug)
    lr_batch = [train.global_batch, config.data.repeat_aug]
    plan = make_plan(config, loader, lr_batch=lr_batch, flops_per_clip=step_flops(own))
    validator = Validator(
        config.val, config.data, own, corpus, loader.rows, world, steps_per_epoch=loader.steps_per_epoch
    )
    claim(run, replace(config, model=FinetuneModelConfig(**asdict(own))), world)
    if is_finished(run, world):
        return True
    torch.manual_seed(train.seed)
    model = Classifier(own)
    if encoder is not None:
        load_encoder(model, encoder)
    model.set_grad_checkpointing(train.grad_checkpointing)
    if world.is_first:
        told = summary(
            config,
            corpus,
            loader,
            plan,
            world,
            own=own,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            more=f"{own.num_classes} classes{', several a clip' if own.multi_label else ''}; "
            + (f"encoder of {config.init}" if config.init else "from scratch"),
            lr_batch=lr_batch,
        )
        print(told)
        print(f"{'val:':9}{validator}", flush=True)
    engine = Engine(
        model,
        finetune_groups(model, weight_decay=optim.weight_decay, layer_decay=optim.layer_decay),
        train=train,
        optim=optim,
        micro_batch=loader.micro_batch,
        world=world,
        ema=optim.ema,
    )
    try:
        finished = fit(
            engine,
            loader,
            classified_loss(config, own, world),
            plan=plan,
            run=run,
            world=world,
            model_config=own,
            validation=validator.of(engine),
        )
    finally:
        loader.close()
        engine.close()
    tell_end(run, world, finished=finished)
    return finished


def classified_loss(config: FinetuneConfig, own: ClassifierConfig, world: "World") -> "Callable[..., torch.Tensor]":
    """The loss of a batch: its views as clips of their own, mixed, dropped as (seed, step, micro-batch, rank) draw."""
    import torch

    from mae3d.model.classifier import classification_loss, drop_seed
    from mae3d.training.mixing import draw_mix, mix_clips, mix_targets, soft_targets

    seed, rank, size = config.train.seed, world.place.rank, own.img_size

    def loss_of(engine: "Engine", batch: "Batch", *, step: int, micro: int) -> "torch.Tensor":
        labels = _fitted(batch.labels, own).repeat_interleave(batch.clips.shape[1], 0)
        targets = soft_targets(labels, num_classes=own.num_classes, smoothing=config.mix.smoothing)
        mix = draw_mix(config.mix, seed=seed, step=step, micro=micro, rank=rank, height=size, width=size)
        torch.manual_seed(drop_seed(seed, step=step, micro=micro, rank=rank))
        logits = engine(mix_clips(batch.clips.flatten(0, 1), mix))
        return classification_loss(logits, mix_targets(targets, mix), multi_label=own.multi_label)

    return loss_of


def _fitted(labels: "torch.Tensor", own: ClassifierConfig) -> "torch.Tensor":
    """A batch's labels, laid out as the whole dataset has them, as the classifier takes them."""
    from torch.nn.functional import one_hot

    if labels.ndim == 2:  # the samples that are trained on have none of further classes
        return labels[:, : own.num_classes]
    # One label a sample at most, -1 for none, where several are allowed: 0 and 1 for each class.
    return one_hot(labels + 1, own.num_classes + 1)[:, 1:].float() if own.multi_label else labels


def _model_config(config: FinetuneConfig, corpus: "Corpus", encoder: EncoderConfig | None) -> ClassifierConfig:
    """The classifier as asked for, else as the weights to start from or the data have it."""
    given = {entry.name: getattr(config.model, entry.name) for entry in fields(config.model)}
    given = {name: value for name, value in given.items() if value is not None}
    given.setdefault("num_classes", corpus.num_classes)
    given.setdefault("multi_label", corpus.has_several_labels)
    if not given["class_names"] and len(corpus.label_names) == given["num_classes"]:
        given["class_names"] = corpus.label_names
    if encoder is None and config.model.preset is None:
        raise ValueError(
            "nothing says what to train: give --init RUN (or weights), or --model.preset NAME from scratch"
        )
    if encoder is None:
        return ClassifierConfig(**given)
    if config.model.preset is not None:
        of_preset = EncoderConfig(**{name: given[name] for name in given if name in _ENCODER})
        for name in ("embed_dim", "depth", "num_heads"):
            asked, have = getattr(of_preset, name), getattr(encoder, name)
            if asked != have:
                raise ValueError(
                    f"model.preset={config.model.preset} has {name} {asked}, the weights of {config.init} have {have}: "
                    "leave model.preset out, init has its own size"
                )
    return ClassifierConfig.of(encoder, **given)


if __name__ == "__main__":
    sys.exit(main())
