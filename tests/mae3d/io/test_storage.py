"""mae3d.io.storage: one client for all URLs: calls are tried again, errors name the URL and what to do."""

import errno
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import pytest

from mae3d.io import storage
from mae3d.io.storage import Storage, access_remedy, describe_error, is_url
from tests.support.s3 import Server


@pytest.fixture
def memory() -> Any:
    """Yield fsspec's file system in memory, empty before and after."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.mark.parametrize("url", ["memory://box", "memory://box/", "FOLDER"])
def test_files_come_back_under_their_relative_names(url: str, memory: Any, tmp_path: Path) -> None:
    box = Storage(str(tmp_path / "box") if url == "FOLDER" else url)
    assert box.sizes() == {}
    (tmp_path / "local").write_bytes(b"12345")
    box.put(tmp_path / "local", "a/b.bin")
    box.write("c.txt", "ä\n".encode())
    assert box.sizes() == {"a/b.bin": 5, "c.txt": 3}
    assert box.sizes("a") == {"a/b.bin": 5}
    assert (box.size("a/b.bin"), box.read("a/b.bin", 1, 3), box.read_text("c.txt")) == (5, b"23", "ä\n")
    assert (box.is_folder("a"), box.is_folder("c.txt")) == (True, False)
    box.get("a/b.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"12345"
    box.remove("c.txt")
    box.remove("c.txt")  # a missing file is no error
    assert box.sizes() == {"a/b.bin": 5}


def test_a_folder_goes_after_the_file_that_makes_it_one(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Storage("memory://box")
    for name in ("step/a", "step/manifest", "other"):
        box.write(name, b"x")
    removed: list[str] = []
    for verb in ("rm_file", "rm"):
        remove = getattr(type(memory), verb)
        monkeypatch.setattr(
            type(memory), verb, lambda self, path, *a, r=remove, **k: (removed.append(path), r(self, path, *a, **k))
        )
    box.remove_folder("step", first="manifest")
    assert removed[0].endswith("step/manifest")
    assert box.sizes() == {"other": 1}
    box.remove_folder("step", first="manifest")


def reads_that_raise(raised: Exception, memory: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every read fail; return the paths that are read, as they come."""
    calls: list[str] = []

    def fails(self: object, path: str, **_: object) -> bytes:
        calls.append(path)
        raise raised

    monkeypatch.setattr(type(memory), "cat_file", fails)
    return calls


