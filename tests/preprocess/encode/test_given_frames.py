"""Frames in memory are stored as files of the same pixels are, and what is no frame is refused by shape and type."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae3d.io.png import decode_png, encode_png
from mae3d.video.errors import MediaError
from preprocess.encode.given_frames import encode_given
from preprocess.encode.images import jpeg_header, stored_frame
from preprocess.plan.settings import Settings

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(7, axis=0).repeat(5, axis=1)  # 63 x 60


def encoded(picture: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def parts(frames: Any, **settings: Any) -> list[bytes]:
    stored: list[bytes] = []
    encode_given(frames, settings=Settings(**settings), sink=stored.append)
    return stored


@pytest.mark.parametrize("settings", [{}, {"short_side": 32}, {"layout": "video", "fps": 10, "min_psnr": 0}])
def test_arrays_pictures_tensors_and_files_of_the_same_pixels_are_the_same_bytes(settings: Any) -> None:
    clip = np.stack([PICTURE, PICTURE[::-1]])
    expected = parts([encoded(picture, "PNG") for picture in clip], **settings)
    assert parts(clip, **settings) == expected
    assert parts(list(map(Image.fromarray, clip)), **settings) == expected
    assert parts(torch.from_numpy(clip), **settings) == expected
    assert parts(iter(clip[:, :, ::-1][:, :, ::-1]), **settings) == expected  # of any strides


def test_a_jpeg_stays_as_it_is_and_its_picture_is_encoded_once() -> None:
    jpeg = encoded(PICTURE, "JPEG", quality=80)
    assert parts([jpeg]) == [jpeg]
    expected, _ = stored_frame(encoded(PICTURE, "PNG"), None, (60, 63), quality=70)
    assert parts([PICTURE], quality=70) == [expected]


def test_frames_take_the_size_of_the_first_and_say_so() -> None:
    stored: list[bytes] = []
    small, large = PICTURE, PICTURE.repeat(2, axis=0)
    facts = encode_given([small, large], settings=Settings(), sink=stored.append, fps=5, first=7, start_s=1.4)
    assert (facts.first, facts.stop, facts.fps, facts.start_s) == (7, 9, 5, 1.4)
    assert (facts.width, facts.height) == (60, 63)
    assert facts.remark
    assert facts.remark[0] == "mixed_sizes"
    assert {(header.width, header.height) for header in map(jpeg_header, stored) if header} == {(60, 63)}


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        7,
        "img.jpg",
    ],
    ids=repr,
)
def test_what_is_no_frame_is_refused_by_its_shape_and_type(frame: Any) -> None:
    with pytest.raises(ValueError, match=r"([a-z]+\d+|<U7) \(.*\).*uint16, \(height, width\)"):
        parts([frame])


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [((8, 8, 4), np.uint8, "4 channels of 8 bits"), ((8, 8), np.uint16, "1 channel of 16 bits")],
)
def test_channels_and_bits_that_the_layout_lacks_are_refused_with_the_layout_that_has_them(
    shape: tuple[int, ...], dtype: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=f"{told}.*--layout png"):
        parts([np.zeros(shape, dtype)])


def test_grey_is_stored_as_colour_without_colours_and_a_png_holds_all_levels() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert parts([grey]) == parts([np.repeat(grey[..., None], 3, axis=2)])
    deep = (grey.astype(np.uint16) * 1021)[..., None]
    for given in (deep, encode_png(deep), Image.fromarray(deep[..., 0])):
        (stored,) = parts([given], layout="png", channels=1, bits=16)
        assert np.array_equal(decode_png(stored, channels=1), deep)
    (stored,) = parts([Image.fromarray(grey)], layout="png", channels=1, bits=8)
    assert np.array_equal(decode_png(stored, channels=1)[..., 0], grey)


def test_a_picture_that_lies_on_its_side_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    picture = Image.open(io.BytesIO(encoded(PICTURE, "PNG", exif=exif)))
    assert parts([picture]) == parts([np.rot90(PICTURE, -1)])


@pytest.mark.parametrize(
    ("frames", "settings", "reason"),
    [
        ([], {}, "no_frames"),
        ([PICTURE, encoded(PICTURE, "JPEG")[:-40]], {}, "bad_frame"),
        ([PICTURE], {"max_pixels": 100}, "too_large"),
        ([encoded(PICTURE, "PNG")], {"max_pixels": 100}, "too_large"),
        ([PICTURE, PICTURE], {"max_frames": 1}, "too_many_frames"),
    ],
)
def test_media_that_cannot_be_had_are_rejected_with_a_reason(frames: Any, settings: Any, reason: str) -> None:
    with pytest.raises(MediaError) as raised:
        parts(frames, **settings)
    assert raised.value.reason == reason
    assert raised.value.frame == (1 if reason == "bad_frame" else 0 if reason == "too_large" else -1)
