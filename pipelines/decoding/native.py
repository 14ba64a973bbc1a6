"""A C source becomes a function: `resize.c` is compiled for the processor at hand, once, and kept.

    resize = compiled()                     # NativeError says why there is none
    resize(box, True, out)                  # (T, h, w, C) uint8 ─► (T, height, width, C), mirrored

As DeepSpeed compiles its operators at their first use, so this does: 0.4 s. The library is kept in
$XDG_CACHE_HOME/mae3d, else ~/.cache/mae3d, by source, compiler and processor; where nothing can be kept, each process
compiles its own. $CC names the compiler; CC=false leaves all boxes to torch.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mae3d.io.console import one_line
from mae3d.io.files import replace_file

SOURCE = Path(__file__).with_name("resize.c")
OPTIONS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")
COMPILE_S = 120.0
Resize = Callable[[torch.Tensor, bool, torch.Tensor], None]


class NativeError(Exception):
    """There is no compiled function; the message says why."""


class _Filter(ctypes.Structure):
    """The weights of one direction: `struct filter` of the source."""

    _fields_ = (
        ("size", ctypes.c_int32),
        ("pairs", ctypes.c_int32),
        ("shift", ctypes.c_int32),
        ("first", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
    )
    arrays: tuple[np.ndarray, ...]  # what it points to


def compiled() -> Resize:
    """Return the function, for boxes whose rows are dense; so must be its last argument.

    Raises:
        NativeError: there is none.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise NativeError(f"{SOURCE.name} is for x86, this is {platform.machine()}")
    command = (*shlex.split(os.environ.get("CC") or "cc"), *OPTIONS)
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mae3d"
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / f"resize-{_key(command)}.so"
        if not kept.exists():
            with replace_file(kept) as aside:
                _compile(command, aside)
        if kept.stat().st_uid == os.geteuid():  # nobody else's code is run
            return _loaded(kept)
    except (OSError, RuntimeError):  # nothing can be kept or run there, or there is no home
        pass
    try:
        with tempfile.TemporaryDirectory(prefix="mae3d-") as name:
            library = Path(name) / "resize.so"
            _compile(command, library)
            return _loaded(library)
    except OSError as error:
        raise NativeError(one_line(error)) from error


def _key(command: tuple[str, ...]) -> str:
    """Return a hash of all that the library depends on; a home may be that of machines with different processors."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return hashlib.sha256(b"\0".join((SOURCE.read_bytes(), *map(os.fsencode, (*command, flags))))).hexdigest()[:16]


def _compile(command: tuple[str, ...], target: Path) -> None:
    try:
        done = subprocess.run(
            [*command, "-o", str(target), str(SOURCE)],
            stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=COMPILE_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{command[0]} cannot be run: {one_line(error)}") from error
    if done.returncode:
        raise NativeError(f"{command[0]} ends with {done.returncode}: {one_line(done.stderr)}")


def _loaded(library: Path) -> Resize:
    """Return the library's function; torch knows the shapes and the steps that it is given."""
    function = ctypes.CDLL(str(library)).resize
    step, number, memory = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p
    function.argtypes = (memory, step, step, number, number, number, number, number, _Filter, _Filter, memory)

    def resize(box: torch.Tensor, flip: bool, out: torch.Tensor) -> None:
        frames, height, width, channels = box.shape
        assert box.dtype == out.dtype == torch.uint8
        assert box[0, 0].is_contiguous()
        assert out.is_contiguous()
        assert (len(out), out.shape[3]) == (frames, channels)
        across, down = _filter(width, out.shape[2]), _filter(height, out.shape[1])
        sizes = (*box.stride()[:2], frames, height, width, channels)
        if function(box.data_ptr(), *sizes, flip, across, down, out.data_ptr()):
            raise MemoryError(f"no memory to resize {height} x {width} pixels")

    return resize


@lru_cache(maxsize=1024)
def _filter(size: int, out: int) -> _Filter:
    """Return torch's weights of `out` pixels made of `size`: a triangle, as wide as the larger pixels of the two.

    They are computed in float64 and rounded to int16, as large as those allow.
    """
    scale = size / out
    support = max(scale, 1.0)
    middle = scale * (np.arange(out)[:, None] + 0.5)
    first = np.maximum((middle - support + 0.5).astype(np.int64), 0)
    end = np.minimum((middle + support + 0.5).astype(np.int64), size)
    taps = first + np.arange(2 * int(np.ceil(support)) + 1)
    weights = np.where(taps < end, np.maximum(1 - np.abs((taps - middle + 0.5) * (1 / support)), 0), 0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # added up one after the other, as torch does
    largest = weights.max()
    shift = next(bits for bits in range(23) if bits == 22 or int(0.5 + largest * 2 ** (bits + 1)) >= 2**15)
    rounded = (0.5 + weights * 2**shift).astype(np.int16)
    pairs = (int(np.flatnonzero(rounded.any(axis=0))[-1]) + 2) // 2
    rounded = np.ascontiguousarray(np.pad(rounded, ((0, 0), (0, 1)))[:, : 2 * pairs])
    starts = np.ascontiguousarray(first[:, 0], np.int32)
    made = _Filter(out, pairs, shift, starts.ctypes.data, rounded.ctypes.data)
    made.arrays = (starts, rounded)
    return made
