"""The self-test of DALI's decoders: passes where DALI decodes, sees wrong pixels, frames, crops and colours.

python -m tests.pipelines.decoding.test_self_test      # prints the groups that are stored in pipelines' self_test.py
"""

import base64
import textwrap
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest

from mae3d.video.groups import GroupDecoder
from pipelines.decoding import self_test
from pipelines.decoding.dali import DaliDecoder
from pipelines.decoding.self_test import decode_self_test
from preprocess.encode.frame_store import frame_store
from preprocess.plan.settings import Settings
from tests.support import vp9

FRAMES, GROUP = 8, 4
SIZES = ((160, 96), (130, 70))


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A smooth picture that is symmetrical in no direction, and whose colours no other number has."""
    across = np.linspace(0, 1, size[0])[None, :, None]
    left = np.array([30 + 24 * number, 200 - 20 * number, 60 + 90 * (number % 3)])
    right = np.array([200 - 20 * number, 30 + 24 * number, 40 + 20 * number])
    down = np.linspace(1, 0.6, size[1])[:, None, None]
    return (((1 - across) * left + across * right) * down).clip(0, 255).astype(np.uint8)


def encoded(size: tuple[int, int]) -> list[bytes]:
    """The groups of a sample, without the remarks of x264."""
    groups: list[bytes] = []
    settings = Settings(layout="video", fps=8, group=GROUP, crf=22, preset="veryslow")
    store = frame_store(settings, groups.append)
    for number in range(FRAMES):
        store.add_frame(av.VideoFrame.from_ndarray(picture(number, size), "rgb24"), size)
    store.finish()
    return [without_remarks(group) for group in groups]


def without_remarks(group: bytes) -> bytes:
    units = group.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]
    return b"".join(b"\0\0\1" + unit for unit in units if unit[0] & 31 != 6)


def test_the_stored_groups_are_of_these_pictures() -> None:
    decoder = GroupDecoder()
    for size, groups in zip(SIZES, self_test._GROUPS, strict=True):
        for part, group in enumerate(groups):
            for number, frame in enumerate(decoder.decode(base64.b64decode(group), range(GROUP)), part * GROUP):
                pixels = np.zeros((size[1], size[0], 3), np.uint8)
                decoder.rgb(frame, pixels)
                assert np.abs(pixels.astype(int) - picture(number, size)).mean() < 3
        assert len(groups) * GROUP == FRAMES


def test_dali_decodes_here() -> None:
    assert decode_self_test("cpu")


def test_the_self_test_sees_wrong_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def green(pixels: np.ndarray) -> np.ndarray:
        pixels[..., 1] = 255
        return pixels

    monkeypatch.setattr("pipelines.decoding.self_test.DaliDecoder", changed(green))
    with pytest.raises(RuntimeError, match="other pixels"):
        decode_self_test("cpu")


@pytest.fixture
def as_vp9(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.decoding.packing.window_in_ivf", vp9.window_in_ivf)


@pytest.mark.usefixtures("as_vp9")
def test_the_graph_passes_with_frames_that_a_cpu_decodes() -> None:
    assert decode_self_test("cpu", layout="video")


def test_a_cpu_fails_for_it_decodes_no_h264() -> None:
    with pytest.raises(RuntimeError, match=r"decoders\.video"):
        decode_self_test("cpu", layout="video")


def changed(change: Callable[[np.ndarray], np.ndarray]) -> type[DaliDecoder]:
    class Changed(DaliDecoder):
        def run(self, stream: Any = None) -> Any:
            encoded, outputs = super().run(stream)
            return encoded, tuple(_Array(change(np.asarray(one.as_tensor()).copy())) for one in outputs)

    return Changed


class _Array:
    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    def as_cpu(self) -> "_Array":
        return self

    def as_tensor(self) -> np.ndarray:
        return self._pixels


def swapped(pixels: np.ndarray) -> np.ndarray:
    pixels[1, [1, 2]] = pixels[1, [2, 1]]
    return pixels


def mirrored(pixels: np.ndarray) -> np.ndarray:
    pixels[1] = pixels[1, :, :, ::-1]
    return pixels


def with_other_colours(pixels: np.ndarray) -> np.ndarray:
    """Decoded as if they were BT.709."""
    levels = pixels.astype(float)
    luma = levels @ (0.299, 0.587, 0.114)
    red, blue = (levels[..., 0] - luma) / 1.402, (levels[..., 2] - luma) / 1.772
    other = [luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue]
    return np.stack(other, axis=-1).round().clip(0, 255).astype(np.uint8)


@pytest.mark.usefixtures("as_vp9")
@pytest.mark.parametrize(
    "change",
    [
        swapped,
        mirrored,
        with_other_colours,
        lambda pixels: pixels[:, :, ::-1],  # upside down
        lambda pixels: pixels[::-1],  # clips in another order
        lambda pixels: pixels[..., ::-1],  # BGR
        lambda pixels: np.roll(pixels, 2, axis=3),  # a box that lies elsewhere
        lambda pixels: np.roll(pixels, 1, axis=1),  # each frame is the one before
        lambda pixels: pixels[:, :7],
        np.zeros_like,
    ],
)
def test_it_sees_wrong_frames_boxes_and_colours(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    monkeypatch.setattr("pipelines.decoding.self_test.DaliDecoder", changed(change))
    with pytest.raises(RuntimeError, match=r"decoded (clips of )?H\.264 to"):
        decode_self_test("cpu", layout="video")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["jpeg", "video"])
def test_a_gpu_decodes(layout: str) -> None:
    assert decode_self_test("mixed", layout=layout)


if __name__ == "__main__":
    print("_GROUPS = (")
    for of_size in SIZES:
        print("    (")
        for data in encoded(of_size):
            lines = textwrap.wrap(base64.b64encode(data).decode(), 106)
            print("        " + "\n        ".join(f'"{line}"' for line in lines) + ",")
        print("    ),")
    print(")")
