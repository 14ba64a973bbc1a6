"""launch/timeline.py: the same table on any number of processes; figures, agreement and page of videos made here."""

import csv
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from launch import timeline
from launch.common.track import Track
from launch.inference.phases import Truth, classes_at, judge, read_truth
from launch.inference.settings import TimelineConfig
from launch.report.timeline_plots import lane, ribbon
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig
from mae3d.weights.files import load_model, save_model
from preprocess.sources.events import Event
from tests.conftest import ROOT
from tests.support import launch
from tests.support.media import make_video
from tests.support.pages import check_page

SAMPLING = ("--sampling_rate", "1", "--target_fps", "10", "--device", "cpu")
SCENES = [((200, 40, 40), 3.0), ((40, 40, 200), 2.0), ((220, 220, 210), 4.0)]  # colour, seconds
NAMES = ("one", "two", "<b>three</b>")


def scenes(path: Path, *, fps: int = 10) -> Path:
    """Make a video of still scenes, each a colour with a bar of another."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for number, (colour, seconds) in enumerate(SCENES):
            picture = np.full((48, 64, 3), colour, np.uint8)
            picture[:, 16 * number : 16 * number + 8] = 255 - picture[:, :8]
            for _ in range(int(seconds * fps)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return scenes(folder / "day one.mp4"), make_video(folder / "two.mp4", 40)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"preset": "mae_vit_tiny_patch16", "img_size": 32, "num_frames": 4, "depth": 2}
    path = tmp_path_factory.mktemp("classifier") / "model.safetensors"
    save_model(Classifier(ClassifierConfig(**sizes, num_classes=3, class_names=NAMES, head_std=1.0)), path)
    return path


def run(model: Path, out: Path, *options: str | Path, code: int = 0) -> dict[str, list[Any]]:
    """Return the columns of the timeline that the command makes."""
    assert timeline.main(["--run", str(model), "--out", str(out), *SAMPLING, *map(str, options)]) == code
    return pq.read_table(out / "timeline.parquet").to_pydict()


def test_fault_40_a_timeline_is_the_same_on_two_processes_and_after_a_kill(
    tiny_model: Path, videos: tuple[Path, Path], tmp_path: Path
) -> None:
    options = [str(option) for option in ("--videos", *videos, "--every", "0.3", "--batch", "1")]
    run(tiny_model, tmp_path / "whole", *options)
    out = tmp_path / "out"
    command = [sys.executable, ROOT / "launch/timeline.py", "--run", tiny_model, "--out", out, *SAMPLING, *options]
    parts = out / "windows.parquet.parts"
    process = launch.Process(command)
    while len(list(parts.glob("part-*"))) < 3:
        assert process.poll() is None, process.output()
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (out / "windows.parquet").exists()
    ranks = launch.Ranks(command, world=2)
    output, _ = ranks.communicate()
    assert ranks.returncode == 0, output
    names = {path.name for path in out.iterdir()}
    assert names == {"windows.parquet", "timeline.parquet", "changes.csv", "timeline.html"} | {
        f"timeline_00{i}.png" for i in range(2)
    }
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_changes_surprise_and_novelty_of_still_scenes(
    tiny_model: Path, videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events.csv"
    events.write_text("name,start_s,end_s,label\nday one,0,3,a\nday one.mp4,3,5,b\nday one,5,9,a\n")
    table = run(tiny_model, tmp_path / "out", "--videos", videos[0], "--every", "0.2", "--events", events)
    with (tmp_path / "out/changes.csv").open() as file:
        changes = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert changes == pytest.approx([3.0, 5.0], abs=0.3)
    assert sum(change is not None for change in table["change"]) == 2
    centres = (np.array(table["start_s"]) + table["end_s"]) / 2
    still = np.min(np.abs(centres[:, None] - [3.0, 5.0]), axis=1) > 0.5
    copy, predicted = np.array(table["surprise_copy"]), np.array(table["surprise"])
    assert copy[still].max() < 0.2 < copy[~still].max()
    assert predicted[still].min() > 0.5  # of an untrained model
    novelty = np.array(table["novelty"], dtype=float)
    assert np.isnan(novelty[:2]).all()
    assert centres[np.nanargmax(novelty)] == pytest.approx(3.2, abs=0.5)  # nothing like the second scene was before
    printed = capsys.readouterr().out
    assert re.search(r"day one.mp4 +2 +2 +1.0000 +1.0000 +1.0000", printed)
    # other penalties and events need no model: the windows stay
    stamp = (tmp_path / "out/windows.parquet").stat().st_mtime_ns
    again = run(tiny_model, tmp_path / "out", "--videos", videos[0], "--every", "0.2", "--change_penalty", "1e6")
    assert again["change"] == [None] * len(centres)
    assert not list((tmp_path / "out").glob("agreement.*"))
    assert (tmp_path / "out/windows.parquet").stat().st_mtime_ns == stamp


def test_the_mask_is_chosen_and_is_the_same_for_all_windows(
    tiny_model: Path, videos: tuple[Path, Path], tmp_path: Path
) -> None:
    from mae3d.analysis.reconstruct import clip_losses
    from mae3d.model.masking import mask_noise
    from mae3d.video.windows import VideoClips, plan_windows

    options = ("--mask", "random", "--mask_ratio", "0.75", "--seed", "3")
    table = run(tiny_model, tmp_path / "out", "--videos", videos[1], "--every", "1", *options)
    model = load_model(tiny_model)
    object.__setattr__(model.config, "mask_ratio", 0.75)
    plan = plan_windows([str(videos[1])], num_frames=4, step_s=0.1, every_s=1.0)
    noise = mask_noise(seed=3, epoch=0, positions=[0], views=1, tokens=model.config.num_tokens)
    clips = next(VideoClips(plan.windows, size=32, batch_size=8)).clips[:, 0]
    expected = [float(clip_losses(model, torch.from_numpy(clip)[None], noise).loss) for clip in clips]
    assert table["surprise"] == pytest.approx(expected, rel=1e-5)


def test_a_classifier_agrees_with_the_events_that_its_scores_say(
    classifier: Path, videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The events are its own classes but for one window: each figure follows by hand."""
    table = run(classifier, tmp_path / "a", "--videos", *videos, "--every", "0.5")
    scores = np.array(table["scores"])
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert table["label"] == [NAMES[i] for i in scores.argmax(axis=1)]
    centres = (np.array(table["start_s"]) + table["end_s"]) / 2
    first = np.array(table["name"]) == str(videos[0])
    assert 10 < first.sum() < len(first)
    lines = ["name,start_s,end_s,label"]
    for name, centre, label in zip(table["name"], centres, table["label"], strict=True):
        lines.append(f"{Path(name).name},{centre - 0.2:.3f},{centre + 0.2:.3f},{label}")
    wrong = next(name for name in NAMES if name != table["label"][2])
    lines[3] = lines[3].rsplit(",", 1)[0] + f",{wrong}"
    events = tmp_path / "events.csv"
    events.write_text("\n".join([*lines, "another,0,1,one"]) + "\n")
    capsys.readouterr()
    truth = run(classifier, tmp_path / "a", "--videos", *videos, "--every", "0.5", "--events", events)
    assert "1 of its names are none of --videos: another" in capsys.readouterr().out
    assert truth["true_label"][2] == wrong
    rows = {row["name"]: row for row in json.loads((tmp_path / "a/agreement.json").read_text())["rows"][:3]}
    assert rows[str(videos[0])]["accuracy"] == pytest.approx(1 - 1 / first.sum())
    assert rows[str(videos[1])]["accuracy"] == rows[str(videos[1])]["f1_50"] == 1.0
    assert rows["all files"]["accuracy"] == pytest.approx(1 - 1 / len(first))
    assert rows["all files"]["moments"] == len(first)
    check_page(tmp_path / "a/timeline.html", has_classes=True)
    page = (tmp_path / "a/timeline.html").read_text()
    assert "<b>three</b>" not in page
    assert page.count('class="track"') == 2
    assert page.count('class="ribbon"') == 4
    for name in re.findall(r'<a href="#(f[\d-]+)">', page):
        assert f'id="{name}"' in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def flickering(name: str, true: list[int], wrong: list[int]) -> tuple[Track, list[Event]]:
    """Return a track of a row per second with the true classes, but for wrong rows, and its events."""
    seconds = np.arange(len(true), dtype=float)
    scores = np.eye(3)[[(label + 1) % 3 if i in wrong else label for i, label in enumerate(true)]] * 0.8 + 0.05
    none, curves = np.zeros(0, np.int64), {"novelty": np.zeros(len(true))}
    events = [Event(name, i, i + 1.0, NAMES[label]) for i, label in enumerate(true)]
    return Track(name, seconds, seconds + 1, scores, curves, [], none, none), events


