"""mae3d.video.reader: frames in order at their times, from any container, whatever is damaged."""

import errno
import gc
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mae3d.video.container import open_container
from mae3d.video.errors import MediaError
from mae3d.video.orientation import orientation
from mae3d.video.reader import Video, effective_fps, open_video
from mae3d.video.stream import CLOCK_FRAMES
from preprocess.encode.sample import encode_sample
from preprocess.encode.video_frames import FrameEncoder
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from tests.support.media import frame_number, make_video, numbered_image, picture_of, psnr, rotate_mp4

SIZE = (64, 48)


def read(video: Video, start_s: float = 0.0, stop_s: float = math.inf) -> list[tuple[float, int]]:
    """Return (time, number shown) of the frames of a span."""
    pairs = video.frames(start_s, stop_s)
    return [(round(t, 3), frame_number(picture_of(frame, SIZE))) for t, frame in pairs]


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        *(("mpeg4", "a.mp4"), ("libx264", "a.mp4"), ("mpeg4", "a.avi")),
        *(("libvpx-vp9", "a.webm"), ("mpeg2video", "a.ts")),
        *(("libx264", "a.avi"), ("libx264", "a.asf"), ("libx264", "a.mxf")),  # orders that FFmpeg makes up
    ],
)
def test_all_frames_come_in_order_at_their_times(tmp_path: Path, codec: str, name: str) -> None:
    path = make_video(tmp_path / name, 30, codec=codec, fps=25)
    with open_video(path) as video:
        assert video.facts.fps == 25
        frames = read(video)
    assert [number for _, number in frames] == list(range(30))
    assert [time for time, _ in frames] == pytest.approx([i / 25 for i in range(30)], abs=2e-3)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_any_span_is_what_the_whole_video_has_there(tmp_path: Path, codec: str) -> None:
    path = make_video(tmp_path / "a.mp4", 40, codec=codec, fps=10, gop=12)
    for first in range(0, 40, 7):
        with open_video(path) as video:
            frames = read(video, first / 10 - 0.05, first / 10 + 0.95)
        # And the frame before, and the one after.
        assert [number for _, number in frames] == list(range(max(first - 1, 0), min(first + 11, 40)))


def test_fault_12_times_decide_not_counting(tmp_path: Path) -> None:
    times = [0.5, 0.6, 0.7, 1.7, 1.8, 2.5]
    path = make_video(tmp_path / "a.mp4", 6, times=times)
    with open_video(path) as video:
        assert [time for time, _ in read(video)] == [0.0, 0.1, 0.2, 1.2, 1.3, 2.0]
    with open_video(path) as video:
        assert video.measured_facts().duration_s == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mov", "mpeg4"), ("avi", "mpeg4")])
def test_a_length_that_is_true_is_borne_out_by_a_few_packets(tmp_path: Path, suffix: str, codec: str) -> None:
    places: list[str] = []
    path = make_video(tmp_path / f"a.{suffix}", 200, codec=codec, fps=20, gop=200)
    with open_video(path, progress=places.append) as video:
        assert video.measured_facts().duration_s == pytest.approx(10.0, abs=0.06)
    assert len(places) < 10  # and not all that follow on the only keyframe


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
        ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
        ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
    ],
)
def test_fault_12_pictures_are_upright(
    tmp_path: Path, matrix: tuple[int, int, int, int], turned: Image.Transpose
) -> None:
    path = make_video(tmp_path / "a.mp4", 2)
    rotate_mp4(path, matrix)
    with open_video(path) as video:
        _, frame = next(video.frames())
        expected = numbered_image(0, SIZE).transpose(turned)
        assert orientation(frame)[0] == (matrix[0] == 0)
        assert video.upright_size(frame) == expected.size
        picture = picture_of(frame, expected.size)
    assert psnr(picture, expected) > 25


def test_fault_12_ten_bits_and_odd_sizes_become_plain_rgb(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 3, size=(65, 49), codec="ffv1", pixel_format="yuv444p10le")
    with open_video(path) as video:
        _, frame = next(video.frames())
        picture = picture_of(frame, (65, 49))
    assert picture.mode == "RGB"
    assert psnr(picture, numbered_image(0, (65, 49))) > 25


