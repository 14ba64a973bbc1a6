"""Archives are refused with the command that unpacks them; a list that is merely compressed is read.

is_compressed_list(head, "ucf.zip", "data/ucf.zip")     # LedgerError: ... unzip -d data/ucf data/ucf.zip
unpacked(data, "train.csv.gz")                          # the bytes of train.csv
beside("cat/one.mp4", {"cat": "cat.zip"})               # "cat.zip"
"""

import bz2
import gzip
import io
import lzma
import shlex
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mae3d.io.storage import is_url
from preprocess.sources.file_kinds import HEAD_BYTES, kind_of
from preprocess.sources.list_records import LedgerError
from preprocess.sources.roots import Root

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ONE_FILE = {".gz": "gzip -dk", ".bz2": "bzip2 -dk", ".xz": "xz -dk", ".zst": "zstd -d"}  # unless a tar is in it
_TARS = (".tar", ".tgz", ".tbz2", ".txz", *(f".tar{suffix}" for suffix in _ONE_FILE))
_SHEETS = (".xlsx", ".xlsm", ".ods")  # zip as well
_SUFFIXES = (*_TARS, ".zip", ".rar", ".7z")
_OPEN: dict[str, Callable[[BinaryIO], BinaryIO]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}  # type: ignore[dict-item]
_LARGEST_LIST = 1 << 32  # bytes of a compressed list


def list_name(name: str) -> str:
    """Return the name of a list without the suffix of its compression: train.csv of train.csv.gz."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in _ONE_FILE and path.stem else name


def unpacked(data: bytes, source: str) -> bytes:
    """Return the bytes of a list that may be compressed by gzip, bzip2 or xz.

    Raises:
        LedgerError: it is another archive, holds several files, or is damaged.
    """
    kind = _kind(data)
    if not kind:
        return data
    if kind not in _OPEN:
        raise LedgerError(_refusal(source, kind))
    try:
        with _OPEN[kind](io.BytesIO(data)) as file:
            text = file.read(_LARGEST_LIST + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise LedgerError(f"{source}: {kind} data that cannot be unpacked ({error})") from error
    if len(text) > _LARGEST_LIST or _is_tar(text):
        raise LedgerError(_refusal(source, kind))
    return text


def is_compressed_list(head: bytes, path: str, given: str) -> bool:
    """Return whether a file is a list that is merely compressed; False for what is no archive.

    Only the first bytes are looked at: an archive may be larger than the memory.

    Args:
        head: the file's first HEAD_BYTES.
        path: its name.
        given: its path or URL, for the message.

    Raises:
        LedgerError: it is another archive; the message has the command that unpacks it.
    """
    kind = _kind(head)
    if kind and not _holds_list(head, kind, path):
        raise LedgerError(_refusal(given, kind))
    return bool(kind)


def archives_among(names: Iterable[str]) -> dict[str, str]:
    """Return the archives among files, by their names without suffix."""
    return {stem: name for name in names if (stem := _stem(name)) != name}


def beside(path: str, archives: Mapping[str, str]) -> str:
    """Return the archive that may hold a path: it is called as the path or as a folder above; "" if there is none."""
    file = PurePosixPath(path)
    stems = (str(file), str(file.with_suffix("")) if file.name else "", *map(str, file.parents))
    return next((archives[stem] for stem in stems if stem in archives), "")


def how_to_unpack(root: Root, name: str) -> str:
    """Return the command that unpacks an archive below a root where the paths of lists will find what is in it."""
    if is_url(root.where):
        return f"unpack {root.where}/{name}"
    file = Path(root.where) / name
    return unpack_command(str(file), str(file.parent) if _has_own_folder(file) else "")


def unpack_command(file: str, folder: str = "") -> str:
    """Return the command that unpacks an archive; into a folder of its name unless another is given."""
    into, quoted = shlex.quote(folder or _stem(file)), shlex.quote(file)
    suffix = PurePosixPath(file).suffix.lower()
    if file.lower().endswith(_TARS):
        return f"mkdir -p {into} && tar -xf {quoted} -C {into}"
    if suffix in _ONE_FILE:
        return f"{_ONE_FILE[suffix]} {quoted}"
    others = {".rar": f"unrar x {quoted} {into}/", ".7z": f"7z x -o{into} {quoted}"}
    return others.get(suffix, f"unzip -d {into} {quoted}")


def _stem(name: str) -> str:
    """Return a name without an archive's suffix; as it is if it has none."""
    suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _kind(head: bytes) -> str:
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def _refusal(given: str, kind: str) -> str:
    if given.lower().endswith(_SHEETS):
        return f"{given}: a spreadsheet; save it as CSV in UTF-8"
    known = given.lower().endswith((*_SUFFIXES, *_ONE_FILE)) and "://" not in given
    command = f": {unpack_command(given)}" if known else ""
    return f"{given}: {kind} data; unpack it, and give the folder or the .tar that comes out{command}"


def _is_tar(data: bytes) -> bool:
    return data[257:262] == b"ustar"


def _holds_list(head: bytes, kind: str, path: str) -> bool:
    """Return whether a compressed file holds text or Parquet, by its first bytes, or by its name if they do not say."""
    if kind not in _OPEN:
        return False
    try:
        if kind == "gzip":
            first = zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
        else:
            first = (bz2.BZ2Decompressor() if kind == "bzip2" else lzma.LZMADecompressor()).decompress(head, HEAD_BYTES)
    except (OSError, zlib.error, lzma.LZMAError):
        return True  # damaged: `unpacked` says how
    if not first:  # bzip2 needs more for its first block
        return not path.lower().endswith(_TARS)
    return not _is_tar(first) and (first.startswith(b"PAR1") or kind_of(first) == "text")


@lru_cache(maxsize=64)
def _has_own_folder(file: Path) -> bool:
    """Return whether what an archive holds lies in a folder of the archive's name; so for those that are not opened."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as opened:
                first = next(iter(opened.namelist()), "")
        else:
            with tarfile.open(file) as tar:
                member = tar.next()
                first = member.name if member else ""
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError):
        return True
    return first.removeprefix("./").startswith(f"{_stem(file.name)}/")
