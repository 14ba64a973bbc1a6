"""The line of a training on a terminal fits it, with the end and the loss; a log has one plain line per row."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mae3d.io import progress
from mae3d.io.console import text_width
from mae3d.tracking.config import LogConfig
from mae3d.tracking.progress import ProgressLogger
from mae3d.tracking.run_dir import Run, read_metrics
from tests.support.runs import row_of
from tests.support.terminal import drawn, shown, terminal


@pytest.mark.parametrize("columns", [80, 40])
def test_a_training_shows_one_line_with_its_end(tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr("tqdm.std.time", lambda: now.seconds)
    world: Any = SimpleNamespace(is_first=True)
    with terminal(columns) as screen:
        monkeypatch.setattr(sys, "stderr", screen.stream)
        with ProgressLogger(Run(tmp_path), world, first_step=1000, total_steps=12_000, log=LogConfig()) as log:
            for step in range(1001, 1041):
                now.seconds += 2
                if step % 10 == 0:
                    log.write(row_of(step, mfu=0.41, eval_loss=0.7))
                log.stepped(step)
                if step == 1020:
                    log.say("a picture")
        text = screen.read()
    assert max(map(text_width, drawn(text))) < columns
    lines = shown(text)
    assert lines[0] == "a picture"
    assert lines[1].startswith("step 1040/12000  9%  ETA ")
    assert "ETA 6:05:20" in lines[1]
    assert len(lines) == 3, "one line at the end, ended"
    if columns == 80:
        assert "loss 0.53" in lines[1]
        assert "160.0 clips/s" in lines[1]
    assert len(read_metrics(tmp_path)) == 4
