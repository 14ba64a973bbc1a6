"""An encoder's attention ─► overlays of heat on clips (PNG, GIF), and the texts of visualize.py's page.

shown = AttentionQuery(layer=-1, head="mean", query="4,3,3", rolled=False)
section = attention_section(model, clips, shown, out, frame_ms=160, device=device)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.report.clips import IMAGES, Clip, batches

if TYPE_CHECKING:
    import numpy as np
    import torch

    from launch.report.page import Card, Section
    from mae3d.model.classifier import Classifier
    from mae3d.model.config import EncoderConfig
    from mae3d.model.mae import MAE

SCALE = f"{IMAGES}/attention_scale.png"
BRIGHTEST = 99.0  # percentile of a clip's patches that gets the brightest colour: a single patch may outshine all
PREDICTIONS = 3  # classes that a card names


@dataclass(frozen=True)
class AttentionQuery:
    """The attention that is shown.

    Attributes:
        layer: The block, 1 to depth, or -1, the last, to -depth.
        head: A head's number from 0, `mean` of all, or `all` beside one another.
        query: `cls`, `mean` or `T,Y,X`, as of mae3d.analysis.attention.query_of; None is `default_query`'s.
        rolled: All blocks' rollout instead of one block.
    """

    layer: int = -1
    head: str = "mean"
    query: str | None = None
    rolled: bool = False


def default_query(model: "MAE | Classifier") -> str:
    """Return the token that a classifier's head pools, or an autoencoder's middle patch: its class token is idle."""
    from mae3d.model.classifier import Classifier

    if isinstance(model, Classifier):
        return "cls" if model.config.pooling == "cls" else "mean"
    return ",".join(str(count // 2) for count in model.config.grid)


def attention_section(
    model: "MAE | Classifier",
    clips: Sequence[Clip],
    shown: AttentionQuery,
    out: Path,
    *,
    frame_ms: int,
    device: "torch.device",
) -> "Section":
    """Compute and draw the attention of each clip.

    Args:
        model: On the device.
        clips: The clips.
        shown: The attention.
        out: The page's folder.
        frame_ms: How long a GIF shows a frame, milliseconds.
        device: Where to compute.

    Raises:
        ValueError: There is no such layer, head or query.
    """
    from launch.report.page import Section
    from mae3d.io.contact_sheet import colour_scale

    query = shown.query or default_query(model)
    heads = check_query(model.encoder.config, shown, query)
    colour_scale("no attention", f"as much as the {100 - BRIGHTEST:g} % of patches with most, or more").save(
        out / SCALE
    )
    cards = []
    for batch, pixels in batches(clips, device, doing="attention"):
        maps = _maps(model, pixels, shown, query, heads)
        said = _predicted(model, pixels)
        for i, clip in enumerate(batch):
            ours = {name: values[i] for name, values in maps.items()}
            cards.append(_draw(clip, ours, said[i], model.encoder.config, query, out, frame_ms=frame_ms))
    intro = describe(model, shown, query)
    return Section("Attention", intro, cards, images={SCALE: "from dark, no attention, to bright yellow, most"})


def check_query(config: "EncoderConfig", shown: AttentionQuery, query: str) -> list[int]:
    """Return the heads that are shown on their own; none if their mean is shown.

    Raises:
        ValueError: There is no such layer, head or query.
    """
    from mae3d.analysis.attention import block_of, query_of

    query_of(config, query)
    block_of(config, shown.layer)
    if shown.rolled:
        if shown.head != "mean":
            raise ValueError(f"--head {shown.head}: a rollout goes through the mean of the heads; leave --head out")
        return []
    if shown.head in ("mean", "all"):
        return list(range(config.num_heads)) if shown.head == "all" else []
    if not shown.head.isdecimal() or int(shown.head) >= config.num_heads:
        raise ValueError(f"--head {shown.head}: give 0 to {config.num_heads - 1}, mean or all")
    return [int(shown.head)]


def _maps(
    model: "MAE | Classifier", pixels: "torch.Tensor", shown: AttentionQuery, query: str, heads: Sequence[int]
) -> dict[str, "np.ndarray"]:
    """Return caption ─► (B, N), the attention to each token."""
    from mae3d.analysis.attention import layer_attention, query_of, rollout
    from mae3d.model.encoder import Encoder

    encoder = model.encoder
    assert isinstance(encoder, Encoder), "the command has refused an image ViT"
    weights = query_of(encoder.config, query).to(pixels.device)
    if shown.rolled:
        return {"rollout": rollout(encoder, pixels, weights).cpu().numpy()}
    by_head = layer_attention(encoder, pixels, weights, layer=shown.layer).cpu().numpy()
    mean = {} if len(heads) == 1 else {"mean of the heads": by_head.mean(axis=1)}
    return mean | {f"head {head}": by_head[:, head] for head in heads}


def _draw(
    clip: Clip,
    maps: dict[str, "np.ndarray"],
    said: str,
    config: "EncoderConfig",
    query: str,
    out: Path,
    *,
    frame_ms: int,
) -> "Card":
    """Write one clip's PNG, GIF and WebP; return its card of the page."""
    import numpy as np

    from launch.report.page import Card
    from mae3d.io.contact_sheet import filmstrip, outline, overlay, save_animation

    token = _patch(query)
    prefix = int(config.cls_embed)

    def marked(frames: "np.ndarray") -> "np.ndarray":
        return frames if token is None else outline(frames, token, config.grid)

    rows, panels = {"original": marked(clip.frames)}, {"original": marked(clip.frames)}
    for name, values in maps.items():
        heat = values[prefix:].reshape(config.grid)
        top = float(np.percentile(heat, BRIGHTEST)) or 1.0
        panels[name] = marked(overlay(clip.frames, heat, top=top))
        rows[f"{name}; brightest: {top * config.num_tokens:.1f} x an even share"] = panels[name]
    notes = [*clip.notes, *([said] if said else [])]
    if prefix:
        notes.append(f"{next(iter(maps.values()))[0]:.0%} on the class token")
    strip, animation = (f"{IMAGES}/{clip.stem}_attention.{kind}" for kind in ("png", "webp"))
    filmstrip(rows).save(out / strip)
    save_animation(panels, out / animation, frame_ms=frame_ms)
    shows = {animation: "as an animation: " + ", ".join(panels), strip: "rows: " + ", ".join(rows)}
    return Card(clip.title, " · ".join(notes), shows)


