"""Masks choose the tokens that are hidden, from noise that is the same on any machine.

    (seed, epoch, position, view) ─► noise ─► ids
    noise_BL = mask_noise(seed=0, epoch=3, positions=batch.positions, views=2, tokens=config.num_tokens)
    mask = make_mask(noise_BL, mask_type="tube", grid=config.grid, kept=config.num_kept)
    mask.ids_keep, mask.ids_masked         # (B, K), (B, L - K)

Nothing here has a state: the same sample at the same position of the same epoch gets the same mask at every world size,
batch size and after every resume. A type of mask is a score per token; the tokens with the smallest scores stay
visible, so that a batch is dense under every type. Shapes: legend in patches.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from mae3d.io.hooks import load, require_trust
from mae3d.io.random import Stream, philox_key
from mae3d.model.config import CELL_TOKENS, MAEConfig, MaskType

FIXED = ("prospective", "retrospective", "interpolation")  # types whose every draw is the same mask


class Mask(NamedTuple):
    """The mask of B clips.

    Attributes:
        ids_keep: int64 (B, K), visible tokens, in the order of their score (of `random`: their noise).
        ids_masked: int64 (B, L - K), hidden tokens, likewise.
        ids_restore: int64 (B, L): `cat([kept, masked])[ids_restore]` is in token order.
        mask: float32 (B, L) in token order, 1 where hidden.
    """

    ids_keep: Tensor
    ids_masked: Tensor
    ids_restore: Tensor
    mask: Tensor


def random_mask(noise: Tensor, mask_ratio: float) -> Mask:
    """Keep the tokens with the smallest noise, agnostic of space and time (MAE-ST's random sampling).

    Args:
        noise: float32 (B, L). Ties are common (24 random bits, L in the thousands); the sort is stable, so that CPU
            and GPU break them alike.
        mask_ratio: Share of the tokens that is hidden; `int(L * (1 - mask_ratio))` stay visible, truncated as
            upstream does.
    """
    assert noise.dtype == torch.float32, noise.dtype
    return _keep_smallest(noise, int(noise.shape[1] * (1 - mask_ratio)))


def make_mask(noise: Tensor, *, mask_type: MaskType | str, grid: tuple[int, int, int], kept: int) -> Mask:
    """Hide tokens by one of the types of docs/masks.md.

    `random` keeps single tokens (as `random_mask`), `tube` the same positions in every time slot, `frame` whole time
    slots, `block` cuboids a quarter as long as the grid along each axis. `prospective` keeps the first slots,
    `retrospective` the last, `interpolation` both ends (the start has one more if their number is odd): these
    three depend on the grid alone, every clip has the same mask.

    Args:
        noise: float32 (B, L).
        mask_type: The type, or the canonical text of a mask of the user's.
        grid: Tokens along time, height and width; L = t h w.
        kept: Visible tokens of each clip (K), `config.num_kept`: it is whole tubes or slots if the type has such.
            At most one block is cut short, so that the number is exact.

    Raises:
        ValueError: A mask of the user's is not installed, not trusted, or returns anything but a score per token.
    """
    assert noise.dtype == torch.float32, noise.dtype
    if mask_type == "random":
        return _keep_smallest(noise, kept)
    if mask_type not in _SCORES:
        use_mask(mask_type)
    return _keep_smallest(_SCORES[mask_type](noise.unflatten(1, grid)).flatten(1), kept)


def use_mask(mask_type: MaskType | str) -> None:
    """Load a mask of the user's, before it is needed: a model that is compiled finds it among the types.

    Raises:
        ValueError: It is not installed, or only a model file names it.
    """
    if mask_type == "random" or mask_type in _SCORES:
        return
    require_trust(mask_type, option=f"--mask '{mask_type}'")
    hook = load(mask_type, "masks")

    def scores(noise_Bthw: Tensor) -> Tensor:
        score = hook(noise_Bthw)
        if not isinstance(score, Tensor) or score.shape != noise_Bthw.shape:
            given = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise hook.refuse(f"returned {given}: it must return a tensor of {tuple(noise_Bthw.shape)}")
        return score

    _SCORES[mask_type] = scores


def running_cell(grid: tuple[int, int, int], *, predicted: int = 2, device: torch.device | None = None) -> Tensor:
    """Choose the tokens that a decoder with a share left out predicts (VideoMAE V2's running cell, arXiv 2303.16727).

    Each slot is tiled with cells of 2 x 2 tokens; the same part of every cell is predicted, and that part runs on by
    one token per slot: in any four successive slots each position is predicted equally often.

    Args:
        grid: Tokens along time, height and width; cells at the right and lower edge are cut if a side is odd.
        predicted: Number of a cell's four tokens that are predicted, 1 to 3.
        device: Device of the result.

    Returns:
        bool (L,) in token order, True where predicted; to be combined with the encoder's hidden tokens.
    """
    assert 0 < predicted < CELL_TOKENS, predicted
    t, h, w = (torch.arange(length, device=device) for length in grid)
    number_in_cell = (h % 2)[:, None] * 2 + w % 2
    return ((number_in_cell + t[:, None, None]) % CELL_TOKENS < predicted).flatten()


def predicted_ids(ids_masked: Tensor, cell: Tensor, count: int) -> Tensor:
    """Choose the hidden tokens that a decoder predicts, the running cell's first, equally many per clip.

    The number of a random mask's hidden tokens in the cell differs by a few from clip to clip: the last in the order
    of their noise are left out, or the first outside the cell are added.

    Args:
        ids_masked: int64 (B, M), hidden tokens.
        cell: bool (L,), from `running_cell`.
        count: Number of tokens to take, `config.num_predicted`.

    Returns:
        int64 (B, count).
    """
    outside = (~cell[ids_masked]).to(torch.uint8)
    return ids_masked.gather(1, torch.argsort(outside, dim=1, stable=True)[:, :count])


def _keep_smallest(score: Tensor, kept: int) -> Mask:
    ids_shuffle = torch.argsort(score, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= kept).float()
    return Mask(ids_shuffle[:, :kept], ids_shuffle[:, kept:], ids_restore, mask)


def _ranks(noise: Tensor) -> Tensor:
    """Return int64 (B, N), 0 for the smallest noise. Ranks have no ties, which would cut two units short."""
    return torch.argsort(torch.argsort(noise, dim=1, stable=True), dim=1)


def _tube(noise_Bthw: Tensor) -> Tensor:
    first = noise_Bthw[:, :1]
    return _ranks(first.flatten(1)).view_as(first).expand_as(noise_Bthw)


def _frame(noise_Bthw: Tensor) -> Tensor:
    return _ranks(noise_Bthw[:, :, 0, 0])[:, :, None, None].expand_as(noise_Bthw)


def _block(noise_Bthw: Tensor) -> Tensor:
    cuboid = torch.zeros((), dtype=torch.int64, device=noise_Bthw.device)  # each token's cuboid, t h w
    cuboids = 1
    for length in noise_Bthw.shape[1:]:
        edge = -(-length // 4)
        along = -(-length // edge)
        cuboid = cuboid[..., None] * along + torch.arange(length, device=noise_Bthw.device) // edge
        cuboids *= along
    return _ranks(noise_Bthw.flatten(1)[:, :cuboids])[:, cuboid]


def _slots(noise_Bthw: Tensor) -> Tensor:
    """Return each token's time slot, (B, t, h, w)."""
    return torch.arange(noise_Bthw.shape[1], device=noise_Bthw.device)[:, None, None].expand_as(noise_Bthw)


def _interpolation(noise_Bthw: Tensor) -> Tensor:
    slots = _slots(noise_Bthw)
    return torch.minimum(slots, noise_Bthw.shape[1] - 1 - slots)


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "tube": _tube,
    "frame": _frame,
    "block": _block,
    "prospective": _slots,
    "retrospective": lambda noise_Bthw: -_slots(noise_Bthw),
    "interpolation": _interpolation,
}


def other_masks(
    trained: MAEConfig, kinds: Sequence[str], *, ratio: float | None
) -> tuple[dict[str, MAEConfig], list[str]]:
    """Return a model's settings under other masks than it was trained with.

    Args:
        trained: The settings of the training.
        kinds: Types of masks, in order; an empty sequence means the training's type, `all` every type that fits, the
            training's first.
        ratio: Share of the tokens that is hidden; None is the training's.

    Returns:
        The settings by type; and for each type of `all` that does not fit the model, its name and the reason.

    Raises:
        ValueError: A type is unknown or does not fit; with `all`, no type fits.
    """
    ratio = trained.mask_ratio if ratio is None else ratio
    if list(kinds) != ["all"]:
        chosen: list[Any] = list(kinds) or [trained.mask_type]  # the config refuses an unknown type
        return {kind: replace(trained, mask_type=kind, mask_ratio=ratio) for kind in chosen}, []
    masks, unfit = {}, []
    for kind in sorted(get_args(MaskType), key=lambda kind: kind != trained.mask_type):
        try:
            masks[kind] = replace(trained, mask_type=kind, mask_ratio=ratio)
        except ValueError as error:
            unfit.append(f"{kind}: {error}")
    if not masks:
        raise ValueError(unfit[0])
    return masks, unfit


def mask_noise(*, seed: int, epoch: int, positions: Iterable[int], views: int, tokens: int) -> Tensor:
    """Draw uniform noise for the masks of a batch, a pure function of the arguments (counter-based: Philox 4x64).

    Args:
        seed: The run's seed, 0 or more.
        epoch: The epoch, 0 or more.
        positions: Each sample's position in the epoch's global order.
        views: Views of a sample (R).
        tokens: Tokens of a view (L).

    Returns:
        float32 (B*R, L) on [0, 1), on the CPU; the views of a sample follow one another.
    """
    noise = np.empty((len(positions := list(positions)), views, tokens), dtype=np.float32)
    bits = np.random.Philox(key=philox_key(seed, Stream.MASK))  # one for all: making it takes longer than drawing
    fresh, generator = bits.state, np.random.Generator(bits)
    for row, position in enumerate(positions):
        for view in range(views):
            # The lowest word counts the draws of one view; the three above name it.
            fresh["state"]["counter"] = np.array([0, view, int(position), epoch], dtype=np.uint64)
            bits.state = fresh
            generator.random(dtype=np.float32, out=noise[row, view])
    return torch.from_numpy(noise.reshape(-1, tokens))
