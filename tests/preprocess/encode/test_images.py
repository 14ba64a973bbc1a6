import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.encode import images as stills
from preprocess.encode.images import Check, decode_image, decode_strictly, jpeg_header, stored_frame
from tests.support.media import make_frame_folder, numbered_image

SIZE = (160, 120)


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    numbered_image(9, SIZE).save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    for at in np.random.default_rng(0).integers(700, len(data) - 2, 40):
        changed[at] ^= 4
    return bytes(changed)


def store(data: bytes, check: Check, size: tuple[int, int] = SIZE) -> bytes:
    return stored_frame(data, jpeg_header(data), size, quality=90, check=check)[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which decoders were called."""
    calls: list[str] = []

    def noting(name: str, real: Callable[[bytes], object]) -> None:
        monkeypatch.setattr(stills, name, lambda data: (calls.append(name), real(data))[1])

    noting("decode_strictly", decode_strictly)
    noting("decode_image", decode_image)
    return calls


def test_by_its_header_a_jpeg_passes_without_being_decoded(decoded: list[str]) -> None:
    assert store(jpeg(), "header") == jpeg()
    assert decoded == []
    assert store(jpeg(), "decode") == jpeg()
    assert decoded == ["decode_strictly"]


def test_by_its_header_damage_in_the_middle_is_not_found_and_a_missing_end_is() -> None:
    assert store(flipped(jpeg()), "header") == flipped(jpeg())
    with pytest.raises(ValueError, match="damaged JPEG"):
        store(flipped(jpeg()), "decode")
    for check in ("header", "decode"):
        with pytest.raises(ValueError, match="end is missing"):
            store(jpeg()[:-2], check)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}],
)
def test_by_its_header_what_trainers_cannot_read_is_still_made_anew(options: dict[str, object]) -> None:
    header = jpeg_header(store(jpeg(**options), "header"))
    assert header is not None
    assert header.baseline
    assert header.orientation == 1
    header = jpeg_header(store(jpeg(), "header", (80, 60)))
    assert header is not None
    assert (header.width, header.height) == (80, 60)


def test_what_is_made_anew_of_a_damaged_jpeg_is_refused_whatever_the_check() -> None:
    with pytest.raises(ValueError, match="damaged JPEG"):
        store(flipped(jpeg()), "header", (80, 60))


def test_single_flipped_bits_are_found_more_often_than_by_a_plain_decoder() -> None:
    data = jpeg()
    found = plain = 0
    rng = np.random.default_rng(0)
    for at, bit in zip(rng.integers(640, len(data) - 2, 200), rng.integers(0, 8, 200), strict=True):
        changed = bytearray(data)
        changed[at] ^= 1 << bit
        try:
            decode_strictly(bytes(changed))
        except ValueError:
            found += 1
        try:
            Image.open(io.BytesIO(bytes(changed))).load()
        except OSError:
            plain += 1
    assert found > 20 > 2 * plain


def test_the_command_line_takes_the_check_and_keeps_builds_of_both_kinds_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_frame_folder(tmp_path / "frames" / "v", 4, size=SIZE)
    (tmp_path / "frames" / "ledger.csv").write_text("v 1 4 0\n")
    bad = folder / "img_00003.jpg"
    bad.write_bytes(flipped(bad.read_bytes()))
    run = ["build", "--frames", str(tmp_path / "frames"), "--workers", "1", "--out"]
    assert main([*run, str(tmp_path / "a"), "--check", "header"]) == 0
    assert int(open_dataset(tmp_path / "a").num_frames[0]) == 4
    assert main([*run, str(tmp_path / "b")]) == 2
    assert "img_00003.jpg: damaged JPEG" in capsys.readouterr().err
    assert main([*run, str(tmp_path / "a")]) == 2
    assert "check" in capsys.readouterr().err
