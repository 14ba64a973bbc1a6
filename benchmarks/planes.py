"""Views of layout video made from planes: swscale's way from the crop's box to RGB of the view's size, beside ours.

    python benchmarks/planes.py --videos FOLDER

Ours converts whole frames to RGB and resizes each crop by torch's antialiased filter. The other copies the box of the
crop out of the planes of 4:2:0, and has swscale make RGB of 224 x 224 of it: in one step, or scaled in planes and then
converted. Printed are the CPU time of whole clips, read ones, over ours, and how far the pixels are apart.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import alternate, build, ratio
from benchmarks.loader import SIZE, requests_of
from mae3d.video.groups import GroupDecoder
from pipelines.decoding.clip_decoder import ClipDecoder
from pipelines.decoding.crops import Cropper
from pipelines.reading.source import ClipSource, FetchedClip
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.augment import Crop
from preprocess.encode.video_frames import plane_rows

FILTERS = {name: Interpolation[name] for name in ("BILINEAR", "AREA", "BICUBIC")}


def main() -> None:
    """Compare one view and four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=21, help="in a block")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mae3d-bench-") as name:
        out = Path(name) / "video"
        build(out, "--videos", options.videos, "--layout", "video", "--fps", 7.5, "--workers", 1)
        for views in (1, 4):
            compare(open_corpus([out]), views=views, clips=options.clips, rounds=options.rounds)


def compare(corpus: Corpus, *, views: int, clips: int, rounds: int) -> None:
    """Print CPU time and pixels of every way beside ours."""
    source = ClipSource(corpus, iter(()), read_threads=1, prefetch=0)
    fetched = [
        source.fetch(clip) for request in requests_of(corpus, clips=clips, views=views) for clip in request.clips
    ]
    decoder, cropper = ClipDecoder(corpus), Cropper(size=SIZE, threads=1)

    def ours(one: FetchedClip) -> torch.Tensor:
        return cropper.cut([decoder.decode(one)], [one.clip.views], boxed=False)

    makes: dict[str, Callable[[FetchedClip], torch.Tensor]] = {"ours": ours}
    for name, interpolation in FILTERS.items():
        for steps in (1, 2):
            makes[f"{name.lower()}, {steps} step(s)"] = partial(Planes(corpus, interpolation, steps).views)
    seconds = alternate({name: partial(each, make, fetched) for name, make in makes.items()},
                        rounds=rounds, clock=time.process_time)  # fmt: skip
    print(f"{views} view(s): ours takes {1000 * float(np.median(seconds['ours'])) / len(fetched):.2f} ms a clip")
    for name, make in list(makes.items())[1:]:
        gaps = [(make(one).int() - ours(one).int()).abs() for one in fetched]
        mean, most = np.mean([gap.float().mean() for gap in gaps]), max(int(gap.max()) for gap in gaps)
        within = np.mean([(gap <= 1).float().mean() for gap in gaps])
        print(f"  {name:22} takes {ratio(seconds[name], seconds['ours'])} of it; pixels differ by {mean:.2f} in the "
              f"mean, {most} at most, {within:.0%} by at most 1")  # fmt: skip
        sys.stdout.flush()


def each(make: Callable[[FetchedClip], torch.Tensor], fetched: list[FetchedClip]) -> None:
    """Make clips and keep none."""
    for one in fetched:
        make(one)


class Planes:
    """The way through planes, with one filter."""

    def __init__(self, corpus: Corpus, interpolation: Interpolation, steps: int):
        self._corpus, self._interpolation, self._steps = corpus, interpolation, steps
        self._groups, self._scaler, self._converter = GroupDecoder(), VideoReformatter(), VideoReformatter()

    def views(self, one: FetchedClip) -> torch.Tensor:
        """Return the views of a clip, (R, T, size, size, 3) uint8."""
        frames = list(self._frames(one))
        out = np.empty((len(one.clip.views), len(frames), SIZE, SIZE, 3), np.uint8)
        for view, made in zip(one.clip.views, out, strict=True):
            for frame, target in zip(frames, made, strict=True):
                rgb = self._rgb(cut_planes(frame, view.crop))
                target[:] = rgb[:, ::-1] if view.crop.flip else rgb
        return torch.from_numpy(out)

    def _frames(self, one: FetchedClip) -> Iterator[av.VideoFrame]:
        layout, numbers = self._corpus.layout(one.clip.row), np.unique(one.clip.frames)
        decoded: dict[int, av.VideoFrame] = {}
        for (_, places, within), part in zip(layout.by_part(numbers), one.parts, strict=True):
            decoded.update(zip(numbers[places].tolist(), self._groups.decode(part.tobytes(), within), strict=True))
        yield from (decoded[number] for number in one.clip.frames.tolist())

    def _rgb(self, box: av.VideoFrame) -> np.ndarray:
        if self._steps == 2:
            box = self._converted(self._scaler, box, "yuv420p", ColorRange.MPEG)
        rgb: Any = self._converted(self._converter, box, "rgb24", ColorRange.JPEG).planes[0]
        return np.frombuffer(rgb, np.uint8).reshape(SIZE, -1)[:, : 3 * SIZE].reshape(SIZE, SIZE, 3)

    def _converted(self, by: VideoReformatter, box: av.VideoFrame, pixels: str, colours: ColorRange) -> av.VideoFrame:
        return by.reformat(
            box,
            SIZE,
            SIZE,
            pixels,
            src_colorspace=Colorspace.ITU601,
            dst_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.MPEG,
            dst_color_range=colours,
            interpolation=self._interpolation,
            threads=1,
        )


def cut_planes(frame: av.VideoFrame, crop: Crop) -> av.VideoFrame:
    """Return the box of a crop as a frame of 4:2:0, grown to even borders: chroma has no others."""
    top, left = crop.top // 2, crop.left // 2
    height, width = (crop.top + crop.height + 1) // 2 - top, (crop.left + crop.width + 1) // 2 - left
    box = av.VideoFrame(2 * width, 2 * height, "yuv420p")
    for plane, target, scale in zip(frame.planes, box.planes, (2, 1, 1), strict=True):
        lines: Any = target  # its stub does not say that it is a buffer
        rows = np.frombuffer(lines, np.uint8).reshape(target.height, target.line_size)
        part = plane_rows(plane)[top * scale : (top + height) * scale, left * scale : (left + width) * scale]
        rows[: part.shape[0], : part.shape[1]] = part
    return box


if __name__ == "__main__":
    main()
