"""What a model made of clips ─► filmstrips, GIFs and the texts and figures of visualize.py's page.

sample = Shown(row, {"tube": result}, {"tube": scores_of(result, config)})     # result: mae3d.reconstruct's
card = draw(sample, corpus, out, frame_ms=160)
table = table_of([sample])                          # PSNR by method, or by mask where there are several
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from mae3d.config import MAEConfig
    from mae3d.mae import MAE
    from mae3d.reconstruct import Reconstruction
    from mae3d.report import Card, Table
    from pipelines.config import DataConfig
    from pipelines.corpus import Corpus

IMAGES = "images"
OURS = "reconstruction"


@dataclass(frozen=True)
class Shown:
    """One sample, looked at under one mask or several.

    Attributes:
        row: Its row in the corpus.
        results: Type of mask -> what the model made of it (arrays of one clip).
        scores: Type of mask -> method -> PSNR on hidden patches, decibels.
    """

    row: int
    results: Mapping[str, "Reconstruction"]
    scores: Mapping[str, Mapping[str, float]]


def scores_of(result: "Reconstruction", config: "MAEConfig") -> dict[str, float]:
    """PSNR on hidden patches, decibels: the model first, then what needs no model."""
    import numpy as np

    from mae3d.pictures import psnr
    from mae3d.reconstruct import nearest_visible

    hidden = result.hidden
    fills: dict[str, np.ndarray] = {OURS: result.predicted}
    if config.norm_pix_loss:
        fills["each patch's own mean"] = result.empty
    fills["nearest frame that shows the place"] = nearest_visible(result.original, hidden)
    fills["mean colour of the clip's visible patches"] = result.original[~hidden].mean(axis=0)
    fills["the constant that pixels are normalised with"] = 255 * np.broadcast_to(np.asarray(config.mean), 3)
    return {name: psnr(fill, result.original, hidden) for name, fill in fills.items()}


def draw(sample: Shown, corpus: "Corpus", out: Path, *, frame_ms: int) -> "Card":
    """Write one sample's PNG and GIF; what the page says of it."""
    from mae3d.pictures import filmstrip, save_animation
    from mae3d.report import Card

    key = corpus.key(sample.row)
    stem = re.sub(r"[^a-z0-9_]", "_", key)  # keys have no other letters, unless someone made the dataset by hand
    if len(corpus.datasets) > 1:  # each has keys of its own
        stem = f"{sample.row}_{stem}"
    strip, animation = f"{IMAGES}/{stem}.png", f"{IMAGES}/{stem}.gif"
    rows, panels = _rows(sample)
    filmstrip(rows).save(out / strip)
    save_animation(panels, out / animation, frame_ms=frame_ms)
    names, labels = corpus.label_names, corpus.labels_of(sample.row)
    notes = [f"key {key}"]
    if labels:
        notes.append("label " + ", ".join(names[i] if i < len(names) else str(i) for i in labels))
    if len(sample.scores) == 1:
        (scores,) = sample.scores.values()
        notes.append(f"PSNR {scores[OURS]:.1f} dB, best fill {_best_fill(scores):.1f} dB")
    else:
        notes.append(
            "PSNR " + ", ".join(f"{kind} {scores[OURS]:.1f}" for kind, scores in sample.scores.items()) + " dB"
        )
    return Card(
        corpus.name(sample.row),
        " · ".join(notes),
        {animation: "as an animation: " + ", ".join(panels), strip: "rows: " + ", ".join(rows)},
    )


def _rows(sample: Shown) -> tuple[dict[str, "np.ndarray"], dict[str, "np.ndarray"]]:
    """The filmstrip's rows and the animation's panels: all that there is of one mask; of several, two rows each."""
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


def describe(config: "MAEConfig", *, skipped: int, unfit: Sequence[str] = ()) -> list[str]:
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
    paragraphs += [f"Left out is the mask {problem}." for problem in unfit]
    if skipped:
        paragraphs.append(f"{skipped} of the chosen samples could not be read and are left out.")
    return paragraphs


def facts_of(
    model: "MAE",
    own: "MAEConfig",
    masks: Mapping[str, "MAEConfig"],
    file: Path,
    run: Path | None,
    corpus: "Corpus",
    clips: "DataConfig",
) -> dict[str, str]:
    """What the page says of the model and the clips; `own` is what the model was trained with."""
    config = next(iter(masks.values()))
    hidden = config.num_tokens - config.num_kept
    if len(masks) == 1:
        told = f"{hidden} of {config.num_tokens} tokens (mask ratio {config.mask_ratio:g}), {config.mask_type}"
    else:
        told = f"in {len(masks)} ways, mask ratio {config.mask_ratio:g}"
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
        "hidden": told,
        "trained with": f"{own.mask_type} masks, ratio {own.mask_ratio:g}",
        "target": "pixels, each patch normalised" if config.norm_pix_loss else "pixels",
        "dataset": f"{len(corpus):,} samples",
    }


def table_of(shown: Sequence[Shown]) -> "Table":
    """Mean PSNR of each method, and in how many samples the model is the closer one; of several masks, a row each."""
    from mae3d.report import Table

    def wins(kind: str, name: str) -> str:
        won = sum(sample.scores[kind][OURS] > sample.scores[kind][name] for sample in shown)
        return f"{won} of {len(shown)}"

    kinds = list(shown[0].scores)
    means = {
        kind: {name: sum(sample.scores[kind][name] for sample in shown) / len(shown) for name in shown[0].scores[kind]}
        for kind in kinds
    }
    if len(kinds) == 1:
        (kind,) = kinds
        rows = [(n, f"{mean:.2f} dB", "" if n == OURS else wins(kind, n)) for n, mean in means[kind].items()]
        return Table("How close, on hidden patches", ("filled in with", "PSNR, mean", f"{OURS} closer"), rows)
    several = []
    for kind in kinds:
        fill = max((name for name in means[kind] if name != OURS), key=means[kind].__getitem__)
        hidden = sum(float(sample.results[kind].hidden.mean()) for sample in shown) / len(shown)
        ours, theirs = means[kind][OURS], means[kind][fill]
        several.append((kind, f"{hidden:.1%}", f"{ours:.2f} dB", f"{theirs:.2f} dB", wins(kind, fill), fill))
    columns = ("mask", "hidden", "PSNR, mean", "best fill, mean", f"{OURS} closer", "the best fill")
    return Table("How close, on hidden patches; the model's own mask first", columns, several)
