"""Files that are whole or absent: written aside, synced, renamed. A killed process or a full disk leaves the old ones.

write_text(run / "config.yaml", text)
save_tensors(tensors, folder / "rank-00000.safetensors")
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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
