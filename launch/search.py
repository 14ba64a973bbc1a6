"""A moment of a video and an embedded archive ─► the nearest moments, as a page of clips with links to file and second.

mae3d search --embeddings seconds.parquet --video match.mp4 --at 73 --out found
mae3d search --embeddings seconds.parquet --video new.mp4 --at 5 --run RUN --other_files true --out found
mae3d search --embeddings vectors.parquet --key 000017 --data.shards OUT --out found
mae3d search --embeddings seconds.parquet --recall 100

The table is one of launch/embed.py. From a million moments on an index is made beside it, once.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, parse, reporting, set_threads
from launch.common.clip_options import ClipsConfig, clips_config
from launch.common.sole_writer import sole_writer
from mae3d.io.bounds import FILLED, bounded, check_bounds

if TYPE_CHECKING:
    import numpy as np

    from launch.inference.moments import Archive, Query, Search
    from launch.report.moments_page import Moment
    from pipelines.config import DataConfig
    from pipelines.samples.corpus import Corpus


@dataclass(frozen=True)
class SearchConfig:
    """Search an embedded archive for moments like one.

    Attributes:
        embeddings: A table of launch/embed.py, with --pool mean or cls.
        out: Folder for search.html and results.csv.
        video: The file of the query; with --at.
        at: The second of the query, which lies in the middle of its clip.
        key: A row of the table as the query instead.
        run: The model that made the table; needed if the query is no row of it.
        count: Results, at most.
        apart: Seconds between the beginnings of two results of one file, at least; null is the length of a clip.
        other_files: Whether results of the query's own file are left out.
        root: Folder below which the files of the table's names lie, if they are not as they were given to embed.py.
        data: The shards of the table, to show their clips; of a table of video files the files are read.
        exact: Whether every vector is compared, of large tables too.
        index_from: Moments from which on an index is used: `TABLE.<hash>.usearch`, made beside the table.
        recall: Measure the index with so many random rows as queries, instead of a search: recall@10 and milliseconds.
        device: Where the query is embedded: `auto`, `cuda` or `cpu`.
    """

    USUAL = ("embeddings", "out", "video", "at", "key", "run", "count", "apart", "other_files", "data.shards", "recall")
    embeddings: str = field(metadata=FILLED)
    out: str = ""
    video: str = ""
    at: float | None = bounded(None, least=0)
    key: str = ""
    run: str = ""
    count: int = bounded(20, least=1, most=1000)
    apart: float | None = bounded(None, least=0)
    other_files: bool = False
    root: str = ""
    data: ClipsConfig = field(default_factory=ClipsConfig)
    exact: bool = False
    index_from: int = bounded(1_000_000, least=1)
    recall: int = bounded(0, least=0)
    device: str = "auto"

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.recall:
            return
        if not self.out:
            raise ValueError("--out is missing: give the folder for the page")
        if bool(self.video) == bool(self.key) or bool(self.video) != (self.at is not None):
            raise ValueError("give either --video FILE --at SECONDS, or --key KEY")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: usage or input, 3: I/O."""
    config = parse(SearchConfig, sys.argv[1:] if argv is None else argv, prog="mae3d search", description=str(__doc__))
    set_threads()
    with reporting(config.embeddings):
        if config.recall:
            measure(config)
        else:
            with sole_writer(Path(config.out), job="a search", what="search"):
                print(f"page: {search(config)}")
    return EXIT_DONE


def measure(config: SearchConfig) -> None:
    """Print recall@10 of the index, and milliseconds per query of both ways."""
    from launch.common.tables import aligned
    from launch.inference.moments import open_archive
    from launch.inference.vector_index import measure_recall, open_index

    archive = open_archive(Path(config.embeddings))
    scores = measure_recall(archive, open_index(archive), queries=config.recall)
    print(*aligned({name: [value] for name, value in scores.items()}), sep="\n")


