"""The options of a command become its help: a page of those that people use, all of them by group, or one group.

page = HelpPage("mae3d pretrain", "Shards ─► a model.", options, usual=("--data.shards", "--run.dir"))
page.short()                       # `--help`
page.full()                        # `--help all`
page.full("data")                  # `--help data`

`add_help(parser, usual=...)` gives a parser of argparse the same pages.
"""

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, NoReturn

_WIDEST, _COLUMN = 110, 34  # of a line, and of an option's name with its value
ALL = "all"


@dataclass(frozen=True)
class Option:
    """An option, or an argument that is given by its position.

    Attributes:
        name: As it is typed; of a position, as the usage shows it.
        help: A sentence or more.
        value: What follows the name, as the help shows it; "" for a switch.
        default: As it is typed; "" if there is none to show.
        group: The group that it is listed in.
        required: Whether the command refuses to start without it.
        choices: Values among which one is chosen; () for any.
        aliases: Other names.
        is_command: Whether it is the name of a command with options of its own.
    """

    name: str
    help: str
    value: str = ""
    default: str = ""
    group: str = ""
    required: bool = False
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    is_command: bool = False

    @property
    def is_positional(self) -> bool:
        """Return whether it is given by its position."""
        return not self.name.startswith("-")

    @property
    def head(self) -> str:
        """Return its name with its value."""
        return " ".join(part for part in (", ".join((self.name, *self.aliases)), self.value) if part)

    @property
    def text(self) -> str:
        """Return its help with its default."""
        return f"{self.help.rstrip('.')} ({self.default})" if self.default else self.help

    def line(self, room: int) -> str:
        """Return as much of the help as fits on a line: all, the first sentence, the first clause, or some words."""
        end = f" ({self.default})" if self.default and len(self.default) < room // 2 else ""
        for separator in ("\0", ". ", "; ", ": "):
            clause = self.help.split(separator)[0].rstrip(".")
            if len(clause) + len(end) <= room and (separator != ": " or len(clause.split()) > 2):
                return clause + end
        return textwrap.shorten(self.help, room - len(end), placeholder=" …") + end


@dataclass(frozen=True)
class HelpPage:
    """The help of a command.

    Attributes:
        prog: The command.
        description: A paragraph that says what it does.
        options: All that it has, in the order of their groups.
        usual: Names of those that people use; () for all.
        examples: Command lines.
        groups: A line on each group by its name.
    """

    prog: str
    description: str
    options: Sequence[Option]
    usual: Sequence[str] = ()
    examples: Sequence[str] = ()
    groups: Sequence[tuple[str, str]] = ()

    def short(self) -> str:
        """Return the page of the options that people use."""
        width = _width()
        named = {name: option for option in self.options for name in (option.name, *option.aliases)}
        shown = [named[name] for name in self.usual] if self.usual else list(self.options)
        heads = max((len(option.head) for option in shown), default=0)
        column = min(max(heads, 12) + 4, _COLUMN)
        lines = [self._usage(), "", *textwrap.wrap(self.description, width), ""]
        for option in shown:
            head = f"  {option.head}".ljust(column - 1)
            head, column_of_text = (f"{head} ", len(head) + 1) if len(head) < width // 2 else (head + "\n" + " " * 8, 8)
            lines.append(head + option.line(width - column_of_text))
        if self.examples:
            lines += ["", "examples:", textwrap.indent("\n".join(map(textwrap.dedent, self.examples)), "  ")]
        if len(shown) < len(self.options):
            groups = self._groups()
            others = f", --help GROUP those of one: {', '.join(groups)}" if len(groups) > 1 else ""
            note = f"--help all lists all {len(self.options)} options by group{others}."
            lines += ["", *textwrap.wrap(note, width)]
        return "\n".join(lines)

    def full(self, group: str = "") -> str:
        """Return all options with their whole help, by group; or those of one group.

        Raises:
            ValueError: there is no such group.
        """
        groups = self._groups()
        if group and group not in groups:
            raise ValueError(f"--help {group}: no such group; there are {', '.join(groups)}, and all")
        width, said = _width(), dict(self.groups)
        lines = [self._usage()] if group else [self._usage(), "", *textwrap.wrap(self.description, width)]
        for name in [group] if group else groups:
            title = f"{name}: {said[name]}" if said.get(name) else name
            lines += ["", *textwrap.wrap(title, width)] if title else [""]
            for option in self.options:
                if option.group == name:
                    lines += _entry(option, width)
        return "\n".join(lines)

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(option.group for option in self.options))

    def _usage(self) -> str:
        needed = [option.head for option in self.options if option.required and not option.is_positional]
        places = [option.name for option in self.options if option.is_positional and not option.is_command]
        if any(option.is_command for option in self.options):
            places.append("COMMAND ...")
        rest = "[--OPTION VALUE ...]" if any(not option.is_positional for option in self.options) else ""
        return " ".join(part for part in ("usage:", self.prog, *needed, rest, *places) if part)


def _width() -> int:
    return max(min(shutil.get_terminal_size((100, 24)).columns, _WIDEST), 40)


