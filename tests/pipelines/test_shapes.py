"""Views that are not square, of grey, of any channels and of 16 bits: their crops, their pixels, their fingerprint."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae3d.io.random import Stream, philox
from mae3d.io.shapes import Size, largest_box, plain_size, sides, size_text
from pipelines.config import DataConfig
from pipelines.decoding.channels import check_channels, with_channels
from pipelines.decoding.clip_decoder import ClipDecoder, jpeg_frames
from pipelines.decoding.clips import copied_views
from pipelines.decoding.crops import Cropper, cut_on_device
from pipelines.decoding.dali import DaliDecoder, JpegGraph, dense_clips
from pipelines.decoding.transforms import OPS, apply_views
from pipelines.loader import Loader
from pipelines.reading.source import ClipSource, EncodedBatch, FetchedClip
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.augment import (
    Crop,
    Erase,
    View,
    draw_crop,
    draw_erase,
    draw_short_side_crop,
    evaluation_crops,
)
from pipelines.sampling.requests import BatchRequest, ClipRequest, check_views
from pipelines.stream import evaluation_clips
from preprocess.dataset.layout import JPEG, Layout
from tests.support.media import make_dataset

CONFIG = DataConfig(sampling_rate=1, repeat_aug=2, read_threads=1, prefetch=1, decode_threads=1)
FRAMES = [(256, 340), (340, 256), (64, 64), (33, 200)]
SIZES: list[Size] = [224, (128, 224), (224, 96)]


def draws(position: int) -> np.random.Generator:
    return philox(0, Stream.CROP, epoch=0, position=position)


def inside(crop: Crop, height: int, width: int) -> bool:
    return 0 <= crop.top <= height - crop.height and 0 <= crop.left <= width - crop.width


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_random_crops_have_the_views_shape_up_to_the_drawn_aspect(height: int, width: int, size: Size) -> None:
    rules: dict[str, Any] = {"area": (0.2, 0.5), "flip": 0.5}
    view = sides(size)[1] / sides(size)[0]
    for i in range(50):
        crop = draw_crop(draws(i), height=height, width=width, aspect=(0.75, 4 / 3), size=size, **rules)
        assert inside(crop, height, width)
        assert 0.75 * 0.9 < crop.width / crop.height / view < 4 / 3 * 1.1
        plain = draw_crop(draws(i), height=height, width=width, aspect=(1, 1), size=size, **rules)
        assert crop.flip == plain.flip
        assert plain.width == pytest.approx(plain.height * view, abs=0.5 + 0.5 * view)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_boxes_of_evaluation_are_the_largest_that_fit(height: int, width: int, size: Size) -> None:
    crops = evaluation_crops(height=height, width=width, num_crops=3, size=size)
    box = largest_box(height, width, size)
    for crop in crops:
        assert inside(crop, height, width)
        assert (crop.height, crop.width) == box
        assert crop.height == height or crop.width == width
        assert crop.height * sides(size)[1] == pytest.approx(crop.width * sides(size)[0], abs=max(sides(size)))
    assert (crops[0].top, crops[0].left) == (0, 0)
    assert (crops[2].top + box[0], crops[2].left + box[1]) == (height, width)
    assert evaluation_crops(height=height, width=width, num_crops=1, size=size) == crops[1:2]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_a_scaled_short_side_leaves_the_shape_and_fits(height: int, width: int, size: Size) -> None:
    for i in range(50):
        rules: dict[str, Any] = {"short_side": (min(sides(size)), 320), "flip": 0.5}
        crop = draw_short_side_crop(draws(i), height=height, width=width, size=size, **rules)
        assert inside(crop, height, width)
        scale = min(height / sides(size)[0], width / sides(size)[1])
        assert crop.height == pytest.approx(crop.width * sides(size)[0] / sides(size)[1], abs=1.5)
        assert crop.height <= sides(size)[0] * scale + 0.5


def test_an_erased_box_lies_in_the_view_along_both_sides() -> None:
    boxes = [draw_erase(draws(i), size=(32, 96), probability=1) for i in range(100)]
    drawn = [box for box in boxes if box]
    assert all(box.top + box.height <= 32 and box.left + box.width <= 96 for box in drawn)
    assert max(box.top + box.height for box in drawn) > 24
    assert max(box.left + box.width for box in drawn) > 72
    assert max(box.width for box in drawn) > 32


def test_a_size_is_one_number_or_two() -> None:
    assert [plain_size(size) for size in (32, [32, 48], (48, 48))] == [32, (32, 48), 48]
    assert (sides(32), sides((32, 48)), size_text((32, 48))) == ((32, 32), (32, 48), "32 x 48")
    with pytest.raises(ValueError, match="3 numbers"):
        plain_size([1, 2, 3])
    with pytest.raises(ValueError, match=r"short_side=\[64, 96\].*img_size=\[96, 128\].*give 96 or more"):
        check_views(replace(CONFIG, short_side=(64, 96)), num_frames=4, size=(96, 128))


def noise(shape: tuple[int, ...], most: int = 255, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most + 1, shape).astype(np.uint16 if most > 255 else np.uint8)


@pytest.mark.parametrize(("channels", "most"), [(1, 255), (5, 255), (1, 65535), (2, 65535)])
@pytest.mark.parametrize("flip", [False, True])
def test_each_channel_is_resized_as_pillow_resizes_it(channels: int, most: int, flip: bool) -> None:
    clip, crop = noise((2, 40, 60, channels), most), Crop(3, 5, 30, 51, flip)
    view = [(View(crop),)]
    ours = Cropper(size=(16, 24), threads=1).cut([torch.from_numpy(clip)], view, boxed=False)
    there = cut_on_device([torch.from_numpy(clip)], view, size=(16, 24), device=torch.device("cpu"))
    assert ours.shape == there.shape == (1, 2, 16, 24, channels)
    assert ours.dtype == there.dtype == torch.from_numpy(clip).dtype
    assert (ours.int() - there.int()).abs().max() <= 1
    for frame, out in zip(clip, ours[0].numpy(), strict=True):
        for channel in range(channels):
            picture = Image.fromarray(frame[..., channel].astype(np.float32)).crop((5, 3, 56, 33))
            theirs = np.asarray(picture.resize((24, 16), Image.Resampling.BILINEAR))
            theirs = theirs[:, ::-1] if flip else theirs
            assert np.abs(theirs - out[..., channel]).max() <= (2 if most == 255 else 1)


def test_a_box_of_the_views_size_keeps_every_value_of_sixteen_bits() -> None:
    clip = torch.from_numpy(noise((2, 16, 24, 3), 65535))
    out = Cropper(size=(16, 24), threads=1).cut([clip], [(View(Crop(0, 0, 16, 24, False)),)], boxed=False)
    assert torch.equal(out[0].int(), clip.int())


def encoded(modes: list[str]) -> EncodedBatch:
    """A clip of one smooth frame for each of Pillow's modes, all of another size."""
    clips, parts = [], []
    for number, mode in enumerate(modes):
        height, width = 24 + 8 * number, 40
        picture = Image.fromarray(noise((6, 8, 3), seed=number)).resize((width, height)).convert(mode)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        clips.append(ClipRequest(number, np.arange(1), (View(Crop(2, 3, 17, 29, False)),)))
        parts.append([np.frombuffer(data.getvalue(), np.uint8)])
    request = BatchRequest(0, np.arange(len(modes)), tuple(clips), 1)
    return EncodedBatch(request, tuple(clips), tuple(parts), (False,) * len(modes))


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_jpegs_decode_to_either_alike_in_dali_and_in_pillow(channels: int) -> None:
    batch = encoded(["RGB", "L"])
    graph = JpegGraph(max_frames=2, decode="cpu", resize=None, num_views=1, size=16, channels=channels)
    _, (images,) = DaliDecoder(lambda: batch, graph, threads=1).run()
    decoded = dense_clips(images, 2)
    for clip, parts, ours in zip(batch.clips, batch.parts, decoded, strict=True):
        (theirs,) = jpeg_frames(FetchedClip(clip, parts), tuple(ours.shape[1:3]), channels)
        assert theirs.shape == ours.shape[1:]
        assert np.abs(theirs.astype(int) - ours[0].numpy()).max() <= 1
    if channels == 3:  # grey is repeated
        assert (decoded[1] == decoded[1][..., :1]).all()
        return
    boxes = JpegGraph(max_frames=2, decode="cpu", resize=None, num_views=1, size=16, channels=1, boxes=True)
    _, (cut,) = DaliDecoder(lambda: batch, boxes, threads=1).run()
    for whole, box in zip(decoded, dense_clips(cut, 2), strict=True):
        assert torch.equal(box, whole[:, 2:19, 3:32])


