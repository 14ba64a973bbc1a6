"""A script for the shell is printed, by which Tab completes commands, options, their values and recipes' names.

    eval "$(mae3d completion bash)"      # in ~/.bashrc
    eval "$(mae3d completion zsh)"       # in ~/.zshrc, behind compinit

It holds the options of this version as words: completing starts no program. Files are completed elsewhere.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import EXIT_DONE
from launch.common.commands import ALL
from launch.common.recipe_files import names
from launch.common.settings import options
from launch.schema import config_of
from mae3d.io.console import lasting_output, tolerate_any_text
from mae3d.io.help_page import Option, add_help, options_of

# Sets `candidates` from the word before, the current one, and those behind `mae3d` up to it. Both shells read it.
_WORDS = """\
_mae3d_candidates() {
    local before=$1 current=$2 at= word= names= values=
    shift 2
    for word in "$@"; do
        case "$at $word" in
            @LAUNCHED@) at=" $word" ;;
            @COMMANDS@) at="$at $word" ;;
        esac
    done
    case "$at" in
@OPTIONS@
    esac
    candidates=$values
    [ -n "$values" ] && return
    case "$current" in
        -*) candidates=$names ;;
        *) case "$names" in -*) ;; *) candidates=$names ;; esac ;;
    esac
}
"""
_SHELLS = {
    "bash": """\
_mae3d_complete() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} candidates=
    if [ "$current" = = ]; then current=; elif [ "$before" = = ]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi
    _mae3d_candidates "$before" "$current" "${COMP_WORDS[@]:1:COMP_CWORD-1}"
    COMPREPLY=($(compgen -W "$candidates" -- "$current")) || :
}
complete -o default -F _mae3d_complete mae3d
""",
    "zsh": """\
_mae3d_complete() {
    local candidates= before=${words[CURRENT-1]} current=${words[CURRENT]}
    if [[ $current == -*=* ]]; then before=${current%%=*} current=${current#*=}; compset -P '*='; fi
    _mae3d_candidates "$before" "$current" "${(@)words[2,CURRENT-1]}"
    compadd -- ${=candidates}
    (( compstate[nmatches] )) || _files
}
compdef _mae3d_complete mae3d
""",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="mae3d completion", allow_abbrev=False, add_help=False)
    examples = [line.strip().partition("     #")[0] for line in str(__doc__).splitlines()[2:4]]
    add_help(made, examples=examples, description=str(__doc__).partition("\n")[0])
    made.add_argument("shell", choices=["bash", "zsh"], metavar="bash|zsh", help="the shell")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2 for another shell."""
    tolerate_any_text()
    shell = parser().parse_args(argv).shell
    with lasting_output():
        print(script(shell), end="", flush=True)
    return EXIT_DONE


def script(shell: str) -> str:
    """Return the script for bash or zsh."""
    commands = dict(_options())
    launched = [f" launch {name}" for name, command in ALL.items() if command.has_ranks]
    filled = {
        "@LAUNCHED@": _alternatives(launched),
        "@COMMANDS@": _alternatives(path for path in commands if path),
        "@OPTIONS@": "\n".join(_case(path, known) for path, known in commands.items()),
    }
    text = _WORDS
    for mark, value in filled.items():
        text = text.replace(mark, value)
    return f'# Completion of mae3d: eval "$(mae3d completion {shell})"\n{text}{_SHELLS[shell]}'


def _options() -> Iterator[tuple[str, list[Option]]]:
    """Yield the options and arguments of each command, and of each of its commands, by the words that lead there."""
    yield "", [*(Option(name, "", is_command=True) for name in ALL), Option("--help", ""), Option("--version", "")]
    for name, command in ALL.items():
        if command.config:
            yield f" {name}", options(config_of(name))
        elif name == "launch":  # the commands that it starts come before its options
            started = tuple(other for other, command in ALL.items() if command.has_ranks)
            yield " launch", [Option("COMMAND", "", choices=started), *_parser_of(name)[""]]
        elif name == "recipes":
            yield " recipes", [Option("NAME", "", choices=tuple(names())), *_parser_of(name)[""]]
        else:
            yield from ((f" {name}{path}", known) for path, known in _parser_of(name).items())


def _parser_of(name: str) -> dict[str, list[Option]]:
    """Return the options of a command that argparse reads, and of its commands, by its function `parser`."""
    module = import_module(ALL[name].module) if find_spec(ALL[name].module) else None
    if module is None or not hasattr(module, "parser"):
        return {"": []}
    made: argparse.ArgumentParser = module.parser()
    known = {"": options_of(made)}
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            known |= {f" {job}": options_of(parser) for job, parser in action.choices.items()}
    return known


def _case(path: str, known: Sequence[Option]) -> str:
    """Return the case of a command: its words, and the values of its options."""
    words = [option.name for option in known if option.is_command]
    words += [value for option in known if option.is_positional for value in option.choices]
    words += [name for option in known if not option.is_positional for name in (option.name, *option.aliases)]
    lines = [f'        "{path}") names="{" ".join(dict.fromkeys([*words, "--help"]))}"']
    values = {name: option.choices for option in known for name in (option.name, *option.aliases) if option.choices}
    if any(option.name == "--config" for option in known):
        values["--config"] = tuple(names())
    values["--help"] = ("all", *dict.fromkeys(option.group for option in known if option.group))
    lines.append('            case "$before" in')
    for choices in dict.fromkeys(values.values()):
        options_with = [name for name, others in values.items() if others == choices and name.startswith("-")]
        if options_with:
            lines.append(f"                {'|'.join(options_with)}) values={shlex.quote(' '.join(choices))} ;;")
    return "\n".join([*lines, "            esac ;;"])


def _alternatives(paths: Iterable[str]) -> str:
    return "|".join(f'"{path}"' for path in paths)


if __name__ == "__main__":
    sys.exit(main())
