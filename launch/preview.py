"""The batches that a trainer would see ─► a PNG sheet and a GIF each, to look at the crops and the augmentation.

    mae3d preview OUT --config k400_vit_large --data.shards out/shards --data.rand_augment rand-m7-inc1

Of a recipe, and of the options of pretrain.py, it takes `data`, model.num_frames, model.img_size, model.in_chans and
train.seed; the rest changes no clip, and is named and left out. The batches come through the real Loader on the CPU
(rank 0 of 1), from the start of an epoch. Under the order `global` they begin with the trainer's own first samples and
views; under `shards` with those of a run of this --batch.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, parse, reporting
from launch.common.settings import settings_of
from launch.common.sole_writer import sole_writer
from launch.training.config import PretrainConfig
from mae3d.io.bounds import FILLED, bounded, check_bounds, seeded
from pipelines.config import DataConfig

if TYPE_CHECKING:
    from mae3d.io.contact_sheet import Strip
    from pipelines.samples.corpus import Corpus
    from pipelines.sampling.augment import View
    from pipelines.sampling.requests import BatchRequest
    from pipelines.stream import Batch

# Options that a recipe, and the command line of pretraining, have in another section.
FROM_RECIPE = {
    "num_frames": "model.num_frames",
    "size": "model.img_size",
    "channels": "model.in_chans",
    "seed": "train.seed",
}


@dataclass(frozen=True)
class PreviewConfig:
    """The batches that are shown.

    Attributes:
        out: folder for the pictures; as the first argument it needs no `--out`.
        data: the clips, as in pretraining.
        num_frames: T, frames of a clip.
        size: of a view, in pixels: a square's side, or height and width.
        channels: of a frame; null = as stored.
        batch: samples in a batch.
        seed: of the order, the windows and the views.
        epoch: the epoch from whose start batches are taken.
        batches: how many.
    """

    USUAL = (
        *("out", "data.shards", "num_frames", "size", "batch", "batches", "epoch"),
        *("data.area", "data.flip", "data.rand_augment"),
    )
    out: str = field(metadata=FILLED)
    data: DataConfig = field(default_factory=DataConfig)
    num_frames: int = bounded(16, least=1, most=1 << 20)
    size: int | tuple[int, int] = bounded(224, least=1, most=1 << 16)
    channels: int | None = bounded(None, least=1, most=1 << 10)
    batch: int = bounded(4, least=1, most=1 << 20)
    seed: int = seeded()
    epoch: int = bounded(0, least=0)
    batches: int = bounded(1, least=1, most=100_000)

    def __post_init__(self) -> None:
        check_bounds(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: usage or input, 3: I/O, 1: damaged shards."""
    config = _parse(sys.argv[1:] if argv is None else argv)
    with reporting(config.out), sole_writer(Path(config.out), job="a preview", what="preview"):
        for path in preview(config):
            print(path)
    return EXIT_DONE


def preview(config: PreviewConfig) -> list[Path]:
    """Write `epoch-E-batch-BBB.png` and `.gif` for each batch.

    Returns:
        The files written.

    Raises:
        ValueError: the settings or the dataset; the message says what to do.
        DataError: shards that cannot be read.
        OSError: a file that cannot be written.
    """
    from mae3d.io.contact_sheet import contact_sheet, png_mark, save_grid
    from mae3d.io.files import refuse_foreign
    from pipelines.loader import Loader
    from pipelines.samples.corpus import corpus_of

    data = config.data
    if not data.roots:
        raise ValueError("which shards? Give --data.shards, a folder made by `mae3d preprocess build`")
    stems = [Path(config.out) / f"epoch-{config.epoch}-batch-{number:03d}" for number in range(config.batches)]
    for stem in stems:
        refuse_foreign(stem.with_suffix(".png"))
        refuse_foreign(stem.with_suffix(".gif"))
    corpus = corpus_of(data)
    try:
        loader = Loader(
            corpus,
            data,
            num_frames=config.num_frames,
            size=config.size,
            channels=config.channels,
            seed=config.seed,
            global_batch=config.batch,
        )
    except ValueError as error:
        raise ValueError(str(error).replace("train.global_batch", "--batch")) from error
    loader.load_state_dict(loader.state_dict() | {"epoch": config.epoch})
    Path(config.out).mkdir(parents=True, exist_ok=True)
    written = []
    try:
        for stem in stems:
            strips = _strips(corpus, config, next(loader))
            contact_sheet(strips).save(stem.with_suffix(".png"), pnginfo=png_mark())
            save_grid(strips, stem.with_suffix(".gif"), columns=data.repeat_aug)
            written += [stem.with_suffix(".png"), stem.with_suffix(".gif")]
    finally:
        loader.close()
    return written