def _entry(option: Option, width: int) -> list[str]:
    """Return an option's lines: its name, and its help beside it or below."""
    column = min(_COLUMN, width // 3)
    text = textwrap.wrap(option.text, width - column) or [""]
    head = f"  {option.head}"
    first = [f"{head:{column}}{text.pop(0)}"] if len(head) <= column - 2 else [head]
    return [*first, *(f"{'':{column}}{line}" for line in text)]


def options_of(parser: argparse.ArgumentParser) -> list[Option]:
    """Return the options of a parser of argparse, by its groups, and the names of its commands."""
    options = []
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS or isinstance(action, _Help | argparse._HelpAction):
                continue
            if isinstance(action, argparse._SubParsersAction):
                options += [Option(one.dest, one.help or "", is_command=True) for one in action._choices_actions]
                continue
            name = action.option_strings[0] if action.option_strings else _place(action)
            text = str(action.help or "") % {**vars(action), "prog": parser.prog}
            options.append(
                Option(
                    name,
                    text,
                    value=_value_of(action),
                    group=_group_name(group),
                    required=action.required and bool(action.option_strings),
                    choices=tuple(map(str, action.choices or ())),
                    aliases=tuple(action.option_strings[1:]),
                )
            )
    return options


def _place(action: argparse.Action) -> str:
    """Return an argument that is given by its position, with how often it may be given."""
    name = str(action.metavar or action.dest.upper())
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(str(action.nargs), name)


def _value_of(action: argparse.Action) -> str:
    """Return what follows an option's name: "" for a switch, or for a position."""
    if action.nargs == 0 or not action.option_strings:
        return ""
    if action.metavar is None and action.choices:
        return "|".join(map(str, action.choices))
    value = str(action.metavar or {int: "N", float: "NUMBER"}.get(action.type, "TEXT"))  # type: ignore[call-overload]
    return f"{value} ..." if action.nargs in ("+", "*") else value


def _group_name(group: Any) -> str:
    """Return a group's name: its title up to a colon; argparse's two groups are one."""
    title = str(group.title or "").partition(":")[0]
    return "options" if title == "positional arguments" else title


def add_help(
    parser: argparse.ArgumentParser, *, usual: Sequence[str] = (), examples: Sequence[str] = (), description: str = ""
) -> None:
    """Give a parser the pages of this file: `--help`, `--help all`, `--help GROUP`.

    Args:
        parser: made with add_help=False; its other options may be added later. A group's title is its name, or its
            name, a colon and a line on it.
        usual: names of the options that people use; () for all.
        examples: command lines.
        description: what the command does, if the parser has none.
    """
    parser.error = partial(_refuse, parser)  # type: ignore[method-assign]
    parser.add_argument(
        "-h", "--help", action=_Help, nargs="?", const="", metavar="all|GROUP", pages=(usual, examples, description)
    )


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """End the process by one line; for a misspelt option, command or value it names the nearest."""
    if unknown := re.match(r"unrecognized arguments: --([^= ]+)", message):
        parsers = (parser, *_commands_of(parser))
        known = {name.removeprefix("--") for made in parsers for name in made._option_string_actions} - {unknown[1]}
        close, message = get_close_matches(unknown[1], known, n=1, cutoff=0.5), f"unknown option --{unknown[1]}"
        message += f"; did you mean --{close[0]}?" if close else "; --help all lists them all"
    elif unknown := re.search(r"invalid choice: '([^']*)'.*?\(choose from (.*)\)", message):
        close = get_close_matches(unknown[1], re.findall(r"[\w.-]+", unknown[2]), n=1, cutoff=0.5)
        message += f"; did you mean {close[0]}?" if close and "did you mean" not in message else ""
    parser.exit(2, f"error: {parser.prog}: {message}\n")


def _commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def add_command(
    commands: Any, name: str, text: str, *, usual: Sequence[str] = (), examples: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Add a command to the subparsers of a parser, with a help as `add_help` gives it, and return its parser."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, allow_abbrev=False, add_help=False)
    add_help(made, usual=usual, examples=examples, description=f"{text[:1].upper()}{text[1:]}.")
    return made


class _Help(argparse.Action):
    """The option `--help`, alone or with a group's name."""

    def __init__(self, *, pages: tuple[Sequence[str], Sequence[str], str], **settings: Any):
        super().__init__(**settings, default=argparse.SUPPRESS)
        self._pages = pages

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        """Print the page, and end the process."""
        page = page_of(parser)
        try:
            print(page.short() if not values else page.full("" if values == ALL else values))
        except ValueError as error:
            parser.error(str(error))
        parser.exit()

    def page(self, parser: argparse.ArgumentParser) -> HelpPage:
        """Return the help of the parser that it belongs to."""
        usual, examples, description = self._pages
        titles = [str(group.title or "").partition(": ") for group in parser._action_groups]
        groups = [(name, text) for name, _, text in titles if text]
        text = description or str(parser.description or "")
        return HelpPage(parser.prog, text, options_of(parser), usual=usual, examples=examples, groups=groups)


def page_of(parser: argparse.ArgumentParser) -> HelpPage:
    """Return the help of a parser that `add_help` was called with, or of any other, with all of its options."""
    for action in parser._actions:
        if isinstance(action, _Help):
            return action.page(parser)
    return HelpPage(parser.prog, str(parser.description or ""), options_of(parser))
