"""Files that another program has made, and what a folder holds."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def plant(folder: Path, *names: str) -> dict[str, bytes]:
    """Make a foreign file of each name; return what the folder holds then."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a thesis")
    return contents(folder)
