"""Options ─► the videos whose masks are carried: frames in order, the masks that are given for them, what is left out.

    sequences, notes = find_sequences(Path("DAVIS"), Path("DAVIS"), listed="DAVIS/ImageSets/2017/val.txt")
    for picture in sequences[0].pictures():            # uint8 (H, W, 3), one after the other
        ...

A video is a folder of pictures, in the natural order of their names, or a video file.
"""

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PICTURES, MASKS = "JPEGImages", "Annotations"  # DAVIS's folders; below them one per resolution, then one per video
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_PREFERRED = "480p"
_DIGITS = 5  # of the names of a video file's frames


@dataclass(frozen=True)
class Sequence:
    """A video with masks for some or all of its frames.

    Attributes:
        name: Its folder's or file's.
        source: The folder, or the video file.
        frames: Names of the frames, in order.
        masks: Frame number -> file; at least one.
        notes: What is left out, in words.
    """

    name: str
    source: Path
    frames: tuple[str, ...]
    masks: dict[int, Path]
    notes: list[str] = field(default_factory=list)

    @property
    def start(self) -> int:
        """Number of the frame whose mask is carried: the first one that has a mask."""
        return min(self.masks)

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield the pictures from `start` on, uint8 (H, W, 3) of one size, upright.

        Raises:
            ValueError: A picture cannot be read, or has another size than the first.
        """
        read = _video_pictures(self) if self.source.is_file() else _folder_pictures(self)
        size: tuple[int, ...] = ()
        for number, picture in enumerate(read, start=self.start):
            size = size or picture.shape
            if picture.shape != size:
                raise ValueError(
                    f"{self.source}, frame {self.frames[number]}: {_size(picture.shape)} pixels, and the first has "
                    f"{_size(size)}: give frames of one size"
                )
            yield picture

    def digest(self) -> str:
        """Return a hash of the frames' and masks' names and sizes and of the first mask."""
        files = [self.source] if self.source.is_file() else [self.source / name for name in self.frames]
        listed = [(path.name, path.stat().st_size) for path in (*files, *self.masks.values())]
        content = repr((self.name, listed, sorted(self.masks))).encode() + self.masks[self.start].read_bytes()
        return hashlib.sha256(content).hexdigest()


def find_sequences(frames: Path, masks: Path, listed: str = "") -> tuple[list[Sequence], list[str]]:
    """Return the videos, sorted by name, and what is left out, in words.

    Args:
        frames: A folder of pictures, a video file, a folder of such folders, or one with DAVIS's JPEGImages.
        masks: A picture of the first frame; a folder of pictures named as the frames, or by frame numbers from 0 for a
            video file; or a folder of such folders, or one with DAVIS's Annotations.
        listed: A text file with one name per line; "" for all videos that have a mask.

    Raises:
        ValueError: There are no frames or masks, or they do not fit; the message names the file.
        OSError: A folder cannot be read.
    """
    for path, option in ((frames, "frames"), (masks, "masks")):
        if not path.exists():
            raise ValueError(f"--{option} {path}: no such file or folder")
    frames, masks = _davis(frames, PICTURES), _davis(masks, MASKS)
    if frames.is_file() or _picture_names(frames):
        if listed:
            raise ValueError(f"--listed {listed}: names videos of a folder of folders, and {frames} is one video")
        return [_sequence(frames, masks)], []
    folders = [path for path in sorted(frames.iterdir(), key=lambda path: _natural(path.name)) if path.is_dir()]
    names = [path.name for path in folders]
    if listed:
        requested = [line.strip() for line in Path(listed).read_text(encoding="utf-8").splitlines() if line.strip()]
        if missing := [name for name in requested if not (frames / name).is_dir() or not (masks / name).is_dir()]:
            raise ValueError(f"{listed}: {len(missing)} names have no frames or no masks, {missing[0]} first")
        names = [name for name in names if name in set(requested)]
    without = [name for name in names if not (masks / name).is_dir()]
    notes = [f"{len(without)} of {len(names)} videos have no masks in {masks}: left out"] if without else []
    if not set(names) - set(without):
        raise ValueError(f"--frames {frames}: neither pictures nor folders of pictures that have masks in {masks}")
    return [_sequence(frames / name, masks / name) for name in names if name not in without], notes


def _sequence(source: Path, masks: Path) -> Sequence:
    notes: list[str] = []
    names = _video_names(source) if source.is_file() else tuple(_picture_names(source))
    if not names:
        raise ValueError(f"--frames {source}: no pictures in it")
    if masks.is_file():
        return Sequence(source.stem, source, names, {0: masks}, notes)
    files = _picture_names(masks)
    numbers = {Path(name).stem: number for number, name in enumerate(names)}
    stems = {name: Path(name).stem for name in files}
    if source.is_file():
        stems = {name: stem.lstrip("0").zfill(_DIGITS) for name, stem in stems.items()}
    matched = {numbers[stem]: masks / name for name, stem in stems.items() if stem in numbers}
    if not matched:
        raise ValueError(f"--masks {masks}: {len(files)} pictures, none of which is named as a frame of {source}")
    if len(matched) < len(files):
        notes.append(f"{len(files) - len(matched)} masks are named as no frame, or twice: left out")
    if start := min(matched):
        notes.append(f"{start} frames before the first mask: left out")
    return Sequence(source.stem if source.is_file() else source.name, source, names, matched, notes)


def _davis(path: Path, part: str) -> Path:
    """Return the folder of one resolution below DAVIS's root, 480p if there are several; other paths as they are."""
    if not (path / part).is_dir():
        return path
    resolutions = sorted(entry for entry in (path / part).iterdir() if entry.is_dir())
    if any(_picture_names(entry) for entry in resolutions):
        return path / part  # videos directly below
    preferred = [entry for entry in resolutions if entry.name == _PREFERRED] or resolutions
    if len(preferred) != 1:
        raise ValueError(f"{path / part}: {len(preferred)} resolutions, and none is {_PREFERRED}: give one's folder")
    return preferred[0]


