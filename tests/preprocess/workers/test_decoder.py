import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import preprocess.workers.decoder as decoder_module
from mae3d.video.errors import MediaError
from preprocess.__main__ import main
from preprocess.encode.shared_shard import build_shard
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from preprocess.sources.roots import Folder
from preprocess.workers.decoder import Decoder, decoder, end_ahead, start_ahead
from tests.support import launch
from tests.support.media import make_frame_folder, make_video

SETTINGS = Settings(timeout_s=1.0)


def planned(number: int, path: str, **fields: float) -> PlannedSample:
    return PlannedSample(number, 0, "video", 0, path, path, [], "", file=path, **fields)  # type: ignore[arg-type]


def children(of: int) -> dict[int, str]:
    """Process ids and states of the children of a process."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == of:
            found[int(status.parent.name)] = state
    return found


@pytest.mark.slow
def test_fault_13_a_decoder_that_hangs_or_dies_costs_one_sample(tmp_path: Path, fresh: None) -> None:
    names = ["a.mp4", "hangs_after_6.mp4", "b.mp4", "raises_at_once.mp4", "c.mp4"]
    names += ["segv_after_20.mp4"]  # the last one leaves most behind
    for name in names:
        make_video(tmp_path / "bad" / name, 20)
        make_video(tmp_path / "junk" / name, 20)
        if len(name) > 5:
            (tmp_path / "junk" / name).write_bytes(b"no video")
    tables, before = {}, set(children(os.getpid()))
    for source in ("bad", "junk"):
        out = tmp_path / f"out_{source}"
        out.mkdir()
        samples = [planned(number, name) for number, name in enumerate(names)]
        build_shard(0, samples, roots=[Folder(tmp_path / source)], settings=SETTINGS, folder=nullcontext(out))
        tables[source] = pq.read_table(out / "shard-00000.parquet").to_pylist()
    shards = [tmp_path / f"out_{source}" / "shard-00000" for source in tables]
    for suffix in (".tar", ".idx"):
        assert shards[0].with_suffix(suffix).read_bytes() == shards[1].with_suffix(suffix).read_bytes()
    good, bad = tables["bad"][::2], tables["bad"][1::2]
    assert [row["num_frames"] for row in good] == [20] * 3
    assert [repr(row) for row in good] == [repr(row) for row in tables["junk"][::2]]  # some are NaN
    assert [(row["reason"], row["message"]) for row in bad] == [
        ("timeout", "no progress for --timeout 1 s at 0.40 s"),
        ("crashed", "ValueError: not even an error of FFmpeg"),
        ("crashed", "the decoder died of SIGSEGV at 1.80 s"),
    ]
    new = [state for pid, state in children(os.getpid()).items() if pid not in before]
    assert new.count("Z") == 0


@pytest.mark.parametrize("name", ["hangs_at_once.mp4", "abrt_at_once.mp4"])
def test_fault_13_a_bad_sample_is_tried_twice_and_a_hang_lasts_as_long_as_the_timeout(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    started, popen = [], subprocess.Popen

    def start(*arguments: Any, **named: Any) -> Any:
        started.append(time.monotonic())
        return popen(*arguments, **named)

    monkeypatch.setattr(subprocess, "Popen", start)
    for video in ("good.mp4", name):
        make_video(tmp_path / video, 5)
    began = time.monotonic()
    decoder().probe(tmp_path / "good.mp4", settings=SETTINGS)
    start_s, began = time.monotonic() - began, time.monotonic()
    with pytest.raises(MediaError) as caught:
        decoder().probe(tmp_path / name, settings=SETTINGS)
    assert caught.value.reason == ("timeout" if name.startswith("hangs") else "crashed")
    assert len(started) == 2  # the child that was there, and one that has done nothing else
    if name.startswith("hangs"):
        assert started[1] - began >= SETTINGS.timeout_s
        assert time.monotonic() - began < 2 * SETTINGS.timeout_s + 8 + 2 * start_s  # a busy machine is slow


def test_fault_13_planning_survives_too(tmp_path: Path, fresh: None) -> None:
    for name in ("abrt_at_once.mp4", "good.mp4"):
        make_video(tmp_path / name, 20)
    with pytest.raises(MediaError, match="the decoder died of SIGABRT at its header") as caught:
        decoder().probe(tmp_path / "abrt_at_once.mp4", settings=SETTINGS)
    assert caught.value.reason == "crashed"
    facts = decoder().probe(tmp_path / "good.mp4", settings=SETTINGS)
    assert (facts.fps, facts.duration_s, facts.width, facts.height) == (10.0, 2.0, 64, 48)


def test_fault_13_a_moment_without_memory_costs_no_sample(tmp_path: Path, fresh: None) -> None:
    make_video(tmp_path / "memory_at_once.mp4", 20)
    (tmp_path / "fake" / "short").touch()
    assert decoder().probe(tmp_path / "memory_at_once.mp4", settings=SETTINGS).duration_s == 2.0
    assert not (tmp_path / "fake" / "short").exists()


def test_fault_13_slowness_is_no_hang(tmp_path: Path, fresh: None) -> None:
    make_video(tmp_path / "slow_after_0.mp4", 10)
    (tmp_path / "tar").touch()
    began = time.monotonic()
    written = decoder().write(
        planned(0, "x"),
        [tmp_path / "slow_after_0.mp4"],
        settings=SETTINGS,
        tar=tmp_path / "tar",
        start=0,
        first=True,
    )
    assert time.monotonic() - began > 1.5 * SETTINGS.timeout_s
    assert written.facts.num_frames == 10


HANG = """
import sys
from pathlib import Path
from preprocess.workers.decoder import decoder
from preprocess.plan.settings import Settings
decoder().probe(Path(sys.argv[1]), settings=Settings())
"""


def test_fault_13_no_decoder_outlives_its_worker(tmp_path: Path, fresh: None) -> None:
    make_video(tmp_path / "hangs_at_once.mp4", 5)
    worker = launch.Process([sys.executable, "-c", HANG, str(tmp_path / "hangs_at_once.mp4")])
    try:
        until = time.monotonic() + 60
        while not (found := [pid for pid in children(worker.pid) if _sleeps_in_it(pid)]):
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        worker.kill()
        worker.wait()
    until = time.monotonic() + 10
    while any(_is_there(pid) for pid in found):
        assert time.monotonic() < until, "the decoder goes on"
        time.sleep(0.05)


def _sleeps_in_it(pid: int) -> bool:
    """All signals are blocked: tests/support/fake_ffmpeg.py has reached its hang."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("SigBlk:")[2].split()[0], 16) & 1 << signal.SIGINT - 1 > 0


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_error_of_the_disk_is_not_the_samples_fault(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "frames" / "v", 20)
    where = {"prefix": "img_", "digits": 5, "suffix": ".jpg", "first": 1, "stop": 21}
    sample = PlannedSample(0, 0, "frames", 0, "v", "v", [], "", **where)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    decoder().close()
    (tmp_path / "tar").touch()
    files = [tmp_path / "frames" / "v" / f"img_{number:05d}.jpg" for number in range(1, 21)]
    decoder().write(sample, files, settings=SETTINGS, tar=tmp_path / "tar", start=0, first=True)
    (child,) = (pid for pid in children(os.getpid()) if "preprocess.encode.decoder_main" in _command(pid))
    resource.prlimit(child, resource.RLIMIT_FSIZE, (10_000, 10_000))
    with pytest.raises(OSError, match="File too large") as caught:
        build_shard(
            0, [sample], roots=[Folder(tmp_path / "frames")], settings=SETTINGS, folder=nullcontext(tmp_path / "out")
        )
    assert "shard-00000.tar" in str(caught.value.filename)
    assert list((tmp_path / "out").iterdir()) == []
    decoder().close()


