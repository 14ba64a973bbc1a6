"""Curves of runs are drawn, and a run is summarised in words.

mae3d metrics plot RUN [RUN2 ...] --out curves.png --keys loss eval_loss
mae3d metrics summary RUN
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mae3d.io.console import tolerate_any_text
from mae3d.io.files import refuse_foreign
from mae3d.io.help_page import add_command, add_help
from mae3d.tracking.history import rows_of, summary
from mae3d.tracking.plots import plot_curves


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mae3d metrics", description=str(__doc__).splitlines()[0], allow_abbrev=False, add_help=False
    )
    add_help(parser, examples=str(__doc__).splitlines()[2:4])
    commands = parser.add_subparsers(dest="command", required=True)
    plot = add_command(commands, "plot", "curves of one or several runs, as a PNG")
    plot.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run (--run.dir)")
    plot.add_argument("--out", type=Path, default=Path("curves.png"), help="the PNG (curves.png)")
    plot.add_argument("--keys", nargs="+", help="names in metrics.jsonl to draw; default: all that there are")
    described = add_command(commands, "summary", "a run in words")
    described.add_argument("run", type=Path, metavar="RUN", help="folder of a run (--run.dir)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad usage or a run without lines, 3 for I/O."""
    tolerate_any_text()
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "summary":
            print(summary(arguments.run))
        else:
            refuse_foreign(arguments.out)
            plot_curves({run: rows_of(run) for run in arguments.runs}, arguments.out, keys=arguments.keys)
            print(f"curves: {arguments.out}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or arguments.out}: {error.strerror or error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
