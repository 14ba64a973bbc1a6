"""V-JEPA's encoders are known by their fixed table of positions or by having none, and V-JEPA 2.1's by their names.

state dict ─► format, size of the clip

The table is recomputed and compared, so that nobody else's encoder of the same names is taken for one. V-JEPA adds it
to the tokens; V-JEPA 2 has rotations instead, and its files may still hold the table, which is then left out.
"""

import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mae3d.model.encoder import sine_table
from mae3d.weights.formats import State

_TOLERANCE = 0.02  # of a value from -1 to 1: bfloat16 rounds by less
_FRAMES_OF_V1 = 8  # time slots of all of V-JEPA's published weights; those of V-JEPA 2 have 32
_SIDES_OF_V1 = (14, 24)  # rows of patches, 224 and 384 px of 16; V-JEPA 2 has 16 and 24, of 256 and 384 px
_FIRST_OF_V2_1 = "video_mod_embed"

logger = logging.getLogger(__name__)


def jepa_format(foreign: State) -> str:
    """Return `vjepa`, `vjepa2` or `vjepa2_1` for an encoder of theirs in their names, "" for any other state dict."""
    if _FIRST_OF_V2_1 in foreign and any(name.startswith("norms_block.") for name in foreign):
        return "vjepa2_1"
    kernel = foreign["patch_embed.proj.weight"]
    if kernel.ndim != 5 or "blocks.0.attn.qkv.weight" not in foreign or "cls_token" in foreign:
        return ""
    tables = [name for name in foreign if name.startswith("pos_embed")]
    if not tables:
        logger.info("an encoder without positions: taken as V-JEPA 2, which rotates queries and keys")
        return "vjepa2"
    grid = fixed_grid(foreign)
    if grid is None:
        return ""
    t, side = grid
    is_first = t == _FRAMES_OF_V1 and side in _SIDES_OF_V1
    logger.warning(
        "V-JEPA's fixed positions, of %d x %d x %d tokens, as the published weights of %s: taken as that",
        *(t, side, side),
        "V-JEPA, which adds them" if is_first else "V-JEPA 2, which rotates queries and keys instead",
    )
    return "vjepa" if is_first else "vjepa2"


def fixed_grid(foreign: State) -> tuple[int, int] | None:
    """Return the (t, h = w) of which `pos_embed` is V-JEPA's table, None if it is another or there is none."""
    table = foreign.get("pos_embed")
    if table is None or table.ndim != 3 or table.is_meta:
        return None
    _, tokens, width = table.shape
    for t, side in _grids(tokens):
        for even in (True, False):
            for some_tokens in (torch.tensor([tokens - 1]), torch.arange(tokens)):  # the last one, before all
                fixed = fixed_positions(t, side, width, even=even, tokens=some_tokens)
                if (table[0, some_tokens].float() - fixed).abs().max() > _TOLERANCE:
                    break
            else:
                return t, side
    return None


def fixed_positions(t: int, side: int, width: int, *, even: bool, tokens: Tensor | None = None) -> Tensor:
    """Compute V-JEPA's table (t * side * side, width): sines and cosines of time, row and column, one after another.

    Args:
        t: Time slots.
        side: Rows, and columns.
        width: The encoder's.
        even: Whether each axis has a third of the width (`uniform_power`); else time has the half.
        tokens: Numbers of the tokens whose rows are computed; None for all.
    """
    widths = (2 * math.ceil(width / 6),) * 3 if even else (width // 2, width // 4, width // 4)
    numbers = torch.arange(t * side * side) if tokens is None else tokens
    axes = ((t, numbers // side**2), (side, numbers // side % side), (side, numbers % side))
    parts = [sine_table(count, part)[axis] for (count, axis), part in zip(axes, widths, strict=True)]
    return torch.cat(parts, dim=-1)[:, :width]


def plain_jepa(name: str, foreign: State) -> dict[str, Tensor]:
    """Return the tensors that the encoder computes with.

    V-JEPA 2.1 adds a vector to all tokens of a video, which goes into the bias of the patches, and has a norm per
    level, of which the last one is the encoder's; it has a second first layer for images, which is left out.
    """
    state = dict(foreign)
    if name == "vjepa2_1":
        added = state.pop(_FIRST_OF_V2_1).flatten()
        state["patch_embed.proj.bias"] = state["patch_embed.proj.bias"] + added
        norms = sorted({int(key.split(".")[1]) for key in state if key.startswith("norms_block.")})
        state |= {f"norm.{kind}": state[f"norms_block.{norms[-1]}.{kind}"] for kind in ("weight", "bias")}
        left_out = ("norms_block.", "patch_embed_img.", "img_mod_embed")
        state = {key: tensor for key, tensor in state.items() if not key.startswith(left_out)}
    if name in ("vjepa2", "vjepa2_1"):
        state.pop("pos_embed", None)
    return state


def _grids(tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the (t, h = w) that have so many tokens."""
    for side in range(1, math.isqrt(tokens) + 1):
        if tokens % (side * side) == 0:
            yield tokens // (side * side), side
