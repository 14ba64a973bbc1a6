"""Headers that decoders can be given, and the many that they cannot."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.reading.jpeg_header import HeaderError, scan_offset

SIZE = {"height": 48, "width": 64}


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(
        file, "JPEG", **options
    )
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"comment": b"\xff\xda"}, {"exif": b"Exif\0\0" + bytes(300)}],
    ids=str,
)
def test_the_scan_of_a_whole_file_is_found(options: dict[str, object]) -> None:
    data = jpeg(**options)
    offset = scan_offset(memoryview(data), **SIZE)
    header_length = int.from_bytes(data[offset - 10 - 2 :][:2])  # of three components: the scan's header has 12 bytes
    assert data[offset - 14 : offset - 12] == b"\xff\xda"
    assert header_length == 12


def test_fill_bytes_before_a_marker_are_passed_over() -> None:
    data = jpeg()
    assert scan_offset(data[:2] + b"\xff\xff" + data[2:], **SIZE) == scan_offset(data, **SIZE) + 2


def test_a_file_cut_anywhere_in_its_header_is_refused() -> None:
    data = jpeg()
    for length in range(scan_offset(data, **SIZE)):
        with pytest.raises(HeaderError):
            scan_offset(data[:length], **SIZE)


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(50), bytes(100), b"\xff\xd8" + bytes(100), b"<html>" * 20])
def test_what_is_no_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(HeaderError):
        scan_offset(data, **SIZE)


def test_another_size_than_the_index_says_is_refused() -> None:
    with pytest.raises(HeaderError, match="it is 48 x 64 pixels, the index says 48 x 65"):
        scan_offset(jpeg(), height=48, width=65)