def search(config: SearchConfig) -> Path:
    """Search, and write the page and the table.

    Returns:
        The page's path.

    Raises:
        ValueError: A setting, the table, the model or the query is wrong; the message gives the remedy.
        OSError: A file cannot be read or written.
    """
    import numpy as np

    from launch.inference.moments import nearest_moments, open_archive
    from launch.report.moments_page import refuse_other_results, write_page

    out = Path(config.out)
    refuse_other_results(out)
    archive = open_archive(Path(config.embeddings))
    data = clips_config(_as_shards(config), archive.settings["data"] | {"sampling": "strided"})
    length_s = archive.settings["num_frames"] * data.sampling_rate / data.target_fps
    query = _query(config, archive, data)
    index = _index(config, archive)
    rows, similar = nearest_moments(
        archive,
        query,
        count=config.count,
        apart_s=length_s if config.apart is None else config.apart,
        other_files=config.other_files,
        search=index,
    )
    if not rows:
        raise ValueError(f"{archive.path}: no other moment is left to be compared; give a smaller --apart")
    shown, *results = _show(config, archive, data, query, rows, similar)
    unseen = [one for one in results if one.frames is None]
    for one in unseen:
        print(f"not shown: {one.name}, {one.span}: {one.why}", file=sys.stderr)
    intro = [
        f"The {len(results)} moments of {archive.path.name} whose vectors are most like the query's: the number is the "
        "cosine, 1 where they point the same way. A name opens the file at the second; the line below it plays it.",
        *([f"{len(unseen)} of them cannot be shown."] if unseen else []),
    ]
    every = archive.settings.get("every_s", 0)
    facts = {
        "searched": f"{len(archive):,} moments" + (f", one every {every:g} s" if every else ""),
        "compared": "all of them" if index is None else "the index's candidates, by their stored vectors",
        "query's vector": "the table's" if query.row is not None else f"embedded here by {config.run}",
        "left out": "moments that overlap the query"
        + (", its whole file" if config.other_files else "")
        + f", and moments less than {length_s if config.apart is None else config.apart:.3g} s from a better one",
        "features": f"layer {archive.settings['layer']}, {archive.settings['pool']}, {archive.width} wide",
        "clip": f"{archive.settings['num_frames']} frames, {length_s:.3g} s",
    }
    without = np.isnan(archive.start_s).sum()
    if without:
        facts["time unknown"] = f"{without:,} moments"
    return write_page(out, query=shown, results=results, intro=intro, facts=facts)


def _as_shards(config: SearchConfig) -> ClipsConfig:
    """Return the options of the clips; without shards the sampling alone is used, and no folder is opened."""
    import dataclasses

    return config.data if config.data.shards else dataclasses.replace(config.data, shards=config.embeddings)


def _index(config: SearchConfig, archive: "Archive") -> "Search | None":
    if config.exact or len(archive) < config.index_from:
        return None
    from launch.inference.vector_index import open_index

    return open_index(archive)


def _query(config: SearchConfig, archive: "Archive", data: "DataConfig") -> "Query":
    """Return the query: a row of the table, or a clip that the table's model embeds here."""
    from launch.inference.moments import query_of_key, stored_query

    if config.key:
        return query_of_key(archive, config.key)
    assert config.at is not None
    stored = stored_query(archive, video=config.video, at_s=config.at, root=config.root)
    if stored is not None:
        return stored
    if not config.run:
        raise ValueError(
            f"{config.video}, second {config.at:g}: no row of {archive.path} holds it: give --run, the model that made "
            "the table, and it is embedded here"
        )
    return _embedded_query(config, archive, data, at_s=config.at)


def _embedded_query(config: SearchConfig, archive: "Archive", data: "DataConfig", *, at_s: float) -> "Query":
    """Embed a moment of a video file as the table's rows were; ValueError if the model is another one."""
    import torch

    from launch.inference.embeddings import Embedder
    from launch.inference.moments import Query, file_in_archive
    from mae3d.distributed import choose_device
    from mae3d.video.windows import VideoClips, window_around
    from mae3d.weights.files import content_hash, find_model_file, open_encoder

    settings, file = archive.settings, find_model_file(config.run)
    if (sha256 := content_hash(file)) != settings["model"]:
        raise ValueError(
            f"--run {config.run}: {file.name} has the sha256 {sha256[:12]}, {archive.path} was made by "
            f"{settings['model'][:12]}: give that model, or embed the archive again"
        )
    if settings["data"].get("sampling", "strided") != "strided":
        raise ValueError(f"{archive.path}: its clips are not strided, as those of a moment are: give --key")
    device = choose_device(config.device, local_rank=0)
    embedder = Embedder(
        open_encoder(file), device, layer=settings["layer"], pool=settings["pool"], precision=settings["precision"]
    )
    step_s = data.sampling_rate / data.target_fps
    window = window_around(config.video, at_s, num_frames=settings["num_frames"], step_s=step_s)
    model_config = embedder.config
    clips = VideoClips([window], size=model_config.img_size, channels=model_config.in_chans, batch_size=1)
    try:
        batch = next(clips)
    finally:
        clips.close()
    if batch.status[0]:
        raise ValueError(f"{config.video}, second {at_s:g}: none of the clip's frames can be decoded")
    vector = embedder(torch.from_numpy(batch.clips)).flatten().to_numpy()
    start_s, end_s = float(window.start_s or 0), float(window.end_s or 0)
    return Query(vector, config.video, file_in_archive(archive, config.video, config.root), start_s, end_s)


