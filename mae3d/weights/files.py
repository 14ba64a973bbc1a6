"""Models are saved to one safetensors file each, with the config in its metadata, and opened from any known file.

model ◄─► model.safetensors; run, folder, foreign checkpoint ─► model

    save_model(model, "model.safetensors")
    model = load_model("RUN")         # a run, a checkpoint or exported folder, a model file, or a foreign checkpoint
    model = load_model("org/name")    # a model of the Hugging Face Hub (hub.py)
    model = load_classifier("RUN")    # of a finetuning run; open_model takes either kind
    encoder = open_encoder("FILE")    # of any of these, and of foreign checkpoints without a decoder that we know

Nothing but tensors and plain values is ever unpickled (torch.load with weights_only=True).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae3d.io.files import looked_for, sha256_of
from mae3d.model.blocks import without_weights
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder
from mae3d.model.mae import MAE
from mae3d.tracking.run_dir import BEST, CHECKPOINTS, LATEST
from mae3d.weights.beside import described_beside, hints_beside
from mae3d.weights.card import CARD
from mae3d.weights.convert import classifier_from_foreign, encoder_from_foreign, from_foreign, is_classifier
from mae3d.weights.hub import INDICES, WEIGHTS, fetch, hub_model, kind_in, remedy_for
from mae3d.weights.inflate import Inflate, wish_of
from mae3d.weights.kinds import kind_of, parts_of, why_no_safetensors
from mae3d.weights.tensors import save_tensors
from mae3d.weights.torch_files import read_torch
from mae3d.weights.videomae import classifier_from_videomae, is_videomae_classifier
from mae3d.weights.wrappers import under

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


def load_model(path: str | Path, *, config: MAEConfig | None = None, inflate: Inflate | str | None = None) -> MAE:
    """Open a pretrained model, float32, on the CPU, in evaluation mode.

    Args:
        path: A model file; a folder with model.safetensors, as launch/export.py makes it; a run, for its best
            checkpoint if validation chose one, else the latest; or a foreign checkpoint, which torch.save has written
            or a safetensors file without our config, of a format in mae3d.weights.convert.FORMATS. A file is known by
            its content, and may have any name. `FILE#KEY` names one of several models in a file. A text
            `org/name[@revision]` that is no path here, or `hf://org/name`, is a model of the Hugging Face Hub, which is
            fetched into its cache (mae3d.weights.hub).
        config: Config of a foreign checkpoint, if its tensors do not determine it. Our files have their config.
        inflate: The way in which an image MAE becomes one of clips, as in `open_encoder`; None refuses it.

    Raises:
        WeightsError: There is no model at `path`, or it is damaged, of an unknown kind, unsafe to open, or a
            classifier.
        OSError: The Hub cannot be reached, and its cache has not got the model.
    """
    model = open_model(path, config=config, inflate=inflate)
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


def open_model(
    path: str | Path, *, config: MAEConfig | ClassifierConfig | None = None, inflate: Inflate | str | None = None
) -> MAE | Classifier:
    """Open a model of either kind; arguments and errors as in `load_model`."""
    file = find_model_file(path)
    with named_in_errors(file):
        tensors, stored, hints = _read(file)
        if stored is not None:
            _check_is_image(inflate)
            return _build(stored, tensors)
        config = config or _card_beside(file)
        if is_videomae_classifier(tensors):
            return _build(*classifier_from_videomae(tensors, described_beside(file, CARD), hints=hints))
        if isinstance(config, ClassifierConfig) or (config is None and not inflate and is_classifier(tensors)):
            return _build(*classifier_from_foreign(tensors, config, hints=hints))
        return _build(*from_foreign(tensors, config, hints=hints, inflate=wish_of(inflate)))


def open_encoder(
    path: str | Path, *, config: EncoderConfig | None = None, inflate: Inflate | str | None = None
) -> Encoder | FrameEncoder:
    """Open the encoder of anything that `open_model` opens, and of a checkpoint whose decoder is missing or not ours.

    Args:
        path: A path as for `load_model`; also checkpoints of VideoMAE and V-JEPA, and weights of an encoder alone.
        config: Config of a foreign checkpoint, if its tensors do not determine it.
        inflate: `mean`: an image ViT (image MAE, timm, DINOv2) becomes a video encoder, exactly in what it computes of
            a still clip; `center` puts the kernel on the middle frame of a token. `Inflate("mean", num_frames=16,
            t_patch_size=2)` gives the clip. None refuses image models.

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
            _check_is_image(inflate)
            return _build(stored, tensors).encoder
        known, state = encoder_from_foreign(
            tensors, config or _card_beside(file), hints=hints, inflate=wish_of(inflate)
        )
        return built_encoder(known, state)


