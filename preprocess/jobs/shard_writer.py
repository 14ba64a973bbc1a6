"""Samples of a program become a dataset, one call per sample: frames, labels, rates in, the disk contract out.

    with ShardWriter("out/shards", label_names=["cat", "dog"], fps=30) as writer:
        writer.add(frames, name="a/0001", label="dog")             # uint8 (T, H, W, 3), or a list of pictures
        writer.reject("a/0002", "unreadable", "my decoder's words")

The dataset is whole or absent: dataset.json is written at the end of the block, and an error inside the block removes
what was written. A process that is killed leaves a plan without samples beside its shards, which readers call an
unfinished build; the same program, started again, begins anew in the same folder. The same calls write the same bytes.
"""

import json
import logging
import math
import operator
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from mae3d.io.lock import Locked, hold
from mae3d.io.lock_store import LOCK_NAME
from mae3d.video.errors import MediaError
from preprocess.dataset.index import META_NAME, PLAN_NAME, DatasetError
from preprocess.dataset.schema import SHARD_SCHEMA, shard_files, shard_name, write_shard_table
from preprocess.encode.given_frames import Frame, encode_given
from preprocess.encode.sample_writer import append_sample
from preprocess.encode.shard import GrowingShard, growing_shard, sample_row
from preprocess.encode.tar_writer import TarWriter
from preprocess.jobs.append import BuildPart, build_identity, parts_of, with_parts
from preprocess.jobs.output import open_output
from preprocess.jobs.output_state import Summary, dataset_files, finish, is_ours, refuse_foreign, sweep
from preprocess.plan.given_labels import GivenLabels, Label
from preprocess.plan.plan import PLAN_SCHEMA, BuildPlan, ScanResult, make_plan, read_plan, write_plan
from preprocess.plan.rejects import TooManyBad
from preprocess.plan.samples import Facts, PlannedSample, Request
from preprocess.plan.settings import Settings
from preprocess.workers.decoder import Written

log = logging.getLogger(__name__)

_SOURCE = "ShardWriter"
# Settings of media that are cut, thinned out or decoded elsewhere; here the caller has done it.
_OF_MEDIA = {"source_fps", "segment_seconds", "segment_frames", "whole", "split", "timeout_s", "encoder"}
_SHARD_SIZE = 1000  # a stream of samples has no length that `build` could take into account


