"""A shard is built: planned samples in, shard-NNNNN.tar, .idx and .parquet out.

    build_shard(3, plan.shard(3), roots=(Folder(Path("clips")),), settings=Settings(), out=Path("out"))

A pure function of its arguments: what it writes does not depend on the worker, the host, the time or earlier tries.
Media are read, and frames written, by the child of `preprocess.workers.decoder`; what hangs or kills it costs its
sample.
The tar and the .idx are those of `preprocess.encode.tar_writer`. The .parquet comes last: where it is, the shard is
done.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae3d.io.files import replace_file
from mae3d.io.storage import is_url
from mae3d.video.errors import MediaError
from preprocess.dataset.layout import Layout
from preprocess.dataset.schema import shard_name, write_shard_table
from preprocess.encode.tar_writer import IDX_VERSION, GrowingHash, TarWriter
from preprocess.plan.samples import NOT_IN_RANGES, Facts, PlannedSample, media_files
from preprocess.plan.settings import Settings
from preprocess.sources.roots import Root
from preprocess.sources.tar_files import split_archive
from preprocess.workers.decoder import Written, decoder

_NUMBERS = 256  # bytes that the numbers of a sample's .json may take


@dataclass(frozen=True)
class ShardResult:
    """The counts of a built shard; `rejected` and `remarks` are (name, reason, message)."""

    number: int
    num_samples: int
    num_frames: int
    rejected: tuple[tuple[str, str, str], ...]
    remarks: tuple[tuple[str, str, str], ...]


def build_shard(
    number: int, samples: list[PlannedSample], *, roots: Sequence[Root], settings: Settings, out: Path
) -> ShardResult:
    """Read the samples and write the three files of the shard.

    Args:
        number: the shard's number.
        samples: its rows of the plan, in order.
        roots: where the rows' paths start, by their `root`.
        settings: sizes, rates and quality.
        out: the dataset's folder.

    Raises:
        OSError: the output cannot be written. What is wrong with an input is in the table and the result instead.
    """
    stem, layout = out / shard_name(number), settings.stored_as
    rows: list[dict[str, Any]] = []
    with growing_shard(stem, layout) as shard:
        for sample in samples:
            try:
                with roots[sample.root].local(media_files(sample, settings)) as files:
                    written = decoder().write(
                        sample, files, settings=settings, tar=shard.tar, start=shard.stop, first=sample is samples[0]
                    )
                    media = _media(sample, roots[sample.root], files[0], written.facts, layout)
            except MediaError as error:
                rows.append(sample_row(sample, error))
            else:
                rows.append(sample_row(sample, written) | media)
                shard.keep(written)
    table = stem.with_suffix(".parquet")
    write_shard_table(table, rows, tar_bytes=shard.tar_bytes, tar_sha256=shard.tar_sha256, layout=layout)
    problems = [row for row in rows if row["reason"]]
    reasons = [(row["name"], row["reason"], row["message"]) for row in problems]
    return ShardResult(
        number,
        num_samples=sum(row["num_frames"] > 0 for row in rows),
        num_frames=sum(row["num_frames"] for row in rows),
        rejected=tuple(one for one, row in zip(reasons, problems, strict=True) if not row["num_frames"]),
        remarks=tuple(one for one, row in zip(reasons, problems, strict=True) if row["num_frames"]),
    )


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


def _media(sample: PlannedSample, root: Root, file: Path, facts: Facts, layout: Layout) -> dict[str, Any]:
    """Return the columns that say which file holds a sample that stays where it is; none in other layouts.

    Raises:
        MediaError: it is a member of a tar, or cannot be read by ranges though it is behind a URL.
    """
    if not layout.is_in_place:
        return {}
    if split_archive(sample.path):
        raise MediaError("in_archive", "it lies in a tar, and an index is of files: unpack the tar, or `build`")
    if is_url(root.where) and facts.remark and NOT_IN_RANGES in facts.remark[0].split("+"):
        raise MediaError(NOT_IN_RANGES, "its packets do not lie whole in the file, which is behind a URL: `build`")
    where = root.where if is_url(root.where) else str(Path(root.where).absolute())
    return {"media_root": where, "media_path": sample.path, "media_bytes": file.stat().st_size}


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
