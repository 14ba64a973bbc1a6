"""What asks a run to stop, remembered until the loop comes to the end of a step.

with StopRequest() as stop:
    ...
    if world.any(stop.requested): ...
"""

import signal
from types import FrameType


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 came; the loop asks at each step's end.

    After an agreed stop they are ignored for good: a launcher ends the slower processes when the first one has left.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.agreed else handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
