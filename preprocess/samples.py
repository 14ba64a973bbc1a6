"""One planned sample ─► its JPEG frames: a row of the plan in, encoded frames to a sink and `Facts` out.

    facts = encode_sample(row, root=Path("videos"), settings=Settings(), sink=writer.add)

Frames of one sample have one size: the first frame's, its short side scaled down to `short_side`, never up. A
JPEG that trainers can decode as it is passes through byte for byte (`passes_through`); everything else is
decoded, turned upright, converted to RGB, resized and encoded as baseline JPEG, 4:2:0. Every stored frame was
decoded once, strictly: a frame that is damaged costs its sample (frame folders), or itself (videos, see
`preprocess.videos`). Nothing larger than a frame is held in memory.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image, ImageOps, UnidentifiedImageError

from preprocess.folders import frame_name
from preprocess.plan import PlannedSample, Settings
from preprocess.videos import MediaError, Video, effective_fps, open_video

_STRICT = {"err_detect": "crccheck+bitstream+buffer+careful+explode"}
# No others: Pillow would hand an EPS file, whatever its name, to an interpreter of PostScript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_LONGEST_TAIL = 64  # some writers pad
_RATE_SLACK = 1.001  # 30 is not faster than 29.97


@dataclass(frozen=True)
class Facts:
    """What became of a sample; `remark` is (reason, message) if it is kept, but not as it was."""

    num_frames: int
    first: int  # number of the first frame in the source
    stop: int  # one more than the number of the last
    fps: float  # of the stored frames; NaN = unknown
    start_s: float  # NaN = unknown
    width: int
    height: int
    remark: tuple[str, str] | None = None


@dataclass(frozen=True)
class JpegHeader:
    """What decides whether a JPEG can stay as it is."""

    baseline: bool
    bits: int
    components: int
    width: int
    height: int
    orientation: int
    tail: int  # bytes after the end of the image; -1 = the end is missing


def encode_sample(row: PlannedSample, *, root: Path, settings: Settings, sink: Callable[[bytes], None]) -> Facts:
    """Reads one sample and hands its frames to `sink`, in time order.

    Args:
        row: what to read.
        root: the folder that row.path is relative to.
        settings: sizes, rates and quality.
        sink: takes the bytes of one JPEG.

    Raises:
        MediaError: the sample cannot be had; what the sink was given is to be forgotten.
    """
    if row.kind in ("frames", "image"):
        return _encode_files(row, root=root, settings=settings, sink=sink)
    try:
        with open_video(root / row.path) as video:
            return _encode_video(video, row, settings=settings, sink=sink)
    except av.error.FFmpegError as error:
        raise MediaError("undecodable", str(error.strerror)) from error


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The size with the same aspect and a short side of at most `short_side`; never larger than it was."""
    short = min(width, height)
    if short <= short_side:
        return width, height
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


def kept_frames(num_frames: int, *, source_fps: float | None, fps: float | None) -> list[int]:
    """Which of `num_frames` frames at `source_fps` remain at `fps`: all, unless the source is faster."""
    if not source_fps or not fps or source_fps <= fps * _RATE_SLACK:
        return list(range(num_frames))
    step = source_fps / fps
    return [round(k * step) for k in range(math.ceil(num_frames / step)) if round(k * step) < num_frames]


def passes_through(header: JpegHeader | None, size: tuple[int, int]) -> bool:
    """Whether a JPEG may be stored untouched: 8-bit baseline RGB, upright, of the size that the sample has.

    What phones append to a picture (a film, often) is not stored: then it is encoded anew.
    """
    return (
        header is not None
        and header.baseline
        and header.tail <= _LONGEST_TAIL
        and (header.bits, header.components, header.orientation) == (8, 3, 1)
        and (header.width, header.height) == size
    )


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Reads the segments before the scan (ITU-T T.81, annex B); None if `data` is no JPEG."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    orientation = 1
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(body)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(body) < 6:
                return None
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            end = data.rfind(b"\xff\xd9", at)  # an earlier one would be a thumbnail's
            tail = len(data) - end - 2 if end >= 0 else -1
            return JpegHeader(marker == 0xC0, body[0], body[5], width, height, orientation, tail)
        at += 2 + length
    return None


def decode_strictly(data: bytes) -> None:
    """Decodes a baseline JPEG, taking any irregularity of its stream for an error.

    FFmpeg's decoder with `explode` notices most flipped bits, which libjpeg only warns about.

    Raises:
        ValueError: the stream is damaged.
    """
    codec = av.CodecContext.create("mjpeg", "r")
    codec.thread_count = 1
    codec.options = _STRICT
    try:
        frames = codec.decode(av.Packet(data)) + codec.decode(None)
    except av.error.FFmpegError as error:
        raise ValueError(f"damaged JPEG: {error.strerror}") from error
    if len(frames) != 1 or frames[0].is_corrupt:
        raise ValueError("damaged JPEG: no whole picture in it")


