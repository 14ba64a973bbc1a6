import errno
import hashlib
import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mae3d.io.files import sha256_of
from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.dataset.schema import read_shard_table, write_shard_table
from preprocess.dataset.writer import write_dataset
from preprocess.inspect.verify import verify
from tests.support.media import make_dataset


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six samples of three frames in two shards, with labels that have names."""
    return make_dataset(tmp_path, samples=6, frames=3, labels=["cut", "tie", "cut", "tie", "cut tie", ""])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_dataset_has_no_findings(shards: Path) -> None:
    assert verify(shards) == []
    assert verify(shards, full=True, decode=True) == []


def test_a_shard_of_which_nothing_was_left_is_whole(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=6, frames=3)
    tar, table = shards / "shard-00001.tar", shards / "shard-00001.parquet"
    rows = [row | {"num_frames": 0, "sizes": [], "crc32s": []} for row in read_shard_table(table)[0].to_pylist()]
    tar.write_bytes(bytes(tarfile.RECORDSIZE))
    tar.with_suffix(".idx").write_text("v1.2 0\n")
    write_shard_table(table, rows, tar_bytes=tarfile.RECORDSIZE, tar_sha256=sha256_of(tar))
    merge_again(shards)
    assert verify(shards, full=True, decode=True) == []


def test_fault_20_one_flipped_bit_in_a_frame_is_found(shards: Path) -> None:
    dataset = open_dataset(shards)
    flip(shards / "shard-00001.tar", int(dataset.offset[5]) + 700)
    assert verify(shards) == []  # sizes and structure are whole
    findings = verify(shards, full=True)
    assert any("sha256" in finding for finding in findings)
    assert any("000000005.000000.jpg: its crc32" in finding for finding in findings)


@pytest.mark.parametrize("where", ["first header", "json", "a header", "padding", "end"])
def test_fault_20_one_flipped_bit_anywhere_in_a_tar_is_found(shards: Path, where: str) -> None:
    dataset = open_dataset(shards)
    path = shards / "shard-00000.tar"
    offset = int(dataset.offset[1])
    size = int(dataset.frame_rows(int(dataset.frames_at[1]), int(dataset.frames_at[1]) + 1)[0][0])
    places = {"first header": 1, "json": 520, "a header": offset - 500, "padding": offset + size, "end": -1}
    flip(path, places[where])
    (finding, *more) = verify(shards, full=True)
    assert finding.startswith("shard-00000.tar: ")
    assert "sha256" in "".join([finding, *more])
    if where in ("first header", "end"):
        assert "not laid out as the index says" in verify(shards)[0]


def test_fault_20_a_frame_that_does_not_decode_is_found(shards: Path) -> None:
    dataset = open_dataset(shards)
    path = shards / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    start = int(dataset.offset[1])
    data[start + 700 : start + 740] = b"\xff" * 40
    path.write_bytes(data)
    assert any("000000001.000000.jpg: damaged" in finding for finding in verify(shards, decode=True))


@pytest.mark.parametrize(
    ("pattern", "at", "full"),
    [
        ("shard-00001.idx", 40, False),
        ("shard-00001.parquet", 60, False),
        ("plan.parquet", 60, False),
        ("index-*.parquet", 60, False),
        ("rows-*.arrow", 900, False),
        ("frames-*.arrow", -700, False),
        ("rejected.parquet", 60, False),
    ],
)
def test_fault_20_one_flipped_bit_beside_the_tars_is_found(shards: Path, pattern: str, at: int, full: bool) -> None:
    (path,) = shards.glob(pattern)
    flip(path, at)
    findings = verify(shards, full=full)
    assert any(finding.startswith(f"{path.name}: ") for finding in findings), findings


def swap_names(path: Path) -> None:
    """Renames the first frame, with a right header checksum, so that only the index disagrees."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = tar.getmembers()[1]
    member.name = "000000000.000009.jpg"
    data[member.offset : member.offset + 512] = member.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)


def tell(shards: Path) -> None:
    """Makes dataset.json agree with the first tar as it is now."""
    path = shards / "shard-00000.tar"
    edit(shards, lambda meta: meta["shards"][0].__setitem__(slice(1, 3), [path.stat().st_size, sha256_of(path)]))


def cut_and_tell(shards: Path) -> None:
    """Cuts a tar at a whole record and makes dataset.json agree with the shorter one."""
    path = shards / "shard-00000.tar"
    path.write_bytes(path.read_bytes()[:-10_240])
    tell(shards)


def append_and_tell(shards: Path) -> None:
    """Appends a member of its own to a tar, as `tar -r` does."""
    path = shards / "shard-00000.tar"
    with tarfile.open(path, "a") as tar:
        tar.add(path.with_suffix(".idx"), "stranger")
    tell(shards)


