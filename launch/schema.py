"""The JSON schema of a command's recipes is printed, by which editors complete, explain and check them.

mae3d schema pretrain > pretrain.schema.json     # then, in a recipe:
# yaml-language-server: $schema=pretrain.schema.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, examples_of
from launch.common.commands import ALL
from launch.common.settings import schema
from mae3d.io.console import lasting_output, tolerate_any_text
from mae3d.io.help_page import add_help


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="mae3d schema", allow_abbrev=False, add_help=False)
    add_help(made, examples=examples_of(str(__doc__)), description=str(__doc__).partition("\n")[0])
    names = [name for name, command in ALL.items() if command.config]
    made.add_argument("command", metavar="COMMAND", choices=names, help=f"one of {', '.join(names)}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2 for a command without recipes."""
    tolerate_any_text()
    name = parser().parse_args(argv).command
    with lasting_output():
        print(json.dumps(schema(config_of(name), title=f"mae3d {name} --config"), indent=1), flush=True)
    return EXIT_DONE


def config_of(name: str) -> Any:
    """Return the class of a command's config."""
    module, _, kind = ALL[name].config.partition(":")
    return getattr(import_module(module), kind)


if __name__ == "__main__":
    sys.exit(main())
