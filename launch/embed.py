"""A trained model and clips ─► vectors: a Parquet table, one row per sample or per so many seconds, and a map.

mae3d embed --run RUN --data.shards OUT --out vectors.parquet --map map.png
mae3d launch -n 8 embed --run RUN --data.shards OUT --out vectors.parquet --num_clips 4
mae3d embed --run RUN --videos match.mp4 training.mp4 --every 2 --out seconds.parquet
mae3d embed --encoder timm:vit_small_patch14_dinov2 --encoder_weights FILE --data.shards OUT --out i.parquet

Killed and started again, on any number of ranks, it goes on where it was, and ends with the same table.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, EXIT_ERROR, WAIT_MINUTES, joined, parse, set_threads
from launch.common.clip_options import ClipsConfig, clips_config
from launch.common.encoders import EncoderChoice, open_frozen
from launch.common.sole_writer import sole_writer
from mae3d.io.bounds import FILLED, bounded
from mae3d.io.hooks import hooked
from mae3d.io.resume import free

if TYPE_CHECKING:
    from launch.inference.embeddings import Embedder
    from launch.inference.heads import Head
    from mae3d.distributed import World

SHORTEST_S = 1e-3  # between clips: no footage has more frames a second
SHOWN = 20  # unreadable files that are listed


@dataclass(frozen=True)
class EmbedConfig(EncoderChoice):
    """Embed clips with a frozen model.

    Attributes:
        out: The table: a Parquet file. Columns: key, name, labels, first_frame, start_s, end_s, vector.
        data: The clips of shards.
        videos: Video files instead of shards, `--videos a.mp4 b.mp4`; of data, sampling_rate and target_fps hold.
        layer: Number of blocks that are run; 0 is the patch embedding, -1 the last block. The encoder's norm is applied
            to the last one alone.
        pool: `mean` over the patches' tokens, `cls`, the class token, or `tokens`, all of them (in one list, by time,
            row and column; the metadata has the grid).
        num_clips: Clips of each sample, spread evenly from its beginning to its end, whose vectors are averaged.
        every: Seconds between the clips of a sample or file, which then have one row each: one clip begins at each
            multiple, as long as it ends within. A sample shorter than a clip has one row, in which it begins again.
        head: A head of yours, `module:name`, whose columns join the table (docs/hooks.md).
        map: Draw the vectors in two dimensions (PCA, then t-SNE from 32 on) to this PNG, by label, file or time; the
            coordinates are written beside it, `map.png` to `map_places.parquet`.
        batch: Rows at a time.
        precision: `fp32`, or `bf16`: faster on a GPU, vectors agree to two digits.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    USUAL = ("run", "encoder", "data.shards", "videos", "out", "every", "pool", "num_clips", "map", "batch", "device")
    out: str = field(metadata=FILLED)
    data: ClipsConfig = field(default_factory=ClipsConfig)
    videos: tuple[str, ...] = ()
    layer: int = -1
    pool: Literal["mean", "cls", "tokens"] = "mean"
    num_clips: int = bounded(1, least=1, most=1 << 16)
    every: float = bounded(0, least=0)
    head: str = hooked("heads", "")
    map: str = ""
    batch: int = bounded(8, least=1, most=1 << 30)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = free("auto", local=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.every < SHORTEST_S:
            raise ValueError(f"every={self.every:g} must be 0 or at least {SHORTEST_S:g} seconds")
        if bool(self.videos) == bool(self.data.shards):
            raise ValueError("give either --data.shards or --videos")
        if self.every and self.num_clips > 1:
            raise ValueError(f"--num_clips {self.num_clips}: with --every each clip has a row of its own")
        if self.map and self.pool == "tokens":
            raise ValueError("--map shows one point a vector: give --pool mean or cls")
        if self.map and Path(self.map).resolve() == Path(self.out).resolve():
            raise ValueError(f"--map {self.map}: is --out as well; give the picture a name of its own")
        if self.videos and len(set(self.videos)) < len(self.videos):
            raise ValueError("--videos: a file is given twice")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 if a video cannot be read; SystemExit 2: usage, 3: I/O."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(EmbedConfig, arguments, prog="mae3d embed", description=str(__doc__))
    set_threads()
    out = Path(config.out).resolve()
    with (
        joined(config, where=config.out, timeout_minutes=WAIT_MINUTES) as world,
        sole_writer(out.parent, world, job="embedding", what=out.name),
    ):
        unreadable = embed(config, world)
        if world.is_first:
            _report(config, unreadable)
        return EXIT_ERROR if unreadable else EXIT_DONE


def embed(config: EmbedConfig, world: "World") -> dict[str, str]:
    """Make the table and the map; all ranks call it.

    Returns:
        Video files that cannot be read, with the error; their rows have no vector.

    Raises:
        ValueError: A setting, the model or the dataset is wrong; the message gives the remedy.
        OSError: The table cannot be written.
    """
    from launch.inference.embedding_map import prepare_map
    from launch.inference.embeddings import Embedder
    from launch.inference.heads import open_head

    frozen = open_frozen(config, world)
    embedder = Embedder(
        frozen.encoder,
        world.device,
        layer=config.layer,
        pool=config.pool,
        num_clips=config.num_clips,
        precision=config.precision,
    )
    head = open_head(config.head, frozen.encoder, world.device, layer=config.layer, precision=config.precision)
    if config.map:
        world.on_first(lambda: prepare_map(Path(config.map), table=Path(config.out)))
    make = _embed_videos if config.videos else _embed_shards
    return make(config, embedder, head, frozen.trained, model_sha256=frozen.identity, world=world)


def _embed_shards(
    config: EmbedConfig,
    embedder: "Embedder",
    head: "Head | None",
    stored: dict[str, Any],
    *,
    model_sha256: str,
    world: "World",
) -> dict[str, str]:
    from launch.inference.embeddings import embed_samples
    from launch.inference.evaluate import open_samples

    samples = open_samples(config.data, stored, embedder.config, world)
    _check_map(config, len(samples.rows))
    embed_samples(
        Path(config.out),
        embedder,
        samples,
        model_sha256=model_sha256,
        world=world,
        every_s=config.every,
        batch_size=config.batch,
        head=head,
    )
    if config.map and world.is_first:
        _draw_map(config, samples.corpus.label_names)
    return {}


def _embed_videos(
    config: EmbedConfig,
    embedder: "Embedder",
    head: "Head | None",
    stored: dict[str, Any],
    *,
    model_sha256: str,
    world: "World",
) -> dict[str, str]:
    from launch.inference.embeddings import embed_videos, files_hash
    from mae3d.io.progress import followed
    from mae3d.video.windows import plan_windows

    videos = config.videos
    # the settings for shards give the sampling alone; windows of a video have no segments
    as_shards = dataclasses.replace(config.data, shards=videos, sampling=None)
    clips = clips_config(as_shards, stored | {"sampling": "strided"})
    plan = world.on_first(
        lambda: plan_windows(
            followed(videos, "file", doing="frame times"),
            num_frames=embedder.config.num_frames,
            step_s=clips.sampling_rate / clips.target_fps,
            every_s=config.every,
            num_clips=config.num_clips,
        )
    )
    _check_map(config, len(plan.windows))
    settings = {
        "videos": world.on_first(lambda: files_hash(videos)),
        "data": {"sampling_rate": clips.sampling_rate, "target_fps": clips.target_fps},
        "every_s": config.every,
    }
    embed_videos(
        Path(config.out),
        embedder,
        plan,
        settings=settings,
        model_sha256=model_sha256,
        world=world,
        batch_size=config.batch,
        head=head,
    )
    if config.map and world.is_first:
        _draw_map(config, [])
    unreadable: dict[str, str] = plan.unreadable
    return unreadable


def _check_map(config: EmbedConfig, rows: int) -> None:
    """Refuse a map of one vector; a sample may have several with --every."""
    if config.map and rows < 2 and not (config.every and config.data.shards):
        raise ValueError(f"--map {config.map}: one vector makes no map; give more samples, or --every SECONDS")


def _draw_map(config: EmbedConfig, label_names: Sequence[str]) -> None:
    from launch.inference.embedding_map import draw_map

    print(f"map: {draw_map(Path(config.out), Path(config.map), label_names=label_names)}")


def _report(config: EmbedConfig, unreadable: dict[str, str]) -> None:
    import pyarrow.parquet as pq

    from launch.inference.embeddings import count_failed, count_replaced

    rows, failed = pq.read_metadata(config.out).num_rows, count_failed(Path(config.out))
    if config.videos and (replaced := count_replaced(Path(config.out))):
        print(f"{replaced:,} damaged frames: the nearest one of the clip stands in for each (column replaced_frames)")
    print(f"{config.out}: {rows:,} rows" + (f", {failed:,} of them without a vector: not readable" if failed else ""))
    for message in list(unreadable.values())[:SHOWN]:
        print(f"error: {message}", file=sys.stderr)
    if len(unreadable) > SHOWN:
        print(f"… and {len(unreadable) - SHOWN:,} files more", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
