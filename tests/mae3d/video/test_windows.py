"""mae3d.video.windows: the right frames of every window, of a file that is opened once and decoded once."""

import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae3d.model.config import EncoderConfig
from mae3d.video import clip
from mae3d.video.clip import VideoError, open_clips, read_clip
from mae3d.video.reader import Video, open_video
from mae3d.video.windows import VideoBatch, VideoClips, WindowPlan, plan_windows, window_around
from tests.support.media import frame_number, make_video

SIZE = 64
CONFIG = EncoderConfig(preset="mae_vit_tiny_patch16", img_size=SIZE, num_frames=4, depth=1)


def numbers(clip: np.ndarray) -> list[int]:
    return [frame_number(Image.fromarray(frame)) for frame in clip]


def decoded(plan: WindowPlan, *, batch_size: int = 3) -> list[VideoBatch]:
    clips = VideoClips(plan.windows, size=SIZE, batch_size=batch_size)
    batches = list(clips)
    clips.close()
    return batches


def all_numbers(plan: WindowPlan) -> list[list[int]]:
    return [numbers(clip) for batch in decoded(plan) for clip in batch.clips.reshape(-1, *batch.clips.shape[2:])]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a video of 20 s at 10 frames per second, with a keyframe every 0.8 s."""
    return str(make_video(tmp_path_factory.mktemp("video") / "a.mp4", 200, size=(SIZE, SIZE), fps=10))


@pytest.mark.parametrize("every", [0.1, 0.4, 0.9, 1.2, 5.0])
def test_a_window_begins_at_every_multiple(video: str, every: float) -> None:
    """Overlapping, touching and far apart: the same frames as from the beginning of each window on."""
    plan = plan_windows([video], num_frames=4, step_s=0.3, every_s=every)
    starts = np.arange(0, 19.9 - 0.9 + 1e-9, every)
    assert all_numbers(plan) == [[round(10 * start) + 3 * i for i in range(4)] for start in starts]
    np.testing.assert_allclose([window.start_s for window in plan.windows], starts, atol=1e-6)
    np.testing.assert_allclose([window.end_s for window in plan.windows], starts + 1.0, atol=1e-6)
    assert [window.first_frame for window in plan.windows] == [round(10 * start) for start in starts]


def test_one_window_is_what_read_clip_reads(video: str) -> None:
    plan = plan_windows([video], num_frames=4, step_s=0.2)
    (batch,) = decoded(plan)
    assert np.array_equal(batch.clips[:, 0], read_clip(video, CONFIG, sampling_rate=6, target_fps=30).numpy())
    assert (plan.windows[0].first_frame, plan.windows[0].start_s) == (96, pytest.approx(9.6))


def test_the_clips_of_a_window_are_spread_from_the_first_to_the_last(video: str) -> None:
    plan = plan_windows([video], num_frames=4, step_s=0.3, num_clips=3)
    (batch,) = decoded(plan)
    assert [numbers(clip)[0] for clip in batch.clips[0]] == [0, 95, 190]
    assert (plan.windows[0].start_s, plan.windows[0].end_s) == (0, pytest.approx(20))


def test_a_variable_rate_goes_by_time(tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 0.3, 0.4, 1.4, 2.4, 3.4, 3.5, 3.6, 3.7, 3.8, 4.8]
    path = make_video(tmp_path / "a.mkv", len(times), size=(SIZE, SIZE), times=times)
    plan = plan_windows([str(path)], num_frames=2, step_s=1.0, every_s=1.0)
    shown = [[times[number] for number in of_window] for of_window in all_numbers(plan)]
    assert shown == [[0, 0.4], [0.4, 1.4], [1.4, 2.4], [2.4, 3.8]]
    assert [window.start_s for window in plan.windows] == pytest.approx([0, 0.4, 1.4, 2.4])
    assert [window.end_s for window in plan.windows] == pytest.approx([1.4, 2.4, 3.4, 4.8])


def test_a_short_video_has_one_window_that_begins_again(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 3, size=(SIZE, SIZE), fps=10)
    plan = plan_windows([str(path)], num_frames=4, step_s=0.1, every_s=0.1)
    assert all_numbers(plan) == [[0, 1, 2, 0]]
    assert (plan.windows[0].start_s, plan.windows[0].end_s) == (0, pytest.approx(0.3))


@pytest.mark.parametrize("every", [0.2, 0.9, 5.0])
def test_a_file_is_opened_once_and_streamed(video: str, every: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_windows([video], num_frames=4, step_s=0.3, every_s=every)
    opened: list[Path] = []
    frames: list[float] = []
    decode = Video._decode

    def counted(path: Path) -> AbstractContextManager[Video]:
        opened.append(path)
        return open_video(path)

    monkeypatch.setattr(clip, "open_video", counted)
    monkeypatch.setattr(
        Video, "_decode", lambda self, amid: (frames.append(pair[0]) or pair for pair in decode(self, amid))
    )
    decoded(plan)
    assert opened == [Path(video)]
    if every < 1:
        assert len(set(frames)) == len(frames) <= 200  # none twice
    else:
        assert len(frames) < 4 * (10 + 8) + 8  # the windows' own, and what lies before them from a keyframe on


def test_a_selection_of_windows_has_the_same_clips(video: str) -> None:
    """A rank of several gets a few windows here and there."""
    plan = plan_windows([video], num_frames=4, step_s=0.3, every_s=0.5)
    every = np.concatenate([batch.clips for batch in decoded(plan)])
    mine = [*range(3, 6), *range(11, 14), 30]
    selection = decoded(WindowPlan([plan.windows[i] for i in mine], {}))
    assert np.array_equal(np.concatenate([batch.clips for batch in selection]), every[mine])


def test_an_unreadable_file_is_reported_and_has_a_row_without_a_clip(video: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    files = [str(broken), video, str(tmp_path / "missing.mp4")]
    plan = plan_windows(files, num_frames=4, step_s=0.3, every_s=5.0)
    assert [window.path for window in plan.windows] == [files[0], *[video] * 4, files[2]]
    assert list(plan.unreadable) == [files[0], files[2]]
    assert "no such file" in plan.unreadable[files[2]]
    batches = decoded(plan)
    assert np.concatenate([batch.status for batch in batches]).tolist() == [2, 0, 0, 0, 0, 2]
    assert plan.windows[0].start_s is None


def test_damage_in_the_middle_costs_its_frames_alone(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 100, size=(SIZE, SIZE), fps=10, codec="mjpeg", pixel_format="yuvj420p")
    plan = plan_windows([str(path)], num_frames=4, step_s=0.1, every_s=0.4)
    whole = [batch.clips for batch in decoded(plan)]
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data) - 3) if data[i : i + 3] == b"\xff\xd8\xff"]
    for number in (20, 41, 60, 61, 62, 63):
        size = starts[number + 1] - starts[number] - 40  # the container's own bytes stay
        data[starts[number] : starts[number] + size] = bytes(size)
    path.write_bytes(data)
    batches = decoded(plan)
    status = np.concatenate([batch.status for batch in batches])
    clips = np.concatenate([batch.clips for batch in batches])
    differing = (clips != np.concatenate(whole)).reshape(len(clips), -1).any(1).nonzero()[0].tolist()
    assert differing == [5, 10, 15]
    assert status.nonzero()[0].tolist() == [15]
    assert np.concatenate([batch.replaced for batch in batches]).nonzero()[0].tolist() == [5, 10]


def test_the_frame_behind_a_damaged_last_one_is_the_next_windows(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is decoded in search of the last one, and no keyframe leads to it again."""
    decode = Video._decode
    plan = plan_windows([video], num_frames=4, step_s=0.1, every_s=0.4)
    lost = plan.windows[6].seconds[0, 3]  # number 27; keyframes are 24 and 32
    monkeypatch.setattr(Video, "_decode", lambda self, amid: (pair for pair in decode(self, amid) if pair[0] != lost))
    replaced = np.concatenate([batch.replaced for batch in decoded(plan)])
    assert replaced.nonzero()[0].tolist() == [6]
    assert all_numbers(plan)[6:8] == [[24, 25, 26, 26], [28, 29, 30, 31]]


