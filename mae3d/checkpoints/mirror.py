"""A run's folder is copied behind a URL in the background, and back if the folder is gone.

mirror = Mirror(Path("out/run"), "s3://bucket/run", keep_last=2, keep_every=0)
mirror.push()                                       # returns at once: a thread uploads what is new
mirror.finish()
message = restore(Path("out/run"), "s3://bucket/run")  # before the run is opened; "" if there was nothing to do

Behind the URL lies what the folder holds, by the same names: config.yaml, metrics.jsonl, events.jsonl, DONE or STOPPED,
and complete checkpoints. A checkpoint is there when its manifest is, which is uploaded last; `latest` follows it. Any
fsspec URL; credentials and endpoints come from the environment (mae3d/io/storage.py).
"""

import logging
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import yaml

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints import retention
from mae3d.checkpoints.format import MANIFEST, CheckpointError, is_own_file
from mae3d.io.files import sync, write_text
from mae3d.io.resume import ALL_FIXED, ResumeRules, dotted
from mae3d.io.storage import Storage, access_remedy, describe_error, fetch_whole
from mae3d.tracking.run_dir import BEST, CHECKPOINTS, CONFIG, DONE, EVENTS, LATEST, METRICS, STOPPED, Run, RunError

logger = logging.getLogger(__name__)

_FINISH_S = 600  # that the end of a run waits for what is on its way
_SMALL = (CONFIG, METRICS, EVENTS)
_MARKERS = (DONE, STOPPED)


class Mirror:
    """Uploads on a thread of its own; failures are logged, counted and tried again with the next checkpoint."""

    def __init__(self, run: Path, url: str, *, keep_last: int, keep_every: int, rules: ResumeRules = ALL_FIXED):
        """Keep the settings; the store is not contacted yet.

        Args:
            run: the folder, written by this process.
            url: where to.
            keep_last: newest checkpoints that stay there.
            keep_every: checkpoints at multiples of this many steps stay for good; 0 for none.
        """
        self._run, self._url, self._keep_last, self._keep_every = run, url, keep_last, keep_every
        self._rules = rules
        self.failures = 0
        self._uploading = ""
        self._sent: dict[str, str] = {}  # what lies there for sure: a file's stamp, a checkpoint's manifest
        self._is_due, self._ending = threading.Event(), False
        self._thread: threading.Thread | None = None

    @property
    def in_use(self) -> tuple[str, ...]:
        """Return the checkpoint that is being uploaded, which must not be removed."""
        return (self._uploading,)

    def push(self) -> None:
        """Start an upload of new files; returns at once."""
        self._is_due.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Upload the rest, for some minutes at most."""
        if self._thread is None:
            return
        self._ending = True
        self._is_due.set()
        self._thread.join(2)
        if self._thread.is_alive():
            logger.info("uploading the last files to %s, for up to %d minutes", self._url, _FINISH_S // 60)
            self._thread.join(_FINISH_S)
        if self._thread.is_alive():
            self.failures += 1
            logger.warning("%s: not all is there; the same command uploads the rest", self._url)

    def _work(self) -> None:
        ends = False
        while not ends:
            self._is_due.wait()
            self._is_due.clear()
            ends = self._ending
            try:
                self._push()
            except Exception as error:  # any error of a store's library: it must not touch the training
                self.failures += 1
                logger.warning(
                    "%s: cannot be mirrored to (%s); training goes on, the next checkpoint tries again; %s",
                    self._url, describe_error(error), access_remedy(self._url),
                )  # fmt: skip

    def _push(self) -> None:
        """Make the URL hold what the folder holds, the newest checkpoint first."""
        store = Storage(self._url)
        is_first = CONFIG not in self._sent
        there = _there(store) if is_first else store.sizes()
        if is_first:
            _check_same_run(Run(self._run, self._rules), store, there)
            if CONFIG not in there and (others := _names_of_runs(there)):
                raise RunError(
                    f"it holds {others[0]} and no {CONFIG}, so it is no copy of a run: give another run.remote"
                )
            self._send_small(store, CONFIG, there)  # first: it makes the place this run's
        for name in _SMALL:  # before the checkpoints: whenever this is killed, the newest one has its lines
            self._send_small(store, name, there)
        names = [path.name for path in checkpoint.up_to_latest(self._run)]
        best = checkpoint.pointed(self._run, BEST)
        for name in reversed(names):
            if self._send_checkpoint(store, name, there) and name == names[-1]:
                store.write(f"{CHECKPOINTS}/{LATEST}", f"{name}\n".encode())
        if best in self._sent:
            store.write(f"{CHECKPOINTS}/{BEST}", f"{best}\n".encode())
        for name in _MARKERS:
            self._send_small(store, name, there)
        if names and names[-1] in self._sent:
            self._retain(store, there, latest=names[-1], best=best)

    def _send_checkpoint(self, store: Storage, name: str, there: Mapping[str, int | None]) -> bool:
        """Upload a checkpoint unless it is there; return whether it is there now."""
        folder, where = self._run / CHECKPOINTS / name, f"{CHECKPOINTS}/{name}"
        self._uploading = name
        try:
            manifest = (folder / MANIFEST).read_text(encoding="utf-8")
            if self._sent.get(name) == manifest:
                return True
            entries = checkpoint.parse_manifest(manifest)
            if f"{where}/{MANIFEST}" in there:
                is_whole = all(there.get(f"{where}/{file}") == entry["bytes"] for file, entry in entries.items())
                if is_whole and store.read_text(f"{where}/{MANIFEST}") == manifest:
                    self._sent[name] = manifest
                    return True
                store.remove(f"{where}/{MANIFEST}")  # of the same step, of a course that was left
            for file in (*entries, MANIFEST):
                store.put(folder / file, f"{where}/{file}")
            self._sent[name] = manifest
            return True
        except FileNotFoundError:
            if folder.exists():
                raise
            return False  # removed before its turn came
        finally:
            self._uploading = ""

    def _send_small(self, store: Storage, name: str, there: Mapping[str, int | None]) -> None:
        path = self._run / name
        if not path.exists():
            if name in _MARKERS and (name in there or name in self._sent):
                store.remove(name)
                self._sent.pop(name, None)
            return
        state = path.stat()
        stamp = f"{state.st_mtime_ns} {state.st_size}"
        if self._sent.get(name) != stamp:
            store.write(name, path.read_bytes())  # not the file, which may grow meanwhile
            self._sent[name] = stamp

    def _retain(self, store: Storage, there: Mapping[str, int | None], *, latest: str, best: str | None) -> None:
        """Apply the folder's retention to the URL, which may hold more than the folder after a restore."""
        names = {name for name in {*_complete(there), *self._sent} if name.startswith("step-") and name <= latest}
        old = retention.superseded(names, best=best, keep_last=self._keep_last, keep_every=self._keep_every)
        folders = {name.removeprefix(f"{CHECKPOINTS}/").partition("/")[0] for name in there}
        for name in sorted(folders - names):  # of a start that was killed on its way with one
            if checkpoint.is_name(name) and name < latest and not store.exists(f"{CHECKPOINTS}/{name}/{MANIFEST}"):
                old.append(name)
        for name in old:
            where = f"{CHECKPOINTS}/{name}/"
            foreign = [file for file in there if file.startswith(where) and not is_own_file(file.removeprefix(where))]
            if foreign:
                logger.warning("%s/%s stays: it is no file of a checkpoint", store.url, foreign[0])
                continue
            store.remove_folder(f"{CHECKPOINTS}/{name}", first=MANIFEST)
            self._sent.pop(name, None)


