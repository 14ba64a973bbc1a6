"""A trained model and clips ─► one page with its reconstructions, its attention and the nearest neighbours.

mae3d visualize --run out/demo/run --data.shards out/demo/shards --out out/demo/report
mae3d visualize --run runs/a --data.shards OUT --out DIR --mask all --mask_ratio 0.5 --keys 000017 000042
mae3d visualize --run runs/a --videos talk.mp4 --out DIR --show attention --layer 6 --head all --query 4,3,3
mae3d visualize --run runs/a --data.shards OUT --out DIR --show neighbours --neighbours 8
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import parse, reporting
from launch.common.clip_options import ClipsConfig, clips_config, run_of, trained_data
from launch.common.eval_set import draw_rows, selected_rows
from launch.common.sole_writer import sole_writer
from launch.report.attention import AttentionQuery, attention_section, check_query, default_query
from launch.report.clips import IMAGES, Clip, read_clips, read_videos, require_room
from launch.report.neighbours import Pool, neighbour_section, open_pool, pool_of_dataset
from launch.report.reconstruction import mask_facts, reconstruction_section
from mae3d.io.bounds import FILLED, bounded, check_bounds, seeded
from mae3d.io.hooks import canonical_hooks, hooked, nearest
from mae3d.io.random import Stream
from mae3d.io.shapes import size_text
from mae3d.model.config import MaskType
from pipelines.config import DataConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

    from launch.report.page import Section
    from mae3d.model.classifier import Classifier
    from mae3d.model.mae import MAE
    from pipelines.samples.corpus import Corpus

SECTIONS = ("reconstruction", "attention", "neighbours")


@dataclass(frozen=True)
class VisualizeConfig:
    """Show what a model has learned to see: a page to mail, and its pictures as files (PNG, GIF, WebP) for slides.

    Attributes:
        run: A run of pretraining or finetuning, a checkpoint's or exported folder, a model file, a foreign checkpoint, hf://ORG/NAME.
        data: The clips.
        out: Folder for the page and its images.
        show: What is shown: `--show reconstruction attention neighbours`. Default: reconstruction for an autoencoder,
            attention for a classifier.
        samples: How many samples, chosen by the seed.
        keys: Show these samples instead: `--keys 000017 000042`.
        videos: Show these video files instead: `--videos a.mp4 b.mp4`; their middle.
        mask: What is hidden: one or several of random, tube, frame, block, prospective, retrospective, interpolation
            (docs/masks.md), masks of yours, `module:name` (docs/hooks.md), or `all`, one under the other. Default: the
            model's.
        mask_ratio: Share of the tokens that is hidden; null takes the model's.
        layer: Whose attention: the block, 1 to the last, or -1, the last, and so on from the end.
        head: A head's number from 0, `mean` of all heads, or `all` of them beside one another.
        query: Who attends: the class token (cls), all patches on average (mean), or one patch, `T,Y,X`: its time slot,
            row and column, counted from 0. Default: what a classifier pools; else the patch in the middle.
        rollout: Show attention rolled out over all blocks instead of one block's.
        neighbours: How many nearest neighbours of each clip.
        pool: Most samples that neighbours are searched among, chosen by the seed and embedded first.
        embeddings: A table of launch/embed.py to search instead, of the same dataset and one vector a sample.
        seed: Of the masks and of the choice.
        frame_ms: How long a GIF shows a frame, milliseconds.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    USUAL = ("run", "data.shards", "videos", "out", "show", "samples", "keys", "mask", "mask_ratio", "layer", "device")
    run: str = field(metadata=FILLED)
    data: ClipsConfig
    out: str = field(metadata=FILLED)
    show: tuple[str, ...] = ()
    samples: int = bounded(8, least=1, most=10_000)
    keys: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    mask: tuple[str, ...] = hooked("masks", (), known=("all", *get_args(MaskType)))
    mask_ratio: float | None = bounded(None, least=0, below=1)
    layer: int = -1
    head: str = "mean"
    query: str | None = None
    rollout: bool = False
    neighbours: int = bounded(5, least=1, most=10_000)
    pool: int = bounded(1000, least=1)
    embeddings: str = ""
    seed: int = seeded()
    frame_ms: int = bounded(160, least=1, most=600_000)
    device: str = "auto"

    def __post_init__(self) -> None:
        check_bounds(self)
        canonical_hooks(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: usage or input, 3: I/O, 1: damaged shards."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(VisualizeConfig, arguments, prog="mae3d visualize", description=str(__doc__))
    with reporting(config.out), sole_writer(Path(config.out), job="a report", what="report"):
        page, summary = visualize(config)
    print(f"pictures: {page.parent / IMAGES}")
    size = f"{page.stat().st_size / 1e6:.1f} MB, everything in one file"
    print(f"report: {page} ({size})" + (f": {summary}" if summary else ""))
    return 0


def visualize(config: VisualizeConfig) -> tuple[Path, str]:
    """Write the pictures and the page.

    Returns:
        The page's path, and its main figures in a sentence; "" if there are none.

    Raises:
        ValueError: A setting, the model or the dataset is wrong; the message gives the remedy.
        OSError: A picture cannot be written.
    """
    from launch.report.page import progress_section, read_losses, write_report
    from mae3d.distributed import choose_device
    from mae3d.video.clip import check_video_channels
    from mae3d.weights.files import find_model_file, open_model
    from pipelines.decoding.channels import check_channels
    from pipelines.samples.corpus import corpus_of
    from pipelines.samples.selection import describe_flagged

    device = choose_device(config.device, local_rank=0)
    file = find_model_file(config.run)
    run = run_of(file)
    model = open_model(file)
    show = _check(config, model)
    # videos use the rates alone of the settings for shards
    options = config.data if config.data.shards else replace(config.data, shards=config.videos)
    data = clips_config(options, trained_data(file))
    corpus = corpus_of(data) if config.data.shards else None
    if corpus is not None:
        check_channels(corpus, model.config.in_chans)
    if config.videos:
        check_video_channels(model.config.in_chans)
    rows = _choose(corpus, config, data, num_frames=model.config.num_frames) if corpus and not config.videos else None
    flagged = [text] if corpus and (text := describe_flagged(corpus, data.select)) else []
    for bad in [*corpus.left_out, *flagged] if corpus else ():
        print(f"left out: {bad}", file=sys.stderr)
    require_room(model.config, clips=len(config.videos) if rows is None else len(rows))
    pool = None
    if "neighbours" in show and corpus is not None:
        searched = selected_rows(corpus, data, num_frames=model.config.num_frames)
        searched = draw_rows(searched, config.pool, seed=config.seed, stream=Stream.POOL)
        pool = open_pool(config.embeddings, corpus, searched, queries=rows, width=model.config.embed_dim)
    out = Path(config.out)
    _claim_folder(out)
    if corpus is not None and rows is not None:
        clips = read_clips(corpus, data, rows, model.config, device=device)
        if not clips:
            raise ValueError(f"{corpus}: every chosen sample is damaged; {corpus.repair}")
    else:
        clips = read_videos(config.videos, model.config, data)
    facts = facts_of(model, file, run, data) | ({"dataset": f"{len(corpus):,} samples"} if corpus else {})
    sections, more = _sections(config, show, model.to(device), clips, corpus, data, pool, out, device=device)
    intro = [f"{len(clips)} clips, and what the model makes of them. {_KINDS[type(model).__name__]}"]
    if rows is not None and len(rows) > len(clips):
        intro.append(f"{len(rows) - len(clips)} of the chosen samples could not be read and are left out.")
    title = f"{', '.join(section.title for section in sections).capitalize()}: {run.name if run else file.name}"
    losses = read_losses(run) if run else []
    if run and (progress := progress_section(run)):
        sections.append(progress)
    page = write_report(out, title=title, intro=intro, facts=facts | more, sections=sections, losses=losses)
    return page, "; ".join(section.summary for section in sections if section.summary)


def _claim_folder(out: Path) -> None:
    """Make the folder with a page that stands until the report does; ValueError if a file there is not ours.

    The page comes first because it marks the pictures beside it as this program's.
    """
    from launch.report.page import PAGE
    from mae3d.io.files import write_text
    from mae3d.io.html import page, paragraph, refuse_other_page

    refuse_other_page(out / PAGE)
    if not (out / PAGE).exists():
        if (out / IMAGES).exists() and any((out / IMAGES).iterdir()):
            raise ValueError(
                f"{out / IMAGES}: holds files, and no {PAGE} is beside it: give another --out, or move them"
            )
        (out / IMAGES).mkdir(parents=True, exist_ok=True)
        write_text(out / PAGE, page("Unfinished", [paragraph("The report is not finished.")]))
    (out / IMAGES).mkdir(exist_ok=True)


_KINDS = {
    "MAE": "It is a masked autoencoder: it has learned from videos without labels, by filling in patches of clips that "
    "were hidden from it. A patch is a small square of a few frames, a token.",
    "Classifier": "It is a classifier of clips: an encoder that cuts a clip into patches, small squares of a few "
    "frames, and relates each to all others, and a head that names a class.",
}


def _check(config: VisualizeConfig, model: "MAE | Classifier") -> list[str]:
    """Return the sections to show; raise ValueError for settings that do not fit the model or one another."""
    from mae3d.model.mae import MAE
    from mae3d.model.masking import other_masks

    default = "reconstruction" if isinstance(model, MAE) else "attention"
    show = [name for name in SECTIONS if name in (config.show or [default])]
    for name in config.show:
        if name not in SECTIONS:
            raise ValueError(f"--show {name}: {nearest(name, list(SECTIONS))}")
    if not show:
        raise ValueError(f"--show: give one or more of {', '.join(SECTIONS)}")
    if "reconstruction" in show:
        if not isinstance(model, MAE):
            raise ValueError(f"{config.run}: a classifier fills nothing in; leave reconstruction out of --show")
        other_masks(model.config, config.mask, ratio=config.mask_ratio)
    if "attention" in show:
        if getattr(model.config, "backbone", ""):
            raise ValueError(f"{config.run}: attention is shown of video encoders alone; give --show neighbours")
        check_query(model.config, _attention_query(config), config.query or default_query(model))
    if "neighbours" in show and not config.data.shards:
        raise ValueError("--show neighbours: --data.shards is missing: give the dataset to search")
    if config.videos and config.keys:
        raise ValueError("--videos and --keys: give one of them, or a page for each")
    for name in ("samples", "neighbours", "pool", "frame_ms"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name} {getattr(config, name)}: give 1 or more")
    return show


def _attention_query(config: VisualizeConfig) -> AttentionQuery:
    return AttentionQuery(config.layer, config.head, config.query, config.rollout)


def _sections(
    config: VisualizeConfig,
    show: Sequence[str],
    model: "MAE | Classifier",
    clips: Sequence[Clip],
    corpus: "Corpus | None",
    data: DataConfig,
    pool: "Pool | np.ndarray | None",
    out: Path,
    *,
    device: "torch.device",
) -> tuple[list["Section"], dict[str, str]]:
    """Return the sections in order, and further entries of the page's list of facts."""
    from mae3d.model.mae import MAE
    from mae3d.model.masking import other_masks

    sections, facts = [], {}
    if "reconstruction" in show and isinstance(model, MAE):
        masks, unfit = other_masks(model.config, config.mask, ratio=config.mask_ratio)
        for problem in unfit:
            print(f"left out: {problem}", file=sys.stderr)
        facts = mask_facts(model.config, masks)
        sections.append(
            reconstruction_section(
                model, clips, masks, unfit, out, seed=config.seed, frame_ms=config.frame_ms, device=device
            )
        )
    if "attention" in show:
        sections.append(
            attention_section(model, clips, _attention_query(config), out, frame_ms=config.frame_ms, device=device)
        )
    if pool is not None and corpus is not None:
        if not isinstance(pool, Pool):
            pool = pool_of_dataset(model, corpus, data, pool, device=device)
        sections.append(
            neighbour_section(
                model, clips, pool, corpus, data, out, count=config.neighbours, frame_ms=config.frame_ms, device=device
            )
        )
    return sections, facts


def _choose(corpus: "Corpus", config: VisualizeConfig, data: DataConfig, *, num_frames: int) -> "np.ndarray":
    """Return the rows of the requested keys, or of samples drawn by the seed, in the dataset's order."""
    import numpy as np

    if config.keys:
        return np.array([corpus.find(key) for key in config.keys], dtype=np.int64)
    rows = selected_rows(corpus, data, num_frames=num_frames)
    return draw_rows(rows, config.samples, seed=config.seed, stream=Stream.SHOW)


def facts_of(model: "MAE | Classifier", file: Path, run: Path | None, data: DataConfig) -> dict[str, str]:
    """Return the page's facts about the model and the clips."""
    from mae3d.model.mae import MAE

    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    in_all = f"{parameters / 1e6:.1f} M parameters in all"
    if isinstance(model, MAE):
        rest = {"decoder": f"{model.config.decoder_embed_dim} wide, {model.config.decoder_depth} blocks; {in_all}"}
    else:
        classes, labels = model.config.num_classes, "several a clip" if model.config.multi_label else "one a clip"
        rest = {"head": f"{model.config.pooling} pooling, {classes} classes, {labels}; {in_all}"}
    rate = f"every {data.sampling_rate:g} frames at {data.target_fps:g} frames/s"
    strided = data.sampling == "strided"
    return {
        "encoder": f"ViT, {config.embed_dim} wide, {config.depth} blocks of {config.num_heads} heads, "
        f"patches of {config.t_patch_size} x {config.patch_size} x {config.patch_size}",
        **rest,
        "weights": f"{run.name}, {file.parent.name}" if run else file.name,
        "clip": f"{config.num_frames} frames of {size_text(config.img_size)}, "
        + (rate if strided else f"{data.num_segments} x {data.frames_per_segment} segments"),
    }


if __name__ == "__main__":
    raise SystemExit(main())
