"""TIFF stacks and DICOM files: every kind that is read, with exact levels, and what is refused, with the reason."""

import io
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.uid import (
    MPEG4HP41,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from mae3d.video.clip import VideoError, read_clip
from mae3d.video.errors import MediaError
from mae3d.video.levels import StackFacts, Window, widened, windowed
from mae3d.video.stacks import open_stack
from tests.support.stacks import encapsulated, random_frames, write_dicom

GREY = random_frames(4)
TWELVE = random_frames(4, bits=12)
FOUR = random_frames(4, channels=4)
RGB = random_frames(4, channels=3, bits=8)
SIGNED = (TWELVE.astype(np.int32) - 2048).astype(np.int16)


def read(path: Path, window: Window | None = None, bits: int = 16) -> tuple[StackFacts, np.ndarray]:
    with open_stack(path) as stack:
        return stack.facts, np.stack(list(stack.frames(range(stack.facts.num_frames), window=window, bits=bits)))


def refusal(path: Path) -> MediaError:
    with pytest.raises(MediaError) as caught:
        read(path)
    return caught.value


def write_tiff(path: Path, values: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(path, values, **{"photometric": "minisblack"} | options)


def first_axis(values: np.ndarray) -> np.ndarray:
    """Channels before height and width."""
    return values.transpose(0, 3, 1, 2)


TIFFS: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]] = {
    "16 bits": (GREY[..., 0], GREY, {}),
    "8 bits, pages apart": (RGB[..., 0], RGB[..., :1], {"metadata": None}),
    "deflated": (GREY[..., 0], GREY, {"compression": "zlib", "predictor": 2}),
    "BigTIFF of another byte order": (GREY[..., 0], GREY, {"bigtiff": True, "byteorder": ">"}),
    "one page": (GREY[0, ..., 0], GREY[:1], {}),
    "RGB": (RGB, RGB, {"photometric": "rgb"}),
    "alpha": (FOUR, FOUR[..., :3], {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "four channels": (FOUR, FOUR, {"photometric": "minisblack", "planarconfig": "contig"}),
    "planar": (first_axis(FOUR), FOUR, {"photometric": "minisblack", "planarconfig": "separate"}),
    "white is zero": (GREY[..., 0], ~GREY, {"photometric": "miniswhite"}),
    "ImageJ": (first_axis(FOUR), FOUR, {"imagej": True, "metadata": {"axes": "TCYX", "fps": 7.5}}),
    "OME": (FOUR.transpose(3, 0, 1, 2), FOUR, {"ome": True, "metadata": {"axes": "CTYX"}}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_pages_of_a_tiff_are_frames(tmp_path: Path, kind: str) -> None:
    values, expected, options = TIFFS[kind]
    write_tiff(tmp_path / "a.tif", values, **options)
    facts, frames = read(tmp_path / "a.tif")
    assert frames.dtype == expected.dtype
    np.testing.assert_array_equal(frames, expected)
    assert (facts.num_frames, facts.height, facts.width, facts.channels) == expected.shape
    assert facts.bits == 8 * expected.itemsize
    assert (facts.fps == 7.5) == (kind == "ImageJ")
    with open_stack(tmp_path / "a.tif") as stack:
        (last,) = stack.frames([len(expected) - 1])
    np.testing.assert_array_equal(last, expected[-1])


def test_one_page_may_describe_all_frames_as_in_large_files_of_imagej(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, GREY[..., 0], imagej=True, metadata={"axes": "TYX"})
    with tifffile.TiffFile(path) as file:
        first = file.pages[0].offset
    data = bytearray(path.read_bytes())
    order = "<" if data[:2] == b"II" else ">"
    (num_tags,) = struct.unpack_from(f"{order}H", data, first)
    struct.pack_into(f"{order}I", data, first + 2 + 12 * num_tags, 0)  # there is no second page
    path.write_bytes(data)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
    np.testing.assert_array_equal(read(path)[1], GREY)
    path.write_bytes(data[: GREY.nbytes // 2])
    assert refusal(path).reason == "undecodable"


def test_a_part_that_is_missing_is_not_filled(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, GREY[..., 0], compression="zlib")
    with tifffile.TiffFile(path) as file:
        tag: Any = file.pages[2].aspage().tags["StripByteCounts"]
    data = bytearray(path.read_bytes())
    data[tag.valueoffset : tag.valueoffset + tag.valuebytecount] = bytes(tag.valuebytecount)
    path.write_bytes(data)
    error = refusal(path)
    assert (error.reason, error.frame) == ("undecodable", 2)


def test_a_window_maps_any_values_onto_all_levels(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", GREY[..., 0].astype(np.float32) / 100 - 50)
    error = refusal(tmp_path / "a.tif")
    assert (error.reason, error.frame) == ("needs_window", 0)
    assert "float32" in str(error)
    assert "--window" in str(error)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", (-50, 605.35))[1], GREY)
    eight = read(tmp_path / "a.tif", (0, 255), 8)[1]
    np.testing.assert_array_equal(eight, np.rint((GREY / 100 - 50).clip(0, 255)))
    np.testing.assert_array_equal(windowed(np.array([np.nan, -1, 2.0]), (0, 1), bits=8), [0, 0, 255])


@pytest.mark.parametrize("stored_bits", range(1, 17))
def test_fewer_bits_are_spread_so_that_they_come_back(stored_bits: int) -> None:
    values, most = np.arange(1 << stored_bits), (1 << stored_bits) - 1
    levels = widened(values, stored_bits=stored_bits)
    top = np.iinfo(levels.dtype).max
    assert (levels[0], levels[-1]) == (0, top)
    np.testing.assert_array_equal(np.rint(levels * (most / top)), values)
    assert np.abs(levels - values * (top / most)).max() <= 0.5  # the nearest


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def test_a_tiff_that_is_no_single_video_or_damaged_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GREY[0, ..., 0], photometric="minisblack")
        file.write(GREY[0, :8, :, 0], photometric="minisblack")
    assert refusal(path).reason == "mixed_sizes"
    write_tiff(path, first_axis(FOUR), ome=True, metadata={"axes": "TZYX"})
    assert "T 4, Z 4" in str(refusal(path))
    for options in ({"metadata": None}, {"compression": "zlib"}, {}):
        write_tiff(path, GREY[..., 0], **options)
        path.write_bytes(cut(path.read_bytes()))
        assert refusal(path).reason == "undecodable"
    write_tiff(path, GREY[..., 0])
    with pytest.raises(MediaError, match=r"20x16.*300"), open_stack(path, max_pixels=300):
        pass
    path.write_bytes(b"no picture" * 20)
    assert refusal(path).reason == "unknown_format"
    assert refusal(tmp_path / "missing").reason == "missing_file"


DICOMS: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]] = {
    "12 bits": (TWELVE, widened(TWELVE, stored_bits=12), {"stored": 12, "FrameTime": 40}),
    "white is zero": (
        TWELVE,
        ~widened(TWELVE, stored_bits=12),
        {"stored": 12, "PhotometricInterpretation": "MONOCHROME1"},
    ),
    "signed": (SIGNED, (SIGNED.astype(np.int32) + 32768).astype(np.uint16), {}),
    "8 bits": (RGB[..., :1], RGB[..., :1], {"FrameTimeVector": [0, 100, 100, 100]}),
    "RGB": (RGB, RGB, {"CineRate": 15}),
    "run lengths": (TWELVE, widened(TWELVE, stored_bits=12), {"stored": 12, "compress": RLELossless}),
    "run lengths of RGB": (RGB, RGB, {"compress": RLELossless, "RecommendedDisplayFrameRate": 30}),
    "implicit": (GREY, GREY, {"syntax": ImplicitVRLittleEndian}),
}
RATES = {"12 bits": 25, "8 bits": 10, "RGB": 15, "run lengths of RGB": 30}


@pytest.mark.parametrize("kind", DICOMS)
def test_frames_of_a_dicom_file_are_levels(tmp_path: Path, kind: str) -> None:
    values, expected, tags = DICOMS[kind]
    facts, frames = read(write_dicom(tmp_path / "a", values, **tags))
    assert frames.dtype == expected.dtype
    np.testing.assert_array_equal(frames, expected)
    assert (facts.num_frames, facts.height, facts.width, facts.channels) == expected.shape
    assert facts.fps == pytest.approx(RATES.get(kind, np.nan), nan_ok=True)
    assert (facts.bits, facts.series) == (8 * expected.itemsize, "")


def test_a_window_is_of_values_after_slope_and_intercept(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", SIGNED, RescaleSlope=2, RescaleIntercept=-24)
    expected = windowed(SIGNED * 2.0 - 24, (-1000, 1000), bits=8)
    np.testing.assert_array_equal(read(path, (-1000, 1000), 8)[1], expected)
    assert 0 < expected.mean() < 255


def test_palettes_are_colours(tmp_path: Path) -> None:
    entries = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), entries, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    grey = RGB[..., 0]
    facts, frames = read(write_dicom(tmp_path / "a", grey[..., None], **tags))
    np.testing.assert_array_equal(frames, (entries >> 8).astype(np.uint8).T[grey])
    assert (facts.channels, facts.bits) == (3, 8)


def pictures(kind: str, **options: Any) -> tuple[list[bytes], list[np.ndarray]]:
    """RGB frames as files of Pillow's, and what Pillow reads of them."""
    files = []
    for frame in RGB:
        buffer = io.BytesIO()
        Image.fromarray(np.kron(frame, np.ones((4, 4, 1), np.uint8))).save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files, [np.asarray(Image.open(io.BytesIO(data))) for data in files]


def test_compressed_pictures_are_those_that_pillow_reads(tmp_path: Path) -> None:
    path, size = write_dicom(tmp_path / "a", RGB), {"Rows": 64, "Columns": 80}
    files, expected = pictures("JPEG", quality=95)
    encapsulated(path, files, JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422", **size)
    assert np.abs(read(path)[1].astype(int) - np.stack(expected)).max() <= 1
    files, expected = pictures("JPEG2000", irreversible=False, no_jp2=True)
    encapsulated(path, files, JPEG2000Lossless, PhotometricInterpretation="YBR_RCT", **size)
    np.testing.assert_array_equal(read(path)[1], np.stack(expected))
    encapsulated(path, files, JPEGLSLossless)
    error = refusal(path)
    assert error.reason == "no_decoder"
    assert "pip install pylibjpeg" in str(error)


def test_a_stream_of_video_is_decoded_as_videos_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 240, 20):
            picture = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    path = write_dicom(tmp_path / "a", RGB, FrameTime=100)
    tags = {"NumberOfFrames": 12, "Rows": 48, "Columns": 64}
    encapsulated(path, [buffer.getvalue()], MPEG4HP41, **tags)
    with open_stack(path) as stack:
        means = [frame.mean() for frame in stack.frames([0, 5, 11])]
        assert (stack.facts.fps, stack.facts.channels, stack.facts.bits) == (10, 3, 8)
    np.testing.assert_allclose(means, [0, 100, 220], atol=3)
    encapsulated(path, [buffer.getvalue()], MPEG4HP41, NumberOfFrames=13)
    assert "lacks frames" in str(refusal(path))


@pytest.mark.parametrize(
    ("change", "reason", "frame"),
    [
        (lambda path: write_dicom(path, GREY, PixelData=None), "no_pixels", -1),
        (lambda path: write_dicom(path, GREY, NumberOfFrames=6), "undecodable", 4),
        (lambda path: write_dicom(path, TWELVE, compress=RLELossless, NumberOfFrames=4), "", -1),
        (lambda path: path.write_bytes(write_dicom(path, GREY).read_bytes()[:-700]), "undecodable", 2),
        (lambda path: path.write_bytes(write_dicom(path, GREY).read_bytes()[:200]), "no_pixels", -1),
        (lambda path: write_dicom(path, GREY.astype(np.uint32), PixelRepresentation=0), "needs_window", 0),
    ],
    ids=["no pixels", "missing frames", "whole", "cut", "header only", "32 bits"],
)
def test_a_dicom_file_that_cannot_be_had_says_why(
    tmp_path: Path, change: Callable[[Path], object], reason: str, frame: int
) -> None:
    path = tmp_path / "a"
    change(path)
    if not reason:
        assert len(read(path)[1]) == 4
        return
    error = refusal(path)
    assert (error.reason, error.frame) == (reason, frame)


@pytest.mark.parametrize("package", ["pydicom", "tifffile"])
def test_a_missing_package_is_named_with_its_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    write_dicom(tmp_path / "pydicom", GREY)
    write_tiff(tmp_path / "tifffile", GREY[..., 0])
    monkeypatch.setitem(sys.modules, package, None)
    error = refusal(tmp_path / package)
    assert error.reason == "no_decoder"
    assert "pip install 'mae3d[medical]'" in str(error)


@dataclass(frozen=True)
class Shape:
    """The sizes of a model's clips."""

    num_frames: int
    height: int
    width: int
    in_chans: int


def test_a_stack_is_read_as_a_clip_for_a_model_of_its_channels(tmp_path: Path) -> None:
    frames = random_frames(12, channels=4)
    write_tiff(tmp_path / "a.tif", frames, planarconfig="contig")
    clip = read_clip(tmp_path / "a.tif", Shape(4, 16, 20, 4), sampling_rate=2).numpy()
    np.testing.assert_array_equal(clip, frames[None, 2:10:2])
    square = read_clip(tmp_path / "a.tif", Shape(4, 8, 8, 4), sampling_rate=2).numpy()
    assert (square.shape, square.dtype) == ((1, 4, 8, 8, 4), np.uint16)
    assert abs(square.mean() - frames[2:10:2].mean()) < 2000
    with pytest.raises(VideoError, match=r"4 channels.*3"):
        read_clip(tmp_path / "a.tif", Shape(4, 8, 8, 3))
    write_dicom(tmp_path / "b", SIGNED, FrameTime=100)
    windowed_clip = read_clip(tmp_path / "b", Shape(4, 16, 20, 1), target_fps=10, sampling_rate=1, window=(-100, 100))
    np.testing.assert_array_equal(windowed_clip.numpy()[0], windowed(SIGNED, (-100, 100), bits=16))
