"""Trees of images on disk ─► requests for the plan: each image a sample of one frame.

    source = image_files([Path("imagenet/train")], settings=settings)
    found = source.find()      # Found(requests, problems, notes)

An image's label is the first folder below the root, as in ImageNet's trees; images that lie in the root itself have
none. Training repeats the one frame to a clip.
"""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

from preprocess.plan import Found, Request, Settings
from preprocess.problems import Problem
from preprocess.roots import Folder
from preprocess.sources import Source

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def image_files(given: Sequence[Path], *, settings: Settings) -> Source:
    """Images in folders (walked, sorted; hidden files and linked folders are left out) or named one by one.

    Raises:
        ValueError: one of `given` does not exist, or a setting needs a clock, which images have not.
    """
    if settings.fps or settings.source_fps or settings.segment_seconds or settings.segment_frames:
        raise ValueError("--fps, --source-fps, --segment-seconds and --segment-frames have no meaning for --images")
    for path in given:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder; --images takes folders and image files")
    identity = [{"name": path.resolve().name} for path in given]
    roots = tuple(Folder(path if path.is_dir() else path.parent) for path in given)
    return Source(roots, "", identity, lambda: _request_images(given))


def _request_images(given: Sequence[Path]) -> Found:
    requests: list[Request] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for number, path in enumerate(given):
        names, others, links = _walk(path) if path.is_dir() else ([path.name], 0, 0)
        log.info("%s: %d images, %d other files", path, len(names), others)
        if links:
            notes.append(f"{path.name}: {links} linked folders were not followed")
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                shown = name.encode(errors="backslashreplace").decode()
                problems.append(Problem("odd_name", "its name is not UTF-8", shown, -1))
                continue
            folder, slash, _ = name.partition("/")
            labels = (folder,) if slash else ()
            requests.append(Request("image", number, name, name, labels, name, -1, 0, 1, math.nan, math.nan))
    return Found(requests, problems, notes)


def _walk(root: Path) -> tuple[list[str], int, int]:
    """Paths of the images below the root, sorted; how many other files there are, and links to folders."""
    names: list[str] = []
    others = links = 0
    for folder, folders, files in os.walk(root):
        below = Path(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += sum((below / name).is_symlink() for name in folders)
        for name in files:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                names.append((below / name).relative_to(root).as_posix())
            else:
                others += 1
    return sorted(names), others, links
