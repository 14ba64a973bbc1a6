"""A command line, or a recipe's values ─► options as jsonargparse reads them; unknown names are refused.

options = Options(list(settings_of(PretrainConfig)))
options.normalised(["--data.weights", "2", "1", "--extend"])     # ["--data.weights=[2, 1]", "--extend=true"]
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from types import NoneType
from typing import Any, get_args, get_origin

from launch.common.settings import ANYWHERE, CONFIG, Setting, alternatives


@dataclass(frozen=True)
class _ListOption:
    """An option that takes a list: whether of text, and whether one value may stand alone."""

    of_text: bool
    or_one: bool

    def joined(self, values: Sequence[str]) -> str:
        """Join the values as jsonargparse reads a list: "2 1", 2 1 or [2, 1] ─► [2, 1]."""
        is_list = self.of_text and len(values) == 1 and re.fullmatch(r"(?s)\[.*\]", values[0])
        if is_list or list(values) == ["null"]:
            return values[0]
        if not self.of_text:
            values = re.findall(r"[^][,\s]+", " ".join(values))
        if len(values) == 1 and self.or_one:
            return values[0]
        return json.dumps(list(values)) if self.of_text else f"[{', '.join(values)}]"


class Options:
    """The options of a command, by the names of its settings and sections."""

    def __init__(self, settings: Sequence[Setting]):
        names = [setting.name for setting in settings]
        sections = {name.rpartition(".")[0] for name in names} - {""}
        self.sections = sections | {section.partition(".")[0] for section in sections}
        self.known = {*names, *self.sections, *(option.name.removeprefix("--") for option in (CONFIG, *ANYWHERE))}
        self.lists = {setting.name: made for setting in settings if (made := _list_option(setting))}
        self.switches = {setting.name for setting in settings if setting.choices == ("true", "false")}

    def is_mapping(self, name: str) -> bool:
        """Return whether a name is an option whose value is a mapping, not a section of options."""
        return name in self.known - self.sections

    def normalised(self, argv: Sequence[str]) -> list[str]:
        """Drop --local_rank, turn dashes in option names into underscores, join lists, complete switches.

        Raises:
            ValueError: an option is unknown, or a name is not UTF-8.
        """
        arguments: list[str] = []
        left = list(argv)
        while left:
            argument = left.pop(0)
            if not argument.startswith("--") or argument == "--":
                arguments.append(argument)
                continue
            name, equals, value = argument.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            if name == "local_rank":
                del left[: 0 if equals else 1]
                continue
            if name not in self.known:
                raise ValueError(f"unknown option --{name}{nearest(name, self.known, '--')}")
            if name in self.lists:
                values = [value] if equals else list(takewhile(lambda following: not following.startswith("--"), left))
                del left[: 0 if equals else len(values)]
                if strange := [value for value in values if value != value.encode(errors="ignore").decode()]:
                    raise ValueError(f"--{name} {strange[0]!r}: this name is not UTF-8; rename it")
                arguments.append(f"--{name}={self.lists[name].joined(values)}")
            elif name in self.switches and not equals and (not left or left[0].startswith("--")):
                arguments.append(f"--{name}=true")
            else:
                arguments.append(f"--{name}{equals}{value}")
        return arguments

    def of_recipe(self, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
        """Yield a recipe's values as options."""
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and not self.is_mapping(name):
                yield from self.of_recipe(value, f"{name}.")
                continue
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"--{name}={self.lists[name].joined([text]) if name in self.lists else text}"


def _list_option(setting: Setting) -> _ListOption | None:
    kinds = alternatives(setting.kind)
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple)]
    if not lists:
        return None
    single = [kind for kind in kinds if kind not in lists and kind is not NoneType]
    return _ListOption(get_args(lists[0])[0] is str, bool(single))


def take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the recipe that `--config` names, and the other arguments.

    Raises:
        ValueError: no file follows.
    """
    config, rest, i = None, [], 0
    while i < len(arguments):
        name, equals, value = arguments[i].partition("=")
        if name != "--config":
            rest.append(arguments[i])
        elif equals:
            config = value
        elif i + 1 < len(arguments):
            i += 1
            config = arguments[i]
        else:
            raise ValueError("--config needs a file")
        i += 1
    return config, rest


def nearest(name: str, known: set[str], dashes: str) -> str:
    """Return a clause that names the nearest known option or key."""
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {dashes}{close[0]}?" if close else "; --help all lists them all"