@pytest.mark.parametrize("smoothing", ["median", "hmm"])
def test_smoothing_is_chosen_on_the_other_files(smoothing: Any, tmp_path: Path) -> None:
    """One file flickers and gains by it, phases of the other are too short for it: each gets the other's best."""
    slow, slow_events = flickering("slow", [0] * 30 + [1] * 30, [5, 17, 40])
    fast, fast_events = flickering("fast", [0, 1, 2] * 20, [])
    config = TimelineConfig(("slow", "fast"), "out", run="run", events="x", smooth="auto", smoothing=smoothing)
    truth = Truth({"slow": slow_events, "fast": fast_events})
    tables = judge(config, NAMES, truth, [slow, fast], tmp_path)
    smoothed = {row["name"]: row for row in tables[0][3:]}
    assert smoothed["slow"]["smooth_s"] == 0.0
    assert smoothed["fast"]["smooth_s"] > 0.0
    assert smoothed["fast"]["accuracy"] < 1.0
    assert slow.predicted[5] == 1
    again = judge(replace(config, smooth=5.0), NAMES, truth, [slow, fast], tmp_path)
    assert again[0][3]["accuracy"] == 1.0 > again[0][0]["accuracy"] == 57 / 60
    assert (tmp_path / "agreement.csv").read_text().count("\n") == 1 + 6 + 3


