"""The self-test of DALI's decoders: passes where DALI decodes, sees wrong pixels, frames, crops and colours.

python -m tests.pipelines.decoding.test_self_test      # prints the groups that are stored in pipelines' self_test.py
"""

import base64
import textwrap

import av
import numpy as np

from preprocess.encode.frame_store import frame_store
from preprocess.plan.settings import Settings

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


if __name__ == "__main__":
    print("_GROUPS = (")
    for of_size in SIZES:
        print("    (")
        for data in encoded(of_size):
            lines = textwrap.wrap(base64.b64encode(data).decode(), 106)
            print("        " + "\n        ".join(f'"{line}"' for line in lines) + ",")
        print("    ),")
    print(")")
