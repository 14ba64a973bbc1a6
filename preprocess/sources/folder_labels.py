"""Labels and splits are inferred from the folders that files lie in.

    placed = infer_labels(["train/cat/1.mp4", "val/dog/2.mp4"], labels="auto")
    placed.labels, placed.splits                          # [("cat",), ("dog",)], ["train", "val"]

If all files lie in folders called train, val, test or the like, these are splits. The first folder (below the split)
is the label if every file lies in one: a tree of a folder a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Labels = Literal["auto", "folder", "none"]

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "eval": "eval",
}


@dataclass(frozen=True)
class Placed:
    """A label (or none) and a split ("" = none) per path, and the rule that gave them, for messages."""

    labels: list[tuple[str, ...]]
    splits: list[str]
    note: str


def split_of(word: str) -> str:
    """Return the canonical name of a split; an unknown one stays as it is."""
    return _SPLITS.get(word.lower(), word)


def infer_labels(paths: Sequence[str], *, labels: Labels) -> Placed:
    """Infer labels and splits of files (or of frame folders) from the folders that they lie in.

    Args:
        paths: relative, with slashes.
        labels: "auto": the first folder if every path has one; "folder": the first folder of those that have one.
    """
    parts = [path.split("/") for path in paths]
    splits = [""] * len(parts)
    notes = []
    if parts and all(len(names) > 1 and names[0].lower() in _SPLITS for names in parts):
        splits = [split_of(names[0]) for names in parts]
        parts = [names[1:] for names in parts]
        notes.append(f"splits by folder: {', '.join(sorted(set(splits)))}")
    by_folder = labels == "folder" or (labels == "auto" and bool(parts) and all(len(names) > 1 for names in parts))
    label_lists: list[tuple[str, ...]] = [(names[0],) if by_folder and len(names) > 1 else () for names in parts]
    if by_folder:
        notes.append(
            f"labels: the first folder, {len(set(filter(None, label_lists)))} classes (--labels none for none)"
        )
    else:
        notes.append("no labels")
    return Placed(label_lists, splits, "; ".join(notes))
