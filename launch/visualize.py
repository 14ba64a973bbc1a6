"""A trained model and shards -> pictures of what it fills in: filmstrips, GIFs and a page over them.

python launch/visualize.py --run out/demo/run --data.shards out/demo/shards --out out/demo/report
python launch/visualize.py --run mae_pretrain_vit_large_k400.pth --data.shards OUT --out DIR --keys 000017 000042
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.cli import EXIT_ERROR, EXIT_IO, fail, parse
from pipelines.config import DataConfig, SelectConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mae3d.config import MAEConfig
    from mae3d.mae import MAE
    from mae3d.reconstruct import Reconstruction
    from mae3d.report import Card, Table
    from pipelines.corpus import Corpus

IMAGES = "images"
BATCH = 4  # clips at a time
SAMPLE_STREAM = 0x73686F77  # "show": which samples are chosen under a seed


@dataclass(frozen=True)
class ClipsConfig:
    """The clips to look at: the middle of each sample, its centre crop. Which samples is said here, not by the run.

    Attributes:
        shards: Folders made by `python -m preprocess build`, or URLs of such.
        labels: A CSV or Parquet file with columns name (or key) and label that replaces the datasets' own labels.
        select: Which samples are chosen from.
        exclude_bad_shards: Leave out the samples of shards that are missing or not whole, instead of refusing to start.
        cache: Folder for what is fetched from URLs; none = as in pretraining.
        cache_gb: Most that the cache may hold, in GB.
        sampling_rate: Distance of two frames at target_fps; null takes the run's, or 4 for a checkpoint without one.
        target_fps: Frame rate that sampling_rate refers to; null likewise, or 30.
    """

    shards: str | tuple[str, ...]
    labels: str = ""
    select: SelectConfig = field(default_factory=SelectConfig)
    exclude_bad_shards: bool = False
    cache: str = ""
    cache_gb: float = DataConfig.cache_gb
    sampling_rate: float | None = None
    target_fps: float | None = None


@dataclass(frozen=True)
class VisualizeConfig:
    """Show what a masked autoencoder fills in.

    Attributes:
        run: A run, a checkpoint's folder, a model file, or a mae_st checkpoint (.pth).
        data: The clips.
        out: Folder for the page and its images.
        samples: How many samples, chosen by the seed.
        keys: Show these samples instead: `--keys 000017 000042`.
        mask_ratio: Share of the tokens that is hidden; null takes the model's.
        seed: Of the masks and of the choice.
        frame_ms: How long a GIF shows a frame, milliseconds.
        device: `auto` is a GPU where there is one, else the CPU; `cuda` and `cpu` insist.
    """

    run: str
    data: ClipsConfig
    out: str
    samples: int = 8
    keys: list[str] | None = None
    mask_ratio: float | None = None
    seed: int = 0
    frame_ms: int = 160
    device: str = "auto"


@dataclass(frozen=True)
class Shown:
    """One sample: its row, what the model made of it (arrays of one clip), and PSNR on hidden patches by method."""

    row: int
    result: "Reconstruction"
    scores: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0; SystemExit 2: bad usage or input, 3: I/O, 1: damaged shards."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(VisualizeConfig, arguments, prog="visualize.py", description=str(__doc__))
    try:
        page = visualize(config)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(str(error), EXIT_IO)
    except RuntimeError as error:
        if type(error) is RuntimeError:
            raise  # not one that we have words for: the trace tells more
        fail(str(error), EXIT_ERROR)
    print(f"report: {page}")
    return 0


def visualize(config: VisualizeConfig) -> Path:
    """Write the pictures and the page.

    Returns:
        The page's path.

    Raises:
        ValueError: A setting, the model or the dataset is not as it should be; the message says what to do.
        OSError: A picture cannot be written.
    """
    from mae3d.distributed import choose_device
    from mae3d.report import read_losses, write_report
    from mae3d.weights import find_model_file, load_model
    from pipelines.corpus import corpus_of

    device = choose_device(config.device, local_rank=0)
    file = find_model_file(config.run)
    run = _run_of(file)
    model = load_model(file)
    if config.mask_ratio is not None:
        model.config = replace(model.config, mask_ratio=config.mask_ratio)
    clips = _clips_config(config.data, run)
    corpus = corpus_of(clips)
    for bad in corpus.left_out:
        print(f"left out: {bad}", file=sys.stderr)
    rows = _choose(corpus, config, clips, num_frames=model.config.num_frames)
    out = Path(config.out)
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    shown = []
    cards = []
    for sample in _reconstructions(model.to(device), corpus, clips, rows, seed=config.seed, device=device):
        shown.append(sample)
        cards.append(_picture(sample, corpus, model.config, out, frame_ms=config.frame_ms))
    if not shown:
        raise ValueError(f"{corpus}: every chosen sample is damaged; {corpus.repair}")
    return write_report(
        out,
        title="Reconstructions",
        intro=_intro(model.config, skipped=len(rows) - len(shown)),
        facts=_facts(model, file, run, corpus, clips),
        table=_table(shown),
        cards=cards,
        losses=read_losses(run) if run else [],
    )


def _run_of(file: Path) -> Path | None:
    """The run that a model file belongs to: RUN/checkpoints/step-.../model.safetensors."""
    from mae3d.weights import CHECKPOINTS

    folder = file.resolve().parent.parent
    return folder.parent if folder.name == CHECKPOINTS else None


def _clips_config(asked: ClipsConfig, run: Path | None) -> DataConfig:
    """Which clips: those that were asked for, sampled as the run did where nothing else was asked."""
    import yaml

    from mae3d.run import CONFIG

    stored = {}
    if run and (run / CONFIG).is_file():
        known = {entry.name for entry in fields(DataConfig)}
        data = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8")).get("data", {})
        stored = {name: value for name, value in data.items() if name in known}
    values = {entry.name: getattr(asked, entry.name) for entry in fields(asked)}
    given = {name: value for name, value in values.items() if value is not None}
    return DataConfig(**(stored | given))


def _choose(corpus: "Corpus", config: VisualizeConfig, clips: DataConfig, *, num_frames: int) -> "np.ndarray":
    """Rows of the keys that were asked for, or of some samples drawn by the seed, in the dataset's order."""
    import numpy as np

    from pipelines.selection import select_rows
    from pipelines.views import usable_rows

    if config.keys is not None:
        return np.array([corpus.find(key) for key in config.keys], dtype=np.int64)
    if config.samples < 1:
        raise ValueError(f"--samples {config.samples}: give 1 or more")
    rows = select_rows(corpus, clips.select, rows=usable_rows(corpus, clips, num_frames=num_frames))
    generator = np.random.Generator(np.random.Philox(key=[config.seed, SAMPLE_STREAM]))
    return np.sort(generator.choice(rows, size=min(config.samples, len(rows)), replace=False))


