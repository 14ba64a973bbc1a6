"""The configs of the two training commands: everything that their command lines set.

PretrainConfig(model=MAEConfig(), data=DataConfig(shards="out/shards"), run=RunConfig(dir="out/run"))

Commands read them for `--help`: no heavy imports here.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from launch.common.clip_options import ClipsConfig
from launch.common.encoders import TIMM, check_encoder
from mae3d.io.bounds import GREATEST, bounded, bounds_of, check_bounds
from mae3d.io.hooks import canonical_hooks, hooked, is_hook
from mae3d.io.resume import free
from mae3d.model.config import ClassifierConfig, MAEConfig, MixConfig, Pooling, PosInit, Rope
from mae3d.tracking.config import LogConfig
from mae3d.training.config import FinetuneOptimConfig, OptimConfig, RunConfig, TrainConfig
from pipelines.config import DataConfig

InitInflate = Literal["none", "mean", "center"]


@dataclass(frozen=True)
class EvalConfig(ClipsConfig):
    """Held-out clips to look at while pretraining, at fixed places under fixed masks; may change from start to start.

    Attributes:
        shards: folders or URLs of held-out clips; none = the training shards, of which `select` must then take others;
            labels and cache are then the training's too, unless others are given.
        every: steps between evaluations, each of which writes a checkpoint; the one with the lowest held-out loss is
            kept, and is what RUN stands for from then on. The last step always has one. 0 = never.
        samples: most samples that take part, always the same ones.
        pool: labelled training samples, at most, among which the held-out ones' nearest neighbours (k = 20) are
            searched where there are labels; 0 = no neighbours.
        pictures: samples on the picture of each evaluation, RUN/eval/step-....png; 0 = none.
        batch: samples at a time.
    """

    every: int = bounded(0, least=0)
    samples: int = bounded(256, least=1)
    pool: int = bounded(1024, least=0)
    pictures: int = bounded(4, least=0, most=10_000)
    batch: int = bounded(8, least=1, most=1 << 30)

    def __post_init__(self) -> None:
        check_bounds(self, "eval.")
        canonical_hooks(self, "eval.")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that one command line sets.

    Attributes:
        init: weights to start from: a run, an exported folder, a model file, a foreign checkpoint or hf://ORG/NAME;
            none = from scratch. Another size of clip is served by interpolated positions, other sizes must be the same.
            `FILE#KEY` names one of several models in a file; `timm:NAME` an image ViT, with init_weights and
            init_inflate.
        init_weights: of `timm:NAME`: a file with timm's names or their authors', `download`, or `none`, random ones.
        init_inflate: make a video model of an image model (image MAE, timm, DINOv2): `mean` spreads the kernel of the
            patches over the frames of a token, `center` puts it on the middle one; `none` refuses image models.
        init_decoder: take the decoder as well, where init has one of ours; false takes the encoder alone.
        model: the autoencoder
        data: the clips
        eval: held-out clips to look at while training
        optim: the optimizer
        train: the training
        run: the run's folder
        log: what is written
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
        extend: go on with a run under another train.steps or train.epochs.
        dry_run: check all that a start checks, say what it would do, and stop; nothing is written.
    """

    USUAL = (
        *("data.shards", "run.dir", "model.preset", "init", "train.epochs", "train.global_batch"),
        *("train.accumulation", "optim.blr", "eval.shards", "eval.every", "device", "dry_run"),
    )
    model: MAEConfig
    init: str = ""
    init_weights: str = ""
    init_inflate: InitInflate = "none"
    init_decoder: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = free(default_factory=EvalConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = free(default_factory=RunConfig)
    log: LogConfig = free(default_factory=LogConfig)
    device: str = free("auto", local=True)
    extend: bool = free(False)
    dry_run: bool = free(False)

    def __post_init__(self) -> None:
        _check_init(self.init, self.init_weights, self.init_inflate)


def _check_init(init: str, weights: str, inflate: str) -> None:
    """Refuse weights without an image ViT, an image ViT without weights, and what cannot be inflated; ValueError."""
    if inflate not in get_args(InitInflate):
        raise ValueError(f"init_inflate={inflate!r}: give mean, center or none")
    if inflate != "none" and not init:
        raise ValueError("--init_inflate goes with --init: give the image model")
    if is_hook(init, known=(TIMM,)) or init.startswith(TIMM):
        check_encoder(init, weights, option="--init_weights ")
    elif weights:
        raise ValueError("--init_weights goes with --init timm:NAME: every other init has its weights")


def _as_classifier(name: str, default: Any = None) -> Any:
    """Return a field under the bounds that the model itself has for it."""
    return bounded(default, **vars(bounds_of(ClassifierConfig, name)))


@dataclass(frozen=True)
class FinetuneModelConfig:
    """The classifier. What is null is as `init` has it; from scratch, as the preset has it.

    Attributes:
        backbone: timm's name of an image ViT, which sees each frame alone; `--init timm:NAME` sets it.
        preset: name of a standard size, from scratch.
        img_size: side of a clip's square frames in pixels, or height and width; positions are interpolated to another
            one.
        in_chans: channels of a frame; the patch embedding is fitted to another number (summed for 1, else repeated).
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
        pos_init: positions from scratch: `normal` noise or `sines`; or `fixed` sines, as VideoMAE has them.
        rope: rule by which queries and keys are turned instead (V-JEPA 2's).
        mean: of the pixels, which are normalised by it.
        std: likewise.
        num_classes: null is as many as the training data has.
        class_names: what they are called, by number; none = as the training data has them.
        multi_label: several labels a clip (binary cross-entropy, mAP); null is as the training data has it.
        pooling: `mean` of all tokens but the first (mae_st), `cls`, the class token (eminorhan/mae_st), or `patches`,
            the mean of the patches' tokens (VideoMAE).
        dropout: share of the pooled features that is dropped in training.
        drop_path: share of the clips that skip the last block's branches in training; 0 in the first, rising linearly.
        head_std: deviation of the head's first weights.
    """

    backbone: str = ""
    preset: str | None = None
    img_size: int | tuple[int, int] | None = _as_classifier("img_size")
    num_frames: int | None = _as_classifier("num_frames")
    patch_size: int | None = _as_classifier("patch_size")
    t_patch_size: int | None = _as_classifier("t_patch_size")
    embed_dim: int | None = _as_classifier("embed_dim")
    depth: int | None = _as_classifier("depth")
    num_heads: int | None = _as_classifier("num_heads")
    mlp_ratio: float | None = _as_classifier("mlp_ratio")
    qkv_bias: bool | None = None
    cls_embed: bool | None = None
    sep_pos_embed: bool | None = None
    trunc_init: bool | None = None
    pos_init: PosInit | None = None
    rope: Rope | None = None
    mean: float | tuple[float, ...] | None = _as_classifier("mean")
    std: float | tuple[float, ...] | None = _as_classifier("std")
    in_chans: int | None = _as_classifier("in_chans")
    num_classes: int | None = _as_classifier("num_classes")
    class_names: tuple[str, ...] = ()
    multi_label: bool | None = None
    pooling: Pooling = "mean"
    dropout: float = _as_classifier("dropout", 0.0)
    drop_path: float = _as_classifier("drop_path", 0.1)
    head_std: float = _as_classifier("head_std", 2e-5)

    def __post_init__(self) -> None:
        check_bounds(self, "model.")


@dataclass(frozen=True)
class FinetuneDataConfig(DataConfig):
    """The training clips: all repeats of a sample are cut from one window, harder than for pretraining.

    Attributes:
        missing_classes: what classes of the model without a training sample get, as `--model.num_classes` beyond
            those of the data has them: `warn`, with their list, or `refuse`.
    """

    missing_classes: Literal["warn", "refuse"] = free("warn")
    repeat_aug: int = 1
    windows: Literal["own", "shared"] = "shared"
    area: tuple[float, float] = (0.08, 1.0)


@dataclass(frozen=True)
class ValConfig(ClipsConfig):
    """The clips to validate on, at fixed places and crops; sampled as the training clips where nothing else is said.

    Attributes:
        shards: folders or URLs of the validation clips; none = the training shards, of which `select` must then take
            others; labels and cache are then the training's too, unless others are given.
        every: epochs between validations, each of which writes a checkpoint; the best one is kept. 0 validates after
            the last step only, null never.
        num_clips: clips of each sample.
        num_crops: crops of each clip.
        batch: samples at a time.
    """

    every: float | None = bounded(1.0, least=0, most=1e9)
    num_clips: int = bounded(1, least=1, most=1 << 16)
    num_crops: int = bounded(1, least=1, most=1 << 16)
    batch: int = bounded(free(8), least=1, most=1 << 30)

    def __post_init__(self) -> None:
        check_bounds(self, "val.")
        canonical_hooks(self, "val.")

    def every_steps(self, steps_per_epoch: int) -> int:
        """Return `every` in steps, at least one; 0 if no step but the last is validated, or none."""
        return max(round(self.every * steps_per_epoch), 1) if self.every else 0


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that one command line sets.

    Attributes:
        init: where the encoder comes from: a run, an exported folder, a model file, a foreign checkpoint or
            hf://ORG/NAME; none = from scratch; or an image ViT by timm's name, `timm:vit_small_patch14_dinov2`, whose
            features of single frames are averaged; or an encoder of yours, `module:name` (docs/hooks.md).
        init_weights: of an image ViT: a file with timm's names or their authors', `download`, by timm from the Hugging
            Face Hub, or `none`, random ones.
        init_inflate: make a video encoder of an image model (image MAE, timm, DINOv2) instead: `mean` spreads the
            kernel of the patches over the frames of a token, `center` puts it on the middle one.
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
        dry_run: check all that a start checks, say what it would do, and stop; nothing is written.
    """

    USUAL = (
        *("init", "data.shards", "val.shards", "run.dir", "data.labels", "train.epochs", "train.global_batch"),
        *("optim.blr", "optim.layer_decay", "few_shot", "device", "dry_run"),
    )
    init: str = hooked("encoders", "", known=(TIMM,), loose=True)
    init_weights: str = ""
    init_inflate: InitInflate = "none"
    model: FinetuneModelConfig = field(default_factory=FinetuneModelConfig)
    data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    val: ValConfig = field(default_factory=ValConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=50))
    run: RunConfig = free(default_factory=RunConfig)
    log: LogConfig = free(default_factory=LogConfig)
    few_shot: tuple[int, ...] = bounded((), least=1)
    seeds: int = bounded(3, least=1, most=1 << 16)
    device: str = free("auto", local=True)
    extend: bool = free(False)
    dry_run: bool = free(False)

    def __post_init__(self) -> None:
        check_bounds(self)
        canonical_hooks(self)
        _check_init(self.init, self.init_weights, self.init_inflate)
        if self.few_shot and self.train.seed > GREATEST - self.seeds:
            raise ValueError(f"train.seed={self.train.seed} leaves no room for seeds={self.seeds}: give a smaller one")
        if len(set(self.few_shot)) < len(self.few_shot):
            raise ValueError(f"few_shot={list(self.few_shot)} names a number twice")


TrainingConfig: TypeAlias = PretrainConfig | FinetuneConfig
