"""Frames of benchmarks/gpu_loader.py's own are as large as photographs', and its cases have figures on a CPU."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu_loader
from benchmarks.gpu_cases import Trial


def test_frames_of_its_own_compress_as_photographs_do() -> None:
    frame = gpu_loader.photograph(0, height=256, width=340)
    assert frame.shape == (256, 340, 3)
    assert 30 < frame.std() < 70
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    assert 15_000 < len(file.getvalue()) < 29_000  # what real ones of this size take
    assert np.array_equal(frame, gpu_loader.photograph(0, height=256, width=340))
    assert not np.array_equal(frame, gpu_loader.photograph(1, height=256, width=340))


@pytest.mark.slow
@pytest.mark.soak
def test_every_case_has_figures_on_the_cpu(tmp_path: Path) -> None:
    trial = Trial("cpu", tmp_path)
    trial.shards.parent.mkdir()
    gpu_loader.make_shards(trial.shards.parent, samples=2, length=16)
    rows = {case.name: case.measure() for case in (*gpu_loader.jpeg(trial), *gpu_loader.clips(trial))}
    assert list(rows) == ["decode, load 0.65", "decode + resize, load 0.65", "cpu, 1 view", "cpu, 4 views", "memory"]
    assert all(row["frames/s"] > 0 and row["cores"] > 0 for row in rows.values())
    assert "host MB" in rows["memory"]


@pytest.mark.gpu
def test_the_gpu_decodes_crops_and_soaks(tmp_path: Path) -> None:
    trial = Trial("cuda", tmp_path)
    trial.shards.parent.mkdir()
    gpu_loader.make_shards(trial.shards.parent, samples=8)
    corpus, work = gpu_loader.opened(trial)
    assert work.batch == 8
    assert gpu_loader.decoder_speed(corpus, work, decode="mixed", resize="gpu", hw_decoder_load=0.65).row()["clips/s"]
    first, last, _ = gpu_loader.soak(corpus, work, decode="mixed")
    assert last["GPU"] < first["GPU"] + 500
