"""Augmentation as data: in the asked ranges, of the asked frequency, the same number of draws whatever the data."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from mae3d.io.random import Stream, philox
from pipelines.config import DataConfig, RandAugment
from pipelines.decoding.transforms import OPS
from pipelines.sampling.augment import (
    RAND_AUGMENT_OPS,
    Crop,
    Erase,
    draw_crop,
    draw_erase,
    draw_jitter,
    draw_rand_augment,
    draw_short_side_crop,
    evaluation_crops,
)

RULES = {"area": (0.5, 1.0), "aspect": (0.75, 4 / 3), "flip": 0.5}


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (256, 256), (33, 47)])
def test_crops_lie_in_the_frame_with_the_asked_area_and_aspect(height: int, width: int) -> None:
    crops = [
        draw_crop(philox(0, Stream.CROP, epoch=0, position=i), height=height, width=width, **RULES) for i in range(500)
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
    crop = draw_crop(philox(0, Stream.CROP, epoch=0), height=10, width=1000, **RULES)
    assert (crop.height, crop.width) == (10, 13)
    assert crop.left == (1000 - 13) // 2


def test_flip_is_a_setting() -> None:
    def flips(probability: float) -> set[bool]:
        rules = RULES | {"flip": probability}
        return {
            draw_crop(philox(0, Stream.CROP, epoch=0, position=i), height=64, width=64, **rules).flip for i in range(50)
        }

    assert flips(0.0) == {False}
    assert flips(1.0) == {True}


def draws_of(draw: Callable[..., Any], count: int, **rules: Any) -> list[Any]:
    return [draw(philox(0, Stream.CROP, epoch=0, position=i), **rules) for i in range(count)]


@pytest.mark.parametrize(
    ("draw", "ours", "theirs"),
    [
        (draw_crop, RULES | {"height": 64, "width": 64}, RULES | {"height": 10, "width": 1000}),
        (
            draw_short_side_crop,
            {"height": 64, "width": 64, "size": 32, "short_side": (40, 50), "flip": 0.5},
            {"height": 10, "width": 1000, "size": 16, "short_side": (16, 16), "flip": 0.0},
        ),
        (draw_jitter, {"strength": 0.1}, {"strength": 2.0}),
        (draw_erase, {"size": 224, "probability": 1.0}, {"size": 2, "probability": 0.0}),
        (draw_rand_augment, {"rule": RandAugment(probability=1)}, {"rule": RandAugment(probability=0, spread=1)}),
    ],
)
def test_the_number_of_draws_depends_on_nothing(
    draw: Callable[..., Any], ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    generators = [philox(0, Stream.CROP, epoch=0) for _ in range(2)]
    for generator, rules in zip(generators, (ours, theirs), strict=True):
        draw(generator, **rules)
    assert generators[0].random() == generators[1].random()


@pytest.mark.parametrize(("height", "width"), [(240, 426), (426, 240), (256, 256)])
def test_short_side_crops_are_the_models_size_after_scaling(height: int, width: int) -> None:
    crops = draws_of(draw_short_side_crop, 400, height=height, width=width, size=224, short_side=(256, 320), flip=0.5)
    sides = {crop.height for crop in crops}
    short = min(height, width)
    assert sides == {round(224 * short / scaled) for scaled in range(256, 321)}
    for crop in crops:
        assert crop.height == crop.width
        assert 0 <= crop.top <= height - crop.height
        assert 0 <= crop.left <= width - crop.width
    assert min(crop.left / (width - crop.width) for crop in crops) < 0.02
    assert max(crop.left / (width - crop.width) for crop in crops) > 0.98
    assert 150 < sum(crop.flip for crop in crops) < 250


def room_shares(boxes: Sequence[Crop | Erase], *, height: int, width: int) -> np.ndarray:
    """Return (N, 2): where in its vertical and horizontal room each box lies, in (0, 1), spread over its pixel."""
    spread = np.random.default_rng(0).random((2, len(boxes)))
    rows = [(box.top, height - box.height + 1, box.left, width - box.width + 1) for box in boxes]
    top, free_rows, left, free_columns = np.array(rows, dtype=float).T
    return np.stack([(top + spread[0]) / free_rows, (left + spread[1]) / free_columns], axis=1)


@pytest.mark.parametrize(
    ("draw", "rules", "height", "width"),
    [
        (draw_crop, RULES | {"height": 240, "width": 340}, 240, 340),
        (draw_crop, RULES | {"height": 340, "width": 240, "area": (0.08, 1.0)}, 340, 240),
        (
            draw_short_side_crop,
            {"height": 240, "width": 340, "size": 32, "short_side": (64, 96), "flip": 0.5},
            240,
            340,
        ),
        (draw_erase, {"size": 224, "probability": 1.0}, 224, 224),
    ],
)
def test_boxes_lie_uniformly_along_each_axis_whatever_the_other_one_is(
    draw: Callable[..., Any], rules: dict[str, Any], height: int, width: int
) -> None:
    """Each cell of a 4 x 4 grid over the room that a box has gets 100 +- 5 sigma of 1,600 boxes."""
    boxes = draws_of(draw, 1600, **rules)
    shares = room_shares(boxes, height=height, width=width)
    assert (shares >= 0).all()
    assert (shares < 1).all()
    cells = np.histogram2d(*shares.T, bins=4, range=[(0, 1), (0, 1)])[0]
    assert 50 < cells.min() <= cells.max() < 150
    if isinstance(boxes[0], Crop):  # mirrored or not, whatever the place
        flipped = np.array([box.flip for box in boxes])
        assert np.abs(shares[flipped].mean(axis=0) - shares[~flipped].mean(axis=0)).max() < 0.075


def test_a_frame_of_another_shape_falls_back_as_often_as_torchvisions() -> None:
    """Few of the ten tries fit a frame of 1 : 2; the largest centred box is what all others come to."""
    torch.manual_seed(0)
    reference = [
        RandomResizedCrop.get_params(torch.empty(3, 120, 240), scale=[0.5, 1], ratio=[0.75, 4 / 3]) for _ in range(1000)
    ]
    fallback = (0, 40, 120, 160)
    theirs = sum(tuple(box) == fallback for box in reference)
    ours = sum(tuple(crop[:4]) == fallback for crop in draws_of(draw_crop, 1000, height=120, width=240, **RULES))
    assert theirs > 50
    assert abs(ours - theirs) < 5 * np.sqrt(2 * theirs)


def test_the_full_short_side_leaves_no_room() -> None:
    rules = {"height": 100, "width": 160, "size": 224, "short_side": (224, 224), "flip": 0.0}
    assert {(crop.top, crop.height) for crop in draws_of(draw_short_side_crop, 20, **rules)} == {(0, 100)}


def test_evaluation_crops_lie_evenly_and_are_rounded_up() -> None:
    assert evaluation_crops(height=100, width=161, num_crops=1) == (Crop(0, 31, 100, 100, False),)
    assert [crop.left for crop in evaluation_crops(height=100, width=161, num_crops=3)] == [0, 31, 61]
    assert [crop.top for crop in evaluation_crops(height=161, width=100, num_crops=3)] == [0, 31, 61]
    assert [crop.left for crop in evaluation_crops(height=161, width=100, num_crops=3)] == [0, 0, 0]
    assert [crop.left for crop in evaluation_crops(height=100, width=130, num_crops=5)] == [0, 8, 15, 23, 30]
    assert set(evaluation_crops(height=64, width=64, num_crops=3)) == {Crop(0, 0, 64, 64, False)}


def test_rand_augment_takes_every_op_alike_half_of_the_time() -> None:
    rule = RandAugment.parse("rand-m7-mstd0.5-inc1")
    assert rule == RandAugment(magnitude=7, layers=2, spread=0.5, probability=0.5, increasing=True)
    drawn = draws_of(draw_rand_augment, 3000, rule=rule)
    counts = Counter(len(ops) for ops in drawn)
    assert 650 < counts[0] < 850  # a quarter: neither of two
    assert 1400 < counts[1] < 1600
    by_name = Counter(op.name for ops in drawn for op in ops)
    assert set(by_name) == set(RAND_AUGMENT_OPS) == set(OPS)
    assert 150 < min(by_name.values()) <= max(by_name.values()) < 250


def test_rand_augment_amounts_are_timms() -> None:
    """Ranges for N(7, .5): rotation around 21 degrees to either side, and so on; timm's own functions agree."""
    from timm.data import auto_augment as timm

    drawn = draws_of(draw_rand_augment, 3000, rule=RandAugment.parse("rand-m7-mstd0.5-p1-inc1"))
    amounts = {name: np.array([op.amount for ops in drawn for op in ops if op.name == name]) for name in OPS}
    degrees = np.abs(amounts["rotate"])
    assert abs(degrees.mean() - 21) < 0.3
    assert 1.2 < degrees.std() < 1.8
    assert 0.4 < (amounts["rotate"] > 0).mean() < 0.6
    for name, theirs in TIMM_NAMES.items():
        level_to_arg = timm.LEVEL_TO_ARG[theirs]
        if level_to_arg is None:
            assert not amounts[name].any()
            continue
        possible = np.abs([level_to_arg(level, {})[0] for level in np.linspace(5, 9, 2001) for _ in range(8)])
        ours = np.abs(amounts[name])
        nearest = np.abs(possible[None] - ours[:, None]).min(axis=1)
        assert nearest.max() < 0.01 * max(possible.max(), 1), name


