"""Packets of a video: where decoding begins for the frames in them, and which of them are needed."""

import contextlib
import ctypes
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mae3d.video.packets import (
    KEYFRAME,
    UNREFERENCED,
    Codec,
    PacketDecoder,
    PacketError,
    Packets,
    PacketTable,
    changes_parameters,
    is_unreferenced,
    padded_packet,
)
from tests.support.streams import bytes_of, decode_window, make_coded, picture, pictures_of, table_of

# Decoding order, as a stream with open groups has it: the frames of packets 5 and 6 are shown before keyframe 4.
RANKS = [0, 3, 1, 2, 7, 5, 6, 9, 8]
KEYS, FREE = (0, 4), (2, 3, 5, 6, 8)


def packets(keys: tuple[int, ...] = KEYS) -> Packets:
    flags = np.zeros(len(RANKS), np.uint8)
    flags[list(keys)] |= KEYFRAME
    flags[list(FREE)] |= UNREFERENCED
    nothing = np.zeros(len(RANKS), np.int64)
    return Packets(nothing, nothing.astype(np.int32), nothing.astype(np.uint32), np.array(RANKS, np.int32), flags)


def one_by_one(table: Packets, number: int) -> int:
    before = [key for key in np.flatnonzero(table.flags[: number + 1] & KEYFRAME) if table.rank[key] <= RANKS[number]]
    return int(before[-1]) if before else 0


@pytest.mark.parametrize("keys", [KEYS, (4,), (0, 4, 7), ()])
def test_decoding_begins_at_the_last_keyframe_that_is_shown_and_stored_before(keys: tuple[int, ...]) -> None:
    table = packets(keys)
    starts = table.starts_of(range(len(RANKS))).tolist()
    assert starts == [one_by_one(table, number) for number in range(len(RANKS))]


def test_what_nothing_refers_to_is_left_out_unless_it_is_requested() -> None:
    assert [run.tolist() for run in packets().needed([7])] == [[4, 7]]
    assert [run.tolist() for run in packets().needed([5, 8, 5])] == [[0, 1, 4, 5, 7, 8]]
    assert [run.tolist() for run in packets().needed([2, 8])] == [[0, 1, 2], [4, 7, 8]]


def random_packets(rng: np.random.Generator, count: int) -> Packets:
    """Packets that are shown a few places from where they are stored, keyframes and free ones among them."""
    rank = np.argsort(np.argsort(np.arange(count) + rng.uniform(0, 4, count))).astype(np.int32)
    is_key = rng.random(count) < 0.15
    is_free = ~is_key & (np.arange(count) > 0) & (rng.random(count) < 0.4)
    flags = (KEYFRAME * is_key + UNREFERENCED * is_free).astype(np.uint8)
    size = rng.integers(1, 1 << 20, count).astype(np.int32)
    return Packets(
        np.cumsum(size, dtype=np.int64), size, rng.integers(0, 1 << 32, count).astype(np.uint32), rank, flags
    )


def test_frames_need_together_what_each_of_them_needs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        table = random_packets(rng, 40)
        one, other = (rng.integers(0, 40, rng.integers(1, 9)).tolist() for _ in range(2))
        sets = [{int(n) for run in table.needed(some) for n in run} for some in (one, other, one + other)]
        assert sets[2] == sets[0] | sets[1]
        assert sets[2] == {int(n) for number in one + other for run in table.needed([number]) for n in run}
        runs = table.needed(one + other)
        assert all(np.all(np.diff(run) > 0) for run in runs)
        assert all(before[-1] < after[0] for before, after in itertools.pairwise(runs))
        assert {int(run[0]) for run in runs} <= set(table.starts_of(one + other).tolist())


def test_packets_without_keyframes_are_decoded_from_the_first() -> None:
    table = random_packets(np.random.default_rng(1), 40)
    bare = table.without_keyframes()
    assert not bare.starts_of(range(40)).any()
    assert np.array_equal(bare.flags & UNREFERENCED, table.flags & UNREFERENCED)
    assert table.flags.any()  # it is another one


CODEC = Codec("h264", bytes(range(256)), 64, 48, "yuv420p", "avc1", 24, 1, 2, strict=True)


