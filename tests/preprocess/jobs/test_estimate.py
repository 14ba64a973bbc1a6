"""The estimate of a build is compared with its outcome."""

import errno
import math
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mae3d.io.files import TEMPORARY_PREFIX
from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.jobs import build as build_module
from preprocess.jobs.estimate import _FRAMES, Estimate, Trial, _beginning, frames_of, lines_of, require_room
from preprocess.plan.plan import read_plan
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from tests.support.media import make_frame_folder, make_video


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(6):
        make_video(folder / f"{number}.mp4", 20 + 10 * number, fps=10, size=(96, 64))
    return folder


def command(kind: str, source: Path, out: Path, *more: str) -> list[str]:
    return ["build", f"--{kind}", str(source), "--out", str(out), "--workers", "1", *more]


def full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda _: usage)


def test_plan_only_writes_the_plan_and_tells_what_the_build_then_does(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{TEMPORARY_PREFIX}host-1-shard-00004.tar").touch()  # of a killed run: its room is given back at the start
    assert main(command("videos", videos, out, "--plan-only")) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["plan.parquet"]
    assert "to build: 6 samples, about 270 frames, 0.01 hours of footage" in said
    assert "times the size of the videos" in said
    assert "free on the disk of the output" in said
    plan = (out / "plan.parquet").read_bytes()
    assert main(command("videos", videos, out)) == 0
    assert (out / "plan.parquet").read_bytes() == plan
    assert int(open_dataset(out).num_frames.sum()) == 270
    capsys.readouterr()
    assert main(command("videos", videos, out, "--plan-only")) == 0
    assert "nothing is left to build" in capsys.readouterr().out


def test_a_dry_run_says_the_same_and_writes_nothing(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command("videos", videos, out, "--dry_run")) == 0
    said = capsys.readouterr().out
    assert "to build: 6 samples, about 270 frames" in said
    assert "free on the disk of the output" in said
    assert not out.exists()
    assert main(command("videos", videos, out)) == 0
    before = {path: path.stat().st_mtime_ns for path in (out, *out.iterdir())}
    assert main(command("videos", videos, out, "--dry-run")) == 0
    assert f"{out} has this plan already, with all shards" in capsys.readouterr().out
    assert main(command("videos", videos, out, "--dry-run", "--fps", "3")) == 2
    assert f"{out}: was begun with other settings (fps" in capsys.readouterr().err
    assert main(command("videos", videos, out, "--dry-run", "--append")) == 2
    assert main(command("videos", videos, tmp_path, "--dry-run")) == 2  # holds other things
    assert {path: path.stat().st_mtime_ns for path in (out, *out.iterdir())} == before


def test_both_layouts_are_foreseen(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreseen = {}
    for layout, other in (("jpeg", "video"), ("video", "jpeg")):
        options = ("--fps", "5", "--layout", layout)
        assert main(command("videos", videos, tmp_path / layout, *options, "--plan-only")) == 0
        said = capsys.readouterr().out
        foreseen[layout] = re.search(r"frames\): ([\d.]+) kB", said)[1]  # type: ignore[index]
        found = re.search(rf"as --layout {other}: ([\d.]+) kB .* frames/s per worker; about [\d.]+ kB\n", said)
        assert found, said
        foreseen[f"{other} beside"] = found[1]
        assert main(command("videos", videos, tmp_path / layout, *options)) == 0
        dataset = open_dataset(tmp_path / layout)
        needed = 1000 * float(foreseen[layout]) * int(dataset.num_frames.sum())
        (shard,) = dataset.shards
        assert (
            0.9 * (shard.bytes - tarfile.RECORDSIZE - 1024) < needed < 1.1 * shard.bytes
        )  # an archive's end is padded
        capsys.readouterr()
    assert foreseen["jpeg"] == foreseen["jpeg beside"]
    assert foreseen["video"] == foreseen["video beside"]
    assert main(command("videos", videos, tmp_path / "native", "--plan-only")) == 0
    assert "as --layout" not in capsys.readouterr().out  # it needs a rate


def test_bytes_are_foreseen_from_few_frames_of_each_sample(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.jobs.estimate._FRAMES", 10)
    seen: list[Estimate] = []
    monkeypatch.setattr("preprocess.jobs.estimate.lines_of", lambda estimate, *_, **__: seen.append(estimate) or [])
    assert main(command("videos", videos, tmp_path / "out", "--plan-only")) == 0
    assert main(command("videos", videos, tmp_path / "out")) == 0
    (estimate,) = seen
    assert estimate.trial is not None
    assert estimate.trial.num_frames < 80
    written = sum(shard.bytes for shard in open_dataset(tmp_path / "out").shards)
    assert estimate.num_bytes == pytest.approx(written, rel=0.15)
    assert estimate.source_bytes == sum(path.stat().st_size for path in videos.iterdir())
    assert 0 < estimate.hours < 0.1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 24),
        ({"source_fps": 24.0}, 24),
        ({"source_fps": 24.0, "fps": 8.0}, 8),
        ({"source_fps": 24.0, "fps": 7.0}, 7),
        ({"source_fps": 24.0, "fps": 30.0}, 24),
    ],
)
def test_the_frames_of_folders_are_counted_as_they_will_be_kept(
    tmp_path: Path, options: dict[str, float], expected: int
) -> None:
    make_frame_folder(tmp_path / "frames" / "v", 24)
    (tmp_path / "frames" / "ledger.csv").write_text("v 1 24 0\n")
    more = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(command("frames", tmp_path / "frames", tmp_path / "out", "--plan-only", *more)) == 0
    num_frames, _ = frames_of(read_plan(tmp_path / "out" / "plan.parquet").rows, Settings(**options))  # type: ignore[arg-type]
    assert num_frames.tolist() == [expected]


