"""A masked autoencoder and clips ─► filmstrips, GIFs, texts and figures of visualize.py's page.

masks, unfit = other_masks(model.config, ["all"], ratio=0.5)
section = reconstruction_section(model, clips, masks, unfit, out, seed=0, frame_ms=160, device=device)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.report.clips import IMAGES, Clip, batches

if TYPE_CHECKING:
    import numpy as np
    import torch

    from launch.report.page import Card, Section, Table
    from mae3d.analysis.reconstruct import Reconstruction
    from mae3d.model.config import MAEConfig
    from mae3d.model.mae import MAE

OURS = "reconstruction"
FILLED = "filled in by the model"
BEST = "best.png"  # the filmstrip that the page opens with, beside the page
BEST_WIDTH = 1030  # of its frames side by side, at most, pixels


@dataclass(frozen=True)
class Shown:
    """A clip and its reconstructions under one or more masks.

    Attributes:
        clip: The clip.
        results: Type of mask -> the model's reconstruction (arrays of one clip).
        scores: Type of mask -> method -> PSNR on hidden patches, decibels.
    """

    clip: Clip
    results: Mapping[str, "Reconstruction"]
    scores: Mapping[str, Mapping[str, float]]


def reconstruction_section(
    model: "MAE",
    clips: Sequence[Clip],
    masks: Mapping[str, "MAEConfig"],
    unfit: Sequence[str],
    out: Path,
    *,
    seed: int,
    frame_ms: int,
    device: "torch.device",
) -> "Section":
    """Hide, fill in, draw, and compare with what needs no model.

    Args:
        model: On the device.
        clips: What is shown.
        masks: Type of mask -> the model's settings with it, of `masking.other_masks`.
        unfit: What to say of masks that are left out.
        out: The page's folder.
        seed: Of the masks.
        frame_ms: How long a GIF shows a frame, milliseconds.
        device: Where to compute.
    """
    from launch.report.page import Section

    shown, cards = [], []
    for sample in _reconstructions(model, clips, masks, seed=seed, device=device):
        shown.append(sample)
        cards.append(draw(sample, out, frame_ms=frame_ms))
    intro = describe(model.config, unfit=unfit)
    return Section(
        "Reconstruction", intro, cards, [table_of(shown)], lead=draw_best(shown, out), summary=summarise(shown)
    )


def _reconstructions(
    model: "MAE", clips: Sequence[Clip], masks: Mapping[str, "MAEConfig"], *, seed: int, device: "torch.device"
) -> Iterator[Shown]:
    """Yield the reconstructions of each clip under each mask; its masks do not depend on the other clips."""
    from mae3d.analysis.reconstruct import Reconstruction, reconstruct
    from mae3d.model.masking import mask_noise

    model_config = model.config
    for batch, pixels in batches(clips, device, doing="reconstructing"):
        numbers = [clip.number for clip in batch]
        noise = mask_noise(seed=seed, epoch=0, positions=numbers, views=1, tokens=model_config.num_tokens).to(device)
        results = {}
        for kind, masked in masks.items():
            model.config = masked
            results[kind] = reconstruct(model, pixels, noise)
        model.config = model_config
        for i, clip in enumerate(batch):
            ones = {kind: Reconstruction(*(field[i] for field in result)) for kind, result in results.items()}
            yield Shown(clip, ones, {kind: scores_of(one, model_config) for kind, one in ones.items()})


def scores_of(result: "Reconstruction", config: "MAEConfig") -> dict[str, float]:
    """Return PSNR on hidden patches, decibels: the model's first, then of fills that need no model."""
    import numpy as np

    from mae3d.analysis.reconstruct import nearest_visible
    from mae3d.io.contact_sheet import psnr

    hidden = result.hidden
    fills: dict[str, np.ndarray] = {OURS: result.predicted}
    if config.norm_pix_loss:
        fills["each patch's own mean"] = result.empty
    fills["nearest frame that shows the place"] = nearest_visible(result.original, hidden)
    fills["mean colour of the clip's visible patches"] = result.original[~hidden].mean(axis=0)
    fills["the constant that pixels are normalised with"] = result.constant
    return {name: psnr(fill, result.original, hidden) for name, fill in fills.items()}


def draw(sample: Shown, out: Path, *, frame_ms: int) -> "Card":
    """Write one clip's PNG, GIF and WebP; return its card of the page."""
    from launch.report.page import Card
    from mae3d.io.contact_sheet import filmstrip, save_animation

    clip = sample.clip
    strip, animation = f"{IMAGES}/{clip.stem}.png", f"{IMAGES}/{clip.stem}.webp"
    rows, panels = _rows(sample)
    filmstrip(rows).save(out / strip)
    save_animation(panels, out / animation, frame_ms=frame_ms)
    if len(sample.scores) == 1:
        (scores,) = sample.scores.values()
        note = f"PSNR {scores[OURS]:.1f} dB, best fill {_best_fill(scores):.1f} dB"
    else:
        note = "PSNR " + ", ".join(f"{kind} {scores[OURS]:.1f}" for kind, scores in sample.scores.items()) + " dB"
    return Card(
        clip.title,
        " · ".join([*clip.notes, note]),
        {animation: "as an animation: " + ", ".join(panels), strip: "rows: " + ", ".join(rows)},
    )


