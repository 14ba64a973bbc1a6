"""A batch that DALI failed on ─► the same batch decoded frame by frame, what does not decode substituted.

encoded, decoded = decode_again(source, encoded)     # decoded[i] is (T, H, W, C) uint8 on the CPU

The decoder is PIL's: slower than DALI's on the CPU, and to the same pixels (both are libjpeg-turbo's).
"""

import io

import numpy as np
import torch
from PIL import Image

from mae3d.io.console import one_line
from pipelines.reading.source import ClipSource, EncodedBatch, FetchedClip, encoded_batch


def decode_again(source: ClipSource, encoded: EncodedBatch) -> tuple[EncodedBatch, list[torch.Tensor], int]:
    """Decode every clip of a batch on the CPU; replace clips that do not decode as damaged ones are replaced.

    Args:
        source: reads substitutes.
        encoded: the batch.

    Returns:
        The batch as it was decoded, one (T, H, W, C) tensor a clip, and how many of its clips did not decode.

    Raises:
        DataError: the storage fails, or no substitute of a clip decodes.
    """
    per_clip = len(encoded.frames) // len(encoded.clips)
    fetched, decoded, failed = [], [], 0
    for i, (requested, clip) in enumerate(zip(encoded.request.clips, encoded.clips, strict=True)):
        jpegs = encoded.frames[i * per_clip : (i + 1) * per_clip]
        fetch = FetchedClip(clip, jpegs, encoded.substituted[i])
        frames = _decode(fetch)
        if not isinstance(frames, torch.Tensor):
            failed += 1
            # The substitute is drawn from the requested clip, so that it does not depend on where it failed.
            fetch = source.fetch(requested, lambda candidate: _wrong(_decode(candidate)))
            frames = _decode(fetch)
            assert isinstance(frames, torch.Tensor), "judged just before"
        fetched.append(fetch)
        decoded.append(frames)
    again = encoded_batch(encoded.request, fetched)
    known = set(encoded.damage)
    damage = (*encoded.damage, *(one for one in again.damage if one not in known))
    return EncodedBatch(again.request, again.clips, again.frames, again.substituted, damage), decoded, failed


def _wrong(frames: torch.Tensor | tuple[int, str]) -> tuple[int, str] | None:
    return None if isinstance(frames, torch.Tensor) else frames


def _decode(fetched: FetchedClip) -> torch.Tensor | tuple[int, str]:
    """Return a clip, (T, H, W, C) uint8, or the number of a frame that does not decode and the reason."""
    frames = []
    for number, jpeg in zip(fetched.clip.frames.tolist(), fetched.frames, strict=True):
        try:
            image = np.array(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
        except Exception as error:  # damage takes many forms in PIL: OSError, ValueError, SyntaxError, struct.error
            return number, f"it does not decode ({one_line(error)})"
        frames.append(torch.from_numpy(image))
    return torch.stack(frames)
