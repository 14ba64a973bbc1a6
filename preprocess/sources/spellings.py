"""Names of files that differ only in how they are spelled are found: letter case, accents, separators.

paths = by_spelling([("Clips/A.mp4", "Clips/A.mp4")])
paths[spelling(".\\\\clips\\\\a.MP4")]             # ["Clips/A.mp4"]
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath


def plain_path(path: str) -> str:
    """Return a path with slashes for backslashes, and without what changes nothing (`./`, a slash at the end)."""
    return str(PurePosixPath(path.replace("\\", "/")))


def spelling(name: str) -> str:
    """Return what names have in common that differ in letter case, separators, or how Unicode composes accents."""
    return unicodedata.normalize("NFC", plain_path(name)).casefold()


def by_spelling(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the paths of each spelling, sorted.

    Args:
        named: names, each with the path that it stands for.
    """
    paths: dict[str, set[str]] = defaultdict(set)
    for name, path in named:
        paths[spelling(name)].add(path)
    return {spelled: sorted(of_spelling) for spelled, of_spelling in paths.items()}
