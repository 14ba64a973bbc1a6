"""State dicts are converted between our names and other projects'.

mae_st (both), cyrilzakka/MAE3D, PySlowFast, VideoMAE's encoder (its names or Hugging Face transformers') ◄─► ours

    config, state = from_foreign(foreign)                     # the format and the sizes are read off the tensors
    foreign = to_foreign(state, config, format="pyslowfast")
    config, state = encoder_from_foreign(foreign)             # the encoder alone, of a whole checkpoint too
    config, state = classifier_from_foreign(foreign)          # finetuned: encoder and head

Every key is accounted for: a key that is left over or missing is an error that names it. A conversion there and back
gives the same bits; settings that a format cannot hold are refused by name. formats.py has the formats, rules.py the
tensors that each of ours is made of.
"""

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from mae3d.io.shapes import size_text
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.encoder import token_sines
from mae3d.weights.formats import FORMATS, JEPA, ConvertError, State, check_holds
from mae3d.weights.inflate import Inflate, folded, inflated
from mae3d.weights.jepa import fixed_grid, plain_jepa
from mae3d.weights.names import plain_names
from mae3d.weights.recognition import recognise
from mae3d.weights.rules import Rule, autoencoder_rules, classifier_rules, encoder_rules
from mae3d.weights.settings import encoder_settings, infer_config
from mae3d.weights.wrappers import renamed, strip_prefix, unwrapped

__all__ = [
    "FORMATS",
    "ConvertError",
    "classifier_from_foreign",
    "classifier_to_foreign",
    "encoder_from_foreign",
    "encoder_to_foreign",
    "from_foreign",
    "infer_config",
    "is_classifier",
    "recognise",
    "to_foreign",
    "unmatched",
]

# Beginnings of keys that are no part of an encoder: decoders and heads for classes, of all formats.
_BESIDE_ENCODER = (
    *("decoder", "dec_pos_embed_", "mask_token", "pred_head.", "encoder_to_decoder.", "head."),
    *("predictor.", "pooler.", "classifier."),
)

logger = logging.getLogger(__name__)


def from_foreign(
    foreign: State,
    config: MAEConfig | None = None,
    *,
    format: str | None = None,
    hints: Mapping[str, Any] | None = None,
    inflate: Inflate | None = None,
) -> tuple[MAEConfig, dict[str, Tensor]]:
    """Convert a pretraining state dict, encoder and decoder.

    Args:
        foreign: Names and tensors, possibly under a prefix of a trainer (`module.`, `model.`).
        config: The model's config; None reads it off the tensors (`infer_config`).
        format: A key of FORMATS; None recognises it by the names.
        hints: Settings that tensors do not determine, under upstream's names (the `args` of its checkpoints).
        inflate: The way in which an image MAE becomes one of clips; None refuses it.

    Returns:
        The config, and a state dict for `MAE(config)`. Tensors may share memory with `foreign`.

    Raises:
        ConvertError: A key is missing or left over, the format is unknown or cannot hold the config.
        ValueError: The settings do not fit together.
    """
    foreign = folded(plain_names(unwrapped(foreign)))
    described = config is not None or "mean" in (hints or {})
    if inflate:
        foreign, format = inflated(foreign, inflate), "image"
    name = _known(format) if format else recognise(foreign, described=described)
    if not FORMATS[name].decoder_blocks:
        raise ConvertError(
            f"{name} ({FORMATS[name].title}) has another decoder and target: open the encoder with mae3d.open_encoder"
        )
    config = config or infer_config(foreign, hints=hints or {}, format=name)
    check_holds(name, config)
    return config, _apply(foreign, autoencoder_rules(name, config))


def to_foreign(state: State, config: MAEConfig, *, format: str) -> dict[str, Tensor]:
    """Convert a state dict of `MAE(config)` into another project's names and shapes.

    Raises:
        ConvertError: A key is missing or left over, or the format cannot hold this model; the message names the keys
            or settings.
    """
    check_holds(_known(format), config)
    return _undo(state, autoencoder_rules(format, config))


