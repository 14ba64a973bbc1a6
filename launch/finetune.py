"""Shards with labels, and the weights of a pretraining ─► a classifier of clips.

    deepspeed launch/finetune.py --config finetune_k400_vit_large --init RUN --data.shards TRAIN --val.shards VAL \\
        --run.dir FINE
    deepspeed launch/finetune.py --init "" --model.preset NAME ...             # from scratch
    deepspeed launch/finetune.py --init RUN ... --few_shot 1,10,50 --seeds 3   # K samples a class; one table

Starting the same command again resumes. torchrun, srun and plain python start it as well.
"""

import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch.training.finetune_eval import ValConfig

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import parse
from launch.common.init import has_begun
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
from mae3d.model.config import ClassifierConfig, EncoderConfig, MixConfig
from mae3d.tracking.config import LogConfig
from mae3d.training.config import FinetuneOptimConfig, RunConfig, TrainConfig
from pipelines.config import DataConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from mae3d.distributed import World
    from mae3d.training.engine import Engine
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch


_ENCODER = {entry.name for entry in fields(EncoderConfig)}


@dataclass(frozen=True)
class FinetuneModelConfig:
    """The classifier. What is null is as `init` has it; from scratch, as the preset has it.

    Attributes:
        preset: name of a standard size, from scratch.
        img_size: height and width of a clip in pixels; positions are interpolated to another one.
        num_frames: frames of a clip; likewise.
        patch_size: height and width of a patch in pixels.
        t_patch_size: frames of a patch.
        embed_dim: the encoder's width.
        depth: its blocks.
        num_heads: its attention heads.
        mlp_ratio: width of a block's hidden layer over its own.
        qkv_bias: whether query, key and value have biases.
        cls_embed: whether there is a class token.
        sep_pos_embed: whether positions are the sum of a table for space and one for time.
        trunc_init: other first weights, as mae_st's switch has it.
        pos_init: positions from scratch: `normal` noise or `sines`.
        mean: of the pixels, which are normalised by it.
        std: likewise.
        num_classes: null is as many as the training data has.
        class_names: what they are called, by number; none = as the training data has them.
        multi_label: several labels a clip (binary cross-entropy, mAP); null is as the training data has it.
        pooling: `mean` of the tokens (mae_st), or `cls`, the class token (eminorhan/mae_st).
        dropout: share of the pooled features that is dropped in training.
        drop_path: share of the clips that skip the last block's branches in training; 0 in the first, rising linearly.
        head_std: deviation of the head's first weights.
    """

    preset: str | None = None
    img_size: int | None = None
    num_frames: int | None = None
    patch_size: int | None = None
    t_patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    qkv_bias: bool | None = None
    cls_embed: bool | None = None
    sep_pos_embed: bool | None = None
    trunc_init: bool | None = None
    pos_init: Literal["normal", "sines"] | None = None
    mean: float | tuple[float, float, float] | None = None
    std: float | tuple[float, float, float] | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    multi_label: bool | None = None
    pooling: Literal["mean", "cls"] = "mean"
    dropout: float = 0.0
    drop_path: float = 0.1
    head_std: float = 2e-5


@dataclass(frozen=True)
class FinetuneDataConfig(DataConfig):
    """The training clips: all repeats of a sample are cut from one window, harder than for pretraining."""

    repeat_aug: int = 1
    windows: Literal["own", "shared"] = "shared"
    area: tuple[float, float] = (0.08, 1.0)


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that one command line sets.

    Attributes:
        init: where the encoder comes from: a run, an exported folder, a model file or a foreign checkpoint; none = from
            scratch.
        model: the classifier
        data: the training clips
        val: the validation clips
        mix: mixup, cutmix and label smoothing
        optim: the optimizer
        train: the training
        run: the run's folder
        log: what is written
        few_shot: train with K samples a class instead of all, for each K given: `--few_shot 1,10,50`; one table.
        seeds: runs for each K, of the seeds train.seed, train.seed + 1, ...: other samples, other order, another head.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
        extend: go on with a run under another train.steps or train.epochs.
    """

    init: str = ""
    model: FinetuneModelConfig = field(default_factory=FinetuneModelConfig)
    data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    val: ValConfig = field(default_factory=ValConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=50))
    run: RunConfig = field(default_factory=RunConfig)
    log: LogConfig = field(default_factory=LogConfig)
    few_shot: tuple[int, ...] = ()
    seeds: int = 3
    device: str = "auto"
    extend: bool = False

    def __post_init__(self) -> None:
        if any(shots < 1 for shots in self.few_shot) or self.seeds < 1:
            raise ValueError(f"few_shot={list(self.few_shot)} and seeds={self.seeds} must be 1 or more")
        if len(set(self.few_shot)) < len(self.few_shot):
            raise ValueError(f"few_shot={list(self.few_shot)} names a number twice")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(FinetuneConfig, arguments, prog="finetune.py", description=str(__doc__))
    if config.few_shot:
        from launch.training.few_shot import few_shot

        return run_training(config, few_shot)
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
    validator = Validator(config, own, corpus, loader.rows, world, steps_per_epoch=loader.steps_per_epoch)
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
