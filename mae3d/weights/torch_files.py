"""A file that torch.save has written gives the one state dict in it; nothing but tensors and plain values is unpickled.

file ─► names and tensors, settings of its trainer
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae3d.weights.pickles import attributes, refused_names, stand_ins
from mae3d.weights.wrappers import FIRST_LAYER, TRAINED, inner_name, preferred, under

_SAFE_TORCH = (2, 6)  # before it, weights_only could be made to run code (CVE-2025-32434)
_DEEPEST = 4  # dicts inside each other in which a state dict is looked for
_SAVE_ALONE = "save its state dict alone, torch.save(model.state_dict(), FILE)"

logger = logging.getLogger(__name__)


def read_torch(file: Path, key: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a foreign checkpoint's state dict, and its `args` as a dict (empty if it has none).

    Args:
        file: The file.
        key: Name of the state dict that is meant, as `state_dict_ema` or `teacher.backbone`; "" for the usual one.

    Raises:
        ValueError: The file is damaged or unsafe to open, or which of its state dicts is meant is unknown; the message
            has no path.
    """
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < _SAFE_TORCH:
        raise ValueError(
            f"refused, torch {torch.__version__} may run code from a pickled file: install torch 2.6 or later"
        )
    content = _load(file)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not a state dict")
    path, state, rest = _chosen(content, file, key)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if path and (others := sorted(map(str, state.keys() - tensors.keys()))):
        raise ValueError(f"left over, no tensors: {', '.join(others[:12])}; save the tensors alone")
    return under(tensors, rest) if rest else tensors, attributes(content.get("args"))


def _load(file: Path) -> Any:
    with file.open("rb") as opened, torch.serialization.safe_globals(stand_ins()):
        try:  # with the opened file, because torch judges a path by its suffix
            return torch.load(opened, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a damaged pickle fails in any way: as an index, a key, a struct, ...
            raise ValueError(f"refused, {_why_refused(error, file)}") from error


def _why_refused(error: Exception, file: Path) -> str:
    """Return what torch has refused in a pickled file, and the remedy; its own advice is to run the file's code."""
    text = str(error)
    if refused := re.search(r"GLOBAL (\S+)", text):
        names = refused_names(file) or [refused[1]]
        held = f"an object of {names[0]}" if len(names) == 1 else f"objects of {', '.join(names)}"
        return (
            f"it holds {held}, and only tensors and plain values are opened, because others may run "
            f"code: open it where it came from, and {_SAVE_ALONE}"
        )
    if "Unsupported operand" in text:
        return (
            "it is pickled by another protocol than torch.save's own, 2, and such are not opened without running code: "
            f"open it where it came from, and {_SAVE_ALONE}"
        )
    if "Invalid magic number" in text:
        return f"it is a pickle that torch.save has not written: open it where it came from, and {_SAVE_ALONE}"
    if missing := re.search(r"expected (\d+) more bytes", text):
        return f"it ends at least {int(missing[1]):,} bytes too early: download it again"
    detail = text.partition("WeightsUnpickler error:")[2] or text
    reason = f"{type(error).__name__}: {detail.strip().partition('. ')[0][:200]}".removesuffix(": ")
    return f"it ends early or is damaged ({reason}): download it again"


def _chosen(content: dict[Any, Any], file: Path, key: str) -> tuple[tuple[str, ...], dict[Any, Any], str]:
    """Return the keys that lead to the state dict of a checkpoint, the state dict, and what is left of `key`.

    Raises:
        ValueError: There is none, or there are several of which no rule takes one.
    """
    dicts = dict(_state_dicts(content, named=True)) or dict(_state_dicts(content, named=False))
    if not dicts:
        raise ValueError(f"no tensors under {', '.join(TRAINED)} or at the top; keys: {list(content)[:8]}")
    by_name = {".".join(path): path for path in dicts}
    meant = [name for name in by_name if name and f"{key}.".startswith(f"{name}.")]
    if meant:
        name = max(meant, key=len)
        return by_name[name], dicts[by_name[name]], key[len(name) + 1 :]
    if key and (inner := [name for name in by_name if name.startswith(f"{key}.")]):
        by_name = {name: by_name[name] for name in inner}
        key = ""
    encoders = {name: path for name, path in by_name.items() if _has_encoder(dicts[path])} or by_name
    counts = {name: f"{name} ({len(dicts[path])} tensors)" for name, path in by_name.items()}
    name, why = next(iter(encoders)), "the only one with an encoder"
    if len(encoders) > 1:
        name, why = preferred(encoders)
        if not why:
            raise ValueError(
                f"holds several state dicts, {', '.join(counts.values())}: name the one that is meant, as in "
                f"{file.name}#{max(encoders)}"
            )
    if len(by_name) > 1:
        taken = counts.pop(name)
        left_out = ", ".join(counts.values())
        level = logging.WARNING if len(encoders) > 1 else logging.INFO
        logger.log(level, "%s: several state dicts: %s is taken, %s; left out: %s", file, taken, why, left_out)
    return by_name[name], dicts[by_name[name]], key


def _has_encoder(state: dict[Any, Any]) -> bool:
    return any(isinstance(name, str) and FIRST_LAYER.fullmatch(inner_name(name)) for name in state)


def _state_dicts(
    content: dict[Any, Any], path: tuple[str, ...] = (), *, named: bool
) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yield the state dicts of a checkpoint, each with the keys that lead to it.

    Args:
        content: A dict.
        path: The keys that lead to it.
        named: Whether the names of tensors must have a module's, as in `norm.weight`; optimizers' have none.
    """
    names = [name for name, value in content.items() if isinstance(value, Tensor) and isinstance(name, str)]
    if any("." in name or not named for name in names):
        yield path, content
    elif len(path) < _DEEPEST:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, dict):
                yield from _state_dicts(value, (*path, key), named=named)
