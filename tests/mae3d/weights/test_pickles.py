"""Plain values in pickled files are let in, everything else is refused by all of its names, and nothing is ever run."""

import argparse
import builtins
import collections
import datetime
import os
import pathlib
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae3d.weights.files import WeightsError, read_tensors
from mae3d.weights.torch_files import read_torch

STATE = {"blocks.0.norm1.weight": torch.arange(3.0)}


class Call:
    """Pickles as a call of a function: what the file's reader would do if it ran code."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def save(content: Any, file: Path) -> list[Path]:
    """Write a file in both formats of torch.save."""
    old = file.with_suffix(".old")
    torch.save(content, file)
    torch.save(content, old, _use_new_zipfile_serialization=False)
    return [file, old]


def test_plain_values_are_let_in_and_settings_keep_their_values(tmp_path: Path) -> None:
    args = argparse.Namespace(
        num_heads=np.int64(3), mask_ratio=np.float32(0.75), out=Path("runs/a"), fp16=np.bool_(True)
    )
    args.big = np.array([7], dtype=">i4")[0]
    nested = collections.defaultdict(list, {"a": [1]})
    trainer: dict[str, Any] = {
        "history": np.arange(4.0),
        "names": np.array(["a", "b"]),
        "when": datetime.datetime.now(),
    }
    trainer |= {"queue": collections.deque([1], maxlen=3), "nested": nested, "path": pathlib.PureWindowsPath("c:/a")}
    trainer |= {"space": types.SimpleNamespace(a=1), "took": datetime.timedelta(1), "kinds": frozenset({1})}
    trainer |= {"size": torch.Size([2]), "dtype": torch.bfloat16, "device": torch.device("cpu")}
    trainer |= {"ordered": collections.OrderedDict(a=1), "count": collections.Counter("ab"), "set": {1}, "c": 1j}
    trainer |= {"objects": np.array([None], dtype=object), "type": np.dtype("f4")}
    for file in save({"model": STATE, "args": args, **trainer}, tmp_path / "a.pth"):
        tensors, hints = read_torch(file)
        assert torch.equal(tensors["blocks.0.norm1.weight"], STATE["blocks.0.norm1.weight"])
        assert hints == {"num_heads": 3, "mask_ratio": 0.75, "out": "runs/a", "fp16": True, "big": 7}
        assert type(hints["num_heads"]) is int


def test_configurations_of_trainers_are_dicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of packages that are not installed; the file names them, and their code is not needed."""
    for full in ("easydict.EasyDict", "mmengine.config.config.ConfigDict", "yacs.config.CfgNode"):
        module, _, name = full.rpartition(".")
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            made = types.ModuleType(".".join(parts[:count]))
            monkeypatch.setitem(sys.modules, made.__name__, made)
        kind = type(name, (dict,), {"__module__": module, "__qualname__": name})
        setattr(made, name, kind)
        settings = kind(num_heads=3)
        settings.__dict__["num_heads"] = 3  # as easydict has it
        for file in save({"model": STATE, "args": settings}, tmp_path / "a.pth"):
            assert read_torch(file)[1] == {"num_heads": 3}


def test_all_that_is_refused_is_named(tmp_path: Path) -> None:
    import fractions

    content = {
        "model": STATE,
        "a": fractions.Fraction(1, 3),
        "p": Path("a"),
        "o": [Call(subprocess.call, "x"), Call(print)],
    }
    for file in save(content, tmp_path / "a.ckpt"):
        with pytest.raises(WeightsError, match=r"it holds objects of .*save its state dict alone") as error:
            read_tensors(file)
        listed = str(error.value).partition("objects of ")[2].partition(", and only")[0].split(", ")
        assert listed == ["fractions.Fraction", "subprocess.call", "builtins.print"]


@pytest.mark.parametrize(
    "attack",
    [
        Call(os.system, "touch {mark}"),
        Call(builtins.eval, "open({mark!r}, 'w')"),
        Call(builtins.exec, "open({mark!r}, 'w')"),
        Call(open, "{mark}", "w"),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(np.load, "{mark}"),
        Call(np.fromfile, "{mark}"),
        Call(pickle.loads, b"cos\nsystem\n(S'touch {mark}'\ntR."),
        Call(torch.load, "{mark}"),
        Call(subprocess.check_output, "touch {mark}"),
    ],
    ids=lambda attack: f"{attack.call[0].__module__}.{attack.call[0].__name__}",
)
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, attack: Call) -> None:
    mark = tmp_path / "mark"
    function, arguments = attack.call
    written = [
        argument.format(mark=str(mark))
        if isinstance(argument, str)
        else argument.replace(b"{mark}", str(mark).encode())
        if isinstance(argument, bytes)
        else argument
        for argument in arguments
    ]
    for file in save({"model": STATE, "args": Call(function, *written)}, tmp_path / "a.pth"):
        with pytest.raises(WeightsError, match=r"refused, it holds"):
            read_tensors(file)
        assert not mark.exists()


def test_numpys_own_way_to_objects_gives_none(tmp_path: Path) -> None:
    """NumPy takes the bytes of an object for an address or a pickle; here they are never looked at."""
    from numpy._core.multiarray import _reconstruct, scalar

    mark = tmp_path / "mark"
    inner = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()

    class Array:
        def __reduce__(self) -> Any:
            return _reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, inner)

    args = {"a": Call(scalar, np.dtype("O"), inner), "b": Array(), "c": Call(scalar, np.dtype("f8"), b"short")}
    args |= {"d": Call(scalar, np.dtype([("x", "O")]), inner), "e": Call(np.dtype, "O8,O8", False, True)}
    for file in save({"model": STATE, "args": args}, tmp_path / "a.pth"):
        hints = read_torch(file)[1]
        assert (hints["a"], hints["c"], hints["d"]) == (None, None, None)
        assert not mark.exists()


def test_stand_ins_are_gone_after_the_file(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    for file in save({"model": STATE, "p": Path("a")}, tmp_path / "a.pth"):
        read_tensors(file)
    assert set(torch.serialization.get_safe_globals()) == before
