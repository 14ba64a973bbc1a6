"""benchmarks/gpu_video.py's cases have figures on a CPU, with VP9 in the place of H.264."""

from pathlib import Path

import pytest

from benchmarks import gpu_video
from benchmarks.gpu_cases import Skipped, Trial


@pytest.mark.slow
@pytest.mark.soak
def test_every_case_that_a_cpu_can_try_has_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_video, "LENGTH", 16)
    monkeypatch.setattr(gpu_video, "FRAMES", 8)
    rows, skipped = {}, []
    for case in gpu_video.nvdec(Trial("cpu", tmp_path)):
        try:
            rows[case.name] = case.measure()
        except Skipped:
            skipped.append(case.name)
    assert skipped == ["beside matrix products", "torchcodec on CUDA"]
    assert rows["frames and colours"]["wrong frames"] == "0 of 128"
    assert rows["padded, 1 threads"]["frames/s"] > 0
    assert [name for name in rows if name.startswith("damage")] == [f"damage: {name}" for name in gpu_video.DAMAGES]


@pytest.mark.gpu
def test_the_gpu_has_figures_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_video, "ON_GPU", (4, 5, (1, 2)))
    for case in gpu_video.nvdec(Trial("cuda", tmp_path)):
        if case.name != "torchcodec on CUDA":
            assert case.measure()
