"""The files of a shard grow: written samples in, shard-NNNNN.tar and .idx out, and the rows of its table.

    with growing_shard(out / "shard-00003", layout) as shard:
        shard.keep(written)

The tar and the .idx are those of `preprocess.encode.tar_writer`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae3d.io.files import replace_file
from mae3d.video.errors import MediaError
from preprocess.dataset.layout import Layout
from preprocess.encode.tar_writer import IDX_VERSION, GrowingHash, TarWriter
from preprocess.plan.samples import PlannedSample
from preprocess.workers.decoder import Written

_NUMBERS = 256  # bytes that the numbers of a sample's .json may take


@dataclass
class GrowingShard:
    """A shard's tar that grows at a temporary name, and the lines of its .idx; complete up to byte `stop`."""

    tar: Path
    sha256: GrowingHash
    stop: int = 0
    lines: list[str] = field(default_factory=list)
    tar_bytes: int = 0  # of the finished tar
    tar_sha256: str = ""

    def keep(self, written: Written) -> None:
        """Keep a sample that was written behind `stop`; one that is not kept is written over, or cut off."""
        self.lines.append(written.line)
        self.stop = written.stop
        self.sha256.cover(self.stop)


@contextmanager
def growing_shard(stem: Path, layout: Layout) -> Iterator[GrowingShard]:
    """Yield a shard to write samples to; at the end of the block its .tar and .idx are there, on an error neither.

    Args:
        stem: the path of the shard's files without their suffix.
        layout: of the samples.

    Raises:
        OSError: the files cannot be written.
    """
    with replace_file(stem.with_suffix(".tar")) as aside:
        aside.touch()
        with GrowingHash(aside) as sha256:
            shard = GrowingShard(aside, sha256)
            yield shard
            with aside.open("r+b") as file:
                file.truncate(shard.stop)  # a sample that failed may have left something
                file.seek(shard.stop)
                TarWriter(file, layout).close()
                shard.tar_bytes = file.tell()
            sha256.cover(shard.tar_bytes)
            shard.tar_sha256 = sha256.hexdigest()
    with replace_file(stem.with_suffix(".idx")) as aside:
        lines = [f"{IDX_VERSION} {len(shard.lines)}", *shard.lines]
        aside.write_text("\n".join(lines) + "\n", encoding="ascii")


def sample_row(sample: PlannedSample, outcome: Written | MediaError) -> dict[str, Any]:
    """Return a sample's row of the shard's table (SHARD_SCHEMA)."""
    row: dict[str, Any] = {
        "key": sample.key,
        "name": sample.name,
        "labels": sample.labels,
        "split": sample.split,
        "file": sample.file,
        "line": sample.line,
        "frame": -1,
        "reason": "",
        "message": "",
    }
    if isinstance(outcome, MediaError):
        nothing = {"offset": 0, "num_frames": 0, "first": 0, "fps": math.nan, "start_s": math.nan}
        row |= nothing | {"width": 0, "height": 0, "sizes": [], "crc32s": []}
        return row | {"frame": outcome.frame, "reason": outcome.reason, "message": str(outcome)}
    facts = outcome.facts
    if facts.remark:
        row |= {"reason": facts.remark[0], "message": facts.remark[1]}
    return row | {
        "offset": outcome.offset,
        "num_frames": facts.num_frames,
        "first": facts.first,
        "fps": facts.fps,
        "start_s": facts.start_s,
        "width": facts.width,
        "height": facts.height,
        "sizes": outcome.sizes,
        "crc32s": outcome.crc32s,
    }
