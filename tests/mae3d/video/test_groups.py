"""Groups of H.264: any window of any stride is what decoding the whole sample gives; what is no group is refused."""

import itertools

import av
import numpy as np
import pytest
from PIL import Image

from mae3d.video.groups import GroupDecoder, GroupError, access_units
from preprocess.encode.frame_store import frame_store
from preprocess.plan.settings import Settings
from tests.support.media import frame_number, numbered_image

SIZE = (72, 50)  # neither side a multiple of 16


def encoded(count: int, *, group: int = 8, size: tuple[int, int] = SIZE) -> list[bytes]:
    groups: list[bytes] = []
    store = frame_store(Settings(layout="video", fps=8, group=group), groups.append)
    for number in range(count):
        store.add_frame(av.VideoFrame.from_image(numbered_image(number, size)), size)
    store.finish()
    return groups


@pytest.fixture(scope="module")
def groups() -> list[bytes]:
    return encoded(27)


def pixels(decoder: GroupDecoder, frame: av.VideoFrame) -> np.ndarray:
    out = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    decoder.rgb(frame, out)
    return out


def test_any_frames_of_a_group_are_those_of_the_whole_stream(groups: list[bytes]) -> None:
    stream = av.CodecContext.create("h264", "r")
    whole = [frame for unit in access_units(b"".join(groups), 27) for frame in stream.decode(av.Packet(unit))]
    whole += stream.decode(None)
    decoder = GroupDecoder()
    shown = [pixels(decoder, frame) for frame in whole]
    assert [frame_number(Image.fromarray(one)) for one in shown] == list(range(27))
    compared = 0
    for number, group in reversed(list(enumerate(groups))):  # no group needs the one before
        length = len(access_units(group, 99))
        assert length == min(8, 27 - 8 * number)
        for first, stride in itertools.product(range(length), (1, 2, 3, 4)):
            wanted = list(range(first, length, stride))
            frames = decoder.decode(group, wanted)
            for place, frame in zip(wanted, frames, strict=True):
                assert np.array_equal(pixels(decoder, frame), shown[8 * number + place])
                compared += 1
    assert compared > 200


def test_nothing_behind_the_last_wanted_frame_is_decoded(groups: list[bytes]) -> None:
    units = access_units(groups[0], 8)
    assert b"".join(units) == groups[0]
    cut = b"".join(units[:3]) + units[3][: len(units[3]) // 2]
    assert len(GroupDecoder().decode(cut, [0, 2])) == 2
    with pytest.raises(GroupError):
        GroupDecoder().decode(cut, [0, 3])


@pytest.mark.parametrize("damage", [b"", b"\0" * 400, b"<html>not a stream</html>", b"\0\0\1\x65\xff\xff\xff"])
def test_what_is_no_group_is_refused_and_the_decoder_goes_on(groups: list[bytes], damage: bytes) -> None:
    decoder = GroupDecoder()
    with pytest.raises(GroupError, match=r"does not decode|it holds 0 frames, not 1"):
        decoder.decode(damage, [0])
    assert len(decoder.decode(groups[1], range(8))) == 8


def test_a_group_without_its_first_frame_is_no_group(groups: list[bytes]) -> None:
    units = access_units(groups[1], 8)
    with pytest.raises(GroupError):
        GroupDecoder().decode(b"".join(units[1:]), [0])