def test_the_times_of_frames_are_those_of_the_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as many frames are decoded as it takes to check the clock."""
    path = make_video(tmp_path / "a.mp4", 200, codec="libx264", fps=25, gop=20)
    decoded: list[float] = []
    decode = Video._decode
    monkeypatch.setattr(
        Video, "_decode", lambda self, amid: (decoded.append(pair[0]) or pair for pair in decode(self, amid))
    )
    with open_video(path) as video:
        seconds, keyframes = video.frame_times()
        assert len(decoded) <= CLOCK_FRAMES
        assert seconds == [pair[0] for pair in video.frames()]
    assert seconds == pytest.approx([i / 25 for i in range(200)])
    assert keyframes == pytest.approx([i * 20 / 25 for i in range(10)])


def test_an_order_that_is_made_up_is_not_believed(tmp_path: Path) -> None:
    with open_video(make_video(tmp_path / "a.avi", 50, codec="libx264", fps=25)) as video:
        times = video.frame_times()
    assert times.seconds == pytest.approx([i / 25 for i in range(50)])
    assert times.keyframes == []  # only the start of the file is sure


def test_packets_before_an_edit_list_begins_are_no_frames(media: Path) -> None:
    with open_video(media / "videos" / "odd" / "discard_first_keyframe.mp4") as video:
        seconds, keyframes = video.frame_times()
    assert (len(seconds), seconds[0], len(keyframes) > 0) == (25, 0.0, True)


def test_broken_middle_keeps_the_rest_and_says_so(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 40, codec="libx264", gop=4)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    broken = packets[17]
    data = bytearray(path.read_bytes())
    data[broken.pos : broken.pos + broken.size] = b"\xff" * broken.size
    path.write_bytes(data)
    with open_video(path) as video:
        frames = read(video)
        damage = video.damage
    assert 32 <= len(frames) < 40
    # What follows a loss may show its traces until the next keyframe, but a gap shifts nothing.
    assert all(number == round(10 * time) for time, number in frames if not 1.5 < time < 2.0)
    assert {0, 1, 38, 39} <= {number for _, number in frames}
    assert damage.packets + damage.frames >= 1
    assert 1.0 < damage.first_s < 2.5
    assert "the first at" in str(damage)


def test_a_file_cut_short_gives_what_is_there(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 40, gop=4)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_video(path) as video:
        numbers = [number for _, number in read(video)]
    assert numbers == list(range(len(numbers)))
    assert 5 < len(numbers) < 40


@pytest.mark.parametrize(("codec", "name"), [("mjpeg", "a.avi"), ("prores_ks", "a.mov")])
def test_a_damaged_picture_that_stands_alone_is_left_out(tmp_path: Path, codec: str, name: str) -> None:
    """Else its missing part would show what was in memory before, and no two builds would be the same."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv422p10le"
    path = make_video(tmp_path / name, 12, codec=codec, pixel_format=pixels)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    broken = packets[5]
    data = bytearray(path.read_bytes())
    middle = broken.pos + broken.size // 2
    data[middle : broken.pos + broken.size] = bytes(broken.pos + broken.size - middle)
    path.write_bytes(data)
    with open_video(path) as video:
        assert [number for _, number in read(video)] == [0, 1, 2, 3, 4, *range(6, 12)]
        assert video.damage.packets + video.damage.frames == 1