def test_the_frames_of_videos_are_those_of_the_slower_rate(videos: Path, tmp_path: Path) -> None:
    assert main(command("videos", videos, tmp_path / "out", "--plan-only")) == 0
    rows = read_plan(tmp_path / "out" / "plan.parquet").rows
    for fps, share in ((None, 1), (5.0, 0.5), (50.0, 1)):
        num_frames, seconds = frames_of(rows, Settings(fps=fps))
        assert num_frames.sum() == pytest.approx(270 * share)
        assert seconds.sum() == pytest.approx(27)


def test_lengths_that_the_plan_does_not_know_are_asked_of_what_is_tried(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command("videos", videos, tmp_path / "a", "--plan-only", "--whole")) == 0
    assert math.isnan(read_plan(tmp_path / "a" / "plan.parquet").rows["length_s"][0].as_py())
    assert "6 samples, about 270 frames, 0.01 hours" in capsys.readouterr().out
    assert main(command("videos", videos, tmp_path / "b", "--plan-only", "--whole", "--fps", "5")) == 0
    assert "6 samples, about 135 frames, 0.01 hours" in capsys.readouterr().out
    full(monkeypatch, 100_000)
    assert main(command("videos", videos, tmp_path / "c", "--whole")) == 3


def test_a_sample_that_cannot_be_read_is_told_and_not_counted_as_a_frame(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_frame_folder(tmp_path / "frames" / "a", 4)
    bad = make_frame_folder(tmp_path / "frames" / "b", 4) / "img_00002.jpg"
    bad.write_bytes(b"no image")
    (tmp_path / "frames" / "ledger.csv").write_text("a 1 4 0\nb 1 4 1\n")
    assert main(command("frames", tmp_path / "frames", tmp_path / "out", "--plan-only")) == 0
    assert "tried 1 samples (4 frames, 1 more cannot be used)" in capsys.readouterr().out
    (tmp_path / "frames" / "ledger.csv").write_text("b 1 4 1\n")
    assert main(command("frames", tmp_path / "frames", tmp_path / "none", "--plan-only")) == 0
    assert "no sample that was tried can be used" in capsys.readouterr().out


@pytest.mark.parametrize(("stride", "fps", "tried"), [(1, None, 1), (5, None, 1), (5, 3.0, 2), (1, 3.0, 10)])
def test_as_many_frames_are_tried_of_strided_numbers(stride: int, fps: float | None, tried: int) -> None:
    whole = PlannedSample(0, 0, "frames", 0, "v", "v", [], "", first=7, stop=7 + 1000 * stride, stride=stride)
    begun = _beginning(whole, Settings(source_fps=30.0, fps=fps))
    assert (begun.first, len(begun.numbers)) == (7, tried * _FRAMES)


def estimate(**changed: Any) -> Estimate:
    trial = Trial(40, 0, 4000, frame_bytes=20e3, margin=0.1, frame_s=2e-3)
    facts: dict[str, Any] = {"num_samples": 1000, "num_frames": 3e6, "seconds": 1e5, "trial": trial, "workers": 4}
    return Estimate(**(facts | {"source_bytes": 3 * 10**9} | changed))


def test_figures_follow_from_the_trial() -> None:
    told = "\n".join(lines_of(estimate(), free_bytes=10**12))
    assert "about 3,000,000 frames, 27.78 hours of footage" in told
    assert "20.0 kB +- 10% per frame, 500 frames/s per worker" in told
    assert "needs about 60.0 GB, 20.0 times the size of the videos (3.0 GB) at 30 frames/s" in told
    assert "free on the disk of the output: 1.0 TB" in told
    assert "about 25.0 minutes with 4 workers" in told
    assert "warning" not in told
    assert "not known" in lines_of(estimate(), free_bytes=None)[-1]
    assert "nothing is known of bytes" in lines_of(estimate(num_frames=math.nan), free_bytes=None)[-1]
    require_room(estimate(num_frames=math.nan), free_bytes=1, out="out")


def test_what_does_not_fit_is_said_with_the_fps_that_does() -> None:
    free = 20 * 10**9
    assert re.match("warning: .*--fps 9 would fit", lines_of(estimate(), free_bytes=free)[-1])
    assert "warning" not in lines_of(estimate(num_frames=3e6 * 9 / 30), free_bytes=free)[-1]
    assert "warning" in lines_of(estimate(num_frames=3e6 * 10 / 30), free_bytes=free)[-1]
    for seconds, room in ((math.nan, free), (1e5, 1000)):  # no rate to change, and none that is low enough
        told = lines_of(estimate(seconds=seconds), free_bytes=room)[-1]
        assert "warning" in told
        assert "--fps" not in told
        assert "--short-side" in told


def test_only_what_is_far_from_fitting_is_refused() -> None:
    require_room(estimate(), free_bytes=31 * 10**9, out="out")  # 60 GB, perhaps 54
    with pytest.raises(OSError, match=r"60\.0 GB.* 26\.0 GB free.*--fps 12") as caught:
        require_room(estimate(), free_bytes=26 * 10**9, out="out")
    assert caught.value.errno == errno.ENOSPC
    require_room(estimate(trial=None), free_bytes=0, out="out")


def test_fault_17_a_build_that_cannot_fit_does_not_begin(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    full(monkeypatch, 100_000)
    assert main(command("videos", videos, out)) == 3
    said = capsys.readouterr().err
    assert "100.0 kB free" in said
    assert "--fps" in said
    assert not list(out.glob("shard-*"))
    assert main(command("videos", videos, out, "--ignore-space")) == 0
    assert int(open_dataset(out).num_frames.sum()) == 270


def test_a_build_that_may_not_fit_warns_and_goes_on(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command("videos", videos, tmp_path / "first")) == 0
    written = sum(shard.bytes for shard in open_dataset(tmp_path / "first").shards)
    full(monkeypatch, round(0.9 * written))
    assert main(command("videos", videos, tmp_path / "out")) == 0
    assert any("that is too much" in record.message for record in caplog.records if record.levelname == "WARNING")


def test_nothing_is_tried_where_there_is_surely_room(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "estimate_of", None)
    assert main(command("videos", videos, tmp_path / "out")) == 0