@pytest.mark.parametrize("layout", ["video", "files"])
def test_a_videos_luma_is_the_grey_of_its_colours(layout: str, tmp_path: Path) -> None:
    corpus = open_corpus([_videos(tmp_path, layout)])
    request = ClipRequest(0, np.arange(3), (View(Crop(0, 0, 8, 8, False)),))
    source = ClipSource(corpus, iter(()), read_threads=1, prefetch=0)
    fetched = source.fetch(request)
    grey, colour = (ClipDecoder(corpus, channels).decode(fetched).numpy() for channels in (1, 3))
    source.close()
    assert (*grey.shape[:3], 3) == colour.shape
    assert grey.std() > 10
    assert np.abs(with_channels(colour, 1).astype(int) - grey).mean() < 2


def _videos(folder: Path, layout: str) -> Path:
    from tests.support.datasets import run_build
    from tests.support.media import make_video

    make_video(folder / "in" / "a.mp4", 8)
    if layout == "files":
        from preprocess.__main__ import main

        assert main(["index", "--videos", str(folder / "in"), "--out", str(folder / "out")]) == 0
        return folder / "out"
    return run_build(folder / "out", "--videos", folder / "in", "--layout", "video", "--fps", "10")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), samples=4, frames=6)


def loader(corpus: Corpus, size: Size, **settings: Any) -> Loader:
    more = {name: settings.pop(name) for name in list(settings) if name in ("channels",)}
    return Loader(corpus, replace(CONFIG, **settings), num_frames=4, size=size, seed=0, global_batch=2, **more)


