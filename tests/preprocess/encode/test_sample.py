import errno
import io
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae3d.video.errors import MediaError
from preprocess.encode.images import decode_image, decode_strictly, encode_jpeg, jpeg_header, scaled_size
from preprocess.encode.sample import encode_sample
from preprocess.plan.samples import Facts, PlannedSample, kept_frames, media_files
from preprocess.plan.settings import Settings
from preprocess.sources.roots import Folder
from tests.support.media import frame_number, make_frame_folder, make_video, numbered_image, psnr


def encode(row: PlannedSample, root: Path, **settings: float) -> tuple[Facts, list[bytes]]:
    stored: list[bytes] = []
    asked = Settings(**settings)  # type: ignore[arg-type]
    with Folder(root).local(media_files(row, asked)) as files:
        facts = encode_sample(row, files, settings=asked, sink=stored.append)
    assert facts.num_frames == len(stored)
    return facts, stored


def folder_row(stop: int, *, suffix: str = ".jpg", start_s: float = math.nan) -> PlannedSample:
    where = {"prefix": "img_", "digits": 5, "suffix": suffix}
    return PlannedSample(
        0, 0, "frames", 0, "v", "v", [], "", first=1, stop=stop, start_s=start_s, stop_s=math.nan, **where
    )  # type: ignore[arg-type]


def video_row(start_s: float = 0.0, stop_s: float = math.inf) -> PlannedSample:
    return PlannedSample(0, 0, "video", 0, "v.mp4", "v.mp4", [], "", start_s=start_s, stop_s=stop_s)


def numbers(stored: list[bytes]) -> list[int]:
    return [frame_number(decode_image(data)) for data in stored]


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_fitting_jpegs_pass_through_untouched(tmp_path: Path) -> None:
    folder = make_frame_folder(tmp_path / "v", 5)
    facts, stored = encode(folder_row(6), tmp_path)
    assert stored == [(folder / f"img_{i:05d}.jpg").read_bytes() for i in range(1, 6)]
    assert (facts.first, facts.stop, facts.width, facts.height) == (1, 6, 64, 48)
    assert math.isnan(facts.fps)
    assert math.isnan(facts.start_s)


def test_large_frames_are_scaled_down_and_small_ones_left(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "v", 3, size=(96, 64))
    facts, stored = encode(folder_row(4), tmp_path, short_side=32)
    assert (facts.width, facts.height) == (48, 32)
    for number, data in enumerate(stored):
        header = jpeg_header(data)
        assert header is not None
        assert header.baseline
        assert (header.width, header.height) == (48, 32)
        assert psnr(decode_image(data), numbered_image(number, (96, 64)).resize((48, 32))) > 28
    assert scaled_size(64, 48, 256) == (64, 48)
    assert scaled_size(1920, 1080, 256) == (455, 256)
    assert scaled_size(10_000, 20, 10) == (5000, 10)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer must turn it by 90 degrees clockwise
    return jpeg(numbered_image(9).transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)


def png(mode: str) -> bytes:
    buffer = io.BytesIO()
    image = numbered_image(9)
    if mode == "RGBA":
        image.putalpha(255)
    else:
        image = image.convert(mode) if mode != "P" else image.quantize(256)
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "gray"),
    [
        (jpeg(numbered_image(9), progressive=True, quality=95), False),
        (jpeg(numbered_image(9).convert("L"), quality=95), True),
        (jpeg(numbered_image(9).convert("CMYK"), quality=95), False),
        (rotated(), False),
        (png("RGB"), False),
        (png("RGBA"), False),
        (png("L"), True),
        (png("P"), False),
    ],
    ids=["progressive", "gray", "cmyk", "exif", "png", "alpha", "png-gray", "palette"],
)
def test_fault_09_unfit_images_become_baseline_rgb(tmp_path: Path, data: bytes, gray: bool) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "img_00001.jpg").write_bytes(data)  # whatever it is, it calls itself .jpg
    facts, (stored,) = encode(folder_row(2), tmp_path)
    header = jpeg_header(stored)
    assert header is not None
    assert (header.baseline, header.bits, header.components, header.orientation) == (True, 8, 3, 1)
    assert (facts.width, facts.height) == (64, 48)
    expected = numbered_image(9).convert("L") if gray else numbered_image(9)
    assert psnr(decode_image(stored).convert(expected.mode), expected) > 25


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "empty file"),
        (lambda data: data[: len(data) // 2], "end is missing"),
        (lambda data: data[:200], "end is missing"),
        (lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "end is missing"),
        (lambda data: b"<html>not found</html>", "not an image"),
        (lambda data: flip(data), "damaged JPEG"),
    ],
    ids=["empty", "half", "header", "zero tail", "html", "flipped"],
)
def test_fault_09_a_damaged_frame_costs_its_sample_and_is_named(tmp_path: Path, damage: object, message: str) -> None:
    folder = make_frame_folder(tmp_path / "v", 4, size=(160, 120))
    bad = folder / "img_00003.jpg"
    bad.write_bytes(damage(bad.read_bytes()))  # type: ignore[operator]
    with pytest.raises(MediaError, match=message) as caught:
        encode(folder_row(5), tmp_path)
    assert (caught.value.reason, caught.value.frame) == ("bad_frame", 3)
    assert "img_00003.jpg" in str(caught.value)


def flip(data: bytes) -> bytes:
    """40 flipped bits in the scan, which libjpeg decodes without an error."""
    flipped = bytearray(data)
    for at in np.random.default_rng(0).integers(700, len(data) - 2, 40):
        flipped[at] ^= 4
    return bytes(flipped)


