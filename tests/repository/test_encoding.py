"""Text is UTF-8 whatever the locale: every file, every child's output, and what the programs print."""

import ast
import io
import os
import re
import subprocess
import sys

import pytest

from mae3d.io.files import print_utf8
from tests.support.calls import ROOT, functions_with, name_of

OTHER_OPENS = {
    "os",
    "Image",
    "av",
    "tarfile",
    "storage",
    "shards",
    "cache",
    "_cache",
    "_remote",
    "self",
}  # no text in Python's sense


def leaves_it_to_the_locale(call: ast.Call) -> bool:
    given = {keyword.arg for keyword in call.keywords}
    if "encoding" in given:
        return False
    name, of = name_of(call), getattr(call.func, "value", None)
    if name == "read_text":
        return not call.args  # a store's takes a name, and is UTF-8
    if name == "write_text":
        return isinstance(call.func, ast.Attribute)
    if name in ("open", "fdopen", "TextIOWrapper"):
        if name == "open" and of is not None and OTHER_OPENS & {*re.findall(r"\w+", ast.unparse(of))}:
            return False
        words = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        return not any("b" in mode for mode in modes)
    return bool({"text", "universal_newlines"} & given)


def test_no_text_is_left_to_the_locale() -> None:
    assert functions_with(leaves_it_to_the_locale) == set()


@pytest.mark.parametrize(
    "source",
    ["p.read_text()", "p.write_text(t)", "open(p)", "p.open('w')", "subprocess.run(c, text=True)", "os.fdopen(1)"],
)
def test_the_search_finds_each_of_them(source: str) -> None:
    (call,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    assert leaves_it_to_the_locale(call)


@pytest.mark.parametrize("text", ["Ünïcode ─► 手術", "a lone \udcff"])
def test_what_is_printed_fits_any_terminal(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_utf8()
    print(text, flush=True)
    assert raw.getvalue().decode("utf-8").startswith(text.split("\udcff")[0])


@pytest.mark.parametrize("command", [("mae3d.metrics", "--help"), ("mae3d.checkpoint", "inspect", "/nowhere/手術")])
def test_commands_print_under_a_locale_without_letters(command: tuple[str, ...]) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}
    child = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=os.environ | plain, capture_output=True, check=False
    )
    assert b"UnicodeEncodeError" not in child.stderr
    assert "手術" in child.stderr.decode("utf-8") or "usage" in child.stdout.decode("utf-8")
