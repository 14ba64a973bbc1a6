import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from mae3d.video.reader import open_video
from preprocess.encode.images import decode_image, encode_planes, jpeg_header
from preprocess.encode.video_frames import FrameEncoder
from tests.support.media import make_video, numbered_image, picture_of, psnr

# ITU-T H.273, table 4: the weights of red and blue in luma.
LUMA = {Colorspace.ITU601: (0.299, 0.114), Colorspace.ITU709: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
COLOURS = [(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 40, 60), (30, 190, 90), (50, 80, 220), (220, 210, 40)]


def flat_frame(colour: tuple[int, int, int], *, colorspace: int, full: bool) -> av.VideoFrame:
    """A frame of one colour in 8-bit Y'CbCr 4:2:0."""
    kr, kb = LUMA[colorspace]
    r, g, b = (value / 255 for value in colour)
    luma = kr * r + (1 - kr - kb) * g + kb * b
    chroma = (b - luma) / 2 / (1 - kb), (r - luma) / 2 / (1 - kr)
    levels = (255 * luma, 255, 255) if full else (16 + 219 * luma, 224, 224)
    codes = [round(levels[0]), *(round(128 + scale * c) for scale, c in zip(levels[1:], chroma, strict=True))]
    planes = [
        np.full(count, min(code, 255), np.uint8) for count, code in zip((64 * 48, 32 * 24, 32 * 24), codes, strict=True)
    ]
    frame = av.VideoFrame.from_ndarray(np.concatenate(planes).reshape(72, 64), format="yuv420p")
    frame.colorspace, frame.color_range = colorspace, ColorRange.JPEG if full else ColorRange.MPEG
    return frame


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("colorspace", LUMA)
def test_colours_are_those_of_the_matrix_and_range_that_the_frame_names(colorspace: int, full: bool) -> None:
    for colour in COLOURS:
        frame = flat_frame(colour, colorspace=colorspace, full=full)
        for size in ((64, 48), (31, 24)):  # 4:2:0 as it is, and scaled
            pixels = np.asarray(decode_image(FrameEncoder(100).encode(frame, width=size[0], height=size[1])), int)
            assert np.abs(pixels - colour).max() <= 4, (colour, pixels[0, 0])


def test_the_full_range_of_chroma_does_not_overflow() -> None:
    for cb in (0, 1, 127, 254, 255):
        for cr in (0, 1, 127, 254, 255):
            planes = [np.full(count, code, np.uint8) for count, code in ((16 * 16, 128), (64, cb), (64, cr))]
            frame = av.VideoFrame.from_ndarray(np.concatenate(planes).reshape(24, 16), format="yuv420p")
            frame.colorspace, frame.color_range = Colorspace.ITU709, ColorRange.JPEG
            stored = Image.open(io.BytesIO(FrameEncoder(100).encode(frame, width=16, height=16)))
            stored.draft("YCbCr", None)
            got = np.asarray(stored, float)[8, 8]
            b, r = cb - 128, cr - 128  # BT.709 to 601, from the weights above, to three places
            expected = np.clip(
                [128 + 0.102 * b + 0.196 * r, 128 + 0.990 * b - 0.111 * r, 128 + 0.983 * r - 0.072 * b], 0, 255
            )
            assert np.abs(got - expected).max() <= 2, (cb, cr, got, expected)


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (33, 25), (48, 64)])
@pytest.mark.parametrize("format_name", ["rgb24", "gray", "yuv444p", "yuv422p10le", "bgra"])
def test_any_pixels_become_baseline_420(size: tuple[int, int], format_name: str) -> None:
    frame = av.VideoFrame.from_image(numbered_image(9, (96, 64))).reformat(format=format_name)
    data = FrameEncoder(95).encode(frame, width=size[0], height=size[1])
    header = jpeg_header(data)
    assert header is not None
    assert (header.baseline, header.bits, header.components) == (True, 8, 3)
    assert (header.width, header.height) == size
    with Image.open(io.BytesIO(data)) as image:
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]
    expected = numbered_image(9, (96, 64)).resize(size, Image.Resampling.BICUBIC)
    mode = "L" if format_name == "gray" else "RGB"
    assert psnr(decode_image(data).convert(mode), expected.convert(mode)) > 26


