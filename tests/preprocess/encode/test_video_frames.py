import io
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from mae3d.video.reader import open_video
from preprocess.encode.images import decode_image, jpeg_header
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
