"""Fields of config dataclasses ─► which settings may differ between two starts of a run, and between its processes.

@dataclass(frozen=True)
class DataConfig:
    repeat_aug: int = 4              # fixed: it changes the sequence of losses
    prefetch: int = free(4)          # free: it changes the order of a sum at most
    cache: str = free("", local=True)    # besides, it names something of the machine: each process may have its own

rules = resume_rules(config)
rules.is_free("data.prefetch")       # True
local_settings(config)               # {"data.cache"}
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

_RULE, _FREE, _LENGTH, _LOCAL = "resume", "free", "length", "local"


def free(
    default: Any = MISSING, *, default_factory: Any = MISSING, below: Sequence[str] = (), local: bool = False
) -> Any:
    """Return a dataclass field that may differ between two starts; a config as its value is free as a whole.

    Args:
        default: the field's.
        default_factory: the field's.
        below: of a mapping, the keys that are free, with all below them; the others are fixed.
        local: whether it may differ between the processes of one start, too: a path or a number of their machine.
    """
    metadata = {_RULE: tuple(below) or _FREE, _LOCAL: local}
    if default is MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def length(default: Any) -> Any:
    """Return a dataclass field that says how long a run is: another value goes on with the run only on request."""
    return field(default=default, metadata={_RULE: _LENGTH})


@dataclass(frozen=True)
class ResumeRules:
    """Dotted names of the settings that may differ between two starts; by default none may.

    Attributes:
        free: Names of free settings, of sections too.
        length: Names of the settings that are a run's length.
    """

    free: tuple[str, ...] = ()
    length: tuple[str, ...] = ()

    def is_free(self, name: str) -> bool:
        """Return whether a setting may differ: it is free itself, or in a free section."""
        return any(name == entry or name.startswith(f"{entry}.") for entry in self.free)


ALL_FIXED = ResumeRules()


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names: {"data": {"flip": 0}} ─► {"data.flip": 0}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def resume_rules(config: Any) -> ResumeRules:
    """Return the rules of a config, a dataclass of dataclasses; a field without a rule is fixed."""
    rules: dict[str, str] = dict(_rules_of(config, ""))
    return ResumeRules(*(tuple(name for name, rule in rules.items() if rule == kind) for kind in (_FREE, _LENGTH)))


def local_settings(config: Any, prefix: str = "") -> set[str]:
    """Return the dotted names of the settings that may differ between the processes of one start."""
    names = set()
    for entry in fields(config):
        name, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        if entry.metadata.get(_LOCAL):
            names.add(name)
        elif is_dataclass(value):
            names |= local_settings(value, f"{name}.")
    return names


def _rules_of(config: Any, prefix: str) -> list[tuple[str, str]]:
    rules = []
    for entry in fields(config):
        name, rule = f"{prefix}{entry.name}", entry.metadata.get(_RULE)
        if isinstance(rule, tuple):
            rules += [(f"{name}.{key}", _FREE) for key in rule]
        elif rule:
            rules.append((name, rule))
        elif is_dataclass(value := getattr(config, entry.name)):
            rules += _rules_of(value, f"{name}.")
    return rules
