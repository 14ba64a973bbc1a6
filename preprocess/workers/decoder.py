"""Media are decoded in a child process, so that a codec that hangs or crashes costs one sample, not the build.

    written = decoder().write(sample, files, settings=settings, tar=aside, start=0)     # Written, or MediaError
    facts = decoder().probe(Path("clip.mp4"), settings=settings)                        # VideoFacts, or MediaError

Each thread has one child (`preprocess.encode.decoder_main`), started at the first request and kept; or one that
`start_ahead` has started, so that its imports run beside those of this process and beside the plan. The child writes
frames into the tar itself; requests and answers are lines of JSON over pipes. The child notes its position in a page of
memory that both processes see, so that the position is known after the child was killed.

A sample at which the child hangs or dies is tried once more, in a new child: the result must depend neither on the
samples that were decoded before nor on a moment in which the machine was short of something.
"""

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mae3d.video.errors import MediaError
from mae3d.video.facts import VideoFacts
from mae3d.video.levels import StackFacts
from preprocess.plan.samples import Facts, Kind, PlannedSample
from preprocess.plan.settings import Settings

PAGE_BYTES = 256
COUNT_BYTES = 8  # the page begins with a count of the steps of progress; the position follows, in UTF-8
_COMMAND = (sys.executable, "-P", "-m", "preprocess.encode.decoder_main")
_START_S = 120.0  # time that a child may take to import its libraries on a busy machine
_TICK_S = 1.0
_ANSWERS = 2000  # a child is replaced after this many, at the next shard, because decoders leak


@dataclass(frozen=True)
class Written:
    """A sample in its tar: `stop` is the offset of the next sample, `line` the sample's line of the .idx."""

    facts: Facts
    stop: int
    offset: int
    sizes: list[int]
    crc32s: list[int]
    line: str


class Decoder:
    """The decoder of one thread; its child is started at the first request, and again after it died."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._child: _Child | None = None
        self._stopped = False

    def write(
        self, sample: PlannedSample, files: Sequence[Path], *, settings: Settings, tar: Path, start: int, first: bool
    ) -> Written:
        """Append a sample to a tar.

        Args:
            sample: the sample to read.
            files: the paths of the files that `media_files` names.
            settings: sizes, rates, quality and limits.
            tar: the tar, complete up to `start`; the bytes after `start` are overwritten.
            start: the offset in bytes.
            first: whether the sample is the first of its shard: videos are kept open within one shard only.

        Raises:
            MediaError: the sample cannot be decoded; the bytes after `start` are void.
            OSError: the tar cannot be written, the disk of the media has gone, or the decoder was stopped.
        """
        if first and self._child is not None and self._child.answers >= _ANSWERS:
            self.close()
        request = {
            "do": "write",
            "sample": asdict(sample),
            "files": [str(file) for file in files],
            "settings": asdict(settings),
            "tar": str(tar),
            "start": start,
            "first": first,
        }
        answer = self._request(request, settings.timeout_s)
        remark = answer["facts"].pop("remark")
        return Written(Facts(**answer.pop("facts"), remark=tuple(remark) if remark else None), **answer)

    def probe(self, path: Path, *, settings: Settings, measure: bool = False) -> VideoFacts:
        """Return the properties that a video announces; with `measure` its length is checked against its packets.

        Raises:
            MediaError: the file is no video that can be opened.
        """
        request = {"do": "probe", "path": str(path), "settings": asdict(settings), "measure": measure}
        return VideoFacts(**self._request(request, settings.timeout_s))

    def probe_stack(self, path: Path, *, settings: Settings) -> StackFacts:
        """Return the properties that a TIFF or DICOM file announces; MediaError if it cannot be opened."""
        request = {"do": "probe_stack", "path": str(path), "settings": asdict(settings)}
        return StackFacts(**self._request(request, settings.timeout_s))

    def pixel_kind(self, path: Path, kind: Kind, *, settings: Settings) -> tuple[int, int]:
        """Return channels and bits of a file's frames; 0 bits need a window.

        Args:
            path: the file.
            kind: of the sample that it belongs to.
            settings: the limits.

        Raises:
            MediaError: it cannot be opened.
        """
        request = {"do": "pixel_kind", "path": str(path), "kind": kind, "settings": asdict(settings)}
        channels, bits = self._request(request, settings.timeout_s)["kind"]
        return channels, bits

    def lend(self) -> None:
        """Leave the child to the decoder of another thread that needs one."""
        if self._child is not None:
            _ahead.append(self._child)
        self._child = None

    def close(self) -> None:
        """End the child, even in the middle of a request."""
        if self._child is not None:
            self._child.end()
        self._child = None

    def stop(self) -> None:
        """End the decoder from another thread: its current request and all later ones raise ChildProcessError."""
        self._stopped = True
        if (child := self._child) is not None:
            child.kill()

    def _request(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            answer = self._answer(request, timeout_s)
        except MediaError:
            answer = self._answer(request | {"first": True}, timeout_s)
        if "media" in answer:
            reason, message, frame = answer["media"]
            raise MediaError(reason, message, frame=frame)
        if "os" in answer:
            raise OSError(*answer["os"])
        return answer["done"]

    def _answer(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the child's answer; raise MediaError if the child hangs or dies."""
        try:
            try:
                child = self._started()
            except _NotStarted:
                self.close()
                child = self._started()  # the machine may have been short of memory for a moment
            return child.request(request, timeout_s)
        except BaseException:  # also if interrupted: its answer would be taken for that of the next request
            self.close()
            raise

    def _started(self) -> "_Child":
        """Return the child once it can take requests."""
        if self._child is None and not self._stopped:
            self._child = _child_ahead() or _Child()
        # Read after `_child` is set: `stop` either sees the child, or is seen here.
        if self._child is None or self._stopped:
            raise ChildProcessError("the decoder was stopped")
        self._child.wait_until_ready()
        return self._child


