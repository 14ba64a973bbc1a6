"""Files whose suffix says too little or the wrong thing, metadata of systems, and folders that are links."""

import errno
import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from mae3d.io.storage import Storage
from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.plan import ScanResult
from preprocess.plan.settings import Settings
from preprocess.sources.file_kinds import HEAD_BYTES, is_system, kind_of, role_of
from preprocess.sources.folder_walk import FolderLinks, walk
from preprocess.sources.frame_folders import frame_folders
from preprocess.sources.images import image_files
from preprocess.sources.roots import Folder
from preprocess.sources.source import Reading
from preprocess.sources.tar_files import read_tar
from preprocess.sources.videos import video_files
from tests.preprocess.sources.test_tar_files import make_tar
from tests.support.media import make_frame_folder, make_video, numbered_image

SYSTEM = [
    *("._a.mp4", ".DS_Store", "Thumbs.db", "thumbs.DB", "ehthumbs.db", "Desktop.ini", "__MACOSX/a.mp4", "a.mp4~"),
    *("@eaDir/a.mp4/SYNOVIDEO.jpg", ".ipynb_checkpoints/a.mp4", ".AppleDouble/a.mp4", ".Trashes/501/a.mp4"),
    *("lost+found/a.mp4", "$RECYCLE.BIN/a.mp4", ".Spotlight-V100/a.mp4", ".nfs0000a", ".fuse_hidden0001", "~$a.mp4"),
    *("System Volume Information/a.mp4", "#recycle/a.mp4", ".Trash-1000/files/a.mp4"),
]


@pytest.mark.parametrize("name", SYSTEM)
def test_metadata_of_systems_is_known(name: str) -> None:
    assert is_system(name)
    assert is_system(f"c/v/{name}")


@pytest.mark.parametrize("name", ["a.mp4", "desktop/a.mp4", "thumbs/1.jpg", "a~b.mp4", "MACOSX/1.mp4", "icon.jpg"])
def test_media_are_no_metadata(name: str) -> None:
    assert not is_system(name)


def spoilt(name: str, suffix: str) -> str:
    """Returns a system's name with another suffix, where it has one of media."""
    return name.replace("a.mp4", f"a_00001{suffix}")