def encoder_from_foreign(
    foreign: State,
    config: EncoderConfig | None = None,
    *,
    format: str | None = None,
    hints: Mapping[str, Any] | None = None,
    inflate: Inflate | None = None,
) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Convert the encoder of a state dict; a decoder and a head for classes are left out, which is logged.

    Args:
        foreign: Names and tensors, possibly under a prefix of a trainer (`module.`, `model.`); VideoMAE's also as
            transformers of Hugging Face names them.
        config: The encoder's config; None reads it off the tensors.
        format: A key of FORMATS; None recognises it by the names.
        hints: Settings that tensors do not determine: num_heads, img_size, num_frames.
        inflate: The way in which an image ViT becomes an encoder of clips; None refuses it.

    Returns:
        The config, and a state dict for `Encoder(config)`.

    Raises:
        ConvertError: A key is missing or left over, or the format is unknown.
        ValueError: The settings do not fit together.
    """
    foreign, hints = folded(plain_names(unwrapped(foreign))), hints or {}
    if inflate:
        foreign, format = inflated(foreign, inflate), "image"
    name = _known(format) if format else recognise(foreign, described=config is not None or "mean" in hints)
    if config is not None and name in ("vjepa", "vjepa2"):  # which of the two their tensors may leave open
        name = "vjepa" if config.rope == "none" else "vjepa2"
    kept = _encoder_alone(foreign)
    if name == "videomae":
        # A finetuned VideoMAE calls its last norm fc_norm; it comes after pooling, where our classifier has `norm`.
        kept = renamed(strip_prefix(kept, "encoder."), lambda key: key.replace("fc_norm.", "norm."))
        kept = _without_fixed_positions(kept)
    elif name in JEPA:
        if grid := fixed_grid(kept):
            *_, u, p, _ = kept["patch_embed.proj.weight"].shape
            hints = {"img_size": grid[1] * p, "num_frames": grid[0] * u} | dict(hints)
        kept = plain_jepa(name, kept)
    if config is None:
        try:
            config = EncoderConfig(**encoder_settings(name, kept, hints=hints))
        except KeyError as error:
            raise ConvertError(f"no tensor {error}: not an encoder with the names of {name}") from None
        if name == "videomae" and not {"img_size", "num_frames"} <= hints.keys():
            logger.warning(
                "VideoMAE's tensors do not determine the size of a clip: taken as %d frames of %s px",
                config.num_frames,
                size_text(config.img_size),
            )
    check_holds(name, encoder_of(config))
    return config, _apply(kept, encoder_rules(name, config))


def _encoder_alone(state: State) -> dict[str, Tensor]:
    """Drop decoders, predictors and heads for classes, which is logged."""
    beside = [key for key in state if key.startswith(_BESIDE_ENCODER)]
    if beside:
        logger.info("%d tensors beside the encoder are left out: %s, ...", len(beside), ", ".join(sorted(beside)[:3]))
    return {key: tensor for key, tensor in state.items() if key not in beside}


def _without_fixed_positions(state: State) -> dict[str, Tensor]:
    """Drop the table of VideoMAE's fixed positions, which mmaction2 stores; a learned one is refused."""
    kept = dict(state)
    table = kept.pop("pos_embed", None)
    if table is not None and (table.float() - token_sines(*table.shape[1:])).abs().max() > 1e-3:
        raise ConvertError("pos_embed is learned, and VideoMAE's positions are fixed sines")
    return kept


def encoder_to_foreign(state: State, config: EncoderConfig, *, format: str) -> dict[str, Tensor]:
    """Convert a state dict of `Encoder(config)` into another project's names and shapes (VideoMAE's: under `encoder.`).

    Raises:
        ConvertError: A key is missing or left over, or the format cannot hold this encoder.
    """
    check_holds(_known(format), encoder_of(config))
    foreign = _undo(state, encoder_rules(format, config))
    return {f"encoder.{key}": value for key, value in foreign.items()} if format == "videomae" else foreign


def is_classifier(foreign: State) -> bool:
    """Return whether a state dict is a finetuned classifier's: it has a head for classes and predicts no pixels."""
    names = set(unwrapped(foreign))
    return bool(names & {"head.weight", "head.projection.weight"}) and "decoder_embed.weight" not in names


