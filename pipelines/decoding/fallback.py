"""A batch that did not decode ─► the same batch decoded clip by clip on the CPU, what fails substituted.

encoded, decoded, failed = decode_again(decoder, source, encoded)     # decoded[i] is (T, H, W, C) uint8 on the CPU
"""

import torch

from pipelines.decoding.clip_decoder import BadFrameError, ClipDecoder
from pipelines.reading.source import ClipSource, EncodedBatch, FetchedClip, encoded_batch


def decode_again(
    decoder: ClipDecoder, source: ClipSource, encoded: EncodedBatch
) -> tuple[EncodedBatch, list[torch.Tensor], int]:
    """Decode every clip of a batch on the CPU; replace clips that do not decode as damaged ones are replaced.

    Args:
        decoder: of clips.
        source: reads substitutes.
        encoded: the batch.

    Returns:
        The batch as it was decoded, one (T, H, W, C) tensor a clip, and how many of its clips did not decode.

    Raises:
        DataError: the storage fails, or no substitute of a clip decodes.
    """

    def judge(candidate: FetchedClip) -> tuple[int, str] | None:
        try:
            decoder.decode(candidate)
        except BadFrameError as error:
            return error.frame, str(error)
        return None

    fetched, decoded, failed = [], [], 0
    for i, (requested, clip) in enumerate(zip(encoded.request.clips, encoded.clips, strict=True)):
        fetch = FetchedClip(clip, encoded.parts[i], encoded.substituted[i])
        try:
            frames = decoder.decode(fetch)
        except BadFrameError:
            failed += 1
            # The substitute is drawn from the requested clip, so that it does not depend on where it failed.
            fetch = source.fetch(requested, judge)
            frames = decoder.decode(fetch)
        fetched.append(fetch)
        decoded.append(frames)
    again = encoded_batch(encoded.request, fetched)
    known = set(encoded.damage)
    damage = (*encoded.damage, *(one for one in again.damage if one not in known))
    return EncodedBatch(again.request, again.clips, again.parts, again.substituted, damage), decoded, failed
