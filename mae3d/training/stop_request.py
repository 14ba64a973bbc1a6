"""Requests to stop a run are remembered until the loop comes to the end of a step.

with StopRequest(world, file=run.folder / "STOP", minutes=600) as stop:
    ...
    if stop.agree(): ...         # on every process at once
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from mae3d.distributed import World
from mae3d.io.console import output_is_lost


class Interrupted(Exception):
    """An error that ends work between two steps, because the run is to stop."""


class StopRequest:
    """SIGTERM, SIGINT or SIGUSR1, a file, a time limit, or output that lost its reader; one rank that knows is enough.

    The last one is how ranks notice that their launcher has gone, if it has started them over ssh.
    After an agreed stop the signals are ignored for good: a launcher ends the slower processes when the first one has
    left. SIGUSR1 is ignored after any end: SLURM may give notice of the time limit to a finished run that is leaving,
    and would call the job failed.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, world: World, *, file: Path, minutes: float | None, announce: Callable[[], None] = lambda: None):
        """Keep the settings; listening starts with `with`.

        Args:
            world: all processes.
            file: stops the run when it appears; the first process looks for it.
            minutes: after which the run stops, from now on; None for no limit.
            announce: called as soon as this process knows of a request, perhaps in the middle of anything.
        """
        self._world, self._file, self._announce = world, file, announce
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._reason = ""  # of this process
        self.reason = ""  # agreed; empty before that

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            is_late_notice = number == signal.SIGUSR1 and handler is signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if self.reason or is_late_notice else handler)

    def agree(self) -> bool:
        """Return whether to stop, the same on every rank; a collective. Once it is true it stays so.

        Every process must have seen the request before any saves: signals reach them one after the other.
        """
        if self.reason:
            return True
        if not self._reason and self._world.is_first:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._reason = "the time limit"
            elif self._file.exists():
                self._reason = str(self._file)
        if not self._reason and output_is_lost():
            self._reason = "the end of what read its output"
        if self._world.any(bool(self._reason)):
            reasons = self._world.gather(self._reason)
            self.reason = next(reason for reason in reasons if reason)
            self._announce()
        return bool(self.reason)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._reason = signal.Signals(number).name
        self._announce()
