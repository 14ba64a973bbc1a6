"""The other ways to clips: the same request ─► the same pixels, from frame folders, from tars and from videos.

Written anew for this comparison. Each takes one clip's request (`pipelines.sampling.requests.ClipRequest`) and gives
its views.
"""

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torchvision.transforms.functional as F
import torchvision.transforms.v2.functional as v2
import webdataset
from PIL import Image
from torchvision.io import decode_jpeg

from benchmarks.common import build
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.requests import ClipRequest

STORED_FPS, SEGMENT_FRAMES = 7.5, 20  # every fourth frame of 30 a second: a clip takes 16 of a sample's 20
WIDTH, HEIGHT, LEAST_SHORT_SIDE = 340, 256, 240
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Footage:
    """The same footage, stored three ways."""

    corpus: Corpus
    folders: Path  # folders/<key>/<member>.jpg, the shards' members
    videos: Path  # what the corpus was made of: its names are paths below


def store(videos: Path, work: Path) -> Footage:
    """Store videos as H.264 of 340 x 256, as shards of its frames, and as loose files of the shards' members."""
    small, shards, folders = work / "videos", work / "shards", work / "folders"
    if not small.exists():
        small.mkdir(parents=True)
        for video in sorted(path for path in videos.rglob("*") if path.is_file()):
            _scale(video, small / f"{video.stem}.mp4")
    fps, segment = str(STORED_FPS), str(SEGMENT_FRAMES)
    build(shards, "--videos", small, "--fps", fps, "--segment-frames", segment)
    corpus = open_corpus([shards])
    if not folders.exists():
        for number in range(len(corpus.datasets[0].shards)):
            with tarfile.open(corpus.shard_path(number)) as tar:
                for member in tar:
                    key, _, name = member.name.partition(".")
                    file = tar.extractfile(member)
                    if name.endswith(".jpg") and file is not None:
                        (folders / key).mkdir(parents=True, exist_ok=True)
                        (folders / key / name).write_bytes(file.read())
    return Footage(corpus, folders, small)


def _scale(source: Path, target: Path) -> None:
    """Transcode to H.264 as FFmpeg does by default (x264, crf 23, a keyframe at least every 250 frames)."""
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(av.open(str(source)))
        video = container.streams.video[0]
        width, height = video.codec_context.width, video.codec_context.height
        if min(width, height) < LEAST_SHORT_SIDE:
            return
        output = stack.enter_context(av.open(str(target), "w"))
        stream = output.add_stream("libx264", rate=Fraction(video.average_rate or 30), options={"crf": "23"})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuv420p"
        for frame in container.decode(video):
            frame.pict_type = 0
            for packet in stream.encode(frame.reformat(stream.width, stream.height, format="yuv420p")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)


def frame_folders(footage: Footage, clip: ClipRequest, *, size: int, normalise: bool) -> torch.Tensor:
    """Load as the seeds' frame-folder loader does: one file per frame, PIL; every view decodes its frames again.

    Args:
        footage: where the frames lie.
        clip: the request.
        size: of a view, in pixels.
        normalise: as those loaders do it, to float and by mean and standard deviation; else uint8.

    Returns:
        (R, T, C, size, size) float32, or (R, T, size, size, C) uint8.
    """
    folder = footage.folders / footage.corpus.key(clip.row)
    views = []
    for view in clip.views:
        crop, frames = view.crop, []
        for number in clip.frames.tolist():
            with Image.open(folder / f"{number:06d}.jpg") as image:
                cut = F.resized_crop(image.convert("RGB"), *crop[:4], size=[size, size])
            frame = F.hflip(cut) if crop.flip else cut
            if normalise:
                frames.append(F.normalize(F.to_tensor(frame), MEAN, STD))
            else:
                frames.append(torch.from_numpy(np.array(frame)))
        views.append(torch.stack(frames))
    return torch.stack(views)


def samples_of_tars(footage: Footage) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the same tars by webdataset, one pass: key, and member ─► bytes."""
    tars = [str(footage.corpus.shard_path(number)) for number in range(len(footage.corpus.datasets[0].shards))]
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        yield sample["__key__"], sample


def web_dataset(sample: dict[str, Any], clip: ClipRequest, *, size: int) -> torch.Tensor:
    """Decode and crop webdataset's bytes by torchvision ─► (R, T, size, size, C) uint8; views share one decode."""
    jpegs = [torch.frombuffer(bytearray(sample[f"{frame:06d}.jpg"]), dtype=torch.uint8) for frame in clip.frames]
    return _views(torch.stack([decode_jpeg(jpeg) for jpeg in jpegs]), clip, size=size)


def video_file(footage: Footage, clip: ClipRequest, *, size: int) -> torch.Tensor:
    """Seek by PyAV to the keyframe before the clip, decode to its last frame ─► as `web_dataset`."""
    dataset, row = footage.corpus.locate(clip.row)
    times = (dataset.start_s[row] + clip.frames / dataset.fps[row]).tolist()
    frames = {}
    with av.open(str(footage.videos / dataset.name(row))) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(int(min(times) / stream.time_base), stream=stream)
        half = 0.5 / float(stream.average_rate or 30)  # preprocessing stored the frame nearest in time
        wanted = sorted(set(times))
        for frame in container.decode(stream):
            while wanted and frame.time > wanted[0] - half - 1e-6:
                frames[wanted.pop(0)] = frame.to_ndarray(format="rgb24")
            last = frame
            if not wanted:
                break
        frames |= {time: last.to_ndarray(format="rgb24") for time in wanted}  # the video ends before that time
    decoded = torch.from_numpy(np.stack([frames[time] for time in times]))
    return _views(decoded.permute(0, 3, 1, 2), clip, size=size)


def _views(decoded: torch.Tensor, clip: ClipRequest, *, size: int) -> torch.Tensor:
    out = []
    for view in clip.views:
        cut = v2.resized_crop(decoded, *view.crop[:4], size=[size, size], antialias=True)
        out.append((v2.horizontal_flip(cut) if view.crop.flip else cut).permute(0, 2, 3, 1))
    return torch.stack(out)