def restore(run: Path, url: str, rules: ResumeRules = ALL_FIXED) -> str:
    """Fetch the newest complete checkpoint behind a URL, if it is newer than the folder's, with its run's files.

    One that the folder has as well is not newer: a person who writes an older name into RUN/checkpoints/latest has the
    last word.

    Args:
        run: the run's folder; need not exist.
        url: where it is mirrored to.
        rules: settings that may differ between the copy and the folder, if that has a config already.

    Returns:
        A message for people; empty if nothing was done.

    Raises:
        CheckpointError: no checkpoint there is whole, and the folder has none.
        RunError: another run lies there.
        ValueError: no such kind of URL.
        OSError: it cannot be reached, and the folder has no checkpoint.
    """
    store = Storage(url)
    have = [path.name for path in checkpoint.up_to_latest(run) if _is_whole(path)]
    try:
        there = _there(store)
        _check_same_run(Run(run, rules), store, there)
        if _complete(there) and not (run / CONFIG).exists():
            Run(run).refuse_foreign()
            if CONFIG in there:  # first: what is fetched lies in a run's folder from then on, wherever this is killed
                run.mkdir(parents=True, exist_ok=True)
                write_text(run / CONFIG, store.read_text(CONFIG))
        name = _fetch_newest(run, store, there, have)
        if name is None:
            return ""
        best = _pointed(store, there, BEST)
        if best is not None and best != name and best in _complete(there):
            _fetch(run, store, best)
        for small in (*_SMALL, *_MARKERS):
            if small in there:
                write_text(run / small, store.read_text(small))
            else:
                (run / small).unlink(missing_ok=True)
        if best is not None and checkpoint.step_folder(run, checkpoint.step_of(best)).is_dir():
            write_text(run / CHECKPOINTS / BEST, f"{best}\n")
        write_text(run / CHECKPOINTS / LATEST, f"{name}\n")
    except OSError as error:
        if have and error.filename and str(error.filename).startswith(url.rstrip("/")):
            return f"{url} cannot be asked ({error.strerror}): going on from {run / CHECKPOINTS / have[-1]}"
        raise
    return f"restored {name} from {url}" + (f"; {run} had {have[-1]}" if have else "")


