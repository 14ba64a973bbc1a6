"""Every op against PIL's pixels on real-looking frames, over magnitudes and signs; whole draws; clips as a whole."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm
from torch._subclasses.fake_tensor import FakeTensorMode

from mae3d.io.random import Stream, philox
from pipelines.config import RandAugment
from pipelines.decoding.transforms import OPS, RESHAPING, apply_ops, apply_views
from pipelines.sampling.augment import Crop, Erase, Op, View, draw_rand_augment

GEOMETRY = {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BICUBIC}
PIL: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, _: timm.auto_contrast(image),
    "equalize": lambda image, _: timm.equalize(image),
    "invert": lambda image, _: timm.invert(image),
    "rotate": lambda image, amount: timm.rotate(image, amount, **GEOMETRY),
    "posterize": lambda image, amount: timm.posterize(image, int(amount)),
    "solarize": lambda image, amount: timm.solarize(image, int(amount)),
    "solarize_add": lambda image, amount: timm.solarize_add(image, int(amount)),
    "colour": timm.color,
    "contrast": timm.contrast,
    "brightness": timm.brightness,
    "sharpness": timm.sharpness,
    "shear_x": lambda image, amount: timm.shear_x(image, amount, **GEOMETRY),
    "shear_y": lambda image, amount: timm.shear_y(image, amount, **GEOMETRY),
    "translate_x": lambda image, amount: timm.translate_x_rel(image, amount, **GEOMETRY),
    "translate_y": lambda image, amount: timm.translate_y_rel(image, amount, **GEOMETRY),
}
FACTORS = (0.1, 0.37, 0.63, 1.0, 1.37, 1.63, 1.9)
AMOUNTS: dict[str, tuple[float, ...]] = {
    "autocontrast": (0,),
    "equalize": (0,),
    "invert": (0,),
    "rotate": (-30, -21, -0.3, 0, 3.3, 21, 30),
    "posterize": (1, 2, 3, 4, 8),
    "solarize": (0, 1, 76, 77, 128, 255, 256),
    "solarize_add": (0, 1, 77, 110),
    "colour": FACTORS,
    "contrast": FACTORS,
    "brightness": FACTORS,
    "sharpness": FACTORS,
    "shear_x": (-0.3, -0.21, 0.01, 0.21, 0.3),
    "shear_y": (-0.3, -0.21, 0.01, 0.21, 0.3),
    "translate_x": (-0.45, -0.3153, 0.01, 0.25, 0.45),
    "translate_y": (-0.45, -0.3153, 0.01, 0.25, 0.45),
}


def pictures() -> np.ndarray:
    """(T, H, W, C): gradients with noise, a dark frame, a flat one, one of two colours, plain noise; uneven sizes."""
    rng = np.random.default_rng(0)
    height, width = 61, 84
    y, x = np.mgrid[:height, :width]
    waves = np.stack([96 + 90 * np.sin(x / 9 + c) * np.cos(y / (5 + c)) for c in range(3)], axis=-1)
    frames = [
        waves + rng.normal(0, 4, waves.shape),
        waves * 0.3 + 20,
        np.full_like(waves, 77),
        np.where((x < 30)[..., None], 10, 200) * np.ones(3),
        rng.uniform(0, 256, waves.shape),
    ]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


CLIP = torch.from_numpy(pictures())


def by_pil(clip: torch.Tensor, ops: tuple[Op, ...]) -> np.ndarray:
    frames = []
    for frame in clip.numpy():
        image = Image.fromarray(frame)
        for op in ops:
            image = PIL[op.name](image, op.amount)
        frames.append(np.asarray(image))
    return np.stack(frames).astype(int)


@pytest.mark.parametrize("name", OPS)
def test_each_op_gives_pils_pixels(name: str) -> None:
    """Exact, but that shapes may differ by 1 (PIL's kernel in double, ours in float) in less than 1 % of the values."""
    assert set(AMOUNTS) == set(PIL) == set(OPS)
    original = CLIP.clone()
    for amount in AMOUNTS[name]:
        ours = apply_ops(CLIP, (Op(name, amount),))
        difference = np.abs(ours.numpy() - by_pil(CLIP, (Op(name, amount),)))
        assert ours.dtype == torch.uint8
        assert difference.max() <= (1 if name in RESHAPING else 0), amount
        assert difference.mean() < 0.01, amount
    assert torch.equal(CLIP, original)


def test_no_bits_left_is_black() -> None:
    assert not apply_ops(CLIP, (Op("posterize", 0),)).any()  # what a magnitude of 10 asks for; PIL refuses it


@pytest.mark.parametrize("text", ["rand-m7-mstd0.5-inc1", "rand-m9-n4-p1-inc1", "rand-m3-n3-mstd1-p1"])
def test_whole_draws_give_pils_pixels(text: str) -> None:
    """Exact without shapes; their differences of 1 may become more in what follows: thresholds, histograms."""
    rule = RandAugment.parse(text)
    means, compared = [], 0
    for i in range(60):
        ops = draw_rand_augment(philox(7, Stream.RAND_AUGMENT, epoch=0, position=i), rule)
        if any(op == Op("posterize", 0) for op in ops):
            continue
        difference = np.abs(apply_ops(CLIP, ops).numpy() - by_pil(CLIP, ops))
        compared += 1
        means.append(difference.mean())
        if not any(op.name in RESHAPING for op in ops):
            assert difference.max() == 0, ops
        assert difference.mean() < 0.2, ops
    assert compared > 40
    assert np.mean(means) < 0.01


@pytest.mark.parametrize("name", OPS)
def test_a_frame_does_not_depend_on_its_clip(name: str) -> None:
    op = (Op(name, AMOUNTS[name][-2] if len(AMOUNTS[name]) > 1 else 0),)
    together = apply_ops(CLIP, op)
    assert torch.equal(together, torch.cat([apply_ops(frame, op) for frame in CLIP.split(1)]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(together, apply_ops(CLIP, op))
    finally:
        torch.set_num_threads(threads)


CROP = Crop(0, 0, 61, 84, False)


def test_views_are_changed_in_place_and_only_where_asked() -> None:
    clips = torch.stack([CLIP, CLIP, CLIP])
    box = Erase(top=5, left=7, height=20, width=30, seed=3)
    apply_views(clips, [View(CROP), View(CROP, (Op("invert", 0),)), View(CROP, (Op("invert", 0),), box)])
    assert torch.equal(clips[0], CLIP)
    assert torch.equal(clips[1], 255 - CLIP)
    outside = torch.ones(61, 84, dtype=torch.bool)
    outside[5:25, 7:37] = False
    assert torch.equal(clips[2][:, outside], 255 - CLIP[:, outside])
    assert (clips[2][:, 5:25, 7:37] != 255 - CLIP[:, 5:25, 7:37]).float().mean() > 0.97


def test_erased_pixels_are_standard_normal_once_normalised_and_new_in_every_frame() -> None:
    clips = torch.zeros(2, 4, 100, 100, 3, dtype=torch.uint8)
    view = View(CROP, (), Erase(0, 0, 100, 100, seed=2**62 + 1))
    apply_views(clips, [view, view])
    assert torch.equal(clips[0], clips[1])  # the seed decides
    normalised = (clips[0].double() / 255 - 0.45) / 0.225
    assert abs(normalised.mean()) < 0.02
    assert abs(normalised.std() - 1) < 0.03  # pixels end at 0 and 255: 2.3 % and 0.7 % of the draws
    assert abs(np.corrcoef(normalised[0].flatten(), normalised[1].flatten())[0, 1]) < 0.02
    other = torch.zeros(1, 4, 100, 100, 3, dtype=torch.uint8)
    apply_views(other, [view._replace(erase=Erase(0, 0, 100, 100, seed=4))])
    assert not torch.equal(other[0], clips[0])


def test_nothing_of_an_op_is_made_on_the_cpu_for_a_gpu() -> None:
    """Tensors without pixels stand for a GPU's; `equalize` counts pixels, which these have none of."""
    there = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=False):
        clip = torch.empty(2, 6, 8, 3, dtype=torch.uint8, device=there)
        for name in sorted(set(OPS) - {"equalize"}):
            moved = apply_ops(clip, (Op(name, AMOUNTS[name][0]),))
            assert (moved.device, moved.shape, moved.dtype) == (there, clip.shape, clip.dtype), name


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_a_gpu_gives_the_same_pixels(name: str) -> None:
    for amount in AMOUNTS[name]:
        ours = apply_ops(CLIP.cuda(), (Op(name, amount),)).cpu().int()
        assert (ours - apply_ops(CLIP, (Op(name, amount),)).int()).abs().max() <= 1
