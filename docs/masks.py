"""Draw the picture of masks.md: the parts of a drawn clip that each mask hides.

python docs/masks.py          # writes docs/masks.png
"""

import sys
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from mae3d.analysis.reconstruct import GREY
from mae3d.io.contact_sheet import Frames, filmstrip
from mae3d.model.config import MAEConfig, MaskType
from mae3d.model.masking import Mask, make_mask, mask_noise, predicted_ids, running_cell
from mae3d.model.patches import unpatchify

SIZE, FRAMES, RATIO, DECODER_RATIO = 96, 16, 0.75, 0.5
LEFT_OUT = 40  # the grey of a hidden token that the decoder leaves out


def draw_clip() -> Frames:
    """Return a ball that bounces through a landscape: (FRAMES, SIZE, SIZE, 3)."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    clip = np.empty((FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    for i, frame in enumerate(clip):
        time = i / (FRAMES - 1)
        frame[:] = (150, 200, 235)
        hills = 58 + 10 * np.sin((columns + 24 * time) / 13)
        frame[rows > hills] = (70, 130, 80)
        frame[rows > 78] = (200, 180, 140)
        centre = 70 - 48 * abs(np.cos(2 * np.pi * time)), 12 + 72 * time
        frame[np.hypot(rows - centre[0], columns - centre[1]) < 9] = (215, 60, 50)
    return clip


def draw_masks() -> dict[str, Frames]:
    """Return a caption per row, with the clip and its hidden tokens in grey."""
    clip, rows = draw_clip(), {"the clip": draw_clip()}
    for kind in get_args(MaskType):
        config, mask = mask_of(kind)
        shade_L = torch.where(mask.mask[0].bool(), GREY, 255)
        rows[f"{kind}: {config.num_tokens - config.num_kept} of {config.num_tokens} tokens hidden"] = hide(
            clip, shade_L
        )
    config, mask = mask_of("tube")
    decoded = predicted_ids(mask.ids_masked, running_cell(config.grid), config.num_predicted)[0]
    shade_L = torch.where(mask.mask[0].bool(), LEFT_OUT, 255).scatter(0, decoded, GREY)
    caption = f"tube with decoder_mask_ratio {DECODER_RATIO}: the dark ones are left out in training"
    return rows | {caption: hide(clip, shade_L)}


def mask_of(kind: MaskType) -> tuple[MAEConfig, Mask]:
    """Return the mask of one clip, of this type."""
    config = MAEConfig(
        img_size=SIZE, num_frames=FRAMES, mask_type=kind, mask_ratio=RATIO, decoder_mask_ratio=DECODER_RATIO
    )
    noise = mask_noise(seed=0, epoch=0, positions=[0], views=1, tokens=config.num_tokens)
    return config, make_mask(noise, mask_type=kind, grid=config.grid, kept=config.num_kept)


def hide(clip: Frames, shade_L: torch.Tensor) -> Frames:
    """Return the clip with its tokens in a shade of grey; 255 leaves a token as it is."""
    config = MAEConfig(img_size=SIZE, num_frames=FRAMES)
    values = config.t_patch_size * config.patch_size**2 * 3
    shade = unpatchify(shade_L[None, :, None].expand(-1, -1, values), grid=config.grid, patch_size=config.patch_size)[0]
    return np.where(shade == 255, clip, shade).astype(np.uint8)


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
    filmstrip(draw_masks()).quantize(64).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
