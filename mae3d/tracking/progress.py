"""Rows of numbers are logged by rank 0: to metrics.jsonl, the terminal and the requested trackers.

journal = ProgressLogger(run, world, first_step=0, total_steps=1000)
journal.write({"step": 10, "loss": 0.9, ...})
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mae3d.distributed import World
from mae3d.io.console import time_text
from mae3d.io.progress import Progress
from mae3d.tracking.config import LogConfig
from mae3d.tracking.history import SCORES
from mae3d.tracking.run_dir import METRICS, Run
from mae3d.tracking.trackers import open_trackers

logger = logging.getLogger(__name__)

_HOURS_AFTER = 10  # steps after which the rest of the run can be foretold


class ProgressLogger:
    """The log of a run: a line of metrics.jsonl; a line of progress on a terminal, else one plain line per row."""

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
        self._first_step = first_step
        self._unwritten: list[Mapping[str, Any]] = []
        self._progress = Progress(total_steps, "step", done=first_step, show=self._enabled)
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
        figures = list(_figures(row))
        if self._progress.on_terminal:
            self._progress.note(*figures)
        else:
            left = self._progress.left_s(row["step"])
            figures += [] if left is None else [f"ETA {time_text(left)}"]
            self.say("  ".join([f"step {row['step']}/{self._progress.total}", *figures]))

    def flush(self) -> None:
        """Write the rows that are kept.

        Raises:
            OSError: metrics.jsonl cannot be written.
        """
        if self._unwritten:
            self._run.write_metrics(*self._unwritten)
            self._unwritten = []

    def stepped(self, step: int) -> None:
        """Move the line of progress; in a log print the expected duration of the run after ten steps."""
        if self._progress.on_terminal:
            self._progress.reach(step)
            return
        if step - self._first_step == _HOURS_AFTER:
            self.say(f"time: {time_text(self._progress.left_s(step) or 0)} to go at this pace")

    def say(self, text: str) -> None:
        """Print a line, on a terminal above that of the progress."""
        if self._progress.on_terminal:
            self._progress.say(text)
        elif self._enabled:
            print(text, flush=True)

    def __enter__(self) -> "ProgressLogger":
        return self

    def __exit__(self, *_: object) -> None:
        """End the line of progress; wait half a minute at most for trackers that are behind."""
        for tracker in self._trackers:
            tracker.close()
        self._progress.close()


def _figures(row: Mapping[str, Any]) -> Iterator[str]:
    """Return the figures of a row that a person follows; a row of scores alone has no others."""
    formats = {"loss": "loss {:.4f}", "clips_per_s": "{:.1f} clips/s", "data_wait": "data wait {:.0%}"}
    formats |= {"lr": "lr {:.2e}", "grad_norm": "grad norm {:.3g}", "mfu": "MFU {:.1%}"}
    for name, form in formats.items():
        if row.get(name) is not None:
            yield form.format(row[name])
    yield from (f"{name} {value:.4f}" for name, value in row.items() if name.startswith(SCORES))