def test_what_a_phone_appends_to_a_picture_is_not_stored(tmp_path: Path) -> None:
    folder = make_frame_folder(tmp_path / "v", 1)
    picture = (folder / "img_00001.jpg").read_bytes()
    (folder / "img_00001.jpg").write_bytes(picture + b"film" * 1000)
    _, (stored,) = encode(folder_row(2), tmp_path)
    assert len(stored) < len(picture) + 1000
    assert numbers([stored]) == [0]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_rows": 1}, {"quality": 10}])
def test_strict_decoding_has_no_false_alarm(subsampling: str, options: dict[str, object]) -> None:
    for size in ((16, 16), (65, 33)):
        decode_strictly(jpeg(numbered_image(7, size), subsampling=subsampling, **options))


def test_fault_10_mixed_sizes_become_the_first(tmp_path: Path) -> None:
    folder = make_frame_folder(tmp_path / "v", 3)
    numbered_image(1, (128, 96)).save(folder / "img_00002.jpg", quality=95)
    facts, stored = encode(folder_row(4), tmp_path)
    assert {decode_image(data).size for data in stored} == {(64, 48)} == {(facts.width, facts.height)}
    assert numbers(stored) == [0, 1, 2]
    assert facts.remark == ("mixed_sizes", "1 of 3 frames are not of the first one's size; scaled to 64x48")


def test_fault_11_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    Image.new("1", (20_000, 10_000)).save(tmp_path / "v" / "img_00001.png")
    with pytest.raises(MediaError, match="too large"):
        encode(folder_row(2, suffix=".png"), tmp_path)


def test_a_frame_that_went_missing_since_the_plan_is_named(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "v", 3)
    with pytest.raises(MediaError, match=r"img_00004\.jpg is missing"):
        encode(folder_row(5), tmp_path)


def test_fault_37_a_frame_on_a_disk_that_has_gone_is_not_a_bad_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_frame_folder(tmp_path / "v", 3)
    for number, kind in ((errno.ESTALE, OSError), (errno.EMFILE, OSError), (errno.EIO, MediaError)):

        def fails(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", fails)
            with pytest.raises(kind, match=os.strerror(number)):
                encode(folder_row(4), tmp_path)


def test_frame_folders_are_thinned_to_the_rate_asked_for(tmp_path: Path) -> None:
    make_frame_folder(tmp_path / "v", 24)
    facts, stored = encode(folder_row(25, start_s=0.0), tmp_path, source_fps=24.0, fps=8.0)
    assert numbers(stored) == list(range(0, 24, 3))
    assert facts.fps == 8.0
    facts, stored = encode(folder_row(25, start_s=0.0), tmp_path, source_fps=24.0, fps=30.0)
    assert len(stored) == 24
    assert facts.fps == 24.0


def test_thinning_keeps_the_pace() -> None:
    kept = kept_frames(300, source_fps=30.0, fps=12.5)
    assert len(kept) == 125
    assert set(np.diff(kept)) == {2, 3}
    assert kept_frames(10, source_fps=29.97, fps=30.0) == list(range(10))


def test_a_video_gives_all_its_frames(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 30, fps=10, size=(96, 64))
    facts, stored = encode(video_row(), tmp_path, short_side=48)
    assert numbers(stored) == list(range(30))
    assert facts == Facts(30, 0, 30, 10.0, 0.0, 72, 48)
    assert decode_image(stored[0]).size == (72, 48)


def test_pieces_of_a_video_make_the_whole(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 30, fps=10)
    _, whole = encode(video_row(), tmp_path)
    cuts = [0.0, 0.95, 1.95, math.inf]
    pieces = [encode(video_row(start, stop), tmp_path) for start, stop in itertools.pairwise(cuts)]
    assert [data for _, stored in pieces for data in stored] == whole
    assert [(facts.first, facts.stop) for facts, _ in pieces] == [(0, 10), (10, 20), (20, 30)]
    assert [facts.start_s for facts, _ in pieces] == pytest.approx([0, 1, 2])


def test_a_video_is_resampled_by_its_times(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 30, fps=10)
    facts, stored = encode(video_row(), tmp_path, fps=5.0)
    assert numbers(stored) == list(range(0, 30, 2))
    assert facts.fps == 5.0
    facts, stored = encode(video_row(0.95, 1.95), tmp_path, fps=5.0)
    assert numbers(stored) == [10, 12, 14, 16, 18]
    assert facts.start_s == pytest.approx(1.0)
    facts, stored = encode(video_row(), tmp_path, fps=25.0)
    assert len(stored) == 30  # slower than asked for: left as it is
    assert facts.fps == 10.0


def test_fault_12_a_variable_rate_becomes_even(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.5, 1.6]
    make_video(tmp_path / "v.mp4", 8, times=times)
    facts, stored = encode(video_row(), tmp_path, fps=2.0)
    assert numbers(stored) == [0, 5, 5, 6]  # at 0, 0.5, 1.0 (a tie: the earlier one) and 1.5 s
    assert facts.fps == 2.0


def test_a_span_without_frames_is_a_reason(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 5, fps=10)
    with pytest.raises(MediaError, match="no frame between") as caught:
        encode(video_row(3.0, 4.0), tmp_path)
    assert caught.value.reason == "no_frames"


def test_encoding_does_not_depend_on_what_was_encoded_before() -> None:
    first = encode_jpeg(numbered_image(3), 90)
    encode_jpeg(numbered_image(200, (128, 128)), 50)
    assert encode_jpeg(numbered_image(3), 90) == first
