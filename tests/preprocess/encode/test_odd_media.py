"""What becomes of odd videos: files in, stored frames and remarks out."""

import math
import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from mae3d.video.errors import MediaError
from mae3d.video.reader import KeptVideo, open_video
from preprocess.encode.images import decode_image
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from preprocess.workers.decoder import decoder
from tests.support.media import make_video
from tests.support.odd_media import (
    COLOURS,
    MATRICES,
    make_colours,
    make_resolution_switch,
    make_tagged,
    numbers,
    store,
)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_fault_12_colours_come_out_as_the_stream_says(tmp_path: Path, matrix: str, full: bool) -> None:
    _, stored = store(make_colours(tmp_path / "a.mkv", matrix, full=full), quality=100)
    seen = [np.asarray(decode_image(data), int)[16, 16] for data in stored]
    assert np.abs(np.array(seen) - COLOURS).max() <= 4


def test_fault_12_what_names_no_matrix_is_taken_for_bt601_in_limited_range(tmp_path: Path) -> None:
    for matrix, near in (("bt601", True), ("bt709", False)):
        _, stored = store(make_colours(tmp_path / "a.mkv", matrix, full=False, tagged=False), quality=100)
        seen = [np.asarray(decode_image(data), int)[16, 16] for data in stored]
        assert (np.abs(np.array(seen) - COLOURS).max() <= 4) == near


def hdr(transfer: int, primaries: int) -> object:
    def change(stream: av.VideoStream, frame: av.VideoFrame | None) -> None:
        target = stream.codec_context if frame is None else frame
        target.color_trc, target.color_primaries = transfer, primaries

    return change


def widen(stream: av.VideoStream, frame: av.VideoFrame | None) -> None:
    if frame is None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (hdr(16, 9), ("hdr", "PQ, BT.2020; stored without tone mapping")),
        (hdr(18, 9), ("hdr", "HLG, BT.2020; stored without tone mapping")),
        (hdr(1, 1), None),
        (widen, ("pixel_aspect", "a pixel is 1.45 times as wide as high; stored as if it were square")),
    ],
    ids=["pq", "hlg", "bt709", "pixel_aspect"],
)
def test_fault_12_what_is_stored_as_coded_is_marked(
    tmp_path: Path, change: object, remark: tuple[str, str] | None
) -> None:
    facts, stored = store(make_tagged(tmp_path / "a.mkv", 5, change, "mpeg4" if change is widen else "ffv1"))  # type: ignore[arg-type]
    assert numbers(stored) == list(range(5))
    assert facts.remark == remark


