"""A new classifier or autoencoder takes over the weights of a trained model, for clips of any size.

trained model, config ─► resized positions ─► new model

    encoder = open_encoder("RUN")             # files.py: of a pretraining or finetuning run, or a foreign file
    model = Classifier(ClassifierConfig.of(encoder.config, num_classes=174, img_size=256, num_frames=32))
    load_encoder(model, encoder)
    load_autoencoder(MAE(config), load_model("RUN"))      # with the decoder; of an Encoder: without

A classifier leaves the decoder (or the old head) behind and keeps its head as it was drawn. Tables of positions are
interpolated to the new grid: over height and width bicubic (eminorhan/mae_st's choice for `pos_embed_spatial`, and the
field's for images), over time linear (the field's for video: upstream cannot change it); both as
torch.nn.functional.interpolate without aligned corners. A joint table is treated as the sum that it generalises, so
that both kinds agree. Grids that are equal are copied bit for bit. A patch embedding of other channels is fitted as
in timm: to one channel summed, else repeated in turn and scaled. D width.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from mae3d.io.shapes import Size, plain_size, sides
from mae3d.model.blocks import without_weights
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, EncoderConfig, MAEConfig
from mae3d.model.encoder import Encoder, token_sines
from mae3d.model.foreign import HookEncoder
from mae3d.model.frames import FrameEncoder
from mae3d.model.mae import MAE
from mae3d.weights.convert import unmatched

logger = logging.getLogger(__name__)

Grid = tuple[int, int, int]
_TABLE = "positions.joint"
# Settings that another size of clip leaves as they are; each changes the shape or the meaning of weights.
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
    "rope",
)
# The same settings of a decoder; pred_u is the number of frames that a token predicts.
_SAME_DECODER = (
    "decoder_embed_dim",
    "decoder_depth",
    "decoder_num_heads",
    "decoder_sep_pos_embed",
    "decoder_cls",
    "pred_u",
    "in_chans",
)


class TransferError(ValueError):
    """Mismatch of a model's weights and another model; the message names the settings or the keys."""


def load_encoder(model: Classifier, encoder: Encoder | FrameEncoder) -> None:
    """Give a classifier the weights of a trained encoder; its head stays as it is.

    Raises:
        TransferError: The encoders differ in more than the size of the clip and its channels.
    """
    if isinstance(encoder, FrameEncoder):
        model.encoder.load_state_dict(_frame_state(encoder, model.config))
        return
    model.encoder.load_state_dict(encoder_state(encoder.state_dict(), encoder.config, model.config))


def _frame_state(encoder: FrameEncoder, target: ClassifierConfig) -> dict[str, Tensor]:
    """Return an image ViT's weights for frames of another size, by timm's own interpolation of positions."""
    source = encoder.config
    if source.backbone != target.backbone:
        raise TransferError(f"the weights are of timm:{source.backbone}, not of {target.backbone or 'a video encoder'}")
    _warn(source, target, ("mean", "std"))
    if isinstance(encoder, HookEncoder):
        return encoder.state_dict()
    if source.img_size != target.img_size:
        encoder = copy.deepcopy(encoder)
        encoder.vit.set_input_size(img_size=sides(target.img_size))
    name, state = "vit.patch_embed.proj.weight", encoder.state_dict()
    return state | {name: fit_channels(state[name], target.in_chans, dim=1)}


def check_autoencoder(model: MAE | Encoder, target: MAEConfig) -> None:
    """Refuse a model that `load_autoencoder` cannot take, with its decoder if it has one, for a model of `target`.

    Raises:
        TransferError: They differ in more than the clip's size, its channels and the mask; the message names them.
    """
    source = model.config
    _check_settings(source, target, hint=f"To go on with them give {_options(source, target, _SAME)}")
    if isinstance(model, Encoder):
        return
    if differences := _differences(source, target, _SAME_DECODER):
        raise TransferError(
            f"the weights are of another decoder: {differences}. To go on with it give "
            f"{_options(source, target, _SAME_DECODER)}; without it --init_decoder false"
        )
    _warn(source, target, ("norm_pix_loss", "target_rule"))


