"""Versions of our code and of libraries are compared between processes that work together.

code_version()         # "mae3d 0.2.0, sources 3f2a…"
version_of("numpy")
"""

import hashlib
import importlib.metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("mae3d", "pipelines", "preprocess", "launch")


def code_version() -> str:
    """Return our version with a hash over the sources, in which checkouts of one version may differ."""
    return f"mae3d {version_of('mae3d')}, sources {sources_hash()}"


def sources_hash(root: Path = _ROOT) -> str:
    """Return the first digits of a hash over the Python files of our packages."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def version_of(package: str) -> str:
    """Return the version of an installed distribution; "not installed" without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
