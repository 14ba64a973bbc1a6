"""Python's collector of cycles leaves alone what a start makes, which stays until the process ends.

with uncollected():
    import torch
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Yield to a part of a start, whose objects are walked neither while they are made nor later.

    torch, DALI and DeepSpeed are 250,000 objects: a collection of them all takes a fifth of a second. A program that
    goes on after a command lets the collector have them back by `gc.unfreeze()`.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@atexit.register
def _end() -> None:
    """Leave what lives to the end of the process, which would collect three times; triton's binding would complain."""
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()
