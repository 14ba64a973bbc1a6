"""Messages of other libraries come through on one line, with the part that says why."""

import contextlib
import os
import sys

import pytest

from mae3d.io.console import lasting_output, one_line, output_is_lost


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", "RuntimeError"),
        ("\n\n", "RuntimeError"),
        (
            "CUDA error: no kernel\nCompile with TORCH_USE_CUDA_DSA",
            "CUDA error: no kernel Compile with TORCH_USE_CUDA_DSA",
        ),
        ("Weights only load failed.\n\tUnsupported global: a.B", "Weights only load failed. Unsupported global: a.B"),
        (
            "Connection closed by peer\nException raised from pair.cc:553\nframe #0: c10::Error",
            "Connection closed by peer",
        ),
        ("NCCL error\nC++ CapturedTraceback:\n#4 x", "NCCL error"),
        ("DALI\nencountered:\nno marker\nStacktrace (2 entries):\n[frame 0]: x", "DALI encountered: no marker"),
        ("begin " + "a" * 500 + " end", "begin " + "a" * 114 + " ... " + "a" * 276 + " end"),
    ],
)
def test_a_message_is_one_line_without_frames(message: str, told: str) -> None:
    assert one_line(RuntimeError(message)) == told


def test_output_whose_reader_has_gone_is_known_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting_output():
            print("read", flush=True)
            assert os.read(reader, 9) == b"read\n"
            assert not output_is_lost(writer)
            os.close(reader)
            print("not read", flush=True)
            assert output_is_lost(writer)
        with pytest.raises(BrokenPipeError):
            print("as ever", flush=True)
