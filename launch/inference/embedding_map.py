"""A table of vectors ─► a picture of them in two dimensions, and their places as Parquet.

draw_map(Path("vectors.parquet"), Path("map.png"), label_names=corpus.label_names)     # and map_places.parquet
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from launch.common.tables import read_vectors
from launch.inference.sharded_table import stored_settings
from mae3d.io.files import refuse_foreign, replace_file, require_writable
from mae3d.tracking.plots import one_label, save_figure

MAX_POINTS = 10_000  # t-SNE takes a minute for so many
MIN_TSNE = 32  # points; of fewer there is no neighbourhood to speak of
PCA_WIDTH = 50  # what t-SNE gets, as its authors did (van der Maaten & Hinton 2008, section 4.2)
MAX_LEGEND = 20  # colours that the eye can distinguish
GREY = (0.75, 0.75, 0.75)


def draw_map(table: Path, picture: Path, *, label_names: Sequence[str] = (), seed: int = 0) -> Path:
    """Place vectors near those that they resemble, and draws them by label, by file, or of one file by time.

    Of more than `MAX_POINTS` rows, so many are taken at equal distances. Rows without a vector are left out, samples
    with several labels get their first one's colour.

    Args:
        table: of launch/inference/embeddings.py, pooled.
        picture: PNG to write; `places_of` it become a Parquet file: key, name, labels, start_s, x, y.
        label_names: by number; labels beyond them are shown as numbers.
        seed: of t-SNE.

    Raises:
        ValueError: there are fewer than two vectors.
        OSError: one of the files cannot be written.
    """
    vectors, rows = read_vectors(table, most=MAX_POINTS)
    if len(rows) < 2:
        raise ValueError(f"{table}: {len(rows)} vectors make no map")
    places, method = project(vectors, seed=seed)
    samples = pq.read_table(table, columns=["key", "name", "labels", "start_s"]).take(pa.array(rows))
    samples = samples.append_column("x", pa.array(places[:, 0])).append_column("y", pa.array(places[:, 1]))
    with replace_file(places_of(picture)) as aside:
        pq.write_table(samples, aside)
    save_figure(_draw(places, samples, label_names, title=f"{len(places):,} vectors, {method}"), picture, dpi=150)
    return picture


def places_of(picture: Path) -> Path:
    """Return map_places.parquet for map.png: never the table itself, which may be called map.parquet."""
    return picture.with_name(f"{picture.stem}_places.parquet")


def prepare_map(picture: Path, *, table: Path) -> None:
    """Make the folder of a map, before its vectors are computed.

    Args:
        picture: the PNG that `draw_map` will write.
        table: of the vectors, which the places must not replace.

    Raises:
        ValueError: this program has not made the picture that is there, or the places beside it.
        OSError: the folder cannot be written.
    """
    refuse_foreign(picture)
    if places_of(picture).resolve() == table.resolve():
        raise ValueError(f"{picture}: its places would be written to {table}, which is --out: give another --map")
    if places_of(picture).exists():
        stored_settings(places_of(picture))
    picture.resolve().parent.mkdir(parents=True, exist_ok=True)
    require_writable(picture.resolve().parent)


def project(vectors: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, str]:
    """Return (n, 2) float32 and the method: t-SNE of the principal components; of few vectors the first two alone."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n = len(vectors)
    components = PCA(min(PCA_WIDTH, *vectors.shape), svd_solver="full").fit(vectors)
    reduced = components.transform(vectors)
    if n < MIN_TSNE:
        share = components.explained_variance_ratio_[:2].sum()
        flat = np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
        return flat.astype(np.float32), f"PCA: {share:.0%} of the variance"
    perplexity = min(30.0, (n - 1) / 3)
    places = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(reduced)
    return places.astype(np.float32), f"t-SNE (perplexity {perplexity:.0f}) of {reduced.shape[1]} principal components"


def _draw(places: np.ndarray, samples: pa.Table, label_names: Sequence[str], *, title: str) -> Any:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    x, y = places[:, 0], places[:, 1]
    size = float(np.clip(6000 / len(places), 4, 40))
    names = _groups(samples, label_names)
    kinds = list(dict.fromkeys(sorted(set(names) - {""}, key=_natural)))
    times = samples["start_s"].to_numpy()
    if not kinds and len(set(samples["name"].to_pylist())) == 1 and len(np.unique(times)) > 1:
        in_time = np.argsort(times)
        axes.plot(x[in_time], y[in_time], color=GREY, linewidth=0.6, zorder=1)
        points = axes.scatter(x, y, c=times, s=size, cmap="viridis", zorder=2)
        figure.colorbar(points, label="seconds", shrink=0.6)
        return figure
    colours = colormaps["tab10" if len(kinds) <= 10 else "tab20" if len(kinds) <= MAX_LEGEND else "nipy_spectral"]
    of_names = np.array(names)
    without = of_names == ""
    if without.any():
        axes.scatter(x[without], y[without], color=[GREY], s=size, label="no label" if kinds else None)
    for number, kind in enumerate(kinds):
        colour = colours(number if len(kinds) <= MAX_LEGEND else number / len(kinds))
        mine = of_names == kind
        axes.scatter(x[mine], y[mine], color=[colour], s=size, label=one_label(kind), linewidths=0)
    if 1 <= len(kinds) <= MAX_LEGEND:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _groups(samples: pa.Table, label_names: Sequence[str]) -> list[str]:
    """Return the group that colours each point: its first label; its file if no row has a label and there are files."""
    labels = [numbers[0] if numbers else None for numbers in samples["labels"].to_pylist()]
    if any(label is not None for label in labels):
        known = len(label_names)
        return ["" if one is None else label_names[one] if one < known else str(one) for one in labels]
    names = [str(name) for name in samples["name"].to_pylist()]
    has_groups = 1 < len(set(names)) < len(names)
    return [Path(name).name for name in names] if has_groups else [""] * len(names)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (-1, name)
