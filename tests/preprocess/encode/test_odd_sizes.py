"""Frames of odd sizes, down to one pixel: nothing beyond a plane is read, and nothing undefined is stored."""

import hashlib
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image

from mae3d.video.clip import centred
from mae3d.video.errors import MediaError, refuse_unconvertible
from mae3d.video.orientation import turned
from mae3d.video.pictures import SCALING
from mae3d.video.reader import open_video
from preprocess.encode.images import decode_image, encode_planes
from preprocess.encode.video_frames import FrameEncoder
from tests.support import launch
from tests.support.guard import ENDS, guarded
from tests.support.media import make_video
from tests.support.odd_media import store

SIDES = (1, 2, 3, 4, 15, 16, 17, 31)
SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (33, 25), (33, 24), (32, 25), (48, 33)]  # width, height
# Bytes of a pixel in each plane; two pixels share four bytes of yuyv422 and uyvy422.
FORMATS = {
    **dict.fromkeys(("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv411p", "yuv440p", "yuva420p"), (1, 1, 1, 1)),
    **dict.fromkeys(("yuv420p10le", "yuv422p10le", "gray10le", "gbrp10le"), (2, 2, 2)),
    **{
        "nv12": (1, 2),
        "nv24": (1, 2),
        "nv42": (1, 2),
        "p010le": (2, 4),
        "gray": (1,),
        "gbrp": (1, 1, 1),
        "ya8": (2,),
        "rgb565le": (2,),
    },
    **{"rgb24": (3,), "bgr24": (3,), "bgra": (4,), "rgb48le": (6,), "yuyv422": (2,), "uyvy422": (2,)},
}
WAYS = list(itertools.product((False, True), repeat=3))


