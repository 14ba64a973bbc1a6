"""A frozen encoder carries the masks of videos: their files, and the figures of one video beside those of a copy.

    carry(sequence, encoder, settings, out, batch=8)     # OUT/masks/NAME/*.png, OUT/NAME.gif, .webp and .png
    OUT/sequences/NAME.json                              # written last: this video is finished

The figures of a video: a row per object with J, F and their mean over the counted frames, their recall and decay, and
J and F of the first mask repeated.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from launch.inference.footage import Sequence
from mae3d.analysis.masks import contour_accuracy, over_video, region_similarity
from mae3d.analysis.propagation import Propagator, frame_features, frame_mask, patch_labels
from mae3d.io.contact_sheet import filmstrip, png_mark, save_animation
from mae3d.io.files import write_text
from mae3d.io.label_maps import MaskReader, tinted, write_ids
from mae3d.io.progress import followed
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder

MASKS, DONE = "masks", "sequences"  # folders of the output
SHOWN = 48  # frames of an animation at most, spread evenly over the video
_WIDEST = 240  # of a frame in it, pixels
FIGURES = ("j", "f", "jf")
_METHODS = ("", "copy_")  # before a figure's name: carried by the features, the first mask repeated

Ids = NDArray[np.uint8]


@dataclass
class _Video:
    """The frames of a video on their way, and what is kept of them: a few, small."""

    sequence: Sequence
    encoder: Encoder | FrameEncoder
    size: tuple[int, int] = (0, 0)  # (H, W)
    small: dict[int, np.ndarray] = field(default_factory=dict)  # frame number -> picture

    def scaled(self) -> Iterator[np.ndarray]:
        """Yield the frames from the first mask on, scaled to the encoder's size, which distorts them; grey if it is."""
        sequence, config = self.sequence, self.encoder.config
        count = len(sequence.frames) - sequence.start
        shown = set(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int).tolist())
        for number, picture in enumerate(sequence.pictures()):
            self.size = picture.shape[:2]
            image = Image.fromarray(picture)
            if number in shown:
                self.small[number + sequence.start] = np.asarray(image.resize(self.small_size, Image.Resampling.BOX))
            seen = image.resize((config.width, config.height), Image.Resampling.BILINEAR)
            seen = seen.convert("L") if config.in_chans == 1 else seen
            yield np.asarray(seen).reshape(config.height, config.width, config.in_chans)

    @property
    def small_size(self) -> tuple[int, int]:
        """Return (width, height) of the frames that are kept."""
        height, width = self.size
        return min(width, _WIDEST), max(1, round(height * min(width, _WIDEST) / width))

    def truth(self, number: int, reader: MaskReader) -> Ids | None:
        """Return a frame's true mask, None if there is none; ValueError if it is not of the video's size."""
        path = self.sequence.masks.get(number)
        if path is None:
            return None
        ids = reader.read(path)
        if ids.shape != self.size:
            raise ValueError(
                f"{path}: {ids.shape[1]} x {ids.shape[0]} pixels, and the frame has {self.size[1]} x {self.size[0]}: "
                "give masks of the frames' size"
            )
        return ids

    def overlay(self, number: int, ids: Ids) -> np.ndarray:
        """Return a kept frame with a mask of the video's size over it."""
        return tinted(
            self.small[number], np.asarray(Image.fromarray(ids).resize(self.small_size, Image.Resampling.NEAREST))
        )


def carry(
    sequence: Sequence,
    encoder: Encoder | FrameEncoder,
    settings: Mapping[str, Any],
    out: Path,
    *,
    inputs: str,
    batch: int,
    show: bool = False,
) -> None:
    """Carry the first mask of a video through its frames and write all files of the video.

    Args:
        sequence: The video.
        encoder: On its device, of the size at which frames are looked at.
        settings: `layer`, `mode`, `k`, `context`, `radius`, `temperature` and `count_last`, and others, which are
            stored.
        out: The output's folder.
        inputs: `sequence.digest()`, which is stored.
        batch: Clips at a time.
        show: Whether to show the progress on stderr.

    Raises:
        ValueError: A frame or mask cannot be read, has another size, or the first mask has no object.
        OSError: A file cannot be written.
    """
    reader, video = MaskReader(), _Video(sequence, encoder)
    first = reader.read(sequence.masks[sequence.start])
    objects = [number for number in np.unique(first).tolist() if number]
    if not objects:
        raise ValueError(f"{sequence.masks[sequence.start]}: the mask to carry has no object, only background")
    folder = out / MASKS / sequence.name
    folder.mkdir(parents=True, exist_ok=True)
    tally = _Tally(objects, first, stop=len(sequence.frames) - (not settings["count_last"]))
    rows: dict[str, list[np.ndarray]] = {"carried": [], "first mask repeated": [], "annotated": []}
    masks = _masks(video, first, objects, settings, batch=batch)
    numbers = range(sequence.start, len(sequence.frames))
    for number, ids in zip(followed(numbers, "frame", doing=sequence.name, show=show), masks, strict=True):
        truth = video.truth(number, reader)
        write_ids(folder / f"{Path(sequence.frames[number]).stem}.png", ids)
        if number > sequence.start and truth is not None:
            tally.add(number, ids, truth)
        if number in video.small:
            for name, shown in zip(rows, (ids, first, truth), strict=True):
                if shown is not None:
                    rows[name].append(video.overlay(number, shown))
    pictures = {name: np.stack(frames) for name, frames in rows.items() if len(frames) == len(video.small)}
    save_animation(pictures, out / f"{sequence.name}.gif")
    filmstrip(pictures).save(out / f"{sequence.name}.png", pnginfo=png_mark())
    done = {"settings": dict(settings), "inputs": inputs, "frames": len(sequence.frames), "start": sequence.start}
    done |= {"notes": [*sequence.notes, *tally.notes()], "objects": tally.rows()}
    (out / DONE).mkdir(exist_ok=True)
    write_text(out / DONE / f"{sequence.name}.json", json.dumps(done, indent=1) + "\n")


