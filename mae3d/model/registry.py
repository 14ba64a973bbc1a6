"""Models are listed and made by the names of their sizes, as timm's users know it.

name, settings ─► model

    list_models("*base*")                                        # ["mae_vit_base_patch16"]
    model = create_model("mae_vit_base_patch16", img_size=112)   # an MAE with random weights
    model = create_model("mae_vit_base_patch16", num_classes=174)        # a Classifier
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from mae3d.model.classifier import Classifier
from mae3d.model.config import PRESETS, ClassifierConfig, MAEConfig
from mae3d.model.mae import MAE


def list_models(filter: str | Sequence[str] = "", exclude_filters: str | Sequence[str] = "") -> list[str]:
    """Return the names of the sizes that models are made in, the smallest first.

    Args:
        filter: Shell patterns, of which a name must fit one; none lists all names.
        exclude_filters: Shell patterns, of which it must fit none.
    """
    kept, left_out = ([one] if isinstance(one, str) else list(one) for one in (filter, exclude_filters))
    return [
        name
        for name in PRESETS
        if (not any(kept) or any(fnmatchcase(name, pattern) for pattern in kept))
        and not any(fnmatchcase(name, pattern) for pattern in left_out)
    ]


def create_model(name: str, **settings: Any) -> MAE | Classifier:
    """Build a model with random weights, on torch's default device, in training mode.

    Args:
        name: One of `list_models()`.
        settings: Of MAEConfig, over the name's sizes; with num_classes, of ClassifierConfig.

    Raises:
        ValueError: There is no such name, or a setting is unknown or out of its range.
    """
    kind = ClassifierConfig if "num_classes" in settings else MAEConfig
    try:
        config = kind(preset=name, **settings)
    except TypeError as error:
        raise ValueError(f"{name}: {str(error).rpartition('() ')[2]}; see mae3d.{kind.__name__}") from error
    return Classifier(config) if isinstance(config, ClassifierConfig) else MAE(config)
