"""Cells of lists and tables are read as labels: text ─► an id, a name, or no label.

number_of("2.0"), number_of("walk")        # 2, None
"nan" in MISSING                           # compared in small letters
"""

import re

MAX_ID = 2**31 - 1
MISSING = frozenset(("", "nan", "<na>", "-1", "-1.0"))  # what says that a sample has no label
_NUMBER = re.compile(r"\+?([0-9]+)(\.0*)?")  # a table with an empty cell has floats


def number_of(label: str) -> int | None:
    """Return the id that a label is; None if it is none. 2.0 is 2, as tables with an empty cell have it."""
    match = _NUMBER.fullmatch(label)
    return int(match[1]) if match else None