def _reconstructions(
    model: "MAE", corpus: "Corpus", clips: DataConfig, rows: "np.ndarray", *, seed: int, device: "torch.device"
) -> Iterator[Shown]:
    """What the model makes of each row; damaged samples are left out."""
    from tqdm import tqdm

    from mae3d.masking import mask_noise
    from mae3d.reconstruct import Reconstruction, reconstruct
    from pipelines.stream import evaluation_clips

    config = model.config
    stream = evaluation_clips(
        corpus,
        clips,
        rows=rows,
        num_frames=config.num_frames,
        size=config.img_size,
        batch_size=BATCH,
        device=device,
    )
    with tqdm(total=len(rows), desc="reconstructing", unit="clip", disable=None) as bar:
        for first in range(0, len(rows), BATCH):
            batch, batch_rows = next(stream), rows[first : first + BATCH].tolist()
            # A sample keeps its mask, whichever others are shown with it.
            noise = mask_noise(seed=seed, epoch=0, positions=batch_rows, views=1, tokens=config.num_tokens)
            result = reconstruct(model, batch.clips[:, 0], noise.to(device))
            for i, (row, status) in enumerate(zip(batch_rows, batch.status.tolist(), strict=True)):
                if status == 0:
                    one = Reconstruction(*(field[i] for field in result))
                    yield Shown(row, one, _scores(one, config))
                bar.update()
    stream.close()


def _scores(result: "Reconstruction", config: "MAEConfig") -> dict[str, float]:
    """PSNR on hidden patches, decibels: the model first, then what needs no model."""
    import numpy as np

    from mae3d.pictures import psnr

    hidden = result.hidden
    fills: dict[str, np.ndarray] = {"reconstruction": result.predicted}
    if config.norm_pix_loss:
        fills["each patch's own mean"] = result.empty
    fills["mean colour of the clip's visible patches"] = result.original[~hidden].mean(axis=0)
    fills["the constant that pixels are normalised with"] = 255 * np.broadcast_to(np.asarray(config.mean), 3)
    return {name: psnr(fill, result.original, hidden) for name, fill in fills.items()}


