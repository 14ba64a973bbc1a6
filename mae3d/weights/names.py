"""Names of Hugging Face's transformers, of mmaction2 and of mmpretrain become those of the models' authors.

names ─► names with `patch_embed.proj`, `blocks.0.attn.qkv`, `norm`

    state = plain_names(unwrapped(foreign))

Read are transformers' VideoMAE, V-JEPA 2, ViT, ViTMAE's encoder, DINOv2 and what is built of these, mmaction2's
VideoMAE, mmpretrain's ViT, and DINOv2's blocks in chunks. A state dict in other names comes back as it is.
"""

import re

import torch
from torch import Tensor

from mae3d.weights.formats import State
from mae3d.weights.recognition import from_transformers
from mae3d.weights.wrappers import renamed

_IMAGE_KEY = "embeddings.patch_embeddings.projection.weight"
_VJEPA_KEY = "encoder.embeddings.patch_embeddings.proj.weight"
_MM_KEY = "patch_embed.projection.weight"
# Patterns in transformers' names and what they become, one after the other.
_TRANSFORMERS = (
    (r"^(encoder\.)?embeddings\.patch_embeddings\.(projection|proj)\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^(encoder\.)?layernorm\.", "norm."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
_MM = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.", "blocks."),
    (r"^ln1\.", "norm."),
    (r"^pre_norm\.", "norm_pre."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.(mlp|ffn)\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.(mlp|ffn)\.layers\.1\.", ".mlp.fc2."),
    (r"\.(attn|ffn)\.gamma([12])\.(weight|scale)$", r".ls\2.gamma"),
)
_CHUNK = re.compile(r"blocks\.\d+\.(\d+)\.")  # of DINOv2's training: a block has the number of its chunk before its own


def plain_names(foreign: State) -> dict[str, Tensor]:
    """Translate a state dict without a trainer's prefixes; parts of no encoder keep their names."""
    if _MM_KEY in foreign:
        return {_replaced(name, _MM): tensor for name, tensor in foreign.items()}
    if any(_CHUNK.match(name) for name in foreign):
        return renamed(foreign, lambda name: _CHUNK.sub(r"blocks.\1.", name))
    if _VJEPA_KEY not in foreign and (_IMAGE_KEY not in foreign or foreign[_IMAGE_KEY].ndim == 5):
        return from_transformers(foreign)
    inside = ("encoder.", "embeddings.", "layernorm.")
    state = {
        _replaced(name, _TRANSFORMERS) if name.startswith(inside) else name: tensor for name, tensor in foreign.items()
    }
    for query in [name for name in state if re.fullmatch(r"blocks\.\d+\.attn\.query\.(weight|bias)", name)]:
        parts = [query.replace("query", part) for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            state[query.replace("query", "qkv")] = torch.cat([state.pop(part) for part in parts])
    return state


def _replaced(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
