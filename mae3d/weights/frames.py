"""Weights of an image ViT of timm come from a file, from timm's own download on request, or from nowhere, as requested.

name, weights ─► FrameEncoder

    encoder = open_frame_encoder("vit_small_patch14_dinov2", "dinov2_vits14_pretrain.pth", img_size=224)
    encoder = open_frame_encoder("vit_tiny_patch16_224", "none")         # untrained, by the seed

A file may have timm's names, transformers' or mmpretrain's, or those of the model's authors (DINOv2, OpenAI's and
OpenCLIP's CLIP, SigLIP, DINOv3): timm's own filter renames them and interpolates positions to the size of the frames.
Nothing but tensors is unpickled, and nothing is fetched unless `weights` is `download`.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae3d.io.console import one_line
from mae3d.io.shapes import Size
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder, frame_config
from mae3d.weights.convert import encoder_from_foreign, unmatched
from mae3d.weights.files import WeightsError, built_encoder, named_in_errors, read_tensors, split_key
from mae3d.weights.inflate import Inflate, inflated
from mae3d.weights.names import plain_names
from mae3d.weights.wrappers import unwrapped

DOWNLOAD, UNTRAINED = "download", "none"
_EPSILON = 1e-6  # of our norms
_HEADS = (
    "head.",
    "head_dist.",
    "attn_pool.",
    "fc.",
    "mask_token",
    "pooler.",
    "classifier.",
    "decoder",
)  # parts of checkpoints that no feature depends on


def open_frame_encoder(
    name: str, weights: str, *, num_frames: int = 16, img_size: Size | None = None, seed: int = 0
) -> FrameEncoder:
    """Open an image ViT for clips, float32, on the CPU, in evaluation mode.

    Args:
        name: A name of timm's.
        weights: A file; `download`, for timm's own weights of this name; or `none`, for random ones.
        num_frames: Frames of a clip.
        img_size: Side of a square frame, or height and width; None is the model's own.
        seed: Seed of random weights.

    Raises:
        WeightsError: The file is missing, damaged or unsafe, its tensors are not this model's, or the download failed.
        ValueError: There is no such model, or a size does not fit it.
    """
    config = frame_config(name, num_frames=num_frames, img_size=img_size)
    if weights == DOWNLOAD:
        try:
            return FrameEncoder(config, pretrained=True).eval()
        except OSError as error:
            raise WeightsError(
                f"timm:{name}: its weights cannot be downloaded ({one_line(error)}): fetch them elsewhere, and give "
                "the file"
            ) from error
    file = Path(weights)
    if weights != UNTRAINED and not split_key(file)[0].is_file():
        raise WeightsError(f"{weights}: no such file of weights of timm:{name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = FrameEncoder(config)
    if weights != UNTRAINED:
        _load(encoder, read_tensors(file), file)
    return encoder.eval()


def inflate_frames(encoder: FrameEncoder, inflate: Inflate) -> Encoder:
    """Return the video encoder that an image ViT of timm becomes, with timm's mean and std.

    Raises:
        ValueError: Our blocks lack a part of the model; the message names it.
    """
    vit, config = encoder.vit, encoder.config
    lacking = [] if type(vit).__name__ == "VisionTransformer" else [f"is a {type(vit).__name__}"]
    for module in vit.modules():
        if isinstance(module, torch.nn.LayerNorm) and module.eps != _EPSILON:
            lacking.append(f"has norms with eps {module.eps:g}, not {_EPSILON:g}")
        elif type(module).__name__.lower().endswith("gelu") and getattr(module, "approximate", "other") != "none":
            lacking.append("has another activation than the exact GELU")
        elif type(module).__name__ in ("RmsNorm", "SwiGLU", "GluMlp", "SwiGLUPacked", "QuickGELU", "SiLU", "ReLU"):
            lacking.append(f"has {type(module).__name__}")
    if lacking:
        raise WeightsError(f"timm:{config.backbone} {lacking[0]}: it cannot become a video encoder of ours")
    hints = {"num_heads": config.num_heads, "mean": config.mean, "std": config.std}
    with named_in_errors(Path(f"timm:{config.backbone}")):
        state = inflated(vit.state_dict(), inflate, checked=True)
        known, ours = encoder_from_foreign(state, format="image", hints=hints)
    return built_encoder(known, ours)


def state_hash(encoder: torch.nn.Module) -> str:
    """Return the sha256 over all weights, by name, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load(encoder: FrameEncoder, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy a file's tensors into the ViT, each of them or none."""
    vit, name = encoder.vit, encoder.config.backbone
    convert: Any = sys.modules[type(vit).__module__].checkpoint_filter_fn  # timm's, of the model's class
    with named_in_errors(file):
        try:
            renamed = convert(plain_names(unwrapped(tensors)), vit)
        except (KeyError, IndexError, AttributeError, AssertionError) as error:
            raise WeightsError(f"{file}: holds no weights that timm reads as {name} ({error!r})") from error
        state = {key: tensor.float() for key, tensor in renamed.items() if not key.startswith(_HEADS)}
        expected = vit.state_dict()
        problems = unmatched(set(expected), set(state)) or "; ".join(
            f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if state[key].shape != tensor.shape
        )
        if problems:
            raise WeightsError(f"{file}: holds other weights than those of timm:{name}; {problems}")
        vit.load_state_dict(state)
