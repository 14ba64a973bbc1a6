"""The progress of long work: one line that fits the terminal, a plain line now and then in a log."""

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mae3d.io import progress
from mae3d.io.console import text_width
from mae3d.io.progress import Progress, followed
from tests.support.terminal import drawn, shown, terminal

LONG = ("loss 0.7123", "123.4 clips/s", "data wait 3%", "lr 1.50e-04", "grad norm 0.345", "MFU 41.0%", "動画 1")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Yield the clock of the progress; a test moves it."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr("tqdm.std.time", lambda: now.seconds)
    return now


@pytest.mark.parametrize("columns", [80, 40, 20, 8])
def test_no_line_is_wider_than_the_terminal_and_the_end_is_clean(
    columns: int, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(columns) as screen:
        monkeypatch.setattr(sys, "stderr", screen.stream)
        with Progress(100_000, "step", done=10_000) as advance:
            for _ in range(30):
                clock.seconds += 100
                advance(3000, *LONG)
        text = screen.read()
    states = drawn(text)
    assert len(states) > 20, text
    assert max(map(text_width, states)) < columns
    assert text.endswith("\n")
    assert text.count("\n") == 1, "one line, however often it is drawn"
    if columns >= 40:
        assert all(re.search(r"step \d+/100000  \d+%  ETA \d", state) for state in states if state)
    if columns == 80:
        assert all("loss 0.7123" in state for state in states if state)


def test_a_terminal_that_becomes_narrower_gets_shorter_lines(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(120) as screen:
        monkeypatch.setattr(sys, "stderr", screen.stream)
        with Progress(100, "clip", doing="embedding") as advance:
            clock.seconds += 10
            advance(10, *LONG)
            assert 100 < max(map(text_width, drawn(screen.read()))) < 120
            screen.resize(50)
            clock.seconds += 10
            advance(10)
            assert 30 < max(map(text_width, drawn(screen.read()))) < 50


def test_a_message_stands_above_the_line_and_nothing_of_the_line_is_left_in_it(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(80) as screen:
        monkeypatch.setattr(sys, "stderr", screen.stream)
        bar = Progress(10, "step")
        clock.seconds += 10
        bar.reach(5)
        bar.say("a checkpoint")
        bar.close()
        lines = shown(screen.read())
    assert lines[0] == "a checkpoint"
    assert lines[1].startswith("step 5/10  50%  ETA 00:10")
    assert lines[2:] == [""]


def test_work_that_was_left_open_moves_no_later_line(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(80) as screen:
        monkeypatch.setattr(sys, "stderr", screen.stream)
        left_open = followed(range(10), "shard", doing="verify")
        next(left_open)
        with Progress(10, "step") as advance:
            clock.seconds += 10
            advance(5)
        lines = shown(screen.read())
        left_open.close()  # type: ignore[attr-defined]
    assert lines[0].startswith("step 5/10  50%")
    assert lines[1:] == [""]


def test_work_of_a_moment_shows_nothing(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(80) as screen:
        monkeypatch.setattr(sys, "stderr", screen.stream)
        for _ in followed(range(100), "shard", doing="verify"):
            clock.seconds += 0.001
        assert screen.read() == ""


def test_a_log_gets_a_plain_line_every_half_minute_and_the_last_one(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in followed(range(100), "shard", doing="verify"):
        clock.seconds += 1
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split("  ")[:2] for line in lines] == [
        ["verify shard 30/100", "30%"],
        ["verify shard 60/100", "60%"],
        ["verify shard 90/100", "90%"],
        ["verify shard 100/100", "100%"],
    ]
    assert "\r" not in "".join(lines)


def test_a_log_says_the_end_once(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in followed(range(60), "shard", doing="verify"):
        clock.seconds += 1
    assert sys.stderr.getvalue().count("60/60") == 1  # type: ignore[attr-defined]


def test_other_ranks_and_a_stream_that_nobody_reads_are_no_trouble(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    stream: Any = Broken()
    monkeypatch.setattr(sys, "stderr", stream)
    for show in (False, True):
        with Progress(10, "step", show=show) as advance:
            for _ in range(10):
                clock.seconds += 100
                advance()
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw, or a daemon
    with Progress(10, "step") as advance:
        clock.seconds += 100
        advance()
