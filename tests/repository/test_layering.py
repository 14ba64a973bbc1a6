"""Imports point one way: between the packages, and between their rooms."""

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "mae3d", "pipelines", "preprocess")

# Rooms of each package, lowest first; a room may import only what stands on a lower line of its own package.
ROOMS = {
    "mae3d": [
        ("io",),
        ("video",),
        ("meeting",),
        ("distributed",),
        ("model.config",),
        ("model",),
        ("tracking",),
        ("weights",),
        ("analysis", "checkpoints"),
        ("training",),
        ("metrics", "checkpoint"),
    ],
    "preprocess": [
        ("problems", "dataset"),
        ("plan",),
        ("workers",),
        ("sources",),
        ("encode",),
        ("demo", "jobs"),
        ("inspect",),
        ("__main__",),
    ],
    "pipelines": [
        ("config", "storage"),
        ("samples",),
        ("sampling",),
        ("reading", "fingerprint"),
        ("decoding",),
        ("stream",),
        ("loader",),
    ],
    "launch": [
        ("common",),
        ("inference", "training", "report"),
        (
            *("pretrain", "finetune", "evaluate", "probe", "embed", "compare", "timeline", "search", "propagate"),
            *("visualize", "export", "doctor", "preview", "runs", "schema", "start", "recipe_list"),
        ),
        ("push",),
        ("completion", "__main__"),
    ],
}

# What a package may import of the others: whole packages or single rooms.
OTHERS = {
    "launch": {"mae3d", "pipelines", "preprocess.dataset", "preprocess.sources.events", "preprocess.demo"},
    "mae3d": set(),
    "pipelines": {"mae3d.io", "mae3d.video", "preprocess.dataset"},
    "preprocess": {"mae3d.io", "mae3d.video"},
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


def room_of(name: str) -> tuple[int, str]:
    """Return the floor of a module of ours among its package's rooms, and the room's name; -1 for a package itself."""
    package, _, rest = name.partition(".")
    rooms = [(floor, room) for floor, line in enumerate(ROOMS[package]) for room in line]
    inside = [(floor, room) for floor, room in rooms if is_within(rest, room)]
    return max(inside, key=lambda entry: len(entry[1])) if inside else (-1, "")


def may_import(module: str, name: str) -> bool:
    """Return whether a module of ours may import another."""
    package, other = module.split(".")[0], name.split(".")[0]
    if package != other:
        return any(is_within(name, allowed) for allowed in OTHERS[package])
    (floor, room), (other_floor, other_room) = room_of(module), room_of(name)
    return room == other_room or other_floor < floor


def violations(source: str, module: str) -> list[str]:
    """Return the imports of ours, and of DALI, that a module may not have."""
    wrong = []
    for name, line in imported(source, module):
        if name.split(".")[0] in PACKAGES and not may_import(module, name):
            wrong.append(f"{module}:{line} imports {name}")
        if is_within(name, "nvidia.dali") and module != "pipelines.decoding.dali":
            wrong.append(f"{module}:{line} imports {name}")
    return wrong


def test_every_module_has_a_room() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]
    homeless = [name for name in modules if room_of(name)[0] < 0 and name.count(".") and not name.endswith(".__init__")]
    assert homeless == []


def test_no_circle_of_imports() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }
    arrows = {
        module: {
            other
            for name, _ in imported(path.read_text(), module)
            for other in (name, name.rpartition(".")[0])
            if other in modules and other != module and not is_within(module, other)
        }
        for module, path in modules.items()
    }
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_no_room_shadows_the_standard_library_for_scripts() -> None:
    names = {path.stem for path in (ROOT / "launch").iterdir()}
    assert names & sys.stdlib_module_names == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert violations(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import launch.common.cli", "mae3d.training.engine"),
        ("from mae3d.training.engine import Engine", "mae3d.model.mae"),
        ("from preprocess.jobs import build", "preprocess.plan.plan"),
        ("from mae3d.tracking import plots", "preprocess.plan.plan"),
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


# Packages that one interpreter imports one after the other, each without what it has to work without: what one needs
# must stand before the others that have it.
ABSENT = [
    {"mae3d.io": ("torch", "deepspeed"), "mae3d.video": ("torch", "deepspeed"),
     "preprocess": ("nvidia.dali", "deepspeed", "torch")},
    {"pipelines": ("deepspeed", "pandas", "torchvision", "fsspec"), "mae3d": ("nvidia.dali", "deepspeed"),
     "launch": ("nvidia.dali", "deepspeed")},
]  # fmt: skip
IMPORT = """
import importlib, sys

class Absent:
    names = ()

    def find_spec(self, name, path=None, target=None):
        if name not in self.names:
            return None
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        importer = frame.f_globals["__name__"]
        if importer.partition(".")[0] in {ours!r}:
            print(importer, "imports", name)  # also where it would do without
        raise ImportError(name)

sys.meta_path.insert(0, Absent())
for package, Absent.names, names in {packages!r}:
    loaded = {{name: sys.modules.pop(name) for name in Absent.names if name in sys.modules}}
    for name in names:
        importlib.import_module(name)
    sys.modules.update(loaded)
"""


@pytest.mark.slow
@pytest.mark.parametrize("packages", ABSENT, ids=" ".join)
def test_packages_import_without_what_they_do_not_need_and_run_nothing(packages: dict[str, tuple[str, ...]]) -> None:
    """Any output is at fault, too: importing a command does not run it."""
    asked = []
    for package, absent in packages.items():
        inside = pkgutil.walk_packages([str(ROOT.joinpath(*package.split(".")))], prefix=f"{package}.")
        names = [module.name for module in inside if not module.name.endswith("__main__")]
        asked.append((package, absent, [package, *names]))
    assert len(asked[-1][2]) > 20
    child = subprocess.run(
        [sys.executable, "-c", IMPORT.format(packages=asked, ours=PACKAGES)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
