"""Runs are looked at: their states, figures and damages; nothing is written, and little is read."""

import os
import re
import time
from pathlib import Path

import pytest

from mae3d.tracking.overview import find_runs, status_of
from mae3d.tracking.run_dir import Run
from tests.support.runs import as_json, as_yaml, make_run, row_of, tree_of

STATES = ("running", "stopping", "dead", "stopped", "done", "failed")


def test_every_state_is_seen_and_nothing_is_touched(tmp_path: Path) -> None:
    for state in STATES:
        make_run(tmp_path / state, state=state)
    before = tree_of(tmp_path)
    statuses = {status.name: status for status in find_runs([tmp_path])}
    assert {name: status.state for name, status in statuses.items()} == {state: state for state in STATES}
    assert tree_of(tmp_path) == before
    run = statuses["running"]
    assert (run.step, run.total, run.checkpoint, run.kind) == (100, 1000, 100, "pretraining")
    assert run.loss == pytest.approx(row_of(100)["loss"])
    assert run.eta_s == pytest.approx((1000 - 100) * 8 * 2 / 160.0)
    assert run.checkpoint_age_s is not None
    assert 0 <= run.checkpoint_age_s < 60
    assert statuses["failed"].eta_s is None
    assert "SIGTERM" in statuses["stopped"].note
    assert "pid" in statuses["dead"].note


def test_a_lock_of_another_machine_counts_by_its_age_and_is_not_touched(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", state="running")
    text = (run / ".lock").read_text()
    (run / ".lock").write_text(text.replace('"machine": "', '"machine": "elsewhere '))
    assert status_of(run).state == "running"
    old = time.time() - 1000
    os.utime(run / ".lock", (old, old))
    before = tree_of(run)
    assert status_of(run).state == "dead"
    assert tree_of(run) == before


def test_steps_that_are_set_in_epochs_are_counted_by_the_first_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", settings={"train": {"steps": None, "epochs": 30.0}})
    assert status_of(run).total == 30 * 50


def test_a_finetuning_and_its_few_shot_runs_are_found_and_a_dataset_is_not_walked(tmp_path: Path) -> None:
    for name in ("fine/shots-0001-seed-0", "fine/shots-0010-seed-0"):
        make_run(tmp_path / name, settings={"val": {}, "few_shot": {}}, state="done")
    (tmp_path / "shards" / "inside").mkdir(parents=True)
    (tmp_path / "shards" / "dataset.json").write_text("{}")
    make_run(tmp_path / "shards" / "inside" / "run")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("a: 1\n")  # another program's
    assert [status.name for status in find_runs([tmp_path])] == ["fine/shots-0001-seed-0", "fine/shots-0010-seed-0"]
    names = [status.name for status in find_runs([tmp_path / "fine", tmp_path])]
    assert len(names) == 2, "each run once"
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        list(find_runs([tmp_path / "nowhere"]))


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("config.yaml", "{[", "config.yaml.*ParserError"),
        ("config.yaml", "", "config.yaml.*"),
        ("config.yaml", "- a\n", "config.yaml.*no config"),
        (".lock", "something else", "not a lock"),
    ],
)
def test_a_damaged_run_is_a_row_with_the_reason(tmp_path: Path, name: str, content: str, note: str) -> None:
    run = make_run(tmp_path / "a")
    (run / name).write_text(content)
    (status,) = find_runs([tmp_path])
    assert status.state == "damaged"
    assert re.search(note, status.note)


def test_a_run_without_its_config_is_damaged(tmp_path: Path) -> None:
    (make_run(tmp_path / "a") / "config.yaml").unlink()
    (status,) = find_runs([tmp_path])
    assert (status.state, "missing" in status.note) == ("damaged", True)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"\n\n",
        b"[" * 60_000 + b"\n",
        b'{"step": "ten"}\n{"step": 1e400, "loss": NaN}\n[1]\n\xff\xfe\x00\n',
        b'{"step": 10, "loss": ' + b"9" * 400 + b', "clips_per_s": 0, "epoch": "x"}\n{"step": 20, "lo',
    ],
)
def test_any_bytes_in_the_metrics_make_a_row_and_no_crash(tmp_path: Path, lines: bytes) -> None:
    run = make_run(tmp_path / "a")
    (run / "metrics.jsonl").write_bytes(lines)
    (run / "checkpoints" / "latest").write_bytes(b"\xff step")
    (run / "heartbeats" / "rank-00000").write_text("soon")
    (run / "config.yaml").write_text(as_yaml({"train": "x", "data": [1], "run": {"remote": 3}}))
    (status,) = find_runs([tmp_path])
    assert (status.state, status.loss, status.checkpoint) == ("failed", None, None)


def test_of_a_long_run_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "a")
    line = as_json([row_of(10)]).encode()
    with (run / "metrics.jsonl").open("wb") as file:
        file.truncate(100_000_000)  # a hole: bytes that nobody should read
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line * 400 + as_json([row_of(5000, loss=0.25)]).encode())
    (run / "heartbeats" / "rank-00000").unlink()
    began = time.process_time()
    status = status_of(run)
    assert (status.step, status.loss) == (5000, 0.25)
    assert time.process_time() - began < 0.2


def test_a_run_records_when_it_was_started_and_ended(tmp_path: Path) -> None:
    from mae3d.tracking.run_dir import last_rows

    run = Run(make_run(tmp_path / "a"))
    run.write_event(0, "started, 1 rank(s)")
    run.write_event(7, "stopped by SIGTERM after step 7")
    events = last_rows(run.folder, "events.jsonl")
    assert [(row["step"], row["event"].split()[0]) for row in events] == [(0, "started,"), (7, "stopped")]
    assert abs(events[0]["time"] - time.time()) < 60
