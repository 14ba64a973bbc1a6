"""benchmarks/gpu_video.py: runs on the CPU with VP9, and says in one line that there is no GPU."""

import pytest

from benchmarks import gpu_video


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_video.main([]) == 2
    assert capsys.readouterr().out.startswith("no GPU that torch can use")


@pytest.mark.slow
def test_every_figure_that_a_cpu_can_give_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gpu_video, "LENGTH", 16)
    monkeypatch.setattr(gpu_video, "FRAMES", 8)
    command = "--device cpu --batch 1 --batches 1 --threads 1 --sizes 1"
    assert gpu_video.main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[1:4] == ["0", "of", "128"]
    first = [line.split()[0] for line in lines[1:]]
    assert first == ["frames", "colours", "1", "1", "1", "damage", "damage", "damage", "left"]


@pytest.mark.gpu
def test_the_gpu_prints_all(capsys: pytest.CaptureFixture) -> None:
    assert gpu_video.main(["--batch", "4", "--batches", "5", "--threads", "1", "2", "--sizes", "4"]) == 0
    assert "beside training" in capsys.readouterr().out
