"""Crops as data: inside the frame, of the asked area and shape, the same number of draws whatever the frame."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from pipelines.augment import centre_crop, draw_crop
from pipelines.order import CROP_STREAM, philox

RULES = {"area": (0.5, 1.0), "aspect": (0.75, 4 / 3), "flip": 0.5}


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (256, 256), (33, 47)])
def test_crops_lie_in_the_frame_with_the_asked_area_and_aspect(height: int, width: int) -> None:
    crops = [
        draw_crop(philox(0, CROP_STREAM, epoch=0, position=i), height=height, width=width, **RULES) for i in range(500)
    ]
    for crop in crops:
        assert crop.top >= 0
        assert crop.left >= 0
        assert crop.top + crop.height <= height
        assert crop.left + crop.width <= width
        assert 0.45 < crop.height * crop.width / (height * width) <= 1
        assert 0.70 < crop.width / crop.height < 1.43
    assert 150 < sum(crop.flip for crop in crops) < 350
    torch.manual_seed(0)
    reference = [
        RandomResizedCrop.get_params(torch.empty(3, height, width), scale=[0.5, 1], ratio=[0.75, 4 / 3])
        for _ in range(500)
    ]
    ours, theirs = np.array(crops, dtype=float)[:, :4], np.array(reference, dtype=float)
    standard_error = np.hypot(ours.std(axis=0), theirs.std(axis=0)) / np.sqrt(500)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * standard_error).all()


def test_a_frame_too_long_for_any_try_gets_the_largest_box_that_fits() -> None:
    crop = draw_crop(philox(0, CROP_STREAM, epoch=0), height=10, width=1000, **RULES)
    assert (crop.height, crop.width) == (10, 13)
    assert crop.left == (1000 - 13) // 2


def test_flip_is_a_setting() -> None:
    def flips(probability: float) -> set[bool]:
        rules = RULES | {"flip": probability}
        return {
            draw_crop(philox(0, CROP_STREAM, epoch=0, position=i), height=64, width=64, **rules).flip for i in range(50)
        }

    assert flips(0.0) == {False}
    assert flips(1.0) == {True}


def test_the_generator_moves_alike_for_every_frame() -> None:
    generators = [philox(0, CROP_STREAM, epoch=0) for _ in range(2)]
    draw_crop(generators[0], height=64, width=64, **RULES)
    draw_crop(generators[1], height=10, width=1000, **RULES)
    assert generators[0].random() == generators[1].random()


def test_centre_crop_is_the_largest_square() -> None:
    assert centre_crop(height=100, width=160) == (0, 30, 100, 100, False)