def _picture(sample: Shown, corpus: "Corpus", config: "MAEConfig", out: Path, *, frame_ms: int) -> "Card":
    """Write one sample's PNG and GIF; what the page says of it."""
    from mae3d.pictures import filmstrip, save_animation
    from mae3d.report import Card

    result, key = sample.result, corpus.key(sample.row)
    rows = {
        "original": result.original,
        f"masked: {result.hidden.mean():.0%} hidden": result.masked,
        "reconstruction": result.predicted,
        "reconstruction + visible patches": result.pasted,
    }
    stem = re.sub(r"[^a-z0-9_]", "_", key)  # keys have no other letters, unless someone made the dataset by hand
    if len(corpus.datasets) > 1:  # each has keys of its own
        stem = f"{sample.row}_{stem}"
    strip, animation = f"{IMAGES}/{stem}.png", f"{IMAGES}/{stem}.gif"
    filmstrip(rows).save(out / strip)
    short = dict(zip(("original", "masked", "reconstruction", "with visible"), rows.values(), strict=True))
    save_animation(short, out / animation, frame_ms=frame_ms)
    names, labels = corpus.label_names, corpus.labels_of(sample.row)
    notes = [f"key {key}"]
    if labels:
        notes.append("label " + ", ".join(names[i] if i < len(names) else str(i) for i in labels))
    best_fill = max(value for name, value in sample.scores.items() if name != "reconstruction")
    notes.append(f"PSNR {sample.scores['reconstruction']:.1f} dB, best fill {best_fill:.1f} dB")
    return Card(
        corpus.name(sample.row),
        " · ".join(notes),
        {animation: "the four rows as an animation", strip: "rows: " + ", ".join(rows)},
    )


def _intro(config: "MAEConfig", *, skipped: int) -> list[str]:
    """How to read the page."""
    paragraphs = [
        "Each clip once as it is, once as the model sees it (hidden patches grey), once as the model predicts it, and "
        "with the prediction in the hidden patches only. The row called reconstruction also shows what the model says "
        "of visible patches, which it is never trained on."
    ]
    if config.norm_pix_loss:
        paragraphs.append(
            "This model predicts each patch up to its mean and contrast (norm_pix_loss). To make a picture of that, "
            "both are taken from the original patch: brightness and contrast of a patch are not the model's merit, its "
            "structure is. The fair fill to compare with is each patch's own mean."
        )
    if config.pred_t_dim < config.num_frames:
        paragraphs.append(
            f"The model predicts {config.pred_t_dim} of the clip's {config.num_frames} frames; these are shown."
        )
    if skipped:
        paragraphs.append(f"{skipped} of the chosen samples could not be read and are left out.")
    return paragraphs


def _facts(model: "MAE", file: Path, run: Path | None, corpus: "Corpus", clips: DataConfig) -> dict[str, str]:
    config = model.config
    hidden = config.num_tokens - config.num_kept
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rate = f"every {clips.sampling_rate:g} frames at {clips.target_fps:g} frames/s"
    return {
        "encoder": f"ViT, {config.embed_dim} wide, {config.depth} blocks, "
        f"patches of {config.t_patch_size} x {config.patch_size} x {config.patch_size}",
        "decoder": f"{config.decoder_embed_dim} wide, {config.decoder_depth} blocks; "
        f"{parameters / 1e6:.1f} M parameters in all",
        "weights": f"{run.name}, {file.parent.name}" if run else file.name,
        "clip": f"{config.num_frames} frames of {config.img_size} x {config.img_size}, "
        + (rate if clips.sampling == "strided" else f"{clips.num_segments} x {clips.frames_per_segment} segments"),
        "hidden": f"{hidden} of {config.num_tokens} tokens (mask ratio {config.mask_ratio:g})",
        "target": "pixels, each patch normalised" if config.norm_pix_loss else "pixels",
        "dataset": f"{len(corpus):,} samples",
    }


def _table(shown: Sequence[Shown]) -> "Table":
    """Mean PSNR of each method, and in how many samples the model is the closer one."""
    from mae3d.report import Table

    ours = [sample.scores["reconstruction"] for sample in shown]
    rows = []
    for name in shown[0].scores:
        theirs = [sample.scores[name] for sample in shown]
        wins = sum(a > b for a, b in zip(ours, theirs, strict=True))
        beaten = "" if name == "reconstruction" else f"{wins} of {len(shown)}"
        rows.append((name, f"{sum(theirs) / len(theirs):.2f} dB", beaten))
    columns = ("filled in with", "PSNR, mean", "reconstruction closer")
    return Table("How close, on hidden patches", columns, rows)


if __name__ == "__main__":
    raise SystemExit(main())
