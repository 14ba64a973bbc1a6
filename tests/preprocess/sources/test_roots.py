"""Where the paths of requests begin: folders, and URLs whose files come to bounded scratch."""

import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from mae3d.io.storage import Storage
from mae3d.video.errors import MediaError
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.roots import Folder, Remote, Root, open_root
from tests.support import launch
from tests.support.s3 import Server

FILES = {"a/1.mp4": b"1" * 1000, "a/.hidden.mp4": b"", "b/c/2.mp4": b"2" * 1000, "3.mp4": b"3" * 1000, ".x/4.mp4": b""}


@pytest.fixture(params=["folder", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    """The same files in a folder and behind two URLs."""
    folder = tmp_path / "videos"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if request.param == "folder":
        yield open_root(str(folder), scratch=Scratch(tmp_path, 0))[0]
        return
    if request.param == "s3":
        server: Server = request.getfixturevalue("s3")
        os.environ["AWS_DEFAULT_REGION"] = server.environment["AWS_DEFAULT_REGION"]
        fsspec.filesystem("s3").mkdirs("roots", exist_ok=True)
    url = {"memory": "memory://roots/videos", "s3": "s3://roots/videos"}[request.param]
    for name, data in FILES.items():
        Storage(url).write(name, data)
    root, path = open_root(url, scratch=Scratch(tmp_path / "scratch", 2500))
    assert path == ""
    yield root


def test_every_root_lists_and_reads_the_same(root: Root) -> None:
    assert root.name == "videos"
    assert root.files().names == ["3.mp4", "a/1.mp4", "b/c/2.mp4"]
    assert root.files("b").names == ["b/c/2.mp4"]
    assert root.files("none").names == []
    assert root.read("a/1.mp4") == FILES["a/1.mp4"]
    with pytest.raises(FileNotFoundError):
        root.read("none")
    with root.local(["b/c/2.mp4", "3.mp4"]) as files:
        assert [file.read_bytes() for file in files] == [FILES["b/c/2.mp4"], FILES["3.mp4"]]
        assert [file.name for file in files] == ["2.mp4", "3.mp4"]


def test_a_file_is_found_by_its_path_or_url(root: Root, tmp_path: Path) -> None:
    given = root.storage.url if isinstance(root, Remote) else str(tmp_path / "videos")
    parent, path = open_root(f"{given}/b/c/2.mp4", scratch=Scratch(tmp_path / "scratch", 2500))
    assert (parent.name, path) == ("c", "2.mp4")
    assert parent.read(path) == FILES["b/c/2.mp4"]
    with pytest.raises(ValueError, match="none: "):
        open_root(f"{given}/none", scratch=Scratch(tmp_path / "scratch", 2500))


def test_a_root_can_be_sent_to_another_process(root: Root) -> None:
    assert pickle.loads(pickle.dumps(root)).read("3.mp4") == FILES["3.mp4"]


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    """Three files of 1000 bytes behind a URL, and scratch for two."""
    url = f"memory://{tmp_path}"
    for name in "abc":
        Storage(url).write(name, name.encode() * 1000)
    return Remote(Storage(url), Scratch(tmp_path / "scratch", 2500))


def held(remote: Remote) -> set[str]:
    return {path.name for path in remote.scratch.folder.rglob("*") if path.is_file()}


def test_scratch_is_bounded_and_what_was_used_last_stays(remote: Remote) -> None:
    for name in "abac":
        with remote.local([name]) as (file,):
            assert file.read_bytes() == name.encode() * 1000
        assert sum(path.stat().st_size for path in remote.scratch.folder.rglob("*") if path.is_file()) <= 2500
    assert held(remote) == {"a", "c"}


def test_a_file_that_is_there_is_not_fetched_again(remote: Remote) -> None:
    with remote.local(["a"]) as (file,):
        before = file.stat()
    with remote.local(["a"]) as (file,):
        now = file.stat()
    assert (now.st_ino, now.st_mtime_ns, now.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


def test_each_thread_has_its_part_of_the_scratch_and_gives_it_back(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    Storage(url).write("a", b"1" * 1000)
    roots = [Remote(Storage(url), Scratch(tmp_path / f"scratch_{number}", 1500)) for number in range(20)]
    at_once = threading.Barrier(4, timeout=60)

    def fetch(_: int) -> list[Path]:
        paths = []
        for root in roots:
            at_once.wait()
            with root.local(["a"]) as (file,):
                at_once.wait()  # the others' first steps must not remove what this thread has fetched
                assert file.read_bytes() == b"1" * 1000
            paths.append(file)
        return paths

    with ThreadPoolExecutor(4) as pool:
        paths = {path for fetched in pool.map(fetch, range(4)) for path in fetched}
    assert len(paths) == 4 * len(roots)
    assert [path for path in paths if path.exists()] == []


def test_what_does_not_fit_is_refused_with_the_option(remote: Remote) -> None:
    with (
        pytest.raises(MediaError, match=r"3e-06 GB to fetch, .* 2.5e-06 GB .*--scratch-gb") as error,
        remote.local(["a", "b", "c"]),
    ):
        pass
    assert error.value.reason == "too_large"


def test_a_missing_object_is_one_samples_reason(remote: Remote) -> None:
    with pytest.raises(MediaError, match="none is not there") as error, remote.local(["none"]):
        pass
    assert error.value.reason == "missing_file"


def test_fault_37_a_store_that_fails_is_asked_again_and_then_named(s3: Server, tmp_path: Path) -> None:
    fsspec.filesystem("s3").mkdirs("flaky", exist_ok=True)
    Storage("s3://flaky").write("a", b"1")
    storage = Storage("s3://flaky", back_off_s=(0.0,))
    s3.fail("/flaky/a", status=503, times=1)
    assert storage.read("a") == b"1"
    s3.fail("/flaky/a", status=503, times=99)
    with pytest.raises(OSError, match="s3://flaky/a") as error:
        storage.get("a", tmp_path / "a")
    assert not isinstance(error.value, FileNotFoundError)


def test_the_scratch_of_a_killed_process_is_swept(remote: Remote) -> None:
    code = f"""
import os
from pathlib import Path
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.roots import Remote
from mae3d.io.storage import Storage
Storage({remote.storage.url!r}).write("a", b"1")
with Remote(Storage({remote.storage.url!r}), Scratch(Path({str(remote.scratch.folder)!r}), 2500)).local(["a"]):
    os.kill(os.getpid(), 9)
"""
    child = launch.run([sys.executable, "-c", code], cwd=launch.ROOT)
    assert child.returncode == -signal.SIGKILL
    (left,) = remote.scratch.folder.iterdir()
    with remote.local(["b"]):
        assert not left.exists()
        assert held(remote) == {"b"}


def test_a_forked_process_leaves_the_scratch_of_its_parent(tmp_path: Path) -> None:
    """It ends as any program does, with all that the parent has registered for its own end."""
    code = """
import os, sys
from pathlib import Path
from mae3d.io.storage import Storage
from preprocess.sources.roots import Remote, Scratch
Storage("memory://forked").write("a", b"1")
remote = Remote(Storage("memory://forked"), Scratch(Path(sys.argv[1]), 10))
with remote.local(["a"]):
    pass
if not (child := os.fork()):
    sys.exit()
os.waitpid(child, 0)
print(len([path for path in Path(sys.argv[1]).rglob("a") if path.is_file()]))
"""
    done = launch.run([sys.executable, "-c", code, tmp_path], cwd=launch.ROOT)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_linked_folders_are_counted_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "in")
    listing = Folder(tmp_path / "root").files()
    assert (listing.names, listing.links) == ([], (f"link -> {tmp_path / 'in'}",))