def edit(shards: Path, change: Callable[[dict], object]) -> None:
    meta = json.loads((shards / "dataset.json").read_text())
    change(meta)
    (shards / "dataset.json").write_text(json.dumps(meta))


def merge_again(shards: Path) -> None:
    meta = json.loads((shards / "dataset.json").read_text())
    for pattern in ("index-*", "rows-*", "frames-*"):
        next(shards.glob(pattern)).unlink()
    tables = sorted(shards.glob("shard-*.parquet"))
    write_dataset(shards, tables=tables, settings=meta["settings"], label_names=meta["label_names"])


def rewrite(shards: Path, change: Callable[[list[dict]], object]) -> None:
    """Changes the rows of the second shard's table."""
    path = shards / "shard-00001.parquet"
    table, shard = read_shard_table(path)
    rows = table.to_pylist()
    change(rows)
    write_shard_table(path, rows, tar_bytes=shard.bytes, tar_sha256=shard.sha256)


def rewrite_and_merge(shards: Path, change: Callable[[list[dict]], object]) -> None:
    """An index that was made of another table than the tar was written with: all but the tar agree."""
    rewrite(shards, change)
    merge_again(shards)


def set_column(shards: Path, *, column: str, value: object) -> None:
    rewrite(shards, lambda rows: rows[1].update({column: value}))


OTHER = {"offset": 512, "crc32s": [1, 2, 3], "labels": [1], "name": "x", "split": "val", "width": 3}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shards: (shards / "shard-00000.tar").unlink(), "shard-00000.tar: missing"),
        (lambda shards: (shards / "shard-00001.tar").write_bytes(b""), "shard-00001.tar: 0 bytes"),
        (lambda shards: (shards / "shard-00000.idx").unlink(), "shard-00000.idx: missing"),
        (lambda shards: (shards / "shard-00000.idx").write_text("v1.2 4\n"), "shard-00000.idx: 0 samples"),
        (lambda shards: flip(shards / "shard-00000.idx", 40), "shard-00000.idx: line 2 disagrees"),
        (lambda shards: (shards / "shard-00001.parquet").unlink(), "shard-00001.parquet: missing"),
        (lambda shards: (shards / "shard-00001.parquet").write_bytes(b"PAR1"), "shard-00001.parquet: damaged"),
        (lambda shards: (shards / "stranger.txt").touch(), "stranger.txt: does not belong"),
        (lambda shards: (shards / "shard-00002.tar").touch(), "shard-00002.tar: of a build that is at work"),
        (lambda shards: (shards / ".tmp-7-shard-00002.tar").touch(), "shard-00002.tar: of a build that is at work"),
        (lambda shards: (shards / "plan.parquet").unlink(), "plan.parquet: missing"),
        (lambda shards: swap_names(shards / "shard-00000.tar"), "member 000000000.000009.jpg"),
        (cut_and_tell, "shard-00000.tar: not laid out as the index says"),
        (append_and_tell, "shard-00000.tar: not laid out as the index says: it does not end"),
        (lambda shards: next(shards.glob("index-*")).unlink(), "missing"),
        (lambda shards: next(shards.glob("rows-*")).unlink(), "missing"),
        (lambda shards: next(shards.glob("frames-*")).write_bytes(b""), ".arrow: 0 bytes"),
        (lambda shards: (shards / "rejected.parquet").write_bytes(b""), "rejected.parquet: 0 bytes"),
        (lambda shards: edit(shards, lambda m: m["totals"].update(samples=7)), "samples = 7, the files say 6"),
        (lambda shards: edit(shards, lambda m: m["totals"].update(frames=17)), "frames = 17, the files say 18"),
        (lambda shards: edit(shards, lambda m: m["totals"].update(bytes=1)), "bytes = 1, the files say"),
        (lambda shards: edit(shards, lambda m: m["totals"].update(rejected={"x": 1})), "rejected = {'x': 1}"),
        (lambda shards: edit(shards, lambda m: m["shards"][1].__setitem__(3, 5)), "5 samples in shard-00001.tar"),
        (lambda shards: edit(shards, lambda m: m["label_names"].reverse()), "label_names are not those"),
        (lambda shards: edit(shards, lambda m: m["settings"].update(quality=91)), "settings are not those"),
        (
            lambda shards: rewrite_and_merge(shards, lambda rows: rows[0]["sizes"].reverse()),
            "shard-00001.tar: not laid out as the index says",
        ),
        (lambda shards: rewrite_and_merge(shards, lambda rows: rows.pop()), "shard-00001.idx: 2 samples"),
        (lambda shards: rewrite(shards, lambda rows: rows.pop()), "shard-00001.parquet: 1 samples, the index has 2"),
        *(
            (partial(set_column, column=column, value=value), f"shard-00001.parquet: its column {column!r} disagrees")
            for column, value in OTHER.items()
        ),
    ],
)
def test_fault_20_every_damage_is_found_without_reading_all(shards: Path, damage: object, message: str) -> None:
    damage(shards)  # type: ignore[operator]
    findings = verify(shards)
    assert any(message in finding for finding in findings), findings
    assert all(any(word in finding for word in ("remove ", "restore ", "build")) for finding in findings)


