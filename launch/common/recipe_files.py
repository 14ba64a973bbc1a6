"""Recipes, YAML files of settings: found by name, read and checked by line; the facts in their first comments.

read_recipe("k400_vit_large", options, {})          # {"model": {"preset": ...}, ...}
for recipe in shipped(): recipe.name, recipe.source, recipe.expect
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.common.arguments import Options, nearest
from mae3d.io.files import looked_for
from mae3d.io.resume import dotted

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A recipe of launch/recipes, by the first comment of its file: a sentence, `# source:` and `# expect:`.

    Attributes:
        name: The file's, without its suffix.
        command: The command that it is for.
        title: Its first sentence.
        source: Where its settings come from.
        expect: The figure that it is to reach, or why there is none.
    """

    name: str
    command: str
    title: str
    source: str
    expect: str


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def shipped() -> list[Recipe]:
    """Return the shipped recipes, by command and name."""
    recipes = [described(name) for name in names()]
    return sorted(recipes, key=lambda recipe: (recipe.command != "pretrain", recipe.name))


def described(name: str) -> Recipe:
    """Return a shipped recipe; ValueError for one whose first comment lacks `# source:` or `# expect:`."""
    comment = re.match(r"(?:#.*\n)*", (RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    lines = [line.removeprefix("#").strip() for line in (comment[0] if comment else "").splitlines()]
    facts, at = {"title": ""}, "title"
    for line in lines:
        key, colon, value = line.partition(": ")
        if colon and key in ("source", "expect"):
            at, line = key, value
        elif not line:
            at = ""
        if at:
            facts[at] = f"{facts.get(at, '')} {line}".strip()
    if lacking := {"source", "expect"} - facts.keys():
        raise ValueError(f"{RECIPES / name}.yaml: the first comment has no line `# {min(lacking)}: ...`")
    title = re.split(r"(?<=[\w)`])[.:;] ", f"{facts['title']} ")[0].strip(" .")
    command = "finetune" if name.startswith("finetune") else "pretrain"
    return Recipe(name, command, title, facts["source"], facts["expect"])


def path_of(name: str) -> Path:
    """Return the file that `--config` names: a path, or a shipped recipe's name.

    Raises:
        ValueError: there is neither.
    """
    path = Path(name)
    if not path.exists() and (RECIPES / f"{name}.yaml").exists():
        path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        hint = looked_for(name) if path.parent != Path() else ""
        raise ValueError(f"--config {name}: no such file{hint}, nor a recipe: {', '.join(names())}")
    return path


def read_recipe(name: str, options: Options, from_recipe: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a recipe, nested by section.

    Args:
        name: a path or a shipped recipe's name.
        options: those of the command.
        from_recipe: as `launch.common.cli.parse` has it.

    Raises:
        ValueError: there is no such file, it is no recipe, or a key is unknown.
    """
    path = path_of(name)
    text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of sections, like `model:`")
    known = options.known
    for key, line in _keys_with_lines(tree, options):
        if key not in known and (not from_recipe or key.partition(".")[0] in known):
            raise ValueError(f"{path}, line {line}: unknown key {key}{nearest(key, known, '')}")
    settings = dotted(values) if from_recipe else {}
    renamed = {option: settings[key] for option, key in from_recipe.items() if key in settings}
    return {name: value for name, value in values.items() if name in known} | renamed


def _keys_with_lines(node: yaml.Node, options: Options, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            if not options.is_mapping(name):
                yield from _keys_with_lines(value, options, f"{name}.")