def load_autoencoder(model: MAE, source: MAE | Encoder) -> None:
    """Give an autoencoder the weights of a trained one, or of an encoder, which leaves the decoder as it is.

    Raises:
        TransferError: As in `check_autoencoder`.
    """
    check_autoencoder(source, model.config)
    encoder = source.encoder if isinstance(source, MAE) else source
    model.encoder.load_state_dict(encoder_state(encoder.state_dict(), source.config, model.config))
    if isinstance(source, MAE):
        old, new = source.config.grid, model.config.grid
        resized = {
            name: resize_positions(tensor, kind=name.removeprefix("positions."), old=old, new=new)
            if name.startswith("positions.")
            else tensor
            for name, tensor in source.decoder.state_dict().items()
        }
        model.decoder.load_state_dict(resized)


def encoder_state(state: Mapping[str, Tensor], source: EncoderConfig, target: EncoderConfig) -> dict[str, Tensor]:
    """Fit an encoder's state dict to another size of clip.

    Args:
        state: State dict of `Encoder(source)`: names without `encoder.`.
        source: Config of the trained encoder.
        target: Config of the new encoder.

    Returns:
        A state dict for `Encoder(target)`; tensors that do not change are those of `state`.

    Raises:
        TransferError: Settings other than the clip's size and channels differ, or keys are missing or left over.
    """
    _check_settings(source, target, hint="Take the rest with ClassifierConfig.of(config of the weights, ...)")
    with without_weights():
        names = set(Encoder(source).state_dict())
    if source.pos_init == "fixed":
        names.add(_TABLE)
        state = {**state, _TABLE: token_sines(source.num_tokens, source.embed_dim)}
    if problems := unmatched(names, set(state)):
        raise TransferError(f"the encoder's state dict does not fit its config; {problems}")
    if source.grid != target.grid:
        logger.info("positions are interpolated from %s to %s tokens (time, height, width)", source.grid, target.grid)
    resized = {
        name: resize_positions(state[name], kind=name.removeprefix("positions."), old=source.grid, new=target.grid)
        for name in names
        if name.startswith("positions.")
    }
    if source.in_chans != target.in_chans:
        name = "patch_embed.weight"  # (D, P), channels fastest
        by_channel = state[name].unflatten(1, (-1, source.in_chans))
        resized[name] = fit_channels(by_channel, target.in_chans, dim=2).flatten(1)
    fitted = {name: resized.get(name, tensor) for name, tensor in state.items()}
    if target.pos_init == "fixed":
        table = token_sines(target.num_tokens, target.embed_dim)
        if not torch.allclose(fitted.pop(_TABLE), table, rtol=0, atol=1e-6):
            raise TransferError(
                "the positions of the weights are not those of pos_init=fixed for this size of clip: give "
                "pos_init=normal, with which they are taken over and learned"
            )
    return fitted


def resized_encoder(encoder: Encoder | FrameEncoder, *, img_size: Size, num_frames: int) -> Encoder | FrameEncoder:
    """Return an encoder of the same weights for clips of another size; the encoder itself if it has that size.

    Raises:
        ValueError: A size is no multiple of the patches'.
    """
    img_size = plain_size(img_size)
    size = {"img_size": img_size, "num_frames": num_frames}
    if (encoder.config.img_size, encoder.config.num_frames) == (img_size, num_frames):
        return encoder
    if isinstance(encoder, HookEncoder):
        return encoder.resized(img_size=img_size, num_frames=num_frames).to(next(encoder.parameters()).device)
    if isinstance(encoder, FrameEncoder):
        frames = copy.deepcopy(encoder)
        frames.config = replace(encoder.config, **size)  # type: ignore[arg-type]
        frames.vit.set_input_size(img_size=sides(img_size))
        return frames
    # An interpolated table is not the fixed one of another size.
    free = {"pos_init": "normal"} if encoder.config.pos_init == "fixed" else {}
    config = EncoderConfig(
        **{field.name: getattr(encoder.config, field.name) for field in fields(EncoderConfig)} | size | free
    )
    with without_weights():
        resized = Encoder(config)
    resized.load_state_dict(encoder_state(encoder.state_dict(), encoder.config, config), assign=True)
    return resized.requires_grad_().eval()


