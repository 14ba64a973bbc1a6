"""What tests of preprocessing share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from preprocess.workers.decoder import decoder
from tests.support.fake_ffmpeg import with_fake_ffmpeg


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Yield with decoders of this thread that start with tests/support/fake_ffmpeg.py; none outlives the test."""
    with_fake_ffmpeg(tmp_path, monkeypatch)
    decoder().close()
    yield
    decoder().close()
