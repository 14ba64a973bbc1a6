"""One crop, 16 frames of a box ─► 224 x 224 pixels, by everything at hand: CPU time and pixels beside the ones taken.

    python benchmarks/crops.py --videos FOLDER             # what is not installed is left out
    python benchmarks/crops.py --videos FOLDER --only OpenCV Pillow

FOLDER and the boxes are those of benchmarks/loader.py. All candidates are handed the same frames in memory, with one
thread, and take turns. They are compared with torch's antialiased resize of bytes, whose pixels runs have always had.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rivals
from benchmarks.common import alternate, ratio
from benchmarks.loader import SIZE, requests_of
from pipelines.decoding.clip_decoder import ClipDecoder
from pipelines.decoding.crops import cut_box, resize, resize_by_torch
from pipelines.reading.source import ClipSource
from pipelines.sampling.augment import Crop

Candidate = Callable[[torch.Tensor, torch.Tensor], None]  # a box (T, h, w, 3), and the view that it writes
REFERENCE, OURS = "torch, bytes", "compiled, ours"


def main() -> None:
    """Compare all candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--work", type=Path, help="folder for the stored footage, kept and used again")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=16, help="in a block")
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the names of candidates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mae3d-bench-")))
        clips = decoded(rivals.store(options.videos, work), count=options.clips)
    out = torch.zeros(len(clips), 16, SIZE, SIZE, 3, dtype=torch.uint8)
    made = {
        name: candidate
        for name, candidate in candidates().items()
        if name in (REFERENCE, OURS) or not options.only or name.startswith(tuple(options.only))
    }
    boxes = [cut_box(clip, crop) for clip, crop in clips]
    expected = made_of(made[REFERENCE], boxes, out).clone()
    gaps = {name: (made_of(candidate, boxes, out).int() - expected.int()).abs() for name, candidate in made.items()}
    blocks = {name: partial(made_of, candidate, boxes, out) for name, candidate in made.items()}
    seconds = alternate(blocks, rounds=options.rounds, clock=time.process_time)  # type: ignore[arg-type]
    for name, values in seconds.items():
        print(
            f"{name:34} {1000 * float(np.median(values)) / len(clips):7.2f} ms; torch takes "
            f"{ratio(seconds[REFERENCE], values)} of it, ours {ratio(seconds[OURS], values)}; pixels differ by "
            f"{float(gaps[name].float().mean()):.3f} in the mean, {int(gaps[name].max())} at most"
        )


def decoded(footage: rivals.Footage, *, count: int) -> list[tuple[torch.Tensor, Crop]]:
    """Return clips of whole frames, (16, H, W, 3), each with a crop as training draws it."""
    source, decoder = ClipSource(footage.corpus, iter(()), read_threads=1, prefetch=0), ClipDecoder(footage.corpus)
    requests = requests_of(footage.corpus, clips=count, views=1)
    return [(decoder.decode(source.fetch(clip)), clip.views[0].crop) for request in requests for clip in request.clips][
        :count
    ]


