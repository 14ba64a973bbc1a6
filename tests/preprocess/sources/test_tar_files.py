import io
import json
import tarfile
from pathlib import Path

import pytest

from mae3d.io.storage import Storage
from mae3d.video.errors import MediaError
from preprocess.plan.settings import Settings
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.roots import Folder, Remote
from preprocess.sources.source import Reading
from preprocess.sources.tar_files import TarVideo, WithTars, read_tar, split_archive
from preprocess.sources.videos import video_files
from tests.support.media import make_video


@pytest.fixture
def video(tmp_path: Path) -> bytes:
    return make_video(tmp_path / "clip.mp4", 4).read_bytes()


def add(tar: tarfile.TarFile, name: str, data: bytes, **attributes: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def test_videos_of_a_tar_and_their_labels(tmp_path: Path, video: bytes) -> None:
    members = {
        "000.mp4": video,
        "000.json": json.dumps({"category": "cat", "several": ["a", "b"]}).encode(),
        "000.txt": b"a caption",
        "000.cls": b"3\n",
        "sub/my clip.tar.webm": video,
        "sub/my clip.cls": b"dog",
        "none.MP4": video,
    }
    path = make_tar(tmp_path / "a.tar", members)
    names = ["000.mp4", "sub/my clip.tar.webm", "none.MP4"]
    archive = read_tar(path)
    assert archive.problems == []
    assert archive.videos == [TarVideo(names[0], ("3",)), TarVideo(names[1], ("dog",)), TarVideo(names[2], ())]
    assert [one.labels for one in read_tar(path, label_key="category").videos] == [("cat",), (), ()]
    assert read_tar(path, label_key="several").videos[0].labels == ("a", "b")


def test_members_come_out_byte_for_byte(tmp_path: Path, video: bytes) -> None:
    make_tar(tmp_path / "in" / "sub" / "a.tar", {"./x/1.mp4": video + b"1", "2.mp4": video + b"2"})
    (tmp_path / "in" / "b.mp4").write_bytes(video)
    root = WithTars(Folder(tmp_path / "in"), Scratch(tmp_path / "scratch", 1 << 20))
    for name, last in (("sub/a.tar/x/1.mp4", b"1"), ("sub/a.tar/2.mp4", b"2"), ("b.mp4", b"")):
        with root.local([name]) as (path,):
            assert path.read_bytes() == video + last
            assert path.suffix == ".mp4"
    with pytest.raises(MediaError, match="has no 3"), root.local(["sub/a.tar/3.mp4"]):
        pass


@pytest.mark.parametrize("num_bytes", [1 << 31, 5 << 30])
def test_members_beyond_31_and_32_bits_are_read(tmp_path: Path, video: bytes, num_bytes: int) -> None:
    """In a file with a hole, which takes no room on the disk."""
    path = tmp_path / "in" / "a.tar"
    make_tar(path, {"1.mp4": video})
    each = path.stat().st_size
    with path.open("r+b") as file:
        header = tarfile.TarInfo("hole.bin")
        header.size = num_bytes
        file.seek(512 + -(-len(video) // 512) * 512)
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.seek(num_bytes, 1)
        file.write(make_tar(tmp_path / "rest.tar", {"2.mp4": video + b"2", "2.cls": b"dog"}).read_bytes())
    assert path.stat().st_blocks * 512 < 4 * each + (1 << 20)
    archive = read_tar(path)
    assert (archive.problems, [(one.name, one.labels) for one in archive.videos]) == (
        [],
        [("1.mp4", ()), ("2.mp4", ("dog",))],
    )
    root = WithTars(Folder(tmp_path / "in"), Scratch(tmp_path / "scratch", 1 << 20))
    for name, data in (("1.mp4", video), ("2.mp4", video + b"2")):
        with root.local([f"a.tar/{name}"]) as (member,):
            assert member.read_bytes() == data


def test_scratch_is_bounded(tmp_path: Path, video: bytes) -> None:
    make_tar(tmp_path / "in" / "a.tar", {f"{i}.mp4": video for i in range(5)})
    root = WithTars(Folder(tmp_path / "in"), Scratch(tmp_path / "scratch", 2 * len(video)))
    for i in range(5):
        with root.local([f"a.tar/{i}.mp4"]):
            used = sum(path.stat().st_size for path in (tmp_path / "scratch").rglob("*") if path.is_file())
            assert used <= 2 * len(video)
    small = WithTars(Folder(tmp_path / "in"), Scratch(tmp_path / "small", len(video) - 1))
    with pytest.raises(MediaError, match="scratch"), small.local(["a.tar/0.mp4"]):
        pass


def test_a_tar_behind_a_url_is_fetched_once_for_its_members(tmp_path: Path, video: bytes) -> None:
    tar = make_tar(tmp_path / "a.tar", {"1.mp4": video, "2.mp4": video})
    url = f"memory://{tmp_path}"
    Storage(url).put(tar, "a.tar")
    scratch = Scratch(tmp_path / "scratch", 1 << 20)
    root = WithTars(Remote(Storage(url), scratch), scratch)
    for name in ("1.mp4", "2.mp4"):
        with root.local([f"a.tar/{name}"]) as (file,):
            assert file.read_bytes() == video
        Storage(url).remove("a.tar")
    assert sum(path.name == "a.tar" for path in scratch.folder.rglob("*")) == 1


def test_fault_07_no_member_leaves_the_tar(tmp_path: Path, video: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "../out.mp4", video)
        add(tar, "/abs.mp4", video)
        add(tar, "new\nline.mp4", video)
        add(tar, "link.mp4", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.mp4", b"", type=tarfile.LNKTYPE, linkname="good.mp4")
        add(tar, "pipe.mp4", b"", type=tarfile.FIFOTYPE)
        add(tar, "good.mp4", video)
        add(tar, "good.mp4", b"another")
    archive = read_tar(tmp_path / "a.tar")
    assert [one.name for one in archive.videos] == ["good.mp4"]
    reasons = [(problem.name, problem.reason) for problem in archive.problems]
    assert reasons == [
        ("../out.mp4", "unsafe_name"),
        ("/abs.mp4", "unsafe_name"),
        ("new\nline.mp4", "unsafe_name"),
        ("link.mp4", "unsafe_name"),
        ("hard.mp4", "unsafe_name"),
        ("pipe.mp4", "unsafe_name"),
        ("good.mp4", "duplicate_row"),
    ]
    root = WithTars(Folder(tmp_path), Scratch(tmp_path / "scratch", 1 << 20))
    with root.local(["a.tar/good.mp4"]) as (path,):
        assert path.read_bytes() == video
    with pytest.raises(MediaError), root.local(["a.tar/link.mp4"]):
        pass


@pytest.mark.parametrize("where", ["data", "header", "boundary"])
def test_a_truncated_tar_keeps_what_is_whole_and_names_where_it_ends(tmp_path: Path, video: bytes, where: str) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{i}.mp4": video for i in range(3)})
    each = 512 + -(-len(video) // 512) * 512
    cut = {"data": 2 * each + 512 + 100, "header": 2 * each + 100, "boundary": 2 * each}[where]
    path.write_bytes(path.read_bytes()[:cut])
    archive = read_tar(path)
    assert [one.name for one in archive.videos] == ["0.mp4", "1.mp4"]
    (problem,) = archive.problems
    assert (problem.reason, problem.name) == ("truncated", "2.mp4" if where == "data" else "1.mp4")


def test_what_is_no_tar_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"nothing of the sort" * 100)
    found = video_files([tmp_path], settings=Settings()).find()
    assert [(problem.name, problem.reason) for problem in found.problems] == [("a.tar", "unreadable")]


def test_tars_below_a_folder_become_requests(tmp_path: Path, video: bytes) -> None:
    make_tar(tmp_path / "in" / "train" / "00000.tar", {"a.mp4": video, "a.cls": b"cat", "b.mp4": video})
    make_tar(tmp_path / "in" / "val" / "00000.tar", {"a.mp4": video, "a.cls": b"dog"})
    scratch = Scratch(tmp_path / "scratch", 1 << 20)
    found = video_files([tmp_path / "in"], settings=Settings(), scratch=scratch).find()
    assert found.problems == []
    assert [(one.path, one.labels, one.split) for one in found.requests] == [
        ("train/00000.tar/a.mp4", ("cat",), "train"),
        ("train/00000.tar/b.mp4", (), "train"),
        ("val/00000.tar/a.mp4", ("dog",), "val"),
    ]
    single = tmp_path / "in" / "val" / "00000.tar"
    found = video_files([single], settings=Settings(), reading=Reading(labels="none"), scratch=scratch).find()
    assert [(one.name, one.labels) for one in found.requests] == [("00000.tar/a.mp4", ())]


def test_paths_that_lead_into_a_tar() -> None:
    assert split_archive("x/00.tar/a/b.mp4") == ("x/00.tar", "a/b.mp4")
    assert split_archive("x/00.TAR/b.mp4") == ("x/00.TAR", "b.mp4")
    assert split_archive("x/00.tar") is None
    assert split_archive("x/a.mp4") is None
