"""Shards that were built in slices are merged: shards ─► one dataset, byte for byte that of a single run.

result = merge("out/shards", slices=50)          # when all slices are there
"""

import tempfile
from pathlib import Path

from mae3d.io.bounds import Bounds, check_number
from mae3d.io.lock import hold
from mae3d.io.lock_store import LOCK_NAME
from preprocess.dataset.index import PLAN_NAME, DatasetError
from preprocess.dataset.schema import shard_name
from preprocess.jobs.build import BuildResult
from preprocess.jobs.output import open_output
from preprocess.jobs.output_state import explain_full_disk, finish, survey
from preprocess.plan.plan import read_plan
from preprocess.plan.rejects import TooManyBad, first_names


def merge(out: str | Path, *, slices: int | None = None, scratch: Path | None = None) -> BuildResult:
    """Write the index of a dataset whose shards were built in slices.

    Args:
        out: the dataset's folder or URL.
        slices: the number of slices, to name those whose shards are missing.
        scratch: for files on their way to a URL.

    Raises:
        DatasetError: there is no plan, or shards are missing: the message names them.
        Locked: a run or a slice is at work there.
        OSError: `out` cannot be written.
    """
    if slices is not None:
        check_number("slices", slices, Bounds(least=1))
    output = open_output(out, scratch=scratch or Path(tempfile.gettempdir()))
    if not output.has(PLAN_NAME):
        raise DatasetError(f"{output}: no {PLAN_NAME}; `preprocess build` makes it, with or without --slice")
    with (
        explain_full_disk(output),
        hold(output.locks, LOCK_NAME, job="merge", excludes=True) as lock,
        output.work() as folder,
    ):
        output.fetch([PLAN_NAME], folder)
        plan = read_plan(folder / PLAN_NAME)
        surveyed = list(survey(range(plan.num_shards), output, folder, all_expected=True))
        missing = [shard.number for shard in surveyed if shard.num_samples is None]
        if missing:
            names = [
                shard_name(number) + (f" (slice {number % slices}/{slices})" if slices else "") for number in missing
            ]
            raise DatasetError(
                f"{output}: {len(missing)} of {plan.num_shards} shards are not there: {first_names(names)}; run "
                + ("these slices" if slices else "the slices that they belong to (their number modulo the slices)")
                + " again, then merge"
            )
        if not any(shard.num_samples for shard in surveyed):
            raise TooManyBad(f"{output}: not one of {len(plan)} samples could be used; the slices' logs say why")
        return BuildResult(plan, finish(plan, output, folder, lock))