def built_encoder(config: EncoderConfig, state: Mapping[str, Tensor]) -> Encoder:
    """Return an encoder of these weights, float32, in evaluation mode, without time for random ones."""
    with without_weights():
        encoder = Encoder(config)
    encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return encoder.requires_grad_().eval()


def _check_is_image(inflate: Inflate | str | None) -> None:
    if inflate:
        raise ValueError("holds a model of ours, and inflate is for image models: leave it out")


@contextmanager
def named_in_errors(file: Path) -> Iterator[None]:
    """Raise the block's errors as a WeightsError that names the file."""
    try:
        yield
    except WeightsError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{file}: {error}{kind_in(file.parent)}") from error


def _read(path: Path) -> tuple[dict[str, Tensor], MAEConfig | ClassifierConfig | None, dict[str, Any]]:
    """Return tensors, the config if the file is ours, and the settings that a foreign file has."""
    file, key = split_key(path)
    kind, hints = kind_of(file), hints_beside(file)
    if kind == "torch":
        tensors, args = read_torch(file, key)
        return tensors, None, hints | args
    if kind == "index":
        tensors, stored = _read_parts(file), None
    else:
        tensors, stored = _read_safetensors(file)
    if key and stored is not None:
        raise ValueError(f"holds one model, of ours: leave #{key} out")
    return (under(tensors, key) if key else tensors), stored, hints


def _read_parts(index: Path) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names; each tensor is in one of them."""
    tensors: dict[str, Tensor] = {}
    for part in parts_of(index):
        read = read_torch(part)[0] if kind_of(part) == "torch" else _read_safetensors(part)[0]
        if twice := sorted(tensors.keys() & read.keys()):
            raise ValueError(f"{part.name} has {twice[0]} once more, which another part has: download the parts again")
        tensors |= read
    return tensors


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of any file of weights, under the file's names; nothing but tensors is unpickled.

    Raises:
        WeightsError: The file is damaged, or unsafe to open.
    """
    with named_in_errors(Path(file)):
        return _read(Path(file))[0]


def _card_beside(file: Path) -> MAEConfig | ClassifierConfig | None:
    """Return the config that launch/export.py wrote beside a file in another format."""
    if file.name != FOREIGN_FILE:
        return None
    described = described_beside(file, CARD)
    kind = _KINDS.get(described.get("kind", ""))
    return kind(**described["model"]) if kind else None


def split_key(path: str | Path) -> tuple[Path, str]:
    """Return the file of `FILE#KEY` and the key; "" if there is none, or a file of the whole name exists."""
    name, mark, key = str(path).rpartition("#")
    if not mark or not name or Path(path).exists():
        return Path(path), ""
    return Path(name), key


def content_hash(path: str | Path) -> str:
    """Return the sha256 of a model file; of the files that an index names, and with the key of `FILE#KEY`, of all."""
    file, key = split_key(path)
    try:
        parts = parts_of(file) if kind_of(file) == "index" else []
    except ValueError:  # reported where it is opened; on one node alone, as another hash than that of the others
        parts = []
    hashes = [sha256_of(part) for part in (file, *parts)]
    return hashes[0] if len(hashes) == 1 and not key else hashlib.sha256("\n".join([*hashes, key]).encode()).hexdigest()


def find_model_file(path: str | Path) -> Path:
    """Find the file that holds the model of a file, a folder, a checkpoint, a run, or a name on the Hugging Face Hub.

    A key behind it (`FILE#KEY`) stays there.

    Raises:
        WeightsError: There is no model.
        OSError: The Hub cannot be reached, and its cache has not got the model.
    """
    remedy = remedy_for(path)
    try:
        if model := hub_model(path):
            path = fetch(model)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    path, key = split_key(path)
    file = _file_of(path, remedy)
    return Path(f"{file}#{key}") if key else file


def _file_of(path: Path, remedy: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder{looked_for(path)}{remedy}")
    for name in (*WEIGHTS, *INDICES):
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
    is_timms = isinstance(config, ClassifierConfig) and config.backbone
    with torch.device("cpu") if is_timms else without_weights():
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
