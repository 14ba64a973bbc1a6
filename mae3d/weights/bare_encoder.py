"""A video encoder or classifier that MAE3D has exported runs on torch alone.

config.json, model.safetensors ─► clip ─► tokens, vector; or logits

    model = load("FOLDER")                    # float32, on the CPU, in evaluation mode
    tokens, vector = model(clip)              # (B, L, D) and (B, D); of a classifier: logits (B, classes)

A clip is uint8 (B, T, H, W, C), or float (B, C, T, H, W) that is normalised by config.json's mean and std. This file
needs nothing but torch, and may be changed and given away (Apache-2.0). `launch/export.py --format encoder` copies it
into its folder as encoder.py.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, *, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to all tokens from all of them: (B, N, D) ─► (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attended


class Mlp(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, N, D) ─► (B, N, D)."""
        mixed: Tensor = self.fc2(gelu(self.fc1(x)))
        return mixed


class Block(nn.Module):
    """A transformer block with norms before its branches."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["embed_dim"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads=config["num_heads"], bias=config["qkv_bias"])
        self.mlp = Mlp(width, int(width * config["mlp_ratio"]))

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, N, D) ─► (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class Model(nn.Module):
    """The encoder, and with a head the classifier; the config is `model` in config.json."""

    def __init__(self, config: dict[str, Any], *, num_classes: int = 0) -> None:
        super().__init__()
        self.config = config
        size, width = config["img_size"], config["embed_dim"]
        height, columns = (size, size) if isinstance(size, int) else size
        t, p = config["t_patch_size"], config["patch_size"]
        self.grid = config["num_frames"] // t, height // p, columns // p
        tokens, cls = self.grid[0] * self.grid[1] * self.grid[2], int(config["cls_embed"])
        lengths = {"spatial": tokens // self.grid[0], "temporal": self.grid[0]} | ({"cls": 1} if cls else {})
        tables = lengths if config["sep_pos_embed"] else {"joint": cls + tokens}
        self.positions = nn.ParameterDict({name: torch.zeros(1, rows, width) for name, rows in tables.items()})
        self.patch_embed = nn.Linear(t * p * p * config.get("in_chans", 3), width)
        if cls:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config["depth"])))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes) if num_classes else None

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Return the tokens and their mean, both after the norm; of a classifier the logits."""
        cls = int(self.config["cls_embed"])
        x = self.blocks(self.embed(clip))
        if self.head is None:
            tokens = x[:, cls:]
            return self.norm(tokens), self.norm(tokens.mean(dim=1))
        pooling = self.config["pooling"]
        # `mean` leaves the first token out, class token or not, as mae_st does; `patches` has all of them.
        pooled = x[:, 0] if pooling == "cls" else x[:, cls if pooling == "patches" else 1 :].mean(dim=1)
        logits: Tensor = self.head(self.norm(pooled))
        return logits

    def embed(self, clip: Tensor) -> Tensor:
        """Cut a clip into patches, in the order time, height, width, and embed them with their positions."""
        t, p = self.config["t_patch_size"], self.config["patch_size"]
        x = self._pixels(clip).unflatten(3, (-1, p)).unflatten(2, (-1, p)).unflatten(1, (-1, t))
        if tuple(x.shape[i] for i in (1, 3, 5)) != self.grid:
            raise ValueError(f"clip {tuple(clip.shape)} does not make {self.grid} tokens")
        x = self.patch_embed(x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3))
        table, cls = self.positions, int(self.config["cls_embed"])
        if "joint" in table:
            of_cls, positions = table["joint"][:, :cls], table["joint"][:, cls:]
        else:
            positions = (table["temporal"][:, :, None] + table["spatial"][:, None]).flatten(1, 2)
            of_cls = table["cls"] if cls else positions[:, :0]
        x = x + positions
        return torch.cat([(self.cls_token + of_cls).expand(len(x), -1, -1), x], dim=1) if cls else x

    def _pixels(self, clip: Tensor) -> Tensor:
        """Return normalised pixels (B, T, H, W, C)."""
        if clip.is_floating_point():
            return clip.permute(0, 2, 3, 4, 1)
        mean, std = (torch.tensor(self.config[name], device=clip.device) for name in ("mean", "std"))
        return clip.float() * (1 / (255 * std)) - mean / std


def load(folder: str | Path) -> Model:
    """Open an exported folder."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["model"]
    state = read_safetensors(Path(folder) / "model.safetensors")
    model = Model(config, num_classes=config.get("num_classes", 0))
    model.load_state_dict({name.removeprefix("encoder."): tensor.float() for name, tensor in state.items()})
    return model.eval()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file (https://github.com/huggingface/safetensors#format)."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, stop = entry["data_offsets"]
            dtype = _DTYPES[entry["dtype"]]
            values = torch.frombuffer(data, dtype=dtype, count=(stop - first) // dtype.itemsize, offset=start + first)
            tensors[name] = values.reshape(entry["shape"]).clone()
    return tensors
