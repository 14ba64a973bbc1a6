"""Crops on the CPU: Pillow's pixels, and memory that is never anybody else's while a batch is held."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.decoding.clip_decoder import jpeg_frames
from pipelines.decoding.crops import Cropper, cut_box, resize, resize_by_torch
from pipelines.decoding.dali import DaliDecoder, JpegGraph, dense_clips
from pipelines.reading.source import EncodedBatch, FetchedClip
from pipelines.sampling.augment import Crop, View
from pipelines.sampling.requests import BatchRequest, ClipRequest
from preprocess.encode.images import encode_planes
from tests.support import launch
from tests.support.guard import ENDS, guarded

SIZE = 32


def noise(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


def cut(cropper: Cropper, clip: torch.Tensor) -> torch.Tensor:
    return cropper.cut([clip], [(View(Crop(0, 0, *clip.shape[1:3], False)),)], boxed=False)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(48, 60), (20, 31), (32, 32), (32, 90), (5, 7), (1, 1)])
def test_a_box_is_resized_to_pillows_pixels(box: tuple[int, int], flip: bool) -> None:
    clip, top, left = noise(3, 64, 100), 9, 4
    crop = Crop(top, left, *box, flip)
    views = Cropper(size=SIZE, threads=1).cut([clip], [(View(crop),)], boxed=False)
    assert views.shape == (1, 3, SIZE, SIZE, 3)
    for frame, ours in zip(clip.numpy(), views[0].numpy(), strict=True):
        area = (left, top, left + box[1], top + box[0])
        theirs = np.asarray(Image.fromarray(frame).crop(area).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        assert np.abs((theirs[:, ::-1] if flip else theirs).astype(int) - ours).max() <= 1


def test_flipping_before_the_resize_is_flipping_after_it() -> None:
    box = noise(2, 45, 61)
    plain, flipped = torch.empty(2, 2, SIZE, SIZE, 3, dtype=torch.uint8)
    resize(box, False, plain)
    resize(box, True, flipped)
    assert torch.equal(plain.flip(2), flipped)


def test_threads_and_boxes_cut_alike() -> None:
    clips = [noise(2, 40, 50, seed=1), noise(2, 70, 36, seed=2)]
    views = [(View(Crop(3, 5, 30, 33, True)),), (View(Crop(0, 0, 70, 36, False)),)]
    alone = Cropper(size=SIZE, threads=1).cut(clips, views, boxed=False)
    cropper = Cropper(size=SIZE, threads=3)
    assert torch.equal(cropper.cut(clips, views, boxed=False), alone)
    assert torch.equal(cropper.cut([clips[0][:, 3:33, 5:38], clips[1]], views, boxed=True), alone)
    cropper.close()


def test_memory_is_used_again_once_nobody_holds_any_part_of_it() -> None:
    cropper = Cropper(size=SIZE, threads=1)
    clips = [noise(2, 40, 40, seed=seed) for seed in range(6)]
    first = cut(cropper, clips[0])
    place, part, copy = first.data_ptr(), first[0, 1, :4], first.clone()
    del first
    others = [cut(cropper, clip) for clip in clips[1:]]  # all held
    assert torch.equal(part, copy[0, 1, :4])
    assert len({place, *(other.data_ptr() for other in others)}) == len(clips)
    numpy_part = others[0].numpy()[0]
    expected = numpy_part.copy()
    others.clear()
    for clip in clips:
        cut(cropper, clip)
    assert (numpy_part == expected).all()
    del part
    assert place in {cut(cropper, clip).data_ptr() for clip in clips}


def test_only_a_views_box_is_decoded_and_to_the_same_pixels() -> None:
    clips, parts = [], []
    for number, (height, width) in enumerate([(64, 96), (50, 71), (64, 96)]):
        crop = Crop(7 + number, 3, 40 - number, 45 + number, bool(number % 2))
        clips.append(ClipRequest(number, np.arange(2), (View(crop),)))
        parts.append([])
        for frame in noise(2, height, width, seed=number).numpy():
            jpeg = io.BytesIO()
            smooth = Image.fromarray(frame).resize((width // 8, height // 8)).resize((width, height))
            smooth.save(jpeg, "JPEG", quality=90)  # 4:2:0: chroma is shared across the box's edge
            parts[-1].append(np.frombuffer(jpeg.getvalue(), dtype=np.uint8))
    batch = EncodedBatch(BatchRequest(0, np.arange(3), tuple(clips), 1), tuple(clips), tuple(parts), (False,) * 3)

    def decoded(*, boxes: bool) -> list[torch.Tensor]:
        graph = JpegGraph(max_frames=6, decode="cpu", resize=None, num_views=1, size=SIZE, boxes=boxes)
        decoder = DaliDecoder(lambda: batch, graph, threads=1)
        _, (images,) = decoder.run()
        return [clip.clone() for clip in dense_clips(images, 3)]

    boxes, whole = decoded(boxes=True), decoded(boxes=False)
    assert [clip.shape[1:3] for clip in boxes] == [clip.views[0].crop[2:4] for clip in clips]
    assert [clip.shape[1:3] for clip in whole] == [(64, 96), (50, 71), (64, 96)]
    for clip, box, everything in zip(clips, boxes, whole, strict=True):
        assert torch.equal(box, cut_box(everything, clip.views[0].crop))


def test_fault_44_stored_frames_of_odd_sizes_decode_alike_in_dali_and_in_pillow() -> None:
    """One pixel in a direction makes it 4:4:4, 4:2:2 or 4:4:0."""
    sizes = [(1, 1), (1, 9), (9, 1), (2, 3), (25, 33), (24, 33), (25, 32)]
    clips, frames = [], []
    for number, (height, width) in enumerate(sizes):
        luma, chroma = noise(1, height, width)[0, ..., 0].numpy(), noise(2, -(-height // 2), -(-width // 2)).numpy()
        data = encode_planes(luma, chroma[0, ..., 1], chroma[1, ..., 2], quality=90)
        frames.append(guarded(np.frombuffer(data, np.uint8)))
        clips.append(ClipRequest(number, np.arange(1), (View(Crop(0, 0, height, width, False)),)))
    parts = tuple([frame] for frame in frames)
    batch = EncodedBatch(BatchRequest(0, np.arange(len(sizes)), tuple(clips), 1), tuple(clips), parts, (False,) * 7)
    graph = JpegGraph(max_frames=7, decode="cpu", resize=None, num_views=1, size=SIZE)
    decoder = DaliDecoder(lambda: batch, graph, threads=1)
    _, (images,) = decoder.run()
    for clip, jpeg, decoded in zip(clips, frames, dense_clips(images, len(sizes)), strict=True):
        (again,) = jpeg_frames(FetchedClip(clip, [jpeg]), tuple(decoded.shape[1:3]))
        assert np.array_equal(decoded[0], again)


def resize_between_guards() -> int:
    """Resize boxes of many sizes, input and output between forbidden pages; in a process of its own."""
    sides = (1, 2, 3, 7, 16, 17)
    for height, width, size, end, flip in itertools.product(sides, sides, (1, 5, 32), ENDS, (False, True)):
        pixels = noise(2, height, width)
        plain = torch.empty(2, size, size, 3, dtype=torch.uint8)
        resize_by_torch(pixels, flip, plain)
        for function in (resize, resize_by_torch):
            out = torch.from_numpy(guarded(np.empty((2, size, size, 3), np.uint8), end=end))
            function(torch.from_numpy(guarded(pixels.numpy(), end=end)), flip, out)
            assert torch.equal(out, plain)
    return 0


def test_fault_44_no_pixel_beyond_a_box_is_read_or_written() -> None:
    assert launch.result_of(launch.call(resize_between_guards), timeout=120) == 0
