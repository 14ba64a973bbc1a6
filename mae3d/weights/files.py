"""Models are saved to one safetensors file each, with the config in its metadata, and opened from any known file.

model ◄─► model.safetensors; run, folder, foreign checkpoint ─► model

    save_model(model, "model.safetensors")
    model = load_model("RUN")         # a run, a checkpoint or exported folder, a model file, or a foreign .pth
    model = load_classifier("RUN")    # of a finetuning run; open_model takes either kind
    encoder = open_encoder("FILE")    # of any of these, and of foreign checkpoints without a decoder that we know

Nothing but tensors and plain values is ever unpickled (torch.load with weights_only=True).
"""

import argparse
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae3d.io.files import looked_for
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.encoder import Encoder
from mae3d.model.mae import MAE
from mae3d.tracking.run_dir import BEST, CHECKPOINTS, LATEST
from mae3d.weights.convert import classifier_from_foreign, encoder_from_foreign, from_foreign, is_classifier
from mae3d.weights.tensors import save_tensors

MODEL_FILE = "model.safetensors"
FOREIGN_FILE = "checkpoint.pth"  # the model of an exported folder in another project's format
CARD = "config.json"  # an exported folder's description, for people and for a foreign file beside it
_KINDS: dict[str, type[MAEConfig] | type[ClassifierConfig]] = {"MAE": MAEConfig, "Classifier": ClassifierConfig}
_METADATA_KEY = "mae3d"  # one key: safetensors writes several in an arbitrary order
_STATES = ("model", "model_state", "module")  # keys of the weights: mae_st, PySlowFast, DeepSpeed (VideoMAE)
_PICKLED = {".pth", ".pyth", ".pt", ".bin"}
_SAFE_TORCH = (2, 6)  # before it, weights_only could be made to run code (CVE-2025-32434)

logger = logging.getLogger(__name__)


class WeightsError(ValueError):
    """Failure to find or read a model at a path; the message names what was expected."""


def save_model(model: MAE | Classifier, path: str | Path) -> None:
    """Write a model's weights and config as one safetensors file (see `save_weights`)."""
    save_weights(model.state_dict(), model.config, path)


def save_weights(state: Mapping[str, Tensor], config: MAEConfig | ClassifierConfig, path: str | Path) -> None:
    """Write weights and config as one safetensors file, whole or not at all, the same bytes each time.

    Args:
        state: A state dict of `MAE(config)` or `Classifier(config)`, of any dtype, on any device.
        config: The model's config.
        path: The file; an existing one is replaced.

    Raises:
        OSError: The disk is full, read-only, or the folder is missing. An existing file is as it was.
    """
    save_tensors(state, Path(path), metadata=model_metadata(config))


def model_metadata(config: MAEConfig | ClassifierConfig) -> dict[str, str]:
    """Return the metadata by which a file of weights describes its model."""
    return {_METADATA_KEY: json.dumps({"model": _kind(config), "config": asdict(config)}, sort_keys=True)}


def load_model(path: str | Path, *, config: MAEConfig | None = None) -> MAE:
    """Open a pretrained model, float32, on the CPU, in evaluation mode.

    Args:
        path: A model file; a folder with model.safetensors, as launch/export.py makes it; a run, for its best
            checkpoint if validation chose one, else the latest; or a foreign checkpoint (.pth, .pyth, .pt, or a
            safetensors without our config) of a format in mae3d.weights.convert.FORMATS.
        config: Config of a foreign checkpoint, if its tensors do not determine it. Our files have their config.

    Raises:
        WeightsError: There is no model at `path`, or it is damaged, of an unknown kind, unsafe to open, or a
            classifier.
    """
    model = open_model(path, config=config)
    if isinstance(model, Classifier):
        raise WeightsError(f"{path} holds a classifier, not a masked autoencoder: open it with load_classifier")
    return model


def load_classifier(path: str | Path, *, config: ClassifierConfig | None = None) -> Classifier:
    """Open a finetuned classifier as `load_model` opens a pretrained model.

    Args:
        path: A path as for `load_model`; a foreign checkpoint must have mae_st's or PySlowFast's names.
        config: Config of a foreign checkpoint, if its tensors do not determine it: eminorhan/mae_st's needs
            pooling="cls".

    Raises:
        WeightsError: As in `load_model`, or the model is a masked autoencoder.
    """
    model = open_model(path, config=config)
    if isinstance(model, MAE):
        raise WeightsError(
            f"{path} holds a masked autoencoder, not a classifier: open it with load_model, or finetune it to a "
            "classifier"
        )
    return model


def open_model(path: str | Path, *, config: MAEConfig | ClassifierConfig | None = None) -> MAE | Classifier:
    """Open a model of either kind; arguments and errors as in `load_model`."""
    file = find_model_file(path)
    with _named_in_errors(file):
        tensors, stored, hints = _read(file)
        if stored is not None:
            return _build(stored, tensors)
        config = config or _card_beside(file)
        if isinstance(config, ClassifierConfig) or (config is None and is_classifier(tensors)):
            return _build(*classifier_from_foreign(tensors, config, hints=hints))
        return _build(*from_foreign(tensors, config, hints=hints))


def open_encoder(path: str | Path, *, config: EncoderConfig | None = None) -> Encoder:
    """Open the encoder of anything that `open_model` opens, and of a checkpoint whose decoder is missing or not ours.

    Args:
        path: A path as for `load_model`; also VideoMAE's checkpoints, and weights of an encoder alone.
        config: Config of a foreign checkpoint, if its tensors do not determine it.

    Returns:
        The encoder, float32, on the CPU, in evaluation mode; `resize.encoder_state` fits it to clips of another size.

    Raises:
        WeightsError: As in `load_model`.
    """
    file = find_model_file(path)
    with _named_in_errors(file):
        tensors, stored, hints = _read(file)
        if stored is not None:
            return _build(stored, tensors).encoder
        known, state = encoder_from_foreign(tensors, config or _card_beside(file), hints=hints)
        with torch.device("meta"):
            encoder = Encoder(known)
        encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
        return encoder.requires_grad_().eval()


