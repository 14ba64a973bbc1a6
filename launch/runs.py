"""Folders of runs ─► a table of all runs, or a page that follows them.

mae3d runs                                    # the runs below this folder: state, step, loss, speed, checkpoint, ETA
mae3d runs runs /mnt/more --watch             # ... again and again, until Ctrl-C
mae3d runs runs --json                        # ... for programs
mae3d runs board runs                         # runs/board/board.html, rewritten every 30 s until Ctrl-C
mae3d runs board runs --serve                 # ... and served at http://127.0.0.1:8008/

Runs are looked at while they train; nothing is written into them.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, examples_of, reporting
from launch.report.runs_table import lines_of
from mae3d.io.console import tolerate_any_text
from mae3d.io.help_page import add_help
from mae3d.tracking.overview import RunStatus, find_runs

WATCH_S, BOARD_S, PORT = 5.0, 30.0, 8008
BOARD = "board"  # a folder beside the runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: bad usage or input, 3: I/O."""
    tolerate_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with reporting():
            return _board(arguments[1:]) if arguments[:1] == ["board"] else _table(arguments)
    except KeyboardInterrupt:  # the usual end of a command that follows runs
        print(file=sys.stderr)
        return EXIT_DONE


def _table(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mae3d runs",
        allow_abbrev=False,
        add_help=False,
        description="A table of the runs below folders: state, step, loss, speed, last checkpoint, ETA.",
        epilog="`mae3d runs board DIR` makes a page with curves, pictures and comparisons: mae3d runs board --help",
    )
    add_help(parser, examples=examples_of(str(__doc__))[:3])
    parser.add_argument("folders", nargs="*", type=Path, default=[Path()], metavar="DIR", help="default: this folder")
    parser.add_argument("--json", action="store_true", help="one JSON document with everything that is known")
    parser.add_argument("--watch", action="store_true", help="print it anew every few seconds, until Ctrl-C")
    parser.add_argument("--every", type=_seconds, default=WATCH_S, metavar="S", help="seconds between two (5)")
    options = parser.parse_args(arguments)
    if options.json and options.watch:
        parser.error("--json and --watch exclude each other")
    while True:
        statuses = list(find_runs(options.folders))
        if options.json:
            print(json.dumps([_plain(status) for status in statuses], indent=1))
            return EXIT_DONE
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        text = "\n".join(lines_of(statuses, width) or [f"no runs below {', '.join(map(str, options.folders))}"])
        clear = "\x1b[H\x1b[2J" if options.watch and sys.stdout.isatty() else ""
        print(f"{clear}{text}", flush=True)
        if not options.watch:
            return EXIT_DONE
        time.sleep(options.every)


def _board(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mae3d runs board",
        allow_abbrev=False,
        add_help=False,
        description="A page that follows the runs below a folder: curves, throughput, pictures, comparison, events. "
        "It is opened as a file, or served; it is rewritten until Ctrl-C.",
    )
    add_help(parser, examples=examples_of(str(__doc__))[3:])
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with runs in it")
    parser.add_argument("--out", type=Path, help="folder of the page (DIR/board)")
    parser.add_argument("--every", type=_seconds, default=BOARD_S, metavar="S", help="seconds between two states (30)")
    parser.add_argument("--once", action="store_true", help="write it once, and end")
    parser.add_argument("--serve", action="store_true", help="serve it over http as well, to this machine alone")
    parser.add_argument("--port", type=int, default=PORT, help="of --serve (8008); 0 is any that is free")
    parser.add_argument("--host", default="127.0.0.1", help="of --serve: 0.0.0.0 lets others in, who need no password")
    options = parser.parse_args(arguments)
    if options.once and options.serve:
        parser.error("--once and --serve exclude each other")
    from launch.report.board import Board
    from launch.report.board_server import BoardServer

    board = Board(options.folder, options.out or options.folder / BOARD, every_s=0 if options.once else options.every)
    count = board.write()
    print(f"{count:,} run{'' if count == 1 else 's'}: {board.page}", flush=True)
    if options.once:
        return EXIT_DONE
    if not options.serve:
        while True:
            time.sleep(options.every)
            board.write()
    with BoardServer(board.out, host=options.host, port=options.port) as server:
        print(f"http://{server.address}/", flush=True)
        while True:
            server.serve(options.every)
            board.write()


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.5 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text}: give 0.5 to 86400 seconds")
    return seconds


def _plain(status: RunStatus) -> dict[str, object]:
    return asdict(status) | {"folder": str(status.folder)}


if __name__ == "__main__":
    sys.exit(main())
