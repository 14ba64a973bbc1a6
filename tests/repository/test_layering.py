"""Imports point one way: launch -> pipelines -> preprocess.dataset.index and .storage, launch -> mae3d, nothing -> launch."""

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "mae3d", "pipelines", "preprocess")

# What each package may import of ours: whole packages, or single modules of one.
ALLOWED = {
    "launch": {"launch", "mae3d", "pipelines", "preprocess.dataset.index"},
    "mae3d": {"mae3d"},
    "pipelines": {"pipelines", "preprocess.dataset.index", "mae3d.io.storage"},
    "preprocess": {"preprocess"},
}

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(source: str, module: str) -> Iterator[tuple[str, int]]:
    """Every module that a source text imports, at any depth, as (dotted name, line).

    `from a import b` may mean the module a.b or a name in a: it is reported as "a.b", which begins with "a" either way.

    Args:
        source: the text.
        module: its own dotted name, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            prefix = ".".join(part for part in (base, node.module) if part)
            yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("importlib.import_module", "import_module", "__import__"):
                yield str(node.args[0].value), node.lineno


def is_within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def violations(source: str, module: str) -> list[str]:
    """The imports of ours, and of DALI, that a module may not have."""
    package = module.split(".")[0]
    wrong = []
    for name, line in imported(source, module):
        ours = name.split(".")[0] in PACKAGES
        if ours and not any(is_within(name, allowed) for allowed in ALLOWED[package]):
            wrong.append(f"{module}:{line} imports {name}")
        if is_within(name, "nvidia.dali") and module != "pipelines.decoding.dali":
            wrong.append(f"{module}:{line} imports {name}")
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert violations(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import launch.common.cli", "mae3d.training.engine"),
        ("def late():\n    from pipelines.loader import Loader", "mae3d.training.engine"),
        ("from preprocess import build", "pipelines.reading.source"),
        ("from preprocess.jobs.build import run", "launch.pretrain"),
        ("import importlib\nimportlib.import_module('launch.common.cli')", "pipelines.loader"),
        ("from nvidia import dali", "pipelines.loader"),
        ("import nvidia.dali.fn as fn", "launch.doctor"),
    ],
)
def test_wrong_imports_are_found(source: str, module: str) -> None:
    assert len(violations(source, module)) == 1


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("mae3d", ("nvidia.dali", "deepspeed")),
        ("pipelines", ("deepspeed", "pandas", "torchvision", "fsspec")),
        ("preprocess", ("nvidia.dali", "deepspeed", "torch")),
    ],
)
def test_package_imports_without(package: str, absent: tuple[str, ...]) -> None:
    names = [package] + [
        module.name
        for module in pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
        if not module.name.endswith("__main__")
    ]
    code = f"import importlib, sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
    code += f"for name in {names!r}:\n    importlib.import_module(name)\n"
    child = python(code)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_importing_a_command_runs_nothing(path: Path) -> None:
    code = f"import sys, launch.{path.stem}\nassert not {{'deepspeed', 'nvidia.dali'}} & set(sys.modules)"
    child = python(code)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
