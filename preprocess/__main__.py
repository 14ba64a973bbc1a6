"""The command line: `python -m preprocess build | verify | demo`.

Exit codes: 0 done, 2 bad usage or input (damage that `verify` finds included), 3 the disk or the network failed.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

_DESCRIPTION = "Frame folders, videos or images to shards, once; shards to be trained on many times."
_EPILOG = """examples:
  python -m preprocess build --frames dataset --ledger dataset/ledger.csv --out out/shards
  python -m preprocess build --videos clips more.csv --fps 15 --segment-seconds 10 --out out/shards
  python -m preprocess build --images imagenet/train --split train --out out/images
  python -m preprocess verify out/shards --full
  python -m preprocess demo --out out/demo/frames
"""


def parser() -> argparse.ArgumentParser:
    """The options of all commands; nothing heavy is imported for --help."""
    top = argparse.ArgumentParser(
        prog="python -m preprocess",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="build | verify | demo")
    _add_build(commands.add_parser("build", help="media to shards", allow_abbrev=False))
    verify = commands.add_parser("verify", help="check a finished dataset", allow_abbrev=False)
    verify.add_argument("out", type=Path, metavar="OUT", help="the dataset's folder")
    verify.add_argument("--full", action="store_true", help="check every byte against its checksum")
    verify.add_argument("--decode", action="store_true", help="decode every frame")
    demo = commands.add_parser("demo", help="render a small labelled dataset of frame folders", allow_abbrev=False)
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to; gets train/ and ledger.csv")
    demo.add_argument("--clips", type=int, default=240, metavar="N", help="number of clips (%(default)s)")
    demo.add_argument("--size", type=int, default=112, metavar="PIXELS", help="height and width (%(default)s)")
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
        default=["china", "flower"],
        metavar="NAME",
        help="what the camera looks at: the photographs china and flower, 8 drawn pictures each of noise and shapes,"
        " others with another seed (china flower)",
    )
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.command == "build":
            return _build(options)
        if options.command == "verify":
            return _verify(options)
        return _demo(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}; run the same command again to go on", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130


def _add_build(build: argparse.ArgumentParser) -> None:
    given = build.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--frames", type=Path, metavar="ROOT", help="folder of frame folders (ROOT/<name> or ROOT/train/<name>)"
    )
    given.add_argument(
        "--videos", type=Path, nargs="+", metavar="PATH", help="folders (walked), video files, or lists `path[,label]`"
    )
    given.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="folders (walked; the first folder below is the label) or image files; each a sample of one frame",
    )
    build.add_argument("--out", type=Path, required=True, metavar="OUT", help="where the shards go")
    build.add_argument("--ledger", type=Path, metavar="FILE", help="rows `name first last label` (ROOT/ledger.csv)")
    build.add_argument("--delimiter", choices=["auto", "comma", "space", "tab", "semicolon"], default="auto")
    build.add_argument("--header", choices=["auto", "yes", "no"], default="auto", help="whether the ledger has one")
    build.add_argument("--split", default="", metavar="NAME", help="marks all samples, e.g. train")
    build.add_argument(
        "--short-side", type=int, default=256, metavar="PIXELS", help="scale down to this, never up (%(default)s)"
    )
    build.add_argument("--quality", type=int, default=90, metavar="Q", help="of frames that are encoded (%(default)s)")
    build.add_argument("--fps", type=float, metavar="HZ", help="store at most this many frames a second (all)")
    build.add_argument("--source-fps", type=float, metavar="HZ", help="the rate that frame folders were taken at")
    cut = build.add_mutually_exclusive_group()
    cut.add_argument("--segment-seconds", type=float, metavar="S", help="cut into even pieces of at most S seconds")
    cut.add_argument("--segment-frames", type=int, metavar="N", help="cut into even pieces of at most N frames")
    build.add_argument("--shard-size", type=int, metavar="N", help="samples a shard (1000; fewer for small sets)")
    build.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s: one a core)"
    )
    build.add_argument(
        "--on-error", choices=["skip", "fail"], default="skip", help="what anything unusable does (%(default)s)"
    )
    build.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="stop beyond this share of ledger or list rows that do not fit the disk (%(default)s)",
    )
    build.add_argument("--overwrite", action="store_true", help="remove the dataset that is at OUT first")


def _build(options: argparse.Namespace) -> int:
    from preprocess.build import Options, build
    from preprocess.images import image_files
    from preprocess.plan import Settings
    from preprocess.sources import frame_folders, video_files

    settings = Settings(
        short_side=options.short_side,
        quality=options.quality,
        fps=options.fps,
        source_fps=options.source_fps,
        segment_seconds=options.segment_seconds,
        segment_frames=options.segment_frames,
        shard_size=options.shard_size,
        split=options.split,
    )
    if not options.frames and (options.ledger or options.source_fps):
        raise ValueError("--ledger and --source-fps belong to --frames; videos have lists and a clock of their own")

    if options.images:
        source = image_files(options.images, settings=settings)
    elif options.videos:
        source = video_files(options.videos, settings=settings)
    else:
        ledger = options.ledger or options.frames / "ledger.csv"
        source = frame_folders(
            options.frames, ledger, settings=settings, delimiter=options.delimiter, header=options.header
        )
    run = Options(
        workers=options.workers,
        on_error=options.on_error,
        max_bad_fraction=options.max_bad_fraction,
        overwrite=options.overwrite,
    )
    lines = build(source, settings=settings, options=run, out=options.out)
    print("\n".join([*lines, f"dataset: {options.out}"]))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from preprocess.verify import verify

    problems = verify(options.out, full=options.full, decode=options.decode)
    for problem in problems:
        print(problem)
    print(f"{options.out}: {f'{len(problems)} problems' if problems else 'whole'}")
    return 2 if problems else 0


def _demo(options: argparse.Namespace) -> int:
    from preprocess.demo import MOTIONS, render_demo

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
    )
    print(f"{options.clips} clips of {options.frames} frames, {options.size}x{options.size}: {options.out}/ledger.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
