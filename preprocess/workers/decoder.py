"""Decoding in a child process: what hangs, or dies of a signal, costs one sample and not the worker that asked.

    written = decoder().write(sample, files, settings=settings, tar=aside, start=0)     # Written, or MediaError
    facts = decoder().probe(Path("clip.mp4"), settings=settings)                        # VideoFacts, or MediaError

Each thread has one child (`preprocess.encode.decoder_main`), started when it is first needed and kept. It writes frames
into
the tar itself; requests and answers are lines of JSON over pipes. How far it is stands in a page of memory that both
see, so that a child that was killed has left its last place behind.

A sample at which the child hangs or dies is tried once more, in a child that has done nothing else: its fate must
depend neither on what was decoded before it nor on a moment in which the machine was short of something.
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
from mae3d.video.reader import VideoFacts
from preprocess.plan.plan import Facts, PlannedSample, Settings

PAGE_BYTES = 256
COUNT_BYTES = 8  # of the page: how often there was progress; the rest is the place, in UTF-8
_COMMAND = (sys.executable, "-P", "-m", "preprocess.encode.decoder_main")
_START_S = 120.0  # what a child may take to import its libraries on a busy machine
_TICK_S = 1.0
_ANSWERS = 2000  # a child is replaced after so many, at the next shard: decoders leak


@dataclass(frozen=True)
class Written:
    """A sample in its tar: `stop` is where the next one starts, `line` its line of the .idx."""

    facts: Facts
    stop: int
    offset: int
    sizes: list[int]
    crc32s: list[int]
    line: str


class Decoder:
    """The child of one thread. It is started at the first request, and again after it died."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._child: _Child | None = None
        self._answers = 0

    def write(
        self, sample: PlannedSample, files: Sequence[Path], *, settings: Settings, tar: Path, start: int, first: bool
    ) -> Written:
        """Appends a sample to a tar.

        Args:
            sample: what to read.
            files: paths of what `media_files` names.
            settings: sizes, rates, quality and limits.
            tar: the tar, whole up to `start`; what is behind it is overwritten.
            start: bytes.
            first: whether it is the first sample of its shard: only within one are videos kept open.

        Raises:
            MediaError: the sample cannot be had; what is behind `start` is to be forgotten.
            OSError: the tar cannot be written, or the disk of the media has gone.
        """
        if first and self._answers >= _ANSWERS:
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
        answer = self._ask(request, settings.timeout_s)
        remark = answer["facts"].pop("remark")
        return Written(Facts(**answer.pop("facts"), remark=tuple(remark) if remark else None), **answer)

    def probe(self, path: Path, *, settings: Settings, measure: bool = False) -> VideoFacts:
        """What a video announces; with `measure` its length is borne out by its packets.

        Raises:
            MediaError: it is no video that can be opened.
        """
        request = {"do": "probe", "path": str(path), "settings": asdict(settings), "measure": measure}
        return VideoFacts(**self._ask(request, settings.timeout_s))

    def close(self) -> None:
        """Ends the child, whatever it does."""
        if self._child is not None:
            self._child.end()
        self._child, self._answers = None, 0

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            answer = self._answer(request, timeout_s)
        except MediaError:
            answer = self._answer(request | {"first": True}, timeout_s)
        self._answers += 1
        if "media" in answer:
            reason, message, frame = answer["media"]
            raise MediaError(reason, message, frame=frame)
        if "os" in answer:
            raise OSError(*answer["os"])
        return answer["done"]

    def _answer(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """What the child says; MediaError if it hangs or dies."""
        if self._child is None:
            self._child = _Child()
        try:
            return self._child.ask(request, timeout_s)
        except BaseException:  # also when interrupted: its answer would be taken for that of the next request
            self.close()
            raise


class _Child:
    """A process that answers, and the page in which it says how far it is."""

    def __init__(self) -> None:
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
        self.end = weakref.finalize(self, _end, os.getpid(), self._process)
        try:
            self._receive(_START_S)
        except MediaError as error:
            self.end()
            raise ChildProcessError(f"the decoder cannot be started: {error}") from error

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """One request, one answer; MediaError if there is no progress for so long, or if the child dies."""
        assert self._process.stdin is not None
        self._page[COUNT_BYTES:] = bytes(PAGE_BYTES - COUNT_BYTES)
        with suppress(BrokenPipeError):  # then there is no answer
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._receive(timeout_s))
        return answer

    def _receive(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        ready = select.poll()
        ready.register(out, select.POLLIN)
        tick_s = min(_TICK_S, timeout_s / 4)
        said, count = bytearray(), self._page[:COUNT_BYTES]
        idle_s, now = 0.0, time.monotonic()
        while not said.endswith(b"\n"):
            if ready.poll(1000 * tick_s):
                data = os.read(out, 1 << 20)
                if not data:
                    raise self._died()
                said += data
            before, now = now, time.monotonic()
            # A process that was stopped, and its child with it, has slept through more than a tick.
            idle_s += min(now - before, 2 * tick_s)
            if count != self._page[:COUNT_BYTES]:
                idle_s, count = 0.0, self._page[:COUNT_BYTES]
            elif idle_s > timeout_s:
                raise MediaError("timeout", f"no progress for --timeout {timeout_s:g} s at {self._place()}")
        return bytes(said)

    def _died(self) -> MediaError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        code = self._process.poll()
        cause = f"ended with exit code {code}" if code is None or code >= 0 else f"died of {_signal_name(-code)}"
        hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return MediaError("crashed", f"the decoder {cause} at {self._place()}{hint}")

    def _place(self) -> str:
        place = self._page[COUNT_BYTES:].rstrip(b"\0")
        return place.decode(errors="replace") or "the beginning"


_of_thread = threading.local()


def decoder() -> Decoder:
    """The decoder of this thread, and of no process that was forked from it."""
    found: Decoder | None = getattr(_of_thread, "decoder", None)
    if found is None or found.pid != os.getpid():
        found = _of_thread.decoder = Decoder()
    return found


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(owner: int, process: subprocess.Popen[bytes]) -> None:
    if owner != os.getpid():
        return  # it is the parent's
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