TIMM_NAMES = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "colour": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rand-m7-w3", "unknown part 'w3'"),
        ("rand-m7-mmax20", "unknown part 'mmax20'"),
        ("rand-m", "unknown part 'm'"),
        ("rand--m7", "unknown part ''"),
        ("auto-m7", "must begin with rand"),
        ("rand-m11", "m takes numbers from 0 to 10"),
        ("rand-n1.5", "n takes whole numbers"),
        ("rand-p2", "p takes numbers from 0 to 1"),
    ],
)
def test_unknown_words_are_refused_by_name(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DataConfig(rand_augment=text)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"erase": 1.5}, r"data\.erase=1\.5 must be at least 0 and at most 1"),
        ({"colour_jitter": -0.1}, r"data\.colour_jitter=-0\.1"),
        ({"short_side": (320, 256)}, r"data\.short_side=\[320, 256\] must rise"),
        ({"short_side": (0, 256)}, r"data\.short_side=\[0, 256\] must rise"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DataConfig(**setting)


def test_jitter_is_in_random_order_and_range() -> None:
    drawn = draws_of(draw_jitter, 600, strength=0.4)
    orders = Counter(tuple(op.name for op in ops) for ops in drawn)
    assert len(orders) == 6
    assert min(orders.values()) > 60
    factors = np.array([op.amount for ops in drawn for op in ops])
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4


def test_erased_boxes_have_the_asked_area_aspect_and_frequency() -> None:
    drawn = draws_of(draw_erase, 2000, size=224, probability=0.25)
    boxes = [box for box in drawn if box is not None]
    assert 430 < len(boxes) < 570
    areas = np.array([box.height * box.width for box in boxes]) / 224**2
    assert 0.018 < areas.min() < 0.03
    assert 0.31 < areas.max() < 0.345
    aspects = np.array([box.height / box.width for box in boxes])
    assert 0.28 < aspects.min() < 0.35
    assert 2.9 < aspects.max() < 3.5
    assert abs(np.log(aspects).mean()) < 0.15
    assert all(0 <= box.top <= 224 - box.height and 0 <= box.left <= 224 - box.width for box in boxes)
    assert len({box.seed for box in boxes}) == len(boxes)


@pytest.mark.parametrize("size", [2, 3, 224])
def test_erasing_tries_until_a_box_fits(size: int) -> None:
    """Most boxes drawn for a tiny view do not fit; one of 100 always does."""
    boxes = draws_of(draw_erase, 1000, size=size, probability=1.0)
    assert None not in boxes
    assert all(0 < box.height < size and 0 < box.width < size for box in boxes)