def _fetch_newest(run: Path, store: Storage, there: Mapping[str, int | None], have: list[str]) -> str | None:
    """Fetch the newest complete checkpoint that is newer than the folder's; return its name, or None."""
    latest, failures = _pointed(store, there, LATEST), []
    for name in reversed([name for name in _complete(there) if not latest or name <= latest]):
        folder = checkpoint.step_folder(run, checkpoint.step_of(name))
        if (have and name <= have[-1]) or _is_whole(folder):
            return None
        try:
            _fetch(run, store, name)
            return name
        except CheckpointError as error:
            logger.warning("%s; trying the one before it", error)
            failures.append(str(error))
    if failures and not have:
        raise CheckpointError(
            f"no checkpoint behind {store.url} is whole: {'; '.join(failures)}. Restore one, or give another run.remote"
        )
    return None


def _fetch(run: Path, store: Storage, name: str) -> None:
    """Fetch a checkpoint, completely or not at all.

    Raises:
        CheckpointError: it is damaged there.
        OSError: the store or the disk fails.
    """
    final = checkpoint.step_folder(run, checkpoint.step_of(name))
    if _is_whole(final):
        return
    staging = checkpoint.staging_folder(run, checkpoint.step_of(name))
    staging.mkdir(parents=True, exist_ok=True)
    where, manifest = f"{store.url}/{CHECKPOINTS}/{name}", store.read_text(f"{CHECKPOINTS}/{name}/{MANIFEST}")
    try:
        entries = checkpoint.parse_manifest(manifest)
    except ValueError as error:
        raise CheckpointError(f"{where}/{MANIFEST}: {error}") from error
    for file, entry in entries.items():
        get = partial(store.get, f"{CHECKPOINTS}/{name}/{file}", staging / file)
        try:
            damage = fetch_whole(get, partial(checkpoint.damage_of, staging / file, entry, full=True))
        except FileNotFoundError as error:
            raise CheckpointError(f"{where}/{file}: missing") from error
        if damage:
            raise CheckpointError(f"{where}/{file}: {damage}")
        sync(staging / file)
    write_text(staging / MANIFEST, manifest)
    checkpoint.put_in_place(staging, final)


def complete(url: str) -> list[str]:
    """Return the names of the complete checkpoints behind a URL, oldest first.

    Raises:
        OSError: it cannot be reached.
        ValueError: no such kind of URL.
    """
    return _complete(Storage(url).sizes())


def _there(store: Storage) -> dict[str, int | None]:
    """Return the files of the copy, with those that matter most looked for by name: listings of some stores lag."""
    pointers = [f"{CHECKPOINTS}/{pointer}" for pointer in (LATEST, BEST)]
    there = store.sizes(expected=dict.fromkeys([*_SMALL, *_MARKERS, *pointers]))
    for name in (_pointed(store, there, LATEST), _pointed(store, there, BEST)):
        manifest = f"{CHECKPOINTS}/{name}/{MANIFEST}"
        if name and checkpoint.is_name(name) and manifest not in there and store.exists(manifest):
            there[manifest] = None
    return there


def _complete(there: Mapping[str, int | None]) -> list[str]:
    names = [name.removeprefix(f"{CHECKPOINTS}/").removesuffix(f"/{MANIFEST}") for name in there]
    return sorted(name for name in names if checkpoint.is_name(name) and f"{CHECKPOINTS}/{name}/{MANIFEST}" in there)


def _names_of_runs(there: Mapping[str, int | None]) -> list[str]:
    """Return the files behind a URL that a mirror would write or remove."""
    return sorted(name for name in there if name in (*_SMALL, *_MARKERS) or name.startswith(f"{CHECKPOINTS}/"))


def _pointed(store: Storage, there: Mapping[str, int | None], pointer: str) -> str | None:
    """Return the name that `latest` or `best` holds behind the URL; None if there is no such file."""
    name = f"{CHECKPOINTS}/{pointer}"
    return store.read_text(name).strip() if name in there else None


def _is_whole(folder: Path) -> bool:
    """Return whether a checkpoint is complete by names and sizes; loading reads and compares again."""
    try:
        checkpoint.verify(folder, full=False)
    except CheckpointError:
        return False
    return True


def _check_same_run(run: Run, store: Storage, there: Mapping[str, int | None]) -> None:
    """Refuse to mix two runs, because one would remove the other's checkpoints."""
    if CONFIG in there:
        try:
            config = yaml.safe_load(store.read_text(CONFIG))
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        mine = run.stored()
        if not isinstance(config, dict) or (mine and not dotted(mine).keys() & dotted(config).keys()):
            raise RunError(f"{store.url}/{CONFIG}: no config of a run of MAE3D; give another run.remote")
        run.check_same(config, where=store.url)
