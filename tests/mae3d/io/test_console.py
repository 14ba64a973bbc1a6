"""Messages of other libraries come through on one line, with the part that says why."""

import contextlib
import os
import sys

import pytest

from mae3d.io.console import cut_text, lasting_output, one_line, output_is_lost, text_width, time_text


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


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("東京", 4), ("e\u0301", 1), ("é", 1), ("ｱ", 1), ("", 0), ("🎥", 2)]
)
def test_the_width_of_a_text_is_in_columns(text: str, width: int) -> None:
    assert text_width(text) == width


def test_a_cut_text_takes_no_more_columns_and_steers_no_terminal() -> None:
    assert cut_text("東京の動画", 5) == "東京…"
    assert cut_text("東京の動画", 4) == "東…"
    assert cut_text("東京", 4) == "東京"
    assert cut_text("a\x1b[2Jb\nc", 20) == "a?[2Jb?c"
    assert [cut_text("abc", width) for width in range(4)] == ["", "…", "a…", "abc"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (75, "1:15 min"), (5400, "1.5 h"), (40 * 3600, "40.0 h"), (4e5, "4.6 days")],
)
def test_a_length_of_time_is_short(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
