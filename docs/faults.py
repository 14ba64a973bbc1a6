"""Write the names of the tests into the fault table of failures.md: tests/ ─► the last column of each row.

python docs/faults.py
"""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "failures.md"
ROW = re.compile(r"^\| (\d+) \|(.*\|).*\|$", flags=re.MULTILINE)
NO_TEST = "no test yet"


def tests_by_fault() -> dict[int, list[str]]:
    """Return the names of the tests that each fault number occurs in, sorted."""
    tests: defaultdict[int, set[str]] = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"^def (test_\w*fault_\d+\w*)\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            for number in re.findall(r"fault_(\d+)", name):
                tests[int(number)].add(name)
    return {number: sorted(names) for number, names in sorted(tests.items())}


def filled(text: str, tests: dict[int, list[str]]) -> str:
    """Return the page's text with the last column of each row set to its tests, folded if there are several."""

    def row(match: re.Match[str]) -> str:
        names = [f"<code>{name}</code>" for name in tests.get(int(match[1]), [])]
        cell = "<br>".join(names) or NO_TEST
        if len(names) > 1:
            cell = f"<details><summary>{len(names)} tests</summary>{cell}</details>"
        return f"| {match[1]} |{match[2]} {cell} |"

    return ROW.sub(row, text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tests_by_fault()), encoding="utf-8")
    print(f"{PAGE}: {sum(map(len, tests_by_fault().values()))} tests in {len(tests_by_fault())} rows")
