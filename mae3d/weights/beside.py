"""Settings that lie beside a file of weights, as the Hugging Face Hub has them, are read under our names.

config.json, preprocessor_config.json ─► num_heads, img_size, num_frames, mean, std
"""

import json
import logging
from pathlib import Path
from typing import Any

CONFIG = "config.json"
_PIXELS = ("preprocessor_config.json", "video_preprocessor_config.json")
# Kinds of transformers' models, and their names of our settings. The size of an image model is read off its positions.
_SETTINGS: dict[str, dict[str, str]] = {
    "videomae": {"num_heads": "num_attention_heads", "img_size": "image_size", "num_frames": "num_frames"},
    "vjepa2": {"num_heads": "num_attention_heads", "img_size": "crop_size", "num_frames": "frames_per_clip"},
    **{kind: {"num_heads": "num_attention_heads"} for kind in ("vit", "vit_mae", "dinov2")},
}
_EPSILON = 1e-6  # of our norms

logger = logging.getLogger(__name__)


def described_beside(file: Path, name: str) -> dict[str, Any]:
    """Return the content of a JSON file in a file's folder; {} if there is none, or it is no description.

    Raises:
        ValueError: It is no JSON.
    """
    card = file.parent / name
    try:
        described = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{card}: no JSON ({error}): mend it, or move {file.name} away from it") from error
    return described if isinstance(described, dict) else {}


def hints_beside(file: Path) -> dict[str, Any]:
    """Return the settings beside a model of Hugging Face's transformers or of timm.

    Raises:
        ValueError: A file is no JSON, or the model's activation is not ours.
    """
    described = described_beside(file, CONFIG)
    kind = described.get("model_type", "")
    if timm := described.get("pretrained_cfg"):
        return _pixels(timm.get("mean"), timm.get("std")) if isinstance(timm, dict) else {}
    if kind not in _SETTINGS:
        return {}
    if (activation := described.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"{CONFIG} says hidden_act={activation!r}, and our blocks have gelu: give another model")
    if abs(described.get("layer_norm_eps", _EPSILON) - _EPSILON) > _EPSILON:
        logger.warning("%s: norms with eps %g; ours have %g", CONFIG, described["layer_norm_eps"], _EPSILON)
    hints = {ours: described[theirs] for ours, theirs in _SETTINGS[kind].items() if theirs in described}
    for name in _PIXELS:
        stored = described_beside(file, name)
        hints |= _pixels(stored.get("image_mean"), stored.get("image_std"))
    return hints


def _pixels(mean: Any, std: Any) -> dict[str, Any]:
    return {"mean": tuple(mean), "std": tuple(std)} if mean and std else {}
