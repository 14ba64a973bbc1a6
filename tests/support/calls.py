"""The packages' own source is searched for calls, for the tests that hold a list of them.

functions_with(lambda call: name_of(call) == "unlink")      # ─► {"preprocess.jobs.output.FolderOutput.remove", ...}
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "mae3d", "pipelines", "preprocess", "docker")


def name_of(call: ast.Call) -> str:
    """The last part of what is called: `unlink` of `path.unlink()`."""
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def functions_with(wanted: Callable[[Any], bool], *, kind: type[ast.expr] = ast.Call) -> set[str]:
    """The functions, as module.Class.function, in which there is such a call, or such an expression of another kind."""
    return {where for where, found in expressions_of(PACKAGES) if isinstance(found, kind) and wanted(found)}


def expressions_of(packages: Sequence[str]) -> Iterator[tuple[str, ast.expr]]:
    """Yield all expressions of packages with the module.Class.function in which they stand."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield from expressions_in(ast.parse(path.read_text(encoding="utf-8")), module)


def expressions_in(node: ast.AST, where: str) -> Iterator[tuple[str, ast.expr]]:
    """Yield all expressions below a node; decorators and defaults stand in their function."""
    for child in ast.iter_child_nodes(node):
        is_named = isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.expr):
            yield where, child
        yield from expressions_in(child, f"{where}.{child.name}" if is_named else where)  # type: ignore[attr-defined]
