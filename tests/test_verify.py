import hashlib
import json
from pathlib import Path

import pytest

from preprocess.index import open_dataset
from preprocess.verify import verify
from tests.media import make_dataset


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_dataset(tmp_path, samples=6, frames=3)


def test_a_whole_dataset_has_no_findings(shards: Path) -> None:
    assert verify(shards) == []
    assert verify(shards, full=True, decode=True) == []


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_fault_20_one_flipped_bit_in_a_frame_is_found(shards: Path) -> None:
    dataset = open_dataset(shards)
    flip(shards / "shard-00001.tar", int(dataset.offset[5]) + 700)
    assert verify(shards) == []  # sizes and structure are whole
    findings = verify(shards, full=True)
    assert any("sha256" in finding for finding in findings)
    assert any("000000005.000000.jpg: its crc32" in finding for finding in findings)


def test_fault_20_a_frame_that_does_not_decode_is_found(shards: Path) -> None:
    dataset = open_dataset(shards)
    path = shards / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    start = int(dataset.offset[1])
    data[start + 700 : start + 740] = b"\xff" * 40
    path.write_bytes(data)
    assert any("000000001.000000.jpg: damaged" in finding for finding in verify(shards, decode=True))


def swap_names(path: Path) -> None:
    """Renames the first frame, with a right header checksum, so that only the index disagrees."""
    import tarfile

    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = tar.getmembers()[1]
    member.name = "000000000.000009.jpg"
    data[member.offset : member.offset + 512] = member.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)


def cut_and_tell(shards: Path) -> None:
    """Cuts a tar and makes dataset.json and the table agree with the shorter one."""
    path = shards / "shard-00000.tar"
    path.write_bytes(path.read_bytes()[:-10_240])
    meta = json.loads((shards / "dataset.json").read_text())
    meta["shards"][0][1:3] = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    (shards / "dataset.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shards: (shards / "shard-00000.tar").unlink(), "shard-00000.tar: missing"),
        (lambda shards: (shards / "shard-00001.tar").write_bytes(b""), "shard-00001.tar: 0 bytes"),
        (lambda shards: (shards / "shard-00000.idx").unlink(), "shard-00000.idx is missing"),
        (lambda shards: flip(shards / "shard-00000.idx", 40), "shard-00000.idx disagrees"),
        (lambda shards: (shards / "shard-00001.parquet").unlink(), "shard-00001.parquet"),
        (lambda shards: (shards / "stranger.txt").touch(), "stranger.txt: does not belong"),
        (lambda shards: (shards / "plan.parquet").unlink(), "plan.parquet: missing"),
        (lambda shards: swap_names(shards / "shard-00000.tar"), "member 000000000.000009.jpg"),
        (cut_and_tell, "not a whole tar"),
        (lambda shards: next(shards.glob("index-*")).unlink(), "missing"),
        (lambda shards: (shards / "rejected.parquet").write_bytes(b""), "rejected.parquet: 0 bytes"),
    ],
)
def test_fault_20_every_damage_is_found_without_reading_all(shards: Path, damage: object, message: str) -> None:
    damage(shards)  # type: ignore[operator]
    findings = verify(shards)
    assert any(message in finding for finding in findings), findings


def test_fault_20_all_damage_is_listed_not_the_first_only(shards: Path) -> None:
    (shards / "shard-00000.tar").unlink()
    (shards / "shard-00001.tar").write_bytes(b"")
    assert len(verify(shards)) == 2


def test_older_generations_of_the_index_may_stay(shards: Path) -> None:
    (shards / "index-0123456789abcdef.parquet").touch()
    assert verify(shards) == []