@pytest.mark.parametrize(
    ("raised", "number", "num_calls"),
    [
        (TimeoutError("late"), errno.ETIMEDOUT, 3),
        (RuntimeError("two\nlines"), errno.EIO, 3),
        (ConnectionResetError(errno.ECONNRESET, "reset"), errno.ECONNRESET, 3),
        (PermissionError("no"), errno.EACCES, 1),
        (FileNotFoundError("no"), errno.ENOENT, 1),
    ],
)
def test_errors_have_a_number_and_the_url(
    raised: Exception, number: int, num_calls: int, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = reads_that_raise(raised, memory, monkeypatch)
    monkeypatch.setattr(storage, "BACK_OFF_S", (0.0, 0.0))
    with pytest.raises(OSError) as caught:
        Storage("memory://box/").read("a")
    assert (caught.value.errno, caught.value.filename, len(calls)) == (number, "memory://box/a", num_calls)
    assert "\n" not in str(caught.value)


def test_a_call_that_fails_once_is_tried_again(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Storage("memory://box").write("a", b"x")
    read, fails = type(memory).cat_file, [TimeoutError()]

    def once(self: object, path: str, **options: object) -> object:
        if fails:
            raise fails.pop()
        return read(self, path, **options)

    monkeypatch.setattr(type(memory), "cat_file", once)
    assert Storage("memory://box", back_off_s=(0.0,)).read("a") == b"x"


class Refused(Exception):
    """As botocore's ClientError."""

    def __init__(self, status: int, code: str):
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """As botocore's."""


def answered(status: int, code: str) -> OSError:
    error = OSError(errno.EINVAL, code)
    error.__cause__ = Refused(status, code)
    return error


@pytest.mark.parametrize(
    ("raised", "num_calls"),
    [
        (answered(400, "InvalidRequest"), 1),
        (answered(301, "PermanentRedirect"), 1),
        (answered(400, "RequestTimeout"), 3),
        (answered(400, "BadDigest"), 3),
        (answered(409, "ConditionalRequestConflict"), 3),
        (answered(503, "SlowDown"), 3),
        (NoCredentialsError("none"), 1),
        (OSError("CERTIFICATE_VERIFY_FAILED"), 1),
    ],
    ids=lambda given: str(given),
)
def test_fault_37_what_another_try_would_not_change_is_not_tried_again(
    raised: Exception, num_calls: int, memory: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = reads_that_raise(raised, memory, monkeypatch)
    with pytest.raises(OSError):
        Storage("memory://box", back_off_s=(0.0, 0.0)).read("a")
    assert len(calls) == num_calls
    assert len(caplog.records) == num_calls - 1  # each other try is told


def test_a_folder_whose_name_is_a_pattern_is_removed_alone(memory: Any) -> None:
    for run in ("run*", "run1"):
        Storage(f"memory://box/{run}").write("step/manifest", b"x")
    Storage("memory://box/run*").remove_folder("step", first="manifest")
    assert Storage("memory://box").sizes() == {"run1/step/manifest": 1}


def test_what_a_listing_lacks_or_has_otherwise_is_asked_for_by_name(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Storage("memory://box")
    for name in ("old", "new", "folder/file"):
        box.write(name, b"123")
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: {"/box/old": {"size": 1}})
    assert box.sizes() == {"old": 1}
    assert box.sizes(expected={"old": None, "new": None, "missing": 3, "folder": None}) == {"old": 1, "new": 3}
    assert box.sizes(expected={"old": 3}) == {"old": 3}
    assert (box.exists("new"), box.exists("missing"), box.exists("folder")) == (True, False, False)


def test_on_s3_nothing_is_remembered_from_a_listing_and_a_bucket_must_be_there(s3: Server) -> None:
    def put(path: str, data: bytes = b"") -> None:
        """As another client than this process's."""
        header = {"Content-Type": "application/octet-stream"}  # a form's, urllib's own, is not kept
        urlopen(Request(f"{s3.endpoint}/{path}", data=data, method="PUT", headers=header), timeout=30).close()

    put("fresh")
    put("fresh/box/")  # as consoles make a folder
    put("fresh/box/one", b"1")
    box = Storage("s3://fresh/box")
    assert box.sizes() == {"one": 1}
    put("fresh/box/two", b"22")
    assert (box.read("two"), box.size("two"), box.exists("two")) == (b"22", 2, True)
    with pytest.raises(OSError, match="bucket does not exist") as told:
        Storage("s3://missing/box").sizes()
    assert told.value.errno == errno.ENXIO
    s3.fail("/fresh/box/one", status=403, times=2)
    s3.requests()
    with pytest.raises(PermissionError):
        box.size("one")
    assert [request.status for request in s3.requests("GET")] == [403]  # for the words that an answer to HEAD lacks


def test_a_url_of_another_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(url: str) -> object:
        raise ImportError("Install adlfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacks)
    with pytest.raises(ValueError, match=r"abfs://.*pip install adlfs"):
        Storage("abfs://box").sizes()


def test_no_such_protocol_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"nonsense://x.*s3://bucket"):
        Storage("nonsense://x").sizes()


def test_words_for_people() -> None:
    assert (is_url("s3://a"), is_url("/a")) == (True, False)
    assert "AWS_PROFILE" in access_remedy("s3://a")
    assert "AWS" not in access_remedy("gs://a")
    assert describe_error(RuntimeError("two\n lines")) == "two lines"
    assert describe_error(RuntimeError()) == "RuntimeError"
