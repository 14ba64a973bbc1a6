"""Check the language of docstrings, comments and names; `make check` runs it (CONTRIBUTING.md has the rules).

python -m tests.repository.language
"""

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("mae3d", "pipelines", "preprocess", "launch")
OPENINGS = {
    "What",
    "Where",
    "Of",
    "Those",
    "One",
    "That",
    "Whether",
    "As",
    "If",
    "Whatever",
    "However",
    "Whoever",
    "Which",
    "So",
}
WORDS = re.compile(r"\b(tell|tells|told|ask|asks|asked|whatever|whoever)\b", re.IGNORECASE)
NAMES = {"told", "tell", "_told", "_tell", "asked", "asked_for", "own", "found", "wanted", "several", "place", "some"}


def faults(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of each docstring, comment and name that breaks a rule."""
    with tokenize.open(path) as file:
        text = file.read()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            line = getattr(node, "lineno", 1)
            if docstring and (word := docstring.split()[0].strip(",.:;")) in OPENINGS:
                yield line, f"a docstring that begins with {word!r}: begin with an imperative or a noun"
            yield from ((line, f"{match[0]!r} in a docstring") for match in WORDS.finditer(docstring))
        names = []
        if isinstance(node, ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        yield from ((node.lineno, f"the name {name!r}") for name in names if name in NAMES)
    for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__):
        if token.type == tokenize.COMMENT:
            yield from ((token.start[0], f"{match[0]!r} in a comment") for match in WORDS.finditer(token.string))


def main() -> int:
    """Print every fault; the exit code is 1 if there is one."""
    count = 0
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for line, fault in sorted(faults(path)):
            print(f"{path.relative_to(ROOT)}:{line}: {fault}")
            count += 1
    print(f"{count} faults of language")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