def decode_image(data: bytes) -> Image.Image:
    """Decodes an image file to upright 8-bit RGB; alpha is dropped, 16-bit gray scaled, of several pictures the first.

    Raises:
        ValueError: not an image, damaged, or too large; the message says which.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError("not an image" if data else "empty file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"damaged image: {error}") from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB Pillow warns of transparency in a palette
    return image.convert("RGB")


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Baseline JPEG, 4:2:0, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _encode_files(row: PlannedSample, *, root: Path, settings: Settings, sink: Callable[[bytes], None]) -> Facts:
    keep = kept_frames(row.stop - row.first, source_fps=settings.source_fps, fps=settings.fps)
    size: tuple[int, int] | None = None
    num_other = 0
    for number in keep:
        file = root / row.path
        if row.kind == "frames":
            file /= frame_name(row.prefix, row.digits, row.suffix, row.first + number)
        try:
            data = _read(file, row.first + number)
            header = jpeg_header(data)
            if size is None:
                size = scaled_size(*_natural_size(data, header), settings.short_side)
            stored, natural = _stored_frame(data, header, size, settings.quality)
            num_other += scaled_size(*natural, settings.short_side) != size
            sink(stored)
        except ValueError as error:
            raise MediaError("bad_frame", f"{file.name}: {error}", frame=row.first + number) from error
    assert size is not None, "a planned sample has frames"
    source_fps = settings.source_fps or math.nan
    faster = len(keep) < row.stop - row.first
    fps = settings.fps if faster and settings.fps else source_fps
    remark = None
    if num_other:
        told = f"{num_other} of {len(keep)} frames are not of the first one's size; scaled to {size[0]}x{size[1]}"
        remark = ("mixed_sizes", told)
    return Facts(len(keep), row.first, row.first + keep[-1] + 1, fps, row.start_s, *size, remark)


def _read(file: Path, number: int) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise MediaError("missing_frame", f"{file.name} is missing", frame=number) from error
    except OSError as error:
        raise MediaError("unreadable", f"{file.name}: {error.strerror}", frame=number) from error


def _natural_size(data: bytes, header: JpegHeader | None) -> tuple[int, int]:
    if header is not None and header.orientation == 1:
        return header.width, header.height
    return decode_image(data).size


def _stored_frame(
    data: bytes, header: JpegHeader | None, size: tuple[int, int], quality: int
) -> tuple[bytes, tuple[int, int]]:
    """(the JPEG to store, the size that the frame had)."""
    if header is not None and header.tail < 0:
        raise ValueError("damaged JPEG: its end is missing")
    if header is not None and header.baseline:
        decode_strictly(data)
    if passes_through(header, size):
        return data, size
    image = decode_image(data)
    natural = image.size
    if natural != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return encode_jpeg(image, quality), natural


def _encode_video(video: Video, row: PlannedSample, *, settings: Settings, sink: Callable[[bytes], None]) -> Facts:
    declared = video.facts.fps
    resample = settings.fps is not None and not declared <= settings.fps * _RATE_SLACK
    start_s, stop_s = row.start_s, row.stop_s
    if resample:
        assert settings.fps is not None
        chosen = _on_grid(video, start_s, stop_s, settings.fps)
    else:
        chosen = (pair for pair in video.frames(start_s, stop_s) if pair[0] >= start_s or start_s <= 0)
    num_frames = 0
    first_s = last_s = math.nan
    size = (0, 0)
    for seconds, frame in chosen:
        if num_frames == 0:
            first_s = seconds
            size = scaled_size(*video.upright_size(frame), settings.short_side)
        last_s = seconds
        sink(encode_jpeg(video.picture(frame, width=size[0], height=size[1]), settings.quality))
        num_frames += 1
    damage = video.damage
    if num_frames == 0:
        if damage:
            raise MediaError("undecodable", str(damage))
        raise MediaError("no_frames", f"no frame between {start_s:g} s and {stop_s:g} s")
    if resample and settings.fps is not None:
        fps = settings.fps
    else:
        # Gaps would pass for a lower rate.
        fps = declared if damage and declared > 0 else effective_fps((first_s, last_s), num_frames, declared)
    rate = declared if declared > 0 else fps
    first, last = (0, num_frames - 1) if math.isnan(rate) else (round(first_s * rate), round(last_s * rate))
    remark = ("damaged", str(damage)) if damage else None
    return Facts(num_frames, max(first, 0), max(last, 0) + 1, fps, max(first_s, 0.0), *size, remark)


def _on_grid(video: Video, start_s: float, stop_s: float, fps: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """For each k with start_s <= k/fps < stop_s the frame nearest in time, up to the end of the video."""
    k = max(0, math.ceil(start_s * fps - 1e-6))
    previous: tuple[float, av.VideoFrame] | None = None
    for pair in video.frames(start_s, stop_s + 1 / fps):
        while previous is not None and k / fps < stop_s and k / fps <= (previous[0] + pair[0]) / 2:
            yield max(k / fps, 0.0), previous[1]
            k += 1
        previous = pair
    # The last frame is shown for as long as the others.
    shown_s = 1 / video.facts.fps if video.facts.fps > 0 else 1 / fps
    while previous is not None and k / fps < min(stop_s, previous[0] + shown_s - 1e-6):
        yield k / fps, previous[1]
        k += 1


def _exif_orientation(body: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(body)
        value = exif.get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return 1  # as every viewer does with EXIF that it cannot read
    return value if value in range(1, 9) else 1
