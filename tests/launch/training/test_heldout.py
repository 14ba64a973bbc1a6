"""launch/training/heldout.py: messages name the options of the samples' own role."""

from pathlib import Path

import numpy as np
import pytest

from launch.common.eval_set import EvalSet
from launch.training.config import EvalConfig, ValConfig
from launch.training.heldout import open_held_out
from pipelines.config import DataConfig, SelectConfig
from pipelines.samples.corpus import corpus_of
from tests.support.media import make_dataset


def test_what_is_wrong_with_held_out_samples_names_their_own_options(tmp_path: Path) -> None:
    numbered = make_dataset(tmp_path / "numbered", samples=2, frames=2, labels=["0", "1"])
    named = make_dataset(tmp_path / "named", samples=2, frames=2, labels=["walk", "run"])
    data = DataConfig(shards=str(numbered), sampling_rate=1)
    train = EvalSet(corpus_of(data), data, np.arange(2))
    both, names = (str(numbered), str(named)), tmp_path / "names.txt"
    names.write_text("nobody\n")
    with pytest.raises(ValueError, match=r"file: --val\.labels FILE"):
        open_held_out(ValConfig(shards=both), train, option="val", num_frames=2)
    with pytest.raises(ValueError, match=r"^eval\.select\.split=no: .* has the splits"):
        open_held_out(EvalConfig(select=SelectConfig(split="no")), train, option="eval", num_frames=2)
    with pytest.raises(ValueError, match=r"^val\.select\.names=.*names\.txt: 1 of 1 names or keys are not in"):
        open_held_out(ValConfig(select=SelectConfig(names=str(names))), train, option="val", num_frames=2)
