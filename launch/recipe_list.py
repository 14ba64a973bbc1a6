"""The shipped recipes are listed, each with its source and the figure to expect; or one is printed.

mae3d recipes
mae3d recipes k400_vit_large > mine.yaml
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE, examples_of, fail
from launch.common.recipe_files import RECIPES, Recipe, names, shipped
from mae3d.io.console import lasting_output, tolerate_any_text
from mae3d.io.help_page import add_help
from mae3d.model.config import nearest


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="mae3d recipes", allow_abbrev=False, add_help=False)
    add_help(made, examples=examples_of(str(__doc__)), description=str(__doc__).partition("\n")[0])
    made.add_argument("name", nargs="?", metavar="NAME", help="print this recipe (a list)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2 for a recipe that there is not."""
    tolerate_any_text()
    name = parser().parse_args(argv).name
    if name and name not in names():
        fail(f"mae3d recipes {name}: no such recipe; {nearest(name, names())}")
    with lasting_output():
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8") if name else listed(shipped())
        print(text, end="", flush=True)
    return EXIT_DONE


def listed(recipes: Sequence[Recipe]) -> str:
    """Return the list: a line on each recipe, below it its source and the figure to expect."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines: list[str] = []
    command = ""
    for recipe in recipes:
        if recipe.command != command:
            command = recipe.command
            lines += ["", f"mae3d {command} --config …"] if lines else [f"mae3d {command} --config …"]
        facts = (("", recipe.title), ("source: ", recipe.source), ("expect: ", recipe.expect))
        for at, (key, text) in enumerate(facts):
            head = f"  {'' if at else recipe.name:26}"
            indent = " " * len(head)
            lines += textwrap.wrap(f"{key}{text}", width, initial_indent=head, subsequent_indent=f"{indent}  ")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
