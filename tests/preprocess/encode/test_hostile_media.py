"""What becomes of files that mean harm: limits on pixels, frames and bytes, bombs, playlists, names like protocols."""

import io
import struct
import zlib
from pathlib import Path

import av
import pytest
from PIL import Image

from mae3d.video.container import _FORMATS
from mae3d.video.errors import MediaError
from mae3d.video.reader import open_video
from preprocess.encode.sample import encode_sample
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from preprocess.workers.decoder import decoder
from tests.support.media import frame_number, make_frame_folder, make_video
from tests.support.odd_media import PLAYLISTS, announce_hours, make_reference, store


def store_image(path: Path, **settings: float) -> list[bytes]:
    row = PlannedSample(0, 0, "image", 0, path.name, path.name, [], "", first=0, stop=1)
    stored: list[bytes] = []
    encode_sample(row, [path], settings=Settings(**settings), sink=stored.append)  # type: ignore[arg-type]
    return stored


def test_fault_11_ten_hours_that_are_announced_need_not_be_there(tmp_path: Path) -> None:
    path = announce_hours(make_video(tmp_path / "a.mkv", 30, fps=10), 10.0)
    with open_video(path) as video:
        assert video.facts.duration_s == pytest.approx(36_000)
        assert video.measured_facts().duration_s == pytest.approx(3.0, abs=0.11)
    facts, _ = store(path)
    assert facts.num_frames == 30


def test_fault_11_too_many_frames_and_too_many_bytes_are_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30, fps=10)
    assert store(path, max_frames=30)[0].num_frames == 30
    with pytest.raises(MediaError, match=r"--max-frames 29.*--segment-seconds") as caught:
        store(path, max_frames=29)
    assert caught.value.reason == "too_many_frames"
    written = sum(map(len, store(path)[1]))
    assert store(path, max_gb=written / 1e9)[0].num_frames == 30
    with pytest.raises(MediaError, match="--max-gb") as caught:
        store(path, max_gb=(written - 1) / 1e9)
    assert caught.value.reason == "too_large"


def bomb_png(side: int) -> bytes:
    """A PNG that announces side x side pixels and holds a few."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"x")) + chunk(b"IEND", b"")


def bomb_jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def bomb_webp(side: int) -> bytes:
    """A lossless one; its header has room for no more than 16383 x 16383 (RFC 9649, section 3.4)."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    at = data.index(b"VP8L") + 9
    flags = int.from_bytes(data[at : at + 4], "little") >> 28 << 28
    data[at : at + 4] = (flags | side - 1 | side - 1 << 14).to_bytes(4, "little")
    return bytes(data)


def bomb_of(kind: str, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, kind)
    data = buffer.getvalue()
    little = struct.pack("<HH", 16, 16)
    if kind == "GIF":
        return data.replace(little, struct.pack("<HH", side, side))
    if kind == "BMP":
        return data.replace(struct.pack("<II", 16, 16), struct.pack("<II", side, side), 1)
    for tag in (256, 257):  # TIFF: ImageWidth and ImageLength
        at = data.index(struct.pack("<H", tag), 8)
        data = data[: at + 2] + struct.pack("<HII", 4, 1, side) + data[at + 12 :]
    return data


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "GIF", "BMP", "TIFF"])
def test_fault_11_image_bombs_are_refused_by_their_headers(tmp_path: Path, kind: str) -> None:
    makers = {"png": bomb_png, "jpeg": bomb_jpeg, "webp": bomb_webp}
    side = 16_383 if kind == "webp" else 60_000
    path = tmp_path / "bomb.jpg"
    path.write_bytes(makers[kind](side) if kind in makers else bomb_of(kind, side))
    row = PlannedSample(0, 0, "image", 0, path.name, path.name, [], "", first=0, stop=1)
    (tmp_path / "tar").touch()
    with pytest.raises(MediaError, match=f"{side}x{side} pixels, --max-pixels 67108864 are allowed") as caught:
        decoder().write(row, [path], settings=Settings(), tar=tmp_path / "tar", start=0, first=True)
    assert caught.value.reason == "too_large"


def test_fault_11_an_image_file_is_not_read_beyond_what_its_pixels_can_take(tmp_path: Path) -> None:
    folder = make_frame_folder(tmp_path, 1)
    path = folder / "img_00001.jpg"
    path.write_bytes(path.read_bytes() + bytes(64 * 48 * 8))
    with pytest.raises(MediaError, match="more than 0 MB") as caught:
        store_image(path, max_pixels=64 * 48)
    assert caught.value.reason == "too_large"


def test_fault_11_a_device_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("/dev/zero")
    with pytest.raises(MediaError, match="not a file"):
        store_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ts"])
def test_fault_12_a_playlist_opens_nothing(tmp_path: Path, kind: str, name: str) -> None:
    make_video(tmp_path / "secret.ts", 5, codec="mpeg2video", fps=25)
    (tmp_path / name).write_text(PLAYLISTS[kind].format(name="secret.ts"))
    with pytest.raises(MediaError) as caught:
        store(tmp_path / name)
    assert caught.value.reason == "unreadable"


def test_fault_12_the_playlists_of_this_test_would_open_the_secret(tmp_path: Path) -> None:
    make_video(tmp_path / "secret.ts", 5, codec="mpeg2video", fps=25)
    (tmp_path / "list.m3u8").write_text(PLAYLISTS["hls"].format(name="secret.ts"))
    (tmp_path / "list.ffconcat").write_text(PLAYLISTS["concat"].format(name="secret.ts"))
    for name in ("list.m3u8", "list.ffconcat"):
        with av.open(str(tmp_path / name)) as container:
            assert len(list(container.decode(video=0))) == 5


def test_fault_12_a_quicktime_file_cannot_show_another_file(tmp_path: Path) -> None:
    secret = make_video(tmp_path / "secret.mp4", 5)
    path = make_reference(tmp_path / "a.mp4", secret)
    with pytest.raises(MediaError) as caught:
        store(path)
    assert caught.value.reason == "no_frames"
    options = {"enable_drefs": "1", "format_whitelist": _FORMATS}
    with av.open(str(path), options=options) as container:  # it would, if FFmpeg were asked to follow
        assert [frame_number(frame.to_image()) for frame in container.decode(video=0)] == list(range(5))


@pytest.mark.parametrize(
    "name", ["img_%03d.mp4", "http:a.mp4", "concat:a.mp4|b.mp4", "pipe:0", "subfile,,start,0,end,9,,:x.mp4"]
)
def test_fault_12_a_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    make_video(tmp_path / "img_001.mp4", 9)
    made = make_video(tmp_path / "a.mp4", 3).rename(tmp_path / name)
    assert store(made)[0].num_frames == 3