def _strips(corpus: "Corpus", config: PreviewConfig, batch: "Batch") -> "list[Strip]":
    """Return the views of a batch, sample by sample; their draws are repeated for the captions."""
    from mae3d.io.contact_sheet import Strip
    from pipelines.sampling.requests import training_request

    sound = batch.status.argmin(dim=1, keepdim=True)  # a view of the requested sample, if there is one
    request = training_request(
        corpus,
        config.data,
        rows=batch.rows.gather(1, sound)[:, 0].numpy(),
        positions=batch.positions.numpy(),
        epoch=batch.epoch,
        seed=config.seed,
        num_frames=config.num_frames,
        size=config.size,
    )
    strips = []
    for b, rows in enumerate(batch.rows.tolist()):
        for v, (row, (frames, view)) in enumerate(zip(rows, _views_of(request, b), strict=True)):
            title = f"{corpus.key(row)}  {corpus.name(row)}   position {int(batch.positions[b])}, view {v}"
            if batch.status[b, v]:
                # It stands for a damaged sample, of whose views these are.
                strips.append(Strip(title, "in place of a damaged sample", batch.clips[b, v].numpy()))
                continue
            size = f"{int(corpus.width[row])} x {int(corpus.height[row])}"
            details = f"frames {_in_words(frames)} of {int(corpus.num_frames[row])}; {_view_in_words(view, size)}"
            strips.append(Strip(title, details, batch.clips[b, v].numpy()))
    return strips


def _views_of(request: "BatchRequest", sample: int) -> list[tuple[list[int], "View"]]:
    clips_a_sample = len(request.clips) // len(request.positions)
    clips = request.clips[sample * clips_a_sample : (sample + 1) * clips_a_sample]
    return [(clip.frames.tolist(), view) for clip in clips for view in clip.views]


def _in_words(frames: list[int]) -> str:
    steps = {b - a for a, b in itertools.pairwise(frames)}
    if len(frames) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{frames[0]} ({len(frames)} times)" if step == 0 else f"{frames[0]}, {frames[1]} ... {frames[-1]}"
    return ", ".join(map(str, frames))


def _view_in_words(view: "View", frame_size: str) -> str:
    crop, erase = view.crop, view.erase
    words = [f"crop {crop.width} x {crop.height} at {crop.left}, {crop.top} of {frame_size}"]
    words += ["flipped"] if crop.flip else []
    for name, amount in view.ops:
        said = name.replace("_", " ")
        words.append(said if name in ("autocontrast", "equalize", "invert") else f"{said} {amount:.3g}")
    if erase:
        words.append(f"erased {erase.width} x {erase.height} at {erase.left}, {erase.top}")
    words += view.augment.hooks if view.augment else ()
    return "; ".join(words)


def _parse(argv: Sequence[str]) -> PreviewConfig:
    if argv and not argv[0].startswith("-"):
        argv = ["--out", *argv]
    argv, dropped = _of_preview(argv)
    if dropped:
        print(f"not of the pictures, so without effect here: {', '.join(dropped)}", file=sys.stderr)
    return parse(PreviewConfig, argv, prog="mae3d preview", description=str(__doc__), from_recipe=FROM_RECIPE)


def _of_preview(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a pasted command line of pretraining without what does not change a clip, and the names of that."""
    known, foreign = ({one.name for one in settings_of(kind)} for kind in (PreviewConfig, PretrainConfig))
    renamed = {key: option for option, key in FROM_RECIPE.items()}
    kept: list[str] = []
    dropped: list[str] = []
    keeps = True
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            keeps = name in renamed or name not in foreign or name in known
            if keeps and name in renamed:
                argument = f"--{renamed[name]}{equals}{value}"
            elif not keeps:
                dropped.append(f"--{name}")
        if keeps:
            kept.append(argument)
    return kept, dropped


if __name__ == "__main__":
    raise SystemExit(main())
