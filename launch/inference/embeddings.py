"""A frozen model and clips of shards, or of video files ─► a Parquet table of vectors, made on all ranks.

embedder = Embedder(model, world.device, layer=-1, pool="mean")
embed_samples(Path("vectors.parquet"), embedder, samples, model_sha256=sha256, world=world)

Columns: key, name, labels, first_frame (its number in the sample or file), start_s, end_s (in the source; null if its
frame rate is unknown), vector (a list of fixed size; null if the clip cannot be read), and replaced_frames for files.
The metadata holds all settings that the vectors depend on, as JSON under `mae3d`.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from launch.inference.evaluate import evaluate_into_table, sample_keys, sample_settings
from launch.inference.sharded_table import ShardedTable, fill_missing_shards
from mae3d.analysis.exact import each_clip
from mae3d.analysis.features import Pool, check_pool, embed, encoder_of, layer_of
from mae3d.video.clip import check_video_channels
from mae3d.video.windows import VideoBatch, VideoClips, Window, WindowPlan

if TYPE_CHECKING:
    from launch.common.eval_set import EvalSet
    from launch.inference.heads import Head
    from mae3d.distributed import World
    from mae3d.model.classifier import Classifier
    from mae3d.model.config import EncoderConfig
    from mae3d.model.encoder import Encoder
    from mae3d.model.frames import FrameEncoder
    from mae3d.model.mae import MAE
    from pipelines.stream import Batch

Array = Any  # a pa.Array; the stubs of pyarrow do not know which


class Embedder:
    """A frozen encoder that turns clips into a column of vectors, averaged over the clips of a sample."""

    def __init__(
        self,
        model: "MAE | Classifier | Encoder | FrameEncoder",
        device: torch.device,
        *,
        layer: int = -1,
        pool: Pool = "mean",
        num_clips: int = 1,
        precision: Literal["fp32", "bf16"] = "fp32",
        reverse: bool = False,
        half: bool = False,
        token_pool: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        """Move the model to the device; the arguments are those of `mae3d.embed`, and K clips of each sample.

        With `reverse` each clip is seen from its last frame to its first; with `half` vectors are float16. Of
        pool=tokens, those of blocks of `token_pool` (t, h, w) neighbours are averaged.

        Raises:
            ValueError: there is no such layer or pooling in this model; or tokens of more than one clip are requested,
                or blocks that do not divide their grid.
        """
        encoder = encoder_of(model)
        self.layer = layer_of(encoder, layer)
        check_pool(encoder, pool)
        if num_clips < 1 or (pool == "tokens" and num_clips > 1):
            raise ValueError(
                f"num_clips={num_clips}: give 1 or more, and 1 with pool=tokens, because positions differ between clips"
            )
        grid = list(encoder.config.grid)
        if any(size % block for size, block in zip(grid, token_pool, strict=True)):
            raise ValueError(f"token_pool={list(token_pool)} does not divide the model's grid of tokens {grid}")
        self.encoder = encoder.to(device).eval()
        self.config, self.pool, self.num_clips, self.precision = encoder.config, pool, num_clips, precision
        self.device, self.reverse, self.dtype = device, reverse, np.float16 if half else np.float32
        self.token_pool = token_pool
        self.grid = [size // block for size, block in zip(grid, token_pool, strict=True)]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that vectors depend on beside weights and clips. Tokens lie in a vector by t, h, w, then width."""
        config = self.config
        return {
            "layer": self.layer,
            "pool": self.pool,
            "width": config.embed_dim,
            "grid": self.grid if self.pool == "tokens" else None,
            "num_frames": config.num_frames,
            "img_size": config.img_size if isinstance(config.img_size, int) else list(config.img_size),
            "num_clips": self.num_clips,
            "precision": self.precision,
            **({"reverse": True} if self.reverse else {}),  # absent from tables that were begun before it existed
        }

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row's vector."""
        values = self.config.embed_dim * (math.prod(self.grid) if self.pool == "tokens" else 1)
        return np.dtype(self.dtype).itemsize * values

    def __call__(self, clips: torch.Tensor) -> Array:
        """Return B lists of floats, of fixed size, for uint8 or uint16 (B, K, T, H, W, C)."""
        clips = clips.flip(2) if self.reverse else clips
        features = each_clip(self._features, clips.flatten(0, 1).to(self.device, non_blocking=True))
        vectors = features.unflatten(0, (len(clips), -1)).mean(dim=1).flatten(1).cpu().numpy().astype(self.dtype)
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])

    def _features(self, clips: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features = embed(self.encoder, clips, layer=self.layer, pool=self.pool)
        if self.pool == "tokens" and self.token_pool != (1, 1, 1):
            pairs = zip(self.grid, self.token_pool, strict=True)
            features = (
                features.unflatten(1, [size for pair in pairs for size in pair]).mean(dim=(2, 4, 6)).flatten(1, 3)
            )
        return features


def embed_samples(
    path: Path,
    embedder: Embedder,
    samples: "EvalSet",
    *,
    model_sha256: str,
    world: "World",
    every_s: float = 0.0,
    batch_size: int = 8,
    head: "Head | None" = None,
) -> bool:
    """Write the vectors of samples of shards; all ranks call it.

    Args:
        path: of the table; the folder must exist.
        embedder: makes the vectors.
        samples: the samples.
        model_sha256: of the model's file: a table that another model began is refused.
        world: all ranks.
        every_s: seconds between the clips of a sample, one row each (`requests.windows_every`); 0 = one row per sample.
        batch_size: rows per batch.
        head: of the user's, with columns of its own.

    Returns:
        False if the table was finished already.

    Raises:
        ValueError: `TableError`, or raised by `windows_every`.
        OSError: the table cannot be written.
    """
    from pipelines.sampling.requests import windows_every

    starts = None
    if every_s:
        if embedder.num_clips > 1:
            raise ValueError(f"num_clips={embedder.num_clips}: with a clip every {every_s:g} s each has its own row")
        num_frames = embedder.config.num_frames
        rows, starts = windows_every(
            samples.corpus, samples.clips, rows=samples.rows, num_frames=num_frames, every_s=every_s
        )
        samples = replace(samples, rows=rows)

    def keys_of(numbers: np.ndarray) -> Mapping[str, Array]:
        spans = [
            _sample_span(samples, embedder, int(samples.rows[i]), start=None if starts is None else int(starts[i]))
            for i in numbers.tolist()
        ]
        return {**sample_keys(samples.corpus, samples.rows[numbers]), **_span_columns(spans)}

    def columns_of(batch: "Batch") -> Mapping[str, Array]:
        return with_head(head, {"vector": embedder(batch.clips)}, batch.clips)

    settings = {"model": model_sha256, **embedder.settings, **sample_settings(samples), "every_s": every_s}
    settings |= head.settings if head else {}
    _, is_new = evaluate_into_table(
        path,
        samples,
        embedder.config,
        columns_of,
        settings=settings,
        world=world,
        batch_size=batch_size,
        keys_of=keys_of,
        starts=starts,
        num_clips=embedder.num_clips,
        row_bytes=embedder.row_bytes,
    )
    return is_new


def embed_videos(
    path: Path,
    embedder: Embedder,
    plan: WindowPlan,
    *,
    settings: Mapping[str, Any],
    model_sha256: str,
    world: "World",
    batch_size: int = 8,
    head: "Head | None" = None,
) -> bool:
    """Write the vectors of windows of video files, as `embed_samples` does of samples.

    Args:
        path: of the table.
        embedder: makes the vectors.
        plan: the windows; keys are their numbers, names their files.
        settings: of the sampling, and a hash of the files.
        model_sha256: of the model's file.
        world: all ranks.
        batch_size: windows per batch.
        head: as in `embed_samples`.
    """

    def columns_of(batch: VideoBatch) -> Mapping[str, Array]:
        clips = torch.from_numpy(batch.clips)
        return with_head(head, {"replaced_frames": pa.array(batch.replaced), "vector": embedder(clips)}, clips)

    return windows_into_table(
        path,
        plan,
        columns_of,
        model_config=embedder.config,
        settings={"model": model_sha256, **embedder.settings, **settings, **(head.settings if head else {})},
        world=world,
        batch_size=batch_size,
        row_bytes=embedder.row_bytes,
    )


def with_head(head: "Head | None", columns: dict[str, Array], clips: torch.Tensor) -> dict[str, Array]:
    """Return a batch's columns with those of a head, if there is one."""
    return columns | head.columns(clips, taken=columns.keys()) if head else columns


def windows_into_table(
    path: Path,
    plan: WindowPlan,
    columns_of: Callable[[VideoBatch], Mapping[str, Array]],
    *,
    model_config: "EncoderConfig",
    settings: Mapping[str, Any],
    world: "World",
    batch_size: int,
    row_bytes: int,
    unit: str = "clip",
    beside: Sequence[str] = (),
) -> bool:
    """Fill a table with the columns that a model gives for each window of video files; all ranks call it.

    Columns that come first: key, the window's number; name, its file; labels, none; first_frame, start_s, end_s.

    Args:
        path: of the table.
        plan: the windows, one row each.
        columns_of: a batch of windows ─► columns; null for windows that cannot be read.
        model_config: the model's, for the clips' size and channels.
        settings: all that the rows depend on.
        world: all ranks.
        batch_size: windows per batch.
        row_bytes: of a row on the disk, at least.
        unit: the name of one, for the progress.
        beside: names of the files that the caller writes beside the table.

    Returns:
        False if the table was finished already.

    Raises:
        ValueError: a TableError, because the table was begun with other settings.
        OSError: the table cannot be written.
    """
    windows = plan.windows
    check_video_channels(model_config.in_chans)

    def chosen(numbers: np.ndarray) -> list[Window]:
        return [windows[i] for i in numbers.tolist()]

    def keys_of(numbers: np.ndarray) -> Mapping[str, Array]:
        mine = chosen(numbers)
        return {
            "key": pa.array([f"{i:06d}" for i in numbers.tolist()], pa.string()),
            "name": pa.array([window.path for window in mine], pa.string()),
            "labels": pa.array([[] for _ in mine], pa.list_(pa.int32())),
            **_span_columns([(window.first_frame, window.start_s, window.end_s) for window in mine]),
        }

    table = ShardedTable(
        path, num_rows=len(windows), batch_size=batch_size, settings=settings, row_bytes=row_bytes, beside=beside
    )
    return fill_missing_shards(
        table,
        world=world,
        open_stream=lambda numbers: VideoClips(
            chosen(numbers), size=model_config.img_size, channels=model_config.in_chans, batch_size=batch_size
        ),
        keys_of=keys_of,
        columns_of=columns_of,
        unit=unit,
    )


def clips_per_second(embedder: Embedder, *, batch_size: int, batches: int = 5) -> float:
    """Measure the speed of an embedder alone, without reading and decoding: the median over batches, after a first one.

    Args:
        embedder: makes the vectors.
        batch_size: clips of a batch.
        batches: number of batches that are timed.
    """
    config = embedder.config
    shape = (batch_size, 1, config.num_frames, config.height, config.width, config.in_chans)
    clips, seconds = torch.full(shape, 128, dtype=torch.uint8), []
    for _ in range(1 + batches):
        start = time.perf_counter()
        embedder(clips)  # ends with the vectors on the CPU
        seconds.append(time.perf_counter() - start)
    return batch_size / float(np.median(seconds[1:]))


def files_hash(paths: Sequence[str]) -> str:
    """Return a hash of the list of files, with their sizes and times of change."""
    digest = hashlib.sha256()
    for path in paths:
        status = Path(path).stat() if Path(path).is_file() else None
        digest.update(f"{path}\n{status and (status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


def count_failed(path: Path) -> int:
    """Return the number of rows without a vector."""
    with pq.ParquetFile(path) as file:
        return sum(batch.column(0).null_count for batch in file.iter_batches(columns=["vector"]))


def count_replaced(path: Path) -> int:
    """Return the number of damaged frames in a table of video files, for which others of their clip stand in."""
    return int(pc.sum(pq.read_table(path, columns=["replaced_frames"])[0]).as_py() or 0)


def _sample_span(samples: "EvalSet", embedder: Embedder, row: int, *, start: int | None) -> tuple[int, float, float]:
    """Return the first frame of a row's clips in the sample, and the seconds in the source at which they begin and end.

    Args:
        samples: the samples.
        embedder: for the number of frames and clips.
        row: of the corpus.
        start: first frame of the one clip; None for clips spread over the sample.
    """
    from pipelines.sampling.requests import evaluation_windows, window_at

    corpus, num_frames = samples.corpus, embedder.config.num_frames
    if start is None:
        windows = evaluation_windows(corpus, samples.clips, row, num_frames=num_frames, num_clips=embedder.num_clips)
    else:
        windows = [window_at(corpus, samples.clips, row, start=start, num_frames=num_frames)]
    first, last = int(np.min(windows)), int(np.max(windows))
    dataset, number = corpus.locate(row)
    start_s, fps = float(dataset.start_s[number]), float(corpus.fps[row])
    return first, start_s + first / fps, start_s + (last + 1) / fps


def _span_columns(spans: Sequence[tuple[int | None, float | None, float | None]]) -> dict[str, Array]:
    def seconds(values: Sequence[float | None]) -> Array:
        return pa.array([None if value is None or math.isnan(value) else value for value in values], pa.float64())

    return {
        "first_frame": pa.array([first for first, _, _ in spans], pa.int64()),
        "start_s": seconds([start for _, start, _ in spans]),
        "end_s": seconds([end for _, _, end in spans]),
    }