def _picture_names(folder: Path) -> list[str]:
    names = [entry.name for entry in folder.iterdir() if entry.suffix.lower() in _SUFFIXES and entry.is_file()]
    return sorted((name for name in names if not name.startswith(".")), key=_natural)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key by which 2 comes before 10."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", name)], name


def _folder_pictures(sequence: Sequence) -> Iterator[np.ndarray]:
    for name in sequence.frames[sequence.start :]:
        try:
            with Image.open(sequence.source / name) as picture:
                yield np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{sequence.source / name}: no picture that can be read ({error})") from error


def _video_names(path: Path) -> tuple[str, ...]:
    from mae3d.video.clip import open_clips

    with open_clips(path) as video:
        return tuple(str(number).zfill(_DIGITS) for number in range(len(video.frame_times()[0])))


def _video_pictures(sequence: Sequence) -> Iterator[np.ndarray]:
    """Yield the video's frames; the one before stands in for a damaged one, so that the others keep their numbers."""
    from mae3d.video.clip import open_clips
    from mae3d.video.pictures import Pictures

    converter, shown, replaced = Pictures(), None, 0
    with open_clips(sequence.source) as video:
        due = deque(video.frame_times().seconds[sequence.start :])
        for seconds, frame in video.frames(due[0]):
            if not due or seconds < due[0]:
                continue
            width, height = video.upright_size(frame)
            picture = converter.rgb(frame, width=width, height=height, way=video.orientation(frame)).copy()
            while len(due) > 1 and due[0] < seconds:
                due.popleft()
                replaced += 1
                yield picture if shown is None else shown
            due.popleft()
            shown = picture
            yield picture
        if shown is None:
            raise ValueError(f"{sequence.source}: no frame from number {sequence.start} on can be decoded")
        for _ in due:
            replaced += 1
            yield shown
    if replaced:
        sequence.notes.append(f"{replaced} damaged frames: the one before stands in for each")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
