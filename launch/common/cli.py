"""A dataclass, a YAML recipe and dotted overrides ─► a checked config; an error is one line, and exit code 2.

config = parse(PretrainConfig, argv)     # --config demo --train.steps 50 --data.shards out/shards
"""

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from mae3d.io.bounds import check_values
from mae3d.io.console import one_line, tolerate_any_text
from mae3d.io.files import looked_for
from mae3d.io.resume import dotted
from mae3d.io.storage import access_remedy, is_url

if TYPE_CHECKING:
    from mae3d.distributed import World

EXIT_DONE, EXIT_ERROR, EXIT_USAGE, EXIT_IO, EXIT_STOPPED = 0, 1, 2, 3, 75
WAIT_MINUTES = 24 * 60  # that a rank which has done its share waits for the slowest
RECIPES = Path(__file__).resolve().parents[1] / "recipes"

Config = TypeVar("Config")


def parse(
    config_class: Callable[..., Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    from_recipe: Mapping[str, str] = MappingProxyType({}),
) -> Config:
    """Build the config from defaults, then `--config FILE`, then the command line, each over the one before.

    `--some-key` and `--some_key` are the same. Several values follow an option (`--data.weights 2 1`), or stand in a
    recipe as a list or as "2 1". Abbreviations are refused, `--local_rank` of the launchers is dropped
    (the environment says the same), and a misspelt option or recipe key is an error that names the nearest one.

    Args:
        config_class: dataclass of dataclasses; its docstrings become the help.
        argv: arguments without the program's name.
        prog: name shown in the help.
        description: first lines of the help.
        from_recipe: recipe key of another section by the option that it sets here, for a command that takes the
            recipes of others; sections that `config_class` lacks are then ignored.

    Raises:
        SystemExit: 0 after `--help`, 2 for anything wrong.
    """
    tolerate_any_text()
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", help="recipe: a YAML file, or the name of one in launch/recipes")
    parser.add_class_arguments(config_class)
    known = _known_keys(parser)
    lists = _list_options(parser)
    config_file, rest = _take_config(_normalised(argv, known=known, lists=lists))
    try:
        recipe = _read_recipe(config_file, known, from_recipe) if config_file else {}
        # The recipe goes first as options of its own, so that both are checked against the types alike.
        namespace = parser.parse_args([*_as_options(recipe, known, lists), *rest])
        del namespace["config"]
        check_values(config_class, namespace.as_dict())  # under the options' names, which a section does not know
        return config_class(**parser.instantiate(namespace).as_dict())
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        fail(_readable(error))


def defaults_of(config: Any) -> dict[str, Any]:
    """Return the default of each setting of a config (a dataclass of dataclasses) that has one, nested alike."""
    defaults = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            defaults[field.name] = defaults_of(value)
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
    return defaults


def setting_names(config_class: Any, prefix: str = "") -> set[str]:
    """Return the dotted names of the settings of a dataclass of dataclasses, as its options have them."""
    names = set()
    for name, kind in get_type_hints(config_class).items():
        is_section = dataclasses.is_dataclass(kind)
        names |= setting_names(kind, f"{prefix}{name}.") if is_section else {f"{prefix}{name}"}
    return names


def fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """End the process with `error: message` on standard error; rank 0 prints the error that all ranks have."""
    ranks = [os.environ[name] for name in ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID") if name in os.environ]
    rank = int(ranks[0]) if ranks else 0
    if rank == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
    if ranks and os.environ.get("WORLD_SIZE") != "1":
        from mae3d.meeting import report_failure  # loads torch, after the message

        report_failure(message)
    if rank > 0:
        if code == EXIT_USAGE:
            # a launcher ends all ranks when one ends: rank 0 has printed by then, if it failed as well
            time.sleep(4)
        print(f"error on process {rank}: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)


@contextmanager
def reporting(where: str = "") -> Iterator[None]:
    """Yield to a block whose errors end the process by one line: exit 2 for usage and input, 3 for I/O, 1 for others.

    Args:
        where: named by an I/O error that names no file.
    """
    try:
        yield
    except ValueError as error:  # our own checks: DatasetError, RunError, CheckpointError, ...
        fail(str(error))
    except OSError as error:
        name = error.filename or where
        from_here = looked_for(name) if name and isinstance(error, FileNotFoundError) else ""
        if is_url(str(name)):
            from_here = f"; {access_remedy(name)}"
        fail(f"{name}: {error.strerror or error}{from_here}" if name else str(error), EXIT_IO)
    except RuntimeError as error:
        if type(error) is RuntimeError:
            from mae3d.distributed import is_lost_peer

            if not is_lost_peer(error):
                raise  # not one of ours: the traceback says more
            fail(f"another process is gone or hangs ({one_line(error)}). Its own output says why", EXIT_ERROR)
        fail(str(error), EXIT_ERROR)


@contextmanager
def joined(config: Any, *, where: str, timeout_minutes: float = 30) -> "Iterator[World]":
    """Yield all ranks that the launcher started; errors in the block are reported as by `reporting`.

    Args:
        config: the command's, with a `device`; all ranks have been started with the same one, or all end here.
        where: named by an I/O error that names no file.
        timeout_minutes: how long a rank waits for another.
    """
    from launch.common.start_facts import start_facts
    from mae3d.distributed import start_world

    with reporting():  # the device, or where the nodes meet
        world = start_world(config.device, timeout_minutes=timeout_minutes, facts=lambda: start_facts(config))
    try:
        with reporting(where):
            yield world
    finally:
        world.close()


def set_threads() -> None:
    """Let torch's threads wait without spinning; to be called before torch is imported, which is when this is read."""
    # OpenMP's threads spin while they wait, by default: on a CPU that anything else uses, steps then take five times as
    # long (measured with one busy neighbour on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _known_keys(parser: jsonargparse.ArgumentParser) -> set[str]:
    return {
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


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


def _list_options(parser: jsonargparse.ArgumentParser) -> dict[str, _ListOption]:
    """Return the options that take lists, by name; their help shows it from here on."""
    options = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        lists = [kind for kind in alternatives if get_origin(kind) in (list, tuple)]
        if lists:
            action.metavar = "VALUE ..."
            single = [kind for kind in alternatives if kind not in lists and kind is not NoneType]
            options[action.dest] = _ListOption(get_args(lists[0])[0] is str, bool(single))
    return options


def _normalised(argv: Sequence[str], *, known: set[str], lists: Mapping[str, _ListOption]) -> list[str]:
    """Drop --local_rank, turn dashes in option names into underscores, join lists, refuse unknown options."""
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
        if name not in known:
            fail(f"unknown option --{name}{_nearest(name, known, '--')}")
        if name in lists:
            values = [value] if equals else list(takewhile(lambda following: not following.startswith("--"), left))
            del left[: 0 if equals else len(values)]
            if strange := [value for value in values if value != value.encode(errors="ignore").decode()]:
                fail(f"--{name} {strange[0]!r}: this name is not UTF-8; rename it")
            arguments.append(f"--{name}={lists[name].joined(values)}")
        else:
            arguments.append(f"--{name}{equals}{value}")
    return arguments


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
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
            fail("--config needs a file")
        i += 1
    return config, rest


def _read_recipe(name: str, known: set[str], from_recipe: Mapping[str, str]) -> dict[str, Any]:
    path = Path(name)
    if not path.exists() and (RECIPES / f"{name}.yaml").exists():
        path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        recipes = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        hint = looked_for(name) if path.parent != Path() else ""
        fail(f"--config {name}: no such file{hint}, nor a recipe: {', '.join(recipes)}")
    text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        fail(f"{path}: not YAML: {error}")
    if tree is None:
        return {}
    if not isinstance(values, dict):
        fail(f"{path}: a recipe is a mapping of sections, like `model:`")
    for key, line in _keys_with_lines(tree, known):
        if key not in known and (not from_recipe or key.partition(".")[0] in known):
            fail(f"{path}, line {line}: unknown key {key}{_nearest(key, known, '')}")
    settings = dotted(values) if from_recipe else {}
    renamed = {option: settings[key] for option, key in from_recipe.items() if key in settings}
    return {name: value for name, value in values.items() if name in known} | renamed


def _keys_with_lines(node: yaml.Node, known: set[str], prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            if not _is_mapping(name, known):
                yield from _keys_with_lines(value, known, f"{name}.")


def _is_mapping(name: str, known: set[str]) -> bool:
    """Return whether a name is an option whose value is a mapping, not a section of options."""
    return name in known and not any(other.startswith(f"{name}.") for other in known)


def _as_options(
    values: dict[str, Any], known: set[str], lists: Mapping[str, _ListOption], prefix: str = ""
) -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and not _is_mapping(name, known):
            yield from _as_options(value, known, lists, f"{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"--{name}={lists[name].joined([text]) if name in lists else text}"


def _nearest(name: str, known: set[str], dashes: str) -> str:
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {dashes}{close[0]}?" if close else "; --help lists them all"


def _readable(error: Exception) -> str:
    """Return jsonargparse's message on one line, without the definition of the type."""
    message = str(error).strip()
    # Words that YAML does not know as numbers; `.nan` and `.inf` come to the bounds.
    if no_number := re.search(r'Parser key "([^"]+)".*value: ([+-]?(?:nan|inf(?:inity)?))$', message, re.I | re.S):
        return f"{no_number[1]}={no_number[2]} must be a finite number"
    union = re.search(r'(Parser key "[^"]+"):.*?Subtypes: \[(.*)\]\s+Errors:.*Given value: (.*)$', message, re.S)
    if union:
        kinds = [kind for kind in re.findall(r"(?<=')\w+(?=')|tuple\[[^]]*\]", union[2]) if kind != "NoneType"]
        return f"{union[1]}: Expected {' or '.join(kinds)}. Got value: {one_line(union[3])}"
    return " ".join(line.strip() for line in message.splitlines() if line.strip()) or repr(error)
