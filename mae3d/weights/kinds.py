"""A file of weights is known by its first bytes, under any name; files of other kinds are refused by what they are.

file ─► "safetensors", "torch" or "index"; or the reason why it is neither, with the remedy
"""

import json
import re
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

_HEAD = 512  # bytes that are looked at: a tar has its mark at 257
_LONGEST_HEADER = 100_000_000  # bytes that safetensors allows for one
_PICKLE = re.compile(rb"\x80[\x02-\x05]")  # and its protocol; torch.save writes no older ones
_MARKUP = re.compile(rb"<(!doctype|!--|html|head|body|title|\?xml|error)", flags=re.IGNORECASE)
_DOWNLOAD = "download it again"
_KNOWN = "give a file that torch.save has written, or a safetensors file"

# First bytes, where they begin, what the file is, and the remedy. A zip, an HTML page and others need a second look.
_OTHERS: tuple[tuple[bytes, int, str, str], ...] = (
    (b"\x1f\x8b", 0, "is compressed by gzip", "unpack it by gunzip, and give the file that was in it"),
    (b"BZh", 0, "is compressed by bzip2", "unpack it by bunzip2, and give the file that was in it"),
    (b"\xfd7zXZ\0", 0, "is compressed by xz", "unpack it by unxz, and give the file that was in it"),
    (b"\x28\xb5\x2f\xfd", 0, "is compressed by zstd", "unpack it by unzstd, and give the file that was in it"),
    (b"7z\xbc\xaf\x27\x1c", 0, "is a 7z archive", "unpack it, and give the file of weights that was in it"),
    (b"Rar!\x1a\x07", 0, "is a RAR archive", "unpack it, and give the file of weights that was in it"),
    (b"ustar", 257, "is a tar archive", "unpack it by tar -xf, and give the file of weights that was in it"),
    (b"PK\x05\x06", 0, "is an empty zip archive", _DOWNLOAD),
    (b"\x89HDF\r\n\x1a\n", 0, "is an HDF5 file, as Keras and TensorFlow write them", _KNOWN),
    (b"\x93NUMPY", 0, "is a NumPy array", _KNOWN),
    (b"GGUF", 0, "is a GGUF file", _KNOWN),
    (b"TFL3", 4, "is a TensorFlow Lite model", _KNOWN),
    (b"model_checkpoint_path:", 0, "names the checkpoints of a TensorFlow model", _KNOWN),
    (b"\0" * _HEAD, 0, "begins with zeros, as after a download that did not finish", _DOWNLOAD),
)
_TENSORFLOW_INDEX = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # last bytes of a TensorFlow checkpoint's .index


def kind_of(file: Path) -> Literal["safetensors", "torch", "index"]:
    """Return the kind of a file of weights by its content.

    Raises:
        ValueError: It is of another kind, cut or empty; the message says what it is, without its path.
        OSError: It cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
        if _has_safetensors_header(head):  # first: eight bytes with a length can begin like any other kind
            return "safetensors"
        if head.startswith(b"PK\x03\x04"):
            _check_zip(opened, size)
            return "torch"
        if _PICKLE.match(head):
            return "torch"
        if re.match(rb'\s*\{\s*"', head) and b'"weight_map"' in head + opened.read(size):
            return "index"
        opened.seek(max(size - len(_TENSORFLOW_INDEX), 0))
        tail = opened.read()
    raise ValueError(_described(head, tail, size))


def parts_of(index: Path) -> list[Path]:
    """Return the files that an index of weights in several files names, which lie beside it.

    Raises:
        ValueError: The index is damaged, or a file is missing.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        strange = [name for name in names if Path(name).name != name]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"is a damaged index of weights in several files: {_DOWNLOAD}") from error
    if strange or not names:
        raise ValueError(f"is an index of weights in several files that names {strange[:1] or 'none'}: {_DOWNLOAD}")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(
            f"is the index of weights in {len(names)} files, of which {missing[0]} is missing: download it into the "
            "same folder"
        )
    return [index.parent / name for name in names]


def why_no_safetensors(file: Path) -> str:
    """Return why a file that begins as safetensors cannot be opened, with the remedy."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        header = opened.read(start - 8)
    if size < start:
        return f"ends after {size:,} of more than {start:,} bytes: {_DOWNLOAD}"
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"begins as a safetensors file, but its header is damaged: {_DOWNLOAD}"
    stop = start + max(ends, default=0)
    if size == stop:
        return f"is a safetensors file whose header does not fit its tensors: {_DOWNLOAD}"
    if size < stop:
        return f"ends after {size:,} of {stop:,} bytes: {_DOWNLOAD}"
    return f"has {size:,} bytes, and {stop:,} by its header: {_DOWNLOAD}"


def _has_safetensors_header(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _check_zip(opened: BinaryIO, size: int) -> None:
    """Refuse a zip archive that torch.save has not written, or whose end is missing."""
    try:
        names = zipfile.ZipFile(opened).namelist()
    except zipfile.BadZipFile:
        raise ValueError(
            f"is a zip archive, as torch.save writes them, whose end is missing or damaged ({size:,} bytes are there): "
            f"{_DOWNLOAD}"
        ) from None
    pickled = next((name for name in names if name == "data.pkl" or name.endswith("/data.pkl")), "")
    if pickled and pickled.replace("data.pkl", "constants.pkl") in names:
        raise ValueError(
            "is a TorchScript program: load it by torch.jit.load where it came from, and save its state dict alone, "
            "torch.save(program.state_dict(), FILE)"
        )
    if pickled:
        return
    if names and all(name.endswith(".npy") for name in names):
        raise ValueError(f"is an .npz of NumPy arrays ({', '.join(names[:3])}, ...): {_KNOWN}")
    raise ValueError(
        f"is a zip archive of {len(names)} other files ({', '.join(names[:3])}, ...): unpack it, and give the file of "
        "weights that was in it"
    )


def _described(head: bytes, tail: bytes, size: int) -> str:
    """Say what a file is that holds no weights that are read, and the remedy."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        return f"is empty: {_DOWNLOAD}"
    if text.startswith(b"version https://git-lfs"):
        length = re.search(rb"^size (\d+)", text, flags=re.MULTILINE)
        meant = f" of {int(length[1]):,} bytes" if length else ""
        return f"is a Git LFS pointer, not the weights{meant}: run git lfs pull in its repository"
    if _MARKUP.match(text):
        return f"is a web page or another answer of a server, not the weights: {_DOWNLOAD}, by the link to the file"
    if re.match(rb'\{\s*["}]', text):
        return "is JSON text, not the weights: give the file that holds them"
    for magic, start, what, remedy in _OTHERS:
        if head[start:].startswith(magic):
            return f"{what}: {remedy}"
    if re.match(rb"\x08[\x01-\x1f]\x12", head):  # a field 1 that is a small number, a field 2
        return f"is a protocol buffer, as ONNX and TensorFlow write them: {_KNOWN}"
    if tail == _TENSORFLOW_INDEX:
        return f"is the index of a TensorFlow checkpoint: {_KNOWN}"
    return f"is of an unknown kind ({size:,} bytes that begin with {head[:16]!r}): {_KNOWN}"
