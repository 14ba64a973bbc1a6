"""A cache's folder: what is provably the cache's own, and that all else in it stays as it is."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mae3d.io.files import TEMPORARY_PREFIX
from pipelines.storage.cache import FOLDER, Cache
from pipelines.storage.ownership import MARKER, _signed
from tests.support.caches import SET, SIZE, content_of, file_of, local_of, names, read


def test_the_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="another user's cache"):
        Cache(tmp_path, limit_bytes=SIZE)


def planted(folder: Path) -> dict[Path, bytes]:
    """Files and links that are not the cache's, below `folder`: old ones, parts, and names like the cache's own."""
    shard = Path(local_of(7)).name
    names = ["thesis.tex", "a/b/thesis.tex", "a/b/c.part", f"a/{SET}/thesis.tex", "lock", "dataset.json"]
    names += [f"{SET}/{shard}", f"{SET}/{shard}.part", f"{SET}/index-{0:016x}.parquet"]  # a cache of layout 1 has those
    ours = ["thesis.tex", "x.part", "shard-00000.tar", f"{shard}.bak", f"{shard}.part", f"{shard}.10000.part"]
    names += [f"{FOLDER}/{SET}/{name}" for name in [*ours, shard, f"index-{0:016x}.parquet", f"sub/{shard}"]]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
        os.utime(path, (1, 1))
    (folder / FOLDER / ("1" * 16)).symlink_to(folder / SET)  # a folder of another disk
    link = folder / FOLDER / SET / Path(local_of(8)).name
    link.symlink_to(folder / "thesis.tex")
    pipe, inner = link.with_name(Path(local_of(9)).name), link.with_name(Path(local_of(10)).name)
    os.mkfifo(pipe)
    inner.mkdir()
    temporary = folder / FOLDER / f"{TEMPORARY_PREFIX}x" / shard
    temporary.parent.mkdir()
    temporary.write_bytes(b"x" * 1000)
    # Their times are those that the cache would have given a file of the name, but each lacks something else.
    for path in (link, pipe, inner, temporary, folder / SET / shard, link.with_name(f"{shard}.bak")):
        os.utime(path, ns=(1, _signed(path.name, time.time_ns()) * 10**9))
    return files_in(folder)


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


def test_other_peoples_files_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    before = planted(tmp_path)
    cache = Cache(tmp_path, limit_bytes=2 * SIZE)
    for number in (0, 1, 2, 3):
        assert read(cache, file_of(number)) == content_of(number)
    assert Cache(tmp_path, limit_bytes=SIZE).files_fetched == 0
    now = files_in(tmp_path)
    ours = {cache.path(file_of(3)), cache.folder / "lock", cache.folder / MARKER}
    assert now.keys() - before.keys() == ours
    assert {path: now.get(path) for path in before} == before
    assert cache.path(file_of(9)).is_fifo()
    assert cache.path(file_of(10)).is_dir()


def test_a_file_of_another_user_is_neither_served_nor_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, limit_bytes=SIZE)
    cache.fetch(file_of(1))
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(FileExistsError, match="left alone"):
        cache.open(file_of(1))
    cache.discard(file_of(1))
    assert cache.fetch(file_of(2))
    assert names(tmp_path) == ["001", "002"]  # nor counted


@pytest.mark.parametrize(
    "what", ["bytes", "as many bytes", "file", "link", "moved", "folder", "pipe", "part", "linked folder"]
)
def test_what_lies_where_a_file_belongs_is_neither_served_nor_replaced(tmp_path: Path, what: str) -> None:
    cache = Cache(tmp_path, limit_bytes=2 * SIZE)
    path, mine = cache.path(file_of(1)), tmp_path / "mine"
    mine.write_bytes(b"my own" * 10)
    if what in ("part", "linked folder"):
        path.parent.mkdir()
    else:
        cache.fetch(file_of(1))
    if what.endswith("bytes"):  # into the very file
        path.write_bytes(b"x" * (SIZE if what.startswith("as many") else 5))
    elif what == "part":
        path.with_name(f"{path.name}.{SIZE}.part").write_bytes(b"my own")
    elif what == "moved":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "linked folder":
        path.parent.rename(tmp_path / "elsewhere")
        path.parent.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        {
            "file": lambda: shutil.copyfile(mine, path),
            "link": lambda: path.symlink_to(mine),
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
        }[what]()
    before = files_in(tmp_path)
    with pytest.raises(FileExistsError, match=r"left alone.*data\.cache"):
        cache.open(file_of(1))
    assert not Cache(tmp_path, limit_bytes=1).fetch(file_of(2), ahead=True)  # makes room, as far as it is its own
    assert files_in(tmp_path) == before


def test_a_file_that_was_cut_is_not_served_even_if_its_time_was_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=SIZE)
    cache.fetch(file_of(1))
    written = cache.path(file_of(1)).stat()
    os.truncate(cache.path(file_of(1)), SIZE - 1)
    os.utime(cache.path(file_of(1)), ns=(written.st_atime_ns, written.st_mtime_ns))
    with pytest.raises(FileExistsError, match="left alone"):
        cache.open(file_of(1))


@pytest.mark.parametrize("marker", ["", "Signature: 8a477f597d28d172789f06886806bc55\n# of a browser\n"])
def test_a_folder_with_the_name_or_marker_of_another_program_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / FOLDER / "photos").mkdir(parents=True)
    (tmp_path / FOLDER / MARKER).write_text(marker)
    with pytest.raises(FileExistsError, match=r"give another folder as data\.cache"):
        Cache(tmp_path, limit_bytes=SIZE)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["CACHEDIR.TAG", "photos"]


def test_a_cache_may_be_named_itself(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=SIZE)
    cache.fetch(file_of(1))
    again = Cache(cache.folder, limit_bytes=SIZE)
    assert (again.folder, names(again.folder)) == (cache.folder, ["001"])
    (tmp_path / MARKER).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# of all caches\n")
    assert Cache(tmp_path, limit_bytes=SIZE).folder == cache.folder


@pytest.mark.parametrize("place", ["", "mae3d", f"mae3d-{os.getuid()}"])
def test_a_cache_of_an_earlier_version_is_left_alone_and_said_once(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / place / SET / Path(local_of(1)).name
    old.parent.mkdir(parents=True)
    old.write_bytes(content_of(1))
    (tmp_path / place / "lock").touch()
    for _ in range(2):
        assert read(Cache(tmp_path, limit_bytes=SIZE), file_of(2)) == content_of(2)
    assert old.read_bytes() == content_of(1)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(old.parent)]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_folder_that_holds_anything_else_is_no_cache(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in" / "photos").mkdir(parents=True)
    (tmp_path / "in" / "photos" / "x.part").write_bytes(b"x")
    if kind == "folder":
        (tmp_path / "in").rename(tmp_path / FOLDER)
    elif kind == "link":
        (tmp_path / FOLDER).symlink_to(tmp_path / "in")
    else:
        (tmp_path / FOLDER).write_bytes(b"")
    with pytest.raises(FileExistsError) as caught:
        Cache(tmp_path, limit_bytes=SIZE)
    assert caught.value.filename == str(tmp_path / FOLDER)
    assert kind == "file" or "photos" in str(caught.value)


def test_a_marker_that_was_tidied_away_comes_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=SIZE)
    cache.fetch(file_of(1))
    (cache.folder / MARKER).unlink()  # /tmp is swept by age
    assert read(Cache(tmp_path, limit_bytes=SIZE), file_of(1)) == content_of(1)
    assert (cache.folder / MARKER).exists()


def test_a_dataset_cannot_give_a_file_any_other_name(tmp_path: Path) -> None:
    cache, file = Cache(tmp_path, limit_bytes=SIZE), file_of(1)
    shard = Path(local_of(1)).name
    for local in (f"../{shard}", f"photos/{shard}", f"/{shard}", shard):
        with pytest.raises(ValueError, match=r"dataset\.json"):
            cache.path(replace(file, local=local))
    for local in ("../x.tar", f"{SET}/../../thesis.tex", f"{SET}/x.tar", f"{SET}/{0:016x}-a/b.tar", "/etc/passwd"):
        with pytest.raises(ValueError, match=r"dataset\.json"):
            cache.open(replace(file, local=local))
