"""A PyAV that hangs, crashes or dawdles in the decoder's child, and only there: for files that are named so.

with_fake_ffmpeg(tmp_path, monkeypatch)
make_video(tmp_path / "segv_after_5.mp4", 20)      # the child dies of SIGSEGV after five packets

estale fails as a file of a lost mount does for as long as there is `tmp_path / "fake" / "gone"`.
memory finds none, once, where there is `tmp_path / "fake" / "short"`.
hangs holds the interpreter's lock as a hanging C library would, and no signal but SIGKILL ends it.
"""

from pathlib import Path

import pytest

_SITECUSTOMIZE = '''
import sys

if "preprocess.encode.decoder_main" in sys.orig_argv:
    import ctypes
    import errno
    import os
    import signal
    import time

    import av

    open_for_real = av.open

    def misbehave(name):
        kind = name.partition("_")[0]
        if kind == "hangs":
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
            ctypes.PyDLL(None).sleep(3600)
        elif kind == "raises":
            raise ValueError("not even an error of FFmpeg")
        elif kind == "estale":
            if os.path.exists(os.path.join(os.path.dirname(__file__), "gone")):
                av.error.err_check(-errno.ESTALE)
        elif kind == "memory":
            short = os.path.join(os.path.dirname(__file__), "short")
            if os.path.exists(short):
                os.unlink(short)
                raise MemoryError
        elif kind != "slow":
            os.kill(os.getpid(), getattr(signal, "SIG" + kind.upper()))

    class Container:
        """A container that misbehaves after some packets; slow ones take a moment for each."""

        def __init__(self, container, name):
            self._container, self._name = container, name

        def __getattr__(self, name):
            return getattr(self._container, name)

        def demux(self, stream):
            limit = int(self._name.partition(".")[0].rpartition("_")[2])
            for count, packet in enumerate(self._container.demux(stream)):
                if self._name.startswith("slow"):
                    time.sleep(0.2)
                elif count == limit:
                    misbehave(self._name)
                yield packet

    def fake_open(file, *args, **options):
        name = os.path.basename(file)
        if "_at_once" in name:
            misbehave(name)
        container = open_for_real(file, *args, **options)
        return Container(container, name) if "_after_" in name else container

    av.open = fake_open
'''


def with_fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that are started from now on misbehave, those of other processes too, for they inherit it."""
    (folder / "fake").mkdir()
    (folder / "fake" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(folder / "fake"))