class ShardWriter:
    """A writer of a dataset from samples of one's own; belongs to one thread.

    Several processes write several datasets, which trainers read as one (`Loader.open([...])`, `--data.shards A B`).
    """

    def __init__(
        self,
        out: str | Path,
        *,
        label_names: Sequence[str] = (),
        fps: float | None = None,
        overwrite: bool = False,
        scratch: Path | None = None,
        **settings: Any,
    ):
        """Begin a dataset; nothing is read yet.

        Args:
            out: the folder, made if missing, or a URL; it is locked until the end.
            label_names: names of label ids 0, 1, ...; by default words are sorted at the end, and numbers are ids.
            fps: frames per second of samples that do not give their own; the layout video needs it.
            overwrite: whether a dataset that is there is removed at once.
            scratch: folder for files on their way to a URL.
            settings: fields of `Settings`: layout, short_side, quality, shard_size, crf, max_pixels, ...

        Raises:
            DatasetError: `out` holds other things, or a dataset.
            Locked: another process writes there.
            ValueError: a setting that does not exist or cannot be.
            OSError: `out` cannot be written.
        """
        self._settings = _settings_of(fps, settings)
        self._shard_size = self._settings.shard_size or _SHARD_SIZE
        self._labels = GivenLabels(label_names)
        self._output = open_output(out, scratch=scratch or Path(tempfile.gettempdir()))
        self._requests: list[Request] = []
        self._tables: list[tuple[pa.Table, int, str]] = []  # of each finished shard, with bytes and sha256 of its tar
        self._rows: list[dict[str, Any]] = []  # of the open shard
        self._shard = ExitStack()
        self._growing: GrowingShard | None = None
        self._first_reject = ""
        self._is_over = False
        self.num_samples = self.num_rejected = 0
        with ExitStack() as stack:
            self._output.prepare()
            self._lock = stack.enter_context(hold(self._output.locks, LOCK_NAME, job=_SOURCE, excludes=True))
            self._begin(overwrite)
            self._held = stack.pop_all()

    def add(
        self,
        frames: Iterable[Frame],
        *,
        name: str,
        label: Label | Sequence[Label] | None = None,
        fps: float | None = None,
        split: str = "",
        group: str = "",
        first: int = 0,
        start_s: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Encode and write one sample.

        Args:
            frames: uint8 (T, H, W, 3) RGB; or, one by one, such arrays without T, pictures of Pillow, or the bytes of
                image files. A JPEG that trainers can decode is stored as it is.
            name: of the recording; `preprocess split` keeps samples of one name on one side.
            label: a word or an id, several of them, or none; all of a dataset are words, or all are ids.
            fps: frames per second; None = that of the writer, or unknown.
            split: such as train or val.
            group: what `preprocess split` keeps on one side instead of the name.
            first: number of the first frame in the recording.
            start_s: time of the first frame in the recording, in seconds.
            metadata: further entries for the sample's .json in the tar; no program of MAE3D reads them.

        Returns:
            The sample's key; None if it was rejected: rejected.parquet has the reason, and the number of the frame.

        Raises:
            ValueError: arguments that no sample can have; nothing was written, and the writer goes on.
            OSError: `out` cannot be written.
        """
        self._require_open()
        rate = self._settings.fps if fps is None else fps
        if rate is not None and not 0 < rate <= 1e6:
            raise ValueError(f"{name}: fps = {rate} must be above 0, at most 1000000; None means unknown")
        request = self._request(name, label, split=split, group=group)
        encode = partial(
            encode_given,
            frames,
            settings=self._settings,
            fps=math.nan if rate is None else float(rate),
            first=operator.index(first),
            start_s=math.nan if start_s is None else float(start_s),
        )
        sample = self._planned(request)
        try:
            written = self._write(sample, encode, _json_entries(name, metadata))
        except MediaError as error:
            log.warning("%s: rejected: %s: %s", name, error.reason, error)
            self._keep(request, sample, error)
            return None
        self._keep(request, sample, written)
        return sample.key

    def reject(self, name: str, reason: str, message: str) -> None:
        """List a sample that could not be had in rejected.parquet; nothing is lost silently.

        Args:
            name: of the recording.
            reason: one short word for counting.
            message: why, for people.
        """
        self._require_open()
        if not reason or not reason.replace("_", "a").isalnum():
            raise ValueError(f"{name}: reason = {reason!r} must be one word, such as unreadable")
        request = self._request(name, None)
        self._keep(request, self._planned(request), MediaError(reason, message))

    def close(self) -> Summary:
        """Finish the dataset and return its totals; until then there is none.

        Raises:
            DatasetError: no sample was added, or none could be used.
            OSError: `out` cannot be written.
        """
        self._require_open()
        try:
            self._finish_shard()
            plan = self._plan()
            self._write_tables(plan)
            self._lock.check()
            with self._output.work() as folder:
                write_plan(plan, folder / PLAN_NAME)
                self._output.publish([PLAN_NAME], folder)
                summary = finish(plan, self._output, folder, self._lock)
        except BaseException:
            self.abort()
            raise
        self._is_over = True
        self._held.close()
        return summary

    def abort(self) -> None:
        """Remove what was written; the folder is as empty as it was."""
        if self._is_over:
            return
        self._is_over = True
        with self._held:
            aborted = InterruptedError()  # the open shard is left as on any error
            self._shard.__exit__(type(aborted), aborted, None)
            with suppress(Locked):  # then the files are those of the process that has taken the lock over
                self._lock.check()
                self._output.remove(self._written_files())
                sweep(self._output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
        elif not self._is_over:
            self.close()

    def _begin(self, overwrite: bool) -> None:
        """Make the output ready: empty but for a plan without samples, which marks what follows as this writer's."""
        with self._output.work() as folder:
            if self._is_unfinished(folder):
                log.info("%s: a ShardWriter was stopped here; its shards are removed, and written anew", self._output)
                self._output.remove(self._written_files())
            elif overwrite and (replaced := dataset_files(self._output, folder)):
                self._output.remove(replaced)
            else:
                refuse_foreign(self._output)
                if self._output.has(PLAN_NAME):
                    raise DatasetError(f"{self._output}: holds a dataset; give another folder, or overwrite=True")
            sweep(self._output)
            nothing = BuildPlan(PLAN_SCHEMA.empty_table(), (), "", (), {})
            write_plan(self._with_part(nothing), folder / PLAN_NAME)
            self._output.publish([PLAN_NAME], folder)

    def _is_unfinished(self, folder: Path) -> bool:
        """Return whether a plan of this class is there, and no dataset."""
        if self._output.has(META_NAME) or not self._output.has(PLAN_NAME):
            return False
        self._output.fetch([PLAN_NAME], folder)
        return [part.roots for part in parts_of(read_plan(folder / PLAN_NAME))] == [[_SOURCE]]

    def _written_files(self) -> list[str]:
        """Return the names of a dataset's files in the order of removal; they began in a folder without any."""
        names = filter(is_ours, self._output.sizes())
        return sorted(names, key=lambda name: (name == PLAN_NAME, name != META_NAME))

    def _plan(self) -> BuildPlan:
        """Return the plan of all samples, their labels as ids."""
        scan = ScanResult(self._requests, [], [], self._labels.names, self._labels.kind)
        plan = make_plan(scan, source=_SOURCE, settings=self._settings, identity={})
        if not self.num_samples:
            raise TooManyBad(f"{self._output}: not one of {len(plan)} samples could be used; {self._first_reject}")
        return self._with_part(plan)

    def _with_part(self, plan: BuildPlan) -> BuildPlan:
        identity = build_identity(self._settings, [{"name": _SOURCE}])
        return with_parts(plan, [BuildPart(identity, [_SOURCE], len(plan), plan.num_shards, 0)])

    def _request(
        self, name: str, label: Label | Sequence[Label] | None, *, split: str = "", group: str = ""
    ) -> Request:
        """Return a sample as the plan lists it; its number stands for the frames that no file has."""
        if not name or not isinstance(name, str):
            raise ValueError(f"name = {name!r} must be a text, such as the recording's file name")
        number, words = len(self._requests), self._labels.words(name, label)
        return Request("frames", 0, "", name, words, "", -1, number, number + 1, split=split, group=group)

    def _planned(self, request: Request) -> PlannedSample:
        """Return the sample's row of the plan, without the ids of its labels; its shard is open then."""
        number = len(self._requests)
        shard = number // self._shard_size
        if self._growing is None:
            self._growing = self._shard.enter_context(self._open_shard(shard))
        return PlannedSample(number, shard, request.kind, 0, "", request.name, [], request.split)

    @contextmanager
    def _open_shard(self, number: int) -> Iterator[GrowingShard]:
        with self._output.work() as folder:
            with growing_shard(folder / shard_name(number), self._settings.stored_as) as growing:
                yield growing
            self._output.publish(shard_files(number)[:-1], folder)

    def _write(self, sample: PlannedSample, encode: Callable[..., Facts], more: dict[str, Any]) -> Written:
        assert self._growing is not None
        with self._growing.tar.open("r+b") as file:
            file.seek(self._growing.stop)
            tar = TarWriter(file, self._settings.stored_as)
            facts = append_sample(tar, sample, encode, settings=self._settings, more=more)
            return Written(facts, file.tell(), tar.offset, tar.sizes, tar.crc32s, tar.index[0])

    def _keep(self, request: Request, sample: PlannedSample, outcome: Written | MediaError) -> None:
        """Count a sample that was written, or rejected; finish its shard if it is the last of it."""
        assert self._growing is not None
        self._requests.append(request)
        self._rows.append(sample_row(sample, outcome))
        if isinstance(outcome, Written):
            self._growing.keep(outcome)
            self.num_samples += 1
        else:
            self._first_reject = self._first_reject or f"{sample.name}: {outcome.reason}: {outcome}"
            self.num_rejected += 1
        if len(self._rows) == self._shard_size:
            self._finish_shard()

    def _finish_shard(self) -> None:
        """Publish the open shard, if there is one; its table waits for the ids of the labels."""
        if (growing := self._growing) is None:
            return
        self._lock.check()
        self._shard.close()
        table = pa.Table.from_pylist(self._rows, SHARD_SCHEMA)
        self._tables.append((table, growing.tar_bytes, growing.tar_sha256))
        self._growing, self._rows = None, []

    def _write_tables(self, plan: BuildPlan) -> None:
        """Write the table of each shard, now that its labels have ids."""
        layout = self._settings.stored_as
        for number, (table, tar_bytes, tar_sha256) in enumerate(self._tables):
            samples = zip(table.to_pylist(), plan.shard(number), strict=True)
            rows = [row | {"labels": sample.labels} for row, sample in samples]
            with self._output.work() as folder:
                path = folder / shard_files(number)[-1]
                write_shard_table(path, rows, tar_bytes=tar_bytes, tar_sha256=tar_sha256, layout=layout)
                self._output.publish([path.name], folder)

    def _require_open(self) -> None:
        if self._is_over:
            raise ValueError(f"{self._output}: this ShardWriter is closed; a new one begins another dataset")


def _settings_of(fps: float | None, given: Mapping[str, Any]) -> Settings:
    known = sorted({field.name for field in fields(Settings)} - _OF_MEDIA - {"fps"})
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"ShardWriter: no setting {', '.join(unknown)}; there are {', '.join(known)}")
    settings = Settings(fps=fps, **({"shard_size": _SHARD_SIZE} | dict(given)))
    if settings.stored_as.is_in_place:
        raise ValueError("ShardWriter: the layout files is an index over videos (`preprocess index`); give another")
    return settings


def _json_entries(name: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a sample's .json has beside our entries, as it will be read."""
    if metadata is None:
        return {}
    try:
        entries: dict[str, Any] = json.loads(json.dumps(dict(metadata), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: metadata must be values of JSON: {error}") from error
    return {"metadata": entries}