def test_a_file_that_vanished_meanwhile_gives_no_clip(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30, size=(SIZE, SIZE), fps=10)
    plan = plan_windows([str(path)], num_frames=4, step_s=0.3, every_s=1)
    path.unlink()
    assert {int(status) for batch in decoded(plan) for status in batch.status} == {2}


def test_a_disk_that_goes_stops_the_clips_and_leaves_no_empty_rows(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without a vector would stay so after the disk has come back."""
    plan = plan_windows([video], num_frames=4, step_s=0.3, every_s=5.0)

    def fails(path: Path) -> AbstractContextManager[Video]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(clip, "open_video", fails)
    for call in (lambda: decoded(plan), lambda: plan_windows([video], num_frames=4, step_s=0.3)):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == errno.ESTALE


def test_a_window_lies_around_a_moment_or_at_the_nearest_end(video: str) -> None:
    with open_clips(video) as opened:
        seconds = opened.frame_times().seconds
    last = seconds[-1] - 0.3  # the beginning of the last clip of 4 frames, 0.1 s apart
    for at_s, start_s in ((1.0, 0.85), (0.0, 0.0), (seconds[-1], last)):
        window = window_around(video, at_s, num_frames=4, step_s=0.1)
        assert window.start_s == pytest.approx(start_s, abs=0.06)
        assert window.seconds.shape == (1, 4)
    with pytest.raises(VideoError, match=r"second 99 .*beyond its end"):
        window_around(video, 99, num_frames=4, step_s=0.1)
