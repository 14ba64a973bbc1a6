"""Memory between two pages that nobody may touch: C that reads or writes beyond an array dies of SIGSEGV.

launch.result_of(launch.call(function), 60)     # where `function` hands guarded arrays to C

guarded(pixels)                                          # the last byte lies before a forbidden page
guarded(pixels, end="front")                             # the first byte lies behind one
"""

import ctypes
import mmap
from typing import Any, Literal

import numpy as np

End = Literal["front", "back"]
ENDS: tuple[End, End] = ("front", "back")

_PROT_NONE = 0


def guarded(array: np.ndarray, *, end: End = "back") -> np.ndarray:
    """Return a copy of an array with nothing before its first byte, or behind the last byte that its owner has.

    What the array's owner holds behind a view is copied along: C may read it.
    """
    start, owned = _owned_bytes(array)
    pages = -(-max(owned, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None)
    for page in (address, address + mmap.PAGESIZE + pages):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), _PROT_NONE) == 0
    offset = mmap.PAGESIZE + (pages - owned if end == "back" else 0)
    ctypes.memmove(address + offset, start, owned)
    return np.ndarray(array.shape, array.dtype, memory, offset, array.strides)


def _owned_bytes(array: np.ndarray) -> tuple[int, int]:
    """Return the address of an array's first byte, and how many bytes its owner has from there on."""
    low, high = np.lib.array_utils.byte_bounds(array)
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return low, max(high, np.lib.array_utils.byte_bounds(owner)[1]) - low
