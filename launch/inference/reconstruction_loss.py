"""A masked autoencoder and samples ─► losses.parquet: each clip's loss under chosen masks; a summary, pairs and a plot.

report = predict(config, world)      # EvaluateConfig, World; to print

Clips are the middle of each sample. The masks of a sample depend on (seed, draw, row) alone, not on the other
samples, so that losses under two masks, or of two models, are of the same clips.
"""

import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from launch.common.tables import aligned, columns_of, write_csv

if TYPE_CHECKING:
    import pyarrow as pa

    from launch.inference.settings import EvaluateConfig
    from mae3d.distributed import World
    from mae3d.model.config import MAEConfig
    from mae3d.model.mae import MAE
    from pipelines.stream import Batch

LOSSES, PICTURE = "losses.parquet", "losses.png"
SUMMARY, DIFFERENCES = "summary.csv", "differences.csv"


def predict(config: "EvaluateConfig", world: "World") -> str:
    """Write the results into `config.out`; all ranks call it.

    Returns:
        The report to print, on rank 0; "" on others.

    Raises:
        ValueError: a setting, the model or the dataset is wrong; the message gives the remedy.
        OSError: a file cannot be written.
    """
    import pyarrow.parquet as pq

    from launch.common.clip_options import agreed_model_file, trained_data
    from launch.inference.embeddings import with_head
    from launch.inference.evaluate import common_settings, describe_end, evaluate_into_table, open_samples
    from launch.inference.heads import open_head
    from mae3d.io.hooks import codes_of
    from mae3d.model.masking import other_masks
    from mae3d.weights.files import load_model

    file = agreed_model_file(config.run, world)
    model = load_model(file)
    masks, unfit = other_masks(model.config, config.mask, ratio=config.mask_ratio)
    for problem in unfit if world.is_first else ():
        print(f"left out: {problem}", file=sys.stderr)
    samples = open_samples(config.data, trained_data(file), model.config, world)
    settings = common_settings(config, file, samples, world) | {
        "masks": {name: masked.mask_ratio for name, masked in masks.items()},
        "draws": config.draws,
        "seed": config.seed,
        "reverse": config.reverse,
    }
    settings |= codes_of(config)
    out = Path(config.out)
    model.to(world.device)
    head = open_head(config.head, model, world.device, precision=config.precision)
    settings |= head.settings if head else {}
    table, is_new = evaluate_into_table(
        out / LOSSES,
        samples,
        model.config,
        lambda batch: with_head(head, losses_of(model, masks, batch, config), batch.clips),
        settings=settings,
        world=world,
        batch_size=config.batch,
        beside=(SUMMARY, DIFFERENCES, PICTURE),
    )
    if not world.is_first:
        return ""
    report = summarise(pq.read_table(table.path), masks, out, backwards=config.reverse)
    return f"{report}\n{describe_end(out, is_new=is_new)}"


def losses_of(
    model: "MAE", masks: "Mapping[str, MAEConfig]", batch: "Batch", config: "EvaluateConfig"
) -> "dict[str, pa.Array]":
    """Return the columns of a batch: `loss_MASK` and `psnr_MASK` (decibels) for each mask, means over the draws."""
    import pyarrow as pa
    import torch

    from mae3d.analysis.exact import each_clip
    from mae3d.analysis.reconstruct import clip_losses
    from mae3d.model.masking import FIXED, mask_noise

    clips, rows = batch.clips[:, 0], batch.rows[:, 0].tolist()
    if config.reverse:
        clips = clips.flip(1)

    def loss_and_psnr(clips: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return torch.stack(clip_losses(model, clips, noise), dim=1)  # (b, 2)

    columns: dict[str, pa.Array] = {}
    model_config = model.config
    for name, masked in masks.items():
        model.config = masked
        draws = []
        for draw in range(1 if name in FIXED else config.draws):
            noise = mask_noise(seed=config.seed, epoch=draw, positions=rows, views=1, tokens=model_config.num_tokens)
            draws.append(each_clip(loss_and_psnr, clips, noise.to(clips.device)))
        loss, psnr = torch.stack(draws).mean(dim=0).T.cpu().numpy()
        columns |= {f"loss_{name}": pa.array(loss, pa.float32()), f"psnr_{name}": pa.array(psnr, pa.float32())}
    model.config = model_config
    return columns


def summarise(table: "pa.Table", masks: "Mapping[str, MAEConfig]", out: Path, *, backwards: bool) -> str:
    """Write summary.csv (one row per mask), differences.csv (one row per pair of masks, by clip) and losses.png.

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
    heading = f"{len(read):,} clips{' played backwards' if backwards else ''}"
    if failed:
        heading += f"; {failed:,} could not be read: null in {LOSSES}"
    if not len(read):
        return heading
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
    lines = [heading]
    for file, rows, is_printed in ((SUMMARY, summary, True), (DIFFERENCES, differences, len(masks) <= 3)):
        if rows:
            write_csv(out / file, columns_of(rows))
        if rows and is_printed:
            lines += ["", *aligned(columns_of(rows))]
    plot_losses(losses, out / PICTURE, title=heading)
    return "\n".join(lines)


def _spread(values: np.ndarray) -> dict[str, float | int | None]:
    """Return count, mean, the samples' standard deviation and the mean's standard error; these need two clips."""
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {
        "clips": len(values),
        "mean": float(values.mean()),
        "std": deviation,
        "standard_error": deviation / len(values) ** 0.5 if deviation is not None else None,
    }
