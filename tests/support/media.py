"""Tiny frame folders, videos and datasets for tests; every frame carries its own number.

make_frame_folder(root / "train" / "v1", 24)
make_video(root / "clip.mp4", 30, fps=10)
frame_number(Image.open(...))                      # which frame it was, whatever was done to it since
dataset = make_dataset(tmp_path, samples=6, frames=8)
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from preprocess.encode.images import decode_image
from preprocess.encode.video_frames import FrameEncoder

_CELLS = 8  # bits of a frame's number, as black and white cells along the upper edge


def numbered_image(number: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A textured RGB picture, width x height, with `number` (below 256) in its upper third."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([96 + 64 * np.sin((x + 3 * number) / 9), 96 + 64 * np.cos(y / 7), 128 + 0 * x], axis=-1)
    for bit in range(_CELLS):
        left, right = bit * width // _CELLS, (bit + 1) * width // _CELLS
        pixels[: height // 3, left:right] = 235 if number >> bit & 1 else 20
    return Image.fromarray(pixels.astype(np.uint8))


def frame_number(image: Image.Image) -> int:
    """The number that `numbered_image` was given, read from the pixels; survives scaling and lossy coding."""
    gray = np.asarray(image.convert("L"), float)
    height, width = gray.shape
    centres = [round((bit + 0.5) * width / _CELLS) for bit in range(_CELLS)]
    return sum(1 << bit for bit, x in enumerate(centres) if gray[height // 6, x] > 128)


def make_frame_folder(
    folder: Path,
    count: int,
    *,
    size: tuple[int, int] = (64, 48),
    first: int = 1,
    template: str = "img_{:05d}.jpg",
    start: int = 0,
) -> Path:
    """Writes `count` numbered frames, files counted from `first`, pictures from `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture = numbered_image(start + index, size)
        picture.save(folder / template.format(first + index), quality=90)
    return folder


def make_video(
    path: Path,
    count: int,
    *,
    size: tuple[int, int] = (64, 48),
    fps: int = 10,
    codec: str = "mpeg4",
    pixel_format: str = "yuv420p",
    times: Sequence[float] | None = None,
    gop: int = 8,
) -> Path:
    """Encodes `count` numbered frames at a steady rate, or at the given times in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.bit_rate = 2_000_000
        stream.gop_size = gop
        if times is not None:
            stream.codec_context.time_base = base
        for index in range(count):
            frame = av.VideoFrame.from_image(numbered_image(index, size))
            if times is not None:
                frame.pts, frame.time_base = round(times[index] / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate_mp4(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Sets the display matrix (a, b, c, d) of the only track of an mp4: x' = a x + c y, y' = b x + d y."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    entries = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in entries)
    path.write_bytes(data)


def make_dataset(
    folder: Path,
    *,
    samples: int = 6,
    frames: int | Sequence[int] = 8,
    size: tuple[int, int] = (64, 48),
    labels: Sequence[str] | None = None,
    shard_size: int = 4,
    source_fps: float | None = None,
) -> Path:
    """Builds a small dataset from frame folders and returns its folder.

    Frame f of sample s shows the number 16 s + f (modulo 256), so that any clip can be checked.

    Args:
        folder: where the frame folders (`frames/`) and the dataset (`shards/`) go.
        samples: how many.
        frames: of each sample, or of all.
        size: (width, height).
        labels: the ledger's label columns, one text a sample ("" = unlabelled, "1 4" = two); default 0, 1, 2, 0, ...
        shard_size: samples a shard.
        source_fps: the time base; None = unknown.
    """
    from preprocess.jobs.build import build
    from preprocess.jobs.options import Options
    from preprocess.plan.settings import Settings
    from preprocess.sources.frame_folders import frame_folders

    counts = [frames] * samples if isinstance(frames, int) else list(frames)
    words = [str(sample % 3) for sample in range(samples)] if labels is None else list(labels)
    rows = []
    for sample in range(samples):
        name = f"video_{sample}"
        make_numbered(
            folder / "frames" / "train" / name, [(16 * sample + f) % 256 for f in range(counts[sample])], size
        )
        rows.append(f"{name} 1 {counts[sample]} {words[sample]}".rstrip())
    ledger = folder / "frames" / "ledger.csv"
    ledger.write_text("\n".join(rows) + "\n")
    settings = Settings(shard_size=shard_size, source_fps=source_fps)
    source = frame_folders([folder / "frames"], ledger, settings=settings)
    build(source, settings=settings, options=Options(), out=folder / "shards")
    return folder / "shards"


def make_numbered(folder: Path, numbers: Sequence[int], size: tuple[int, int] = (64, 48)) -> Path:
    """Writes one frame for each number, files counted from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, number in enumerate(numbers, start=1):
        numbered_image(number, size).save(folder / f"img_{index:05d}.jpg", quality=90)
    return folder


def picture_of(frame: av.VideoFrame, size: tuple[int, int]) -> Image.Image:
    """A decoded frame as it would be stored."""
    return decode_image(FrameEncoder(quality=100).encode(frame, width=size[0], height=size[1]))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one size; infinite if they are equal."""
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