def stored(out: Path, name: str) -> dict[str, Any] | None:
    """Return the figures of a finished video; None if it is not finished."""
    path = out / DONE / f"{name}.json"
    if not path.is_file():
        return None
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        done = None
    if not isinstance(done, dict) or not done.keys() >= {"settings", "inputs", "objects"}:
        raise ValueError(f"{path}: not replaced, because MAE3D has not made it: move it away, or give another --out")
    return done


@torch.inference_mode()  # while it runs: between two masks the caller is as it was
def _masks(video: _Video, first: Ids, objects: list[int], settings: Mapping[str, Any], *, batch: int) -> Iterator[Ids]:
    """Yield the mask of each frame, the given one first."""
    _, height, width = video.encoder.config.grid
    grid, numbers, carried = (height, width), np.array([0, *objects], np.uint8), None
    for features in frame_features(
        video.encoder, video.scaled(), layer=settings["layer"], mode=settings["mode"], batch=batch
    ):
        if carried is None:
            labels = patch_labels(first, objects, grid)
            chosen = {name: settings[name] for name in ("k", "context", "radius", "temperature")}
            carried = Propagator(features, labels, grid=grid, **chosen)
            yield first
        else:
            yield numbers[frame_mask(carried.step(features), grid, video.size)]


class _Tally:
    """J and F of a video's objects in the frames that count, carried and copied."""

    def __init__(self, objects: list[int], first: Ids, *, stop: int) -> None:
        self._objects, self._first, self._stop = objects, first, stop
        self._values: dict[tuple[int, str], list[float]] = {}
        self._later: set[int] = set()

    def add(self, number: int, ids: Ids, truth: Ids) -> None:
        """Compare a frame's mask with the true one, unless the frame does not count."""
        if number >= self._stop:
            return
        self._later |= set(np.unique(truth).tolist()) - {0, *self._objects}
        for thing in self._objects:
            for method, mask in zip(_METHODS, (ids, self._first), strict=True):
                pair = mask == thing, truth == thing
                self._values.setdefault((thing, f"{method}j"), []).append(region_similarity(*pair))
                self._values.setdefault((thing, f"{method}f"), []).append(contour_accuracy(*pair))

    def notes(self) -> list[str]:
        """Return what does not count, in words."""
        count = len(self._later)
        return [f"{count} objects that are not in the first mask: not carried, not measured"] if count else []

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of each object; without a counted frame its number alone."""
        return [self._row(thing) for thing in self._objects]

    def _row(self, thing: int) -> dict[str, Any]:
        if (thing, "j") not in self._values:
            return {"object": thing, "frames": 0}
        row: dict[str, Any] = {"object": thing, "frames": len(self._values[thing, "j"])}
        for method in _METHODS:
            j, f = (over_video(self._values[thing, f"{method}{name}"]) for name in "jf")
            row |= {f"{method}j": j.mean, f"{method}f": f.mean, f"{method}jf": (j.mean + f.mean) / 2}
            if not method:
                more = {"j_recall": j.recall, "j_decay": j.decay, "f_recall": f.recall, "f_decay": f.decay}
                row |= {name: None if np.isnan(value) else value for name, value in more.items()}
        return row


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each figure over all objects that were measured, as DAVIS 2017; empty if none was."""
    measured = [row for row in rows if row["frames"]]
    names = [f"{method}{name}" for method in _METHODS for name in FIGURES]
    names += ["j_recall", "j_decay", "f_recall", "f_decay"]
    values = {name: [row[name] for row in measured if row[name] is not None] for name in names} if measured else {}
    return {name: float(np.mean(column)) for name, column in values.items() if column}