def test_one_encoder_serves_frames_of_several_sizes_and_forgets_them(tmp_path: Path) -> None:
    small, large = (av.VideoFrame.from_image(numbered_image(3, size)) for size in ((64, 48), (128, 96)))
    encoder = FrameEncoder(90)
    first = encoder.encode(small, width=64, height=48)
    encoder.encode(large, width=100, height=75)
    assert encoder.encode(small, width=64, height=48) == first == FrameEncoder(90).encode(small, width=64, height=48)


def test_a_frame_of_a_video_is_not_brighter_or_darker_than_it_was(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 3, fps=10, size=(96, 64))
    with open_video(tmp_path / "v.mp4") as video:
        _, frame = next(video.frames())
    shift = (
        np.asarray(picture_of(frame, (96, 64)), float).mean() - np.asarray(numbered_image(0, (96, 64)), float).mean()
    )
    assert abs(shift) < 1


SIZES = [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (3, 5), (15, 16), (16, 15), (17, 17), (256, 455), (455, 256)]


def planes_of(width: int, height: int, *, beyond: int) -> list[np.ndarray]:
    """Random luma and chroma, 4:2:0, inside arrays that hold `beyond` right of them and below."""
    draw, planes = np.random.default_rng(0), []
    for w, h in ((width, height), *[((width + 1) // 2, (height + 1) // 2)] * 2):
        whole = np.full((h + 3, w + 5), beyond, np.uint8)
        whole[:h, :w] = draw.integers(0, 256, (h, w))
        planes.append(whole[:h, :w])
    return planes


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_fault_44_no_byte_beyond_a_plane_comes_into_the_picture(width: int, height: int) -> None:
    one, two = (encode_planes(*planes_of(width, height, beyond=level), quality=90) for level in (0, 255))
    assert one == two
    header = jpeg_header(one)
    assert header is not None
    assert (header.width, header.height) == (width, height)


def test_fault_44_nothing_is_read_beyond_a_plane() -> None:
    """Each plane ends where a page begins that nobody may read; one child for all sizes, because it might be killed."""
    code = f"""
import ctypes, mmap
import numpy as np
from preprocess.encode.images import encode_planes
PAGE = mmap.PAGESIZE

def guarded(width, height):
    size = width * height
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 1) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + pages * PAGE), PAGE, 0) == 0
    return np.frombuffer(memory, np.uint8)[pages * PAGE - size : pages * PAGE].reshape(height, width)

for width, height in {SIZES}:
    half = (width + 1) // 2, (height + 1) // 2
    print(len(encode_planes(guarded(width, height), guarded(*half), guarded(*half), quality=90)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stdout.split())) == (0, len(SIZES)), done.stderr


@pytest.mark.parametrize("size", [(33, 25), (31, 64), (64, 31), (17, 1), (1, 17)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_fault_44_the_last_row_and_column_are_those_of_the_source(
    size: tuple[int, int], full: bool, swapped: bool
) -> None:
    width, height = size
    ramp = np.add.outer(np.linspace(30, 110, height), np.linspace(0, 110, width)).astype(np.uint8)
    stored = np.ascontiguousarray(ramp.T if swapped else ramp)
    frame = av.VideoFrame.from_ndarray(np.repeat(stored[..., None], 3, axis=2), format="rgb24")
    frame = frame.reformat(format="yuvj420p" if full else "yuv420p")
    encoder = FrameEncoder(100)
    encoder._orientations[0] = (swapped, False, False)
    pixels = np.asarray(decode_image(encoder.encode(frame, width=width, height=height)).convert("L"), int)
    assert pixels.shape == (height, width)
    for edge in (np.s_[-1], np.s_[:, -1], np.s_[0], np.s_[:, 0]):
        assert np.abs(pixels[edge] - ramp[edge]).max() <= 6, (edge, pixels[edge], ramp[edge])
