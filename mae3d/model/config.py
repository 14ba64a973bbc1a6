"""Settings of the model are completed from a preset, checked and frozen.

preset and overrides ─► EncoderConfig, MAEConfig, FrameConfig, ClassifierConfig

Standard library only: command lines read this file to build `--help`, long before torch is imported.

    config = MAEConfig(preset="mae_vit_small_patch16", img_size=112)
    config.embed_dim, config.decoder_depth              # 384, 4: filled from the preset
    MAEConfig(**dataclasses.asdict(config)) == config   # a resolved config repeats from its own values
    MAEConfig(img_size=(128, 224), in_chans=1).grid     # (8, 8, 14): height and width; clips of one channel
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from mae3d.io.bounds import bounded, check_bounds
from mae3d.io.hooks import canonical_hooks, hooked, is_hook, nearest
from mae3d.io.shapes import plain_size, sides

# A size that may be left out (None): __post_init__ derives it, so that readers of a config, and the type checker, see
# an int; the command line accepts null.
if TYPE_CHECKING:
    Size = int
    Switch = bool
else:
    Size = int | None
    Switch = bool | None
_DERIVED: Any = None

# Beyond these a size is a mistake, and memory ends before it is noticed.
_PIXELS, _FRAMES, _WIDTH, _BLOCKS, _CHANNELS = 1 << 16, 1 << 20, 1 << 20, 10_000, 1 << 10

# Types of masks that masking.py makes; docs/masks.md shows each.
MaskType = Literal["random", "tube", "frame", "block", "prospective", "retrospective", "interpolation"]

# Rules of positions by rotation; rotations.py has them.
Rope = Literal["none", "vjepa2", "vjepa2_1"]
PosInit = Literal["normal", "sines", "fixed"]
Pooling = Literal["mean", "cls", "patches"]  # of a classifier


def _encoder(*, patch_size: int, embed_dim: int, depth: int, num_heads: int) -> dict[str, int]:
    return {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}


# The published sizes, with the decoder of the published recipes (4 blocks, not upstream's class default of 8).
_DECODER = {"decoder_embed_dim": 512, "decoder_depth": 4, "decoder_num_heads": 16}
_DECODER_TINY = {"decoder_embed_dim": 192, "decoder_depth": 2, "decoder_num_heads": 3}
PRESETS: dict[str, dict[str, int]] = {
    "mae_vit_tiny_patch16": _encoder(patch_size=16, embed_dim=192, depth=12, num_heads=3) | _DECODER_TINY,
    "mae_vit_small_patch16": _encoder(patch_size=16, embed_dim=384, depth=12, num_heads=6) | _DECODER,
    "mae_vit_base_patch16": _encoder(patch_size=16, embed_dim=768, depth=12, num_heads=12) | _DECODER,
    "mae_vit_large_patch16": _encoder(patch_size=16, embed_dim=1024, depth=24, num_heads=16) | _DECODER,
    "mae_vit_huge_patch14": _encoder(patch_size=14, embed_dim=1280, depth=32, num_heads=16) | _DECODER,
    "mae_vit_huge_patch16": _encoder(patch_size=16, embed_dim=1280, depth=32, num_heads=16) | _DECODER,
}

CELL_TOKENS = 4  # tokens of a running cell: 2 x 2 in a time slot


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder's settings. A size of None is taken from the preset.

    Attributes:
        preset: Named sizes, a key of PRESETS; each size can also be set on its own.
        img_size: Side of a clip's square frames, in pixels; or two numbers, height and width.
        in_chans: Channels of a frame: 3 of colour, 1 of grey, thermal or depth pictures, or any number.
        num_frames: Frames of a clip.
        patch_size: Height and width of a token, in pixels.
        t_patch_size: Frames of a token.
        embed_dim: Width.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of a block's MLP over its width.
        qkv_bias: Whether query, key and value have biases.
        sep_pos_embed: Whether learned positions are a table for space plus one for time; else they are one table for
            all tokens.
        cls_embed: Whether a class token goes first.
        trunc_init: Whether weights start as in upstream's other initialisation: truncated normals, a deviation of 1
            for the patch embedding.
        pos_init: Start of the encoder's and decoder's positions: `normal` (upstream: noise of 0.02, in which the model
            must first learn where its tokens lie), `sines` (Vaswani et al. 2017, learned from there on), with which
            small models and short runs learn in a fraction of the steps, or `fixed`, the sines of VideoMAE's encoder,
            which are not learned: such encoders go to Hugging Face's transformers.
        rope: `none`: positions are added to the tokens, as above; or no tables, and queries and keys are turned by
            time, row and column, as in V-JEPA 2 (`vjepa2`) or V-JEPA 2.1 (`vjepa2_1`), whose weights need it.
        mean: Mean of the pixels on [0, 1]: one value, or one for each channel.
        std: Standard deviation of the pixels on [0, 1]: one value, or one for each channel.
    """

    preset: str = "mae_vit_large_patch16"
    img_size: int | tuple[int, int] = bounded(224, least=1, most=_PIXELS)
    num_frames: int = bounded(16, least=1, most=_FRAMES)
    patch_size: Size = bounded(_DERIVED, least=1, most=_PIXELS)
    t_patch_size: int = bounded(2, least=1, most=_FRAMES)
    embed_dim: Size = bounded(_DERIVED, least=1, most=_WIDTH)
    depth: Size = bounded(_DERIVED, least=0, most=_BLOCKS)
    num_heads: Size = bounded(_DERIVED, least=1, most=_WIDTH)
    mlp_ratio: float = bounded(4.0, above=0, most=1000)
    qkv_bias: bool = True
    sep_pos_embed: bool = True
    cls_embed: bool = True
    trunc_init: bool = False
    pos_init: PosInit = "normal"
    rope: Rope = "none"
    mean: float | tuple[float, ...] = bounded(0.45, least=0, most=1, hint="pixels count from 0 to 1")
    std: float | tuple[float, ...] = bounded(0.225, above=0, most=1, hint="pixels count from 0 to 1")
    in_chans: int = bounded(3, least=1, most=_CHANNELS)

    def __post_init__(self) -> None:
        """Fill the sizes from the preset, then check them.

        Raises:
            ValueError: A setting is out of its range, or two do not fit together.
        """
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}: {nearest(self.preset, list(PRESETS))}")
        self._derive()
        self._check()

    def _derive(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None and field.name in PRESETS[self.preset]:
                object.__setattr__(self, field.name, PRESETS[self.preset][field.name])
        for name in ("mean", "std"):  # a list when read from JSON or YAML
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, int | float) else tuple(value))
        object.__setattr__(self, "img_size", plain_size(self.img_size))

    def _check(self) -> None:
        check_bounds(self)
        self._check_patches()
        self._check_whole("num_frames", "t_patch_size")
        self._check_whole("embed_dim", "num_heads")
        self._check_sines("embed_dim")
        self._check_rope()
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.in_chans:
                each = "three for R, G, B" if self.in_chans == 3 else f"one for each of in_chans={self.in_chans}"
                raise ValueError(f"{name}={value} must be one value, or {each}")

    def _check_patches(self) -> None:
        size = sides(self.img_size)
        up = [side + -side % self.patch_size for side in size]
        if up != list(size):
            is_square = isinstance(self.img_size, int)
            raise ValueError(
                f"img_size={self.img_size if is_square else list(size)} must be a multiple of "
                f"patch_size={self.patch_size}; {up[0] if is_square else up} is one"
            )

    def _check_whole(self, dividend: str, divisor: str) -> None:
        a, b = getattr(self, dividend), getattr(self, divisor)
        if a % b:
            raise ValueError(f"{dividend}={a} must be a multiple of {divisor}={b}; {a - a % b + b} is one")

    def _check_sines(self, width: str) -> None:
        if self.pos_init not in get_args(PosInit):
            raise ValueError(f"pos_init={self.pos_init!r} must be {' or '.join(get_args(PosInit))}")
        if self.pos_init != "normal" and getattr(self, width) % 4:
            raise ValueError(f"{width}={getattr(self, width)} must be a multiple of 4 for pos_init={self.pos_init}")
        if self.pos_init == "fixed" and (self.cls_embed or self.sep_pos_embed):
            raise ValueError("pos_init=fixed, as VideoMAE has it, needs cls_embed=false and sep_pos_embed=false")

    def _check_rope(self) -> None:
        if self.rope not in get_args(Rope):
            raise ValueError(f"rope={self.rope!r}: {nearest(self.rope, list(get_args(Rope)))}")
        width = self.embed_dim // self.num_heads
        if self.rope != "none" and (width < 6 or width % 2):
            raise ValueError(
                f"embed_dim={self.embed_dim} in num_heads={self.num_heads} makes heads of {width}; rope={self.rope} "
                "turns pairs along three axes: give heads of an even width of at least 6"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        p = self.patch_size
        return self.num_frames // self.t_patch_size, self.height // p, self.width // p

    @property
    def height(self) -> int:
        """Height of a clip's frames, in pixels."""
        return sides(self.img_size)[0]

    @property
    def width(self) -> int:
        """Width of a clip's frames, in pixels."""
        return sides(self.img_size)[1]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a clip without the class token."""
        t, h, w = self.grid
        return t * h * w


@dataclass(frozen=True)
class MAEConfig(EncoderConfig):
    """The masked autoencoder's settings: the encoder's, the decoder's and the objective's.

    Attributes:
        decoder_embed_dim: The decoder's width.
        decoder_depth: The decoder's blocks.
        decoder_num_heads: The decoder's attention heads: 16 as published in mae_st, 32 wide, or 8 as in PySlowFast, 64
            wide. Tables and FLOPs are the same and GPUs do wider heads faster, but the decoder is another function:
            weights trained with one number are no good with the other.
        decoder_sep_pos_embed: sep_pos_embed of the decoder; None is the encoder's.
        decoder_cls: The class token that the decoder sees: its `own` learned one (mae_st), or the `encoder`'s, passed
            on (PySlowFast, where the official weights were trained, and cyrilzakka/MAE3D).
        norm_pix_loss: Whether each target patch is normalised by its own mean and deviation.
        pred_t_dim: Frames of a clip that are predicted, spread evenly over it. None is one frame per token: 8
            of 16 frames at t_patch_size 2, as published.
        target_rule: Choice of the predicted frames: spread from the first to the last, `even` (mae_st: 0, 2, ..., 12,
            15), or every n-th, `stride` (PySlowFast: 0, 2, ..., 12, 14).
        mask_type: Choice of the hidden tokens: `random` ones (published), a `tube` of the same positions in all frames,
            whole time slots (`frame`), cuboids (`block`), the future (`prospective`), the past (`retrospective`) or
            the middle (`interpolation`); or a mask of yours, `module:name` (docs/hooks.md).
        mask_ratio: Share of the tokens that is hidden, to the nearest whole tube or time slot if the type has such.
        decoder_mask_ratio: Share of the hidden tokens that the decoder leaves out, in quarters: 0 (published MAE-ST) or
            0.25, 0.5 (VideoMAE V2), 0.75. The tokens that it predicts, and the loss counts, are running cells: the same
            part of each 2 x 2 tokens, one position further each time slot. Less work per step; the method is another.
    """

    decoder_embed_dim: Size = bounded(_DERIVED, least=1, most=_WIDTH)
    decoder_depth: Size = bounded(_DERIVED, least=0, most=_BLOCKS)
    decoder_num_heads: Size = bounded(_DERIVED, least=1, most=_WIDTH)
    decoder_sep_pos_embed: Switch = _DERIVED
    decoder_cls: Literal["own", "encoder"] = "own"
    norm_pix_loss: bool = True
    pred_t_dim: Size = bounded(_DERIVED, least=1, most=_FRAMES)
    target_rule: Literal["even", "stride"] = "even"
    mask_type: MaskType | str = hooked("masks", "random", known=get_args(MaskType))
    mask_ratio: float = bounded(0.9, least=0, below=1)
    decoder_mask_ratio: float = bounded(0.0, least=0, below=1)

    def _derive(self) -> None:
        super()._derive()
        canonical_hooks(self)
        if self.pred_t_dim is None:
            object.__setattr__(self, "pred_t_dim", self.num_frames // self.t_patch_size)
        if self.decoder_sep_pos_embed is None:
            object.__setattr__(self, "decoder_sep_pos_embed", self.sep_pos_embed)

    def _check(self) -> None:
        super()._check()
        self._check_whole("decoder_embed_dim", "decoder_num_heads")
        self._check_sines("decoder_embed_dim")
        for name, known in (("decoder_cls", ("own", "encoder")), ("target_rule", ("even", "stride"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {' or '.join(known)}")
        predicted = self.t_patch_size * self.pred_t_dim
        if predicted % self.num_frames or self.pred_t_dim > self.num_frames:
            fitting = [self.num_frames * u // self.t_patch_size for u in range(1, self.t_patch_size + 1)]
            raise ValueError(
                f"pred_t_dim={self.pred_t_dim} gives {predicted / self.num_frames:g} target frames a token "
                f"(t_patch_size={self.t_patch_size} of num_frames={self.num_frames}); "
                f"it must be whole and at most t_patch_size; these fit: {', '.join(map(str, fitting))}"
            )
        self._check_mask()

    def _check_mask(self) -> None:
        if not 0 < self.num_kept < self.num_tokens:
            unit, kind = self.mask_unit, self.mask_type
            raise ValueError(
                f"mask_ratio={self.mask_ratio} keeps {self.num_kept} of {self.num_tokens} tokens"
                + (f" (mask_type={kind} keeps or hides {unit} at a time)" if unit > 1 else "")
                + f"; at least {'two time slots' if kind == 'interpolation' else 'one'} must stay visible and one be "
                "hidden: give a ratio further from "
                + ("1" if not self.num_kept else "0, or more frames" if unit > 1 else "0")
            )
        if self.decoder_mask_ratio and not 0 < self.cell_predicted < CELL_TOKENS:
            raise ValueError(
                f"decoder_mask_ratio={self.decoder_mask_ratio} leaves {self.cell_predicted} of the {CELL_TOKENS} "
                "tokens of a cell to the decoder; give 0 (it predicts all that is hidden), 0.25, 0.5 or 0.75"
            )

    @property
    def mask_unit(self) -> int:
        """Number of tokens that the mask keeps or hides together: 1, a tube's or a time slot's."""
        t, h, w = self.grid
        return 1 if self._keeps_tokens else t if self.mask_type == "tube" else h * w

    @property
    def _keeps_tokens(self) -> bool:
        """Return whether the mask keeps single tokens, as one of the user's does."""
        return self.mask_type in ("random", "block") or is_hook(self.mask_type)

    @property
    def num_kept(self) -> int:
        """Number of visible tokens, the same in every clip.

        Single tokens are counted by upstream's truncation of a float product (1568 x 0.1 keeps 156), tubes and time
        slots to the nearest whole number; `interpolation` keeps at least the first slot and the last.
        """
        visible, unit = self.num_tokens * (1 - self.mask_ratio), self.mask_unit
        if self._keeps_tokens:
            return int(visible)
        units = int(visible / unit + 0.5)
        return unit * (max(units, 2) if self.mask_type == "interpolation" else units)

    @property
    def cell_predicted(self) -> int:
        """Number of a running cell's tokens that the decoder predicts."""
        return int(CELL_TOKENS * (1 - self.decoder_mask_ratio) + 0.5)

    @property
    def num_predicted(self) -> int:
        """Number of hidden tokens that the decoder predicts in training, the same in every clip."""
        hidden = self.num_tokens - self.num_kept
        return max(1, int(hidden * self.cell_predicted / CELL_TOKENS + 0.5))

    @property
    def pred_u(self) -> int:
        """Number of target frames of a token."""
        return self.t_patch_size * self.pred_t_dim // self.num_frames


@dataclass(frozen=True)
class FrameConfig(EncoderConfig):
    """The settings of an image ViT that sees the frames of a clip one by one (mae3d.model.frames.frame_config).

    Attributes:
        backbone: timm's name of it, with or without a tag.
    """

    backbone: str = ""


@dataclass(frozen=True)
class ClassifierConfig(EncoderConfig):
    """The classifier's settings: the encoder's, the pooling's and the head's.

    Attributes:
        backbone: timm's name of the image ViT that sees each frame alone; "" for the video encoder.
        num_classes: Number of classes, which are logits.
        class_names: Names of the classes by number; empty if labels are mere numbers. Other datasets' labels are
            matched by name.
        multi_label: Whether a clip may have any number of classes: sigmoids and binary cross-entropy, not a softmax.
        pooling: `mean` of all tokens but the first, class token or not (facebookresearch/mae_st), `cls`, the class
            token (eminorhan/mae_st), or `patches`, the mean of all patches' tokens (VideoMAE).
        dropout: Share of the pooled features that is dropped in training.
        drop_path: Share of the clips of a batch that skip a block's branch in training: 0 in the first block, rising
            in equal steps to this in the last.
        head_std: Deviation of the head's first weights, a truncated normal; the default is that of mae_st's finetuning.
    """

    backbone: str = ""
    num_classes: int = bounded(400, least=1, most=1 << 30)
    class_names: tuple[str, ...] = ()
    multi_label: bool = False
    pooling: Pooling = "mean"
    dropout: float = bounded(0.0, least=0, below=1)
    drop_path: float = bounded(0.0, least=0, below=1)
    head_std: float = bounded(2e-5, least=0, most=1)

    @classmethod
    def of(cls, encoder: EncoderConfig, **settings: Any) -> "ClassifierConfig":
        """Return the encoder's settings of another config (a MAE's, a classifier's) with the classifier's `settings`.

        Raises:
            ValueError: A setting is out of its range.
            TypeError: A setting is unknown.
        """
        sizes = {field.name: getattr(encoder, field.name) for field in fields(EncoderConfig)}
        if settings.get("in_chans", encoder.in_chans) != encoder.in_chans:  # one value serves other channels
            for name in ("mean", "std"):
                values = sizes[name]
                sizes[name] = sum(values) / len(values) if isinstance(values, tuple) else values
        return cls(**{"backbone": getattr(encoder, "backbone", ""), **sizes, **settings})

    def _derive(self) -> None:
        super()._derive()
        object.__setattr__(self, "class_names", tuple(self.class_names))  # a list when read from JSON or YAML

    def _check(self) -> None:
        super()._check()
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} names for num_classes={self.num_classes}: give one per class"
            )
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling={self.pooling!r} must be {' or '.join(get_args(Pooling))}")
        if self.pooling == "cls" and not self.cls_embed:
            raise ValueError("pooling=cls needs a class token: set cls_embed=true or pooling=mean")
        if self.pooling == "mean" and not self.cls_embed and self.num_tokens < 2:
            raise ValueError("a clip of one token and no class token leaves nothing to pool: take a smaller patch_size")


@dataclass(frozen=True)
class MixConfig:
    """Settings of mixing a batch's clips and labels with one another in training (mae3d.training.mixing).

    Attributes:
        mixup: Alpha of the Beta(alpha, alpha) that mixup draws the share of a clip's pixels from; 0 for no mixup.
            Published: 0.8.
        cutmix: Alpha of cutmix's Beta; the rest is a box of the partner's pixels; 0 for no cutmix. Published: 1.0.
        prob: Share of the batches that are mixed at all.
        switch_prob: Share of the mixed batches that get cutmix, if both are on.
        smoothing: Share of a label that is spread over all classes.
    """

    mixup: float = bounded(0.0, least=0, most=1000, hint="0 switches it off")
    cutmix: float = bounded(0.0, least=0, most=1000, hint="0 switches it off")
    prob: float = bounded(1.0, least=0, most=1)
    switch_prob: float = bounded(0.5, least=0, most=1)
    smoothing: float = bounded(0.1, least=0, below=1)

    def __post_init__(self) -> None:
        check_bounds(self, "mix.")

    @property
    def mixes(self) -> bool:
        """True if any batch is mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)
