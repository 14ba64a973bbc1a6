"""Trees of images become requests for the plan, each image a sample of one frame.

    source = image_files(["imagenet/train"], settings=settings)
    result = source.find()      # ScanResult(requests, problems, notes)

An image's label is the first folder below the root, as in ImageNet's trees, if every image lies in one. Training
repeats the one frame to a clip.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from preprocess.plan.label_names import LabelNames
from preprocess.plan.plan import ScanResult
from preprocess.plan.samples import Request
from preprocess.plan.settings import Settings
from preprocess.problems import Problem
from preprocess.sources.archives import is_compressed_list
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.file_kinds import HEAD_BYTES, IMAGE_SUFFIXES, UNREAD_IMAGE_SUFFIXES, is_picture
from preprocess.sources.folder_labels import infer_labels
from preprocess.sources.roots import Listing, Root
from preprocess.sources.source import (
    PLAIN,
    SCRATCH,
    Reading,
    Source,
    encodable,
    given_label_names,
    identified,
    not_followed,
    opened,
    other_files,
    reading_identity,
    same_names,
    shown,
    staying,
    unread,
    unread_archives,
)

log = logging.getLogger(__name__)


def image_files(
    given: Sequence[str | Path],
    *,
    settings: Settings,
    reading: Reading = PLAIN,
    scratch: Scratch = SCRATCH,
) -> Source:
    """Return requests for images in folders (walked, sorted; no hidden files or linked folders) or named one by one.

    Args:
        given: paths or URLs.
        settings: sizes.
        reading: labels.
        scratch: room for what is fetched.

    Raises:
        ValueError: one of `given` does not exist, or a setting needs a clock, which images have not.
    """
    if settings.fps or settings.source_fps or settings.segment_seconds or settings.segment_frames:
        raise ValueError("--fps, --source-fps, --segment-seconds and --segment-frames have no meaning for --images")
    roots = [opened(one, "--images takes folders and image files", scratch=scratch) for one in given]
    for (root, path), one in zip(roots, given, strict=True):
        if path and not is_picture(path):
            is_compressed_list(root.head(path, HEAD_BYTES), path, str(one))
    names = given_label_names(reading, scratch=scratch)
    identity = [identified(root, path) for root, path in roots] + reading_identity(reading, names)
    return Source(tuple(root for root, _ in roots), "", identity, lambda: _request_images(roots, reading, names))


def _request_images(roots: Sequence[tuple[Root, str]], reading: Reading, label_names: LabelNames | None) -> ScanResult:
    requests: list[Request] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for number, (root, path) in enumerate(roots):
        listing = Listing([path]) if path else root.files(follow=reading.allow_outside)
        names = [name for name in listing.names if path or _suffix(name) in IMAGE_SUFFIXES]
        rest = [name for name in listing.names if not path and _suffix(name) not in IMAGE_SUFFIXES]
        unreadable = [name for name in rest if _suffix(name) in UNREAD_IMAGE_SUFFIXES]
        rest = [name for name in rest if _suffix(name) not in UNREAD_IMAGE_SUFFIXES]
        pictures, others, strange = unread(root, listing, rest, "image", reading)
        log.info(
            "%s: %d images, %d other files", path or root.where, len(names) + len(pictures), len(rest) - len(pictures)
        )
        notes += not_followed(root, listing.links, listing.loops) + other_files(root.name, others)
        notes += unread_archives(root, others)
        names, refused = staying(listing, sorted([*names, *pictures]), reading)
        problems += [*refused, *strange, *map(_unread_picture, unreadable)]
        placed = infer_labels(names, labels=reading.labels)
        if not path:
            log.info("%s", placed.note)
        for name, labels, split in zip(names, placed.labels, placed.splits, strict=True):
            timeless = Request("image", number, name, name, labels, name, -1, 0, 1, math.nan, math.nan)
            timeless.split = split
            requests.append(timeless)
    requests, odd = encodable(requests)
    return ScanResult(requests, problems + odd, notes + same_names(requests), label_names, reading.label_kind)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _unread_picture(name: str) -> Problem:
    remedy = "--stacks reads them" if _suffix(name) == ".dcm" else "convert them to JPEG or PNG"
    message = f"{_suffix(name)} pictures are not read; {remedy}"
    return Problem("unknown_format", message, shown(name))
