"""The retention of a run's checkpoints: the last, every nth and the best stay; leftovers of killed saves go.

keep_best(run, folder, score=0.81)
prune(run, keep_last=2, keep_every=0)
"""

import json
import logging
import math
from collections.abc import Collection, Iterable
from pathlib import Path

from mae3d.checkpoints.format import foreign, leftovers, pointed, read_state, remove, step_of, up_to_latest
from mae3d.io.files import TEMPORARY_PREFIX, write_text
from mae3d.tracking.run_dir import BEST, CHECKPOINTS, LATEST

logger = logging.getLogger(__name__)


def keep_best(run: Path, folder: Path, *, score: float) -> None:
    """Point `best` at a checkpoint if its score, the greater the better, beats that of the current one.

    Of equal scores the first stays; NaN, where nothing could be scored, is never the best. `score` must be in the
    checkpoint's state, as `score`: comparing reads it there.
    """
    if math.isnan(score):
        logger.warning("%s has no score (nothing could be validated on): it cannot be the best checkpoint", folder)
        return
    best = pointed(run, BEST)
    if best is not None:
        named = run / CHECKPOINTS / best
        try:
            if named != folder and read_state(named)["score"] >= score:
                return
        except (OSError, json.JSONDecodeError, KeyError) as error:
            logger.warning("%s, the best checkpoint so far, is damaged (%s): %s takes its place", named, error, folder)
    write_text(run / CHECKPOINTS / BEST, folder.name + "\n")


def prune(run: Path, *, keep_last: int, keep_every: int, in_use: Collection[str] = ()) -> None:
    """Remove old checkpoints and leftovers of a killed save; a failure is logged and costs nothing but space.

    Those later than `latest` stay, and do not count as the last: the run comes to these steps again. So does a folder
    in which somebody has put anything else.

    Args:
        run: the run's folder.
        keep_last: newest ones that stay.
        keep_every: those of multiples of this step stay; 0 for none.
        in_use: names of those that are being read.
    """
    folder = run / CHECKPOINTS
    names = [path.name for path in up_to_latest(run) if not foreign(path)]
    for name in superseded(names, best=pointed(run, BEST), keep_last=keep_last, keep_every=keep_every):
        if name not in in_use:
            remove(folder / name)
    sweep(run)


def superseded(names: Iterable[str], *, best: str | None, keep_last: int, keep_every: int) -> list[str]:
    """Return the checkpoints, none later than `latest`, that are not the last, nor every nth, nor the best."""
    old = sorted(names)[:-keep_last]
    return [name for name in old if name != best and (not keep_every or step_of(name) % keep_every)]


def sweep(run: Path) -> None:
    """Remove half-written checkpoints; only when no rank is writing."""
    for path in leftovers(run):
        remove(path)
    for pointer in (LATEST, BEST):
        for path in (run / CHECKPOINTS).glob(f"{TEMPORARY_PREFIX}*-{pointer}"):  # what `write_text` had begun
            path.unlink(missing_ok=True)