class _NotStarted(ChildProcessError):
    """A child that died before its first request, or did not come to it."""


class _Child:
    """A decoder process, and the page in which it notes its position."""

    def __init__(self) -> None:
        self.owner, self.answers = os.getpid(), 0
        self._is_ready = False
        page = os.memfd_create("decoder")
        try:
            os.ftruncate(page, PAGE_BYTES)
            self._page = mmap.mmap(page, PAGE_BYTES)
            here = str(Path(__file__).resolve().parents[2])
            paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), here)))
            self._process = subprocess.Popen(
                [*_COMMAND, str(page), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[page],
                env=os.environ | {"PYTHONPATH": paths},
            )
        finally:
            os.close(page)
        self.end = weakref.finalize(self, _end, self.owner, self._process)

    def wait_until_ready(self) -> None:
        """Wait until the child has imported its libraries; raise _NotStarted if it does not."""
        if not self._is_ready:
            try:
                self._receive(_START_S)
            except MediaError as error:
                raise _NotStarted(f"the decoder cannot be started: {error}") from error
            self._is_ready = True

    def kill(self) -> None:
        """Kill the process; the thread that waits for its answer cleans up."""
        self._process.kill()

    def request(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the answer to one request; raise MediaError after `timeout_s` without progress, or if it dies."""
        assert self._process.stdin is not None
        self._page[COUNT_BYTES:] = bytes(PAGE_BYTES - COUNT_BYTES)
        with suppress(BrokenPipeError):  # a dead child gives no answer, which `_receive` finds out
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._receive(timeout_s))
        self.answers += 1
        return answer

    def _receive(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        ready = select.poll()
        ready.register(out, select.POLLIN)
        tick_s = min(_TICK_S, timeout_s / 4)
        answer, count = bytearray(), self._page[:COUNT_BYTES]
        idle_s, now = 0.0, time.monotonic()
        while not answer.endswith(b"\n"):
            if ready.poll(1000 * tick_s):
                data = os.read(out, 1 << 20)
                if not data:
                    raise self._died()
                answer += data
            before, now = now, time.monotonic()
            # A process that was suspended, and its child with it, has slept through more than a tick.
            idle_s += min(now - before, 2 * tick_s)
            if count != self._page[:COUNT_BYTES]:
                idle_s, count = 0.0, self._page[:COUNT_BYTES]
            elif idle_s > timeout_s:
                raise MediaError("timeout", f"no progress for --timeout {timeout_s:g} s at {self._position()}")
        return bytes(answer)

    def _died(self) -> MediaError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        code = self._process.poll()
        cause = f"ended with exit code {code}" if code is None or code >= 0 else f"died of {_signal_name(-code)}"
        hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return MediaError("crashed", f"the decoder {cause} at {self._position()}{hint}")

    def _position(self) -> str:
        position = self._page[COUNT_BYTES:].rstrip(b"\0")
        return position.decode(errors="replace") or "the beginning"


_ahead: list[_Child] = []  # children that no decoder has yet


def start_ahead(count: int) -> None:
    """Start so many more children for decoders that will need one, without waiting; `end_ahead` ends the rest.

    They die with the calling thread, so it must outlive the threads that use them.
    """
    _ahead.extend(_Child() for _ in range(count))


def end_ahead() -> None:
    """End the children that no decoder has needed."""
    while (child := _child_ahead()) is not None:
        child.end()


def _child_ahead() -> _Child | None:
    with suppress(IndexError):
        while True:
            child = _ahead.pop(0)
            if child.owner == os.getpid():  # else it belongs to the process that forked this one
                return child
    return None


_thread = threading.local()


def decoder() -> Decoder:
    """Return the decoder of this thread; a forked process gets one of its own."""
    current: Decoder | None = getattr(_thread, "decoder", None)
    if current is None or current.pid != os.getpid():
        current = _thread.decoder = Decoder()
    return current


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(owner: int, process: subprocess.Popen[bytes]) -> None:
    if owner != os.getpid():
        return  # the child belongs to the process that forked this one
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