@pytest.mark.parametrize("windows", ["own", "shared"])
def test_a_loader_gives_grey_views_of_any_shape(dataset: Path, windows: str) -> None:
    corpus = open_corpus([dataset])
    wide, colour = (loader(corpus, (16, 24), channels=channels, windows=windows) for channels in (1, 3))
    ours, theirs = next(wide), next(colour)
    wide.close(), colour.close()
    assert ours.clips.shape == (2, 2, 4, 16, 24, 1)
    assert torch.equal(ours.positions, theirs.positions)
    assert np.abs(with_channels(theirs.clips.numpy(), 1).astype(int) - ours.clips.numpy()).max() <= 4
    stream = evaluation_clips(corpus, CONFIG, rows=np.arange(2), num_frames=4, size=(16, 24), channels=1, num_crops=3)
    assert next(stream).clips.shape == (2, 3, 4, 16, 24, 1)
    stream.close()


def test_shape_and_channels_are_part_of_a_runs_sequence_and_old_runs_go_on(dataset: Path) -> None:
    corpus = open_corpus([dataset])
    square, wide, grey = loader(corpus, 16), loader(corpus, (16, 24)), loader(corpus, 16, channels=1)
    state = square.state_dict()
    assert state["fingerprint"]["size"] == 16
    assert "channels" not in state["fingerprint"]
    assert wide.state_dict()["fingerprint"]["size"] == [16, 24]
    for other, message in ((wide, r"size: was 16, is \[16, 24\]"), (grey, "channels: was None, is 1")):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)


def fake(*layouts: Layout) -> Any:
    return SimpleNamespace(datasets=[SimpleNamespace(location=f"d{i}", layout=one) for i, one in enumerate(layouts)])