def _rows(sample: Shown) -> tuple[dict[str, "np.ndarray"], dict[str, "np.ndarray"]]:
    """Return the filmstrip's rows and the animation's panels: all of a single mask; two rows each of more masks."""
    results = list(sample.results.values())
    rows = {"original": results[0].original}
    if len(results) == 1:
        (result,) = results
        rows[f"masked: {result.hidden.mean():.0%} hidden"] = result.masked
        rows |= {OURS: result.predicted, f"{OURS} + visible patches": result.pasted}
        return rows, dict(zip(("original", "masked", OURS, "with visible"), rows.values(), strict=True))
    for kind, result in sample.results.items():
        scores = sample.scores[kind]
        rows[f"{kind}: {result.hidden.mean():.0%} hidden"] = result.masked
        rows[f"filled in, {scores[OURS]:.1f} dB (best fill {_best_fill(scores):.1f} dB), {kind}"] = result.pasted
    return rows, {"original": results[0].original} | {kind: r.pasted for kind, r in sample.results.items()}


def _best_fill(scores: Mapping[str, float]) -> float:
    return max(value for name, value in scores.items() if name != OURS)


def draw_best(shown: Sequence[Shown], out: Path) -> "Card":
    """Write the filmstrip of the clip that gains most over its best fill, under the first mask; return its card."""
    from launch.report.page import Card
    from mae3d.io.contact_sheet import filmstrip

    kind = next(iter(shown[0].scores))
    best = max(shown, key=lambda sample: sample.scores[kind][OURS] - _best_fill(sample.scores[kind]))
    result, ours, fill = best.results[kind], best.scores[kind][OURS], _best_fill(best.scores[kind])
    rows = {"original": result.original, f"{result.hidden.mean():.0%} hidden": result.masked, FILLED: result.pasted}
    frames, _, width, _ = result.original.shape
    scale = max(1, BEST_WIDTH // (min(frames, 8) * width))
    filmstrip({name: row.repeat(scale, axis=1).repeat(scale, axis=2) for name, row in rows.items()}).save(out / BEST)
    title = f"Best of {len(shown)}: {ours:.1f} dB on hidden patches, best fill without a model {fill:.1f} dB"
    return Card(title, best.clip.title, {BEST: "rows: " + ", ".join(rows)})


def summarise(shown: Sequence[Shown]) -> str:
    """Return a sentence with the mean PSNR under the first mask beside that of the best fill without a model."""
    kind = next(iter(shown[0].scores))
    means = mean_scores(shown, kind)
    return (
        f"reconstruction {means[OURS]:.1f} dB, best fill without a model {_best_fill(means):.1f} dB: "
        f"mean PSNR on the hidden patches of {len(shown)} clips"
    )


def mean_scores(shown: Sequence[Shown], kind: str) -> dict[str, float]:
    """Return each method's PSNR under one type of mask, its mean over the clips, decibels."""
    return {name: sum(sample.scores[kind][name] for sample in shown) / len(shown) for name in shown[0].scores[kind]}


def describe(config: "MAEConfig", *, unfit: Sequence[str] = ()) -> list[str]:
    """Return the paragraphs that say how to read the section."""
    paragraphs = [
        "Part of each clip is hidden from the model, which fills it in from the rest. A clip is shown once as it is, "
        "once as the model sees it (hidden patches grey), once as the model predicts it, and with the prediction in "
        "the hidden patches only. The row called reconstruction also shows what the model says of visible patches, "
        "which it is never trained on. PSNR says how close the filling is, in decibels: more is closer. A fill that "
        "needs no model is what it has to beat."
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
    return paragraphs + [f"Left out is the mask {problem}." for problem in unfit]


def mask_facts(model_config: "MAEConfig", masks: Mapping[str, "MAEConfig"]) -> dict[str, str]:
    """Return the page's facts about the masks, and about those of `model_config`, the training."""
    config = next(iter(masks.values()))
    hidden = config.num_tokens - config.num_kept
    if len(masks) == 1:
        description = f"{hidden} of {config.num_tokens} tokens (mask ratio {config.mask_ratio:g}), {config.mask_type}"
    else:
        description = f"in {len(masks)} ways, mask ratio {config.mask_ratio:g}"
    return {
        "hidden": description,
        "trained with": f"{model_config.mask_type} masks, ratio {model_config.mask_ratio:g}",
        "target": "pixels, each patch normalised" if model_config.norm_pix_loss else "pixels",
    }


def table_of(shown: Sequence[Shown]) -> "Table":
    """Return mean PSNR of each method, and in how many samples the model is closer; of more masks, one row each."""
    from launch.report.page import Table

    def wins(kind: str, name: str) -> str:
        won = sum(sample.scores[kind][OURS] > sample.scores[kind][name] for sample in shown)
        return f"{won} of {len(shown)}"

    kinds = list(shown[0].scores)
    means = {kind: mean_scores(shown, kind) for kind in kinds}
    if len(kinds) == 1:
        (kind,) = kinds
        rows = [(n, f"{mean:.2f} dB", "" if n == OURS else wins(kind, n)) for n, mean in means[kind].items()]
        return Table("How close, on hidden patches", ("filled in with", "PSNR, mean", f"{OURS} closer"), rows)
    rows_of_masks = []
    for kind in kinds:
        fill = max((name for name in means[kind] if name != OURS), key=means[kind].__getitem__)
        hidden = sum(float(sample.results[kind].hidden.mean()) for sample in shown) / len(shown)
        ours, theirs = means[kind][OURS], means[kind][fill]
        rows_of_masks.append((kind, f"{hidden:.1%}", f"{ours:.2f} dB", f"{theirs:.2f} dB", wins(kind, fill), fill))
    columns = ("mask", "hidden", "PSNR, mean", "best fill, mean", f"{OURS} closer", "the best fill")
    return Table("How close, on hidden patches; the model's own mask first", columns, rows_of_masks)
