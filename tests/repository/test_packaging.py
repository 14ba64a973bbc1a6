"""What is shipped, what the lock pins, and that every command answers --help at once from anywhere."""

import configparser
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mae3d

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "mae3d", "pipelines", "preprocess")
COMMANDS = sorted(path for path in (ROOT / "launch").glob("[!_]*.py") if "def main(" in path.read_text())
HELP_SECONDS = 0.5


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, with tests/ beside it: building writes into the tree that it builds."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="session")
def wheel(checkout: Path) -> zipfile.ZipFile:
    """The wheel, built with the installed setuptools: no network, no isolation."""
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    built = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (checkout / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_four_typed_packages_and_the_recipes(wheel: zipfile.ZipFile) -> None:
    expected = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "launch" / "recipes").glob("*.yaml")}
    expected |= {str(path.relative_to(ROOT)) for path in ROOT.glob("pipelines/*/*.c")}
    expected |= {f"{package}/py.typed" for package in PACKAGES}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected


def test_wheel_holds_the_licence(wheel: zipfile.ZipFile) -> None:
    licences = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    assert [wheel.read(name) for name in licences] == [(ROOT / "LICENSE").read_bytes()]


def test_version_has_one_owner(wheel: zipfile.ZipFile) -> None:
    assert metadata(wheel)["Version"] == mae3d.__version__
    literal = re.compile(rf"['\"=: ]{re.escape(mae3d.__version__)}['\"\s]")
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    sources += [ROOT / name for name in ("setup.cfg", "pyproject.toml", "Makefile", "Dockerfile")]
    owners = [str(path.relative_to(ROOT)) for path in sources if literal.search(path.read_text())]
    assert owners == ["mae3d/__init__.py"]


def metadata(wheel: zipfile.ZipFile) -> dict[str, str]:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return dict(Parser().parsestr(wheel.read(name).decode()).items())


def locked() -> dict[str, list[tuple[Version, list[str]]]]:
    """The lock as package -> its versions (one per marker), each with the packages that ask for it."""
    pins: dict[str, list[tuple[Version, list[str]]]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())[1:]:
        name, version = re.match(r"([a-z0-9.-]+)==(\S+)", block).groups()  # type: ignore[union-attr]
        comment = block.partition("# via")[2]
        pins.setdefault(name, []).append((Version(version), re.findall(r"[a-z][a-z0-9.-]+", comment)))
    return pins


def requirements() -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"] + config["options.extras_require"]["dev"]
    return [Requirement(line) for line in lines.splitlines() if line and not line.startswith("#")]


def test_lock_satisfies_setup_cfg() -> None:
    pins = locked()
    for requirement in requirements():
        versions = [version for version, _ in pins[canonicalize_name(requirement.name)]]
        assert versions, requirement
        assert all(version in requirement.specifier for version in versions), (requirement, versions)


def test_lock_names_no_index_and_has_every_hash() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "+cpu" not in text
    blocks = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


def test_torch_lines_are_what_only_torch_needs() -> None:
    """With TORCH_INDEX, make leaves out of the lock exactly torch, torchvision, and what nothing else asks for."""
    pattern = re.search(r"^TORCH_LINES := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert pattern is not None
    pins = locked()
    left_out = {name for name in pins if re.fullmatch(pattern[1].replace("$$", "$"), name)}
    only_torch = {"torch", "torchvision"}
    cuda = {name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))}
    while True:
        asked_by_torch = {
            name for name in cuda if all(who and set(who) <= only_torch for _, who in pins[name])
        } | only_torch
        if asked_by_torch == only_torch:
            break
        only_torch = asked_by_torch
    assert left_out == only_torch


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_second_make_installs_nothing(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    for stamp in (".mae3d-torch-index", ".mae3d-locked", ".mae3d-installed"):
        (tmp_path / ".venv" / stamp).touch()
    assert "pip" not in make("-n", "test", cwd=tmp_path)
    later = time.time() + 10
    os.utime(tmp_path / "setup.cfg", (later, later))
    changed = make("-n", "test", cwd=tmp_path)
    assert "install --no-deps --no-build-isolation -e ." in changed
    assert "--require-hashes" not in changed  # the lock is as it was
    other = make("-n", "test", "TORCH_INDEX=https://example.org/cu126", cwd=tmp_path)
    assert "-m venv --clear" in other
    assert "--index-url https://example.org/cu126" in other


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_names_the_remedy_for_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "deps", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "Python >= 3.11" in refused.stderr
    assert not (tmp_path / "venv").exists()


def make(*arguments: str, cwd: Path) -> str:
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    ).stdout


def run_help(*command: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run `python COMMAND --help` with nothing but PATH in the environment; the child, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return child, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_help_is_quick_and_works_from_anywhere(path: Path, tmp_path: Path) -> None:
    child, seconds = run_help(str(path), cwd=tmp_path)
    again, _ = run_help("-m", f"launch.{path.stem}", cwd=ROOT)
    for each in (child, again):
        assert each.returncode == 0, each.stderr
        assert "usage" in each.stdout.lower()
    # The best of a few: other programs share the machine's caches and clock.
    assert seconds < HELP_SECONDS or any(run_help(str(path), cwd=tmp_path)[1] < HELP_SECONDS for _ in range(4))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_help_imports_nothing_heavy(path: Path, tmp_path: Path) -> None:
    child, _ = run_help("-X", "importtime", str(path), cwd=tmp_path)
    modules = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines()}
    assert "mae3d.io.help_page" in modules
    assert not {"deepspeed", "nvidia.dali", "torch"} & modules


def test_the_command_is_quick_in_every_way_to_start_it(checkout: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert wheel.read(scripts).decode().split() == ["[console_scripts]", "mae3d", "=", "launch.__main__:main"]
    for start in (["-m", "launch"], [str(ROOT / "launch" / "__main__.py")], ["-m", "launch", "checkpoint"]):
        child, seconds = run_help(*start, cwd=ROOT if "-m" in start else tmp_path)
        assert child.returncode == 0, child.stderr
        assert child.stdout.startswith("usage: mae3d ")
        assert seconds < HELP_SECONDS or any(run_help(*start, cwd=ROOT)[1] < HELP_SECONDS for _ in range(4))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_command_runs_the_checkout_that_it_lies_in(path: Path, checkout: Path, tmp_path: Path) -> None:
    """Even where another copy is installed, as this one is: the file's own checkout comes first on sys.path."""
    copied = checkout / path.relative_to(ROOT)
    code = f"""
import importlib.util, runpy, sys
sys.argv = [{str(copied)!r}, "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
print(importlib.util.find_spec("mae3d").origin)
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert child.stdout.splitlines()[-1:] == [str(checkout / "mae3d" / "__init__.py")], child.stderr
