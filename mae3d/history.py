"""What a run has written ─► what a person reads of it: where its pictures are, its curves, its summary."""

from pathlib import Path

PICTURES = "eval"


def picture_of(run: Path, step: int) -> Path:
    """Where the picture of an evaluation lies."""
    return run / PICTURES / f"step-{step:08d}.png"