@pytest.mark.parametrize("codec", [None, CODEC, replace(CODEC, pix_fmt=None, tag="\0\0\xff\x7f", strict=False)])
def test_a_table_is_read_as_it_was_written(codec: Codec | None) -> None:
    rng = np.random.default_rng(2)
    packets = random_packets(rng, 30 if codec else 0)
    frame = np.sort(rng.integers(0, 30, 50)).astype(np.int32) if codec else np.empty(0, np.int32)
    seconds = np.cumsum(rng.random(50))
    table = PacketTable((True, False, True), frame, seconds, packets, codec)
    data = table.to_bytes()
    read = PacketTable.from_bytes(memoryview(data))
    assert (read.way, read.codec, len(read)) == (table.way, codec, 50)
    assert np.array_equal(read.frame, frame)
    assert np.array_equal(read.seconds, seconds)
    for name in ("offset", "size", "crc32", "rank", "flags"):
        ours, theirs = getattr(read.packets, name), getattr(packets, name)
        assert np.array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert read.to_bytes() == data
    for broken in (b"", data[:20], data[: len(data) - 1], data[1:]):
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|buffer|Extra data"):
            PacketTable.from_bytes(broken)


@pytest.mark.parametrize("options", ["keyint=12", "open-gop=1:keyint=12:bframes=3", "b-pyramid=none:bframes=2"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_packets_that_nothing_refers_to_change_no_other_frame(tmp_path: Path, options: str, suffix: str) -> None:
    path = make_coded(tmp_path / f"a.{suffix}", "libx264", {"x264-params": options})
    whole, table = pictures_of(path), table_of(path)
    is_free = (table.packets.flags & UNREFERENCED).astype(bool)
    others = [frame for frame in range(len(whole)) if not is_free[table.frame[frame]]]
    assert 8 < is_free.sum() < len(whole) - 8
    assert not set(np.flatnonzero(is_free).tolist()) & set(table.needed_at_all(others).tolist())
    shown = decode_window(PacketDecoder(), table, path, others)
    assert all(np.array_equal(ours, whole[frame]) for frame, ours in zip(others, shown, strict=True))
    for frame in np.flatnonzero(is_free[table.frame]).tolist():  # and each of them can be had
        (ours,) = decode_window(PacketDecoder(), table, path, [frame])
        assert np.array_equal(ours, whole[frame])


def test_packets_that_something_refers_to_are_not_free(tmp_path: Path) -> None:
    """Without one of them, other frames are lost or differ."""
    path = make_coded(tmp_path / "a.mp4", "libx264", {"x264-params": "keyint=40:bframes=3:b-pyramid=normal"})
    whole, table = pictures_of(path), table_of(path)
    referred = np.flatnonzero(table.packets.flags == 0).tolist()
    assert len(referred) > 8
    harmless = 0
    for number in referred[:-1]:
        lost = replace(table.packets, flags=table.packets.flags.copy())
        lost.flags[number] |= UNREFERENCED
        others = [frame for frame in range(len(whole)) if table.frame[frame] != number]
        try:
            shown = decode_window(PacketDecoder(), replace(table, packets=lost), path, others)
        except PacketError:
            continue
        harmless += all(np.array_equal(ours, whole[frame]) for frame, ours in zip(others, shown, strict=True))
    assert harmless <= 1  # the last reference of the stream may have none


def test_nothing_is_known_of_other_codecs_and_other_framing() -> None:
    free = b"\0\0\0\2\1\0"  # a slice of a P picture, nal_ref_idc 0
    assert is_unreferenced("h264", free, b"\1\x64\0\x1f\xff")
    assert not is_unreferenced("h264", b"\0\0\0\2\x41\0", b"\1\x64\0\x1f\xff")
    assert not is_unreferenced("h264", b"\0\0\0\2\x65\0" + free, b"\1\x64\0\x1f\xff")
    assert not is_unreferenced("h264", b"\0\0\0\2\x06\0", b"\1\x64\0\x1f\xff")  # nothing but a remark
    assert not is_unreferenced("h264", b"\0\0\1\1\0", b"\0\0\0\1\x67")
    assert not is_unreferenced("hevc", free, b"\1\x64\0\x1f\xff")
    for cut in range(len(free)):
        is_unreferenced("h264", free[:cut], b"\1\x64\0\x1f\xff")
        is_unreferenced("h264", free, b"\1\x64\0\x1f\xff"[:cut])


H264, HEVC = b"\1\x64\0\x1f\xff\xe1\0\3\x67\x42\x43\1\0\2\x68\x44", b"\1" + bytes(20) + b"\3" + b"\x40\1A\x42\1B"


@pytest.mark.parametrize(
    ("codec", "extradata", "data", "changes"),
    [
        ("h264", H264, b"\0\0\0\3\x67\x42\x43\0\0\0\2\x65\0", False),
        ("h264", H264, b"\0\0\0\3\x67\x42\x44\0\0\0\2\x65\0", True),
        ("h264", H264, b"\0\0\0\2\x65\0\0\0\0\2\x68\x45", True),
        ("h264", H264, b"\0\0\0\2\x65\x67\0\0\0\0\0\0\0\3\x41\x68\x45", False),
        ("h264", b"\0\0\0\1\x67\x42\0\0\1\x68\x44", b"\0\0\0\1\x67\x42\0\0\0\1\x65\0", False),
        ("h264", b"\0\0\0\1\x67\x42\0\0\1\x68\x44", b"\0\0\0\1\x67\x43\0\0\0\1\x65\0", True),
        ("h264", b"", b"\0\0\1\x67\x43\0\0\1\x65\0", True),
        ("hevc", HEVC, b"\0\0\0\3\x40\1A\0\0\0\3\x26\1\0", False),
        ("hevc", HEVC, b"\0\0\0\3\x40\1B", True),
        ("mpeg4", H264, b"\0\0\0\3\x67\x42\x44", False),
    ],
)
def test_parameters_that_the_stream_does_not_have_are_a_change(
    codec: str, extradata: bytes, data: bytes, changes: bool
) -> None:
    assert changes_parameters(codec, data, extradata) == changes


def test_a_decoder_goes_from_file_to_file_and_over_damage(tmp_path: Path) -> None:
    """Many more kinds of files than it keeps contexts of, some of them with the same parameters."""
    codecs = ("libx264", "mpeg4", "mjpeg", "libvpx", "ffv1", "mpeg2video")
    kinds = [(codec, size) for codec in codecs for size in ((64, 48), (48, 64))]
    decoder = PacketDecoder()
    files = []
    for number, (codec, size) in enumerate([*kinds, *kinds[:4]]):
        pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        speed = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {}
        path = tmp_path / f"{number}.mkv"
        make_coded(path, codec, speed, count=9, first=10 * number, size=size, pixel_format=pixel_format)
        files.append((path, pictures_of(path), table_of(path)))
    rng = np.random.default_rng(3)
    for turn in rng.integers(0, len(files), 60).tolist():
        path, whole, table = files[turn]
        frames = rng.integers(0, 9, 3).tolist()
        shown = decode_window(decoder, table, path, frames)
        assert all(np.array_equal(ours, whole[frame]) for frame, ours in zip(frames, shown, strict=True))
        noise = {number: rng.bytes(200) for number in table.needed_at_all(frames).tolist()}
        with contextlib.suppress(PacketError):
            decoder.decode(table, frames, noise)


def test_behind_a_packet_lie_zeros_and_mpeg4_decodes_twenty_times_alike(tmp_path: Path) -> None:
    for size in (1, 3, 64, 1000, 4096):
        packet = padded_packet(b"\xff" * size)
        assert bytes(packet) == b"\xff" * size
        assert ctypes.string_at(packet.buffer_ptr + size, 64) == bytes(64)
    path = make_coded(tmp_path / "a.mp4", "mpeg4", {"bf": "2"}, count=24)
    whole, table = pictures_of(path), table_of(path)
    decoder, data = PacketDecoder(), bytes_of(table, path, range(24))
    for _ in range(20):
        decoded = decoder.decode(table, range(24), data)
        assert not any(frame.is_corrupt for frame in decoded.values())
        assert all(np.array_equal(picture(decoded[int(table.frame[i])]), whole[i]) for i in range(24))


def test_frames_that_do_not_come_out_are_counted(tmp_path: Path) -> None:
    path = make_coded(tmp_path / "a.mp4", "libx264", {"x264-params": "keyint=12:bframes=0"}, count=12)
    table = table_of(path)
    data = bytes_of(table, path, range(12))
    with pytest.raises(PacketError, match=r"does not decode|[1-9] of 3 frames do not come out|is damaged"):
        PacketDecoder().decode(table, [3, 4, 5], data | {0: data[1], 4: data[4][: len(data[4]) // 2]})
    with pytest.raises(PacketError):
        PacketDecoder().decode(table, [3], dict.fromkeys(range(4), bytes(40)))
