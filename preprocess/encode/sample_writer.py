"""A planned sample is appended to a tar: its .json, then its parts; nothing if it cannot be had.

    facts = write_sample(tar, row, files, settings=settings, opened=kept.open, progress=progress)

The child process of a decoder calls it.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from mae3d.video.reader import Video, open_video
from preprocess.encode.packet_index import index_sample
from preprocess.encode.sample import encode_sample
from preprocess.encode.tar_writer import TarWriter
from preprocess.plan.samples import Facts, PlannedSample
from preprocess.plan.settings import Settings

_NUMBERS = 256  # bytes that the numbers of a sample's .json may take


def write_sample(
    tar: TarWriter,
    sample: PlannedSample,
    files: Sequence[Path],
    *,
    settings: Settings,
    opened: Callable[..., AbstractContextManager[Video]] = open_video,
    progress: Callable[[str], None] = lambda position: None,
) -> Facts:
    """Append one sample to a tar, or nothing; the child calls it (`decoder_main`). Arguments as `encode_sample`.

    Raises:
        MediaError: the sample cannot be had.
        OSError: the tar cannot be written.
    """
    store = index_sample if settings.stored_as.is_in_place else encode_sample
    encode = partial(store, sample, files, settings=settings, opened=opened, progress=progress)
    return append_sample(tar, sample, encode, settings=settings)


def append_sample(
    tar: TarWriter,
    sample: PlannedSample,
    encode: Callable[..., Facts],
    *,
    settings: Settings,
    more: dict[str, Any] | None = None,
) -> Facts:
    """Append one sample to a tar, or nothing if its encoding fails.

    Args:
        tar: the tar.
        sample: its row of the plan.
        encode: hands the parts to its argument `sink`, and returns what they are.
        settings: of the dataset.
        more: entries of the sample's .json, as JSON has them, beside ours.
    """
    more = more or {}
    tar.begin(sample.key, len(json.dumps({"name": sample.name, **more})) + _NUMBERS)
    try:
        facts = encode(sink=tar.add)
    except BaseException:
        tar.abandon()
        raise
    tar.finish(_description(sample, facts, settings) | more)
    return facts


def _description(sample: PlannedSample, facts: Facts, settings: Settings) -> dict[str, Any]:
    """Return a sample's .json: everything but the labels, which live in the index only."""
    return {
        "name": sample.name,
        "range": [facts.first, facts.stop],
        "num_frames": facts.num_frames,
        "fps": None if math.isnan(facts.fps) else facts.fps,
        "start_s": None if math.isnan(facts.start_s) else facts.start_s,
        "width": facts.width,
        "height": facts.height,
        **settings.stored_as.description(),
    }