def classifier_from_foreign(
    foreign: State,
    config: ClassifierConfig | None = None,
    *,
    format: str | None = None,
    hints: Mapping[str, Any] | None = None,
) -> tuple[ClassifierConfig, dict[str, Tensor]]:
    """Convert a finetuned classifier's state dict; PySlowFast's `head.projection` is read as `head`, as mae_st does.

    Args:
        foreign: Names and tensors, possibly under a prefix of a trainer (`module.`, `model.`).
        config: The classifier's config; None reads it off the tensors. They do not determine the pooling: it is taken
            as facebookresearch's mean; eminorhan's weights need `cls`.
        format: `mae_st` or `pyslowfast`; None recognises it by the names.
        hints: Settings that tensors do not determine.

    Returns:
        The config, and a state dict for `Classifier(config)`.

    Raises:
        ConvertError: A key is missing or left over, or the format's classifier is another than ours.
        ValueError: The settings do not fit together.
    """
    foreign, hints = unwrapped(foreign), hints or {}
    known = format or recognise(foreign, described=config is not None or "mean" in hints)
    foreign, name = renamed(foreign, lambda key: key.replace("head.projection.", "head.")), _classifying(known)
    if config is None:
        settings = {key: hints[key] for key in ("pooling", "multi_label", "class_names") if key in hints}
        if "pooling" not in settings:
            logger.warning("pooling is not in the checkpoint: taken as mean (facebookresearch/mae_st)")
        try:
            encoder = EncoderConfig(**encoder_settings(name, foreign, hints=hints))
            config = ClassifierConfig.of(encoder, num_classes=foreign["head.weight"].shape[0], **settings)
        except KeyError as error:
            raise ConvertError(f"no tensor {error}: not a classifier with the names of {name}") from None
    return config, _apply(foreign, classifier_rules(name, config))


def classifier_to_foreign(state: State, config: ClassifierConfig, *, format: str) -> dict[str, Tensor]:
    """Convert a state dict of `Classifier(config)` into another project's names and shapes.

    Raises:
        ConvertError: A key is missing or left over, or the format's classifier is another than ours.
    """
    if config.pooling == "patches" and not config.cls_embed:
        raise ConvertError(f"the format {format} cannot hold pooling='patches': its classifier leaves a token out")
    return _undo(state, classifier_rules(_classifying(format), config))


def encoder_of(config: EncoderConfig) -> EncoderConfig:
    """Return the encoder's settings alone of a config that has more."""
    return EncoderConfig(**{field.name: getattr(config, field.name) for field in fields(EncoderConfig)})


def _known(format: str) -> str:
    if format not in FORMATS:
        raise ConvertError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    return format


def _classifying(format: str) -> str:
    if _known(format) not in ("mae_st", "pyslowfast"):
        raise ConvertError(
            f"{format} ({FORMATS[format].title}) has another classifier or none: open the encoder with "
            "mae3d.open_encoder"
        )
    return format


def _apply(foreign: State, rules: list[Rule]) -> dict[str, Tensor]:
    _account({name for rule in rules for name in rule.theirs}, set(foreign), whose="the foreign state dict")
    return {rule.ours: rule.join([foreign[name] for name in rule.theirs]) for rule in rules}


def _undo(state: State, rules: list[Rule]) -> dict[str, Tensor]:
    _account({rule.ours for rule in rules}, set(state), whose="the model's state dict")
    return {name: part for rule in rules for name, part in zip(rule.theirs, rule.parts(state[rule.ours]), strict=True)}


def _account(expected: set[str], given: set[str], *, whose: str) -> None:
    """Refuse a state dict in which an expected key is missing or another is left over."""
    if problems := unmatched(expected, given):
        raise ConvertError(f"{whose} does not fit the config; {problems}")


def unmatched(expected: set[str], given: set[str]) -> str:
    """Name the keys that are missing and those left over; "" if exactly the expected keys are given."""
    problems = []
    for kind, names in (("missing", sorted(expected - given)), ("left over", sorted(given - expected))):
        if names:
            shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
            problems.append(f"{kind}: {shown}")
    return "; ".join(problems)
