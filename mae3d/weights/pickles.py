"""Plain values in pickled files are let in by stand-ins of ours; other names are refused, all of them at once.

names in a pickle ─► stand-ins for torch's unpickler, which calls nothing else; names that are refused

A stand-in is a function or class of this file that a file's `pathlib.PosixPath`, `numpy.dtype` or
`argparse.Namespace` means instead of the real one: it takes any arguments, keeps them as plain values, and runs
nothing of another package. Only the values that settings are made of matter; arrays and records of trainers are kept
out of the way.
"""

import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|[US][1-9]\d{0,5})")  # of fixed width: no objects, no fields
_PICKLES = 5  # of the format that torch.save had before zip: magic, version, system, content, keys of tensors


class Record:
    """An object of a class that is not run: its attributes are what the file has."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({str(name): value for name, value in part.items()})


class _Mapping:
    """A dict by another name, as configurations of trainers are."""

    def __new__(cls, *values: Any) -> Any:
        """Return the dict that stands in for the object."""
        return OrderedDict(values[0]) if values and isinstance(values[0], dict) else OrderedDict()


class _DType:
    """The type of a NumPy number; its byte order comes as state."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.text, self.order = str(name), ""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]

    def number(self, data: Any) -> Any:
        """Return the number that bytes hold, None if they are none of a fixed width."""
        if not isinstance(data, bytes) or not _NUMBER.fullmatch(self.text):
            return None
        dtype = np.dtype(self.text if self.text[:1] in "<>=|" else f"{self.order}{self.text}")
        return np.frombuffer(data, dtype=dtype)[0].item() if len(data) == dtype.itemsize else None


def _scalar(dtype: Any = None, data: Any = b"") -> Any:
    return dtype.number(data) if isinstance(dtype, _DType) else None


def _path(*parts: Any) -> str:
    return str(Path(*(str(part) for part in parts)))


def _dict(*_: Any) -> dict[Any, Any]:
    return {}


def _list(*values: Any) -> list[Any]:
    return list(values[0]) if values and isinstance(values[0], list | tuple) else []


def _names(modules: str, names: str) -> list[str]:
    return [f"{module}.{name}" for module in modules.split() for name in names.split()]


_PATHS = _names("pathlib pathlib._local", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath")
_RECORDS = [
    *("argparse.Namespace", "types.SimpleNamespace", "mmengine.logging.history_buffer.HistoryBuffer"),
    *_names("numpy", "ndarray"),
    *_names("numpy.core.multiarray numpy._core.multiarray", "_reconstruct"),
    *_names("datetime", "datetime date time timedelta timezone"),
    *("uuid.UUID", "decimal.Decimal", "builtins.slice", "builtins.range"),
    *_names("builtins", "dict list tuple int float bool str"),  # as the kind of value that a dict has by default
]
_MAPPINGS = [
    *("easydict.EasyDict", "addict.addict.Dict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode"),
    *("mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict"),
    *_names("lightning.fabric.utilities.data lightning_fabric.utilities.data", "AttributeDict"),
    "pytorch_lightning.utilities.parsing.AttributeDict",
]
_STAND_INS: dict[str, Any] = {
    **dict.fromkeys(_RECORDS, Record),
    **dict.fromkeys(_MAPPINGS, _Mapping),
    **dict.fromkeys(_PATHS, _path),
    **dict.fromkeys(_names("numpy.core.multiarray numpy._core.multiarray", "scalar"), _scalar),
    "numpy.dtype": _DType,
    "collections.defaultdict": _dict,
    "collections.deque": _list,
    "builtins.frozenset": _list,
}
# Modules whose names torch itself lets in, or refuses by its first message.
_TORCHS = re.compile(
    r"(torch|torch\._utils|torch\._tensor|torch\.nn\.parameter|torch\.storage|torch\.serialization)\.\w+"
)
_PLAIN = {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
_PLAIN |= {"builtins.bytearray", "builtins.set", "builtins.complex"}


def stand_ins() -> list[Any]:
    """Return what `torch.serialization.safe_globals` takes: pairs of a stand-in and the name that it stands for."""
    return [(thing, name) for name, thing in _STAND_INS.items()]


def attributes(value: Any) -> dict[str, Any]:
    """Return the settings that a dict or the attributes of a record are; {} of any other value."""
    held = vars(value) if isinstance(value, Record) else value
    return dict(held) if isinstance(held, dict) else {}


def refused_names(file: Path) -> list[str]:
    """Return the names in a pickled file that are not let in, in their order; nothing is unpickled.

    Names are read as far as the file can be read.
    """
    names: dict[str, None] = {}
    try:
        with file.open("rb") as opened:
            for name in _names_in(opened):
                if not (name in _STAND_INS or name in _PLAIN or _TORCHS.fullmatch(name)):
                    names[name] = None
    except (OSError, ValueError, KeyError, IndexError, EOFError, UnicodeError, zipfile.BadZipFile):
        pass  # a damaged end: the caller has the first name, and reports it
    return list(names)


def _names_in(opened: BinaryIO) -> Iterator[str]:
    """Yield the full names of the classes and functions that a file mentions."""
    if zipfile.is_zipfile(opened):
        with zipfile.ZipFile(opened) as archive:
            member = next(name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl"))
            with archive.open(member) as pickled:
                yield from _names_of(pickled)
        return
    opened.seek(0)
    for _ in range(_PICKLES):
        yield from _names_of(opened)


def _names_of(pickled: Any) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")  # protocol 2 has the names of Python 2
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"
