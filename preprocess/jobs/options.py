"""The options of `mae3d preprocess build` and `index` are declared and read: options ─► Source, Settings, Options.

Nothing heavy is imported for --help.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mae3d.io.bounds import Bounds, bounded, check_bounds, check_number

if TYPE_CHECKING:
    from preprocess.plan.settings import Settings
    from preprocess.sources.source import Source

T = TypeVar("T")

_VIDEOS = "folders (walked), tars, video files, or lists: `path[,label]`, Kinetics' csv, Something-Something's json"


# The options that people use, which `--help` shows first.
USUAL = (
    *("--videos", "--frames", "--images", "--out", "--fps", "--short-side", "--segment-seconds", "--layout"),
    *("--labels", "--workers", "--dry-run", "--append"),
)
USUAL_OF_INDEX = ("--videos", "--out", "--fps", "--segment-seconds", "--labels", "--workers", "--dry-run", "--append")


@dataclass(frozen=True)
class Options:
    """The way to run a build; no option changes the bytes that are written."""

    workers: int = bounded(1, least=1, most=4096)
    on_error: str = "skip"  # or "fail": the first unusable row or sample stops the build
    max_bad_fraction: float = bounded(0.05, least=0, most=1)  # of rows of a ledger or list that do not fit the disk
    overwrite: bool = False
    append: bool = False  # add the samples that the sources have and the dataset has not
    slice: tuple[int, int] | None = None  # (i, n): only shards i, i + n, i + 2 n, ..., and no merge
    scheduler: str = ""  # address or scheduler file of the Dask cluster that builds the shards
    scratch: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))  # for files on their way to a URL
    plan_only: bool = False  # write the plan, and estimate the rest from a trial of some samples
    ignore_space: bool = False  # begin although the disk is too small by far

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.slice and not 0 <= self.slice[0] < self.slice[1]:
            raise ValueError(f"--slice {self.slice[0]}/{self.slice[1]}: slices of {self.slice[1]} count from 0")
        if self.slice and (self.append or self.overwrite):
            raise ValueError("--slice goes with neither --append nor --overwrite: give those to one run")
        if self.plan_only and self.overwrite:
            raise ValueError("--plan-only removes nothing, so it goes with an empty or new --out, not with --overwrite")
        if self.append and self.overwrite:
            raise ValueError("--append and --overwrite exclude each other")


def add_build_options(build: argparse.ArgumentParser) -> None:
    """Add the options of `build` to its parser."""
    group = build.add_argument_group("input: what to read")
    _add_media(group)
    _add_input(group)
    group = build.add_argument_group("output: what to write")
    _add_output(group)
    _add_encoding(group)
    _add_limits(build.add_argument_group("limits: what is too much, or too bad"))
    _add_running(build.add_argument_group("running: how to run"))


def add_index_options(index: argparse.ArgumentParser) -> None:
    """Add the options of `index` to its parser: those of `build` that belong to videos, and to no encoding."""
    group = index.add_argument_group("input: what to read")
    group.add_argument("--videos", nargs="+", required=True, metavar="PATH", help=_VIDEOS)
    _add_input(group)
    _add_output(index.add_argument_group("output: what to write"))
    _add_limits(index.add_argument_group("limits: what is too much, or too bad"))
    _add_running(index.add_argument_group("running: how to run"))
    index.set_defaults(layout="files", frames=None, images=None, stacks=None, source=None, ledger=None, fill_gaps=False)


def _add_media(group: argparse._ArgumentGroup) -> None:
    given = group.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--frames",
        nargs="+",
        metavar="ROOT",
        help="folders of frame folders (ROOT/<name> or ROOT/train/<name>), a video each, or a video a prefix; without "
        "a ledger one folder per class",
    )
    given.add_argument("--videos", nargs="+", metavar="PATH", help=_VIDEOS)
    given.add_argument(
        "--images", nargs="+", metavar="PATH", help="folders (walked) or image files; each a sample of one frame"
    )
    given.add_argument(
        "--stacks",
        nargs="+",
        metavar="PATH",
        help="folders (walked), TIFF stacks and DICOM files, each a video; of DICOM files of one frame, each series",
    )
    given.add_argument(
        "--source",
        metavar="HOOK",
        help="samples of a source of yours, MODULE:NAME or 'MODULE:NAME(key=value)' (docs/hooks.md)",
    )
    group.add_argument("--ledger", metavar="FILE", help="rows `name first last label` (ROOT/ledger.csv)")
    group.add_argument("--fill-gaps", action="store_true", help="a missing frame becomes the one before it")


def _add_input(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--delimiter", choices=["auto", "comma", "space", "tab", "semicolon"], default="auto")
    group.add_argument("--header", choices=["auto", "yes", "no"], default="auto", help="whether ledger or list has one")
    group.add_argument(
        "--columns",
        nargs="+",
        default=(),
        metavar="ROLE=COLUMN",
        help="columns of lists and ledgers by name or number: path, id, label, start, end (s), start_ms, end_ms, span, "
        "start_frame, end_frame, last_frame, duration, num_frames, offset, total_frames, split, ignore",
    )
    group.add_argument(
        "--events",
        nargs="+",
        default=(),
        metavar="LIST",
        help="spans of the videos below --videos DIR, with labels: `name,start_s,end_s,label`, EPIC-Kitchens', AVA's or"
        " ActivityNet's lists, or a folder of Cholec80's; every event is a sample",
    )
    group.add_argument(
        "--event-label",
        default="",
        metavar="COLUMN",
        help="the labels of --events (label, action, verb_class or verb: the first that is there)",
    )
    group.add_argument("--background", default="", metavar="LABEL", help="makes samples of what lies between --events")
    group.add_argument(
        "--background-seconds", type=float, default=1.0, metavar="S", help="no shorter ones (%(default)s)"
    )
    group.add_argument("--root", default="", metavar="DIR", help="where the paths in lists begin (beside the list)")
    group.add_argument(
        "--labels",
        choices=["auto", "folder", "none"],
        default="auto",
        help="of trees: the first folder if all files lie in one (auto), or where there is one (folder); also of lists "
        "without labels",
    )
    group.add_argument(
        "--label-names",
        default="",
        metavar="FILE",
        help="names of ids 0, 1, ...: one per line, with or without its number, or a dataset.json",
    )
    group.add_argument(
        "--label-base",
        choices=["auto", "0", "1"],
        default="auto",
        help="the number that lists give to the first of the label names (auto: the file's own)",
    )
    group.add_argument(
        "--label-kind",
        choices=["auto", "numbers", "words"],
        default="auto",
        help="whether labels are ids or names, sorted, numbers by value (auto: numbers are ids if all labels are)",
    )
    group.add_argument("--label-key", default="", metavar="NAME", help="label of a tar's video: entry of its .json")
    group.add_argument("--split", default="", metavar="NAME", help="marks all samples (train/, val/, test/ folders)")
    group.add_argument(
        "--allow-outside", action="store_true", help="take `..`, links that leave the root, linked folders"
    )
    group.add_argument(
        "--source-fps",
        "--event-fps",
        type=float,
        metavar="HZ",
        help="frame numbers per second; frames in steps of N: HZ / N (in lists of videos: the rate of each video)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", required=True, metavar="OUT", help="where the shards go: a folder, or a URL (s3://...)")
    group.add_argument(
        "--short-side", type=int, default=256, metavar="PIXELS", help="scale down to this, never up (%(default)s)"
    )
    group.add_argument("--fps", type=float, metavar="HZ", help="store at most this many frames per second (all)")
    cut = group.add_mutually_exclusive_group()
    cut.add_argument(
        "--segment-seconds", type=float, metavar="S", help="cut into even pieces of at most S seconds (60, 1800 frames)"
    )
    cut.add_argument("--segment-frames", type=int, metavar="N", help="cut into even pieces of at most N frames")
    cut.add_argument("--whole", action="store_true", help="cut nothing")
    group.add_argument("--shard-size", type=int, metavar="N", help="samples per shard (1000; fewer for small sets)")


def _add_encoding(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--quality", type=int, default=90, metavar="Q", help="of frames that are encoded (%(default)s)")
    group.add_argument(
        "--check",
        choices=["decode", "header"],
        default="decode",
        help="how JPEGs that can stay as they are show that they are whole: decoded strictly, or by header and end",
    )
    group.add_argument(
        "--layout",
        choices=["jpeg", "video", "png"],
        default="jpeg",
        help="frames as JPEGs, or as H.264 in groups: a quarter of the bytes. Needs --fps, the rate of training: "
        "frames that training skips are decoded all the same. png: without loss, 8 or 16 bits, any channels "
        "(%(default)s)",
    )
    group.add_argument("--channels", type=int, default=0, metavar="N", help="of layout png (those of the first sample)")
    group.add_argument("--bits", type=int, default=0, metavar="8|16", help="of layout png (those of the first sample)")
    group.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that become black and white, of frames that are not of 8 bits (none: values stay)",
    )
    group.add_argument("--crf", type=float, default=17.0, help="quality of layout video, lower is better (%(default)s)")
    group.add_argument("--preset", default="veryfast", help="x264's effort for layout video (%(default)s)")
    group.add_argument("--group", type=int, default=8, metavar="N", help="frames of a group at most (%(default)s)")
    group.add_argument(
        "--min-psnr", type=float, default=30.0, metavar="DB", help="refuse samples that come out worse (%(default)s)"
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-pixels", type=int, default=1 << 26, metavar="N", help="refuse larger frames (%(default)s)"
    )
    group.add_argument(
        "--max-frames", type=int, default=1_000_000, metavar="N", help="refuse longer samples (%(default)s)"
    )
    group.add_argument(
        "--max-gb", type=float, default=100.0, metavar="GB", help="refuse samples that would write more (%(default)s)"
    )
    group.add_argument(
        "--timeout",
        dest="timeout_s",
        type=float,
        default=60.0,
        metavar="S",
        help="give a sample up when its decoder makes no progress for so long (%(default)s)",
    )
    group.add_argument(
        "--on-error", choices=["skip", "fail"], default="skip", help="what anything unusable does (%(default)s)"
    )
    group.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="stop beyond this share of ledger or list rows that do not fit the disk (%(default)s)",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="threads, each with a decoder (%(default)s: one per core)",
    )
    group.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="print frames, bytes and hours from a trial of some samples, and whether they fit; writes nothing to OUT",
    )
    group.add_argument("--plan-only", action="store_true", help="likewise, and write the plan that a build begins with")
    group.add_argument("--ignore-space", action="store_true", help="begin although OUT's disk is too small by far")
    group.add_argument("--overwrite", action="store_true", help="replace the dataset at OUT, and no other file there")
    group.add_argument(
        "--append", action="store_true", help="add what is not in the dataset yet: new samples, shards and label ids"
    )
    group.add_argument(
        "--slice",
        metavar="I/N",
        help="build only the shards whose number modulo N is I (from 0); when all are done: `merge OUT`",
    )
    group.add_argument(
        "--scheduler", default="", metavar="ADDRESS", help="a Dask cluster to work on: tcp://host:8786, or its file"
    )
    group.add_argument(
        "--scratch", default=tempfile.gettempdir(), metavar="DIR", help="for what is fetched or unpacked (%(default)s)"
    )
    group.add_argument("--scratch-gb", type=float, default=20.0, metavar="GB", help="for all workers (%(default)s)")


def settings_of(options: argparse.Namespace) -> "Settings":
    """Return the settings of the dataset."""
    from preprocess.plan.settings import Settings

    return _from_options(Settings, options)


def run_of(options: argparse.Namespace) -> Options:
    """Return the way to run the build."""
    return _from_options(Options, options, slice=_slice(options.slice), scratch=Path(options.scratch))


def _from_options(kind: type[T], options: argparse.Namespace, **changed: object) -> T:
    """Return a dataclass whose fields are the options of the same names."""
    named = {one.name for one in fields(kind)} & vars(options).keys()  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in named} | changed)


def _slice(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal()):
        raise ValueError(f"--slice {text}: two numbers, as in 0/50, the first of 50 slices")
    return int(i), int(n)


def source_of(options: argparse.Namespace, settings: "Settings") -> "Source":
    """Return the source that the options name.

    Raises:
        ValueError: there is no such file or folder, or options do not go together.
    """
    from preprocess.sources.fetched_files import Scratch
    from preprocess.sources.frame_folders import frame_folders
    from preprocess.sources.hooked import hooked_source
    from preprocess.sources.images import image_files
    from preprocess.sources.source import Reading
    from preprocess.sources.stacks import stack_files
    from preprocess.sources.videos import video_files

    if options.events and (len(options.videos or ()) != 1 or options.root):
        raise ValueError("--events looks for its videos in one folder, without --root: give --videos DIR")
    if not options.events and (options.event_label or options.background):
        raise ValueError("--event-label and --background belong to --events; lists have --columns label=COLUMN")
    if not options.frames and options.ledger:
        raise ValueError("--ledger belongs to --frames; videos have lists")
    if not (options.frames or options.stacks) and options.fill_gaps:
        raise ValueError("--fill-gaps belongs to --frames and --stacks, whose frames are numbered files")
    if not options.videos and (options.root or options.label_key):
        raise ValueError("--root and --label-key belong to the lists and tars of --videos")
    if options.label_base != "auto" and not options.label_names:
        raise ValueError("--label-base is the number that lists give to the first of --label-names; give those too")
    if options.images and settings.layout == "video":
        raise ValueError("--layout video belongs to --frames and --videos; pictures have no motion to code")
    if options.source and options.columns:
        raise ValueError("--columns belongs to lists and ledgers; a --source gives labels itself")
    if (options.images or options.stacks) and options.columns:
        raise ValueError("--columns belongs to the lists of --videos, or to the ledger of --frames")
    columns = (*options.columns, *([f"label={options.event_label}"] if options.event_label else []))
    root = options.videos[0] if options.events else options.root
    reading = _from_options(Reading, options, columns=columns, events=bool(options.events), root=root)
    check_number("background_seconds", options.background_seconds, Bounds(above=0))
    check_number("scratch_gb", options.scratch_gb, Bounds(above=0))
    scratch = Scratch(Path(options.scratch), round(options.scratch_gb * 1e9 / options.workers))
    if options.images:
        return image_files(options.images, settings=settings, reading=reading, scratch=scratch)
    if options.stacks:
        return stack_files(options.stacks, settings=settings, reading=reading, scratch=scratch, workers=options.workers)
    if options.source:
        return hooked_source(options.source, settings=settings, reading=reading, scratch=scratch)
    if options.videos:
        given = options.events or options.videos
        return video_files(given, settings=settings, reading=reading, scratch=scratch, workers=options.workers)
    return frame_folders(options.frames, options.ledger, settings=settings, reading=reading, scratch=scratch)