@contextmanager
def _named_in_errors(file: Path) -> Iterator[None]:
    """Raise the block's errors as a WeightsError that names the file."""
    try:
        yield
    except WeightsError:
        raise
    except (ValueError, SafetensorError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from error


def _read(file: Path) -> tuple[dict[str, Tensor], MAEConfig | ClassifierConfig | None, dict[str, Any]]:
    """Return tensors, the config if the file is ours, and the settings that a foreign file has."""
    if file.suffix in _PICKLED:
        tensors, hints = _read_pickled(file)
        return tensors, None, hints
    return *_read_safetensors(file), _hints_beside(file)


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of any file of weights, under the file's names; nothing but tensors is unpickled.

    Raises:
        WeightsError: The file is damaged, or unsafe to open.
    """
    with _named_in_errors(Path(file)):
        return _read(Path(file))[0]


def _hints_beside(file: Path) -> dict[str, Any]:
    """Return the settings in config.json beside a model of Hugging Face's transformers, under upstream's names."""
    card = file.parent / CARD
    described = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    if described.get("model_type") != "videomae":
        return {}
    names = {"num_heads": "num_attention_heads", "img_size": "image_size", "num_frames": "num_frames"}
    return {ours: described[theirs] for ours, theirs in names.items() if theirs in described}


def _card_beside(file: Path) -> MAEConfig | ClassifierConfig | None:
    """Return the config that launch/export.py wrote beside a file in another format."""
    card = file.parent / CARD
    if file.name != FOREIGN_FILE or not card.is_file():
        return None
    described = json.loads(card.read_text(encoding="utf-8"))
    kind = _KINDS.get(described.get("kind"))
    return kind(**described["model"]) if kind else None


def find_model_file(path: str | Path) -> Path:
    """Find the file that holds the model of a file, a folder, a checkpoint or a run.

    Raises:
        WeightsError: There is no model.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder{looked_for(path)}")
    for name in (MODEL_FILE, FOREIGN_FILE):
        if (path / name).is_file():
            return path / name
    pointer = next((p for p in (path / CHECKPOINTS / name for name in (BEST, LATEST)) if p.is_file()), None)
    if pointer is None:
        raise WeightsError(
            f"{path} has neither {MODEL_FILE} nor {CHECKPOINTS}/{LATEST}: "
            "give a run with a checkpoint, a checkpoint's folder or a model file"
        )
    name = pointer.read_text(encoding="utf-8").strip()
    file = path / CHECKPOINTS / name / MODEL_FILE
    if Path(name).name != name or not file.is_file():
        raise WeightsError(f"{pointer} names {name!r}, but there is no {file}: write another checkpoint's name into it")
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
    if described["model"] not in _KINDS:
        raise WeightsError(f"{file}: holds a {described['model']!r}; this version knows {', '.join(_KINDS)}")
    return tensors, _KINDS[described["model"]](**described["config"])


def _only(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the one state dict of a trainer's checkpoint, under any key; a checkpoint that is one, as it is.

    Raises:
        WeightsError: there are several, as of a model and its average: which is meant is not for us to guess.
    """
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    sets = {
        str(key): value
        for key, value in content.items()
        if isinstance(value, dict) and value and all(isinstance(one, Tensor) for one in value.values())
    }
    if len(sets) > 1:
        counts = ", ".join(f"{key} ({len(value)} tensors)" for key, value in sets.items())
        raise WeightsError(f"{file}: holds several state dicts, {counts}: save the one that is meant alone")
    return next(iter(sets.values()), content)


def _why_refused(error: Exception) -> str:
    """Return what torch has refused in a pickled file, and the remedy; its own advice is to run the file's code."""
    text = str(error)
    if refused := re.search(r"GLOBAL:? (\S+)|[Uu]nsupported class (\S+)|instance of [`']?([\w.]+)", text):
        name = next(group for group in refused.groups() if group)
        return (
            f"it holds an object of {name}, and only tensors and plain values are opened, because others may run code: "
            "open it where it came from, and save its state dict alone, torch.save(model.state_dict(), FILE)"
        )
    detail = text.partition("WeightsUnpickler error:")[2].partition("Check the documentation")[0] or text
    reason = " ".join(detail.split())[:300] or type(error).__name__
    return (
        f"it is damaged, or holds more than tensors and plain values ({reason}): fetch it again, or open it where it "
        "came from and save its state dict alone"
    )


def _read_pickled(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a foreign checkpoint's state dict, and its `args` as a dict (empty if it has none)."""
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < _SAFE_TORCH:
        raise WeightsError(
            f"{file}: refused, torch {torch.__version__} may run code from a pickled file: install torch 2.6 or later"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError) as error:
        raise WeightsError(f"{file}: refused, {_why_refused(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: holds a {type(content).__name__}, not a state dict")
    args = content.get("args")
    hints = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    state = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), None) or _only(content, file)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if tensors and state is not content and (others := sorted(map(str, state.keys() - tensors.keys()))):
        raise WeightsError(f"{file}: left over, no tensors: {', '.join(others[:12])}; save the tensors alone")
    if not tensors:
        raise WeightsError(f"{file}: no tensors under {', '.join(_STATES)} or at the top; keys: {list(content)[:8]}")
    return tensors, hints
