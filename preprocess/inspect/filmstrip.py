"""A stored sample becomes a picture: frames side by side, evenly spread in time.

filmstrip(dataset, 7, frames=8, width=136).save("sample.png")
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mae3d.io.contact_sheet import as_rgb, png_mark, side_by_side
from mae3d.io.files import refuse_foreign, replace_file
from mae3d.io.png import PngError, decode_png
from mae3d.video.groups import GroupDecoder, GroupError
from mae3d.video.in_place import InPlaceDecoder
from mae3d.video.packets import PacketError, PacketTable
from preprocess.dataset.index import Dataset, DatasetError, Spans

_BACKGROUND = (225, 228, 233)
_DAMAGED = (190, 60, 60)
_AT_A_TIME = 64  # frames of a video that are decoded together


def filmstrip(dataset: Dataset, i: int, *, frames: int, width: int) -> Image.Image:
    """Return frames of sample i, first and last among them, in one row.

    Args:
        dataset: A dataset in a folder, with its shards.
        i: The sample's number.
        frames: Number of frames; fewer if the sample has fewer.
        width: Width of a frame in the picture, in pixels; a frame is never made larger.

    Returns:
        An RGB picture; a frame that does not decode is a red field.

    Raises:
        OSError: The tar cannot be read.
    """
    count = int(dataset.num_frames[i])
    chosen = np.unique(np.linspace(0, count - 1, min(frames, count)).round().astype(np.int64))
    stored = int(dataset.width[i]), int(dataset.height[i])
    scale = min(1.0, width / max(stored))
    size = max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale))
    pictures = stored_frames(dataset, i, chosen, size)
    return side_by_side([picture or Image.new("RGB", size, _DAMAGED) for picture in pictures], _BACKGROUND)


def stored_frames(dataset: Dataset, i: int, chosen: np.ndarray, size: tuple[int, int]) -> list[Image.Image | None]:
    """Return frames of sample i as RGB pictures; None for one that does not decode.

    Lossless frames are shown as `mae3d.io.contact_sheet.as_rgb` has it, those of 16 bits stretched all alike.

    Args:
        dataset: A dataset in a folder, with its shards.
        i: The sample's number.
        chosen: (n,) numbers of frames, rising.
        size: Width and height of the pictures.

    Raises:
        OSError: The tar cannot be read.
    """
    spans = dataset.spans(i, chosen)
    if dataset.layout.is_in_place:
        return _frames_in_place(dataset, i, chosen, spans, size)
    stored = int(dataset.width[i]), int(dataset.height[i])
    decoder = GroupDecoder()
    pictures: list[Image.Image | None] = []
    levels: list[np.ndarray | None] = []
    with dataset.shard_path(int(dataset.shard[i])).open("rb") as tar:
        parts = dataset.layout.by_part(chosen)
        for (_, _, numbers), offset, num_bytes in zip(parts, spans.offset.tolist(), spans.size.tolist(), strict=True):
            tar.seek(offset)
            data = tar.read(num_bytes)
            if dataset.layout.is_one_member:
                pictures += _frames_of_group(decoder, data, numbers, stored, size)
            elif dataset.layout.name == "png":
                levels.append(_levels(data, dataset.layout.channels))
            else:
                pictures.append(_frame(data, size))
    return pictures or _shown(levels, size)


def write_filmstrip(dataset: Dataset, i: int, path: Path) -> None:
    """Write eight frames of sample i as a PNG.

    Raises:
        DatasetError: The sample's shard is missing or not complete.
        ValueError: The file's name does not end in .png.
        OSError: The file cannot be written.
    """
    shard = int(dataset.shard[i])
    if shard in dataset.bad_shards:
        raise DatasetError(f"{dataset.shard_path(shard)}: {dataset.bad_shards[shard]}; no frames can be shown")
    if path.suffix.lower() != ".png":
        raise ValueError(f"--to {path}: give a name that ends in .png")
    refuse_foreign(path)
    with replace_file(path) as aside:
        filmstrip(dataset, i, frames=8, width=320).save(aside, "PNG", pnginfo=png_mark())


def _frames_in_place(
    dataset: Dataset, i: int, chosen: np.ndarray, spans: Spans, size: tuple[int, int]
) -> list[Image.Image | None]:
    """Return frames of a sample that stays in its video, decoded together, or each for itself if one is damaged."""
    files, number, decoder = dataset.media_files, int(dataset.media[i]), InPlaceDecoder()
    assert files is not None
    with dataset.shard_path(int(dataset.shard[i])).open("rb") as tar:
        tar.seek(int(spans.offset[0]))
        table = PacketTable.from_bytes(tar.read(int(spans.size[0])))

    def decoded(frames: list[int]) -> list[Image.Image | None]:
        with files.open(number) as read:
            data = table.read(frames, read)
        of_file = decoder.frames(table, frames, data, files.location(number))
        pixels = (decoder.rgb(frame, table, width=size[0], height=size[1]) for frame in of_file)
        return [Image.fromarray(np.ascontiguousarray(one)) for one in pixels]

    pictures: list[Image.Image | None] = []
    for begin in range(0, len(chosen), _AT_A_TIME):
        frames = chosen[begin : begin + _AT_A_TIME].tolist()
        try:
            pictures += decoded(frames)
        except (PacketError, OSError):
            for frame in frames:
                try:
                    pictures += decoded([frame])
                except (PacketError, OSError):
                    pictures.append(None)
    return pictures


def _frames_of_group(
    decoder: GroupDecoder, data: bytes, numbers: list[int], stored: tuple[int, int], size: tuple[int, int]
) -> Sequence[Image.Image | None]:
    try:
        frames = decoder.decode(data, numbers)
    except GroupError:
        return [None] * len(numbers)
    pictures = []
    for frame in frames:
        pixels = np.empty((stored[1], stored[0], 3), np.uint8)
        decoder.rgb(frame, pixels)
        pictures.append(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return pictures


def _levels(data: bytes, channels: int) -> np.ndarray | None:
    """Return the pixels of a PNG, (H, W, C); None if it does not decode."""
    try:
        return decode_png(data, channels=channels)
    except PngError:
        return None


def _shown(levels: Sequence[np.ndarray | None], size: tuple[int, int]) -> list[Image.Image | None]:
    """Return the frames of a sample as RGB pictures, all stretched alike."""
    whole = [one for one in levels if one is not None]
    shown = iter(as_rgb(np.stack(whole)) if whole else ())
    pictures = [None if one is None else Image.fromarray(next(shown)) for one in levels]
    return [one and one.resize(size, Image.Resampling.BICUBIC) for one in pictures]


def _frame(data: bytes, size: tuple[int, int]) -> Image.Image | None:
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        image.draft("RGB", size)  # decodes at a fraction of the size if that is enough
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
