"""The command `mae3d`, or `python -m launch`: its first word names a program of this package, which gets the rest.

    mae3d preprocess build --videos archive --fps 7.5 --out shards
    mae3d pretrain --config demo --data.shards shards --run.dir runs/a

Each command is the program of its file, with the same arguments and exit codes: `mae3d embed` is launch/embed.py.
"""

import sys
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

if not __package__:  # run as a file: use the checkout this file sits in
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.commands import ALL, COMMANDS


def overview() -> str:
    """Return the list of the commands, by group."""
    width = max(map(len, ALL)) + 2
    lines = ["usage: mae3d COMMAND ...", "", "MAE3D pretrains video masked autoencoders on your own footage."]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:{width}}{command.summary}" for name, command in commands.items())]
    end = "mae3d COMMAND --help has the options that people use, --help all every one; mae3d --version."
    return "\n".join([*lines, "", *textwrap.wrap(end, 80)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, and return its exit code; 2 for a word that names none."""
    from mae3d.io.console import lasting_output, tolerate_any_text

    tolerate_any_text()
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ALL:
        code: int = import_module(ALL[name].module).main(rest)
        return code
    if name not in ("-h", "--help", "--version"):
        close = get_close_matches(name, ALL, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(ALL)}"
        print(f"error: mae3d {name}: no such command; {hint}", file=sys.stderr)
        return 2
    with lasting_output():
        if name == "--version":
            from mae3d import __version__

            print(f"mae3d {__version__}", flush=True)
        else:
            print(overview(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