def fit_channels(weight: Tensor, channels: int, *, dim: int) -> Tensor:
    """Fit the weights of a patch embedding to another number of channels, as timm's adapt_input_conv does.

    To one channel they are summed. Else they are repeated in turn, or the first are taken, and scaled by the old number
    over the new one. If the new number is 1 or a multiple of the old one, grey in all channels is embedded as before.

    Args:
        weight: The weights.
        channels: The new number.
        dim: The channels' axis.

    Returns:
        The weights themselves if the number is the same.
    """
    old = weight.shape[dim]
    if old == channels:
        return weight
    logger.warning("the patch embedding is fitted from %d channels to %d", old, channels)
    if channels == 1:
        return weight.sum(dim=dim, keepdim=True)
    taken = torch.arange(channels, device=weight.device) % old
    return weight.index_select(dim, taken) * (old / channels)


def resize_positions(table: Tensor, *, kind: str, old: Grid, new: Grid) -> Tensor:
    """Interpolate one of the tables of `encoder.Positions` from one (t, h, w) grid to another, in float32.

    Args:
        table: `spatial` (1, h*w, D), `temporal` (1, t, D), `joint` (1, [1 +] t*h*w, D), or `cls` (1, 1, D), which
            stays as it is.
        kind: The table's name among these.
        old: The table's grid.
        new: The new grid.

    Returns:
        The table itself if its part of the grid does not change; else a new one, in its dtype.
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
    """Interpolate (1, t*h*w, D) ─► (1, t'*h'*w', D): each time slot over space, then each position over time."""
    grid = table.float().unflatten(1, old).squeeze(0)  # (t, h, w, D)
    if old[1:] != new[1:]:
        planes = nn.functional.interpolate(grid.permute(0, 3, 1, 2), size=new[1:], mode="bicubic", align_corners=False)
        grid = planes.permute(0, 2, 3, 1)
    if old[0] != new[0]:
        lines = grid.flatten(1).T[None]  # (1, h*w*D, t)
        lines = nn.functional.interpolate(lines, size=new[0], mode="linear", align_corners=False)
        grid = lines[0].T.unflatten(1, (*new[1:], table.shape[2]))
    return table if old == new else grid.flatten(0, 2)[None].to(table.dtype)


def _check_settings(source: EncoderConfig, target: EncoderConfig, *, hint: str) -> None:
    if differences := _differences(source, target, _SAME):
        raise TransferError(
            f"the weights are of another encoder: {differences}; only img_size, num_frames and in_chans may change. "
            f"{hint}"
        )
    _warn(source, target, ("mean", "std"))


def _differences(source: EncoderConfig, target: EncoderConfig, names: Sequence[str]) -> str:
    """Describe the settings that differ; "" if none does."""
    pairs = ((name, getattr(target, name), getattr(source, name)) for name in names)
    return ", ".join(f"{name} is {new}, not {old}" for name, new, old in pairs if new != old)


def _warn(source: EncoderConfig, target: EncoderConfig, names: Sequence[str]) -> None:
    """Log the settings that differ without hindering the transfer."""
    if differences := _differences(source, target, names):
        logger.warning("the weights were trained with other settings: %s", differences)


def _options(source: EncoderConfig, target: EncoderConfig, names: Sequence[str]) -> str:
    """Return the options of a command line that make the target's settings the source's."""
    given = []
    for name in names:
        value = getattr(source, name)
        if value == getattr(target, name):
            continue
        if name == "pred_u":  # which follows from the frames that are predicted
            name, value = "pred_t_dim", value * target.num_frames // target.t_patch_size
        given.append(f"--model.{name} {str(value).lower()}")
    return " ".join(given)
