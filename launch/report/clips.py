"""Rows of a dataset, or video files ─► the clips that visualize.py looks at, each with the words that name it.

clips = read_clips(corpus, data, rows, model.config, device=device)      # damaged ones are missing
clips = read_videos(["talk.mp4"], model.config, data)
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mae3d.io.resources import require_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mae3d.model.config import EncoderConfig
    from pipelines.config import DataConfig
    from pipelines.samples.corpus import Corpus

IMAGES = "images"  # the folder of pictures, beside the page
BATCH = 4  # clips per batch
MAX_STEM = 100  # letters of a video's name that its pictures' names keep


@dataclass(frozen=True)
class Clip:
    """A clip to look at.

    Attributes:
        pixels: uint8 (T, H, W, 3), on the CPU.
        number: Its row in the corpus, or its position among the videos; its mask is drawn from it.
        title: The sample's name, or the file's.
        stem: The beginning of its pictures' names.
        notes: Further names: the key, the labels.
        row: Its row in the corpus; None for a video.
    """

    pixels: "torch.Tensor"
    number: int
    title: str
    stem: str
    notes: tuple[str, ...] = ()
    row: int | None = None

    @property
    def frames(self) -> "np.ndarray":
        """`pixels` for pictures."""
        frames: np.ndarray = self.pixels.numpy()
        return frames


def require_room(config: "EncoderConfig", *, clips: int) -> None:
    """Raise ValueError if memory cannot hold the pixels of so many clips."""
    frames, height, width = config.num_frames, config.height, config.width
    require_memory(
        config.in_chans * clips * frames * height * width,
        f"{clips:,} clips of {frames:,} x {height:,} x {width:,} pixels",
        "give a smaller --samples, or fewer --keys or --videos",
    )


def read_clips(
    corpus: "Corpus", data: "DataConfig", rows: "np.ndarray", config: "EncoderConfig", *, device: "torch.device"
) -> list[Clip]:
    """Return the middle clip of each row, in order; damaged samples are missing.

    Args:
        corpus: The dataset.
        data: How clips are sampled and read.
        rows: (N,) which samples.
        config: The model's, for the number of frames, their size and channels.
        device: Where frames are resized.
    """
    from tqdm import tqdm

    from pipelines.stream import evaluation_clips

    stream = evaluation_clips(
        corpus,
        data,
        rows=rows,
        num_frames=config.num_frames,
        size=config.img_size,
        channels=config.in_chans,
        batch_size=BATCH,
        device=device,
    )
    clips = []
    with tqdm(total=len(rows), desc="reading", unit="clip", disable=None) as bar:
        for batch in stream:
            for pixels, row, is_whole in zip(
                batch.clips[:, 0].cpu(), batch.rows[:, 0].tolist(), batch.is_whole.tolist(), strict=True
            ):
                if is_whole:
                    clips.append(_clip_of(corpus, row, pixels))
                bar.update()
    stream.close()
    return clips


def _clip_of(corpus: "Corpus", row: int, pixels: "torch.Tensor") -> Clip:
    key, labels = corpus.key(row), label_words(corpus, row)
    stem = re.sub(r"[^a-z0-9_]", "_", key)  # keys have no other letters, unless someone made the dataset by hand
    if len(corpus.datasets) > 1:  # each has keys of its own
        stem = f"{row}_{stem}"
    notes = (f"key {key}", f"label {labels}") if labels else (f"key {key}",)
    return Clip(pixels, row, corpus.name(row), stem, notes, row)


def label_words(corpus: "Corpus", row: int) -> str:
    """Return the names of a sample's labels; "" if it has none."""
    names = corpus.label_names
    return ", ".join(names[i] if i < len(names) else str(i) for i in corpus.labels_of(row))


def read_videos(paths: Sequence[str], config: "EncoderConfig", data: "DataConfig") -> list[Clip]:
    """Return the middle clip of each video file.

    Raises:
        ValueError: A file cannot be read; the message names it.
    """
    from mae3d.video.clip import read_clip

    clips = []
    for number, path in enumerate(paths):
        pixels = read_clip(path, config, sampling_rate=data.sampling_rate, target_fps=data.target_fps)[0]
        stem = f"video_{number}_" + re.sub(r"[^a-z0-9_]", "_", Path(path).stem.lower())[:MAX_STEM]
        clips.append(Clip(pixels, number, Path(path).name, stem))
    return clips


def batches(
    clips: Sequence[Clip], device: "torch.device", *, doing: str
) -> Iterator[tuple[Sequence[Clip], "torch.Tensor"]]:
    """Yield batches of clips, with their pixels (B, T, H, W, C) on the device; `doing` labels the progress bar."""
    import torch
    from tqdm import tqdm

    with tqdm(total=len(clips), desc=doing, unit="clip", disable=None) as bar:
        for first in range(0, len(clips), BATCH):
            batch = clips[first : first + BATCH]
            yield batch, torch.stack([clip.pixels for clip in batch]).to(device)
            bar.update(len(batch))
