"""The child process of `preprocess.workers.decoder` answers requests, one line of JSON each.

    python -m preprocess.encode.decoder_main PAGE PARENT      # a file descriptor and a process id; see there

It has no state but the video that it read last. It dies with the thread that started it.
"""

import ctypes
import dataclasses
import gc
import json
import mmap
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from mae3d.video.errors import MediaError
from mae3d.video.reader import KeptVideo, open_video
from mae3d.video.stacks import open_stack
from preprocess.encode.sample import pixel_kind
from preprocess.encode.sample_writer import write_sample
from preprocess.encode.tar_writer import TarWriter
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from preprocess.workers.decoder import COUNT_BYTES, PAGE_BYTES

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Server:
    """The loop that answers requests."""

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page
        self._count = 0
        self._kept = KeptVideo()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return {"done": ...}, {"media": [reason, message, frame]} or {"os": [errno, message, file]}."""
        gc.collect()
        try:
            todo = {"write": self._write, "probe": self._probe, "probe_stack": _probe_stack, "pixel_kind": _pixel_kind}
            return {"done": todo[request["do"]](request)}
        except MediaError as error:
            return {"media": [error.reason, str(error), error.frame]}
        except OSError as error:
            if error.errno is None:  # not of the disk: so Pillow says that it cannot encode something
                return {"media": ["undecodable", str(error), -1]}
            return {"os": [error.errno, error.strerror, error.filename or request.get("tar")]}
        except MemoryError:
            os._exit(1)  # perhaps the machine was short of it: it is tried once more, by another child
        except Exception as error:  # any failure of a library over strange media costs one sample
            return {"media": ["crashed", f"{type(error).__name__}: {error}", -1]}

    def _write(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["first"]:
            self._kept.close()
        with Path(request["tar"]).open("r+b") as file:
            file.seek(request["start"])
            settings = Settings(**request["settings"])
            tar = TarWriter(file, settings.stored_as)
            facts = write_sample(
                tar,
                PlannedSample(**request["sample"]),
                [Path(name) for name in request["files"]],
                settings=settings,
                opened=self._kept.open,
                progress=self._progress,
            )
            stop = file.tell()
        written = {"offset": tar.offset, "sizes": tar.sizes, "crc32s": tar.crc32s, "line": tar.index[0]}
        return {"facts": dataclasses.asdict(facts), "stop": stop, **written}

    def _probe(self, request: dict[str, Any]) -> dict[str, Any]:
        settings = Settings(**request["settings"])
        with open_video(Path(request["path"]), max_pixels=settings.max_pixels, progress=self._progress) as video:
            return dataclasses.asdict(video.measured_facts() if request["measure"] else video.facts)

    def _progress(self, position: str) -> None:
        self._count += 1
        text = position.encode(errors="replace")[: PAGE_BYTES - COUNT_BYTES]
        self._page[:] = self._count.to_bytes(COUNT_BYTES, "little") + text.ljust(PAGE_BYTES - COUNT_BYTES, b"\0")


def _probe_stack(request: dict[str, Any]) -> dict[str, Any]:
    with open_stack(Path(request["path"]), max_pixels=request["settings"]["max_pixels"]) as stack:
        return dataclasses.asdict(stack.facts)


def _pixel_kind(request: dict[str, Any]) -> dict[str, Any]:
    return {"kind": pixel_kind(Path(request["path"]), request["kind"], Settings(**request["settings"]))}


def main() -> None:
    """Answer until there is nothing more to read."""
    page, parent = int(sys.argv[1]), int(sys.argv[2])
    # Only the parent stops this process; an interrupt reaches the parent too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        return  # it died before it could take us with it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")  # rather us than the worker
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # text that a library prints is no answer
    Image.MAX_IMAGE_PIXELS = None  # --max-pixels holds instead
    server = Server(mmap.mmap(page, PAGE_BYTES))
    # Garbage is collected between samples only: what a broken frame shows depends on the buffer that it was decoded
    # into, and that on when earlier frames were freed.
    gc.disable()
    gc.freeze()
    print(file=answers, flush=True)  # ready
    for line in sys.stdin.buffer:
        print(json.dumps(server.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