def test_channels_that_a_dataset_does_not_have_are_refused_before_anything_is_read(dataset: Path) -> None:
    thermal = replace(JPEG, name="png", channels=1, bits=16)
    assert [check_channels(fake(JPEG), channels) for channels in (None, 1, 3)] == [3, 1, 3]
    assert [check_channels(fake(thermal), channels) for channels in (None, 1, 3)] == [1, 1, 3]
    assert check_channels(fake(replace(thermal, channels=4)), None) == 4
    with pytest.raises(ValueError, match=r"4 channels, layout jpeg holds grey or colour.*--layout png.*in_chans 1"):
        loader(open_corpus([dataset]), 16, channels=4)
    with pytest.raises(ValueError, match=r"d0: no frames of 3 channels, its frames have 4: give model.in_chans 4"):
        check_channels(fake(replace(thermal, channels=4)), 3)
    with pytest.raises(ValueError, match=r"8 and of 16 bits"):
        check_channels(fake(replace(thermal, bits=8), thermal), 1)


@pytest.mark.parametrize("setting", [{"rand_augment": "rand-m7"}, {"colour_jitter": 0.4}])
def test_colours_are_changed_in_grey_and_colour_of_eight_bits_alone(setting: dict[str, Any]) -> None:
    config = replace(CONFIG, **setting)
    assert check_channels(fake(JPEG), 1, config) == 1
    deep = replace(JPEG, name="png", channels=1, bits=16)
    many = replace(deep, channels=4, bits=8)
    for layout, channels in ((deep, 1), (many, 4)):
        with pytest.raises(ValueError, match=rf"data.{next(iter(setting))}.* have {channels} of {layout.bits} bits"):
            check_channels(fake(layout), channels, config)


@pytest.mark.parametrize("name", OPS)
def test_ops_of_grey_are_those_of_three_equal_channels(name: str) -> None:
    grey = torch.from_numpy(noise((2, 12, 20, 1)))
    amount = {"posterize": 3, "solarize": 100, "solarize_add": 50, "rotate": 20}.get(name, 0.3)
    ours, theirs = (OPS[name](clip, amount) for clip in (grey, grey.expand(-1, -1, -1, 3).contiguous()))
    assert ours.shape == grey.shape
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_what_is_erased_of_sixteen_bits_is_noise_of_sixteen_bits() -> None:
    clips = torch.zeros(1, 2, 16, 24, 2, dtype=torch.int32).to(torch.uint16)
    apply_views(clips, [View(Crop(0, 0, 16, 24, False), (), Erase(4, 6, 8, 12, seed=1))])
    box = clips[0, :, 4:12, 6:18].float()
    assert (clips.float().sum() - box.sum()) == 0
    assert box.mean() / 65535 == pytest.approx(0.45, abs=0.05)
    assert box.max() > 255


def test_grey_becomes_colour_and_colour_its_luma_in_its_own_bits() -> None:
    grey, colour = noise((2, 3, 4, 1), 65535), noise((2, 3, 4, 3))
    assert np.array_equal(with_channels(grey, 3), grey.repeat(3, axis=-1))
    assert np.array_equal(with_channels(with_channels(grey, 3), 1), grey)
    assert with_channels(grey, 3).dtype == np.uint16
    theirs = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in colour])
    assert np.abs(with_channels(colour, 1)[..., 0].astype(int) - theirs).max() <= 1
    assert with_channels(colour, 3) is colour


@pytest.mark.parametrize("channels", [1, 3])
def test_dali_resizes_to_the_views_shape_as_a_gpu_does_it(channels: int) -> None:
    batch = encoded(["RGB", "L"])
    graph = JpegGraph(max_frames=2, decode="cpu", resize="cpu", num_views=1, size=(12, 20), channels=channels)
    encoded_batch, outputs = DaliDecoder(lambda: batch, graph, threads=1).run()
    views = copied_views(encoded_batch, outputs, torch.device("cpu"))
    assert views.shape == (2, 1, 1, 12, 20, channels)
    whole = []
    for clip, parts in zip(batch.clips, batch.parts, strict=True):
        size = (24 + 8 * clip.row, 40)
        whole.append(torch.from_numpy(np.stack(jpeg_frames(FetchedClip(clip, parts), size, channels))))
    theirs = cut_on_device(whole, [clip.views for clip in batch.clips], size=(12, 20), device=torch.device("cpu"))
    assert (views[:, 0].float() - theirs.float()).abs().mean() < 2  # filters that reach beyond a box
