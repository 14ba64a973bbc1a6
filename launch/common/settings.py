"""A config class, a dataclass of dataclasses ─► its settings, with their texts, and all that is derived from them.

for setting in settings_of(PretrainConfig): ...      # data.shards: type, default, bounds, help
options(PretrainConfig)                              # for `--help`
schema(PretrainConfig)                               # JSON schema of a recipe
recipe(PretrainConfig, values)                       # a recipe with a comment per setting

A class names the settings that people use in `USUAL`, beside its fields.
"""

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mae3d.io.bounds import Bounds, bounds_of
from mae3d.io.help_page import Option

CONFIG = Option("--config", "recipe: a YAML file, or a name that `mae3d recipes` lists", value="RECIPE")
ANYWHERE = (
    Option("--print_config", "print the settings as a recipe with a comment on each, and stop"),
    Option("--help", "this page; with `all` or the name of a group the whole of it", value="[all|GROUP]"),
)
_KINDS: dict[Any, tuple[str, str]] = {  # a type's value in the help, and its name in a schema
    bool: ("true|false", "boolean"),
    int: ("N", "integer"),
    float: ("NUMBER", "number"),
    str: ("TEXT", "string"),
}
_LONGEST = 30  # characters of choices that the help shows as the value


@dataclass(frozen=True)
class Setting:
    """A setting of a command.

    Attributes:
        name: Dotted, as the option is called.
        kind: Its type.
        default: MISSING if there is none.
        help: Its text in the docstring of its class.
        bounds: The interval of its numbers.
    """

    name: str
    kind: Any
    default: Any
    help: str
    bounds: Bounds

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the values that its type names, or those of a switch; a type may allow others beside them."""
        kinds = [kind for kind in alternatives(self.kind) if kind is not NoneType]
        if kinds == [bool]:
            return ("true", "false")
        return tuple(str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))

    def option(self) -> Option:
        """Return it as its help shows it."""
        section = self.name.partition(".")[0] if "." in self.name else "general"
        return Option(
            f"--{self.name}",
            re.sub(r"^(A|[A-Z][a-z]+)(?=[ ,;:.])", lambda match: match[0].lower(), self.help),
            value=_value(self),
            default=_typed(self.default),
            group=section,
            required=self.default is MISSING,
            choices=self.choices,
        )


def settings_of(config_class: Any, prefix: str = "", given: Any = None) -> Iterator[Setting]:
    """Yield the settings of a config class in the order of its fields, sections last.

    Args:
        config_class: a dataclass, whose sections are dataclasses.
        prefix: of the names.
        given: an object of that class that has the defaults; None if the fields have them.
    """
    kinds, texts, sections = get_type_hints(config_class), texts_of(config_class), []
    for entry in dataclasses.fields(config_class):
        kind, default = kinds[entry.name], entry.default
        if entry.default_factory is not MISSING:
            default = entry.default_factory()
        if given is not None:
            default = getattr(given, entry.name)
        if dataclasses.is_dataclass(kind):
            sections.append((kind, f"{prefix}{entry.name}.", None if default is MISSING else default))
            continue
        text = texts.get(entry.name, "")
        yield Setting(f"{prefix}{entry.name}", kind, default, text, bounds_of(config_class, entry.name))
    for section in sections:
        yield from settings_of(*section)


def sections_of(config_class: Any, prefix: str = "") -> dict[str, str]:
    """Return the texts of a config class's sections by their dotted names."""
    kinds, texts, sections = get_type_hints(config_class), texts_of(config_class), {}
    for name, kind in kinds.items():
        if dataclasses.is_dataclass(kind):
            sections[f"{prefix}{name}"] = texts.get(name, "")
            sections |= sections_of(kind, f"{prefix}{name}.")
    return sections


@cache
def texts_of(config_class: type) -> dict[str, str]:
    """Return the text of each field in the docstrings of a class and of those that it extends."""
    import docstring_parser

    texts: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        parsed = docstring_parser.parse(base.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
        texts |= {param.arg_name: " ".join((param.description or "").split()) for param in parsed.params}
    return texts


def options(config_class: Any) -> list[Option]:
    """Return the options of a command, `--config` first."""
    settings = [setting.option() for setting in settings_of(config_class)]
    common = [dataclasses.replace(option, group="general") for option in (CONFIG, *ANYWHERE)]
    return [common[0], *(one for one in settings if one.group == "general"), *common[1:]] + [
        one for one in settings if one.group != "general"
    ]


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types that a union allows, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _value(setting: Setting) -> str:
    choices = "|".join(setting.choices)
    kinds = [kind for kind in alternatives(setting.kind) if kind is not NoneType and get_origin(kind) is not Literal]
    if choices and len(choices) <= _LONGEST and kinds in ([], [bool]):
        return choices
    if any(get_origin(kind) in (list, tuple) for kind in kinds):
        return "VALUE ..."
    if choices and (not kinds or str in kinds):
        return "NAME"
    return _KINDS.get(kinds[0], ("VALUE", ""))[0]


def _typed(value: Any) -> str:
    """Return a default as it is typed; "" for those that say nothing."""
    if value is MISSING or value is None or (isinstance(value, str | tuple | list | dict) and not value):
        return ""
    if isinstance(value, tuple | list):
        return " ".join(map(_typed, value))
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool) else str(value)


