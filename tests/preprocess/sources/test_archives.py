"""Archives are refused with the command that unpacks them, and compressed lists are read."""

import bz2
import gzip
import io
import lzma
import re
import shlex
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.plan.plan import ScanResult
from preprocess.plan.settings import Settings
from preprocess.sources.archives import unpacked
from preprocess.sources.frame_folders import frame_folders
from preprocess.sources.images import image_files
from preprocess.sources.list_records import LedgerError
from preprocess.sources.source import Source
from preprocess.sources.videos import video_files

WHOLE = Settings(whole=True)  # so that nothing is decoded
COMMANDS = {
    "a b.zip": "unzip -d 'ROOT/a b' 'ROOT/a b.zip'",
    "a.tar.gz": "mkdir -p ROOT/a && tar -xf ROOT/a.tar.gz -C ROOT/a",
    "a.tgz": "mkdir -p ROOT/a && tar -xf ROOT/a.tgz -C ROOT/a",
    "a.rar": "unrar x ROOT/a.rar ROOT/a/",
    "a.7z": "7z x -oROOT/a ROOT/a.7z",
    "a.mp4.gz": "gzip -dk ROOT/a.mp4.gz",
}


def make_archive(path: Path, *members: str) -> Path:
    """Write an archive of empty members; RAR and 7z are a first line only."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for member in members:
                file.writestr(member, b"")
    elif path.suffix in (".tgz", ".tar") or path.name.endswith(".tar.gz"):
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
            for member in members:
                tar.addfile(tarfile.TarInfo(member), io.BytesIO())
    else:
        start = {".rar": b"Rar!\x1a\x07", ".7z": b"7z\xbc\xaf\x27\x1c", ".gz": gzip.compress(bytes(600))}
        path.write_bytes(start[path.suffix] + bytes(100))
    return path


def find(*given: Path) -> ScanResult:
    return video_files(given, settings=WHOLE).find()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("source", [video_files, frame_folders, image_files])
def test_an_archive_is_refused_with_the_command_that_unpacks_it(
    tmp_path: Path, source: Callable[..., Source], name: str
) -> None:
    archive = make_archive(tmp_path / name, "v/img_00001.jpg", "v/one.mp4")
    with pytest.raises(LedgerError) as caught:
        source([archive], settings=WHOLE)
    assert str(caught.value).endswith(": " + COMMANDS[name].replace("ROOT", str(tmp_path)))


def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path: Path) -> None:
    make_archive(tmp_path / "l.zip", "xl/workbook.xml").rename(tmp_path / "l.xlsx")
    with pytest.raises(LedgerError, match=r"l\.xlsx: a spreadsheet; save it as CSV"):
        find(tmp_path / "l.xlsx")


@pytest.mark.parametrize("name", ["l.csv.gz", "l.jsonl.gz", "l.txt.bz2", "l.csv.xz", "l.gz"])
def test_a_compressed_list_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "one.mp4").touch()
    pack = {"z": gzip.compress, "2": bz2.compress, "x": lzma.compress}["x" if name.endswith("xz") else name[-1]]
    (tmp_path / name).write_bytes(pack(b'{"path": "one.mp4", "label": 7}' if "jsonl" in name else b"one.mp4 7\n"))
    found = find(tmp_path / name)
    assert [(one.path, one.labels, one.file) for one in found.requests] == [("one.mp4", ("7",), name)]


def test_a_compressed_ledger_is_read(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "v" / f"img_{number:05d}.jpg").touch()
    (tmp_path / "ledger.csv.gz").write_bytes(gzip.compress(b"v 1 3 7\n"))
    found = frame_folders([tmp_path], tmp_path / "ledger.csv.gz", settings=WHOLE).find()
    assert [(one.name, one.labels) for one in found.requests] == [("v", ("7",))]


def test_a_damaged_compressed_list_is_told() -> None:
    with pytest.raises(LedgerError, match=r"l\.csv\.gz: gzip data that cannot be unpacked"):
        unpacked(gzip.compress(b"one.mp4 7\n" * 100)[:20], "l.csv.gz")


@pytest.mark.parametrize("member", ["Archery/one.mp4", "one.mp4"])
@pytest.mark.parametrize("row", ["Archery/one.mp4", "Archery\\\\one.mp4"])
def test_a_row_whose_folder_is_zipped_names_the_archive_and_the_command_helps(
    tmp_path: Path, member: str, row: str
) -> None:
    (tmp_path / "other.mp4").touch()
    make_archive(tmp_path / "Archery.zip", member)
    (tmp_path / "l.csv").write_text(f"{row},7\nother.mp4,7\n")
    (problem,) = find(tmp_path / "l.csv").problems
    command = re.search(r"it may be in Archery\.zip: (unzip -d .*?);", problem.message)
    assert command, problem.message
    _, _, into, archive = shlex.split(command[1])
    with zipfile.ZipFile(archive) as file:
        file.extractall(into)
    assert find(tmp_path / "l.csv").problems == []


@pytest.mark.parametrize("name", ["a.zip", "a.tgz", "a.tar"])
def test_a_row_that_names_an_archive_is_refused_with_the_command(tmp_path: Path, name: str) -> None:
    make_archive(tmp_path / name, "one.mp4")
    (tmp_path / "l.csv").write_text(f"{name},7\n")
    (problem,) = find(tmp_path / "l.csv").problems
    assert problem.reason == "unknown_format"
    assert re.match(r"it is an archive: (unzip -d|mkdir -p) ", problem.message)


def test_a_folder_of_archives_only_names_them(tmp_path: Path) -> None:
    make_archive(tmp_path / "videos.tar.gz", "one.mp4")
    (tmp_path / "l.json").write_text('[{"id": "1"}]')
    assert "it may be in videos.tar.gz: mkdir -p" in find(tmp_path / "l.json").problems[0].message
    (tmp_path / "l.json").unlink()
    assert any("1 archives are not looked into; mkdir -p" in note for note in find(tmp_path).notes)
    assert "archives are not looked into" in frame_folders([tmp_path], settings=WHOLE).find().problems[0].message
