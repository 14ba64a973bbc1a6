"""Fields of config dataclasses ─► the values that a setting may have; others are refused before anything is begun.

@dataclass(frozen=True)
class OptimConfig:
    eps: float = bounded(1e-8, above=0, most=1)
    accumulation: int = bounded(free(1), least=1)     # with its rule of mae3d/io/resume.py

    def __post_init__(self) -> None:
        check_bounds(self, "optim.")         # ValueError: optim.eps=nan must be above 0 and at most 1

A number without bounds must be finite, and a whole number must fit into 64 bits. A field that a subclass declares again
for another default keeps its bounds.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

_BOUNDS, _FILLED = "bounds", "filled"
# Metadata of a text that must not be empty: field(metadata=FILLED).
FILLED = {_FILLED: True}
GREATEST = 2**63 - 1  # of a signed number of 64 bits, which torch, NumPy and Parquet count in


@dataclass(frozen=True)
class Bounds:
    """The interval of a number, or of each number of a list, and what else a person may want to give.

    Attributes:
        least: The smallest value.
        above: Instead: a limit that values stay above.
        most: The largest value.
        below: Instead: a limit that values stay below.
        hint: A clause for the message.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    hint: str = ""

    def holds(self, number: float) -> bool:
        """Return whether a number is finite and lies within; NaN does not."""
        return (
            (abs(number) <= GREATEST if isinstance(number, int) else math.isfinite(number))
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        sides = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        limits = [f"{word} {_shown(limit)}" for word, limit in sides.items() if limit is not None]
        text = " and ".join(limits) or "a finite number of at most 64 bits"
        return f"{text}; {self.hint}" if self.hint else text


FINITE = Bounds()
SEED = Bounds(least=0, most=GREATEST)


def bounded(default: Any = MISSING, **bounds: Any) -> Any:
    """Return a dataclass field with bounds, given as those of `Bounds`.

    Args:
        default: the field's, or a field of mae3d/io/resume.py, whose rule it keeps; none if it must be given.
        bounds: `least`, `above`, `most`, `below`, `hint`.
    """
    return _with({_BOUNDS: Bounds(**bounds)}, default)


def seeded(default: Any = 0) -> Any:
    """Return a dataclass field for a seed: all of its values draw different numbers."""
    return _with({_BOUNDS: SEED}, default)


def bounds_of(config_class: type, name: str) -> Bounds:
    """Return the bounds of a field, its own or those of the class that declared it first; else FINITE."""
    for base in config_class.__mro__:
        entry = getattr(base, "__dataclass_fields__", {}).get(name)
        if entry is not None and _BOUNDS in entry.metadata:
            bounds: Bounds = entry.metadata[_BOUNDS]
            return bounds
    return FINITE


def check_number(name: str, value: Any, bounds: Bounds) -> None:
    """Raise ValueError with name, value and bounds unless each number of a value lies within them."""
    if not all(bounds.holds(number) for number in _numbers(value)):
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{name}={shown} must be {bounds}")


def check_bounds(config: Any, prefix: str = "") -> None:
    """Raise ValueError unless all numbers and texts of a dataclass are as its fields say.

    Args:
        config: the dataclass; those in it have checked themselves.
        prefix: of its fields' names in the message: its section's, with a dot.
    """
    check_values(type(config), {entry.name: getattr(config, entry.name) for entry in fields(config)}, prefix)


def check_values(config_class: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ValueError as `check_bounds` does, for values that a dataclass is about to be made of, nested alike."""
    types = get_type_hints(config_class)
    for entry in fields(config_class):
        value, name = values.get(entry.name), f"{prefix}{entry.name}"
        if is_dataclass(types[entry.name]) and isinstance(value, Mapping):
            check_values(types[entry.name], value, f"{name}.")
            continue
        check_number(name, value, bounds_of(config_class, entry.name))
        if entry.metadata.get(_FILLED) and value is not None and not str(value).strip():
            raise ValueError(f"{name}={value!r} is empty: give one")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _with(metadata: dict[str, Any], default: Any) -> Any:
    if isinstance(default, Field):
        metadata |= default.metadata
        if default.default_factory is not MISSING:
            return field(default_factory=default.default_factory, metadata=metadata)
        default = default.default
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)
