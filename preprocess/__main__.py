"""The command line of preprocessing is read and run: `mae3d preprocess build | index | merge | ...`.

Exit codes: 0 done, 2 bad usage or input (damage that `verify` finds included), 3 the disk or the network failed.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mae3d.io.console import tolerate_any_text
from mae3d.io.help_page import add_command, add_help
from mae3d.io.storage import access_remedy, is_url
from preprocess.inspect.curate_options import add_curate_options
from preprocess.jobs.options import USUAL, USUAL_OF_INDEX, add_build_options, add_index_options

if TYPE_CHECKING:
    from preprocess.jobs.build import BuildResult
    from preprocess.jobs.options import Options
    from preprocess.plan.settings import Settings

_DESCRIPTION = "Frame folders, videos or images to shards, once; shards to be trained on many times."
_EXAMPLES = (
    "mae3d preprocess build --videos clips more.csv --fps 15 --segment-seconds 10 --out out/shards",
    "mae3d preprocess build --frames dataset --ledger dataset/ledger.csv --out out/shards",
    "mae3d preprocess build --videos surgeries --events phases --background other --fps 5 --out out/phases",
    "mae3d preprocess build --images imagenet/train --split train --out out/images",
    "mae3d preprocess build --stacks scans --layout png --out out/scans",
    "mae3d preprocess index --videos archive --out out/index",
    "mae3d preprocess verify out/shards --full",
    "mae3d preprocess inspect out/shards 000000017 --to sample.png",
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; nothing heavy is imported for --help."""
    top = argparse.ArgumentParser(prog="mae3d preprocess", description=_DESCRIPTION, allow_abbrev=False, add_help=False)
    add_help(top, examples=_EXAMPLES)
    commands = top.add_subparsers(dest="command", required=True)
    add_build_options(add_command(commands, "build", "media to shards", usual=USUAL, examples=_EXAMPLES[:5]))
    text = "a dataset over videos that stay where and as they are"
    index = add_command(commands, "index", text, usual=USUAL_OF_INDEX, examples=_EXAMPLES[5:6])
    add_index_options(index)
    merge = add_command(commands, "merge", "the index of shards that were built in slices")
    merge.add_argument("out", metavar="OUT", help="the dataset's folder or URL")
    merge.add_argument("--slices", type=int, metavar="N", help="how many there were: names those that are missing")
    merge.add_argument("--scratch", type=Path, metavar="DIR", help="for what is on its way to a URL ($TMPDIR)")
    split = add_command(commands, "split", "training and validation set of a finished dataset")
    split.add_argument("out", metavar="OUT", help="the dataset's folder or URL; its shards are not touched")
    split.add_argument(
        "--by",
        required=True,
        metavar="name|COLUMN",
        help="what is never on both sides: a recording, or a table's column",
    )
    split.add_argument("--fractions", default="train=0.9,val=0.1", metavar="...", help="of the groups (%(default)s)")
    split.add_argument("--seed", type=int, default=0, metavar="K", help="of the draw (%(default)s)")
    split.add_argument("--table", default="", metavar="FILE", help=".csv or .parquet with COLUMN for every recording")
    split.add_argument("--key", default="name", metavar="COLUMN", help="of the table: the recording (%(default)s)")
    text = "flag near-duplicates, still, black and frozen clips, and cuts; deletes nothing"
    curate = add_command(commands, "curate", text)
    add_curate_options(curate)
    text = "check a finished dataset (bytes of the tars: --full)"
    verify = add_command(commands, "verify", text, examples=_EXAMPLES[6:7])
    verify.add_argument("out", metavar="OUT", help="the dataset's folder; of a URL the listing and the index")
    verify.add_argument(
        "--full", action="store_true", help="read the tars too: finds damage in them that left their size as it was"
    )
    verify.add_argument("--decode", action="store_true", help="decode every frame; names the frames that are damaged")
    verify.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads at most (%(default)s)"
    )
    report = add_command(commands, "report", "one HTML page of what is in a dataset")
    report.add_argument("out", type=Path, metavar="OUT", help="the dataset's folder")
    report.add_argument("--to", type=Path, metavar="FILE", help="the page (OUT-report.html)")
    report.add_argument("--samples", type=int, default=24, metavar="N", help="to show, drawn at random (%(default)s)")
    report.add_argument("--seed", type=int, default=0, metavar="K", help="of the draw (%(default)s)")
    report.add_argument("--no-images", action="store_true", help="leave the frames out")
    report.add_argument("--hash-names", action="store_true", help="12 digits of the sha256 in place of every name")
    inspect = add_command(commands, "inspect", "all that is known of one sample", examples=_EXAMPLES[7:])
    inspect.add_argument("out", type=Path, metavar="OUT", help="the dataset's folder")
    inspect.add_argument("sample", metavar="KEY|NAME", help="its key or name")
    inspect.add_argument("--to", type=Path, metavar="FILE.png", help="writes some of its frames, side by side")
    demo = add_command(commands, "demo", "render a small labelled dataset of frame folders")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to; gets train/ and ledger.csv")
    demo.add_argument("--clips", type=int, default=600, metavar="N", help="number of clips (%(default)s)")
    demo.add_argument("--size", type=int, default=64, metavar="PIXELS", help="height and width (%(default)s)")
    demo.add_argument("--frames", type=int, default=24, metavar="F", help="frames of a clip (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, metavar="K", help="of all that is random (%(default)s)")
    demo.add_argument(
        "--motions",
        nargs="+",
        default=["6"],
        metavar="NAME",
        help="the labels, or how many of: left right up down zoom_in zoom_out turn_left turn_right up_left up_right"
        " down_left down_right (6)",
    )
    demo.add_argument(
        "--textures",
        nargs="+",
        default=["waves"],
        metavar="NAME",
        help="what the camera sees: soft waves of colour, others in every clip; the photographs china and flower; 8"
        " drawn pictures each of noise and shapes, others with another seed (waves)",
    )
    demo.add_argument(
        "--objects", choices=["shapes", "digits"], default="shapes", help="what drifts over it (%(default)s)"
    )
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    tolerate_any_text()
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.command in ("build", "index"):
            return _build(options)
        if options.command == "demo":
            return _demo(options)
        _hide_pandas()
        if options.command == "merge":
            return _merge(options)
        if options.command == "split":
            return _split(options)
        if options.command == "curate":
            return _curate(options)
        if options.command == "verify":
            return _verify(options)
        if options.command == "report":
            return _report(options)
        return _inspect(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = str(error.filename or options.out)
        remedy = f"{access_remedy(where)}, and " if is_url(where) else ""
        print(
            f"error: {where}: {error.strerror or error}; {remedy}run the same command again to go on", file=sys.stderr
        )
        return 3
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130


def _build(options: argparse.Namespace) -> int:
    from preprocess.jobs.options import run_of, settings_of, source_of

    settings, run = settings_of(options), run_of(options)
    if options.dry_run:
        print("\n".join(_foreseen(options, settings, run)))
        return 0
    from preprocess.workers.decoder import end_ahead, start_ahead

    try:
        start_ahead(0 if run.scheduler else 1)  # its imports run beside those of this process
        if not options.source:
            _hide_pandas()
        from preprocess.jobs.build import build

        result = build(source_of(options, settings), settings=settings, options=run, out=options.out)
    finally:
        end_ahead()
    made = "plan, and nothing else yet" if options.plan_only else "dataset"
    print("\n".join([*_result_lines(result), f"{made}: {options.out}"]))
    return 0


def _hide_pandas() -> None:
    """Let pyarrow find no pandas, for which it looks once: the import takes 0.2 s, and no table here is from there.

    What converts to pandas or from it still works.
    """
    import pyarrow as pa

    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([0])
    finally:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _NoPandas]  # others have joined it


class _NoPandas:
    """A finder of modules that refuses one."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError(name)


def _foreseen(options: argparse.Namespace, settings: "Settings", run: "Options") -> list[str]:
    """Return what a build would do, by a plan in a folder of its own: nothing is written to the output."""
    from preprocess.dataset.index import META_NAME, PLAN_NAME, DatasetError
    from preprocess.jobs.build import build
    from preprocess.jobs.options import source_of
    from preprocess.jobs.output import FolderOutput, open_output
    from preprocess.jobs.output_state import refuse_foreign

    if run.append:
        raise ValueError("--dry-run foresees a whole build, not what --append adds: leave one of them out")
    output = open_output(options.out, scratch=run.scratch)
    begun = not run.overwrite and output.has(PLAN_NAME)
    if not run.overwrite:
        refuse_foreign(output)
    with tempfile.TemporaryDirectory(prefix="mae3d-dry-run-", dir=run.scratch) as folder:
        if begun:  # as the build would do, it is read again, and compared with the settings
            with output.work() as there:
                output.fetch([PLAN_NAME], there)
                shutil.copyfile(there / PLAN_NAME, Path(folder) / PLAN_NAME)
        run = replace(run, plan_only=True, overwrite=False, slice=None)
        try:
            result = build(source_of(options, settings), settings=settings, options=run, out=folder)
        except DatasetError as error:
            raise DatasetError(str(error).replace(folder, str(options.out))) from error
    out = Path(options.out).absolute()
    there = next((path for path in (out, *out.parents) if path.exists()), out)
    free = shutil.disk_usage(there).free if isinstance(output, FolderOutput) else None
    lines = [*_result_lines(replace(result, free_bytes=free))]
    if begun:
        left = "with all shards" if output.has(META_NAME) else "whose missing shards a build makes"
        lines.append(f"{options.out} has this plan already, {left}")
    return [*lines, f"dry run: nothing is written to {options.out}"]


def _result_lines(result: "BuildResult") -> list[str]:
    """Return the outcome of a build or merge in a few lines for people."""
    from preprocess.jobs.estimate import lines_of
    from preprocess.jobs.output_state import planned_reject_lines, summary_lines

    plan = result.plan
    if result.estimate is not None:
        estimate = lines_of(result.estimate, free_bytes=result.free_bytes)
        return [*estimate, *planned_reject_lines(plan), *plan.notes]
    if result.slice is not None:
        num_shards, num_built = result.slice.num_shards, result.slice.num_built
        return [
            f"{num_shards} of {plan.num_shards} shards are of this slice, {num_built} were built now; `merge` is next"
        ]
    lines = summary_lines(result.summary) if result.summary is not None else []
    if result.appended == (0, 0):
        return [*lines, "nothing new to append"]
    if result.appended is not None:
        lines.append("appended: {} samples in {} shards".format(*result.appended))
    return [*lines, *plan.notes]


def _merge(options: argparse.Namespace) -> int:
    from preprocess.jobs.merge_slices import merge

    result = merge(options.out, slices=options.slices, scratch=options.scratch)
    print("\n".join([*_result_lines(result), f"dataset: {options.out}"]))
    return 0


def _split(options: argparse.Namespace) -> int:
    from preprocess.jobs.split import split
    from preprocess.plan.splits import parse_fractions

    fractions = parse_fractions(options.fractions)
    given = {"by": options.by, "table": options.table, "key": options.key, "seed": options.seed}
    print("\n".join([*split(options.out, fractions=fractions, **given), f"dataset: {options.out}"]))
    return 0


def _curate(options: argparse.Namespace) -> int:
    from preprocess.dataset.curation import CURATION_NAME
    from preprocess.inspect.curate import curate
    from preprocess.inspect.curate_options import settings_of

    counts, was_there = curate(options.out, settings_of(options), workers=options.workers)
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    print(f"{'finished already' if was_there else 'written'}: {options.out / CURATION_NAME}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from preprocess.inspect.verify import verify

    problems = verify(options.out, full=options.full, decode=options.decode, workers=options.workers)
    for problem in problems:
        print(problem)
    print(f"{options.out}: {f'{len(problems)} problems' if problems else 'whole'}")
    return 2 if problems else 0


def _report(options: argparse.Namespace) -> int:
    from preprocess.inspect.report import write_report

    path = options.to or Path(f"{options.out}-report.html")
    write_report(
        options.out,
        path,
        samples=options.samples,
        seed=options.seed,
        images=not options.no_images,
        hash_names=options.hash_names,
    )
    print(f"report: {path}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from preprocess.dataset.index import open_dataset
    from preprocess.inspect.filmstrip import write_filmstrip
    from preprocess.inspect.sample import describe, find

    dataset = open_dataset(options.out, exclude_bad_shards=True)
    rows = find(dataset, options.sample)
    print("\n".join(describe(dataset, rows)))
    if options.to:
        write_filmstrip(dataset, rows[0], options.to)
        print(f"frames: {options.to}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from preprocess.demo.camera import MOTIONS
    from preprocess.demo.clips import render_demo

    motions = options.motions
    if len(motions) == 1 and motions[0].isdecimal():
        if not 2 <= int(motions[0]) <= len(MOTIONS):
            raise ValueError(f"--motions {motions[0]}: there are 2 to {len(MOTIONS)}")
        motions = MOTIONS[: int(motions[0])]
    render_demo(
        options.out,
        clips=options.clips,
        size=options.size,
        frames=options.frames,
        seed=options.seed,
        motions=motions,
        textures=options.textures,
        objects=options.objects,
    )
    print(f"{options.clips} clips of {options.frames} frames, {options.size}x{options.size}: {options.out}/ledger.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