def schema(config_class: Any, *, title: str) -> dict[str, Any]:
    """Return the JSON schema of the recipes of a command, for editors: names, texts, types, bounds and choices."""
    sections = sections_of(config_class)
    root: dict[str, Any] = {"$schema": "http://json-schema.org/draft-07/schema#", "title": title} | _section("")
    made = {"": root}
    for name, text in sections.items():
        parent, _, last = name.rpartition(".")
        made[name] = made[parent]["properties"][last] = _section(text)
    for setting in settings_of(config_class):
        parent, _, last = setting.name.rpartition(".")
        described = {"description": setting.help} | _types(setting.kind, setting.bounds)
        if setting.default is not MISSING:
            described["default"] = setting.default
        made[parent]["properties"][last] = described
    return root


def _section(text: str) -> dict[str, Any]:
    described = {"description": text} if text else {}
    return {**described, "type": ["object", "null"], "properties": {}, "additionalProperties": False}


def _types(kind: Any, bounds: Bounds) -> dict[str, Any]:
    kinds = [_type(one, bounds) for one in alternatives(kind)]
    if any("enum" in one for one in kinds):  # a text beside them is a hook, module:name
        kinds = [one | {"pattern": ":"} if one == {"type": "string"} else one for one in kinds]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _type(kind: Any, bounds: Bounds) -> dict[str, Any]:
    """Return the schema of one type; a list may also be a text with blanks, as on a command line."""
    if kind is NoneType:
        return {"type": "null"}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) in (list, tuple):
        first, *rest = get_args(kind)
        sizes = {} if rest in ([], [...]) else {"minItems": 1 + len(rest), "maxItems": 1 + len(rest)}
        return {"anyOf": [{"type": "array", "items": _types(first, bounds), **sizes}, {"type": "string"}]}
    if kind not in _KINDS:
        return {"type": "object"} if get_origin(kind) is dict else {}
    limits = {"minimum": bounds.least, "exclusiveMinimum": bounds.above}
    limits |= {"maximum": bounds.most, "exclusiveMaximum": bounds.below}
    numeric = kind in (int, float)
    return {"type": _KINDS[kind][1]} | {name: at for name, at in limits.items() if numeric and at is not None}


def recipe(config_class: Any, values: Mapping[str, Any], *, head: str) -> str:
    """Return a recipe that holds every setting, each below a line of its text; what must be given is commented out.

    Args:
        config_class: the config class.
        values: of all settings, nested by section.
        head: the first comment.
    """
    sections, lines, begun = sections_of(config_class), [f"# {head}"], set()
    for setting in settings_of(config_class):
        *parents, name = setting.name.split(".")
        value: Any = values
        for depth, parent in enumerate(parents):
            value, section = value[parent], ".".join(parents[: depth + 1])
            if section not in begun:
                begun.add(section)
                lines += ["", *_comment(sections[section], depth), f"{'  ' * depth}{parent}:"]
        indent, value = "  " * len(parents), value[name]
        is_missing = value is None and setting.default is MISSING
        lines += _comment(setting.help, len(parents))
        lines.append(f"{indent}{'# ' if is_missing else ''}{name}:{'' if is_missing else f' {_yaml(value)}'}")
    return "\n".join(lines) + "\n"


def _comment(text: str, depth: int) -> list[str]:
    indent = f"{'  ' * depth}# "
    first = re.split(r"(?<=\w[.;]) ", text)[0].rstrip(".;")
    return [f"{indent}{textwrap.shorten(first, 116 - len(indent), placeholder=' …')}"] if first else []


def _yaml(value: Any) -> str:
    import yaml

    plain = json.loads(json.dumps(value))  # tuples are lists
    text = yaml.safe_dump(plain, default_flow_style=True, width=1 << 20, allow_unicode=True)
    return text.removesuffix("...\n").strip()
