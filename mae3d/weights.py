"""A model <-> a file: one safetensors with the weights and, in its metadata, the config. Nothing else is
needed.

    save_model(model, "model.safetensors")
    model = load_model("RUN")         # a run, a checkpoint folder, a model file, or a foreign mae_st .pth
    model = load_classifier("RUN")    # likewise, of a finetuning run; open_model takes either kind

Nothing is ever unpickled beyond tensors and plain values (torch.load with weights_only=True).
"""

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae3d.classifier import Classifier
from mae3d.config import ClassifierConfig, MAEConfig
from mae3d.convert import from_mae_st
from mae3d.files import save_tensors
from mae3d.mae import MAE

MODEL_FILE = "model.safetensors"
CHECKPOINTS = "checkpoints"
LATEST = "latest"
_METADATA_KEY = "mae3d"  # one key: safetensors writes several in an arbitrary order
_PICKLED = {".pth", ".pyth", ".pt", ".bin"}

logger = logging.getLogger(__name__)


class WeightsError(ValueError):
    """A path holds no model that can be read; the message says what was looked for."""


def save_model(model: MAE | Classifier, path: str | Path) -> None:
    """Write a model's weights and config as one safetensors file (see `save_weights`)."""
    save_weights(model.state_dict(), model.config, path)


def save_weights(state: Mapping[str, Tensor], config: MAEConfig | ClassifierConfig, path: str | Path) -> None:
    """Write weights and config as one safetensors file, whole or not at all, the same bytes each time.

    Args:
        state: A state dict of `MAE(config)` or `Classifier(config)`, of any dtype, on any device.
        config: What the weights belong to.
        path: Where to; an existing file is replaced.

    Raises:
        OSError: The disk is full, read-only, or the folder is missing. An existing file is as it was.
    """
    metadata = {_METADATA_KEY: json.dumps({"model": _kind(config), "config": asdict(config)}, sort_keys=True)}
    save_tensors(state, Path(path), metadata=metadata)


def load_model(path: str | Path, *, config: MAEConfig | None = None) -> MAE:
    """Open a pretrained model, float32, on the CPU, in evaluation mode.

    Args:
        path: A model file; a folder with model.safetensors; a run, of which the latest checkpoint is taken;
            or a foreign mae_st checkpoint (.pth, .pyth, .pt, or a safetensors without our config).
        config: What a foreign checkpoint is, if its tensors do not tell. Our own files know.

    Raises:
        WeightsError: There is no model at `path`, or it is damaged, of an unknown kind, unsafe to open, or a
            classifier.
    """
    model = open_model(path, config=config)
    if isinstance(model, Classifier):
        raise WeightsError(f"{path}: holds a classifier, not a masked autoencoder; load_classifier opens it")
    return model


def load_classifier(path: str | Path) -> Classifier:
    """Open a finetuned classifier as `load_model` opens a pretrained model.

    Raises:
        WeightsError: As there, or the model is a masked autoencoder.
    """
    model = open_model(path)
    if isinstance(model, MAE):
        raise WeightsError(
            f"{path}: holds a masked autoencoder, not a classifier; load_model opens it, and finetuning makes a "
            "classifier of it"
        )
    return model


def open_model(path: str | Path, *, config: MAEConfig | None = None) -> MAE | Classifier:
    """Open a model of either kind; arguments and errors as in `load_model`."""
    file = find_model_file(path)
    try:
        if file.suffix in _PICKLED:
            foreign, hints = _read_pickled(file)
        else:
            foreign, stored = _read_safetensors(file)
            if stored is not None:
                return _build(stored, foreign)
            hints = {}
        return _build(*from_mae_st(foreign, config, hints=hints))
    except WeightsError:
        raise
    except (ValueError, SafetensorError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from error


def find_model_file(path: str | Path) -> Path:
    """The file that holds the model of a file, a folder, a checkpoint or a run.

    Raises:
        WeightsError: There is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder")
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    latest = path / CHECKPOINTS / LATEST
    if not latest.is_file():
        raise WeightsError(
            f"{path}: neither {MODEL_FILE} nor {CHECKPOINTS}/{LATEST} is here; "
            "expected a run with a checkpoint, a checkpoint's folder or a model file"
        )
    name = latest.read_text().strip()
    file = path / CHECKPOINTS / name / MODEL_FILE
    if Path(name).name != name or not file.is_file():
        raise WeightsError(f"{latest} names {name!r}, but there is no {file}; write another checkpoint's name into it")
    return file


def _kind(config: MAEConfig | ClassifierConfig) -> str:
    return "Classifier" if isinstance(config, ClassifierConfig) else "MAE"


def _build(config: MAEConfig | ClassifierConfig, state: Mapping[str, Tensor]) -> MAE | Classifier:
    with torch.device("meta"):  # no time for random weights that are replaced at once
        model = Classifier(config) if isinstance(config, ClassifierConfig) else MAE(config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.requires_grad_().eval()


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], MAEConfig | ClassifierConfig | None]:
    with safe_open(file, framework="pt") as opened:
        stored = (opened.metadata() or {}).get(_METADATA_KEY)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if not stored:
        return tensors, None
    described = json.loads(stored)
    kinds = {"MAE": MAEConfig, "Classifier": ClassifierConfig}
    if described["model"] not in kinds:
        raise WeightsError(f"{file}: holds a {described['model']!r}; this version knows {', '.join(kinds)}")
    return tensors, kinds[described["model"]](**described["config"])


def _read_pickled(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A foreign checkpoint's state dict, and its `args` as a dict (empty if it has none)."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{file}: refused, it holds more than tensors and plain values or is damaged ({reason}); "
            "open it where it came from and save its state dict alone"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: holds a {type(content).__name__}, not a state dict")
    args = content.get("args")
    hints = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    state = next((content[key] for key in ("model", "model_state") if key in content), content)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{file}: no tensors under 'model', 'model_state' or at the top; keys: {list(content)[:8]}")
    return tensors, hints
