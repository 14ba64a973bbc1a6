"""The bounded folder of fetched files: evicted by use, shared by processes, whole after any kill."""

import errno
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import cache as cache_module
from pipelines.storage.cache import FOLDER, Cache, DamagedFileError
from tests.support import launch
from tests.support.caches import SIZE, content_of, file_of, local_of, names, read
from tests.support.disk import Disk


def test_files_are_fetched_once_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=3 * SIZE)
    for number in (0, 1, 2, 0, 3):  # 1 is the one that was used longest ago
        assert read(cache, file_of(number)) == content_of(number)
    assert names(cache.folder) == ["000", "002", "003"]
    assert (cache.files_fetched, cache.bytes_fetched) == (4, 4 * SIZE)
    again = Cache(tmp_path / "cache", limit_bytes=3 * SIZE)
    assert read(again, file_of(0)) == content_of(0)
    assert again.files_fetched == 0
    assert names(Cache(tmp_path / "cache", limit_bytes=SIZE).folder) == ["000"]  # a lower limit holds at once


def test_an_evicted_file_stays_readable(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=SIZE)
    descriptor = cache.open(file_of(1))
    assert read(cache, file_of(2)) == content_of(2)
    assert names(tmp_path) == ["002"]
    assert os.pread(descriptor, SIZE, 0) == content_of(1)
    os.close(descriptor)


