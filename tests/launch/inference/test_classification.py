import csv
from pathlib import Path

import numpy as np
import pytest

from launch.inference import classification
from mae3d.model.config import ClassifierConfig, EncoderConfig

SCORES = np.random.default_rng(0).dirichlet(np.ones(6), 40).astype(np.float32)
LABELS = np.arange(40) % 6


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_of_many_classes_the_pairs_that_occur_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ClassifierConfig(**vars(EncoderConfig()), num_classes=6)
    for name, most in (("matrix", 6), ("pairs", 5)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(classification, "MAX_MATRIX", most)
        figures = classification._single_label_figures(SCORES, LABELS, config, tmp_path / name)
        if name == "matrix":
            expected = figures
    assert figures == expected
    assert not (tmp_path / "pairs" / "confusion.png").exists()
    header, *matrix = rows_of(tmp_path / "matrix" / "confusion.csv")
    cells = {(row[0], header[i]): int(row[i]) for row in matrix for i in range(1, 7) if int(row[i])}
    _, *pairs = rows_of(tmp_path / "pairs" / "confusion.csv")
    assert {(true, predicted): int(count) for true, predicted, count in pairs} == cells


def test_a_hundred_thousand_classes_take_no_matrix(tmp_path: Path) -> None:
    config = ClassifierConfig(**vars(EncoderConfig()), num_classes=100_000)  # a matrix would take 75 GB
    scores = np.zeros((3, 100_000), np.float32)
    scores[[0, 1, 2], [7, 99_999, 5]] = 1.0
    metrics, _ = classification._single_label_figures(scores, np.array([7, 99_999, 6]), config, tmp_path)
    assert metrics["top1"] == pytest.approx(2 / 3)
    assert len(rows_of(tmp_path / "confusion.csv")) == 4
