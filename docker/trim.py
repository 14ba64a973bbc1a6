"""An environment is cut down to what commands of ours use: the container's, before the final stage copies it.

requirements.lock holds the tools of development, too. Packages go that setup.cfg does not lead to, with the extras
named; then what the others bring along without using it, their tests and static libraries. These stay in their
packages' lists of files, which only `pip uninstall` reads.

    python docker/trim.py s3 tensorboard      # in the environment itself, beside setup.cfg
"""

import configparser
import importlib.metadata
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What installs us, and what images that are built on ours install with: `RUN pip install wandb`.
TOOLS = ("pip", "setuptools")


def our_requirements(extras: Iterable[str]) -> list[str]:
    """Return what setup.cfg asks for, with these extras."""
    config = configparser.ConfigParser()
    config.read("setup.cfg")
    lines = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    return "\n".join(lines).split("\n")


def require(lines: Iterable[str], extras: set[str], reached: dict[str, set[str]]) -> None:
    """Add what the lines ask for, and what that requires in turn, to `reached`: names, and the extras of each.

    Args:
        lines: requirements of a package.
        extras: the package's extras; "" stands for none.
        reached: is added to.
    """
    for requirement in map(Requirement, filter(None, lines)):
        name, marker = canonicalize_name(requirement.name), requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        known = reached.setdefault(name, set())
        new = {"", *requirement.extras} - known
        known |= new
        if new:
            require(importlib.metadata.requires(name) or [], new, reached)


def unused(packages: Path) -> Iterator[Path]:
    """Yield the files that no program reads: static libraries and tests, but not what lies beside the tests.

    numpy reads some of that.
    """
    yield from packages.rglob("*.a")
    for folder in packages.rglob("tests"):
        yield from folder.rglob("test_*.py*")


def main(extras: list[str]) -> None:
    """Remove what is not needed from the environment that runs this."""
    reached: dict[str, set[str]] = {}
    require([*our_requirements(extras), *TOOLS], {""}, reached)
    installed = {canonicalize_name(package.name) for package in importlib.metadata.distributions()}
    removed = sorted(installed - reached.keys())
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", *removed], check=True)
    files = set(unused(Path(sysconfig.get_path("purelib"))))
    size = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink()
    print(f"removed {len(removed)} packages of development and {len(files)} unused files, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