def test_a_multi_label_classifier_is_judged_by_average_precision(tmp_path: Path) -> None:
    """Two classes at once; precisions by hand. A window that cannot be read counts nowhere."""
    track, _ = flickering("a", [0] * 5, [])
    track.scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.7, 0.5], [0.3, 0.6, 0.5], [0.2, 0.9, 0.5], [np.nan] * 3])
    events = [Event("a", 0, 1, NAMES[0]), Event("a", 2, 5, NAMES[0]), Event("a", 1, 3, NAMES[1])]
    config = TimelineConfig(("a",), "out", run="run", events="x")
    tables = judge(config, NAMES, Truth({"a": events}), [track], tmp_path, multi_label=True)
    figures = {(row["name"], row["class"]): (row["moments"], row["average_precision"]) for row in tables[0]}
    first, second = (1 + 2 / 3 + 3 / 4) / 3, (1 / 2 + 2 / 3) / 2
    for name in ("a", "all files"):
        assert figures.pop((name, NAMES[0])) == (3, pytest.approx(first))
        assert figures.pop((name, NAMES[1])) == (2, pytest.approx(second))
        assert figures.pop((name, "mean of classes")) == (5, pytest.approx((first + second) / 2))
    assert not figures
    assert len(track.predicted) == 0


def test_a_file_that_cannot_be_read_is_not_judged(tmp_path: Path) -> None:
    good, events = flickering("good", [0, 1, 2], [])
    none = np.full(1, np.nan)
    bad = replace(good, name="bad", start_s=none, end_s=none, scores=np.full((1, 3), np.nan), curves={"novelty": none})
    config = TimelineConfig(("bad", "good"), "out", run="run", events="x")
    tables = judge(config, NAMES, Truth({"bad": events, "good": events}), [bad, good], tmp_path)
    assert [row["name"] for row in tables[0] + tables[1]] == ["good", "all files"] * 2
    assert tables[0][1]["accuracy"] == 1.0
    assert judge(config, NAMES, Truth({"bad": events, "good": []}), [bad, good], tmp_path) == []


def test_a_name_in_a_list_is_that_of_one_file(tmp_path: Path) -> None:
    events = tmp_path / "events.csv"

    def files(*names: str) -> Truth | None:
        events.write_text(
            "name,start_s,end_s,label\n" + "".join(f"{name},{i},{i + 1},x\n" for i, name in enumerate(names))
        )
        return read_truth(
            TimelineConfig(("a/cam.mp4", "b/cam.mp4", "a/v1.mp4"), "out", run="run", events=str(events)), ()
        )

    truth = files("a/cam.mp4", "v1", "v1.mp4", "v1.2", "other")
    assert truth is not None
    assert {video: [event.name for event in mine] for video, mine in truth.events.items()} == {
        "a/cam.mp4": ["a/cam.mp4"],
        "b/cam.mp4": [],
        "a/v1.mp4": ["v1", "v1.mp4"],
    }
    assert truth.unmatched == ("v1.2", "other")
    with pytest.raises(ValueError, match="cam fits 2 of --videos"):
        files("cam")


