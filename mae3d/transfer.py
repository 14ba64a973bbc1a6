"""A trained model's encoder -> a new classifier, for clips of the same or of another size.

    encoder = open_encoder("RUN")             # weights.py: of a pretraining or finetuning run, or a foreign file
    model = Classifier(ClassifierConfig.of(encoder.config, num_classes=174, img_size=256, num_frames=32))
    load_encoder(model, encoder)

The decoder (or the old head) is left behind, the head stays as it was drawn. Tables of positions are interpolated to
the new grid: over height and width bicubic (eminorhan/mae_st's choice for `pos_embed_spatial`, and the field's for
images), over time linear (the field's for video: upstream cannot change it); both as torch.nn.functional.interpolate
without aligned corners. A joint table is treated as the sum that it generalises, so that both kinds agree. Grids that
are equal are copied bit for bit. D width.
"""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mae3d.classifier import Classifier
from mae3d.config import EncoderConfig
from mae3d.convert import unmatched
from mae3d.encoder import Encoder

logger = logging.getLogger(__name__)

Grid = tuple[int, int, int]
# What another size of clip does not touch; each changes the shape or the meaning of weights.
_SAME = (
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "patch_size",
    "t_patch_size",
    "qkv_bias",
    "cls_embed",
    "sep_pos_embed",
)


class TransferError(ValueError):
    """An encoder's weights do not fit another encoder; the message names the settings or the keys."""


def load_encoder(model: Classifier, encoder: Encoder) -> None:
    """Give a classifier the weights of a trained encoder; its head stays as it is.

    Raises:
        TransferError: The encoders differ in more than the size of the clip.
    """
    model.encoder.load_state_dict(encoder_state(encoder.state_dict(), encoder.config, model.config))


def encoder_state(state: Mapping[str, Tensor], source: EncoderConfig, target: EncoderConfig) -> dict[str, Tensor]:
    """Fit an encoder's state dict to another size of clip.

    Args:
        state: Of `Encoder(source)`: names without `encoder.`.
        source: What the weights were trained as.
        target: What they shall serve as.

    Returns:
        A state dict for `Encoder(target)`; tensors that do not change are those of `state`.

    Raises:
        TransferError: Settings other than the clip's size differ, or keys are missing or left over.
    """
    _check_settings(source, target)
    with torch.device("meta"):
        names = set(Encoder(source).state_dict())
    if problems := unmatched(names, set(state)):
        raise TransferError(f"the encoder's state dict does not fit its config; {problems}")
    if source.grid != target.grid:
        logger.info("positions are interpolated from %s to %s tokens (time, height, width)", source.grid, target.grid)
    resized = {
        name: resize_positions(state[name], kind=name.removeprefix("positions."), old=source.grid, new=target.grid)
        for name in names
        if name.startswith("positions.")
    }
    return {name: resized.get(name, tensor) for name, tensor in state.items()}


def resize_positions(table: Tensor, *, kind: str, old: Grid, new: Grid) -> Tensor:
    """Interpolate one of the tables of `encoder.Positions` from one (t, h, w) grid to another, in float32.

    Args:
        table: `spatial` (1, h*w, D), `temporal` (1, t, D), `joint` (1, [1 +] t*h*w, D), or `cls` (1, 1, D), which
            stays as it is.
        kind: Which of these.
        old: The table's grid.
        new: The grid to be served.

    Returns:
        The table itself where its part of the grid does not change; else a new one, in its dtype.
    """
    (t, h, w), (new_t, new_h, new_w) = old, new
    if kind == "spatial":
        return _resize_grid(table, old=(1, h, w), new=(1, new_h, new_w))
    if kind == "temporal":
        return _resize_grid(table, old=(t, 1, 1), new=(new_t, 1, 1))
    if kind == "joint":
        prefix = table.shape[1] - t * h * w
        resized = _resize_grid(table[:, prefix:], old=old, new=new)
        return table if old == new else torch.cat([table[:, :prefix], resized], dim=1)
    assert kind == "cls", kind
    return table


def _resize_grid(table: Tensor, *, old: Grid, new: Grid) -> Tensor:
    """(1, t*h*w, D) -> (1, t'*h'*w', D): each slot of time over space, then each place over time."""
    grid = table.float().unflatten(1, old).squeeze(0)  # (t, h, w, D)
    if old[1:] != new[1:]:
        planes = nn.functional.interpolate(grid.permute(0, 3, 1, 2), size=new[1:], mode="bicubic", align_corners=False)
        grid = planes.permute(0, 2, 3, 1)
    if old[0] != new[0]:
        lines = grid.flatten(1).T[None]  # (1, h*w*D, t)
        lines = nn.functional.interpolate(lines, size=new[0], mode="linear", align_corners=False)
        grid = lines[0].T.unflatten(1, (*new[1:], table.shape[2]))
    return table if old == new else grid.flatten(0, 2)[None].to(table.dtype)


def _check_settings(source: EncoderConfig, target: EncoderConfig) -> None:
    differing = [name for name in _SAME if getattr(source, name) != getattr(target, name)]
    if differing:
        told = ", ".join(f"{name} is {getattr(target, name)}, not {getattr(source, name)}" for name in differing)
        raise TransferError(
            f"the weights are of another encoder: {told}; only img_size and num_frames may change. "
            "ClassifierConfig.of(config of the weights, ...) takes the rest from them"
        )
    for name in ("mean", "std"):
        if getattr(source, name) != getattr(target, name):
            logger.warning("%s is %s, but the weights saw %s", name, getattr(target, name), getattr(source, name))
