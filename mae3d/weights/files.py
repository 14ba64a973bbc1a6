"""Models are saved to one safetensors file each, with the config in its metadata, and opened from any known file.

model ◄─► model.safetensors; run, folder, foreign checkpoint ─► model

    save_model(model, "model.safetensors")
    model = load_model("RUN")         # a run, a checkpoint or exported folder, a model file, or a foreign checkpoint
    model = load_model("org/name")    # a model of the Hugging Face Hub (hub.py)
    model = load_classifier("RUN")    # of a finetuning run; open_model takes either kind
    encoder = open_encoder("FILE")    # of any of these, and of foreign checkpoints without a decoder that we know

Nothing but tensors and plain values is ever unpickled (torch.load with weights_only=True).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae3d.io.files import looked_for
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder
from mae3d.model.mae import MAE
from mae3d.tracking.run_dir import BEST, CHECKPOINTS, LATEST
from mae3d.weights.card import CARD
from mae3d.weights.convert import classifier_from_foreign, encoder_from_foreign, from_foreign, is_classifier
from mae3d.weights.hub import WEIGHTS, fetch, hub_model, kind_in, remedy_for
from mae3d.weights.kinds import kind_of, why_no_safetensors
from mae3d.weights.tensors import save_tensors
from mae3d.weights.torch_files import read_torch
from mae3d.weights.videomae import classifier_from_videomae, hints_of, is_videomae_classifier

MODEL_FILE, FOREIGN_FILE, _ = WEIGHTS  # the second: the model of an exported folder in another project's format
_KINDS: dict[str, type[MAEConfig] | type[ClassifierConfig]] = {"MAE": MAEConfig, "Classifier": ClassifierConfig}
_METADATA_KEY = "mae3d"  # one key: safetensors writes several in an arbitrary order


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
            checkpoint if validation chose one, else the latest; or a foreign checkpoint, which torch.save has written
            or a safetensors file without our config, of a format in mae3d.weights.convert.FORMATS. A file is known by
            its content, and may have any name. A text `org/name[@revision]` that is no path here, or `hf://org/name`,
            is a model of the Hugging Face Hub, which is fetched into its cache (mae3d.weights.hub).
        config: Config of a foreign checkpoint, if its tensors do not determine it. Our files have their config.

    Raises:
        WeightsError: There is no model at `path`, or it is damaged, of an unknown kind, unsafe to open, or a
            classifier.
        OSError: The Hub cannot be reached, and its cache has not got the model.
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
    with named_in_errors(file):
        tensors, stored, hints = _read(file)
        if stored is not None:
            return _build(stored, tensors)
        config = config or _card_beside(file)
        if is_videomae_classifier(tensors):
            return _build(*classifier_from_videomae(tensors, _described_beside(file), hints=hints))
        if isinstance(config, ClassifierConfig) or (config is None and is_classifier(tensors)):
            return _build(*classifier_from_foreign(tensors, config, hints=hints))
        return _build(*from_foreign(tensors, config, hints=hints))


def open_encoder(path: str | Path, *, config: EncoderConfig | None = None) -> Encoder | FrameEncoder:
    """Open the encoder of anything that `open_model` opens, and of a checkpoint whose decoder is missing or not ours.

    Args:
        path: A path as for `load_model`; also VideoMAE's checkpoints, and weights of an encoder alone.
        config: Config of a foreign checkpoint, if its tensors do not determine it.

    Returns:
        The encoder, float32, on the CPU, in evaluation mode; `resize.encoder_state` fits it to clips of another size.
        Of a classifier over an image ViT it is a FrameEncoder.

    Raises:
        WeightsError: As in `load_model`.
    """
    file = find_model_file(path)
    with named_in_errors(file):
        tensors, stored, hints = _read(file)
        if stored is not None:
            return _build(stored, tensors).encoder
        known, state = encoder_from_foreign(tensors, config or _card_beside(file), hints=hints)
        with torch.device("meta"):
            encoder = Encoder(known)
        encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
        return encoder.requires_grad_().eval()


@contextmanager
def named_in_errors(file: Path) -> Iterator[None]:
    """Raise the block's errors as a WeightsError that names the file."""
    try:
        yield
    except WeightsError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{file}: {error}{kind_in(file.parent)}") from error


def _read(file: Path) -> tuple[dict[str, Tensor], MAEConfig | ClassifierConfig | None, dict[str, Any]]:
    """Return tensors, the config if the file is ours, and the settings that a foreign file has."""
    if kind_of(file) == "torch":
        tensors, hints = read_torch(file)
        return tensors, None, _hints_beside(file) | hints
    return *_read_safetensors(file), _hints_beside(file)


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of any file of weights, under the file's names; nothing but tensors is unpickled.

    Raises:
        WeightsError: The file is damaged, or unsafe to open.
    """
    with named_in_errors(Path(file)):
        return _read(Path(file))[0]


def _described_beside(file: Path) -> dict[str, Any]:
    """Return the content of config.json in a file's folder; {} if there is none, or it is no description."""
    card = file.parent / CARD
    try:
        described = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    except ValueError as error:
        raise WeightsError(f"{card}: no JSON ({error}): mend it, or move {file.name} away from it") from error
    return described if isinstance(described, dict) else {}


def _hints_beside(file: Path) -> dict[str, Any]:
    """Return the settings in config.json beside a model of Hugging Face's transformers, under upstream's names."""
    described = _described_beside(file)
    if described.get("model_type") != "videomae":
        return {}
    return hints_of(file.parent, described)


def _card_beside(file: Path) -> MAEConfig | ClassifierConfig | None:
    """Return the config that launch/export.py wrote beside a file in another format."""
    if file.name != FOREIGN_FILE:
        return None
    described = _described_beside(file)
    kind = _KINDS.get(described.get("kind", ""))
    return kind(**described["model"]) if kind else None


def find_model_file(path: str | Path) -> Path:
    """Find the file that holds the model of a file, a folder, a checkpoint, a run, or a name on the Hugging Face Hub.

    Raises:
        WeightsError: There is no model.
        OSError: The Hub cannot be reached, and its cache has not got the model.
    """
    try:
        if model := hub_model(path):
            path = fetch(model)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    remedy, path = remedy_for(path), Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder{looked_for(path)}{remedy}")
    for name in WEIGHTS:
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
    # No time for random weights that are replaced at once; timm's modules have tensors that no file holds.
    with torch.device("cpu" if isinstance(config, ClassifierConfig) and config.backbone else "meta"):
        model = Classifier(config) if isinstance(config, ClassifierConfig) else MAE(config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.requires_grad_().eval()


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], MAEConfig | ClassifierConfig | None]:
    try:
        with safe_open(file, framework="pt") as opened:
            stored = (opened.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(why_no_safetensors(file)) from error
    if not stored:
        return tensors, None
    described = json.loads(stored)
    if described["model"] not in _KINDS:
        raise WeightsError(f"{file}: holds a {described['model']!r}; this version knows {', '.join(_KINDS)}")
    return tensors, _KINDS[described["model"]](**described["config"])
