"""mae3d.io.storage: one client for all URLs: calls are tried again, errors name the URL and what to do."""

import errno
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mae3d.io import storage
from mae3d.io.storage import Storage, access_remedy, describe_error, is_url


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
    calls: list[str] = []

    def fails(self: object, path: str, **_: object) -> bytes:
        calls.append(path)
        raise raised

    monkeypatch.setattr(type(memory), "cat_file", fails)
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
