"""Video files are probed by several workers: paths ─► the properties that their headers announce, for the plan.

look = partial(probe, roots, settings)
for facts in map_over_workers(look, [(0, "a.mp4"), (0, "b.mp4")], workers=8, unit="file"): ...
"""

from collections.abc import Sequence

from mae3d.video.errors import MediaError
from mae3d.video.facts import VideoFacts
from mae3d.video.levels import StackFacts
from preprocess.plan.settings import Settings
from preprocess.sources.roots import Root
from preprocess.workers.decoder import decoder

Probed = VideoFacts | MediaError
ProbedStack = StackFacts | MediaError


def probe(roots: Sequence[Root], settings: Settings, path: tuple[int, str]) -> Probed:
    """Return the properties of one file, its length checked against its packets; its MediaError if it cannot be opened.

    Args:
        roots: the roots of the source.
        settings: the limits.
        path: the position of the root, and the path below it.
    """
    root, name = path
    try:
        with roots[root].local([name]) as (file,):
            return decoder().probe(file, settings=settings, measure=True)
    except MediaError as error:
        return error


def probe_stack(roots: Sequence[Root], settings: Settings, path: tuple[int, str]) -> ProbedStack:
    """Return the properties of one TIFF or DICOM file; arguments as `probe`."""
    root, name = path
    try:
        with roots[root].local([name]) as (file,):
            return decoder().probe_stack(file, settings=settings)
    except MediaError as error:
        return error
