import errno
import hashlib
import json
import random
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from mae3d.io.files import sha256_of
from preprocess.__main__ import main
from preprocess.dataset.index import DatasetError, open_dataset, read_meta
from preprocess.dataset.schema import read_shard_table, write_shard_table
from preprocess.dataset.writer import write_dataset
from preprocess.inspect import verify as verify_module
from preprocess.inspect.verify import verify
from tests.support.builds import as_schema_1
from tests.support.media import make_dataset


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return six samples of three frames in two shards, with labels that have names."""
    folder = tmp_path_factory.mktemp("undamaged")
    return make_dataset(folder, samples=6, frames=3, labels=["cut", "tie", "cut", "tie", "cut tie", ""])


@pytest.fixture
def shards(undamaged: Path, tmp_path: Path) -> Path:
    """Return a copy of it, beside the frames that it was built from."""
    shutil.copytree(undamaged.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / undamaged.name


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_an_undamaged_dataset_has_no_findings(shards: Path) -> None:
    assert verify(shards) == []
    assert verify(shards, full=True, decode=True) == []


def test_a_shard_without_samples_has_no_findings(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=6, frames=3)
    tar, table = shards / "shard-00001.tar", shards / "shard-00001.parquet"
    rows = [row | {"num_frames": 0, "sizes": [], "crc32s": []} for row in read_shard_table(table)[0].to_pylist()]
    tar.write_bytes(bytes(tarfile.RECORDSIZE))
    tar.with_suffix(".idx").write_text("v1.2 0\n")
    write_shard_table(table, rows, tar_bytes=tarfile.RECORDSIZE, tar_sha256=sha256_of(tar))
    meta = json.loads((shards / "dataset.json").read_text())
    for pattern in ("index-*", "rows-*", "frames-*"):
        next(shards.glob(pattern)).unlink()
    tables = sorted(shards.glob("shard-*.parquet"))
    write_dataset(shards, tables=tables, settings=meta["settings"], label_names=meta["label_names"])
    assert verify(shards, full=True, decode=True) == []


@pytest.mark.parametrize("seed", range(20))
def test_fault_20_a_random_flipped_bit_of_a_random_file_is_found(shards: Path, seed: int) -> None:
    rng = random.Random(seed)
    files = sorted(shards.iterdir())
    path = files[seed % len(files)]  # every kind of file is damaged; the tars, by far the largest, no more often
    flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))
    try:
        findings = verify(shards, full=True)
    except ValueError as error:  # a dataset.json that cannot be read
        assert path.name == "dataset.json"
        findings = [f"{error}".removeprefix(f"{shards}/")]
    assert [finding.partition(":")[0] for finding in findings] == [path.name], findings
    fast = [] if path.suffix == ".tar" else findings
    if path.name != "dataset.json":
        assert verify(shards) == fast


@pytest.mark.slow
def test_every_bit_of_dataset_json_counts(shards: Path) -> None:
    path = shards / "dataset.json"
    data = path.read_bytes()
    for at in range(len(data)):
        flip(path, at, at % 8)
        with suppress(DatasetError):  # of a dataset.json that cannot be read
            assert verify_module._check_meta(shards, read_meta(shards)), data[at - 20 : at + 20]
        path.write_bytes(data)


def test_fault_20_decode_names_the_frame_that_is_damaged(shards: Path) -> None:
    dataset = open_dataset(shards)
    flip(shards / "shard-00001.tar", int(dataset.offset[5]) + 700)
    assert verify(shards) == []  # no size has changed
    assert [finding.partition(";")[0] for finding in verify(shards, full=True, decode=True)] == [
        "shard-00001.tar: its sha256 is not the one in dataset.json",
        "shard-00001.tar: 000000005.000000.jpg: its crc32 is not the one in the index",
    ]


def test_fault_20_a_frame_that_does_not_decode_is_found(tmp_path: Path) -> None:
    """A JPEG that passed by its header, as --check header allows, and has the checksum of its damaged bytes."""
    shards = make_dataset(tmp_path, samples=6, frames=3)
    table = shards / "shard-00000.parquet"
    rows, entry = read_shard_table(table)
    first = rows.to_pylist()[1]
    tar = table.with_suffix(".tar")
    data = bytearray(tar.read_bytes())
    data[first["offset"] + 700 : first["offset"] + 740] = b"\xff" * 40
    tar.write_bytes(data)
    changed = rows.to_pylist()
    changed[1]["crc32s"][0] = zlib.crc32(data[first["offset"] : first["offset"] + first["sizes"][0]])
    write_shard_table(table, changed, tar_bytes=entry.bytes, tar_sha256=sha256_of(tar))
    meta = json.loads((shards / "dataset.json").read_text())
    for pattern in ("index-*", "rows-*", "frames-*"):
        next(shards.glob(pattern)).unlink()
    write_dataset(shards, tables=sorted(shards.glob("shard-*.parquet")), settings=meta["settings"])
    assert verify(shards, full=True) == []
    (finding,) = verify(shards, decode=True)
    assert finding.startswith("shard-00000.tar: 000000001.000000.jpg: damaged")


def edit(shards: Path, change: Callable[[dict], object]) -> None:
    meta = json.loads((shards / "dataset.json").read_text())
    change(meta)
    (shards / "dataset.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shards: (shards / "shard-00000.tar").unlink(), "shard-00000.tar: missing"),
        (lambda shards: (shards / "shard-00001.tar").write_bytes(b""), "shard-00001.tar: 0 bytes"),
        (lambda shards: (shards / "shard-00000.idx").unlink(), "shard-00000.idx: missing"),
        (lambda shards: (shards / "shard-00000.idx").write_text("v1.2 4\n"), "shard-00000.idx: 7 bytes"),
        (lambda shards: (shards / "shard-00001.parquet").unlink(), "shard-00001.parquet: missing"),
        (lambda shards: (shards / "stranger.txt").touch(), "stranger.txt: does not belong"),
        (lambda shards: (shards / "shard-00002.tar").touch(), "shard-00002.tar: of a run that is at work"),
        (lambda shards: (shards / ".tmp-mae3d-7-shard-00002.tar").touch(), "shard-00002.tar: of a run that is at work"),
        (lambda shards: (shards / "plan.parquet").unlink(), "plan.parquet: missing"),
        (lambda shards: next(shards.glob("rows-*")).unlink(), "missing"),
        (lambda shards: next(shards.glob("frames-*")).write_bytes(b""), ".arrow: 0 bytes"),
        (lambda shards: edit(shards, lambda meta: meta["totals"].update(samples=7)), "dataset.json: .*checksum"),
    ],
)
def test_fault_20_each_kind_of_damage_is_found_without_reading_the_tars(
    shards: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(shards)
    (finding,) = verify(shards)
    assert re.search(message, finding), finding
    assert any(word in finding for word in ("remove ", "restore ", "build"))


def test_fault_20_all_damage_is_listed_not_the_first_only(shards: Path) -> None:
    (shards / "shard-00000.tar").unlink()
    (shards / "shard-00001.tar").write_bytes(b"")
    (shards / "shard-00001.idx").unlink()
    (shards / "stranger").touch()
    for options in ({}, {"full": True}, {"decode": True}):
        files = [finding.partition(":")[0] for finding in verify(shards, **options)]
        assert sorted(files) == ["shard-00000.tar", "shard-00001.idx", "shard-00001.tar", "stranger"]


def test_frames_are_not_decoded_by_a_damaged_index(shards: Path) -> None:
    path = next(shards.glob("rows-*"))
    flip(path, 900)
    hashes, frames = verify(shards, decode=True)
    assert hashes.startswith(f"{path.name}: its sha256")
    assert f"no frame was decoded because {path.name}" in frames


def test_fault_20_a_finding_is_mended_by_its_remedy(shards: Path) -> None:
    before = hashes(shards)
    flip(shards / "shard-00001.tar", 5000)
    (finding,) = verify(shards, full=True)
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


def test_several_workers_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=9, frames=2, shard_size=1)
    for number in (1, 4):
        flip(shards / f"shard-{number:05d}.tar", 2000)
    (shards / "shard-00002.idx").unlink()
    alone = verify(shards, full=True, decode=True)
    assert [finding[:15] for finding in alone[:3]] == ["shard-00002.idx", "shard-00001.tar", "shard-00004.tar"]
    assert {finding[:15] for finding in alone[3:]} == {"shard-00001.tar", "shard-00004.tar"}  # the frames
    assert verify(shards, full=True, decode=True, workers=2) == alone


def test_fault_20_an_unreadable_file_is_a_finding_and_a_disk_that_has_gone_stops_it(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = errno.EIO

    def fails(path: Path) -> str:
        if path.name == "shard-00000.idx":
            raise OSError(number, "Input/output error" if number == errno.EIO else "Stale file handle")
        return sha256_of(path)

    monkeypatch.setattr(verify_module, "sha256_of", fails)
    (finding,) = verify(shards)
    assert finding.startswith("shard-00000.idx: cannot be read (Input/output error); mend the disk")
    number = errno.ESTALE
    assert main(["verify", str(shards)]) == 3
    assert "shard-00000.idx: Stale file handle" in capsys.readouterr().err


def test_a_plan_that_a_stopped_append_has_written_is_no_damage(shards: Path, tmp_path: Path) -> None:
    more = make_dataset(tmp_path / "more", samples=9, frames=3)  # three shards: a plan that is ahead of the dataset
    shutil.copy(more / "plan.parquet", shards / "plan.parquet")
    (finding,) = verify(shards)
    assert finding.startswith("plan.parquet: of a run that is at work or was stopped")


def test_a_dataset_of_schema_1_is_checked_as_far_as_its_hashes_go(shards: Path) -> None:
    as_schema_1(shards)
    assert verify(shards, full=True, decode=True) == []
    flip(shards / "shard-00000.tar", 2000)
    flip(shards / "plan.parquet", 60)
    flip(shards / "shard-00001.parquet", 60)
    flip(next(shards.glob("index-*")), 60)
    files = {finding.partition(":")[0] for finding in verify(shards, full=True)}
    assert files == {"shard-00000.tar", "plan.parquet", "shard-00001.parquet", next(shards.glob("index-*")).name}
    edit(shards, lambda meta: meta["settings"].update(quality=91))
    assert any(finding.startswith("dataset.json: its settings") for finding in verify(shards))


def test_a_url_is_checked_as_far_as_listing_and_index_go(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"file://{shards}"
    assert verify(url) == []
    (shards / "shard-00000.tar").write_bytes(b"")
    (shards / "shard-00001.idx").unlink()
    (shards / "stranger").touch()
    flip(next(shards.glob("rows-*")), 900)
    flip(shards / "plan.parquet", 60)
    findings = verify(url)
    assert all(finding.startswith(f"{url}/") for finding in findings)
    words = [
        "0 bytes",
        "shard-00001.idx: missing",
        "stranger: does not belong",
        "arrow: its sha256",
        "plan.parquet: its",
    ]
    assert len(findings) == len(words)
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


def test_fault_20_an_index_out_of_order_is_found(shards: Path) -> None:
    """Two samples of different shards change places in the rows; dataset.json names the file as it is."""
    rows = next(shards.glob("rows-*.arrow"))
    table = pa.ipc.open_file(pa.BufferReader(rows.read_bytes())).read_all()
    at = table.schema.get_field_index("shard")
    order = pa.array([0, 1, 2, 4, 3, 5])
    swapped = table.set_column(at, table.schema.field(at), table["shard"].take(order)).combine_chunks()
    with pa.OSFile(str(rows), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(swapped.to_batches()[0])
    entry = {"name": rows.name, "bytes": rows.stat().st_size, "sha256": sha256_of(rows)}
    edit(shards, lambda meta: meta["files"].update(rows=entry))
    findings = verify(shards)
    assert any("checksum" in finding for finding in findings), findings
