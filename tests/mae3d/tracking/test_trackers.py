"""TensorBoard and Weights & Biases: asked for, absent, broken, silent or slow, none of them touches the training."""

import json
import logging
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mae3d.distributed import World
from mae3d.tracking.config import LogConfig
from mae3d.tracking.progress import ProgressLogger
from mae3d.tracking.run_dir import Run, read_metrics
from mae3d.tracking.trackers import MAX_WAITING, Tracker, open_trackers

ALONE: Any = SimpleNamespace(is_first=True)  # of a World, the only thing that a journal asks for


class FakeWandb(types.ModuleType):
    """Stands in for the package wandb: remembers what it is told. It is not wandb; the real one was tried by hand."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.has_key = True
        self.runs: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []  # as W&B keeps them: those of steps behind it are lost
        self.last: dict[str, int] = {}  # step of each run
        self.axes: dict[str, Any] = {}
        self.finished = 0
        self.on_init: Callable[[], None] = lambda: None

    def login(self, *, prompt: bool) -> bool:
        assert prompt is False
        return self.has_key

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **options: Any) -> "FakeWandb":
        self.on_init()
        self.runs.append(options)
        return self

    def define_metric(self, name: str, **options: Any) -> None:
        self.axes[name] = options

    def log(self, row: dict[str, float], *, step: int) -> None:
        run = self.runs[-1]["id"]
        if step > self.last.get(run, 0):
            self.rows.append((step, row))
            self.last[run] = step

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text("train: {steps: 9}\n")
    return run


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of from here on, from whichever thread."""
    told: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("mae3d.tracking.trackers"), "handle", lambda record: told.append(record.getMessage())
    )
    return told


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1 / step, "mfu": None} for step in range(first, last + 1)]


def send(run: Run, log: LogConfig, *, first: int, last: int) -> None:
    trackers = open_trackers(log, run, first_step=first - 1)
    for row in rows(first, last):
        for tracker in trackers:
            tracker.write(row)
    for tracker in trackers:
        tracker.close()


def test_a_resumed_run_goes_on_with_its_wandb_run_and_repeats_no_step(run: Run, wandb: FakeWandb) -> None:
    log = LogConfig(wandb="lab/films", wandb_mode="offline")
    send(run, log, first=1, last=6)
    send(run, log, first=4, last=9)  # killed after step 6, restored from a checkpoint of step 3
    first, second = wandb.runs
    assert first["id"] == second["id"]
    assert (first["entity"], first["project"], first["mode"], first["resume"]) == ("lab", "films", "offline", "allow")
    assert first["config"] == {"train": {"steps": 9}}
    assert first["dir"] == run.folder
    assert [step for step, _ in wandb.rows] == list(range(1, 10))
    assert wandb.rows[1] == (2, {"loss": 0.5, "step": 2})  # what is not known is left out
    assert wandb.axes["*"] == {"step_metric": "step"}
    assert wandb.finished == 2
    send(run, LogConfig(wandb="other", wandb_mode="offline"), first=4, last=9)
    assert wandb.runs[2]["id"] != first["id"]
    assert wandb.rows[9][0] == 4  # another project has none of them


def starts(run: Run, log: LogConfig, *parts: list[dict[str, Any]]) -> None:
    """Send the rows of several starts, each from the step before its first row on."""
    for part in parts:
        trackers = open_trackers(log, run, first_step=part[0]["step"] - ("loss" in part[0]))
        for row in part:
            for tracker in trackers:
                tracker.write(row)
        for tracker in trackers:
            tracker.close()