def test_fault_46_metadata_of_systems_is_ignored_everywhere(tmp_path: Path) -> None:
    for kind, suffix in (("frames", ".jpg"), ("videos", ".mp4"), ("images", ".jpg")):
        for name in SYSTEM:
            path = tmp_path / kind / "c" / "v" / spoilt(name, suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0\1\2")
    make_frame_folder(tmp_path / "frames" / "c" / "v", 3)
    make_video(tmp_path / "videos" / "c" / "v" / "clip.mp4", 3)
    numbered_image(1).save(tmp_path / "images" / "c" / "v" / "1.jpg")
    sources = {
        "frames": frame_folders([tmp_path / "frames"], settings=Settings()),
        "videos": video_files([tmp_path / "videos"], settings=Settings()),
        "images": image_files([tmp_path / "images"], settings=Settings()),
    }
    for kind, source in sources.items():
        found = source.find()
        assert (len(found.requests), found.problems) == (1, []), kind
        assert "other files" not in "".join(found.notes)
    members = {spoilt(name, ".mp4"): b"\0\1" for name in SYSTEM}
    tar = make_tar(tmp_path / "a.tar", members | {"clip.mp4": b"\0"})
    read = read_tar(tar)
    assert ([video.name for video in read.videos], read.problems, read.others) == (["clip.mp4"], [], [])


@pytest.mark.parametrize(
    ("name", "base", "kind"),
    [
        *((word, "", "flow") for word in ("flow_x", "flow_y", "flow_i", "flowx", "FLOW", "optical_flow", "tvl1_flow")),
        *((word, "", "rgb") for word in ("", "img", "RGB", "frames", "image", "jpegs_256")),
        *((word, "", "beside") for word in ("mask", "depth", "segmentation", "Annotations", "thumbnail")),
        *(("x", "", "axis"), ("v1_x", "v1", "axis"), ("v1_flow_x", "v1", "flow"), ("cam 1-mask", "cam 1", "beside")),
        ("v1 mask", "v1", "beside"),
        *(("v1", "v1", ""), ("overflow", "overflow", ""), ("masked", "masked", ""), ("frame_of_x9", "frame_of_x9", "")),
    ],
)
def test_roles_are_read_off_names(name: str, base: str, kind: str) -> None:
    assert (role_of(name).base, role_of(name).kind) == (base, kind)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of each container, and a picture of each format, named by its container or format."""
    folder = tmp_path_factory.mktemp("media")
    for container, codec in (
        *(("mp4", "mpeg4"), ("mkv", "mpeg4"), ("avi", "mpeg4"), ("mpg", "mpeg1video"), ("vob", "mpeg2video")),
        *(("ts", "mpeg2video"), ("flv", "flv"), ("asf", "msmpeg4"), ("m1v", "mpeg1video"), ("m4v", "mpeg4")),
        *(("mxf", "mpeg2video"), ("nut", "mpeg4"), ("y4m", "rawvideo")),
    ):
        make_video(folder / f"clip.{container}", 12, codec=codec, fps=25)
    for suffix in ("jpeg", "png", "webp", "tiff", "bmp", "ppm"):
        numbered_image(1).save(folder / f"image.{suffix}")
    return folder


CONTAINERS = ["mp4", "mkv", "avi", "mpg", "vob", "ts", "flv", "asf", "m1v", "m4v", "mxf", "nut", "y4m"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_videos_are_known_by_their_first_bytes(media: Path, container: str) -> None:
    data = (media / f"clip.{container}").read_bytes()
    assert kind_of(data[:HEAD_BYTES]) == "video"
    if container == "ts":  # as camcorders write it: a time before each packet
        timed = b"".join(b"\0\1\2\3" + data[i : i + 188] for i in range(0, len(data), 188))
        assert kind_of(timed[:HEAD_BYTES]) == "video"


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "tiff", "bmp", "ppm"])
def test_pictures_are_known_by_their_first_bytes(media: Path, suffix: str) -> None:
    assert kind_of((media / f"image.{suffix}").read_bytes()[:HEAD_BYTES]) == "image"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "text"),
        (b"GoPro clip of 47 characters, one line as another\n" * 90, "text"),
        (("ü" * HEAD_BYTES).encode()[:HEAD_BYTES], "text"),
        (("a" + "ü" * HEAD_BYTES).encode()[:HEAD_BYTES], "text"),
        (b"BMX is a sport", "text"),
        (b"P1 is the first of us\n", "text"),
        (b"\x7fELF\x02\x01\x01\0", ""),
        (b"\0\0\0\x18ftypheic\0\0\0\0", ""),
        (b"caf\xe9 au lait", ""),
        (b"CAF\xc3", ""),  # in Latin-1; only where a file goes on a character may be cut off
        (b"G" + 999 * b"\xff", ""),  # a packet of MPEG begins so, and others follow
    ],
)
def test_what_is_neither_is_not_taken_for_media(head: bytes, kind: str) -> None:
    assert kind_of(head) == kind


@pytest.mark.parametrize(
    ("suffix", "where"),
    [
        *product([".3gpp", ".LRV", ".insv", ".ps", ".Mp4_", ".bak", ""], ["folder", "file", "tar", "url"]),
        (".yuv", "file"),  # a header of text, and no zero byte
        (".jpg", "folder"),  # in tars and behind URLs pictures are not opened
    ],
)
def test_videos_of_unknown_suffixes_are_taken(media: Path, tmp_path: Path, suffix: str, where: str) -> None:
    clip = media / {".ps": "clip.mpg", ".yuv": "clip.y4m"}.get(suffix, "clip.mp4")
    (tmp_path / "in" / "c").mkdir(parents=True)
    file = shutil.copy(clip, tmp_path / "in" / "c" / f"one{suffix}")
    for name in ("one.srt", "one.json", "README"):
        (tmp_path / "in" / "c" / name).write_text("words\n")
    given: str | Path = {"folder": tmp_path / "in", "file": file}.get(where, "")
    if where == "tar":
        given = make_tar(tmp_path / "a.tar", {f"one{suffix}": clip.read_bytes(), "README": b"words"})
    if where == "url":
        given = f"memory://kinds/{tmp_path.name}"
        for path in sorted((tmp_path / "in").rglob("*")):
            if path.is_file():
                Storage(given).put(path, path.relative_to(tmp_path / "in").as_posix())
    found = video_files([given], settings=Settings()).find()
    assert ([Path(one.path).name for one in found.requests], found.problems) == ([f"one{suffix}"], [])
    assert ("other files are not read" in "\n".join(found.notes)) == (where != "file")


@pytest.mark.parametrize("suffix", [".JPE", ".jfif", ".Tif", ".pnm", ".img", ".mp4", ""])
def test_pictures_of_unknown_suffixes_are_taken(media: Path, tmp_path: Path, suffix: str) -> None:
    source = {".Tif": "tiff", ".pnm": "ppm"}.get(suffix, "jpeg")
    (tmp_path / "in" / "c").mkdir(parents=True)
    shutil.copy(media / f"image.{source}", tmp_path / "in" / "c" / f"one{suffix}")
    (tmp_path / "in" / "c" / "notes.txt").write_text("words")
    found = image_files([tmp_path / "in"], settings=Settings()).find()
    assert [(one.name, one.labels) for one in found.requests] == [(f"c/one{suffix}", ("c",))]
    assert "in: 1 other files are not read, 1 .txt: c/notes.txt" in found.notes


def test_pictures_behind_a_url_are_known_by_their_suffix_in_any_case(media: Path, tmp_path: Path) -> None:
    storage = Storage(f"memory://pictures/{tmp_path.name}")
    for name in ("c/ONE.JPG", "c/._ONE.JPG", "@eaDir/ONE.JPG", ".hidden/ONE.JPG"):
        storage.put(media / "image.jpeg", name)
    assert [one.name for one in image_files([storage.url], settings=Settings()).find().requests] == ["c/ONE.JPG"]


def test_what_could_be_meant_and_is_not_read_is_rejected_by_name(media: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(media / "clip.mp4", folder / "clip.mp4")
    numbered_image(1).save(folder / "photo.jpg")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (folder / "raw.braw").write_bytes(b"\0\xff" * 99)
    (folder / "notes.nfo").write_bytes(b"\0\xff" * 99)
    os.mkfifo(folder / "pipe")
    found = video_files([folder], settings=Settings()).find()
    assert [(one.name, one.reason) for one in found.problems] == [("raw.braw", "unknown_format")]
    assert "in: 4 other files are not read" in "\n".join(found.notes)
    found = image_files([folder], settings=Settings()).find()
    assert [(one.name, one.reason) for one in found.problems] == [
        ("raw.braw", "unknown_format"),
        ("photo.heic", "unknown_format"),
    ]
    assert [one.name for one in found.requests] == ["photo.jpg"]
    assert main(["build", "--videos", str(folder), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert open_dataset(tmp_path / "out").meta["totals"]["rejected"] == {"unknown_format": 1}


def test_sidecars_are_not_opened(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.srt", "a.json", "a.TXT", "a.xml", "a.nfo", "a.wav", "a.zip"):
        (tmp_path / name).touch()
    shutil.copy(media / "clip.y4m", tmp_path / "clip.video")
    opened: list[tuple[str, int]] = []
    head = Folder.head

    def noted(self: Folder, path: str, count: int) -> bytes:
        data = head(self, path, count)
        opened.append((path, len(data)))
        return data

    monkeypatch.setattr(Folder, "head", noted)
    video_files([tmp_path], settings=Settings()).find()
    assert opened == [("clip.video", HEAD_BYTES)]


def test_a_file_that_is_refused_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.foo").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "away.foo").symlink_to(tmp_path / "clip.foo")
    (tmp_path / "in" / "bad.foo").touch()

    def fails(self: Folder, path: str, count: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(Folder, "head", fails)
    found = video_files([tmp_path / "in"], settings=Settings()).find()
    assert [(one.name, one.reason) for one in found.problems] == [
        ("away.foo", "unsafe_name"),
        ("bad.foo", "unknown_format"),
    ]
    assert "its content is not to be read" in found.problems[1].message
    assert "other files" not in "\n".join(found.notes)


def frames_of(folder: Path) -> Path:
    return make_frame_folder(folder / "v", 3)


def video_of(folder: Path) -> Path:
    return make_video(folder / "clip.mp4", 3)


def image_of(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(folder / "1.png")
    return folder / "1.png"


READERS: dict[str, tuple[Callable[[Path], Path], Callable[..., object]]] = {
    "frames": (frames_of, frame_folders),
    "videos": (video_of, video_files),
    "images": (image_of, image_files),
}


def listed(kind: str, root: Path, *, allow_outside: bool) -> ScanResult:
    read = READERS[kind][1]
    found: ScanResult = read([root], settings=Settings(), reading=Reading(allow_outside=allow_outside)).find()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("kind", READERS)
def test_fault_07_linked_folders_are_followed_if_allowed(tmp_path: Path, kind: str) -> None:
    put = READERS[kind][0]
    put(tmp_path / "root" / "a")
    put(tmp_path / "elsewhere" / "b")
    root = tmp_path / "root"
    (root / "b").symlink_to(tmp_path / "elsewhere" / "b")  # out of the root
    (root / "c").symlink_to("a")  # within; with b a diamond: nothing leads to itself
    (root / "a" / "up").symlink_to("..")
    (root / "loop").symlink_to(tmp_path / "root")
    found = listed(kind, root, allow_outside=False)
    assert [one.labels for one in found.requests] == [("a",)]
    (note,) = (note for note in found.notes if "not followed" in note)
    assert note.startswith("root: 4 linked folders were not followed (--allow-outside follows them)")
    assert "a/up -> .." in note
    assert f"b -> {tmp_path / 'elsewhere' / 'b'}" in note
    found = listed(kind, root, allow_outside=True)
    assert [one.labels for one in found.requests] == [("a",), ("b",), ("c",)]
    assert found.problems == []
    assert "root: 3 linked folders lead back to a folder above them, and were not followed" in found.notes


@pytest.mark.parametrize("kind", READERS)
def test_a_link_that_leads_nowhere_does_no_harm(tmp_path: Path, kind: str) -> None:
    READERS[kind][0](tmp_path / "root" / "a")
    (tmp_path / "root" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "root" / "itself").symlink_to("itself")
    found = listed(kind, tmp_path / "root", allow_outside=True)
    assert (len(found.requests), found.problems) == (1, [])


@pytest.mark.parametrize("follow", [False, True])
def test_a_folder_that_goes_away_during_a_walk_ends_nothing(tmp_path: Path, follow: bool) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    folders = walk(tmp_path, follow=follow, links=FolderLinks())
    assert next(folders)[0] == ""
    (tmp_path / "b").rmdir()
    assert sorted(folder for folder, _ in folders) == ["a", "c"]
    with pytest.raises(FileNotFoundError):
        next(walk(tmp_path, "b", follow=follow, links=FolderLinks()))
