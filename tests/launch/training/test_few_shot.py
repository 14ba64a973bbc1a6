"""launch/training/few_shot.py: what the smaller classes have given, and scores that are no numbers."""

import math
from typing import Any

import numpy as np

from launch.training.few_shot import _statistics, small_classes
from pipelines.samples.corpus import Corpus
from pipelines.samples.labels import Labels
from tests.support.datasets import index_only


def test_classes_with_fewer_samples_than_k_are_named_with_what_they_have() -> None:
    names = ["walk", "run", "swim", "none has it"]
    labels = Labels(np.arange(7), np.array([0, 1, 0, 1, 0, 2], np.int32), names)
    corpus = Corpus([index_only([6], seed=1)], labels=labels)
    assert small_classes(corpus, np.arange(6), shots=1) == ""
    assert "1 classes have fewer than 2 samples, and all of theirs: swim (1)" in small_classes(
        corpus, np.arange(6), shots=2
    )
    assert "run (2), swim (1)" in small_classes(corpus, np.arange(6), shots=3)
    assert "walk (1), run (1)" in small_classes(corpus, np.arange(2), shots=2)


def test_the_table_is_written_though_a_run_has_a_score_that_is_no_number() -> None:
    runs: list[dict[str, Any]] = [
        {"shots": 5, "seed": seed, "samples": 9, "fewest_per_class": 4 - seed, "map": value, "loss": 1.0 + seed}
        for seed, value in enumerate((math.nan, 0.5))
    ]
    row = _statistics(runs)
    assert (row["shots"], row["runs"], row["fewest_per_class"], row["loss_mean"]) == (5, 2, 3, 1.5)
    assert math.isnan(row["map_mean"] or 0)
    assert math.isnan(row["map_std"] or 0)
    assert _statistics(runs[1:])["map_std"] is None
