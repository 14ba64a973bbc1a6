"""Samples are split into training and validation set by a rule over groups, which is kept in the plan.

    rule = split_rule({"train": 0.9, "val": 0.1}, seed=0)
    plan = with_groups(plan, {"video_1": "patient 7", ...})        # or the plan as it is: a group is a recording
    splits = planned_splits(replace(plan, split_rule=rule))        # of every sample

The split of a group is a function of its name and the seed, never of the order or of other groups. So a dataset that
is appended to, rebuilt or merged again keeps its splits. Pieces of one recording are always together.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mae3d.io.bounds import FINITE, check_number
from preprocess.dataset.schema import DatasetError
from preprocess.plan.plan import BuildPlan

_SHOWN = 5


def split_rule(fractions: Mapping[str, float], *, seed: int, by: str = "name") -> dict[str, Any]:
    """Return the rule as the plan keeps it.

    Args:
        fractions: of the groups for each split; they must add up to 1.
        seed: another one draws other splits.
        by: the kind of group, for people.

    Raises:
        ValueError: the fractions do not add up to 1.
    """
    check_number("seed", seed, FINITE)
    if any(not 0 <= value <= 1 for value in fractions.values()) or not math.isclose(sum(fractions.values()), 1):
        shown = ", ".join(f"{name}={value:g}" for name, value in fractions.items())
        raise ValueError(f"--fractions {shown}: they must add up to 1, as in train=0.9,val=0.1")
    return {"by": by, "fractions": dict(fractions), "seed": seed}


def parse_fractions(text: str) -> dict[str, float]:
    """Return `train=0.9,val=0.1` as a mapping; raise ValueError for other texts."""
    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name.strip() or math.isnan(number) or name.strip() in fractions:
            raise ValueError(f"--fractions {text}: expected NAME=SHARE,..., as in train=0.9,val=0.1")
        fractions[name.strip()] = number
    return fractions


def split_of_group(group: str, rule: Mapping[str, Any]) -> str:
    """Return the split of one group: its name and the seed, hashed to a number in [0, 1), against the fractions."""
    digest = hashlib.sha256(f"{rule['seed']}:{group}".encode()).digest()
    drawn = int.from_bytes(digest[:7], "big") / (1 << 56)
    bound = 0.0
    for name, share in rule["fractions"].items():
        bound += share
        if drawn < bound:
            return str(name)
    return next(str(name) for name, share in reversed(rule["fractions"].items()) if share)  # rounding


def planned_splits(plan: BuildPlan) -> pa.DictionaryArray | None:
    """Return the split of every sample of the plan; None if the plan has no rule.

    If the rule is by the column of a table, samples that were appended later, without a group, keep their own split.
    """
    rule = plan.split_rule
    if rule is None:
        return None
    groups: Any = groups_of(plan).combine_chunks().dictionary_encode()
    codes: dict[str, int] = {name: i for i, name in enumerate(rule["fractions"])}
    of_group = np.array([codes[split_of_group(group, rule)] for group in groups.dictionary.to_pylist()], np.int32)
    chosen = of_group[groups.indices.to_numpy()] if len(of_group) else np.zeros(0, np.int32)
    if rule["by"] != "name":
        for i in np.flatnonzero(pc.equal(plan.rows["group"], pa.scalar("")).to_numpy()).tolist():
            chosen[i] = codes.setdefault(plan.rows["split"][i].as_py(), len(codes))
    return pa.DictionaryArray.from_arrays(pa.array(chosen, pa.int32()), pa.array(list(codes), pa.string()))


def groups_of(plan: BuildPlan) -> pa.ChunkedArray:
    """Return the group of every sample: the one that it was given, else its recording."""
    given = plan.rows["group"]
    return pc.if_else(pc.equal(given, pa.scalar("")), plan.rows["name"], given)


def with_groups(plan: BuildPlan, group_of: Mapping[str, str] | None) -> BuildPlan:
    """Return the plan with the groups of its names; with None every recording is a group of its own.

    Raises:
        DatasetError: names have no group.
    """
    names: Any = plan.rows["name"].combine_chunks().dictionary_encode()
    recordings = names.dictionary.to_pylist()
    groups = [""] * len(recordings)
    if group_of is not None:
        if missing := [name for name in recordings if not group_of.get(name)]:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            raise DatasetError(f"{len(missing)} of {len(recordings)} recordings have no group: {shown}")
        groups = [group_of[name] for name in recordings]
    at = plan.rows.schema.get_field_index("group")
    column = pa.array(groups, pa.string()).take(names.indices)
    return replace(plan, rows=plan.rows.set_column(at, plan.rows.schema.field(at), column))


def count_lines(samples: pa.Table, groups: Sequence[str]) -> list[str]:
    """Return one line per split with its samples, groups and hours.

    Args:
        samples: columns split, num_frames and fps of the index.
        groups: of each sample.
    """
    counts: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    kinds: dict[str, set[str]] = defaultdict(set)
    columns = (samples[name].to_pylist() for name in ("split", "num_frames", "fps"))
    for split, num_frames, fps, group in zip(*columns, groups, strict=True):
        counts[split] += 1
        seconds[split] += num_frames / fps if math.isfinite(fps) else 0.0
        kinds[split].add(group)
    lines = []
    for split in sorted(counts):
        hours = f", {seconds[split] / 3600:.2f} hours" if seconds[split] else ""
        lines.append(f"{split or '(no split)'}: {counts[split]} samples, {len(kinds[split])} groups{hours}")
    return lines
