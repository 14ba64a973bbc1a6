"""The help of a parser of argparse: what people use first, everything by group, and lines that fit."""

import argparse

import pytest

from mae3d.io.help_page import HelpPage, Option, add_command, add_help, options_of
from preprocess.__main__ import parser as preprocess_parser


def shown(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(argv)
    assert stopped.value.code == code
    return "".join(capsys.readouterr())


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """Return a parser with two groups, and a command."""
    made = argparse.ArgumentParser(prog="x", add_help=False, description="Does things.")
    add_help(made, usual=("--in", "--size"), examples=("x --in a",))
    group = made.add_argument_group("input: what is read")
    group.add_argument("--in", "-i", required=True, nargs="+", metavar="FILE", help="what is read: a file or more")
    group.add_argument("--kind", choices=["a", "b"], default="b", help="of the files (%(default)s)")
    made.add_argument_group("output").add_argument("--size", type=int, default=3, help="100%% of it. " + "Long. " * 40)
    return made


def test_the_short_page_has_the_usual_options_a_line_each(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(parser, capsys, "--help").splitlines()
    assert lines == [
        "usage: x --in, -i FILE ... [--OPTION VALUE ...]",
        "",
        "Does things.",
        "",
        "  --in, -i FILE ...  what is read: a file or more",
        "  --size N           100% of it",
        "",
        "examples:",
        "  x --in a",
        "",
        "--help all lists all 3 options by group, --help GROUP those of one: input,",
        "output.",
    ]


def test_the_whole_page_and_a_group(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    full = shown(parser, capsys, "-h", "all")
    assert "\ninput: what is read\n" in full
    assert full.count("Long.") == 40
    assert "of the files (b)" in full
    group = shown(parser, capsys, "--help", "input")
    assert "--kind a|b" in group
    assert "--size" not in group
    assert "no such group; there are input, output" in shown(parser, capsys, "--help", "inptu", code=2)


def test_a_text_that_is_too_long_ends_at_a_clause_or_at_a_word() -> None:
    option = Option("--a", "One two three four; five six: seven. Eight nine.", default="10")
    assert option.line(100) == "One two three four; five six: seven. Eight nine (10)"
    assert option.line(45) == "One two three four; five six: seven (10)"
    assert option.line(30) == "One two three four (10)"
    assert option.line(18) == "One two … (10)"


@pytest.mark.parametrize("width", ["50", "100", "300"])
def test_no_page_of_preprocess_is_wider_than_the_terminal(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for argv in (["build", "-h"], ["build", "-h", "all"], ["curate", "-h"], ["split", "-h", "all"]):
        text = shown(preprocess_parser(), capsys, *argv).partition("examples:")[0]
        assert max(map(len, text.splitlines()[1:])) <= min(int(width), 110), argv


def test_every_command_of_preprocess_says_what_its_options_are() -> None:
    (commands,) = (action for action in preprocess_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, made in commands.choices.items():
        assert [option.name for option in options_of(made) if not option.help and not option.choices] == [], name


def test_commands_are_listed_by_their_texts(capsys: pytest.CaptureFixture[str]) -> None:
    top = argparse.ArgumentParser(prog="x", add_help=False)
    add_help(top, description="Does things.")
    commands = top.add_subparsers()
    add_command(commands, "go", "goes far").add_argument("place", help="where to")
    assert "\n  go            goes far" in shown(top, capsys, "--help")
    said = shown(top, capsys, "go", "--help")
    assert said.startswith("usage: x go PLACE\n\nGoes far.\n\n  PLACE         where to\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["build", "--out", "o", "--videos", "v", "--worker", "3"], "unknown option --worker; did you mean --workers?"),
        (["build", "--out", "o", "--videos", "v", "--zzz=3"], "unknown option --zzz; --help all lists them all"),
        (["biuld"], "did you mean build?"),
        (["build", "--out", "o", "--videos", "v", "--layout", "vidoe"], "did you mean video?"),
        (["build", "--videos", "v"], "mae3d preprocess build: the following arguments are required: --out"),
        ([], "the following arguments are required"),
    ],
)
def test_what_is_misspelt_is_one_line_with_the_nearest(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(preprocess_parser(), capsys, *argv, code=2)
    assert text.startswith("error: mae3d preprocess")
    assert said in text
    assert text.count("\n") == 1


def test_a_page_without_options_is_a_page() -> None:
    assert HelpPage("x", "Does things.", []).short().startswith("usage: x\n\nDoes things.")
