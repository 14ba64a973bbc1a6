"""Locks: who is let in, who takes over from the dead, and that it is never two."""

import errno
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mae3d.io import lock, lock_store
from mae3d.io.lock import Locked, hold
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore, LockStore, Owner, UrlLockStore
from mae3d.io.storage import Storage
from tests.support import launch
from tests.support.s3 import Server


@pytest.fixture(params=["folder", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LockStore:
    monkeypatch.setattr(lock_store, "SETTLE_S", 0.01)
    if request.param == "folder":
        return FolderLockStore(tmp_path)
    fsspec.filesystem("memory").store.clear()
    return UrlLockStore(Storage("memory://locks"))


def elsewhere(owner: Owner) -> Owner:
    """Return the same owner on another machine."""
    return replace(owner, host="node7", machine="another boot")


def gone(owner: Owner) -> Owner:
    """Return the same owner as a process that has ended."""
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return replace(owner, pid=int(process.stdout), started="1")


def refused(store: LockStore, name: str, match: str) -> None:
    """Assert that another process does not get the lock."""
    with pytest.raises(Locked, match=match), hold(store, name, job="another"):
        pass


def test_owner_and_sign_of_life_are_of_one_file_whatever_replaces_it_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an owner that says that it is stopping looks like one that lives and goes on."""
    store, owner = FolderLockStore(tmp_path), elsewhere(Owner.here("training"))
    store.create(LOCK_NAME, owner)
    os.utime(tmp_path / LOCK_NAME, (time.time() - 40, time.time() - 40))
    fstat, pending = os.fstat, [replace(owner, ending=True)]

    def replacing(descriptor: int) -> os.stat_result:
        while pending:
            store.replace(LOCK_NAME, pending.pop())
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", replacing)
    before, after = store.read(LOCK_NAME), store.read(LOCK_NAME)
    assert before is not None
    assert after is not None
    assert not before.owner.ending
    assert before.silent_s > 30
    assert after.owner.ending
    assert after.silent_s < 30


def test_fault_18_a_second_one_is_told_who_and_since_when_and_let_in_afterwards(store: LockStore) -> None:
    with hold(store, LOCK_NAME, job="build") as held:
        refused(store, LOCK_NAME, rf"in use by build on \S+, pid {os.getpid()}, since \d{{4}}-.*; wait for")
        held.check()
        assert store.names() == [LOCK_NAME]
    with hold(store, LOCK_NAME, job="build"):
        pass
    assert store.names() == []


def test_fault_18_a_process_that_has_ended_is_succeeded_at_once(
    store: LockStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dead = gone(Owner.here("build"))
    assert store.create(LOCK_NAME, dead)
    with hold(store, LOCK_NAME, job="build"):
        assert f"the lock of a dead process is taken over (build on {dead.host}, pid {dead.pid}" in caplog.text
    assert store.names() == []


def test_fault_18_a_process_id_that_is_another_processs_now_is_no_owner(store: LockStore) -> None:
    store.create(LOCK_NAME, replace(Owner.here("build"), started="1"))  # this very pid, begun at another time
    with hold(store, LOCK_NAME, job="build"):
        pass


def test_fault_18_silence_counts_on_another_machine(store: LockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create(LOCK_NAME, elsewhere(gone(Owner.here("build"))))
    with (
        pytest.raises(
            Locked, match=r"on node7, .* after 300 s it counts as dead .* \(at once if you remove .*/\.lock\)"
        ),
        hold(store, LOCK_NAME, job="build"),
    ):
        pass
    monkeypatch.setattr(lock_store, "STALE_S", 0.2)
    time.sleep(0.3)
    with hold(store, LOCK_NAME, job="build"):
        pass


def test_fault_18_the_clocks_of_two_machines_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = FolderLockStore(tmp_path), time.time()
    store.create(LOCK_NAME, elsewhere(Owner.here("build")))
    monkeypatch.setattr(lock_store.time, "time", lambda: now + 3600)
    held = store.read(LOCK_NAME)
    assert held is not None
    assert held.alive
    assert 0 <= held.silent_s < 60


def test_fault_18_a_process_is_known_by_its_start_whatever_its_name_and_gone_before_it_is_waited_for() -> None:
    started, name = lock_store._started(os.getpid()), Path("/proc/self/comm").read_text()
    try:
        Path("/proc/self/comm").write_text("a) Z 1 2")
        assert lock_store._started(os.getpid()) == started
    finally:
        Path("/proc/self/comm").write_text(name)
    assert int(started) > 0
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert lock_store._started(child.pid) == ""
    child.wait()


def test_fault_18_an_owner_that_beats_is_alive_and_one_that_lost_its_lock_is_told(
    store: LockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with hold(store, LOCK_NAME, job="build") as held:
        first = sign_of_life(store)
        time.sleep(0.4)
        assert sign_of_life(store) > first
        other = elsewhere(Owner.here("build"))
        store.replace(LOCK_NAME, other)
        time.sleep(0.2)
        with pytest.raises(Locked, match="taken over by build on node7"):
            held.check()
    found = store.read(LOCK_NAME)
    assert found is not None
    assert found.owner == other  # not removed by him who lost it


def sign_of_life(store: LockStore) -> float:
    """When the owner of the lock gave the last one."""
    if isinstance(store, FolderLockStore):
        return (store.folder / LOCK_NAME).stat().st_mtime
    assert isinstance(store, UrlLockStore)
    return float(json.loads(store.storage.read(LOCK_NAME))["beat"])


def test_fault_18_who_finds_the_dead_late_does_not_take_the_lock_from_the_successor(tmp_path: Path) -> None:
    class Late(FolderLockStore):
        """Between its look at the lock and its next step, another process takes over."""

        def read(self, name: str) -> lock_store.HeldLock | None:
            found = super().read(name)
            if found is not None and found.owner.token == dead.token and (tmp_path / LOCK_NAME).exists():
                FolderLockStore(tmp_path).replace(LOCK_NAME, successor)
            return found

    dead, successor = gone(Owner.here("build")), elsewhere(Owner.here("build"))
    FolderLockStore(tmp_path).create(LOCK_NAME, dead)
    with pytest.raises(Locked, match="node7"), hold(Late(tmp_path), LOCK_NAME, job="build"):
        pass
    found = FolderLockStore(tmp_path).read(LOCK_NAME)
    assert found is not None
    assert found.owner == successor


def test_fault_18_while_one_takes_over_no_other_does(tmp_path: Path) -> None:
    class Slow(FolderLockStore):
        """Just before it replaces the lock, another process tries to take over, too."""

        def replace(self, name: str, owner: Owner) -> None:
            with (
                pytest.raises(Locked, match="in use by build on"),
                hold(FolderLockStore(tmp_path), LOCK_NAME, job="second"),
            ):
                pass
            super().replace(name, owner)

    FolderLockStore(tmp_path).create(LOCK_NAME, gone(Owner.here("build")))
    with hold(Slow(tmp_path), LOCK_NAME, job="build"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_whole_run_and_slices_exclude_each_other(store: LockStore) -> None:
    with hold(store, f"{LOCK_NAME}.slice-0-of-2", job="slice 0/2"):
        with hold(store, f"{LOCK_NAME}.slice-1-of-2", job="slice 1/2"):
            pass
        with pytest.raises(Locked, match="slice 0/2"), hold(store, LOCK_NAME, job="merge", excludes=True):
            pass
    with hold(store, LOCK_NAME, job="merge", excludes=True):
        refused(store, f"{LOCK_NAME}.slice-0-of-2", "merge")
    store.create(f"{LOCK_NAME}.slice-0-of-2", gone(Owner.here("slice 0/2")))
    with hold(store, LOCK_NAME, job="merge", excludes=True):
        assert store.names() == [LOCK_NAME]  # a dead slice's lock is not left for ever
    assert store.names() == []


def test_the_lock_of_something_in_the_folder_is_on_its_own(store: LockStore) -> None:
    with hold(store, f"{LOCK_NAME}-report", job="a report"):
        with hold(store, LOCK_NAME, job="merge", excludes=True):
            assert store.names() == [LOCK_NAME, f"{LOCK_NAME}-report"]
        refused(store, f"{LOCK_NAME}-report", "a report")
    with hold(store, LOCK_NAME, job="training"), hold(store, f"{LOCK_NAME}-report", job="a report"):
        pass


def test_one_that_waits_gets_in_when_the_other_is_done(store: LockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_POLL_S", 0.02)
    events: list[str] = []

    def second() -> None:
        with hold(store, LOCK_NAME, job="second", wait=True):
            events.append("second")

    thread = threading.Thread(target=second)
    with hold(store, LOCK_NAME, job="first"):
        thread.start()
        time.sleep(0.2)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV])
def test_a_file_system_without_links_has_locks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    store = FolderLockStore(tmp_path)
    with hold(store, LOCK_NAME, job="build"):
        refused(store, LOCK_NAME, "build on")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / LOCK_NAME).write_text("{")  # created, and not written yet
    with pytest.raises(Locked, match="another run on a machine"), hold(store, LOCK_NAME, job="build"):
        pass


def test_a_lock_that_was_swept_while_it_was_made_is_not_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner sweeps what killed runs have left, and takes what another is writing for that."""
    store = FolderLockStore(tmp_path)

    def swept(aside: Path, name: Path) -> None:
        aside.unlink()
        raise FileExistsError

    with hold(store, LOCK_NAME, job="build"):
        monkeypatch.setattr(os, "link", swept)
        refused(store, LOCK_NAME, "build on")


FOREIGN = [".lock~", ".lock.json", ".lockfile", ".lock.plan.bak", ".lock.slice-1-of-2.txt", ".lock~notes", ".locked/x"]


@pytest.mark.parametrize("excludes", [False, True])
def test_files_that_are_named_almost_like_locks_stay(store: LockStore, tmp_path: Path, excludes: bool) -> None:
    for name in FOREIGN:
        write(store, name, b"a thesis")
    with hold(store, LOCK_NAME, job="build", excludes=excludes):
        assert store.names() == [LOCK_NAME]
    assert {name: read(store, name) for name in FOREIGN} == dict.fromkeys(FOREIGN, b"a thesis")


@pytest.mark.parametrize("name", [LOCK_NAME, f"{LOCK_NAME}.plan", f"{LOCK_NAME}.slice-0-of-2"])
@pytest.mark.parametrize("text", [b"a thesis", b"4711\n", b'{"pid": 1}', b"\xff"])
def test_the_lock_of_another_program_is_never_taken_over(
    store: LockStore, name: str, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_store, "STALE_S", 0.0)
    write(store, name, text)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: not a lock of MAE3D; move it"):  # noqa: SIM117
        with hold(store, LOCK_NAME, job="merge", excludes=True):
            pass
    assert read(store, name) == text


def write(store: LockStore, name: str, data: bytes) -> None:
    if isinstance(store, FolderLockStore):
        (store.folder / name).parent.mkdir(exist_ok=True)
        (store.folder / name).write_bytes(data)
    else:
        assert isinstance(store, UrlLockStore)
        store.storage.write(name, data)


def read(store: LockStore, name: str) -> bytes:
    if isinstance(store, FolderLockStore):
        return (store.folder / name).read_bytes()
    assert isinstance(store, UrlLockStore)
    return store.storage.read(name)


def _contend(folder: Path, seed: int, seconds: float) -> None:
    """Take and give back the lock; some die with it. `inside` shows if two have it at once."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    store, inside, entered = FolderLockStore(folder / "locks"), folder / "inside", folder / f"entered-{seed}"
    while time.monotonic() < end:
        try:
            with hold(store, LOCK_NAME, job=str(seed)):
                with (folder / "log").open("a") as file:
                    try:
                        inside.mkdir()
                    except FileExistsError:
                        file.write("two\n")
                    else:
                        file.write("one\n")
                        if rng.random() < 0.1:
                            inside.rmdir()
                            os._exit(9)
                        inside.rmdir()
                entered.touch()
        except Locked:
            time.sleep(rng.random() / 500)


def contend(folder: Path, *, processes: int, rounds: int, seconds: float) -> tuple[int, int, int]:
    """How often the lock was got, how often two had it, and how many died with it."""
    (folder / "locks").mkdir()
    died = 0
    for begin in range(rounds):
        children = [launch.call(_contend, folder, begin * processes + n, seconds) for n in range(processes)]
        for child in children:
            code = child.wait()
            assert code in (0, 9), child.output()
            died += code == 9
    said = (folder / "log").read_text().split()
    assert len(list((folder / "locks").iterdir())) <= 1  # that of one who died last
    return said.count("one"), said.count("two"), died


@pytest.mark.slow
def test_fault_18_many_contend_some_die_and_never_two_have_it(tmp_path: Path) -> None:
    got, twice, died = contend(tmp_path, processes=8, rounds=3, seconds=0.7)
    assert twice == 0
    assert died >= 8
    assert got >= 3 * died


@pytest.mark.soak
def test_fault_18_many_contend_for_long(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    got, twice, died = contend(tmp_path, processes=16, rounds=40, seconds=1.0)
    with capsys.disabled():
        print(f"\nthe lock was got {got} times, {died} died with it, twice at once: {twice}")
    assert twice == 0
    assert died > 200


@pytest.mark.parametrize("at", range(1, 8))
def test_fault_18_a_taker_that_dies_in_between_is_succeeded(tmp_path: Path, at: int) -> None:
    """A kill at every file operation of taking over a dead owner's lock."""
    store = FolderLockStore(tmp_path)
    store.create(LOCK_NAME, gone(Owner.here("build")))
    launch.call(_take_until_killed, store, at).wait(60)
    with hold(store, LOCK_NAME, job="build"):
        names = sorted(store.names())
    assert names[0] == LOCK_NAME
    assert store.names() == names[1:] == []


def _take_until_killed(store: FolderLockStore, at: int) -> None:
    left = at

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return call(*arguments, **named)

        return counting

    for name in ("link", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    with hold(store, LOCK_NAME, job="build"):
        os._exit(9)


def test_what_a_lock_says_can_be_read(tmp_path: Path) -> None:
    with hold(FolderLockStore(tmp_path), LOCK_NAME, job="slice 3/8"):
        told = json.loads((tmp_path / LOCK_NAME).read_text())
    assert (told["job"], told["pid"]) == ("slice 3/8", os.getpid())


class Blind(UrlLockStore):
    """Two starts within one second: each has looked before the other has written."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        object.__setattr__(self, "looked", False)

    def read(self, name: str) -> lock_store.HeldLock | None:
        if not self.looked:  # type: ignore[attr-defined]
            object.__setattr__(self, "looked", True)
            return None
        return super().read(name)


@pytest.mark.parametrize("url", ["memory://locks", "s3://locks/run"])
def test_of_two_starts_at_one_url_within_a_second_one_gets_the_lock(
    s3: Server, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(lock_store, "SETTLE_S", 0)  # the one has believed in its lock before the other writes
    fsspec.filesystem("memory").store.clear()
    if url.startswith("s3"):
        fsspec.filesystem("s3").mkdir("locks")
    owners = [Owner.here(job) for job in ("first", "second")]
    assert [Blind(Storage(url)).create(LOCK_NAME, owner) for owner in owners] == [True, False]
    held = UrlLockStore(Storage(url)).read(LOCK_NAME)
    assert held is not None
    assert held.owner == owners[0]
    assert Blind(Storage(url)).create(LOCK_NAME, owners[0])  # a second try, after the first one's answer was lost


def test_a_store_that_heeds_no_condition_is_told_and_given_more_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fsspec.filesystem("memory").store.clear()
    waits: list[float] = []
    monkeypatch.setattr(lock_store.time, "sleep", waits.append)
    heeding = UrlLockStore(Storage("memory://locks/heeding"))
    assert heeding.create(LOCK_NAME, Owner.here("build"))
    monkeypatch.setattr(Storage, "create", lambda self, name, data: self.write(name, data) is None)
    heedless = UrlLockStore(Storage("memory://locks/heedless"))
    assert heedless.create(LOCK_NAME, Owner.here("build"))
    assert waits == [lock_store.SETTLE_S, lock_store.SETTLE_BLIND_S]
    assert "heedless: writes over what is there" in caplog.text
    assert "heeding: " not in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_a_server_without_conditional_writes_is_written_to_as_before(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    files = fsspec.filesystem("memory")
    files.store.clear()
    plain = files.pipe_file

    def pipe_file(path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise OSError(number, "no such condition")
        plain(path, value)

    monkeypatch.setattr(files, "pipe_file", pipe_file)
    storage = Storage("memory://locks")
    assert [storage.create(".lock", data) for data in (b"a", b"b")] == [True, False]
    assert storage.read(".lock") == b"a"
