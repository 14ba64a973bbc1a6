"""The job as a whole: decoders that die, a second run, slices and their merge, progress."""

import os
import re
import time
from pathlib import Path

import pytest

from mae3d.io import progress
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore, Owner
from preprocess.__main__ import main
from tests.support.builds import command, tree
from tests.support.kills import inodes, kill_decoders, killed_at, start


def test_fault_16_a_decoder_that_is_killed_once_costs_no_sample(
    archive: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    for attempt in range(20):  # on a busy machine a build may end before it is caught
        out = tmp_path / f"out{attempt}"
        run = start(*command(archive, out, workers=2))
        if kill_decoders(run, out):
            break
        run.communicate()
    else:
        pytest.fail("no build was caught at work")
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert tree(out) == whole


def test_fault_18_a_second_run_at_one_output_is_told_whose_it_is(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    run = start(*command(archive, out))
    while not (out / "plan.parquet").exists():
        time.sleep(0.001)
    for more in ([], ["--overwrite"], ["--append"]):
        assert main(command(archive, out, *more)) == 2
        told = capsys.readouterr().err
        assert f"in use by build on {os.uname().nodename}, pid {run.pid}, since 20" in told
    run.communicate()
    assert run.returncode == 0
    assert tree(out) == whole


def test_slices_and_a_merge_are_one_run(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    runs = [start(*command(archive, out, "--slice", f"{i}/3")) for i in (0, 1)]  # at once: one of them makes the plan
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert "2 of 5 shards are of this slice, 2 were built now" in said[0]
    assert main(["merge", str(out), "--slices", "3"]) == 2
    assert "1 of 5 shards are not there: shard-00002 (slice 2/3); run these slices again" in capsys.readouterr().err
    assert main(command(archive, out, "--slice", "2/3")) == 0
    kept = inodes(out)
    assert main(["merge", str(out)]) == 0
    assert "24 samples, 96 frames" in capsys.readouterr().out
    assert tree(out) == whole
    assert inodes(out) == kept


def test_a_killed_slice_is_taken_up_and_its_leftovers_are_swept(
    archive: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for at in (12, 40, 70):
        assert killed_at(command(archive, out, "--slice", "0/2"), out, at)
    for i in (0, 1):
        assert main(command(archive, out, "--slice", f"{i}/2")) == 0
    (out / ".tmp-mae3d-elsewhere-7-shard-00001.tar").write_bytes(b"of a slice on another machine")
    assert main(["merge", str(out)]) == 0
    assert tree(out) == whole


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--slice", "3"], "two numbers, as in 0/50"),
        (["--slice", "3/3"], "slices of 3 count from 0"),
        (["--slice", "0/2", "--append"], "--slice goes with neither"),
        (["--append", "--overwrite"], "exclude each other"),
        (["--scheduler", "tcp://127.0.0.1:9", "--workers", "0"], "workers=0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture, wrong: list[str], message: str
) -> None:
    assert main(command(archive, tmp_path / "out", *wrong)) == 2
    assert message in capsys.readouterr().err


def test_a_slice_waits_for_a_merge_and_a_merge_for_no_slice(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["merge", str(tmp_path / "nothing")]) == 2
    assert "no plan.parquet" in capsys.readouterr().err
    assert main(command(archive, out, "--slice", "0/1")) == 0
    FolderLockStore(out).create(f"{LOCK_NAME}.slice-1-of-2", Owner.here("slice 1/2"))
    assert main(["merge", str(out)]) == 2
    assert "in use by slice 1/2" in capsys.readouterr().err


def test_progress_tells_shards_samples_and_rejects_and_what_was_kept(
    archive: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    caplog.set_level("INFO")
    out = tmp_path / "out"
    assert main(command(archive, out)) == 0
    assert re.search(r"^build sample 24/24  100%  ETA [\d:]+, 5/5 shards  \d+ rejected", capsys.readouterr().err, re.M)
    for path in out.glob("shard-00003.*"):
        path.unlink()
    caplog.clear()
    assert main(command(archive, out)) == 0
    assert "4 of 5 shards are there already and are kept" in caplog.text
