"""A masked autoencoder and samples ─► losses.parquet: each clip's loss under chosen masks; a summary, pairs and a plot.

told = predict(config, world)      # EvaluateConfig, World; what to print

Clips are the middle of each sample. The masks of a sample depend on (seed, draw, row) alone: the same whatever else is
evaluated, so that losses under two masks, or of two models, are of the same clips.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.common.tables import aligned, write_csv

if TYPE_CHECKING:
    import pyarrow as pa

    from launch.inference.settings import EvaluateConfig
    from mae3d.distributed import World
    from mae3d.model.config import MAEConfig
    from mae3d.model.mae import MAE
    from pipelines.stream import Batch

LOSSES = "losses.parquet"


def predict(config: "EvaluateConfig", world: "World") -> str:
    """Writes the results into `config.out`; to be called by all processes.

    Returns:
        What to tell, on the first process; "" on others.

    Raises:
        ValueError: a setting, the model or the dataset is not as it should be; the message says what to do.
        OSError: a file cannot be written.
    """
    import pyarrow.parquet as pq

    from launch.common.clip_options import agreed_model_file, trained_data
    from launch.inference.samples import open_samples
    from launch.inference.settings import common_settings
    from launch.inference.sharded_table import Parts, fill, sample_keys
    from mae3d.model.masking import other_masks
    from mae3d.weights.files import load_model
    from pipelines.stream import evaluation_clips

    file = agreed_model_file(config.run, world)
    model = load_model(file)
    own = model.config
    masks, unfit = other_masks(own, config.mask, ratio=config.mask_ratio)
    for problem in unfit if world.is_first else ():
        print(f"left out: {problem}", file=sys.stderr)
    samples = open_samples(config.data, trained_data(file), own, world)
    corpus, rows = samples.corpus, samples.rows
    parts = Parts(
        Path(config.out) / LOSSES,
        num_rows=len(rows),
        batch_size=config.batch,
        settings=common_settings(config, file, samples, world)
        | {
            "masks": {name: masked.mask_ratio for name, masked in masks.items()},
            "draws": config.draws,
            "seed": config.seed,
            "reverse": config.reverse,
        },
    )
    model.to(world.device)
    made = fill(
        parts,
        world=world,
        open_stream=lambda chosen: evaluation_clips(
            corpus,
            samples.clips,
            rows=rows[chosen],
            num_frames=own.num_frames,
            size=own.img_size,
            batch_size=config.batch,
            local_world=world.place.local_size,
            device=world.device,
        ),
        keys_of=lambda chosen: sample_keys(corpus, rows[chosen]),
        outputs_of=lambda batch: losses_of(model, masks, batch, config),
    )
    if not world.is_first:
        return ""
    out = Path(config.out)
    told = summarise(pq.read_table(parts.path), masks, out, backwards=config.reverse)
    return f"{told}\n{'written' if made else 'finished already'}: {out}"


def losses_of(
    model: "MAE", masks: "Mapping[str, MAEConfig]", batch: "Batch", config: "EvaluateConfig"
) -> "dict[str, pa.Array]":
    """The columns of a batch: `loss_MASK` and `psnr_MASK` (decibels) for each mask, means over the draws."""
    import pyarrow as pa
    import torch

    from mae3d.analysis.exact import each_clip
    from mae3d.analysis.reconstruct import clip_losses
    from mae3d.model.masking import FIXED, mask_noise

    clips, rows = batch.clips[:, 0], batch.rows.tolist()
    if config.reverse:
        clips = clips.flip(1)

    def loss_and_psnr(clips: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return torch.stack(clip_losses(model, clips, noise), dim=1)  # (b, 2)

    columns: dict[str, pa.Array] = {}
    own = model.config
    for name, masked in masks.items():
        model.config = masked
        of_draws = []
        for draw in range(1 if name in FIXED else config.draws):
            noise = mask_noise(seed=config.seed, epoch=draw, positions=rows, views=1, tokens=own.num_tokens)
            of_draws.append(each_clip(loss_and_psnr, clips, noise.to(clips.device)))
        loss, psnr = torch.stack(of_draws).mean(dim=0).T.cpu().numpy()
        columns |= {f"loss_{name}": pa.array(loss, pa.float32()), f"psnr_{name}": pa.array(psnr, pa.float32())}
    model.config = own
    return columns


def summarise(table: "pa.Table", masks: "Mapping[str, MAEConfig]", out: Path, *, backwards: bool) -> str:
    """Writes summary.csv (a row a mask), differences.csv (a row for each two masks, paired by clip) and losses.png.

    Args:
        table: losses.parquet.
        masks: as in `losses_of`.
        out: the folder.
        backwards: whether clips were played backwards.

    Returns:
        The same as a text table.
    """
    from mae3d.tracking.plots import plot_losses

    read = table.filter(table[f"loss_{next(iter(masks))}"].is_valid())
    failed = len(table) - len(read)
    told = f"{len(read):,} clips{' played backwards' if backwards else ''}"
    if failed:
        told += f"; {failed:,} could not be read: null in {LOSSES}"
    if not len(read):
        return told
    losses = {name: read[f"loss_{name}"].to_numpy().astype(np.float64) for name in masks}
    summary = [
        {
            "mask": name,
            "hidden": round(1 - masked.num_kept / masked.num_tokens, 4),
            **_spread(losses[name]),
            "psnr_db": float(np.mean(read[f"psnr_{name}"].to_numpy())),
        }
        for name, masked in masks.items()
    ]
    differences = [
        {"a": a, "b": b, **_spread(losses[a] - losses[b]), "share_a_greater": float((losses[a] > losses[b]).mean())}
        for a, b in combinations(masks, 2)
    ]
    lines = [told]
    for file, rows, is_told in (("summary.csv", summary, True), ("differences.csv", differences, len(masks) <= 3)):
        if rows:
            write_csv(out / file, _columns(rows))
        if rows and is_told:
            lines += ["", *aligned(_columns(rows))]
    plot_losses(losses, out / "losses.png", title=told)
    return "\n".join(lines)


def _spread(values: np.ndarray) -> dict[str, float | int | None]:
    """Count, mean, the samples' standard deviation and the mean's standard error; these need two clips."""
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {
        "clips": len(values),
        "mean": float(values.mean()),
        "std": deviation,
        "standard_error": deviation / len(values) ** 0.5 if deviation is not None else None,
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
