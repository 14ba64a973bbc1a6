"""Frames from ranges of a file's bytes are those of decoding it in turn, whatever codec, container, lie or damage."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mae3d.video.in_place import InPlaceDecoder
from mae3d.video.packets import KEYFRAME, PacketDecoder, PacketError, Packets, PacketTable
from mae3d.video.reader import open_video
from tests.support.media import frame_number, make_video
from tests.support.odd_media import make_resolution_switch
from tests.support.streams import (
    bytes_of,
    decode_window,
    discard_frames,
    join_descriptions,
    join_packets,
    make_coded,
    picture,
    pictures_of,
    shown_by,
    table_of,
    windows,
    without_sync_samples,
)

COUNT = 40
OPEN = {"x264-params": "open-gop=1:keyint=12:bframes=3"}
OPEN_265 = {"x265-params": "open-gop=1:keyint=12:bframes=3:log-level=none"}
FAST = {"deadline": "realtime", "cpu-used": "8"}
# codec, options, pixel format, suffixes
CODINGS = {
    "h264": ("libx264", {}, "yuv420p", "mp4 mov mkv flv nut 3gp"),
    "h264-open": ("libx264", OPEN, "yuv420p", "mp4 mkv flv"),
    "h264-intra": ("libx264", {"x264-params": "keyint=1"}, "yuv420p", "mp4 avi"),
    "h264-no-b": ("libx264", {"x264-params": "bframes=0:keyint=12"}, "yuv420p", "mov avi"),
    "h264-one-group": ("libx264", {"x264-params": "keyint=250:b-pyramid=normal:bframes=5"}, "yuv420p", "mp4"),
    "h264-444": ("libx264", {}, "yuv444p", "mkv"),
    "hevc-open": ("libx265", OPEN_265, "yuv420p", "mp4 mkv nut"),
    "vp8": ("libvpx", FAST, "yuv420p", "webm mkv ivf"),
    "vp8-hidden": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"}, "yuv420p", "webm"),
    "vp9": ("libvpx-vp9", FAST, "yuv420p", "webm mp4 ivf"),
    "av1": ("libsvtav1", {"preset": "12", "svtav1-params": "keyint=12"}, "yuv420p", "mp4 webm"),
    "mpeg4": ("mpeg4", {"bf": "2"}, "yuv420p", "mp4 mkv avi nut"),
    "mpeg2": ("mpeg2video", {"bf": "2"}, "yuv420p", "mp4 mkv avi mxf"),
    "mjpeg": ("mjpeg", {}, "yuvj420p", "mp4 avi"),
    "ffv1": ("ffv1", {}, "yuv420p", "mkv avi"),
    "png": ("png", {}, "rgb24", "mov"),
    "raw": ("rawvideo", {}, "rgb24", "mov nut"),
    "gif": ("gif", {}, "rgb8", "gif"),
    "flv": ("flv", {}, "yuv420p", "flv"),
    "wmv": ("wmv2", {}, "yuv420p", "avi"),
    "quicktime": ("qtrle", {}, "rgb24", "mov"),
}
CASES = [(name, suffix) for name, coding in CODINGS.items() for suffix in coding[3].split()]
CUT_UP = ["libx264.ts", "mpeg2video.ts", "libx265.ts", "mpeg4.mpg", "mpeg2video.mpg", "libvpx.ogv", "libx264.avi"]


def frames_that_differ(path: Path, *, number: int = 25) -> int:
    """Count the frames of windows that are not those of the whole decode, none of which is at another time."""
    times, whole = shown_by(path)
    with open_video(path) as video:
        assert video.listing().times.seconds == times
    table, decoder = table_of(path), PacketDecoder()
    assert len(whole) == len(table) == len(times) > 0
    return sum(
        not np.array_equal(ours, whole[frame])
        for window in windows(len(whole), number)
        for frame, ours in zip(window, decode_window(decoder, table, path, window), strict=True)
    )


def keyframes(path: Path) -> int:
    """Count the packets from which decoding may begin."""
    return int(np.count_nonzero(table_of(path).packets.flags & KEYFRAME))


def frames_that_differ_opened(path: Path, *, number: int = 12) -> int:
    """Count the frames of windows that differ if the file is opened for each of them."""
    with open_video(path) as video:
        listing = video.listing()
    assert (listing.packets, listing.codec, len(listing.packet)) == (None, None, 0)
    whole, seconds = pictures_of(path), np.array(listing.times.seconds)
    assert len(whole) == len(seconds)
    nothing = Packets(*(np.empty(0, kind) for kind in ("<i8", "<i4", "<u4", "<i4", "u1")))
    table = PacketTable((False, False, False), np.empty(0, np.int32), seconds, nothing, None)
    return sum(
        not np.array_equal(picture(frame), whole[shown])
        for window in windows(len(whole), number)
        for shown, frame in zip(window, InPlaceDecoder().frames(table, window, {}, str(path)), strict=True)
    )


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_any_window_from_ranges_of_bytes_is_that_of_the_whole_decode(tmp_path: Path, name: str, suffix: str) -> None:
    codec, options, pixel_format, _ = CODINGS[name]
    size = (128, 96) if name == "av1" else (64, 48)  # SVT-AV1's smallest is larger
    path = make_coded(tmp_path / f"a.{suffix}", codec, options, count=COUNT, pixel_format=pixel_format, size=size)
    assert frames_that_differ(path) == 0


@pytest.mark.parametrize("name", CUT_UP)
def test_what_a_container_cuts_up_is_not_listed_and_comes_from_the_opened_file(tmp_path: Path, name: str) -> None:
    """AVI has no order of presentation: of H.264 with B-frames there, times come from decoding alone."""
    options = {"x265-params": "log-level=none"} if "265" in name else {}
    path = make_coded(tmp_path / name, name.partition(".")[0], options, count=COUNT)
    assert frames_that_differ_opened(path) == 0


def test_a_raw_stream_has_no_times_and_is_not_listed(tmp_path: Path) -> None:
    assert frames_that_differ_opened(make_coded(tmp_path / "a.h264", "libx264", count=COUNT), number=3) == 0


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("discarded", [5, 17])
def test_frames_that_an_edit_list_discards_are_decoded_and_not_counted(
    tmp_path: Path, codec: str, discarded: int
) -> None:
    path = discard_frames(make_coded(tmp_path / "a.mp4", codec, OPEN if codec == "libx264" else {}), discarded)
    assert frames_that_differ(path) == 0
    table = table_of(path)
    assert len(table) == COUNT - discarded < len(table.packets)
    (first,) = decode_window(PacketDecoder(), table, path, [0])
    assert frame_number(Image.fromarray(first)) == discarded


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "nut"])
def test_a_stream_that_starts_late_is_listed_as_it_is_shown(tmp_path: Path, suffix: str) -> None:
    assert frames_that_differ(make_coded(tmp_path / f"a.{suffix}", "libx264", OPEN, start=77)) == 0


def test_frames_at_uneven_times_are_listed(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, COUNT) / 50).tolist()
    assert frames_that_differ(make_video(tmp_path / "a.mkv", COUNT, codec="libx264", times=times)) == 0


@pytest.mark.parametrize(
    ("name", "codec", "options", "change"),
    [
        ("a.mp4", "mpeg4", {}, without_sync_samples),
        ("a.mov", "qtrle", {}, without_sync_samples),
        ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=12"}, None),
        ("a.mkv", "libx264", {"x264-params": "intra-refresh=1:keyint=26"}, None),
        ("a.apng", "apng", {}, None),
    ],
    ids=["none is said", "none is said in mov", "refresh", "rare refresh", "apng"],
)
def test_what_passes_for_a_keyframe_and_is_none_is_not_begun_with(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], change: Callable[[Path], Path] | None
) -> None:
    pixel_format = "yuv420p" if codec in ("mpeg4", "libx264") else "rgb24"
    make_coded(tmp_path / name, codec, options, count=COUNT, pixel_format=pixel_format)
    if change is not None:
        change(tmp_path / name)
    assert frames_that_differ(tmp_path / name) == 0
    assert keyframes(tmp_path / name) == 0
    with open_video(tmp_path / name) as video:
        assert video.listing().times.keyframes == []


def test_keyframes_that_are_some_are_begun_with(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.mov", "prores")):
        path = make_coded(tmp_path / name, codec, pixel_format="yuv422p10le" if codec == "prores" else "yuv420p")
        assert keyframes(path) >= 4
        with open_video(path) as video:
            assert len(video.listing().times.keyframes) == keyframes(path)


CABAC, CAVLC = "keyint=12:bframes=0:ref=1", "keyint=12:bframes=0:ref=4:cabac=0:8x8dct=0"


@pytest.mark.parametrize("size", [(64, 48), (96, 64)])
def test_a_file_with_two_descriptions_is_opened(tmp_path: Path, size: tuple[int, int]) -> None:
    one = make_coded(tmp_path / "1.mp4", "libx264", {"x264-params": CABAC}, count=20)
    other = make_coded(tmp_path / "2.mp4", "libx264", {"x264-params": CAVLC}, count=20, first=20, size=size)
    path = join_descriptions(one, other, tmp_path / "a.mp4")
    assert [frame_number(Image.fromarray(shown)) for shown in pictures_of(path)] == list(range(40))
    assert frames_that_differ_opened(path) == 0


@pytest.mark.parametrize("codec", ["264", "265"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file_whose_packets_bring_other_parameters_is_opened(tmp_path: Path, codec: str, suffix: str) -> None:
    """A decoder would keep them, and the frames before them would not decode any more."""
    settings = {"264": (CABAC, CAVLC), "265": ("bframes=0:keyint=12:ref=1", "bframes=0:keyint=12:ref=4:rect=1")}[codec]
    parts = [
        make_coded(
            tmp_path / f"{number}.mp4",
            f"libx{codec}",
            {f"x{codec}-params": f"{text}:repeat-headers={number}" + ":log-level=none" * (codec == "265")},
            count=20,
            first=20 * number,
        )
        for number, text in enumerate(settings)
    ]
    path = join_packets(parts, tmp_path / f"a.{suffix}")
    assert [frame_number(Image.fromarray(shown)) for shown in pictures_of(path)] == list(range(40))
    assert frames_that_differ_opened(path) == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "nut"])
def test_parameters_that_are_repeated_change_nothing(tmp_path: Path, suffix: str) -> None:
    options = {"x264-params": f"{CABAC}:repeat-headers=1"}
    assert frames_that_differ(make_coded(tmp_path / f"a.{suffix}", "libx264", options, count=COUNT)) == 0


def test_a_stream_that_changes_its_size_on_the_way_is_opened(tmp_path: Path) -> None:
    assert frames_that_differ_opened(make_resolution_switch(tmp_path / "a.ts")) == 0


def spoil(path: Path, table: PacketTable, packets: range) -> None:
    data = bytearray(path.read_bytes())
    for number in packets:
        start, size = int(table.packets.offset[number]), int(table.packets.size[number])
        data[start + size // 3 : start + size // 2] = bytes(size // 2 - size // 3)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["libx264.mp4", "mpeg4.mkv", "libvpx-vp9.webm", "libx265.mp4"])
def test_damage_in_the_middle_costs_no_frame_of_other_groups(tmp_path: Path, name: str) -> None:
    codec = name.partition(".")[0]
    closed = {"libx264": "keyint=12", "libx265": "keyint=12:open-gop=0:log-level=none"}
    options = {f"{codec[3:]}-params": closed[codec]} if codec in closed else FAST if "vp9" in codec else {}
    path = make_coded(tmp_path / name, codec, options, count=70)
    sound, table = pictures_of(path), table_of(path)
    starts = table.packets.starts_of(table.packets_of(range(70)))
    spoilt = range(38, 48)  # behind the frames whose times are compared
    bad = set(table.packets.starts_of(spoilt).tolist())  # groups with a spoilt packet
    spoil(path, table, spoilt)
    damaged, decoder = table_of(path), PacketDecoder()
    assert np.array_equal(damaged.packets.offset, table.packets.offset)
    assert not np.array_equal(damaged.packets.crc32, table.packets.crc32)
    compared = refused = 0
    for window in windows(70, 60):
        try:
            shown = decode_window(decoder, damaged, path, window)
        except PacketError:
            assert bad & set(starts[window].tolist())
            refused += 1
            continue
        for frame, ours in zip(window, shown, strict=True):
            if int(starts[frame]) not in bad:
                assert np.array_equal(ours, sound[frame])
                compared += 1
    assert compared > 60
    assert refused or codec == "libvpx-vp9"  # whose decoder takes anything


def test_a_file_that_is_cut_short_is_listed_up_to_its_end(tmp_path: Path) -> None:
    path = make_coded(tmp_path / "a.mkv", "libx264", OPEN, count=70)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    table, whole = table_of(path), pictures_of(path)
    assert 20 < len(table) < 60
    for window in windows(len(whole) - 8, 20):  # of the last frames one may be half there
        shown = decode_window(PacketDecoder(), table, path, window)
        assert all(np.array_equal(ours, whole[frame]) for frame, ours in zip(window, shown, strict=True))


def test_packets_have_their_own_checksums_and_lie_where_they_are_said_to(tmp_path: Path) -> None:
    path = make_coded(tmp_path / "a.mp4", "libx264", OPEN, count=COUNT)
    table = table_of(path)
    with av.open(str(path)) as container:
        stored = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert list(bytes_of(table, path, range(len(table.packets))).values()) == stored


def test_what_is_read_for_times_alone_is_the_same(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.ts", "a.avi"):
        path = make_coded(tmp_path / name, "libx264", OPEN, count=COUNT)
        with open_video(path) as video:
            alone = video.frame_times()
        with open_video(path) as video:
            assert video.listing().times == alone
            assert video.frame_times() == alone


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["odd", "real"])
@pytest.mark.parametrize("number", [8, pytest.param(30, marks=pytest.mark.soak)])
def test_any_window_of_real_files_is_that_of_the_whole_decode(media: Path, folder: str, number: int) -> None:
    """A window of corrupted.mp4 may be refused, and stand-ins for what is lost may differ."""
    paths = [path for path in sorted((media / "videos" / folder).iterdir()) if path.name != "corrupted.mp4"]
    assert {path.name: frames_that_differ(path, number=number) for path in paths} == dict.fromkeys(
        [path.name for path in paths], 0
    )