def _show(
    config: SearchConfig,
    archive: "Archive",
    data: "DataConfig",
    query: "Query",
    rows: Sequence[int],
    similar: Sequence[float],
) -> "list[Moment]":
    """Return the query and the results with their pictures, files and labels."""
    from launch.inference.moments import places_of
    from launch.report.clips import label_words
    from launch.report.moments_page import Moment
    from pipelines.samples.corpus import corpus_of

    corpus = corpus_of(data) if config.data.shards else None
    places = [query.row, *rows]
    stored = {} if corpus is None else _stored_frames(archive, data, corpus, [row for row in places if row is not None])
    moments = []
    for row, similarity in zip(places, [None, *similar], strict=True):
        if row is None:
            name, key, start_s, end_s = query.title, "", query.start_s, query.end_s
            file: Path | None = Path(config.video)
        else:
            name, key = archive.name(row), archive.key(row)
            start_s, end_s = float(archive.start_s[row]), float(archive.end_s[row])
            file = next((path for path in places_of(name, config.root) if path.exists()), None)
        frames, why = stored.get(row if row is not None else -1), "its clip in the shards is damaged"
        if frames is None and (row is None or corpus is None):
            frames, why = _file_frames(archive, data, file, (start_s + end_s) / 2)
        labels = label_words(corpus, corpus.find(key)) if corpus is not None and key else ""
        moments.append(Moment(name, key, start_s, end_s, frames, why, file, similarity, labels))
    return moments


def _file_frames(
    archive: "Archive", data: "DataConfig", file: Path | None, middle_s: float
) -> "tuple[np.ndarray | None, str]":
    """Return the frames of a moment of a video file, or None and the reason."""
    import math

    from launch.report.moments_page import SIDE
    from mae3d.video.clip import VideoError
    from mae3d.video.windows import VideoClips, window_around

    if file is None or not file.is_file():
        return None, "no such file here: give --root, or --data.shards of a table of shards"
    if math.isnan(middle_s):
        return None, "its time in the file is unknown"
    try:
        step_s = data.sampling_rate / data.target_fps
        window = window_around(str(file), middle_s, num_frames=archive.settings["num_frames"], step_s=step_s)
    except (VideoError, OSError) as error:
        return None, str(error)
    clips = VideoClips([window], size=SIDE, batch_size=1)
    try:
        batch = next(clips)
    finally:
        clips.close()
    return (batch.clips[0, 0], "") if not batch.status[0] else (None, "none of its frames can be decoded")


def _stored_frames(
    archive: "Archive", data: "DataConfig", corpus: "Corpus", rows: Sequence[int]
) -> "dict[int, np.ndarray]":
    """Return the frames of rows of shards, by row; damaged ones are missing."""
    import numpy as np

    from launch.report.moments_page import SIDE
    from pipelines.stream import evaluation_clips

    starts = archive.first_frame[list(rows)] if archive.settings.get("every_s") else None
    samples = np.array([corpus.find(archive.key(row)) for row in rows], dtype=np.int64)
    stream = evaluation_clips(
        corpus,
        data,
        rows=samples,
        starts=starts,
        num_frames=archive.settings["num_frames"],
        size=SIDE,
        batch_size=4,
    )
    frames: dict[int, np.ndarray | None] = {}
    for batch in stream:
        for pixels, is_whole in zip(batch.clips[:, 0].numpy(), batch.is_whole.tolist(), strict=True):
            row = rows[len(frames)]
            frames[row] = pixels if is_whole else None
    stream.close()
    return {row: pixels for row, pixels in frames.items() if pixels is not None}


if __name__ == "__main__":
    raise SystemExit(main())