def test_what_is_planned_goes_last_and_what_is_held_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, limit_bytes=3 * SIZE)
    for number in (0, 1, 2):
        cache.fetch(file_of(number))
    cache.plan([file_of(0), file_of(1), file_of(2)])
    assert not cache.fetch(file_of(3), ahead=True)  # would evict what is needed sooner
    assert names(tmp_path) == ["000", "001", "002"]
    cache.plan([file_of(0), file_of(1)])
    assert cache.fetch(file_of(3), ahead=True)
    assert names(tmp_path) == ["000", "001", "003"]
    cache.fetch(file_of(4))  # not planned, but needed now
    assert names(tmp_path) == ["000", "001", "004"]
    held = [cache.hold(file_of(number)) for number in (0, 1, 4)]
    monkeypatch.setattr(cache_module, "ROOM_SECONDS", 0.2)
    with pytest.raises(OSError, match=r"no room for test://store/5 .*raise data\.cache_gb") as told:
        cache.open(file_of(5))
    assert told.value.errno == errno.ENOSPC
    os.close(held[1])
    assert read(cache, file_of(5)) == content_of(5)
    assert names(tmp_path) == ["000", "004", "005"]
    os.close(held[0])
    os.close(held[2])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_planned_files_the_last_needed_goes_first(tmp_path: Path, order: tuple[int, ...]) -> None:
    cache = Cache(tmp_path, limit_bytes=3 * SIZE)
    for number in (0, 1, 2):
        cache.fetch(file_of(number))
    cache.plan([file_of(number) for number in order])
    for needed, evicted in ((3, order[2]), (4, order[1])):
        held = cache.hold(file_of(needed))
        assert f"{evicted:03d}" not in names(tmp_path)
        assert f"{order[0]:03d}" in names(tmp_path)
        cache.plan([file_of(needed), *(file_of(number) for number in order)])  # what is needed now goes last
        os.close(held)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing checks it again: a power cut must not leave a name over blocks that were never written."""
    disk = Disk(monkeypatch)
    Cache(tmp_path, limit_bytes=SIZE).fetch(file_of(1))
    assert disk.renames == [("CACHEDIR.TAG", True), (Path(local_of(1)).name, True)]


def size_of(cache: Cache) -> int:
    """Bytes in the folder, between two changes."""
    with cache._locked():
        return sum(path.stat().st_size for path in cache.folder.glob("*/*"))


def _read_at_random(folder: str, log: str, seed: int, rounds: int) -> None:
    """Reads files of a slow store; each fetch writes a line."""
    draw = random.Random(seed)

    def slow(number: int) -> Callable[[int, int], bytes]:
        def fetch(start: int, stop: int) -> bytes:
            with Path(log).open("a") as file:
                file.write(f"{number}\n")
            time.sleep(0.01)
            return content_of(number)[start:stop]

        return fetch

    cache = Cache(Path(folder), limit_bytes=4 * SIZE)
    for _ in range(rounds):
        number = draw.randrange(8)
        assert read(cache, file_of(number, read=slow(number))) == content_of(number)


def test_processes_share_files_and_never_pass_the_limit(tmp_path: Path) -> None:
    """Four processes that read 4 of 8 files in a folder for 4: each fetch once while it is there, never 5 of them."""
    log = tmp_path / "log"
    cache = Cache(tmp_path / "cache", limit_bytes=4 * SIZE)
    readers = [launch.call(_read_at_random, str(tmp_path / "cache"), str(log), seed, 60) for seed in range(4)]
    sizes = []
    while any(reader.poll() is None for reader in readers):
        sizes.append(size_of(cache))
        time.sleep(0.002)
    assert [reader.poll() for reader in readers] == [0] * 4
    assert max(sizes) <= 4 * SIZE
    assert len(log.read_text().split()) < 0.75 * 4 * 60  # the rest found what another one had fetched
    assert not [name for name in names(cache.folder) if name.endswith(".part")]


def test_processes_that_want_the_same_file_fetch_it_once(tmp_path: Path) -> None:
    fetches = []

    def slow(start: int, stop: int) -> bytes:
        fetches.append(start)
        time.sleep(0.2)
        return content_of(1)[start:stop]

    def want() -> None:
        assert read(Cache(tmp_path, limit_bytes=SIZE), file_of(1, read=slow)) == content_of(1)

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetches) == 1


def _die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at(folder: str, point: str) -> None:
    """Fetches a fourth file into a folder for three, and dies on the way."""
    third = cache_module.CHUNK_BYTES = SIZE // 3

    def fetch(start: int, stop: int) -> bytes:
        if (point, start) in (("created", 0), ("half", third)):
            _die()
        return content_of(3)[start:stop]

    if point == "evicted":
        cache_module.create_locked = _die
    if point == "unlocked":  # the part is there, its lock and size are not yet
        cache_module.fcntl.flock = lambda descriptor, kind: _die() if os.fstat(descriptor).st_size == 0 else None  # type: ignore[assignment]
        (Path(folder) / FOLDER / "lock").write_text("not empty")
    if point == "written":
        Path.rename = _die  # type: ignore[method-assign]
    if point == "renamed":
        rename = Path.rename
        Path.rename = lambda self, target: (rename(self, target), _die())[0]  # type: ignore[method-assign]
    Cache(Path(folder), limit_bytes=3 * SIZE).fetch(file_of(3, read=fetch))


@pytest.mark.parametrize("point", ["evicted", "unlocked", "created", "half", "written", "renamed"])
def test_killed_at_any_point_leaves_nothing_that_stops_the_next_start(tmp_path: Path, point: str) -> None:
    for number in range(3):
        Cache(tmp_path, limit_bytes=3 * SIZE).fetch(file_of(number))
    assert launch.call(_killed_at, str(tmp_path), point).wait(60) == -signal.SIGKILL
    left = names(tmp_path)
    assert ("003.part" in left) == (point in ("unlocked", "created", "half", "written"))
    assert ("003" in left) == (point == "renamed")
    cache = Cache(tmp_path, limit_bytes=3 * SIZE)
    assert not [name for name in names(tmp_path) if name.endswith(".part")]
    assert size_of(cache) <= 3 * SIZE
    for number in (3, 2, 1, 0):
        assert read(cache, file_of(number)) == content_of(number)
    assert names(tmp_path) == ["000", "001", "002"]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(25, marks=pytest.mark.soak)])
def test_kills_at_random_moments_leave_whole_files_within_the_limit(tmp_path: Path, kills: int) -> None:
    """Two processes read; one of them is killed, again and again, while the other goes on."""
    draw, folder = random.Random(0), tmp_path / "cache"
    arguments = (str(folder), str(tmp_path / "log"))
    stays = launch.call(_read_at_random, *arguments, 99, 10 * kills)
    cache = Cache(folder, limit_bytes=4 * SIZE)
    for seed in range(kills):
        launch.killed_after(draw.uniform(0.05, 0.2), _read_at_random, *arguments, seed, 10_000)
        assert size_of(cache) <= 4 * SIZE
    assert stays.wait(60) == 0
    Cache(folder, limit_bytes=4 * SIZE)
    assert all(path.read_bytes() == content_of(int(path.stem[-5:])) for path in folder.glob("*/*/*"))


def test_a_damaged_file_is_fetched_again_once(tmp_path: Path) -> None:
    answers = [b"x" * SIZE, content_of(1)]
    cache = Cache(tmp_path, limit_bytes=SIZE)
    assert read(cache, file_of(1, read=lambda start, stop: answers.pop(0))) == content_of(1)
    with pytest.raises(DamagedFileError, match=r"test://store/2: fetched twice, its sha256 is not the one in"):
        cache.open(file_of(2, read=lambda start, stop: b"x" * SIZE))
    assert not [name for name in names(tmp_path) if name != "001"]


def test_a_failing_store_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(start: int, stop: int) -> bytes:
        raise OSError(errno.EIO, "503 Slow Down", "test://store/1")

    cache = Cache(tmp_path, limit_bytes=SIZE)
    with pytest.raises(OSError, match="503 Slow Down"):
        cache.open(file_of(1, read=fails))
    assert names(tmp_path) == []
    assert read(cache, file_of(1)) == content_of(1)


def test_fault_17_a_full_disk_is_told_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = Cache(tmp_path, limit_bytes=SIZE)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"No space left.* while test://store/1 .*data\.cache") as told:
        cache.open(file_of(1))
    assert told.value.errno == errno.ENOSPC
    assert told.value.filename == str(cache.folder)
    assert names(tmp_path) == []
    monkeypatch.undo()
    assert read(cache, file_of(1)) == content_of(1)


def test_a_stopped_fetch_gives_up_between_two_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "CHUNK_BYTES", SIZE // 4)
    asked: list[int] = []
    content = content_of(1)

    def fetch(start: int, stop: int) -> bytes:
        asked.append(start)
        return content[start:stop]

    assert not Cache(tmp_path, limit_bytes=SIZE).fetch(file_of(1, read=fetch), is_stopped=lambda: len(asked) == 2)
    assert len(asked) == 2
    assert names(tmp_path) == []


def test_a_folder_that_was_tidied_away_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=SIZE)
    shutil.rmtree(cache.folder)
    assert read(cache, file_of(1)) == content_of(1)


@pytest.mark.parametrize("num_bytes", [1, 9_999, 10_001, 999_999_999, 10**9 + 1, 123_456_789_012, 5 * 10**12 + 1])
def test_a_size_that_is_asked_for_is_enough_and_little_more(num_bytes: int) -> None:
    said = float(cache_module.gigabytes(num_bytes)) * 1e9
    assert num_bytes <= int(said) <= 1.01 * num_bytes + 10_000


def test_the_default_folder_lies_on_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_module.default_folder() == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_module.default_folder() == Path(tempfile.gettempdir())