def test_ribbons_and_curves_lie_at_their_times() -> None:
    """Four windows of two seconds, one per second: a class ends half way between two middles, at 1.5 s of 5."""
    track, _ = flickering("a", [0, 0, 1, 1], [])
    track.end_s = track.start_s + 2
    groups = np.array([0, 1, 2, 3, 4])
    options: dict[str, Any] = {"colours": ["red", "blue", "green"], "class_names": NAMES, "length_s": 5.0}
    drawn = ribbon("predicted", np.array([0, 1, 1, 1]), track, groups, **options)
    assert re.findall(r'x="([\d.]+)" width="([\d.]+)"', drawn) == [("0.00", "300.00"), ("300.00", "700.00")]
    curve = lane("a", [("a", np.array([1.0, 0.5, 0.25, 1.0]))], track, np.array([0, 2, 4]), 5.0)
    assert 'd="M200.00 52.0L200.00 4.0L600.00 76.0L600.00 4.0"' in curve  # the least of each group as well


def test_moments_between_events_are_background_only_if_the_model_knows_it() -> None:
    events = [Event("a", 1.0, 2.0, "x"), Event("a", 3.0, 4.0, "y")]
    moments = np.array([0.5, 1.0, 1.9, 2.0, 3.5, np.nan])
    assert classes_at(events, moments, ["x", "y"]).tolist() == [-1, 0, 0, -1, 1, -1]
    assert classes_at(events, moments, ["background", "x", "y"]).tolist() == [0, 1, 1, 0, 2, -1]
    assert classes_at([], moments, ["background"]).tolist() == [-1] * 6


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (["day one,0,1,eleven"], [], "1 labels.*eleven"),
        (["other,0,1,one"], [], "none of --videos.*other"),
        (["day one,0,2,one", "day one,1,3,two"], [], "lines 2 and 3 overlap"),
        ([], ["--smooth", "auto"], "--smooth auto.*--events"),
        ([], ["--videos", "{0}", "{0}"], "given twice"),
        ([], ["--layer", "9"], "layer=9"),
        ([], ["--videos", "{0}", "nosuch.mp4"], "1 files are not there: nosuch.mp4"),
    ],
)
def test_what_cannot_be_is_refused(
    classifier: Path,
    videos: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[str],
    options: list[str],
    said: str,
) -> None:
    events = tmp_path / "events.csv"
    events.write_text("\n".join(["name,start_s,end_s,label", *rows]) + "\n")
    given = ["--events", str(events)] if rows else []
    command = ["--run", str(classifier), "--out", str(tmp_path / "out"), "--videos", str(videos[0]), *SAMPLING]
    with pytest.raises(SystemExit) as stopped:
        timeline.main([*command, *given, *(option.format(*videos) for option in options)])
    assert stopped.value.code == 2
    assert re.search(said, capsys.readouterr().err)


def test_classes_that_there_are_none_of_are_not_smoothed(
    tiny_model: Path, videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(tiny_model, tmp_path / "out", "--videos", videos[1], "--smooth", "5")
    assert stopped.value.code == 2
    assert re.search("--smooth 5.*no classifier", capsys.readouterr().err)


def test_an_image_vit_gives_novelty_and_changes(videos: tuple[Path, Path], tmp_path: Path) -> None:
    model = ("--encoder", "timm:test_vit", "--encoder_weights", "none", "--encoder_frames", "2", "--encoder_size", "32")
    command = [*model, "--out", str(tmp_path), *SAMPLING, "--videos", str(videos[0]), "--every", "0.5", "--pool", "cls"]
    assert timeline.main(command) == 0
    table = pq.read_table(tmp_path / "timeline.parquet").to_pydict()
    assert "surprise" not in table
    centres = (np.array(table["start_s"]) + table["end_s"]) / 2
    changed = [centre for centre, change in zip(centres, table["change"], strict=True) if change is not None]
    assert changed == pytest.approx([3.25, 5.25], abs=0.3)


def test_a_file_that_cannot_be_read_is_said_and_the_others_go_on(
    tiny_model: Path, videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    table = run(tiny_model, tmp_path / "out", "--videos", broken, videos[1], code=1)
    assert table["name"][0] == str(broken)
    assert table["surprise"][0] is table["novelty"][0] is table["start_s"][0] is None
    assert len(table["name"]) > 3
    assert "broken.mp4" in capsys.readouterr().err
    assert "cannot be read" in (tmp_path / "out/timeline.html").read_text()


def test_files_of_other_programs_are_not_replaced(
    tiny_model: Path, videos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "timeline.html").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run(tiny_model, tmp_path, "--videos", videos[1])
    assert stopped.value.code == 2
    assert "timeline.html" in capsys.readouterr().err
    assert (tmp_path / "timeline.html").read_text() == "mine"