def gradient(width: int, height: int) -> np.ndarray:
    """Colours without edges: JPEG at a high quality keeps them nearly as they are."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + 3 * x, 220 - 4 * y, 90 + 2 * x + y], axis=-1).clip(0, 255).astype(np.uint8)


def frame_of(pixels: np.ndarray, format_name: str, *, filler: int) -> av.VideoFrame:
    """A frame whose lines are filled up with a value, as decoders leave anything behind a line's pixels."""
    height, width = pixels.shape[:2]
    made = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels)).reformat(format=format_name, interpolation=SCALING)
    frame = av.VideoFrame(width, height, format_name)
    for target, source, each in zip(frame.planes, made.planes, FORMATS[format_name], strict=False):
        used = -(-target.width // 2) * 4 if format_name in ("yuyv422", "uyvy422") else target.width * each
        lines: np.ndarray = np.frombuffer(target, np.uint8).reshape(target.height, -1)  # type: ignore[call-overload]
        lines[:] = filler
        lines[:, :used] = np.frombuffer(source, np.uint8).reshape(source.height, -1)[:, :used]  # type: ignore[call-overload]
    return frame


def encode_between_guards() -> int:
    """Encode planes and frames of many sizes, every buffer between forbidden pages; in a process of its own."""
    real, count = simplejpeg.encode_jpeg_yuv_planes, 0

    def checked(y: np.ndarray, cb: np.ndarray, cr: np.ndarray, quality: int) -> bytes:
        nonlocal count
        count += 1
        data = [real(*(guarded(plane, end=end) for plane in (y, cb, cr)), quality) for end in ENDS]
        assert data[0] == data[1] == real(y, cb, cr, quality)
        simplejpeg.decode_jpeg(guarded(np.frombuffer(data[0], np.uint8)), "gray", strict=True)
        return data[0]

    simplejpeg.encode_jpeg_yuv_planes = checked
    for height, width in itertools.product(SIDES, SIDES):
        half = np.full((-(-height // 2), -(-width // 2)), 128, np.uint8)
        encode_planes(np.full((height, width), 128, np.uint8), half, half, quality=90)
    encoder = FrameEncoder(90)  # one for all: frames may change their size in a video
    for format_name, size in itertools.product(FORMATS, SIZES):
        frame = frame_of(gradient(*size), format_name, filler=255)
        for width, height in (size, size[::-1], (21, 13)):
            encoder.encode(frame, width=width, height=height)
    return count


def test_fault_44_no_buffer_is_read_beyond_its_end() -> None:
    count = launch.result_of(launch.call(encode_between_guards), timeout=120)
    assert count == len(SIDES) ** 2 + 3 * len(FORMATS) * len(SIZES)


def convert_all_pixels() -> tuple[set[str], int]:
    """Convert a frame of each format and size that is not refused; in a process of its own, which some would end."""
    encoder, refused, count = FrameEncoder(90), set(), 0
    for name, size in itertools.product(
        sorted(av.video.format.names), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 17)]
    ):
        try:
            frame = av.VideoFrame(*size, name)
        except (ValueError, av.error.FFmpegError):  # of a graphics card
            continue
        try:
            refuse_unconvertible(frame)
        except MediaError:
            refused.add(name[:5])
            continue
        with suppress(av.error.FFmpegError):
            centred(frame, 8, (False, False, False), VideoReformatter())
        with suppress(MediaError):
            encoder.encode(frame, width=size[0], height=size[1])
        count += 1
    return refused, count


def test_no_frame_ends_the_process_that_converts_it() -> None:
    refused, count = launch.result_of(launch.call(convert_all_pixels), timeout=120)
    assert refused == {"bayer", "yaf32"}
    assert count > 1000


def stored_and_shown(video: Path) -> Iterator[bytes]:
    """Yield all that is made of frames of odd sizes: JPEGs to be stored, and squares for models."""
    encoder, reformatter = FrameEncoder(90), VideoReformatter()
    for format_name, size, full in itertools.product(FORMATS, SIZES, (False, True)):
        frame = frame_of(gradient(*size), format_name, filler=0)
        frame.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        frame.colorspace = Colorspace.ITU709
        yield encoder.encode(frame, width=size[0], height=size[1])
        yield encoder.encode(frame, width=size[1], height=size[0])
        yield centred(frame, min(size), (False, False, False), reformatter).tobytes()
    with open_video(video) as opened:
        for _, frame in opened.frames():
            for width, height in ((frame.width, frame.height), (25, 45), (24, 45), (25, 44)):
                yield encoder.encode(frame, width=width, height=height)
            yield centred(frame, frame.width, (True, False, True), reformatter).tobytes()


def digest(video: Path) -> str:
    return hashlib.sha256(b"".join(stored_and_shown(video))).hexdigest()


def test_fault_44_what_memory_held_before_is_never_stored(tmp_path: Path) -> None:
    """glibc fills memory with a value as it is given out and back; it reads which one when a process starts."""
    video = make_video(tmp_path / "a.mkv", 3, size=(51, 91), codec="ffv1")
    command = [sys.executable, "-m", "tests.preprocess.encode.test_odd_sizes", str(video)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = [
        subprocess.Popen(command, env=env | {"MALLOC_PERTURB_": value}, stdout=subprocess.PIPE, text=True)
        for value in ("1", "170", "255")
    ]
    assert {process.communicate(timeout=120)[0].strip() for process in running} == {digest(video)}


@pytest.mark.parametrize("format_name", FORMATS)
def test_fault_44_what_fills_the_lines_of_a_plane_is_never_stored(format_name: str) -> None:
    for size in SIZES:
        for width, height in (size, size[::-1], (21, 13), (20, 14)):
            stored = {
                FrameEncoder(90).encode(
                    frame_of(gradient(*size), format_name, filler=filler), width=width, height=height
                )
                for filler in (0, 170, 255)
            }
            assert len(stored) == 1, (size, (width, height))


@pytest.mark.parametrize("format_name", FORMATS)
def test_fault_44_the_last_row_and_column_are_the_pictures(format_name: str) -> None:
    grey = format_name in ("gray", "gray10le", "ya8")
    for width, height in (size for size in SIZES if min(size) > 2):
        pixels = gradient(width, height)
        frame = frame_of(pixels, format_name, filler=255)
        shown = decode_image(FrameEncoder(100).encode(frame, width=width, height=height))
        side = min(width, height)
        clip = centred(frame, side, (False, False, False), VideoReformatter())
        top, left = -(-(height - side) // 2), -(-(width - side) // 2)
        middle = pixels[top : top + side, left : left + side]
        for got, picture in ((np.asarray(shown, int), pixels), (clip.astype(int), middle)):
            expected = np.asarray(Image.fromarray(picture).convert("L"))[..., None] if grey else picture
            for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1], np.s_[:]):
                assert np.abs(got[edge] - expected[edge]).max() <= 14, (width, height)  # rgb565le has five bits


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
def test_fault_44_the_last_row_and_column_of_the_upright_picture_are_repeated(
    size: tuple[int, int], way: tuple[bool, bool, bool]
) -> None:
    luma = turned(gradient(*size)[..., 1], way)
    height, width = luma.shape
    chroma = np.full((-(-height // 2), -(-width // 2)), 128, np.uint8)
    even = np.pad(luma, ((0, height % 2), (0, width % 2)), "edge")
    odd_stored, even_stored = (
        np.asarray(Image.open(io.BytesIO(encode_planes(y, chroma, chroma, quality=50))).convert("L"))
        for y in (luma, even)
    )
    assert np.array_equal(odd_stored, even_stored[:height, :width])


@pytest.mark.parametrize("shapes", [((3, 3), (1, 2), (2, 2)), ((4, 4), (2, 2), (2, 3)), ((0, 4), (0, 2), (0, 2))])
def test_fault_44_planes_that_do_not_belong_together_are_refused(shapes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match=r"make no picture of 4:2:0"):
        encode_planes(*(np.zeros(shape, np.uint8) for shape in shapes), quality=90)


def test_fault_44_lines_from_the_bottom_up_are_stored_upright(tmp_path: Path) -> None:
    """AMV's decoder returns planes whose line size is negative."""
    pixels = gradient(64, 48)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("amv", rate=10, options={"strict": "experimental"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    with open_video(tmp_path / "a.avi") as video:
        _, frame = next(video.frames())
        assert frame.planes[0].line_size < 0
    for short_side in (48, 24):
        _, stored = store(tmp_path / "a.avi", short_side=short_side)
        shown = decode_image(stored[0]).resize((64, 48))
        assert np.abs(np.asarray(shown, int) - pixels).mean() < 4


@pytest.mark.soak
@pytest.mark.parametrize("size", [(256, 455), (1, 64), (64, 1), (255, 256)])
def test_fault_44_a_build_is_the_same_whatever_memory_held(tmp_path: Path, size: tuple[int, int]) -> None:
    video = make_video(tmp_path / "a.nut", 5, size=size, codec="rawvideo")
    hashes = set()
    for value in ("1", "170", "255"):
        command = ["-m", "preprocess", "build", "--videos", video, "--out", tmp_path / value, "--workers", "1"]
        env = os.environ | {"MALLOC_PERTURB_": value}
        subprocess.run([sys.executable, *map(str, command)], env=env, check=True, capture_output=True)
        hashes.add(hashlib.sha256((tmp_path / value / "shard-00000.tar").read_bytes()).hexdigest())
    assert len(hashes) == 1


if __name__ == "__main__":
    print(digest(Path(sys.argv[1])))
