"""Rows of metrics.jsonl are sent to TensorBoard and Weights & Biases as well, if requested and as far as they work.

trackers = open_trackers(config.log, run, first_step=0)
trackers[0].write({"step": 10, "loss": 0.9}); trackers[0].close()

Each works on a thread of its own: a server that does not answer costs the training nothing, and any failure is one
warning. metrics.jsonl has every row in any case.
"""

import json
import logging
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mae3d.io.console import one_line
from mae3d.io.files import write_text
from mae3d.tracking.config import LogConfig
from mae3d.tracking.history import SCORES
from mae3d.tracking.run_dir import Run

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"  # a folder of the run
WANDB_STATE = "wandb.json"  # which W&B run it is, and what it has
MAX_WAITING = 1000  # rows that a slow service may be behind with; more are left out
INIT_S, CLOSE_S = 60, 30  # seconds that W&B has to answer at the start, and a tracker to be done at the end

Row = Mapping[str, Any]


class TrackerError(RuntimeError):
    """An error because a service cannot be used; the message gives the remedy."""


class Sink(Protocol):
    """A receiver of rows, which may be slow and may raise anything."""

    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


class Tracker:
    """A sink behind a queue: never blocks for long, never raises."""

    def __init__(self, name: str, open_sink: Callable[[], Sink]):
        """Start the thread, which opens the sink.

        Args:
            name: the option that requested it, for warnings.
            open_sink: called on the thread.
        """
        self._name, self._open = name, open_sink
        self._rows: queue.Queue[Row | None] = queue.Queue(MAX_WAITING)
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        """Hand a row over."""
        try:
            self._rows.put_nowait(dict(row))
        except queue.Full:
            self._warn(f"it is {MAX_WAITING} rows behind; rows are left out there")

    def close(self, seconds: float = CLOSE_S) -> None:
        """Wait until the rows are written, but no longer than this."""
        with suppress(queue.Full):
            self._rows.put(None, timeout=seconds)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"it was not done {seconds:g} s after the last row; it may lack some")

    def _work(self) -> None:
        try:
            sink = self._open()
            while (row := self._rows.get()) is not None:
                sink.write(row)
            sink.close()
        except TrackerError as error:
            self._fail(str(error))
        except ImportError as error:
            package = (error.name or "").partition(".")[0]
            self._fail(f"the package {package} is missing or broken: pip install {package}")
        except BaseException as error:  # SystemExit as well: nothing of theirs may end a training
            self._fail(f"{type(error).__name__}: {one_line(error)}")

    def _fail(self, what: str) -> None:
        self._warn(what)
        while self._rows.get() is not None:  # goes on taking rows, so that nobody waits
            pass

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s: %s. Training goes on, metrics.jsonl has every row", self._name, what)


class TensorBoard:
    """Event files in RUN/tensorboard: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, folder: Path, *, first_step: int):
        """Continue at the run's step: rows of later steps become void.

        Args:
            folder: of the event files.
            first_step: the step that the run starts, or was restored, at.
        """
        import tensorboard  # noqa: F401 - torch's own error, where it is missing, names no package
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=first_step + 1)

    def write(self, row: Row) -> None:
        """Write a scalar per number; on the disk within two minutes, which is torch's default."""
        for name, value in _numbers(row):
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run, the same one after every resume: RUN/wandb.json remembers its id and what it has.

    W&B takes one row for each of its steps, which only rise. A run comes to a step again after a resume, with rows that
    W&B has; with the scores of a validation that the last start was stopped at, which it lacks; and after a return to a
    checkpoint, on another course. So W&B's step merely counts, and everything is drawn over `step`, which each row has.
    """

    def __init__(self, run: Run, *, project: str, mode: str):
        """Open or resume the run; takes up to a minute if the server does not answer.

        Args:
            run: ours.
            project: PROJECT, or ENTITY/PROJECT.
            mode: "online", or "offline" to keep everything in RUN/wandb for `wandb sync`.

        Raises:
            TrackerError: there is no key to log in with.
            Exception: what wandb raises.
        """
        import wandb
        from wandb import login  # an ImportError where a mere folder of that name is found

        # Without a key init would prompt for one at a terminal, and wait.
        if mode == "online" and not login(prompt=False):
            raise TrackerError("no key: `wandb login`, or set WANDB_API_KEY; or take --log.wandb_mode offline")
        self._path = run.folder / WANDB_STATE
        self._state = _read_json(self._path)
        if self._path.exists() and "id" not in self._state:
            raise TrackerError(f"{self._path}: not of a run of MAE3D; move it away")
        if self._state.get("project") != project:
            self._state = {"project": project, "id": uuid.uuid4().hex[:12], "step": 0, "taken": 0, "scored": 0}
            self._remember()
        has_axis = "taken" in self._state  # in files of older versions W&B's steps were the run's, and rows had none
        self._state = {"taken": self._state["step"], "scored": self._state["step"] - 1} | self._state
        self._known = (self._state["taken"], self._state["scored"])  # what comes up to there is there already
        self._last = -1
        entity, _, name = project.rpartition("/")
        self._run = wandb.init(
            entity=entity or None,
            project=name,
            id=self._state["id"],
            name=run.folder.name,
            dir=run.folder,
            config=run.stored(),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(init_timeout=INIT_S, console="off", silent=True),
        )
        if has_axis:
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        """Log the numbers of a row, without those that W&B has from before a resume, which are equal."""
        step = row["step"]
        if step <= self._last:  # back at a checkpoint: what was known is of the course that was left
            self._known = (-1, -1)
        self._last = step
        new: dict[str, float] = {}
        for entry, known, is_score in zip(("taken", "scored"), self._known, (False, True), strict=True):
            numbers = {name: value for name, value in _numbers(row) if name.startswith(SCORES) is is_score}
            if numbers and step > known:
                new |= numbers
                self._state[entry] = step
        if new:
            self._state["step"] = max(step, self._state["step"] + 1)
            self._run.log(new | {"step": step}, step=self._state["step"])
            self._remember()

    def close(self) -> None:
        """Send the rest."""
        self._run.finish()

    def _remember(self) -> None:
        write_text(self._path, json.dumps(self._state))


def open_trackers(log: LogConfig, run: Run, *, first_step: int) -> list[Tracker]:
    """Return the requested trackers; on rank 0 only.

    Args:
        log: the settings.
        run: whose rows they get.
        first_step: the step that the run starts, or was restored, at.
    """
    trackers = []
    if log.tensorboard:
        folder = run.folder / TENSORBOARD
        trackers.append(Tracker("--log.tensorboard", lambda: TensorBoard(folder, first_step=first_step)))
    if log.wandb:
        trackers.append(Tracker("--log.wandb", lambda: WeightsAndBiases(run, project=log.wandb, mode=log.wandb_mode)))
    return trackers


def _numbers(row: Row) -> list[tuple[str, float]]:
    return [(name, value) for name, value in row.items() if isinstance(value, int | float) and name != "step"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
