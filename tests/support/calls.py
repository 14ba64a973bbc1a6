"""The packages' own source is searched for calls, for the tests that hold a list of them.

functions_with(lambda call: name_of(call) == "unlink")      # ─► {"preprocess.jobs.output.FolderOutput.remove", ...}
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "mae3d", "pipelines", "preprocess", "docker")


def name_of(call: ast.Call) -> str:
    """The last part of what is called: `unlink` of `path.unlink()`."""
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def functions_with(wanted: Callable[[ast.Call], bool]) -> set[str]:
    """The functions, as module.Class.function, in which there is such a call."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found |= {
                where for where, call in _calls(ast.parse(path.read_text(encoding="utf-8")), module) if wanted(call)
            }
    return found


def _calls(node: ast.AST, where: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        is_named = isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.Call):
            yield where, child
        yield from _calls(child, f"{where}.{child.name}" if is_named else where)  # type: ignore[attr-defined]
