"""Looking at many files over processes: the order of what comes back, and workers that die."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from preprocess.sources.probing import over_processes


def _slow_at_first(number: int) -> int:
    time.sleep(0.3 if number < 2 else 0.0)
    return number * number


def _dies_once(seen: Path, number: int) -> int:
    if number == 5 and not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_answers_come_in_the_order_of_the_items(workers: int) -> None:
    for count in (0, 3, 11):
        found = list(over_processes(_slow_at_first, range(count), workers=workers, unit="file", at_once=1))
        assert found == [number * number for number in range(count)]


def test_a_worker_that_dies_costs_its_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    look = partial(_dies_once, tmp_path / "seen")
    assert list(over_processes(look, range(10), workers=2, unit="tar", at_once=1)) == list(range(10))
    assert "the worker of tar 6 and those after died; it is done again" in caplog.text
