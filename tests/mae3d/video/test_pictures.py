"""Pictures of frames: scaled planes give the colours that a conversion of the whole frame gives, in either range."""

import av
import numpy as np
import pytest
from PIL import Image

from mae3d.video.pictures import Pictures


def smooth(width: int, height: int) -> av.VideoFrame:
    """Return a frame of slow gradients, which every filter scales alike."""
    small = np.random.default_rng(0).integers(40, 216, (3, 4, 3)).astype(np.uint8)
    return av.VideoFrame.from_image(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv422p", "rgb24"])
@pytest.mark.parametrize("size", [(120, 68), (121, 67)])
def test_a_scaled_picture_has_the_colours_of_the_frame(pixels: str, size: tuple[int, int]) -> None:
    frame = smooth(240, 136).reformat(format=pixels)
    picture = Pictures().rgb(frame, width=size[0], height=size[1])
    expected = np.asarray(frame.to_image().resize(size, Image.Resampling.BICUBIC), int)
    gap = np.abs(picture.astype(int) - expected)
    assert picture.shape == expected.shape
    assert gap.mean() < 2.5  # a level or two are swscale's


def test_a_turned_picture_is_scaled_like_an_upright_one() -> None:
    frame = smooth(240, 136).reformat(format="yuv420p")
    upright = Pictures().rgb(frame, width=120, height=68).copy()
    turned = Pictures().rgb(frame, width=68, height=120, way=(True, False, False))
    assert np.array_equal(turned, upright.transpose(1, 0, 2))
