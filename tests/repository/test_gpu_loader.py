"""benchmarks/gpu_loader.py: runs on the CPU, says one line without a GPU, makes frames as large as photographs'."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu_loader
from benchmarks.common import ROOT
from tests.support import launch


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_loader.main([]) == 2
    assert capsys.readouterr().out.startswith("no GPU that torch can use")


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
def test_every_figure_is_printed_on_the_cpu(tmp_path: Path) -> None:
    shards = gpu_loader.make_shards(tmp_path, samples=2, length=16)
    command = [sys.executable, "benchmarks/gpu_loader.py", "--device", "cpu", "--shards", str(shards)]
    command += ["--batch", "1", "--batches", "2", "--soak", "2", "--threads", "1"]
    done = launch.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["decode", "decode", "pipeline", "pipeline", "soak"]
    assert all("frames/s" in line and "cores" in line for line in lines[2:])
    assert "host" in lines[-1]


@pytest.mark.gpu
def test_the_gpu_decodes_crops_and_soaks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shards = gpu_loader.make_shards(tmp_path, samples=8)
    assert gpu_loader.main(["--shards", str(shards), "--batch", "8", "--batches", "5", "--soak", "50"]) == 0
    assert "soak" in capsys.readouterr().out
