"""A model and windows along videos ─► windows.parquet on all ranks; from it, on rank 0, the timeline and its page.

reader = Reader(open_any(file), config, world.device)
read_windows(config, reader, plan, settings, world)       # vectors, scores or surprise, a small picture per window
tracks = tracks_of(config, out / WINDOWS)                 # novelty and change points of each file
write_tables(config, reader.class_names, tracks, out)     # timeline.parquet, changes.csv

windows.parquet holds what costs time, byte for byte the same on any number of ranks and after kills. The rest is
computed from it anew by every start, so that penalties, smoothing and events may change.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import simplejpeg
import torch

from launch.common.tables import write_rows
from launch.common.track import Track
from launch.inference.embeddings import Embedder, windows_into_table
from launch.inference.phases import AGREEMENT, AGREEMENT_TABLE
from launch.inference.settings import TimelineConfig
from launch.inference.sharded_table import METADATA, stored_settings
from mae3d.analysis.course import Change, change_points, novelties
from mae3d.analysis.exact import each_clip
from mae3d.analysis.reconstruct import clip_losses, copy_losses
from mae3d.io.contact_sheet import as_rgb
from mae3d.io.files import replace_file
from mae3d.model.classifier import Classifier, view_scores
from mae3d.model.mae import MAE
from mae3d.model.masking import mask_noise
from mae3d.video.windows import VideoBatch, WindowPlan
from mae3d.weights.files import WeightsError, open_encoder, open_model

if TYPE_CHECKING:
    from mae3d.distributed import World

WINDOWS, TIMELINE, CHANGES, PAGE = "windows.parquet", "timeline.parquet", "changes.csv", "timeline.html"
PICTURE_BYTES = 4_000  # of a window's small picture, about
HEAVY = ("vector", "picture")  # columns of windows.parquet that timeline.parquet lacks


class Reader:
    """A frozen model of any kind that turns windows into columns."""

    def __init__(self, model: Any, config: TimelineConfig, device: torch.device) -> None:
        """Move a masked autoencoder, a classifier or an encoder to the device.

        Raises:
            ValueError: There is no layer or pooling of that kind, or the mask does not fit.
        """
        self.model = model
        self.embedder = Embedder(self.model, device, layer=config.layer, pool=config.pool, precision=config.precision)
        self.model.to(device)
        self.config, self._device, self._bf16 = self.embedder.config, device, config.precision == "bf16"
        self.class_names: tuple[str, ...] = ()
        if isinstance(self.model, Classifier):
            numbers = tuple(map(str, range(self.model.config.num_classes)))
            self.class_names = self.model.config.class_names or numbers
        if isinstance(self.model, MAE):
            ratio = self.model.config.mask_ratio if config.mask_ratio is None else config.mask_ratio
            self.model.config = replace(self.model.config, mask_type=config.mask, mask_ratio=ratio)
            tokens = self.model.config.num_tokens
            self._noise = mask_noise(seed=config.seed, epoch=0, positions=[0], views=1, tokens=tokens).to(device)
            self._mask = {"mask": config.mask, "mask_ratio": ratio, "seed": config.seed}

    @property
    def is_multi_label(self) -> bool:
        """Return whether a clip may have any number of the classes."""
        return isinstance(self.model, Classifier) and self.model.config.multi_label

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the windows' columns depend on beside weights and clips."""
        mask = self._mask if isinstance(self.model, MAE) else {}
        return {**self.embedder.settings, **mask, "classes": list(self.class_names)}

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row of the table, about."""
        return self.embedder.row_bytes + PICTURE_BYTES + 4 * len(self.class_names)

    def columns_of(self, batch: VideoBatch) -> dict[str, Any]:
        """Return the columns of a batch of windows; of windows that cannot be read they are meaningless."""
        clips = torch.from_numpy(batch.clips)
        columns: dict[str, Any] = {
            "replaced_frames": pa.array(batch.replaced),
            "picture": pa.array([_jpeg(clip[0, clip.shape[1] // 2]) for clip in batch.clips], pa.binary()),
            "vector": self.embedder(clips),
        }
        on_device = clips[:, 0].to(self._device)
        if self.class_names:
            scores = each_clip(self._scores, on_device).cpu().numpy()
            columns["scores"] = pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), scores.shape[1])
        if isinstance(self.model, MAE):
            losses = each_clip(self._losses, on_device).T.cpu().numpy()
            columns |= {"surprise": pa.array(losses[0]), "surprise_copy": pa.array(losses[1])}
        return columns

    @torch.no_grad()
    def _scores(self, clips: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            logits = self.model(clips)
        return view_scores(logits[:, None], multi_label=self.is_multi_label)

    def _losses(self, clips: torch.Tensor) -> torch.Tensor:
        noise = self._noise.expand(len(clips), -1)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            predicted = clip_losses(self.model, clips, noise).loss
        return torch.stack([predicted, copy_losses(self.model, clips, noise)], dim=1)


def open_any(file: Path) -> Any:
    """Return the model of a file, or its encoder alone if it has no decoder or head of ours."""
    try:
        return open_model(file)
    except WeightsError:
        return open_encoder(file)


def _jpeg(picture: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(as_rgb(picture)), quality=80, colorspace="RGB")


def read_windows(
    config: TimelineConfig, reader: Reader, plan: WindowPlan, settings: Mapping[str, Any], world: "World"
) -> None:
    """Write windows.parquet; all ranks call it.

    Raises:
        ValueError: The table, or a file beside it, is another program's or of other settings.
        OSError: The table cannot be written.
    """
    windows_into_table(
        Path(config.out) / WINDOWS,
        plan,
        reader.columns_of,
        model_config=reader.config,
        settings=settings,
        world=world,
        batch_size=config.batch,
        row_bytes=reader.row_bytes,
        unit="windows",
        beside=[TIMELINE, CHANGES, PAGE, AGREEMENT, AGREEMENT_TABLE, *pictures_of(config.videos)],
    )


def pictures_of(videos: Sequence[str]) -> list[str]:
    """Return the names of the files' PNGs, in their order."""
    return ["timeline.png"] if len(videos) == 1 else [f"timeline_{i:03d}.png" for i in range(len(videos))]


