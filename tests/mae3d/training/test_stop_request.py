"""mae3d/training/stop_request.py: a request is announced at once, and agreed on at the end of a step."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mae3d.training.stop_request import StopRequest


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "file", "time limit", "output"])
def test_fault_41_who_waits_for_the_run_hears_of_its_stop_as_soon_as_it_knows(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world: Any = SimpleNamespace(is_first=True, any=lambda flag: flag, gather=lambda value: [value])
    announced: list[str] = []
    stop = StopRequest(
        world,
        file=tmp_path / "STOP",
        minutes=0 if how == "time limit" else None,
        announce=lambda: announced.append(how),
    )
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    try:
        with stop:
            if how.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[how])
                assert announced == [how]  # in the middle of a step
            elif how == "output":
                monkeypatch.setattr("mae3d.training.stop_request.output_is_lost", lambda: True)
            elif how == "file":
                (tmp_path / "STOP").touch()
            assert stop.agree()
            assert announced[-1] == how
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_notice_that_comes_after_the_last_step_does_not_kill(tmp_path: Path) -> None:
    world: Any = SimpleNamespace(is_first=True, any=lambda flag: flag)
    before = {number: signal.getsignal(number) for number in StopRequest.SIGNALS}
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        with StopRequest(world, file=tmp_path / "STOP", minutes=None) as stop:
            assert not stop.agree()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
