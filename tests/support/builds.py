"""An archive of frame folders, the command that builds it, and what came out, byte for byte."""

import hashlib
import json
from pathlib import Path

from tests.support.media import make_frame_folder

CLIPS, FRAMES = 24, 4
SMALL = (48, 32)


def make_archive(root: Path, *, first: int = 0, clips: int = CLIPS, size: tuple[int, int] = (320, 280)) -> Path:
    """Frame folders with a ledger, as the seeds lay them out: v0 ... v23, labels dog and cat."""
    for clip in range(first, first + clips):
        make_frame_folder(root / "train" / f"v{clip}", FRAMES, start=FRAMES * clip, size=size)
    rows = [f"v{clip} 1 {FRAMES} {['dog', 'cat'][clip % 2]}" for clip in range(first, first + clips)]
    (root / "ledger.csv").write_text("\n".join(rows) + "\n")
    return root


def command(frames: Path, out: Path | str, *more: str, workers: int = 1) -> list[str]:
    """The arguments of `python -m preprocess` that build it in shards of five."""
    given = ["--frames", str(frames), "--out", str(out), "--shard-size", "5"]
    return ["build", *given, "--workers", str(workers), *more]


def as_schema_1(root: Path) -> None:
    """Rewrite dataset.json as earlier versions wrote it."""
    meta = json.loads((root / "dataset.json").read_text())
    del meta["checksum"], meta["plan"]
    meta |= {"schema": 1, "shards": [shard[:4] for shard in meta["shards"]]}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items()]
    (root / "dataset.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def tree(root: Path) -> dict[str, str]:
    """sha256 of every file; none if the folder is not there yet."""
    files = sorted(root.iterdir()) if root.exists() else []
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
