"""The checkpoints of a run are listed, and which of them are complete.

mae3d checkpoint inspect RUN               # names and sizes: quick for any size
mae3d checkpoint inspect RUN --full        # reads every file and compares its sha256
mae3d checkpoint inspect RUN --step 500    # the files of one
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mae3d.io.console import tolerate_any_text
from mae3d.io.help_page import add_command, add_help
from mae3d.tracking.run_dir import CHECKPOINTS, Run


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mae3d checkpoint", description=str(__doc__).splitlines()[0], allow_abbrev=False, add_help=False
    )
    add_help(parser, examples=str(__doc__).splitlines()[2:5])
    inspect = add_command(parser.add_subparsers(dest="command", required=True), "inspect", "a run's checkpoints")
    inspect.add_argument("run", type=Path, metavar="RUN", help="folder of a run (--run.dir)")
    inspect.add_argument("--step", type=int, help="the files of this step's checkpoint")
    inspect.add_argument("--full", action="store_true", help="compare every file's sha256, not only names and sizes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad usage or where no checkpoint is whole."""
    tolerate_any_text()
    arguments = parser().parse_args(argv)
    from mae3d.checkpoints import format as checkpoint  # loads torch, which --help does without
    from mae3d.checkpoints.format import CheckpointError
    from mae3d.checkpoints.table import files_of, look, table

    run, full = arguments.run, arguments.full
    try:
        entries = look(run, full=full)
        if not entries:
            raise CheckpointError(f"{run / CHECKPOINTS}: no checkpoints are here")
        if arguments.step is not None:
            entries = [entry for entry in entries if checkpoint.step_of(entry.name) == arguments.step]
            if not entries:
                raise CheckpointError(f"{run / CHECKPOINTS}: no checkpoint of step {arguments.step}")
        print(*table(run, entries, remote=_remote_of(run)), sep="\n")
        if arguments.step is not None:
            print(*files_of(checkpoint.step_folder(run, arguments.step), full=full), sep="\n")
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if all(entry.damage for entry in entries) else 0


def _remote_of(run: Path) -> tuple[str, list[str]] | None:
    """Return the run's mirror and the complete checkpoints there; print a warning if it cannot be reached."""
    from mae3d.checkpoints.mirror import complete

    url = Run(run).stored().get("run", {}).get("remote")
    if not url:
        return None
    try:
        return url, complete(url)
    except (OSError, ValueError) as error:
        print(f"{url}: cannot be reached ({getattr(error, 'strerror', None) or error})", file=sys.stderr)
        return None


if __name__ == "__main__":
    raise SystemExit(main())
