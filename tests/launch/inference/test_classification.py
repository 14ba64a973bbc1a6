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


def test_no_name_of_a_class_breaks_the_last_step(tmp_path: Path) -> None:
    """A formula's sign, a line break, letters that the picture's font lacks, and two names that are alike."""
    names = ["$5 {or $6", "日本", "two\nlines", "true \\ predicted", "alike", "alike"]
    config = ClassifierConfig(**vars(EncoderConfig()), num_classes=6, class_names=names)
    classification._single_label_figures(SCORES, LABELS, config, tmp_path)
    assert (tmp_path / "confusion.png").exists()
    header, *matrix = rows_of(tmp_path / "confusion.csv")
    assert header[1:] == [row[0] for row in matrix] == names
    assert sum(int(cell) for row in matrix for cell in row[1:]) == len(LABELS)


def test_figures_that_memory_cannot_hold_are_refused_before_any_clip() -> None:
    classification._check_size(50_000, 1_000)
    with pytest.raises(ValueError, match=r"100,000,000 samples .* 1,000,000 classes.* --data\.select\.names"):
        classification._check_size(100_000_000, 1_000_000)