def test_fault_20_all_damage_is_listed_not_the_first_only(shards: Path) -> None:
    (shards / "shard-00000.tar").unlink()
    (shards / "shard-00001.tar").write_bytes(b"")
    (shards / "shard-00001.idx").unlink()
    (shards / "stranger").touch()
    files = [finding.partition(":")[0] for finding in verify(shards)]
    assert sorted(files) == ["shard-00000.tar", "shard-00001.idx", "shard-00001.tar", "stranger"]


def test_fault_20_what_is_found_is_mended_by_the_remedy(shards: Path) -> None:
    before = hashes(shards)
    flip(shards / "shard-00001.tar", 5000)
    (finding, *_) = verify(shards, full=True)
    assert finding.endswith("remove shard-00001.* and run the build again")
    for path in shards.glob("shard-00001.*"):
        path.unlink()
    frames, ledger = str(shards.parent / "frames"), str(shards.parent / "frames" / "ledger.csv")
    options = ["--frames", frames, "--ledger", ledger, "--shard-size", "4", "--workers", "1"]
    assert main(["build", *options, "--out", str(shards)]) == 0
    assert verify(shards, full=True) == []
    assert hashes(shards) == before


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_older_generations_of_the_index_may_stay(shards: Path) -> None:
    (shards / "index-0123456789abcdef.parquet").touch()
    assert verify(shards) == []


def test_several_processes_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=9, frames=2, shard_size=1)
    for number in (1, 4):
        flip(shards / f"shard-{number:05d}.tar", 2000)
    (shards / "shard-00002.idx").unlink()
    alone = verify(shards, full=True)
    assert [finding[:11] for finding in alone] == ["shard-00001"] * 2 + ["shard-00002"] + ["shard-00004"] * 2
    assert verify(shards, full=True, workers=2) == alone


def test_fault_20_a_file_that_cannot_be_read_is_found_and_a_disk_that_has_gone_stops_it(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shards / "shard-00000.idx").unlink()
    (shards / "shard-00000.idx").mkdir()
    assert verify(shards) == [
        "shard-00000.idx: cannot be read (Is a directory); mend the disk or the rights, or restore it from a copy"
    ]

    def stale(*_: object, **__: object) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "read_text", stale)
    assert main(["verify", str(shards)]) == 3
    assert "shard-00000.idx: Stale file handle" in capsys.readouterr().err


def test_a_dataset_that_has_changed_is_looked_at_anew(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=6, frames=3)
    assert verify(shards) == []
    for path in shards.iterdir():
        path.unlink()
    make_dataset(tmp_path, samples=4, frames=2)
    assert verify(shards) == []


def test_fast_reads_little_of_a_tar(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    dataset = open_dataset(shards)
    path = shards / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    for row in range(4):
        sizes = dataset.frame_rows(3 * row, 3 * row + 3)[0]
        for offset, size in zip(dataset.frames(row, np.arange(3)).offset.tolist(), sizes.tolist(), strict=True):
            data[offset : offset + size] = rng.bytes(size)
    path.write_bytes(data)
    assert verify(shards) == []
    assert len([finding for finding in verify(shards, full=True) if "crc32" in finding]) == 12
    assert len([finding for finding in verify(shards, decode=True) if "not a JPEG" in finding]) == 12


def test_a_url_is_checked_as_far_as_listing_and_index_go(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"file://{shards}"
    assert verify(url) == []
    (shards / "shard-00000.tar").write_bytes(b"")
    (shards / "shard-00001.idx").unlink()
    (shards / "stranger").touch()
    flip(next(shards.glob("rows-*")), 900)
    findings = verify(url)
    assert all(finding.startswith(f"{url}/") for finding in findings)
    words = ["0 bytes", "shard-00001.idx: missing", "stranger: does not belong", "sha256"]
    assert all(any(word in finding for finding in findings) for word in words), findings
    assert main(["verify", url, "--full"]) == 2
    assert "copy it to a folder" in capsys.readouterr().err
    assert main(["verify", f"file://{shards.parent}/nothing"]) == 2
    assert "not a dataset" in capsys.readouterr().err


def test_the_command_ends_with_2_and_lists_all(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(shards), "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{shards}: whole\n"
    (shards / "shard-00000.idx").unlink()
    (shards / "stranger").touch()
    assert main(["verify", str(shards), "--workers", "1"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert out[-1] == f"{shards}: 2 problems"
    (shards / "dataset.json").write_text("{")
    assert main(["verify", str(shards), "--workers", "1"]) == 2
    assert "dataset.json: cannot be read" in capsys.readouterr().err
