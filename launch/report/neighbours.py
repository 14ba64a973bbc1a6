"""Clips and a dataset ─► the samples whose features are closest, as rows of filmstrips, and how often labels agree.

pool = pool_of_dataset(model, corpus, data, rows, device=device)      # or pool_of_table("embeddings.parquet", corpus)
section = neighbour_section(model, clips, pool, corpus, data, out, count=5, frame_ms=160, device=device)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.report.clips import IMAGES, Clip, batches, read_clips
from mae3d.io.console import one_line
from mae3d.io.resources import require_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

    from launch.report.page import Card, Section, Table
    from mae3d.model.classifier import Classifier
    from mae3d.model.mae import MAE
    from pipelines.config import DataConfig
    from pipelines.samples.corpus import Corpus

BATCH = 8  # clips that are embedded together
MAX_QUERIES = 4096  # labelled samples whose neighbours' labels are counted
CHUNK = 256  # of these per matrix product, fewer if they make more than PAIRS
PAIRS = 2**24  # pairs of samples that are compared at a time, 30 bytes each


@dataclass(frozen=True)
class Pool:
    """Samples that neighbours are searched among.

    Attributes:
        rows: (N,) rows of the corpus.
        vectors: (N, D) float32, of length 1.
        origin: Where the vectors are from, for the page.
    """

    rows: "np.ndarray"
    vectors: "np.ndarray"
    origin: str


def open_pool(
    table: str, corpus: "Corpus", rows: "np.ndarray", *, queries: "np.ndarray | None", width: int
) -> "Pool | np.ndarray":
    """Return the vectors to search, or the rows to embed for it, before any clip is read.

    Args:
        table: of launch/embed.py; "" to embed the rows.
        corpus: The dataset.
        rows: (N,) which samples.
        queries: The samples whose neighbours are searched; None for videos.
        width: Of a vector.

    Raises:
        ValueError: They do not fit into memory, the table is not of this dataset, or a query has no vector in it.
    """
    import numpy as np

    if not table:
        require_memory(8 * len(rows) * width, f"{len(rows):,} vectors, {width:,} wide", "give a smaller --pool")
        return rows
    pool = pool_of_table(table, corpus)
    missing = None if queries is None else queries[~np.isin(queries, pool.rows)]
    if missing is None or len(missing):
        what = "--videos" if missing is None else corpus.name(int(missing[0]))
        raise ValueError(f"{what}: has no vector in --embeddings; leave that out, to embed the dataset here")
    return pool


def pool_of_dataset(
    model: "MAE | Classifier", corpus: "Corpus", data: "DataConfig", rows: "np.ndarray", *, device: "torch.device"
) -> Pool:
    """Embed samples of a dataset, one clip each; damaged ones are missing."""
    import numpy as np

    from mae3d.io.progress import Progress
    from pipelines.stream import evaluation_clips

    config = model.encoder.config
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
    kept, vectors = [], []
    with Progress(len(rows), "clip", doing="embedding") as advance:
        for batch in stream:
            fine = batch.is_whole.cpu()
            kept.append(batch.rows[fine, 0].numpy())
            vectors.append(_features(model, batch.clips[:, 0])[fine.numpy()])
            advance(len(fine))
    stream.close()
    origin = f"{sum(map(len, kept)):,} of the dataset's {len(corpus):,} samples, embedded here, one clip each"
    return Pool(np.concatenate(kept), np.concatenate(vectors), origin)


def pool_of_table(path: str, corpus: "Corpus") -> Pool:
    """Return the vectors of a table of launch/embed.py, one per sample.

    Raises:
        ValueError: The table is not of this dataset, or does not have one vector per sample.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from launch.common.tables import read_vectors

    if len(corpus.datasets) > 1:
        raise ValueError("--embeddings: keys tell samples of one dataset apart, not of several; give one --data.shards")
    try:
        with pq.ParquetFile(path) as file:
            width = file.schema_arrow.field("vector").type.list_size
            needed = 8 * file.metadata.num_rows * width  # as they are, and of length 1
            require_memory(needed, f"{path}: {file.metadata.num_rows:,} vectors, {width:,} wide", "give a smaller one")
        vectors, there = read_vectors(Path(path))  # damaged samples have none
        column = pq.read_table(path, columns=["key"])["key"].to_pylist()
    except (pa.ArrowInvalid, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: no table of embeddings (mae3d embed makes one): {one_line(error)}") from error
    keys = [str(column[row]) for row in there.tolist()]
    if not keys or len(set(keys)) < len(keys):
        what = "several vectors a sample" if keys else "no vectors"
        raise ValueError(f"{path}: has {what}; give a table with one vector a sample (mae3d embed without --every)")
    rows = np.array([corpus.find(key) for key in keys], dtype=np.int64)
    return Pool(rows, _unit(vectors), f"{len(rows):,} samples of {Path(path).name}")


def neighbour_section(
    model: "MAE | Classifier",
    clips: Sequence[Clip],
    pool: Pool,
    corpus: "Corpus",
    data: "DataConfig",
    out: Path,
    *,
    count: int,
    frame_ms: int,
    device: "torch.device",
) -> "Section":
    """Search, draw and count.

    Args:
        model: On the device.
        clips: The queries.
        pool: The samples that are searched.
        corpus: The pool's dataset.
        data: How its clips are read.
        out: The page's folder.
        count: k, neighbours of each.
        frame_ms: How long a GIF shows a frame, milliseconds.
        device: Where to compute.

    """
    import numpy as np

    from launch.report.page import Section

    queries = _vectors_of(model, clips, pool, device)
    sources = _sources(corpus, pool.rows)
    neighbours = []
    for clip, vector in zip(clips, queries, strict=True):
        similar = pool.vectors @ vector
        if clip.row is not None:
            similar[sources == _sources(corpus, np.array([clip.row]))[0]] = -np.inf
        best = np.argsort(-similar, kind="stable")[:count]
        neighbours.append([(int(pool.rows[i]), float(similar[i])) for i in best if np.isfinite(similar[i])])
    rows = np.unique([row for nearest in neighbours for row, _ in nearest]).astype(np.int64)
    pictures = {c.number: c for c in read_clips(corpus, data, rows, model.encoder.config, device=device)}
    cards = [
        _draw(clip, [(pictures[row], s) for row, s in nearest if row in pictures], out, frame_ms=frame_ms)
        for clip, nearest in zip(clips, neighbours, strict=True)
    ]
    table = agreement(pool, corpus, sources, count=count)
    return Section("Nearest neighbours", describe(pool), cards, [table] if table else [])


def _vectors_of(model: "MAE | Classifier", clips: Sequence[Clip], pool: Pool, device: "torch.device") -> "np.ndarray":
    """Return (n, D) of the queries: the pool's if it has them all, so that a sample is compared by its own vector."""
    import numpy as np

    position = {row: i for i, row in enumerate(pool.rows.tolist())}
    if all(clip.row in position for clip in clips):
        return pool.vectors[[position[clip.row] for clip in clips if clip.row is not None]]
    return np.concatenate([_features(model, pixels) for _, pixels in batches(clips, device, doing="embedding")])


def _features(model: "MAE | Classifier", pixels: "torch.Tensor") -> "np.ndarray":
    """Return (B, D) of length 1: the class token if the head reads it, else the mean of the patches."""
    from mae3d.analysis.features import embed
    from mae3d.model.classifier import Classifier

    reads_cls = isinstance(model, Classifier) and model.config.pooling == "cls"
    return _unit(embed(model, pixels, pool="cls" if reads_cls else "mean").cpu().numpy())


def _unit(vectors: "np.ndarray") -> "np.ndarray":
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _sources(corpus: "Corpus", rows: "np.ndarray") -> "np.ndarray":
    """Return (n,) text: the video that each row is a piece of. Its other pieces are too easy to find."""
    import numpy as np

    def source(row: int) -> str:
        dataset = int(np.searchsorted(corpus.row_starts, row, side="right"))
        return f"{dataset}:{corpus.name(row)}"

    return np.array([source(row) for row in rows.tolist()], dtype=object)


def agreement(pool: Pool, corpus: "Corpus", sources: "np.ndarray", *, count: int) -> "Table | None":
    """Return how many neighbours share a label with their query; many labelled samples are thinned out evenly.

    Chance is the share of all others (of other videos) that have it, averaged over the queries. None without labels.
    """
    import numpy as np

    from launch.report.page import Table
    from pipelines.samples.labels import many_hot

    labels = [corpus.labels_of(row) for row in pool.rows.tolist()]
    targets = many_hot(labels, corpus.num_classes, dtype=np.float32)
    labelled = np.flatnonzero(targets.any(axis=1))
    _, source = np.unique(sources.astype(str), return_inverse=True)
    shares, nearest, chances = [], [], []
    queries = labelled[:: -(-len(labelled) // MAX_QUERIES) or 1]
    chunk = max(1, min(CHUNK, PAIRS // max(1, len(labelled))))
    for first in range(0, len(queries), chunk):
        query = queries[first : first + chunk]
        others = (source[query][:, None] != source[labelled]).astype(bool)
        similar = np.where(others, pool.vectors[query] @ pool.vectors[labelled].T, -np.inf)
        agrees = (targets[query] @ targets[labelled].T > 0) & others
        best = np.argsort(-similar, axis=1, kind="stable")[:, :count]
        there = np.take_along_axis(others, best, axis=1)
        right = np.take_along_axis(agrees, best, axis=1)
        has_others = there[:, 0]
        shares += (right.sum(axis=1)[has_others] / there.sum(axis=1)[has_others]).tolist()
        nearest += right[has_others, 0].tolist()
        chances += (agrees.sum(axis=1)[has_others] / others.sum(axis=1)[has_others]).tolist()
    if not shares:
        return None
    return Table(
        f"Labels of the neighbours, {len(shares):,} labelled samples asked in turn",
        ("", "same label"),
        [
            (f"of the {count} nearest", f"{np.mean(shares):.1%}"),
            ("of the nearest", f"{np.mean(nearest):.1%}"),
            ("of any others: chance", f"{np.mean(chances):.1%}"),
        ],
    )


def _draw(clip: Clip, neighbours: Sequence[tuple[Clip, float]], out: Path, *, frame_ms: int) -> "Card":
    """Write one query's PNG, GIF and WebP, it first, then its neighbours; return its card of the page."""
    from launch.report.page import Card
    from mae3d.io.contact_sheet import filmstrip, save_animation

    rows, panels = {f"query: {_caption(clip)}": clip.frames}, {"query": clip.frames}
    for rank, (other, similar) in enumerate(neighbours, start=1):
        rows[f"{rank}. {similar:.3f}  {_caption(other)}"] = other.frames
        panels[f"{rank}. {similar:.3f}"] = other.frames
    strip, animation = (f"{IMAGES}/{clip.stem}_neighbours.{kind}" for kind in ("png", "webp"))
    filmstrip(rows).save(out / strip)
    save_animation(panels, out / animation, frame_ms=frame_ms)
    shows = {animation: "as an animation: " + ", ".join(panels), strip: "rows: " + ", ".join(rows)}
    return Card(clip.title, " · ".join(clip.notes), shows)


def _caption(clip: Clip) -> str:
    return " · ".join([clip.title, *clip.notes])


def describe(pool: Pool) -> list[str]:
    """Return the paragraphs that say how to read the section."""
    return [
        "Each clip with the samples of the dataset whose features are most like its own: the encoder's last layer, "
        "nothing hidden, pooled over the clip. The number is the cosine of the two vectors, 1 where they point the "
        "same way; compare these numbers with one another, as the vectors of any two clips may be alike. Pieces of the "
        "clip's own video are left out.",
        f"Searched: {pool.origin}.",
    ]