def _patch(query: str) -> tuple[int, int, int] | None:
    """Return slot, row and column of a query that is a patch, checked by mae3d.analysis.attention."""
    if query in ("cls", "mean"):
        return None
    slot, row, column = map(int, query.split(","))
    return slot, row, column


def _predicted(model: "MAE | Classifier", pixels: "torch.Tensor") -> list[str]:
    """Return a classifier's first classes for each clip, with probabilities; "" of an autoencoder."""
    import torch

    from mae3d.model.classifier import Classifier

    if not isinstance(model, Classifier):
        return [""] * len(pixels)
    config = model.config
    with torch.no_grad():
        logits = model(pixels).float()
    probabilities = logits.sigmoid() if config.multi_label else logits.softmax(dim=-1)
    first = probabilities.topk(min(PREDICTIONS, config.num_classes))
    names = config.class_names or [str(i) for i in range(config.num_classes)]
    return [
        "predicted " + ", ".join(f"{names[i]} {value:.0%}" for value, i in zip(values, classes, strict=True))
        for values, classes in zip(first.values.tolist(), first.indices.tolist(), strict=True)
    ]


def describe(model: "MAE | Classifier", shown: AttentionQuery, query: str) -> list[str]:
    """Return the paragraphs that say how to read the section."""
    from mae3d.analysis.attention import block_of
    from mae3d.model.mae import MAE

    config = model.encoder.config
    if shown.rolled:
        what = (
            f"Attention rolled out over all {config.depth} blocks (Abnar & Zuidema 2020): from which patches the "
            "content of the query came, if each block passes half of a token on as it is and mixes the other half as "
            "the mean of its heads attends."
        )
    else:
        which = {"mean": "the mean of the heads", "all": "each head"}.get(shown.head, f"head {shown.head}")
        what = (
            f"Attention in block {block_of(config, shown.layer) + 1} of {config.depth}, {which}: the probabilities "
            "with which the query gathers from the clip's patches."
        )
    token = _patch(query)
    if token is None:
        who = f"The query is {'the class token' if query == 'cls' else 'all patches, averaged'}."
    else:
        slot, row, column = token
        who = (
            f"The query is the patch at time slot {slot}, row {row}, column {column} (counted from 0), outlined in the "
            f"{config.t_patch_size} frames that it covers."
        )
    paragraphs = [
        f"{what} {who} Nothing is hidden from the model here.",
        "Colours lie over the frame in grey, one value a patch, smoothed between patches. Each row has a scale of its "
        f"own: black is none, the brightest colour is the {BRIGHTEST:g}th percentile of the clip's patches, and the "
        "caption says how many times an even share that is; near 1, the model looks everywhere alike. Attention "
        "tells where content is gathered from, not by itself why the model answers as it does.",
    ]
    if query == "cls" and isinstance(model, MAE) and model.config.decoder_cls == "own":
        paragraphs.append(
            "In pretraining nothing read this model's class token after the last block: what it gathers there was "
            "never trained. Earlier blocks, or a patch as the query, tell more."
        )
    return paragraphs
