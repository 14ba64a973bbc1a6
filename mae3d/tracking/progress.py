"""Rows of numbers are logged by rank 0: to metrics.jsonl, the terminal and the requested trackers.

journal = ProgressLogger(run, world, first_step=0, total_steps=1000)
journal.write({"step": 10, "loss": 0.9, ...})
"""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from mae3d.distributed import World
from mae3d.tracking.config import LogConfig
from mae3d.tracking.history import SCORES
from mae3d.tracking.run_dir import METRICS, Run
from mae3d.tracking.trackers import open_trackers

logger = logging.getLogger(__name__)

_HOURS_AFTER = 10  # steps after which the rest of the run can be foretold


class ProgressLogger:
    """The log of a run: a line of metrics.jsonl, a bar on a terminal, one plain line per row anywhere else."""

    def __init__(self, run: Run, world: World, *, first_step: int, total_steps: int, log: LogConfig):
        """Keep the settings; nothing is written yet.

        Args:
            run: whose metrics.jsonl it is.
            world: all processes; those but the first are silent.
            first_step: where this part of the run begins.
            total_steps: where it ends.
            log: what is written besides.
        """
        self._run, self._enabled = run, world.is_first
        self._first_step, self._total = first_step, total_steps
        self._unwritten: list[Mapping[str, Any]] = []
        self._start = time.perf_counter()
        on_terminal = self._enabled and sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=first_step, unit="step") if on_terminal else None
        self._trackers = open_trackers(log, run, first_step=first_step) if self._enabled else []

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row, with the step at which it was made; one that the disk has no room for is kept for later."""
        if not self._enabled:
            return
        self._unwritten.append(row)
        try:
            self.flush()
        except OSError as error:
            if len(self._unwritten) == 1:
                logger.warning("%s cannot be written (%s): its lines are kept until it can", METRICS, error.strerror)
        for tracker in self._trackers:
            tracker.write(row)
        text = "  ".join(_figures(row))
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        else:
            self.say(f"step {row['step']}/{self._total}  {text}  ETA {_hours(self._left(row['step']))}")

    def flush(self) -> None:
        """Write the rows that are kept.

        Raises:
            OSError: metrics.jsonl cannot be written.
        """
        if self._unwritten:
            self._run.write_metrics(*self._unwritten)
            self._unwritten = []

    def stepped(self, step: int) -> None:
        """Move the bar; after ten steps print the expected duration of the run."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        if step - self._first_step == _HOURS_AFTER:
            self.say(f"time: {_hours(self._left(step))} to go at this pace")

    def say(self, text: str) -> None:
        """Print a line on the terminal, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._enabled:
            print(text, flush=True)

    def __enter__(self) -> "ProgressLogger":
        return self

    def __exit__(self, *_: object) -> None:
        """End the bar's line; wait half a minute at most for trackers that are behind."""
        for tracker in self._trackers:
            tracker.close()
        if self._bar is not None:
            self._bar.close()

    def _left(self, step: int) -> float:
        done = max(step - self._first_step, 1)
        return (time.perf_counter() - self._start) / done * (self._total - step)


def _figures(row: Mapping[str, Any]) -> Iterator[str]:
    """Return the figures of a row that a person follows; a row of scores alone has no others."""
    formats = {"loss": "loss {:.4f}", "lr": "lr {:.2e}", "grad_norm": "grad norm {:.3g}"}
    formats |= {"clips_per_s": "{:.1f} clips/s", "mfu": "MFU {:.1%}", "data_wait": "data wait {:.0%}"}
    for name, form in formats.items():
        if row.get(name) is not None:
            yield form.format(row[name])
    yield from (f"{name} {value:.4f}" for name, value in row.items() if name.startswith(SCORES))


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