SCORED_TOO = {"step": 4, "loss": 1 / 4, "val_top1": 0.5}
SCORED = {"step": 4, "epoch": 1.0, "eval_loss": 0.25}
AGAIN = [{"step": step, "loss": -float(step)} for step in (3, 4, 5)]
COURSES = {
    # what each start writes, and what a tracker has in the end as (step, value), by name
    "stopped at a validation": (
        [[*rows(1, 4)], [SCORED, *rows(5, 6)]],
        {"loss": [(n, 1 / n) for n in range(1, 7)], "eval_loss": [(4, 0.25)]},
    ),
    "killed after the scores, twice": (
        [[*rows(1, 4)], [SCORED, *rows(5, 6)], [SCORED, *rows(5, 6)], [SCORED, *rows(5, 8)]],
        {"loss": [(n, 1 / n) for n in range(1, 9)], "eval_loss": [(4, 0.25)]},
    ),
    "stopped at the validation of the last step": (
        [[*rows(1, 4)], [SCORED]],
        {"loss": [(n, 1 / n) for n in range(1, 5)], "eval_loss": [(4, 0.25)]},
    ),
    "scores in a row with losses": (
        [[*rows(1, 3), SCORED_TOO], [SCORED_TOO, *rows(5, 5)]],
        {"loss": [(n, 1 / n) for n in range(1, 6)], "val_top1": [(4, 0.5)]},
    ),
    "killed, then back at a checkpoint amid steps that are known": (
        [[*rows(1, 6)], [*rows(3, 6), *AGAIN]],
        {"loss": [*((n, 1 / n) for n in range(1, 7)), (3, -3.0), (4, -4.0), (5, -5.0)]},
    ),
    "back at a checkpoint, then killed": (
        [[*rows(1, 4), *AGAIN], [AGAIN[1], AGAIN[2], *rows(6, 6)]],
        {"loss": [*((n, 1 / n) for n in range(1, 5)), (3, -3.0), (4, -4.0), (5, -5.0), (6, 1 / 6)]},
    ),
}


@pytest.mark.parametrize("course", COURSES)
def test_every_row_of_a_step_that_is_come_to_again_arrives_once(run: Run, wandb: FakeWandb, course: str) -> None:
    parts, expected = COURSES[course]
    starts(run, LogConfig(wandb="films", wandb_mode="offline"), *parts)
    assert [at for at, _ in wandb.rows] == sorted({at for at, _ in wandb.rows})
    for name, points in expected.items():
        assert [(row["step"], row[name]) for _, row in wandb.rows if name in row] == points


