"""A dataclass, a YAML recipe and dotted overrides ─► a checked config; an error is one line, and exit code 2.

config = parse(PretrainConfig, argv)     # --config demo --train.steps 50 --data.shards out/shards
"""

import dataclasses
import gc
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from launch.common.arguments import Options, take_config
from launch.common.recipe_files import read_recipe
from launch.common.settings import options as options_of
from launch.common.settings import recipe as recipe_text
from launch.common.settings import sections_of, settings_of
from mae3d.io.bounds import check_values
from mae3d.io.collector import uncollected
from mae3d.io.console import lasting_output, one_line, tolerate_any_text
from mae3d.io.files import looked_for
from mae3d.io.help_page import ALL, HelpPage
from mae3d.io.hooks import trust_hooks
from mae3d.io.storage import access_remedy, is_url

if TYPE_CHECKING:
    from mae3d.distributed import World

EXIT_DONE, EXIT_ERROR, EXIT_USAGE, EXIT_IO, EXIT_STOPPED = 0, 1, 2, 3, 75
WAIT_MINUTES = 24 * 60  # that a rank which has done its share waits for the slowest
PRINT = "--print_config"

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
    recipe as a list or as "2 1"; a switch may stand alone. Abbreviations are refused, `--local_rank` of the launchers
    is dropped (the environment says the same), and a misspelt option or recipe key is an error that names the nearest.
    `--help` shows the settings of `config_class.USUAL`, `--print_config` prints the config as a recipe.

    Args:
        config_class: dataclass of dataclasses; its docstrings become the help.
        argv: arguments without the program's name.
        prog: the command, as the help names it.
        description: the command's docstring: a paragraph, and examples, of which the help shows the first ones.
        from_recipe: recipe key of another section by the option that it sets here, for a command that takes the
            recipes of others; sections that `config_class` lacks are then ignored.

    Raises:
        SystemExit: 0 after `--help` and `--print_config`, 2 for anything wrong.
    """
    tolerate_any_text()
    _show_help(help_page(config_class, prog=prog, doc=description), argv)
    import jsonargparse

    options = Options(list(settings_of(config_class)))
    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, add_help=False)
    parser.add_argument("--config")
    parser.add_class_arguments(config_class)
    try:
        config_file, rest = take_config(options.normalised(argv))
        is_printed = PRINT in rest
        rest = [argument for argument in rest if argument != PRINT]
        recipe = read_recipe(config_file, options, from_recipe) if config_file else {}
        required = [action for action in parser._actions if action.required]
        for action in required if is_printed else ():
            action.required = False  # its line is commented out
        # The recipe goes first as options of its own, so that both are checked against the types alike.
        namespace = parser.parse_args([*options.of_recipe(recipe), *rest])
        del namespace["config"]
        values = namespace.as_dict()
        check_values(config_class, values)  # under the options' names, which a section does not know
        if is_printed:
            if all(values[action.dest] is not None for action in required):
                config_class(**parser.instantiate(namespace).as_dict())
            start = f"{prog} --config FILE starts from these settings; null: not given."
            print(recipe_text(config_class, values, head=start), end="")
            raise SystemExit(EXIT_DONE)
        config = config_class(**parser.instantiate(namespace).as_dict())
        trust_hooks(config)
        return config
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        fail(_readable(error))


def help_page(config_class: Any, *, prog: str, doc: str) -> HelpPage:
    """Return the help of a command.

    Args:
        config_class: dataclass of dataclasses, with the names of its usual settings in `USUAL`.
        prog: the command, as it is shown.
        doc: its docstring.
    """
    paragraph = " ".join(doc.strip().partition("\n\n")[0].split())
    usual = tuple(f"--{name}" for name in getattr(config_class, "USUAL", ()))
    return HelpPage(
        prog,
        paragraph,
        options_of(config_class),
        usual=("--config", *usual) if usual else (),
        examples=examples_of(doc)[:2],
        groups=[("general", ""), *((name, text) for name, text in sections_of(config_class).items())],
    )


def examples_of(doc: str) -> list[str]:
    """Return the command lines of a docstring, without their comments; one may go on on the next line."""
    lines = re.findall(r"^ *((?:mae3d|python) (?:.*\\\n)*.*)", doc, flags=re.MULTILINE)
    return [re.sub(r"\s+# .*", "", line) for line in lines]


def _show_help(page: HelpPage, argv: Sequence[str]) -> None:
    """Print the help that a command line requests, if it does, and end the process."""
    for at, argument in enumerate(argv):
        name, _, topic = argument.partition("=")
        if name in ("-h", "--help"):
            topic = topic or next((word for word in argv[at + 1 : at + 2] if not word.startswith("-")), "")
            try:
                text = page.full("" if topic == ALL else topic) if topic else page.short()
            except ValueError as error:
                fail(str(error))
            with lasting_output():  # `| head` ends no command with an error
                print(text, flush=True)
            raise SystemExit(EXIT_DONE)


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

    with uncollected(), reporting():  # the device, or where the nodes meet
        from mae3d.distributed import start_world

        world = start_world(config.device, timeout_minutes=timeout_minutes, facts=lambda: start_facts(config))
    try:
        with world.closing(world), reporting(where):
            yield world
    except BaseException as error:
        if world.hangs_alone:
            leave(error)
        raise
    finally:
        gc.unfreeze()  # for a program that goes on


def leave(error: BaseException) -> NoReturn:
    """End the process with the exit code and the traceback that the error gives, and nothing else.

    NCCL's communicators are not freed: that waits for all ranks of the node, and they wait for this one until their
    time is up. The others notice at once that this process has gone.
    """
    code = (error.code or EXIT_DONE) if isinstance(error, SystemExit) else EXIT_ERROR
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else EXIT_ERROR)


def set_threads() -> None:
    """Let torch's threads wait without spinning; to be called before torch is imported, which is when this is read."""
    # OpenMP's threads spin while they wait, by default: on a CPU that anything else uses, steps then take five times as
    # long (measured with one busy neighbour on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
