"""Tensors are written as safetensors files, all at once or one tensor at a time."""

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
    """Write a safetensors file from tensors of any device.

    Raises:
        OSError: The disk is full, read-only, or the folder is missing.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replace_file(path) as aside:
            save_file(on_cpu, aside, metadata=metadata)
    except SafetensorError as error:  # safetensors wraps the system's error
        raise OSError(f"cannot write {path}: {error}") from error


def stream_tensors(
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write float32 tensors of the CPU, one held at a time: the bytes that `save_tensors` would write.

    The format: eight bytes with the header's length, the header as JSON, the tensors in the header's order, which is
    the library's for tensors of one dtype: by name (https://github.com/huggingface/safetensors#format).

    Args:
        shapes: Every tensor's shape by name.
        read: Function of a name that returns the tensor in that shape, or flat.
        path: The file; an existing one is replaced.
        metadata: Text stored with the tensors.

    Returns:
        The file's sha256.

    Raises:
        OSError: The disk is full, read-only, or the folder is missing; it names `path`.
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
