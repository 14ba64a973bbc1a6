"""Text is UTF-8 under every locale: no file is read or written, and no program is run, in the locale's encoding."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.calls import functions_with, name_of

TEXT_MODES = set("rwaxt+")


def uses_the_locale(call: ast.Call) -> bool:
    named = {keyword.arg for keyword in call.keywords}
    if "encoding" in named or None in named:
        return False
    name, is_method = name_of(call), isinstance(call.func, ast.Attribute)
    if name in ("read_text", "write_text"):
        return is_method and len(call.args) <= (name == "write_text")
    if name in ("run", "Popen", "call", "check_call", "check_output"):
        return bool(named & {"text", "universal_newlines"})
    if name in ("open", "fdopen"):
        owner = ast.unparse(call.func.value) if is_method else ""
        if f"{owner}.{name}" in ("os.open", "av.open", "Image.open", "tarfile.open"):
            return False
        values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        modes = [arg.value for arg in values if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if not modes:  # text, but for the methods of other things, which are given what to open
            return owner in ("", "os") or not call.args
        return set(modes[0]) <= TEXT_MODES
    return name in ("popen", "getoutput", "getstatusoutput")


def test_no_text_is_read_or_written_in_the_locales_encoding() -> None:
    assert functions_with(uses_the_locale) == set()


@pytest.mark.parametrize(
    ("code", "uses"),
    [
        *((f"path.{code}", True) for code in ("open()", "open('a')", "open(mode='w')", "read_text()", "write_text(x)")),
        *((code, True) for code in ("open(path)", "open(path, 'r')", "os.fdopen(f)", "os.fdopen(f, 'w')")),
        *((f"subprocess.{code}", True) for code in ("run(c, text=True)", "check_call(c, text=True)", "getoutput(c)")),
        *((f"path.{code}", False) for code in ("open('rb')", "open(encoding='utf-8')", "read_bytes()")),
        *((code, False) for code in ("os.open(p, flags)", "Image.open(p)", "cache.open(shard)", "subprocess.run(c)")),
    ],
)
def test_what_uses_the_locale_is_seen(code: str, uses: bool) -> None:
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert uses_the_locale(call) == uses


def test_a_locale_without_the_characters_breaks_neither_files_nor_output(tmp_path: Path) -> None:
    """As python is under a C locale that it does not replace: ASCII everywhere."""
    code = """
from pathlib import Path
from launch.common.tables import write_csv
from mae3d.io.console import tolerate_any_text
from mae3d.tracking.run_dir import Run
tolerate_any_text()
write_csv(Path("classes.csv"), {"name": ["Küche", "日本"]})
run = Run("run")
run.claim({"run": {"dir": "Küche"}}, extend=False)
run.write_metrics({"step": 1, "name": "日本"})
print(run.stored()["run"]["dir"], "日本")
"""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "code.py"], cwd=tmp_path, env=env, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("ascii").strip() == r"K\xfcche \u65e5\u672c"
    assert (tmp_path / "classes.csv").read_text(encoding="utf-8") == "name\nKüche\n日本\n"
