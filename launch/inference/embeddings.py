"""A frozen model and clips of shards, or of video files ─► a Parquet table of vectors, in parts, on all processes.

embedder = Embedder(model, world.device, layer=-1, pool="mean")
table = shard_vectors(Path("vectors.parquet"), embedder, corpus, clips, rows, model_sha256=sha256, world=world)

Columns: key, name, labels, first_frame (its number in the sample or file), start_s, end_s (in the source; null where no
frame rate is known), vector (a list of fixed size; null where nothing could be read), and of files replaced_frames. The
metadata tells all that the vectors depend on, as JSON under `mae3d`. Commands import this late: it needs torch.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from launch.inference.sharded_table import Parts, fill, sample_keys, sample_settings
from mae3d.analysis.exact import each_clip
from mae3d.analysis.features import Pool, check_pool, embed, layer_of
from mae3d.model.encoder import Encoder
from mae3d.video.windows import VideoBatch, VideoClips, WindowPlan

if TYPE_CHECKING:
    from mae3d.distributed import World
    from mae3d.model.classifier import Classifier
    from mae3d.model.mae import MAE
    from pipelines.config import DataConfig
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch, ClipStream

Array = Any  # a pa.Array; the stubs of pyarrow do not know which


class Embedder:
    """Clips ─► a column of vectors. The mean over a sample's clips is taken of their vectors."""

    def __init__(
        self,
        model: "MAE | Classifier | Encoder",
        device: torch.device,
        *,
        layer: int = -1,
        pool: Pool = "mean",
        num_clips: int = 1,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """Moves the model to the device; arguments as of `mae3d.embed`, and K clips of each sample.

        Raises:
            ValueError: there is no such layer or pooling in this model; or tokens of several clips were asked for.
        """
        encoder = model if isinstance(model, Encoder) else model.encoder
        self.layer = layer_of(encoder, layer)
        check_pool(encoder, pool)
        if num_clips < 1 or (pool == "tokens" and num_clips > 1):
            raise ValueError(f"num_clips={num_clips}: give 1 or more; with pool=tokens 1, places differ between clips")
        self.encoder = encoder.to(device).eval()
        self.config, self.pool, self.num_clips, self.precision = encoder.config, pool, num_clips, precision
        self.device = device

    @property
    def settings(self) -> dict[str, Any]:
        """What vectors depend on beside weights and clips. Tokens lie in a vector by t, h, w, then their width."""
        config = self.config
        return {
            "layer": self.layer,
            "pool": self.pool,
            "width": config.embed_dim,
            "grid": list(config.grid) if self.pool == "tokens" else None,
            "num_frames": config.num_frames,
            "img_size": config.img_size,
            "num_clips": self.num_clips,
            "precision": self.precision,
        }

    def __call__(self, clips: torch.Tensor) -> Array:
        """uint8 (B, K, T, H, W, 3) ─► B lists of float32, of fixed size."""
        features = each_clip(self._features, clips.flatten(0, 1).to(self.device, non_blocking=True))
        vectors = features.unflatten(0, (len(clips), -1)).mean(dim=1).flatten(1).cpu().numpy()
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])

    def _features(self, clips: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return embed(self.encoder, clips, layer=self.layer, pool=self.pool)


def shard_vectors(
    path: Path,
    embedder: Embedder,
    corpus: "Corpus",
    clips: "DataConfig",
    rows: np.ndarray,
    *,
    model_sha256: str,
    world: "World",
    every_s: float = 0.0,
    batch_size: int = 8,
) -> bool:
    """Vectors of samples of shards; to be called by all processes.

    Args:
        path: of the table; the folder must be there.
        embedder: what makes the vectors.
        corpus: the opened shards.
        clips: how clips are sampled and decoded.
        rows: (n,) rows of the corpus.
        model_sha256: of the model's file: a table that another model began is not gone on with.
        world: all processes.
        every_s: a row for each clip, one every so many seconds (`views.windows_every`); 0 = a row a sample.
        batch_size: rows at a time.

    Returns:
        False where the table was finished already.

    Raises:
        ValueError: `PartsError`, or what `windows_every` refuses.
        OSError: the table cannot be written.
    """
    from pipelines.sampling.requests import windows_every
    from pipelines.stream import evaluation_clips

    num_frames, starts = embedder.config.num_frames, None
    if every_s:
        if embedder.num_clips > 1:
            raise ValueError(f"num_clips={embedder.num_clips}: with a clip every {every_s:g} s each has its own row")
        rows, starts = windows_every(corpus, clips, rows=rows, num_frames=num_frames, every_s=every_s)

    def open_stream(of: np.ndarray) -> "ClipStream":
        return evaluation_clips(
            corpus,
            clips,
            rows=rows[of],
            starts=None if starts is None else starts[of],
            num_frames=num_frames,
            size=embedder.config.img_size,
            num_clips=embedder.num_clips,
            batch_size=batch_size,
            local_world=world.place.local_size,
            device=world.device,
        )

    def keys_of(of: np.ndarray) -> Mapping[str, Array]:
        windows = [_sample_span(corpus, clips, embedder, int(rows[i]), starts, i) for i in of.tolist()]
        return {**sample_keys(corpus, rows[of]), **_spans(windows)}

    def outputs_of(batch: "Batch") -> Mapping[str, Array]:
        return {"vector": embedder(batch.clips)}

    settings = {
        "model": model_sha256,
        **embedder.settings,
        **sample_settings(corpus, clips, rows),
        "every_s": every_s,
    }
    parts = Parts(path, num_rows=len(rows), batch_size=batch_size, settings=settings)
    return fill(parts, world=world, open_stream=open_stream, keys_of=keys_of, outputs_of=outputs_of)


def video_vectors(
    path: Path,
    embedder: Embedder,
    plan: WindowPlan,
    *,
    settings: Mapping[str, Any],
    model_sha256: str,
    world: "World",
    batch_size: int = 8,
) -> bool:
    """Vectors of windows of video files, as `shard_vectors` makes them of samples.

    Args:
        path: of the table.
        embedder: what makes the vectors.
        plan: the windows; keys are their numbers, names their files.
        settings: of the sampling, and what tells the files from others.
        model_sha256: of the model's file.
        world: all processes.
        batch_size: windows at a time.
    """
    windows = plan.windows

    def open_stream(of: np.ndarray) -> VideoClips:
        return VideoClips([windows[i] for i in of.tolist()], size=embedder.config.img_size, batch_size=batch_size)

    def keys_of(of: np.ndarray) -> Mapping[str, Array]:
        mine = [windows[i] for i in of.tolist()]
        return {
            "key": pa.array([f"{i:06d}" for i in of.tolist()], pa.string()),
            "name": pa.array([window.path for window in mine], pa.string()),
            "labels": pa.array([[] for _ in mine], pa.list_(pa.int32())),
            **_spans([(window.first_frame, window.start_s, window.end_s) for window in mine]),
        }

    def outputs_of(batch: VideoBatch) -> Mapping[str, Array]:
        return {"replaced_frames": pa.array(batch.replaced), "vector": embedder(torch.from_numpy(batch.clips))}

    parts = Parts(
        path,
        num_rows=len(windows),
        batch_size=batch_size,
        settings={"model": model_sha256, **embedder.settings, **settings},
    )
    return fill(parts, world=world, open_stream=open_stream, keys_of=keys_of, outputs_of=outputs_of)


def files_hash(paths: Sequence[str]) -> str:
    """Changes with the list of files, with their sizes and times of change."""
    digest = hashlib.sha256()
    for path in paths:
        known = Path(path).stat() if Path(path).is_file() else None
        digest.update(f"{path}\n{known and (known.st_size, known.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


def read_vectors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a table that have been read: (n, width) float32, and their rows (n,)."""
    column: Any = pq.read_table(path, columns=["vector"])["vector"].combine_chunks()
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    flat = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(rows), column.type.list_size), rows


def count_failed(path: Path) -> int:
    """Rows of a table without a vector."""
    with pq.ParquetFile(path) as file:
        return sum(batch.column(0).null_count for batch in file.iter_batches(columns=["vector"]))


def count_replaced(path: Path) -> int:
    """Damaged frames of a table of video files, for which others of their clip stand in."""
    return int(pc.sum(pq.read_table(path, columns=["replaced_frames"])[0]).as_py() or 0)


def _sample_span(
    corpus: "Corpus", clips: "DataConfig", embedder: Embedder, row: int, starts: np.ndarray | None, i: int
) -> tuple[int, float, float]:
    """First frame in the sample, and the times in the source at which a row's clips begin and end."""
    from pipelines.sampling.requests import evaluation_windows, window_at

    num_frames = embedder.config.num_frames
    if starts is None:
        windows = evaluation_windows(corpus, clips, row, num_frames=num_frames, num_clips=embedder.num_clips)
    else:
        windows = [window_at(corpus, clips, row, start=int(starts[i]), num_frames=num_frames)]
    first, last = int(np.min(windows)), int(np.max(windows))
    dataset, number = corpus.locate(row)
    start_s, fps = float(dataset.start_s[number]), float(corpus.fps[row])
    return first, start_s + first / fps, start_s + (last + 1) / fps


def _spans(windows: Sequence[tuple[int | None, float | None, float | None]]) -> dict[str, Array]:
    def known(values: Sequence[float | None]) -> Array:
        return pa.array([None if value is None or math.isnan(value) else value for value in values], pa.float64())

    return {
        "first_frame": pa.array([first for first, _, _ in windows], pa.int64()),
        "start_s": known([start for _, start, _ in windows]),
        "end_s": known([end for _, _, end in windows]),
    }