def test_flipped_bits_of_a_picture_that_stands_alone_are_noticed(tmp_path: Path) -> None:
    """FFmpeg keeps most of such pictures unless it is strict; few of libjpeg's codes are impossible."""
    path = make_video(tmp_path / "a.avi", 12, codec="mjpeg", pixel_format="yuvj420p")
    with av.open(str(path)) as container:
        broken = [packet for packet in container.demux(video=0) if packet.size][5]
    whole = path.read_bytes()
    left_out = 0
    for seed in range(12):
        data = bytearray(whole)
        for at in np.random.default_rng(seed).integers(broken.size * 3 // 4, broken.size - 4, 40):
            data[broken.pos + at] ^= 4
        path.write_bytes(data)
        with open_video(path) as video:
            num_frames = len(list(video.frames()))
            assert num_frames + video.damage.packets == 12
            left_out += video.damage.packets
    assert left_out >= 3


@pytest.mark.slow
def test_frames_are_freed_at_once(tmp_path: Path) -> None:
    """PyAV's frames and their side data hold each other; hundreds of them wait for the garbage collector."""
    path = make_video(tmp_path / "a.mp4", 40)
    rotate_mp4(path, (0, 1, -1, 0))
    gc.collect()
    gc.disable()
    try:
        with open_video(path) as video:
            encoder = FrameEncoder(90)
            for _, frame in video.frames():
                width, height = video.upright_size(frame)
                encoder.encode(frame, width=width, height=height)
            alive = sum(type(one) is av.VideoFrame for one in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 5


def write_junk(path: Path) -> None:
    path.write_bytes(b"no video at all" * 100)


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_without_moov(path: Path) -> None:
    make_video(path, 10)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov")])


def write_playlist(path: Path) -> None:
    make_video(path.with_name("part.ts"), 10, codec="mpeg2video", fps=25)
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.ts\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize(
    ("name", "reason"), [("a.mp4", "no_video"), ("a.mkv", "unreadable"), ("a.ts", "unreadable"), ("a.avi", "no_frames")]
)
def test_fault_12_a_video_without_frames_is_refused_whatever_its_container(
    tmp_path: Path, name: str, reason: str
) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    row = PlannedSample(0, 0, "video", 0, name, name, [], "")
    stored: list[bytes] = []
    with pytest.raises(MediaError) as caught:
        encode_sample(row, [tmp_path / name], settings=Settings(), sink=stored.append)
    assert (caught.value.reason, stored) == (reason, [])


def test_a_container_that_cannot_jump_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A span costs the frames before it, and a jump is tried for the first span only."""
    path = make_video(tmp_path / "a.mp4", 40, gop=400)
    jumps = []

    class Container:
        def __init__(self, opened: Any) -> None:
            self._opened = opened

        def __getattr__(self, name: str) -> Any:
            return getattr(self._opened, name)

        def seek(self, *_: object, **__: object) -> None:
            jumps.append(1)
            raise av.error.OSError(29, "Illegal seek")

    def opened(path: Path, max_pixels: int) -> tuple[Any, Any]:
        container, stream = open_container(path, max_pixels)
        return Container(container), stream

    monkeypatch.setattr("mae3d.video.stream.open_container", opened)
    with open_video(path) as video:
        for first in (10, 20, 30):
            assert [number for _, number in read(video, first / 10, first / 10 + 0.15)] == list(
                range(first - 1, first + 3)
            )
    assert len(jumps) == 1


@pytest.mark.parametrize(
    ("write", "reason", "message"),
    [
        (lambda path: None, "missing_file", "no such file"),
        (lambda path: path.touch(), "unreadable", "."),
        (write_junk, "unreadable", "Invalid data"),
        (write_without_moov, "unreadable", "moov atom not found"),
        (write_audio, "no_video", "no video stream"),
        (write_playlist, "unreadable", "."),
    ],
)
def test_fault_12_what_is_no_video_is_refused_with_the_reason(
    tmp_path: Path, write: object, reason: str, message: str
) -> None:
    path = tmp_path / "clip.mp4"
    write(path)  # type: ignore[operator]
    with pytest.raises(MediaError, match=message) as caught, open_video(path):
        pass
    assert caught.value.reason == reason
    assert str(tmp_path) not in str(caught.value)  # machines' paths do not belong in datasets


def test_fault_37_a_disk_that_goes_while_a_video_is_read_is_not_the_end_of_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg takes some errors of the disk for the end of the file: then the file is read once more."""
    path = make_video(tmp_path / "a.mp4", 9)

    def fails(number: int) -> Callable[..., Any]:
        def opened(*_: object, **__: object) -> Any:
            raise OSError(number, os.strerror(number), str(path))

        return opened

    for number, stops in ((errno.ESTALE, True), (errno.ETIMEDOUT, True), (errno.EIO, False)):
        with monkeypatch.context() as patched, open_video(path) as video:
            patched.setattr(Path, "open", fails(number))
            with pytest.raises(OSError) if stops else nullcontext():
                assert len(list(video.frames())) == 9


def test_fault_11_a_giant_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 2)
    with pytest.raises(MediaError, match="64x48 pixels") as caught, open_video(path, max_pixels=64 * 48 - 1):
        pass
    assert caught.value.reason == "too_large"


def test_names_are_files_not_protocols(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 3)
    odd = path.rename(tmp_path / "concat:http:näme %03d.mp4")
    with open_video(odd) as video:
        assert len(read(video)) == 3


def test_a_declared_rate_is_kept_if_the_times_agree() -> None:
    assert effective_fps((0.0, 2.75), 34, 12.0) == 12.0
    assert effective_fps((0.0, 2.752), 34, 12.0) == 12.0  # times in milliseconds
    assert effective_fps((0.0, 5.5), 34, 12.0) == pytest.approx(6.0)
    assert effective_fps((0.0, 0.0), 1, 12.0) == 12.0
