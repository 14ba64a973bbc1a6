"""Shards that were built in slices ─► one dataset.

    lines = merge("out/shards", slices=50)          # when all slices are there

What one run would have written, byte for byte.
"""

import tempfile
from pathlib import Path

from preprocess.dataset.index import PLAN_NAME, DatasetError
from preprocess.dataset.schema import shard_name
from preprocess.jobs.lock import hold
from preprocess.jobs.lock_store import LOCK_NAME
from preprocess.jobs.output import open_output
from preprocess.jobs.output_state import finish, survey, told_when_full
from preprocess.plan.plan import read_plan
from preprocess.plan.rejects import TooManyBad, some


def merge(out: str | Path, *, slices: int | None = None, scratch: Path | None = None) -> list[str]:
    """Writes the index of a dataset whose shards were built in slices.

    Args:
        out: the dataset's folder or URL.
        slices: how many slices there were, to tell whose shards are missing.
        scratch: for files on their way to a URL.

    Raises:
        DatasetError: there is no plan, or shards are missing: the message names them.
        Locked: a run or a slice is at work there.
        OSError: `out` cannot be written.
    """
    output = open_output(out, scratch=scratch or Path(tempfile.gettempdir()))
    if PLAN_NAME not in output.sizes():
        raise DatasetError(f"{output}: no {PLAN_NAME}; `preprocess build` makes it, with or without --slice")
    with (
        told_when_full(output),
        hold(output.board, LOCK_NAME, job="merge", excludes=True) as lock,
        output.work() as folder,
    ):
        output.fetch([PLAN_NAME], folder)
        plan = read_plan(folder / PLAN_NAME)
        surveyed = list(survey(range(plan.num_shards), output, folder))
        missing = [found.number for found in surveyed if found.kept is None]
        if missing:
            names = [
                shard_name(number) + (f" (slice {number % slices}/{slices})" if slices else "") for number in missing
            ]
            raise DatasetError(
                f"{output}: {len(missing)} of {plan.num_shards} shards are not there: {some(names)}; run "
                + ("these slices" if slices else "the slices that they belong to (their number modulo the slices)")
                + " again, then merge"
            )
        if not any(found.kept for found in surveyed):
            raise TooManyBad(f"{output}: not one of {len(plan)} samples could be used; the slices tell why")
        return [*finish(plan, output, folder, lock), *plan.notes]
