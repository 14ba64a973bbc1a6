"""H.264 groups as they are stored: the same bytes everywhere, closed, padded, checked after encoding."""

import av
import numpy as np
import pytest

from mae3d.video.errors import MediaError
from mae3d.video.groups import GroupDecoder, access_units
from preprocess.encode import group_encoder
from preprocess.encode.frame_store import frame_store
from preprocess.encode.group_encoder import GroupEncoder, codec_version
from preprocess.encode.video_frames import plane_rows
from preprocess.plan.settings import Settings
from tests.support.media import numbered_image

VIDEO = Settings(layout="video", fps=8.0)


def encoded(count: int, size: tuple[int, int] = (64, 48), settings: Settings = VIDEO) -> list[bytes]:
    groups: list[bytes] = []
    store = frame_store(settings, groups.append)
    for number in range(count):
        store.add_frame(av.VideoFrame.from_image(numbered_image(number, size)), size)
    store.finish()
    return groups


def shown(group: bytes, count: int, size: tuple[int, int]) -> list[np.ndarray]:
    decoder, pictures = GroupDecoder(), []
    for frame in decoder.decode(group, range(count)):
        pictures.append(np.zeros((size[1], size[0], 3), np.uint8))
        decoder.rgb(frame, pictures[-1])
    return pictures


def test_groups_are_whole_closed_and_begin_with_their_parameters() -> None:
    groups = encoded(19)
    assert [len(access_units(group, 99)) for group in groups] == [8, 8, 3]
    for group in groups:
        kinds = [group[at + 3] & 31 for at in range(len(group) - 3) if group[at : at + 3] == b"\0\0\1"]
        assert [kind for kind in kinds if kind != 6] == [7, 8, 5] + [1] * (len(kinds) - kinds.count(6) - 3)


def test_no_frame_waits_for_a_later_one() -> None:
    kinds = [int(frame.pict_type) for group in encoded(16) for frame in GroupDecoder().decode(group, range(8))]
    assert kinds == [1, *[2] * 7] * 2  # AV_PICTURE_TYPE_I, _P


def test_every_instruction_set_writes_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = encoded(10)
    for extra in (":asm=0", ":asm=SSE4.2"):
        monkeypatch.setattr(group_encoder, "_FIXED", group_encoder._FIXED.partition(":asm")[0] + extra)
        assert encoded(10) == groups


def test_the_stored_rate_does_not_change_the_bytes() -> None:
    assert encoded(9, settings=Settings(layout="video", fps=1.0)) == encoded(
        9, settings=Settings(layout="video", fps=60.0)
    )
    assert encoded(9, settings=Settings(layout="video", fps=8.0, crf=30.0)) != encoded(9)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 16), (16, 17), (33, 31), (340, 256)])
def test_any_size_is_padded_by_its_edge_and_comes_back(size: tuple[int, int]) -> None:
    (group,) = encoded(2, size)
    frame = GroupDecoder().decode(group, [1])[0]
    assert (frame.width % 16, frame.height % 16) == (0, 0)
    luma = plane_rows(frame.planes[0]).astype(int)
    assert np.abs(luma[size[1] :] - luma[size[1] - 1]).max(initial=0) < 24
    assert np.abs(luma[:, size[0] :] - luma[:, size[0] - 1 : size[0]]).max(initial=0) < 24
    assert frame.width - size[0] < 16
    assert frame.height - size[1] < 16
    for number, picture in enumerate(shown(group, 2, size)):
        wanted = np.asarray(numbered_image(number, size), int)
        if min(size) > 16:
            assert np.abs(picture - wanted).mean() < 6
        else:  # chroma of 4:2:0 hardly belongs to single pixels: their brightness does
            assert np.abs(picture.mean() - wanted.mean()) < 16


def test_colours_are_those_of_the_jpegs() -> None:
    frame = av.VideoFrame.from_ndarray(np.tile(np.array([[[200, 40, 90]]], np.uint8), (32, 32, 1)), "rgb24")
    groups: list[bytes] = []
    store = frame_store(VIDEO, groups.append)
    store.add_frame(frame, (32, 32))
    store.finish()
    assert np.abs(shown(groups[0], 1, (32, 32))[0].reshape(-1, 3).astype(int) - [200, 40, 90]).max() <= 3
    decoded = GroupDecoder().decode(groups[0], [0])[0]
    assert (int(decoded.colorspace), int(decoded.color_range)) == (5, 1)  # BT.601, limited: the stream says so


def test_what_comes_back_too_different_is_refused() -> None:
    rough = Settings(layout="video", fps=8.0, crf=51.0, min_psnr=40.0)
    with pytest.raises(MediaError, match=r"dB after encoding, --min-psnr 40: lower --crf, or allow it") as raised:
        encoded(9, settings=rough)
    assert (raised.value.reason, raised.value.frame) == ("quality", 0)
    assert encoded(9, settings=Settings(layout="video", fps=8.0, crf=51.0, min_psnr=0.0))


def test_a_group_that_does_not_come_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a fault of the encoder, or of the memory."""
    whole = GroupEncoder._take

    def broken(self: GroupEncoder, packets: list[av.Packet]) -> None:
        whole(
            self,
            [packet if packet.pts != 9 else av.Packet(bytes(packet)[: len(bytes(packet)) // 2]) for packet in packets],
        )

    monkeypatch.setattr(GroupEncoder, "_take", broken)
    with pytest.raises(MediaError) as raised:
        encoded(16)
    assert (raised.value.reason, raised.value.frame) == ("quality", 8)


def test_the_version_is_x264s_own() -> None:
    assert codec_version().startswith("x264 - core ")


def test_without_an_encoder_the_remedies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_encoder(name: str, mode: str) -> None:
        raise av.error.EncoderNotFoundError(1, "no such encoder")

    monkeypatch.setattr(group_encoder.av.CodecContext, "create", no_encoder, raising=False)
    with pytest.raises(ValueError, match=r"pip install av.*--layout jpeg"):
        GroupEncoder(16, 16, settings=VIDEO, sink=lambda group: None)
