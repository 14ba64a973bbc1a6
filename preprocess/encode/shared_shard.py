"""A shard is built, by one worker or by several: planned samples in, shard-NNNNN.tar, .idx and .parquet out.

    build_shard(3, plan.shard(3), roots=(Folder(Path("clips")),), settings=Settings(), folder=nullcontext(out))

    crew = Crew(lambda number: SharedShard(number, plan.shard(number), ...))
    for result in run_tasks(crew.numbers(todo), crew.task, workers): ...

A pure function of the samples and settings: what is written does not depend on the number of workers, the host, the
time or earlier tries. Media are read, and frames written, by the child of `preprocess.workers.decoder`; what hangs or
kills it costs its sample. The .parquet comes last: where it is, the shard is done.

Once all shards are begun, a worker that has nothing to do takes half of what is left of one, as a piece with a file of
its own; who ends the last piece of a shard puts them together. Samples that follow on each other in one file stay in
one piece, because a decoder goes on where it was: so the bytes are those of a single worker.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from mae3d.io.files import TEMPORARY_PREFIX
from mae3d.io.storage import is_url
from mae3d.video.errors import MediaError
from preprocess.dataset.layout import Layout
from preprocess.dataset.schema import shard_name, write_shard_table
from preprocess.encode.shard import GrowingShard, growing_shard, sample_row
from preprocess.encode.tar_writer import moved_line
from preprocess.plan.samples import NOT_IN_RANGES, Facts, PlannedSample, media_files
from preprocess.plan.settings import Settings
from preprocess.sources.roots import Root
from preprocess.sources.tar_files import split_archive
from preprocess.workers.decoder import Written, decoder

_HELP = -1  # in place of the number of a shard
_AT_A_TIME = 1 << 20  # bytes that are copied


@dataclass(frozen=True)
class ShardResult:
    """The counts of a built shard; `rejected` and `remarks` are (name, reason, message)."""

    number: int
    num_samples: int
    num_frames: int
    rejected: tuple[tuple[str, str, str], ...]
    remarks: tuple[tuple[str, str, str], ...]


@dataclass(eq=False)
class Piece:
    """Samples of a shard that follow on each other, which one worker writes to one file."""

    samples: list[PlannedSample]
    num_begun: int = 0
    file: BinaryIO | None = None  # without a name; None = the shard's own
    stop: int = 0  # bytes that are complete
    outcomes: list[tuple[PlannedSample, Written | MediaError, dict[str, Any]]] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        """Return the samples that nobody has begun."""
        return len(self.samples) - self.num_begun

    def cut(self) -> int | None:
        """Return the sample at which about half of what is left begins, and a file; None if it cannot be parted."""
        middle = self.num_begun + self.num_left // 2
        files = [(sample.root, sample.path) for sample in self.samples]
        begins = (at for at in range(max(1, self.num_begun), len(files)) if files[at] != files[at - 1])
        return min(begins, key=lambda at: abs(at - middle), default=None)


class SharedShard:
    """A shard that workers are building."""

    def __init__(
        self,
        number: int,
        samples: list[PlannedSample],
        *,
        roots: Sequence[Root],
        settings: Settings,
        folder: AbstractContextManager[Path],
    ) -> None:
        """Prepare to build; nothing is written yet.

        Args:
            number: the shard's number.
            samples: its rows of the plan, in order.
            roots: where the rows' paths start, by their `root`.
            settings: sizes, rates and quality.
            folder: the dataset's folder, entered by the first worker and left when the shard is done.
        """
        self.number, self._roots, self._settings = number, roots, settings
        self._layout = settings.stored_as
        self._lock = Lock()
        self._pieces = [Piece(list(samples))]
        self._num_running = 0
        self._has_failed = False
        self._folder, self._files, self._outer = folder, ExitStack(), ExitStack()
        self._out = Path()
        self._shard: GrowingShard | None = None

    @property
    def num_left(self) -> int:
        """Return the samples of the largest piece that can be parted."""
        with self._lock:
            pieces = () if self._has_failed else self._pieces
            return max((piece.num_left for piece in pieces if piece.cut() is not None), default=0)

    def build(self) -> ShardResult | None:
        """Write the samples that others leave; return the counts if this has finished the shard.

        Raises:
            OSError: the output cannot be written. What is wrong with an input is in the table and the result instead.
        """
        with self._lock:
            self._num_running += 1
        return self._work(self._pieces[0])

    def help(self) -> ShardResult | None:
        """Write half of the samples that are left, if there are any; result and errors as `build`."""
        with self._lock:
            cuts = [(piece, at) for piece in self._pieces if (at := piece.cut()) is not None]
            if not cuts or self._has_failed:
                return None
            largest, at = max(cuts, key=lambda cut: cut[0].num_left)
            piece = Piece(largest.samples[at:])
            del largest.samples[at:]
            self._pieces.insert(self._pieces.index(largest) + 1, piece)
            self._num_running += 1
        return self._work(piece)

    def _work(self, piece: Piece) -> ShardResult | None:
        try:
            shard = self._opened(piece)
            while (sample := self._next(piece)) is not None:
                self._write(shard, piece, sample)
        except BaseException as error:
            with self._lock:
                self._has_failed = True
                self._num_running -= 1
                is_last = self._num_running == 0
            if is_last:
                self._give_up(error)
            raise
        with self._lock:
            self._num_running -= 1
            is_last = self._num_running == 0 and (self._has_failed or not any(one.num_left for one in self._pieces))
        if not is_last:
            return None
        if self._has_failed:
            self._give_up(ChildProcessError("another worker failed"))
            return None
        try:
            return self._finish(shard)
        except BaseException as error:
            self._give_up(error)
            raise

    def _opened(self, piece: Piece) -> GrowingShard:
        """Return the shard with its tar; a piece behind the first one gets a file of its own."""
        with self._lock:
            if self._shard is None:
                self._out = self._outer.enter_context(self._folder)
                stem = self._out / shard_name(self.number)
                self._shard = self._files.enter_context(growing_shard(stem, self._layout))
            if piece is not self._pieces[0]:
                # Without a name: nothing is left of it, however this process ends.
                made = tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX, dir=self._out)  # noqa: SIM115
                piece.file = self._files.enter_context(made)
            return self._shard

    def _next(self, piece: Piece) -> PlannedSample | None:
        with self._lock:
            if not piece.num_left:
                return None
            piece.num_begun += 1
            return piece.samples[piece.num_begun - 1]

    def _write(self, shard: GrowingShard, piece: Piece, sample: PlannedSample) -> None:
        root = self._roots[sample.root]
        tar = shard.tar if piece.file is None else Path(f"/proc/{os.getpid()}/fd/{piece.file.fileno()}")
        try:
            with root.local(media_files(sample, self._settings)) as files:
                is_first = sample is piece.samples[0]
                written = decoder().write(
                    sample, files, settings=self._settings, tar=tar, start=piece.stop, first=is_first
                )
                media = _media(sample, root, files[0], written.facts, self._layout)
        except MediaError as error:
            piece.outcomes.append((sample, error, {}))
            return
        except OSError as error:
            if error.filename == str(tar):
                error.filename = str(shard.tar)
            raise
        piece.outcomes.append((sample, written, media))
        piece.stop = written.stop
        if piece.file is None:
            shard.keep(written)

    def _finish(self, shard: GrowingShard) -> ShardResult:
        """Put the pieces together, write the table, and leave the folder."""
        rows: list[dict[str, Any]] = []
        for piece in self._pieces:
            base = shard.stop if piece.file is not None else 0
            if piece.file is not None:
                _append(piece.file, shard.tar, base, piece.stop)
            for sample, outcome, media in piece.outcomes:
                if isinstance(outcome, Written) and piece.file is not None:
                    outcome = _moved(outcome, base)
                    shard.keep(outcome)
                rows.append(sample_row(sample, outcome) | media)
        self._files.close()
        table = self._out / f"{shard_name(self.number)}.parquet"
        write_shard_table(table, rows, tar_bytes=shard.tar_bytes, tar_sha256=shard.tar_sha256, layout=self._layout)
        self._outer.close()
        return _result(self.number, rows)

    def _give_up(self, error: BaseException) -> None:
        """Remove what was written."""
        given = type(error), error, error.__traceback__
        try:
            self._files.__exit__(*given)
        finally:
            self._outer.__exit__(*given)


def build_shard(number: int, samples: list[PlannedSample], **arguments: Any) -> ShardResult:
    """Build a shard with one worker, this thread; arguments and errors are those of `SharedShard`."""
    result = SharedShard(number, samples, **arguments).build()
    assert result is not None, "nobody else has worked on it"
    return result


class Crew:
    """The tasks of workers on one machine: to build a shard each, then to help with those that are under way."""

    def __init__(self, shard: Callable[[int], SharedShard]) -> None:
        self._shard = shard
        self._under_way: dict[int, SharedShard] = {}

    def numbers(self, shards: Iterable[int]) -> Iterator[int]:
        """Yield the numbers of the shards, then one of `task` for every worker that can help."""
        yield from shards
        while any(shard.num_left for shard in list(self._under_way.values())):
            yield _HELP

    def task(self, number: int) -> Callable[[], ShardResult | None]:
        """Return the work of one number; its result is None if the shard is still under way."""
        if number == _HELP:
            return self._help
        self._under_way[number] = shard = self._shard(number)
        return partial(self._ended, shard, shard.build)

    def _help(self) -> ShardResult | None:
        largest = max(list(self._under_way.values()), key=lambda shard: shard.num_left, default=None)
        return self._ended(largest, largest.help) if largest is not None else None

    def _ended(self, shard: SharedShard, work: Callable[[], ShardResult | None]) -> ShardResult | None:
        result = work()
        if result is not None:
            del self._under_way[shard.number]
        return result


def _append(file: BinaryIO, tar: Path, start: int, num_bytes: int) -> None:
    """Copy the first bytes of a file into a tar."""
    with tar.open("r+b") as out:
        out.seek(start)
        for at in range(0, num_bytes, _AT_A_TIME):
            out.write(os.pread(file.fileno(), min(_AT_A_TIME, num_bytes - at), at))


def _moved(written: Written, by: int) -> Written:
    line = moved_line(written.line, by)
    return replace(written, offset=written.offset + by, stop=written.stop + by, line=line)


def _result(number: int, rows: Sequence[dict[str, Any]]) -> ShardResult:
    problems = [row for row in rows if row["reason"]]
    reasons = [(row["name"], row["reason"], row["message"]) for row in problems]
    return ShardResult(
        number,
        num_samples=sum(row["num_frames"] > 0 for row in rows),
        num_frames=sum(row["num_frames"] for row in rows),
        rejected=tuple(one for one, row in zip(reasons, problems, strict=True) if not row["num_frames"]),
        remarks=tuple(one for one, row in zip(reasons, problems, strict=True) if row["num_frames"]),
    )


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