def made_of(candidate: Candidate, boxes: list[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """Resize all boxes into `out`, and return it."""
    for box, target in zip(boxes, out, strict=True):
        candidate(box, target)
    return out


def candidates() -> dict[str, Candidate]:
    """Return what is installed; none mirrors, which costs nothing in any of them."""
    made: dict[str, Candidate] = {
        REFERENCE: lambda box, out: resize_by_torch(box, False, out),
        OURS: lambda box, out: resize(box, False, out),
        "torch, planes of one channel": _planar,
        "torch, four channels": _four_channels,
        "torch, rows first, then turned": _turned,
        "torch, frames as channels": _frames_as_channels,
        "torch, floats": _floats,
        "Pillow, frame by frame": _pillow,
        "swscale, bilinear": partial(_swscale, "BILINEAR"),
        "swscale, area": partial(_swscale, "AREA"),
        "swscale, 4:2:0 planes, then RGB": _planes,
    }
    with contextlib.suppress(ImportError):
        made |= _opencv()
    return made


# --- torch ---


def _aa(channels_first: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(channels_first, size, mode="bilinear", antialias=True)


def _planar(box: torch.Tensor, out: torch.Tensor) -> None:
    planes = box.permute(0, 3, 1, 2).contiguous()
    out.copy_(_aa(planes, (SIZE, SIZE)).permute(0, 2, 3, 1))


def _four_channels(box: torch.Tensor, out: torch.Tensor) -> None:
    four = F.pad(box, (0, 1)).permute(0, 3, 1, 2)  # frames of RGBX would come from the decoder
    out.copy_(_aa(four, (SIZE, SIZE)).permute(0, 2, 3, 1)[..., :3])


def _turned(box: torch.Tensor, out: torch.Tensor) -> None:
    """Resize the height alone, transpose, resize the height alone again: torch's vertical pass is its quick one."""
    rows = _aa(box.permute(0, 3, 1, 2), (SIZE, box.shape[2])).transpose(2, 3)
    columns = _aa(rows.contiguous(memory_format=torch.channels_last), (SIZE, SIZE))
    out.copy_(columns.permute(0, 3, 2, 1))


def _frames_as_channels(box: torch.Tensor, out: torch.Tensor) -> None:
    frames, height, width, channels = box.shape
    together = box.permute(1, 2, 0, 3).reshape(1, height, width, -1).permute(0, 3, 1, 2)
    out.copy_(_aa(together, (SIZE, SIZE)).permute(2, 3, 0, 1).reshape(SIZE, SIZE, frames, channels).permute(2, 0, 1, 3))


def _floats(box: torch.Tensor, out: torch.Tensor) -> None:
    pixels = _aa(box.permute(0, 3, 1, 2).float(), (SIZE, SIZE))
    out.copy_(pixels.round_().clamp_(0, 255).permute(0, 2, 3, 1))


# --- frame by frame ---


def _pillow(box: torch.Tensor, out: torch.Tensor) -> None:
    for frame, target in zip(box.numpy(), out.numpy(), strict=True):
        target[:] = Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _opencv() -> dict[str, Candidate]:
    import cv2

    cv2.setNumThreads(1)

    def each(how: int, box: torch.Tensor, out: torch.Tensor, *, blurs: bool = False) -> None:
        height, width = box.shape[1:3]
        for frame, target in zip(box.numpy(), out.numpy(), strict=True):
            if blurs:
                across, down = (max(0.5 * (side / SIZE - 1), 1e-3) for side in (width, height))
                frame = cv2.GaussianBlur(frame, (3, 3), across, sigmaY=down)
            cv2.resize(frame, (SIZE, SIZE), dst=target, interpolation=how)

    def mixed(box: torch.Tensor, out: torch.Tensor) -> None:
        each(cv2.INTER_AREA if min(box.shape[1:3]) > SIZE else cv2.INTER_LINEAR, box, out)

    return {
        "OpenCV, linear (not antialiased)": partial(each, cv2.INTER_LINEAR),
        "OpenCV, blurred, then linear": partial(each, cv2.INTER_LINEAR, blurs=True),
        "OpenCV, area where larger": mixed,
    }


def _swscale(how: str, box: torch.Tensor, out: torch.Tensor) -> None:
    for frame, target in zip(box.numpy(), out.numpy(), strict=True):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
        target[:] = picture.reformat(SIZE, SIZE, "rgb24", interpolation=how).to_ndarray()


def _planes(box: torch.Tensor, out: torch.Tensor) -> None:
    """Go through 4:2:0: what the conversion to it takes is counted, which a decoder that gives planes would save."""
    for frame, target in zip(box.numpy(), out.numpy(), strict=True):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24").reformat(format="yuv420p")
        small = picture.reformat(SIZE, SIZE, "yuv420p", interpolation="AREA")
        target[:] = small.reformat(format="rgb24").to_ndarray()


if __name__ == "__main__":
    main()
