"""Files that are whole or absent: written aside, synced, renamed. A killed process or a full disk leaves the old ones.

write_text(run / "config.yaml", text)
save_tensors(tensors, folder / "model.safetensors")
sha256 = stream_tensors({"a": (2, 3)}, read, folder / "rank-00000.safetensors")      # one tensor at a time
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary name: what is written there is synced and moved to `path`, or removed on an error."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)  # so that the rename, too, outlives a power cut


def write_text(path: Path, text: str) -> None:
    """Replaces a text file."""
    with replace_file(path) as aside:
        aside.write_text(text)


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


def sync(path: Path) -> None:
    """Waits until a file, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
