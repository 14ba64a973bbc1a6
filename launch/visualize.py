"""A trained model and shards -> pictures of what it fills in: filmstrips, GIFs and a page over them.

python launch/visualize.py --run out/demo/run --data.shards out/demo/shards --out out/demo/report
python launch/visualize.py --run mae_pretrain_vit_large_k400.pth --data.shards OUT --out DIR --keys 000017 000042
python launch/visualize.py --run out/demo/run --data.shards out/demo/shards --out out/masks --mask all --mask_ratio 0.5
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.cli import parse, telling
from launch.clips import ClipsConfig, clips_config, run_of, stored_config
from launch.reconstructions import IMAGES, Shown, describe, draw, facts_of, scores_of, table_of
from mae3d.config import MaskType
from pipelines.config import DataConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mae3d.config import MAEConfig
    from mae3d.mae import MAE
    from pipelines.corpus import Corpus

BATCH = 4  # clips at a time
SAMPLE_STREAM = 0x73686F77  # "show": which samples are chosen under a seed


@dataclass(frozen=True)
class VisualizeConfig:
    """Show what a masked autoencoder fills in.

    Attributes:
        run: A run, a checkpoint's folder, a model file, or a mae_st checkpoint (.pth).
        data: The clips.
        out: Folder for the page and its images.
        samples: How many samples, chosen by the seed.
        keys: Show these samples instead: `--keys 000017 000042`.
        mask: What is hidden: random, tube, frame, block, prospective, retrospective, interpolation (docs/masks.md), or
            `all`, one under the other; null takes the model's.
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
    mask: str | None = None
    mask_ratio: float | None = None
    seed: int = 0
    frame_ms: int = 160
    device: str = "auto"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0; SystemExit 2: bad usage or input, 3: I/O, 1: damaged shards."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(VisualizeConfig, arguments, prog="visualize.py", description=str(__doc__))
    with telling():
        page = visualize(config)
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
    run = run_of(file)
    model = load_model(file)
    own = model.config
    masks, unfit = _masks(config, own)
    for problem in unfit:
        print(f"left out: {problem}", file=sys.stderr)
    clips = clips_config(config.data, stored_config(run).get("data", {}))
    corpus = corpus_of(clips)
    for bad in corpus.left_out:
        print(f"left out: {bad}", file=sys.stderr)
    rows = _choose(corpus, config, clips, num_frames=own.num_frames)
    out = Path(config.out)
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    shown = []
    cards = []
    for sample in _reconstructions(model.to(device), masks, corpus, clips, rows, seed=config.seed, device=device):
        shown.append(sample)
        cards.append(draw(sample, corpus, out, frame_ms=config.frame_ms))
    if not shown:
        raise ValueError(f"{corpus}: every chosen sample is damaged; {corpus.repair}")
    return write_report(
        out,
        title="Reconstructions",
        intro=describe(own, skipped=len(rows) - len(shown), unfit=unfit),
        facts=facts_of(model, own, masks, file, run, corpus, clips),
        table=table_of(shown),
        cards=cards,
        losses=read_losses(run) if run else [],
    )


def _masks(config: VisualizeConfig, own: "MAEConfig") -> tuple[dict[str, "MAEConfig"], list[str]]:
    """The model's settings under each mask asked for, its own first, and which of `all` do not fit, and why."""
    ratio = own.mask_ratio if config.mask_ratio is None else config.mask_ratio
    if config.mask != "all":
        kind: Any = config.mask or own.mask_type  # the config refuses what is none
        return {kind: replace(own, mask_type=kind, mask_ratio=ratio)}, []
    masks, unfit = {}, []
    for kind in sorted(get_args(MaskType), key=lambda kind: kind != own.mask_type):
        try:
            masks[kind] = replace(own, mask_type=kind, mask_ratio=ratio)
        except ValueError as error:
            unfit.append(f"{kind}: {error}")
    if not masks:
        raise ValueError(unfit[0])
    return masks, unfit


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
    model: "MAE",
    masks: Mapping[str, "MAEConfig"],
    corpus: "Corpus",
    clips: DataConfig,
    rows: "np.ndarray",
    *,
    seed: int,
    device: "torch.device",
) -> Iterator[Shown]:
    """What the model makes of each row under each mask; damaged samples are left out."""
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
            results = {}
            for kind, masked in masks.items():
                model.config = masked
                results[kind] = reconstruct(model, batch.clips[:, 0], noise.to(device))
            for i, (row, status) in enumerate(zip(batch_rows, batch.status.tolist(), strict=True)):
                if status == 0:
                    ones = {kind: Reconstruction(*(field[i] for field in r)) for kind, r in results.items()}
                    yield Shown(row, ones, {kind: scores_of(one, config) for kind, one in ones.items()})
                bar.update()
    stream.close()


if __name__ == "__main__":
    raise SystemExit(main())
