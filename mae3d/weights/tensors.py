"""Tensors are written as safetensors files, whole or one tensor at a time."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mae3d.io.files import replace_file


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file from tensors of any device.

    Raises:
        OSError: the disk is full, read-only, or the folder is missing.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replace_file(path) as aside:
            save_file(on_cpu, aside, metadata=metadata)
    except SafetensorError as error:  # safetensors' own wrapper around what the system said
        raise OSError(f"cannot write {path}: {error}") from error


def stream_tensors(
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Writes float32 tensors of the CPU, one held at a time: the bytes that `save_tensors` would write; their sha256.

    The format: eight bytes with the header's length, the header as JSON, the tensors in the header's order, which is
    the library's for tensors of one dtype: by name (https://github.com/huggingface/safetensors#format).

    Args:
        shapes: every tensor's, by name.
        read: gives a tensor of that shape, or flat.
        path: where to; an existing file is replaced.
        metadata: stored with them.

    Raises:
        OSError: the disk is full, read-only, or the folder is missing; it names `path`.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in sorted(shapes):
        stop = start + 4 * prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    try:
        with replace_file(path) as aside, aside.open("wb") as file:
            for part in (len(text).to_bytes(8, "little"), text):
                digest.update(part)
                file.write(part)
            for name in sorted(shapes):
                values = read(name).detach().contiguous().view(-1)
                assert values.dtype == torch.float32
                assert len(values) == prod(shapes[name])
                data = values.view(torch.uint8).numpy().data
                digest.update(data)
                file.write(data)
            file.flush()  # here a full disk is an error; after it, the file is synced under its own name
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    return digest.hexdigest()
