import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from preprocess.dataset.layout import JPEG
from preprocess.encode.tar_writer import GrowingHash, TarWriter, tar_header


@pytest.mark.parametrize("num_bytes", [0, 1, 511, 512, 12_345, 1 << 20, (8 << 30) - 1])
@pytest.mark.parametrize("name", ["0.json", "000000007.000123.jpg", "999999999.999999.jpg", "x" * 100])
def test_headers_are_those_that_tarfile_writes(name: str, num_bytes: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    assert tar_header(name, num_bytes) == info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def test_a_tar_is_what_tarfile_would_make_of_its_members() -> None:
    frames = [bytes([number]) * size for number, size in enumerate((1, 511, 512, 513, 5000))]
    ours = io.BytesIO()
    writer = TarWriter(ours, JPEG)
    writer.begin("000000001", 300)
    writer.add(b"lost")
    writer.abandon()
    for key in ("000000002", "000000003"):
        writer.begin(key, 300)
        for frame in frames:
            writer.add(frame)
        writer.finish({"name": key})
    writer.close()
    theirs = io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key in ("000000002", "000000003"):
            members = [(f"{key}.json", f'{{"name": "{key}"}}'.encode().ljust(300))]
            members += [(f"{key}.{number:06d}.jpg", frame) for number, frame in enumerate(frames)]
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert ours.getvalue() == theirs.getvalue()


def test_a_growing_file_has_the_hash_of_what_is_covered(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(256)) * 20_000  # more than is read at a time
    path.touch()
    with GrowingHash(path) as sha256:
        assert sha256.hexdigest() == hashlib.sha256().hexdigest()
        for stop in (1, 1000, 3_000_000, len(data)):
            path.write_bytes(data[:stop])
            sha256.cover(stop)
        assert sha256.hexdigest() == hashlib.sha256(data).hexdigest()
    with GrowingHash(path) as sha256:
        sha256.cover(1000)
        assert sha256.hexdigest() == hashlib.sha256(data[:1000]).hexdigest()


def test_a_file_that_is_shorter_than_said_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")
    with GrowingHash(path) as sha256:
        sha256.cover(6)
        with pytest.raises(OSError, match="ends at byte 5 of 6"):
            sha256.hexdigest()
