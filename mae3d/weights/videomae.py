"""VideoMAE's folders of Hugging Face's transformers are written and read, where the architecture is the same.

encoder, classifier ◄─► config.json, model.safetensors, preprocessor_config.json

    save_videomae(model, folder, facts)                     # transformers.VideoMAEModel.from_pretrained(folder)
    classifier = classifier_from_videomae(tensors, described)

VideoMAE has no class token, a table of positions that is fixed, biases of query and value only, and pools all tokens. A
bias of the keys is left out: it adds the same number to all scores of a query, which the softmax takes off again. Other
differences are refused by name, with the settings under which a model can be exported.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae3d.io.shapes import sides
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig
from mae3d.model.encoder import Encoder, token_sines
from mae3d.model.frames import FrameEncoder
from mae3d.model.mae import MAE
from mae3d.weights.convert import encoder_from_foreign
from mae3d.weights.formats import ConvertError, State
from mae3d.weights.tensors import save_tensors

EPS = 1e-6  # of our norms; theirs after the pooling of a classifier is fixed at 1e-5
_TABLE_ERROR = 1e-6  # by which two computations of a table of sines may differ
_HEAD = ("classifier.weight", "classifier.bias")
# Settings of EncoderConfig that the formats here and bare_encoder.py hold, or that have no part in the outputs.
_KNOWN = {
    *("preset", "img_size", "num_frames", "in_chans", "patch_size", "t_patch_size", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "qkv_bias", "sep_pos_embed", "cls_embed", "trunc_init", "pos_init", "mean", "std"),
}
_PROCESSOR = "preprocessor_config.json"


def save_videomae(
    model: MAE | Classifier | Encoder | FrameEncoder, folder: Path, facts: Mapping[str, Any], *, file: str
) -> None:
    """Write the files by which transformers opens an encoder, VideoMAEModel, or a classifier.

    Args:
        model: The model; of a masked autoencoder the encoder is taken, because VideoMAE's decoder is another.
        folder: It exists.
        facts: Our description, which is kept in their config.json.
        file: Name of the file of weights.

    Raises:
        ConvertError: The architecture is another; the message names the settings.
        OSError: The disk is full, or read-only.
    """
    from mae3d.io.files import write_text

    classifier = model if isinstance(model, Classifier) else None
    encoder = model if isinstance(model, Encoder | FrameEncoder) else model.encoder
    config = check_videomae(encoder, pooling=classifier.config.pooling if classifier else "patches")
    assert isinstance(encoder, Encoder)
    state = _their_encoder(encoder.state_dict(), config)
    if classifier:
        state = {f"videomae.{name}": tensor for name, tensor in state.items()}
        state = {name.replace("videomae.layernorm.", "fc_norm."): tensor for name, tensor in state.items()}
        state |= dict(zip(_HEAD, (classifier.head.weight, classifier.head.bias), strict=True))
    described = _their_config(config, classifier.config if classifier else None)
    save_tensors(state, folder / file, metadata={"format": "pt"})
    write_text(folder / "config.json", json.dumps(described | {"mae3d": facts}, indent=1) + "\n")
    write_text(folder / _PROCESSOR, json.dumps(_their_processor(config), indent=1) + "\n")


def check_videomae(encoder: Encoder | FrameEncoder, *, pooling: str) -> EncoderConfig:
    """Refuse an encoder that VideoMAE cannot hold, with all reasons; return its config.

    Raises:
        ConvertError: The message names every setting that differs, and what to train instead.
    """
    if isinstance(encoder, FrameEncoder):
        raise ConvertError(
            f"the format transformers cannot hold an encoder of single frames, {encoder.config.backbone}"
        )
    config, reasons = encoder.config, []
    if unknown := unusual_settings(config):
        reasons += unknown
    if config.cls_embed:
        reasons.append("a class token (cls_embed=true)")
    if config.rope == "none" and not _has_fixed_positions(encoder):
        reasons.append("learned positions: VideoMAE's are fixed sines, which no file of theirs holds")
    if pooling != "patches":
        reasons.append(f"model.pooling={pooling}")
    if reasons:
        raise ConvertError(
            f"the format transformers (VideoMAE) cannot hold {'; '.join(reasons)}. It holds models trained with "
            "--model.cls_embed false --model.sep_pos_embed false --model.pos_init fixed, or of VideoMAE's weights, "
            "and classifiers over them with --model.pooling patches; give this one away as mae3d, onnx, torch_export "
            "or encoder"
        )
    return config


def _has_fixed_positions(encoder: Encoder) -> bool:
    with torch.no_grad():
        table = encoder.positions(None)[1].float()
    return torch.allclose(table, token_sines(*table.shape[1:]), rtol=0, atol=_TABLE_ERROR)


def unusual_settings(config: EncoderConfig) -> list[str]:
    """Return the settings of an encoder that this file and bare_encoder.py do not know, and that are not as usual."""
    return [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in fields(EncoderConfig)
        if field.name not in _KNOWN and getattr(config, field.name) != field.default
    ]


def _their_encoder(state: State, config: EncoderConfig) -> dict[str, Tensor]:
    u, p, channels = config.t_patch_size, config.patch_size, config.in_chans
    kernel = state["patch_embed.weight"].unflatten(1, (u, p, p, channels)).permute(0, 4, 1, 2, 3)
    theirs = {
        "embeddings.patch_embeddings.projection.weight": kernel,
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.bias"],
    }
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for number in range(config.depth):
        ours, layer = f"blocks.{number}", f"encoder.layer.{number}"
        for part, their_part in names.items():
            theirs |= {f"{layer}.{their_part}.{kind}": state[f"{ours}.{part}.{kind}"] for kind in ("weight", "bias")}
        for part, weight in zip(("query", "key", "value"), state[f"{ours}.attn.qkv.weight"].chunk(3), strict=True):
            theirs[f"{layer}.attention.attention.{part}.weight"] = weight
        if config.qkv_bias:
            query, _, value = state[f"{ours}.attn.qkv.bias"].chunk(3)
            # the names before transformers 5, which it translates
            theirs |= {f"{layer}.attention.attention.q_bias": query, f"{layer}.attention.attention.v_bias": value}
    return theirs | {f"layernorm.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}


def _their_config(config: EncoderConfig, classifier: ClassifierConfig | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "architectures": ["VideoMAEForVideoClassification" if classifier else "VideoMAEModel"],
        "model_type": "videomae",
        "image_size": config.img_size if isinstance(config.img_size, int) else list(config.img_size),
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "num_frames": config.num_frames,
        "tubelet_size": config.t_patch_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": EPS,
        "qkv_bias": config.qkv_bias,
        "use_mean_pooling": classifier is not None,
    }
    if classifier:
        names = classifier.class_names or tuple(f"LABEL_{number}" for number in range(classifier.num_classes))
        described["id2label"] = {str(number): name for number, name in enumerate(names)}
        described["label2id"] = {name: number for number, name in enumerate(names)}
        if classifier.multi_label:
            described["problem_type"] = "multi_label_classification"
    return described


def _their_processor(config: EncoderConfig) -> dict[str, Any]:
    height, width = sides(config.img_size)
    channels = config.in_chans
    mean, std = (list(x) if isinstance(x, tuple) else [x] * channels for x in (config.mean, config.std))
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(height, width)},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def is_videomae_classifier(foreign: State) -> bool:
    """Return whether a state dict has the names of transformers' VideoMAEForVideoClassification."""
    return {*_HEAD, "fc_norm.weight"} <= foreign.keys()


def classifier_from_videomae(
    foreign: State, described: Mapping[str, Any], *, hints: Mapping[str, Any]
) -> tuple[ClassifierConfig, dict[str, Tensor]]:
    """Convert transformers' VideoMAEForVideoClassification.

    Args:
        foreign: Names and tensors.
        described: The content of their config.json, for the names of the classes.
        hints: Settings that tensors do not determine.

    Raises:
        ConvertError: A key is missing or left over.
    """
    encoder, state = encoder_from_foreign(
        {name: tensor for name, tensor in foreign.items() if name not in _HEAD}, hints=hints
    )
    classes = len(foreign[_HEAD[0]])
    labels = described.get("id2label") or {}
    names = tuple(str(labels.get(str(number), "")) for number in range(classes))
    is_named = len(labels) == classes and not all(name == f"LABEL_{number}" for number, name in enumerate(names))
    config = ClassifierConfig.of(
        encoder,
        num_classes=classes,
        class_names=names if is_named else (),
        pooling="patches",
        multi_label=described.get("problem_type") == "multi_label_classification",
    )
    state = {f"encoder.{name}": tensor for name, tensor in state.items()}
    return config, state | {"head.weight": foreign[_HEAD[0]], "head.bias": foreign[_HEAD[1]]}
