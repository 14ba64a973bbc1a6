"""The command `python -m mae3d.metrics` draws the curves of runs and summarises them.

python -m mae3d.metrics plot RUN [RUN2 ...] --out curves.png --keys loss eval_loss
python -m mae3d.metrics summary RUN
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mae3d.io.console import tolerate_any_text
from mae3d.io.files import refuse_foreign
from mae3d.tracking.history import rows_of, summary
from mae3d.tracking.plots import plot_curves


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m mae3d.metrics`; the exit code: 0, 2 for bad usage or a run without lines, 3 where it cannot write."""
    tolerate_any_text()
    parser = argparse.ArgumentParser(prog="python -m mae3d.metrics", description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    plot = commands.add_parser("plot", help="curves of one or several runs, as a PNG")
    plot.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run (--run.dir)")
    plot.add_argument("--out", type=Path, default=Path("curves.png"), help="the PNG (curves.png)")
    plot.add_argument("--keys", nargs="+", help="names in metrics.jsonl to draw; default: all that there are")
    described = commands.add_parser("summary", help="a run in words")
    described.add_argument("run", type=Path, metavar="RUN", help="folder of a run (--run.dir)")
    arguments = parser.parse_args(argv)
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