def tracks_of(config: TimelineConfig, path: Path) -> list[Track]:
    """Return what windows.parquet says about each file, with novelty and change points; classes are not chosen yet."""
    tracks: list[Track] = []
    for rows in by_file(path):
        tracks.append(_track(config, rows, sum(len(track.start_s) for track in tracks)))
    return tracks


def by_file(path: Path, *, without: Sequence[str] = ("picture",)) -> Iterator[pa.Table]:
    """Yield the rows of windows.parquet file by file, without certain columns: one file's are in memory."""
    with pq.ParquetFile(path) as file:
        columns = [name for name in file.schema_arrow.names if name not in without]
        held: list[Any] = []
        for batch in file.iter_batches(1024, columns=columns):
            names = batch["name"].to_numpy(zero_copy_only=False)
            cuts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
            for begin, end in pairwise(cuts):
                if held and held[-1]["name"][0].as_py() != names[begin]:
                    yield pa.Table.from_batches(held)
                    held = []
                held.append(batch.slice(begin, end - begin))
        yield pa.Table.from_batches(held)


def _track(config: TimelineConfig, rows: pa.Table, first_row: int) -> Track:
    def column(name: str) -> np.ndarray:
        return np.array(rows[name].to_numpy(), dtype=np.float64)  # null is NaN

    start_s, end_s = column("start_s"), column("end_s")
    readable = np.flatnonzero(rows["vector"].combine_chunks().is_valid().to_numpy(zero_copy_only=False))
    vectors = _lists(rows["vector"])[readable]
    curves: dict[str, np.ndarray] = {
        name: column(name) for name in ("surprise", "surprise_copy") if name in rows.column_names
    }
    curves["novelty"] = np.full(len(rows), np.nan)
    curves["novelty"][readable] = novelties(vectors, start_s[readable], end_s[readable], apart_s=config.apart)
    least = max(1, round(config.change_min / config.every))
    changes = change_points(vectors, penalty=config.change_penalty, min_rows=least)
    scores = _lists(rows["scores"]) if "scores" in rows.column_names else np.zeros((len(rows), 0), np.float32)
    return Track(
        name=rows["name"][0].as_py(),
        start_s=start_s,
        end_s=end_s,
        scores=scores,
        curves=curves,
        changes=[Change(int(readable[change.row]), change.strength) for change in changes],
        predicted=np.zeros(0, np.int64),
        true=np.zeros(0, np.int64),
        first_row=first_row,
    )


def _lists(column: pa.ChunkedArray) -> np.ndarray:
    """Return (n, width) float32 of a column of lists of one size; NaN for null."""
    whole: Any = column.combine_chunks()
    width = column.type.list_size
    values = np.full((len(column), width), np.nan, np.float32)
    values[whole.is_valid().to_numpy(zero_copy_only=False)] = (
        whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    )
    return values


def write_tables(config: TimelineConfig, class_names: Sequence[str], tracks: Sequence[Track], out: Path) -> None:
    """Write timeline.parquet, the light columns of windows.parquet and those that follow from them; and changes.csv."""
    changes = [(track.name, f"{track.change_s(c):.3f}", f"{c.strength:.4f}") for track in tracks for c in track.changes]
    write_rows(out / CHANGES, [("name", "seconds", "strength"), *changes])
    settings = stored_settings(out / WINDOWS) | {
        "apart_s": config.apart,
        "change_penalty": config.change_penalty,
        "change_min_s": config.change_min,
        "smooth": config.smooth,
        "smoothing": config.smoothing,
    }
    names = pa.array(class_names, pa.string())
    with replace_file(out / TIMELINE) as aside:
        writer: pq.ParquetWriter | None = None
        for track, rows in zip(tracks, by_file(out / WINDOWS, without=HEAVY), strict=True):
            strength = np.full(len(rows), np.nan)
            strength[[change.row for change in track.changes]] = [change.strength for change in track.changes]
            rows = rows.append_column("novelty", _nullable(track.curves["novelty"]))
            rows = rows.append_column("change", _nullable(strength))
            for name, classes in (("label", track.predicted), ("true_label", track.true)):
                if len(classes):
                    numbers = pa.array(classes, pa.int64(), mask=classes < 0)
                    rows = rows.append_column(name, pc.take(names, numbers))
            rows = rows.replace_schema_metadata({METADATA: json.dumps(settings)})
            writer = writer or pq.ParquetWriter(aside, rows.schema)
            writer.write_table(rows)
        assert writer is not None
        writer.close()


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32), pa.float32(), mask=np.isnan(values))
