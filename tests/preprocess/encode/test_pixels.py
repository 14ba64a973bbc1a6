"""Picture files of 16 bits, of many channels or of floating point: their exact levels, and what is none of them."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tifffile
from PIL import Image

from mae3d.io.png import encode_png
from preprocess.__main__ import main
from preprocess.encode.pixels import deep_picture
from tests.support.stacks import random_frames, write_dicom

GREY, RGB, FOUR = (random_frames(1, channels=channels)[0] for channels in (1, 3, 4))
EIGHT = (RGB >> 8).astype(np.uint8)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"photometric": "minisblack"} | options)
    return buffer.getvalue()


def pnm(kind: int, values: np.ndarray, *, most: int = 65535) -> bytes:
    height, width = values.shape[:2]
    head = f"P{kind}\n# a comment\n{width} {height}\n{most}\n".encode()
    return head + (values.astype(">u2").tobytes() if kind > 3 else " ".join(map(str, values.ravel())).encode())


def saved(mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(EIGHT).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def rgba(values: np.ndarray) -> bytes:
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = values.shape[1], values.shape[0], "rgba64be"
    encoder.time_base = Fraction(1)
    return b"".join(bytes(packet) for packet in encoder.encode(av.VideoFrame.from_ndarray(values, "rgba64be")))


DEEP: dict[str, tuple[bytes, np.ndarray]] = {
    "PNG": (encode_png(GREY), GREY),
    "PNG, RGB": (encode_png(RGB), RGB),
    "PNG, alpha": (rgba(FOUR), FOUR[..., :3]),
    "PGM": (pnm(5, GREY) + b"\n", GREY),
    "PPM": (pnm(6, RGB), RGB),
    "PGM as text": (pnm(2, GREY), GREY),
    "TIFF": (tiff(GREY[..., 0]), GREY),
    "TIFF, RGB": (tiff(RGB, photometric="rgb"), RGB),
    "TIFF, four channels": (tiff(FOUR, planarconfig="contig"), FOUR),
    "TIFF, four of 8 bits": (tiff((FOUR >> 8).astype(np.uint8), planarconfig="contig"), (FOUR >> 8).astype(np.uint8)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_levels_are_those_of_the_file(kind: str) -> None:
    data, expected = DEEP[kind]
    deep = deep_picture(data)
    assert deep is not None
    assert (deep.height, deep.width, deep.channels) == expected.shape
    assert deep.bits == 8 * expected.itemsize
    levels = deep.levels(None, 16)
    assert levels.dtype == expected.dtype
    np.testing.assert_array_equal(levels, expected)
    most = np.iinfo(expected.dtype).max
    np.testing.assert_array_equal(deep.levels((0, most), 8), np.rint(expected * (255 / most)))


def test_alpha_is_a_channel_if_four_are_requested() -> None:
    deep = deep_picture(rgba(FOUR), channels=4)
    assert deep is not None
    np.testing.assert_array_equal(deep.levels(None, 16), FOUR)


def test_floating_point_needs_a_window() -> None:
    deep = deep_picture(tiff(GREY[..., 0].astype(np.float32)))
    assert deep is not None
    assert deep.bits == 0
    with pytest.raises(ValueError, match="--window"):
        deep.levels(None, 16)
    np.testing.assert_array_equal(deep.levels((0, 65535), 16), GREY)


@pytest.mark.parametrize(
    "data",
    [
        *(saved("RGB", "PNG"), saved("L", "PNG"), saved("RGBA", "PNG"), saved("RGB", "JPEG"), saved("RGB", "TIFF")),
        *(saved("P", "GIF"), saved("1", "TIFF"), saved("CMYK", "TIFF"), saved("RGB", "PPM"), b"", b"picture", b"P5 1"),
    ],
)
def test_what_others_read_is_left_to_them(data: bytes) -> None:
    assert deep_picture(data) is None


@pytest.mark.parametrize(
    "data",
    [encode_png(GREY)[:200], pnm(5, GREY)[:-9], pnm(2, GREY)[:-300], tiff(GREY[..., 0])[:-100]],
    ids=["PNG", "PGM", "PGM as text", "TIFF"],
)
def test_damage_is_an_error(data: bytes) -> None:
    deep = deep_picture(data)
    assert deep is not None
    with pytest.raises(ValueError, match=r"damaged|failed"):
        deep.levels(None, 16)


def test_frames_that_are_stacks_or_dicom_name_the_option_that_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiffs").mkdir()
    for number in range(2):
        write_dicom(tmp_path / "dicoms" / f"IM_{number:04d}.dcm", GREY[None])
        (tmp_path / "tiffs" / f"f_{number}.tif").write_bytes(tiff(random_frames(3)[..., 0]))
    for folder in ("tiffs", "dicoms"):
        run = ["build", "--frames", str(tmp_path / folder), "--layout", "png", "--out", str(tmp_path / f"{folder}-out")]
        assert main([*run, "--workers", "1"]) == 2
        assert "--stacks" in capsys.readouterr().err