def test_fault_12_interlaced_frames_are_stored_as_one_and_marked(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.ts"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ilme+ildct", "field_order": "tt"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for value in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * value, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    facts, stored = store(tmp_path / "a.ts")
    assert decode_image(stored[0]).size == (64, 48)
    assert facts.remark == ("interlaced", "10 of 10 frames are interlaced; both fields are stored as one")


def test_fault_11_a_switch_of_size_in_the_middle_is_scaled_to_the_first(tmp_path: Path) -> None:
    facts, stored = store(make_resolution_switch(tmp_path / "a.ts"))
    assert {decode_image(data).size for data in stored} == {(64, 48)}
    assert numbers(stored) == [*range(10), *range(10)]  # the clock that begins anew loses nothing
    assert facts.num_frames == 20
    assert facts.remark == ("mixed_sizes", "10 of 20 frames are not of the first one's size; scaled to 64x48")


def test_fault_11_a_video_that_grows_beyond_the_limit_is_cut_off_there(tmp_path: Path) -> None:
    facts, stored = store(make_resolution_switch(tmp_path / "a.ts"), max_pixels=64 * 48)
    assert numbers(stored) == list(range(10))
    assert facts.remark is not None
    assert facts.remark[0] == "damaged"


CONTAINERS = [
    *(("mpeg4", "a.mp4"), ("libx264", "a.mkv"), ("libx264", "a.ts"), ("libx264", "a.flv"), ("libx264", "a.avi")),
    *(("libx264", "a.h264"), ("mpeg2video", "a.ts"), ("mpeg2video", "a.mpg"), ("mpeg2video", "a.m2v")),
    *(("mpeg1video", "a.mpg"), ("mpeg4", "a.nut"), ("libvpx-vp9", "a.webm"), ("wmv2", "a.wmv")),
    *(("mjpeg", "a.avi"), ("mjpeg", "a.mjpeg"), ("mpeg2video", "a.mxf"), ("gif", "a.gif"), ("rawvideo", "a.y4m")),
]


@pytest.mark.parametrize(("codec", "name"), CONTAINERS, ids=[f"{name[2:]}-{codec}" for codec, name in CONTAINERS])
def test_fault_12_pieces_of_any_container_are_the_whole_and_cost_one_pass(
    tmp_path: Path, codec: str, name: str
) -> None:
    """Whether a piece is jumped to or goes on where the one before ended, its frames and times are the same."""
    path = make_video(tmp_path / name, 90, codec=codec, fps=25, gop=12, pixel_format=_pixels(codec))
    packets = 0

    def count(place: str) -> None:
        nonlocal packets
        packets += 1

    def frames(video: object, start_s: float, stop_s: float) -> list[tuple[float, bytes]]:
        pairs = video.frames(start_s, stop_s)  # type: ignore[attr-defined]
        return [(round(t, 3), bytes(frame.planes[0])) for t, frame in pairs if start_s <= max(t, 0) and t < stop_s]

    with open_video(path) as video:
        whole = frames(video, 0.0, math.inf)
    assert [time for time, _ in whole] == pytest.approx([i / 25 for i in range(90)], abs=2e-3)
    cuts = [0.0, *(k * 0.6 - 0.02 for k in range(1, 6)), math.inf]
    jumped, went_on = [], []
    kept = KeptVideo()
    for start_s, stop_s in pairwise(cuts):
        with open_video(path) as video:
            jumped += frames(video, start_s, stop_s)
        with kept.open(path, max_pixels=1 << 26, progress=count) as video:
            went_on += frames(video, start_s, stop_s)
    kept.close()
    assert jumped == whole
    assert went_on == whole
    assert packets <= 90 + 5


def test_a_kept_video_is_not_the_file_that_replaced_it(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 9)
    kept = KeptVideo()
    for count in (9, 4, 4):
        with kept.open(path, max_pixels=1 << 26, progress=lambda place: None) as video:
            assert len(list(video.frames())) == count
        make_video(tmp_path / "b.mp4", 4).replace(path)
    kept.close()


def test_a_video_that_is_asked_for_twice_is_given_twice(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 9, fps=10)
    kept = KeptVideo()
    for start_s, stop_s in ((0.0, math.inf), (0.0, math.inf), (0.25, 0.55), (0.05, 0.35)):
        with kept.open(path, max_pixels=1 << 26, progress=lambda place: None) as video:
            times = [time for time, _ in video.frames(start_s, stop_s)]
        expected = [i / 10 for i in range(9) if start_s - 0.1 < i / 10 < stop_s + 0.1]
        assert times == pytest.approx(expected)
    kept.close()


def test_fault_12_all_the_odd_footage_there_is(media: Path) -> None:
    """Real files of every kind: how many frames each gives, of which size, and what is said of it."""
    expected = {
        "animated.gif": (4, 64, 48, None),
        "av1_video.mkv": (125, 455, 256, None),
        "corrupted.mp4": (48, 455, 256, "damaged"),
        "discard_first_keyframe.mp4": (25, 64, 64, None),
        "h264_10bits.mp4": (30, 200, 200, None),
        "h265_video.mp4": (10, 128, 128, None),
        "nasa_13013_hdr.mp4": (325, 320, 180, "hdr"),
        "nasa_13013_rotated.mp4": (17, 256, 455, None),
        "test_non_zero_start.mp4": (12, 200, 112, None),
        "testsrc2_odd_height_and_width_mpeg2.mp4": (10, 121, 81, None),
        "testsrc2_odd_height_and_width_vp9.mp4": (25, 321, 241, None),
        "unordered.mov": (4, 50, 50, None),
        "video_0.mov": (3, 454, 256, None),
        "video_180.mov": (3, 454, 256, None),
        "video_270.mov": (3, 256, 454, None),
        "video_90.mov": (3, 256, 454, None),
    }
    found = {}
    for path in sorted((media / "videos" / "odd").iterdir()):
        facts, stored = store(path)
        assert facts.num_frames == len(stored)
        found[path.name] = (facts.num_frames, facts.width, facts.height, facts.remark[0] if facts.remark else None)
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_fault_12_broken_files_of_every_kind_come_out_the_same_twice(tmp_path: Path, seed: int) -> None:
    """Bits flipped, parts lost, zeroed or doubled: each gives frames or a reason, whatever was decoded before it."""
    rng = random.Random(seed)
    sources = [
        make_video(tmp_path / f"{codec}_{name}", 60, codec=codec, fps=25, gop=12, pixel_format=_pixels(codec))
        for codec, name in CONTAINERS
        if codec != "rawvideo"
    ]
    outcomes: list[list[object]] = [[], []]
    broken = []
    for number in range(80):
        source = rng.choice(sources)
        path = tmp_path / f"broken_{number}{source.suffix}"
        path.write_bytes(_break(bytearray(source.read_bytes()), rng))
        broken.append(path)
    for turn, paths in enumerate((broken, broken[::-1])):
        for path in paths:
            outcomes[turn].append(_outcome(path, tmp_path / "tar"))
        decoder().close()
    assert outcomes[0] == outcomes[1][::-1]
    reasons = {outcome[0] for outcome in outcomes[0]}  # type: ignore[index]
    assert "stored" in reasons
    assert not reasons & {"crashed", "timeout"}


def _pixels(codec: str) -> str:
    return {"gif": "bgr8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")


def _break(data: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    length = rng.randrange(1, len(data) // 4)
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.choice([1, 10, 200])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + length] = bytes(len(data[at : at + length]))
    else:
        data[at:at] = data[at : at + length]
    return bytes(data)


def _outcome(path: Path, tar: Path) -> tuple[object, ...]:
    tar.write_bytes(b"")
    sample = PlannedSample(0, 0, "video", 0, path.name, path.name, [], "")
    try:
        written = decoder().write(sample, [path], settings=Settings(), tar=tar, start=0, first=True)
    except MediaError as error:
        return error.reason, str(error)
    return "stored", written.facts.remark, written.crc32s