@pytest.mark.parametrize("course", list(COURSES)[:4])
def test_tensorboard_has_every_row_too(run: Run, course: str) -> None:
    pytest.importorskip("tensorboard", reason="not installed: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    parts, expected = COURSES[course]
    starts(run, LogConfig(tensorboard=True), *parts)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    for name, points in expected.items():
        written = {event.step: event.value for event in events.Scalars(name)}
        assert list(written.items()) == [(step, pytest.approx(value)) for step, value in points]


def test_a_wandb_run_of_an_older_version_goes_on_over_its_own_steps(run: Run, wandb: FakeWandb) -> None:
    (run.folder / "wandb.json").write_text('{"project": "films", "id": "abc", "step": 4}')
    starts(run, LogConfig(wandb="films", wandb_mode="offline"), [SCORED, *rows(5, 8)])
    assert wandb.runs[0]["id"] == "abc"
    assert wandb.axes == {}
    assert [(at, row["step"]) for at, row in wandb.rows] == [(5, 4), (6, 5), (7, 6), (8, 7), (9, 8)]


def test_fault_38_no_key_is_one_warning_and_nobody_is_asked(run: Run, wandb: FakeWandb, warnings: list[str]) -> None:
    wandb.has_key = False
    send(run, LogConfig(wandb="films"), first=1, last=6)
    assert wandb.runs == []
    assert len(warnings) == 1
    assert "--log.wandb: no key: `wandb login`" in warnings[0]
    assert not (run.folder / "wandb.json").exists()


@pytest.mark.parametrize("option", ["tensorboard", "wandb"])
def test_fault_38_a_missing_package_is_one_warning_with_its_remedy(
    run: Run, monkeypatch: pytest.MonkeyPatch, warnings: list[str], option: str
) -> None:
    monkeypatch.setitem(sys.modules, option, None)
    log = LogConfig(tensorboard=True) if option == "tensorboard" else LogConfig(wandb="films")
    send(run, log, first=1, last=6)
    assert len(warnings) == 1
    assert f"pip install {option}" in warnings[0]


def test_fault_38_an_unreachable_server_costs_one_warning_and_no_time(
    run: Run, wandb: FakeWandb, warnings: list[str]
) -> None:
    answer = threading.Event()

    def no_answer() -> None:
        answer.wait(20)
        raise ConnectionError("api.wandb.ai: no route to host\n(more lines)")

    wandb.on_init = no_answer
    (tracker,) = open_trackers(LogConfig(wandb="films"), run, first_step=0)
    start = time.monotonic()
    for row in rows(1, 2 * MAX_WAITING):  # beyond what is kept for it
        tracker.write(row)
    tracker.close(0.1)
    assert time.monotonic() - start < 2
    answer.set()
    assert len(warnings) == 1
    assert "rows behind" in warnings[0]
    later = Tracker("--log.wandb", lambda: no_answer())  # type: ignore[arg-type, return-value]
    later.write({"step": 1})
    later.close()
    assert "--log.wandb: ConnectionError: api.wandb.ai: no route to host (more lines). Training goes on" in warnings[1]


class Broken:
    """A sink that fails at the third row, in a way that would end a process."""

    def __init__(self) -> None:
        self.got = 0

    def write(self, row: Any) -> None:
        self.got += 1
        if self.got == 3:
            raise SystemExit("quota")

    def close(self) -> None:
        raise AssertionError("closed after a failure")


def test_fault_38_a_service_that_breaks_later_is_given_up(warnings: list[str]) -> None:
    sink = Broken()
    tracker = Tracker("--log.x", lambda: sink)
    for row in rows(1, 9):
        tracker.write(row)
    tracker.close()
    assert sink.got == 3
    assert len(warnings) == 1
    assert "SystemExit: quota" in warnings[0]


def test_a_service_that_does_not_finish_is_not_waited_for_forever(warnings: list[str]) -> None:
    never = threading.Event()
    sink = SimpleNamespace(write=lambda row: None, close=lambda: never.wait(20))
    tracker = Tracker("--log.x", lambda: sink)
    start = time.monotonic()
    tracker.close(0.1)
    assert time.monotonic() - start < 2
    assert "not done 0.1 s after the last row" in warnings[0]
    never.set()


def test_tensorboard_forgets_the_steps_after_the_restored_one(run: Run) -> None:
    pytest.importorskip("tensorboard", reason="not installed: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 6), (4, 9)):
        send(run, LogConfig(tensorboard=True), first=first, last=last)
        time.sleep(1.1)  # the files' names tell seconds
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 10))


def test_the_journal_writes_its_own_file_whatever_becomes_of_the_others(
    run: Run, wandb: FakeWandb, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise ValueError("no")

    wandb.on_init = refuse
    log = LogConfig(wandb="films", every=1)
    row = {"loss": 0.5, "lr": 1e-3, "grad_norm": 1.25, "clips_per_s": 10.0, "mfu": 0.41, "data_wait": 0.02}
    with ProgressLogger(run, ALONE, first_step=0, total_steps=3, log=log) as log:
        log.write({"step": 1, **row})
        log.write({"step": 2, "eval_loss": 0.75})
    assert [line["step"] for line in read_metrics(run.folder)] == [1, 2]
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(
        "step 1/3  loss 0.5000  10.0 clips/s  data wait 2%  lr 1.00e-03  grad norm 1.25  MFU 41.0%  ETA 0 s"
    )
    assert told[1].startswith("step 2/3  eval_loss 0.7500  ETA ")
    assert len(warnings) == 1


def test_other_processes_are_silent(run: Run, wandb: FakeWandb) -> None:
    other: World = SimpleNamespace(is_first=False)  # type: ignore[assignment]
    with ProgressLogger(run, other, first_step=0, total_steps=3, log=LogConfig(wandb="films", tensorboard=True)) as log:
        log.write({"step": 1, "loss": 0.5})
    assert wandb.runs == []
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml"]
    assert json.dumps(read_metrics(run.folder)) == "[]"
