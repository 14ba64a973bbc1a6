"""Lossless frames: the same pixels, the same bytes, in PNGs that others read."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from mae3d.io.png import PngError, decode_png, encode_png, png_header
from tests.support.stacks import random_frames


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 33)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_come_back_as_they_were(channels: int, bits: int, size: tuple[int, int]) -> None:
    (pixels,) = random_frames(1, channels=channels, bits=bits, size=size)
    data = encode_png(pixels)
    read = decode_png(data, channels=channels)
    assert read.dtype == pixels.dtype
    np.testing.assert_array_equal(read, pixels)
    assert encode_png(pixels.copy()) == data


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # of torchvision, for torchcodec
@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 16), (3, 8), (3, 16), (4, 16)])
def test_other_readers_see_the_same_pixels(channels: int, bits: int) -> None:
    (pixels,) = random_frames(1, channels=channels, bits=bits)
    data = encode_png(pixels)
    seen = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED).numpy()
    height, width, _ = pixels.shape
    np.testing.assert_array_equal(seen.reshape(channels, height, width).transpose(1, 2, 0), pixels)
    if (channels, bits) != (3, 16):  # of which Pillow keeps 8
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), seen.transpose(1, 2, 0).squeeze())


def test_damage_is_found_and_never_gives_other_pixels() -> None:
    (pixels,) = random_frames(1, channels=1)
    data = encode_png(pixels)
    found = 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 4
        try:
            np.testing.assert_array_equal(decode_png(bytes(damaged), channels=1), pixels)
        except PngError:
            found += 1
    assert found > 0.95 * len(data)
    for stop in (0, 8, 40, len(data) // 2):
        with pytest.raises(PngError):
            decode_png(data[:stop], channels=1)


def test_other_channels_than_announced_are_refused() -> None:
    grey, colour = (encode_png(random_frames(1, channels=channels)[0]) for channels in (1, 3))
    assert png_header(colour) == (20, 16, 3, 16)
    for data, channels in ((grey, 3), (colour, 1), (colour, 4), (grey, 7)):
        with pytest.raises(PngError, match=str(channels)):
            decode_png(data, channels=channels)
