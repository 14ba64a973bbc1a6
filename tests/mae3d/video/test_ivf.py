"""Windows of groups as IVF: FFmpeg's demuxer and decoder give the frames that GroupDecoder gives, and no more."""

import io
from collections.abc import Sequence

import av
import numpy as np
import pytest

from mae3d.video.groups import GroupDecoder, GroupError, access_units
from mae3d.video.ivf import window_in_ivf
from tests.mae3d.video.test_groups import SIZE, encoded, pixels

COUNT, GROUP = 27, 8


@pytest.fixture(scope="module")
def groups() -> list[bytes]:
    return encoded(COUNT, group=GROUP)


@pytest.fixture(scope="module")
def shown(groups: list[bytes]) -> list[np.ndarray]:
    """All frames, as GroupDecoder gives them."""
    decoder = GroupDecoder()
    return [
        pixels(decoder, frame)
        for group in groups
        for frame in decoder.decode(group, range(len(access_units(group, 99))))
    ]


def window_of(groups: list[bytes], frames: Sequence[int]) -> tuple[bytes, list[int]]:
    touched = sorted({frame // GROUP for frame in frames})
    chosen = [(groups[part], [frame % GROUP for frame in frames if frame // GROUP == part]) for part in touched]
    return window_in_ivf(chosen, width=SIZE[0], height=SIZE[1])


def test_any_window_holds_its_frames_and_nothing_behind_them(groups: list[bytes], shown: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    decoder = GroupDecoder()
    for _ in range(60):
        stride = int(rng.integers(1, 9))
        start = int(rng.integers(0, COUNT))
        frames = list(range(start, COUNT, stride))[: int(rng.integers(1, 12))]
        data, places = window_of(groups, frames)
        with av.open(io.BytesIO(data), format="ivf") as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 80, 64)
            decoded = list(container.decode(stream))
        assert [frame.pts for frame in decoded] == list(range(len(decoded)))
        assert places[-1] == len(decoded) - 1  # nothing is sent that no frame needs
        assert len(decoded) == sum(
            max(f % GROUP for f in frames if f // GROUP == p) + 1 for p in {f // GROUP for f in frames}
        )
        for frame, place in zip(frames, places, strict=True):
            assert np.array_equal(pixels(decoder, decoded[place]), shown[frame])


def test_a_group_that_is_short_is_refused_whichever_it_is(groups: list[bytes]) -> None:
    short = b"".join(access_units(groups[0], 3))
    for at in range(3):
        window = [(group, [1, 6]) for group in groups[:3]]
        window[at] = (short, [1, 6])
        with pytest.raises(GroupError, match="it holds 3 frames, not 7"):
            window_in_ivf(window, width=SIZE[0], height=SIZE[1])