def test_fault_37_a_mount_that_vanishes_stops_the_build_and_costs_no_sample(
    tmp_path: Path, fresh: None, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for name in ("a.mp4", "b.mp4", "estale_after_6.mp4", "f.mp4"):
        make_video(videos / name, 20)
    command = ["build", "--videos", str(videos), "--shard-size", "1", "--workers", "1", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    (tmp_path / "fake" / "gone").touch()
    capsys.readouterr()
    assert main([*command, str(out)]) == 3
    assert "estale_after_6.mp4: Stale file handle; run the same command again" in capsys.readouterr().err
    (tmp_path / "fake" / "gone").unlink()
    assert main([*command, str(out)]) == 0
    trees = [{path.name: path.read_bytes() for path in tree.iterdir()} for tree in (tmp_path / "whole", out)]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("gone", ["removed", "empty"])
def test_fault_37_a_folder_that_has_gone_is_no_fault_of_its_files(tmp_path: Path, gone: str) -> None:
    make_video(tmp_path / "videos" / "a.mp4", 5)
    (tmp_path / "out").mkdir()
    arguments = {"roots": [Folder(tmp_path / "videos")], "settings": SETTINGS, "folder": nullcontext(tmp_path / "out")}
    assert build_shard(0, [planned(0, "a.mp4"), planned(1, "no.mp4")], **arguments).num_samples == 1  # type: ignore[arg-type]
    (tmp_path / "videos").rename(tmp_path / "elsewhere")
    if gone == "empty":
        (tmp_path / "videos").mkdir()
    with pytest.raises(OSError, match="No such file" if gone == "removed" else "as a mount that has gone is"):
        build_shard(1, [planned(0, "a.mp4")], **arguments)  # type: ignore[arg-type]
    assert not list((tmp_path / "out").glob("*shard-00001*"))


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_child_is_replaced_between_shards_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "a.mp4", 3)
    (tmp_path / "tar").touch()
    monkeypatch.setattr(decoder_module, "_ANSWERS", 2)
    ours = Decoder()
    before = set(children(os.getpid()))
    seen = []
    for first in (True, False, False, False, True):
        ours.write(
            planned(0, "a"), [tmp_path / "a.mp4"], settings=Settings(), tar=tmp_path / "tar", start=0, first=first
        )
        seen.append(*(set(children(os.getpid())) - before))
    assert len(set(seen[:4])) == 1
    assert seen[4] != seen[0]
    ours.close()
    assert set(children(os.getpid())) == before


def test_children_that_were_started_ahead_are_taken_replaced_or_ended(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 3)
    before = set(children(os.getpid()))

    def there() -> set[int]:
        return {pid for pid, state in children(os.getpid()).items() if state != "Z"} - before

    start_ahead(1)
    (ahead,) = there()
    start_ahead(1)
    (short_of_memory,) = there() - {ahead}
    os.kill(short_of_memory, signal.SIGKILL)
    one, other = Decoder(), Decoder()
    for each in (one, other):
        assert each.probe(tmp_path / "a.mp4", settings=Settings()).fps == 10.0
    assert len(there()) == 2
    assert ahead in there()
    other.close()
    one.lend()
    assert other.probe(tmp_path / "a.mp4", settings=Settings()).fps == 10.0
    assert there() == {ahead}
    other.lend()
    end_ahead()
    assert there() == set()


def test_an_interrupted_request_is_not_answered_by_the_next(tmp_path: Path, fresh: None) -> None:
    make_video(tmp_path / "slow_after_0.mp4", 20)
    make_video(tmp_path / "good.mp4", 5, fps=5)
    (tmp_path / "tar").touch()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    decoder().probe(tmp_path / "good.mp4", settings=Settings())
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            decoder().write(
                planned(0, "x"),
                [tmp_path / "slow_after_0.mp4"],
                settings=Settings(),
                tar=tmp_path / "tar",
                start=0,
                first=True,
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert decoder().probe(tmp_path / "good.mp4", settings=Settings()).fps == 5.0


@pytest.mark.slow
def test_fault_13_a_crash_costs_the_same_on_any_number_of_workers(
    tmp_path: Path, fresh: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mp4", "b_segv.mp4", "c.mp4", "d.mp4"):
        make_video(tmp_path / "videos" / name, 20)
    (tmp_path / "videos" / "b_segv.mp4").rename(tmp_path / "videos" / "segv_after_6.mp4")
    trees = []
    for workers in (1, 2):
        out = tmp_path / f"out_{workers}"
        command = ["build", "--videos", str(tmp_path / "videos"), "--out", str(out)]
        assert main([*command, "--shard-size", "2", "--workers", str(workers)]) == 0
        assert "rejected: 1: 1 crashed" in capsys.readouterr().out
        trees.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert trees[0] == trees[1]
    rows = pq.read_table(tmp_path / "out_1" / "rejected.parquet").to_pylist()
    assert [row["message"] for row in rows] == ["the decoder died of SIGSEGV at 0.40 s"]
