"""launch/training/heldout.py: messages name the options of the samples' own role."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launch.common.eval_set import EvalSet
from launch.training.config import EvalConfig, ValConfig
from launch.training.heldout import open_held_out
from pipelines.config import DataConfig, SelectConfig
from pipelines.samples.corpus import corpus_of
from tests.support.datasets import build_shards
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


def test_h264_of_held_out_samples_is_decoded_on_a_gpu_only_if_the_training_tried_it(tmp_path: Path) -> None:
    options = ["--layout", "video", "--fps", "8", "--source-fps", "8"]
    jpeg, video = build_shards(tmp_path / "jpeg"), build_shards(tmp_path / "video", *options)

    def decode_of(train: Path, decode: str, held_out: Path, requested: str) -> str:
        data = DataConfig(shards=str(train), sampling_rate=1, decode=decode)
        samples = EvalSet(corpus_of(data), data, np.arange(0))
        config = replace(ValConfig(shards=str(held_out)), decode=requested)
        return open_held_out(config, samples, option="val", num_frames=2).clips.decode

    assert decode_of(jpeg, "mixed", jpeg, "auto") == "mixed"
    assert decode_of(video, "mixed", video, "auto") == "mixed"
    assert decode_of(jpeg, "mixed", video, "auto") == "cpu"
    assert decode_of(video, "mixed", jpeg, "auto") == "cpu"
    assert decode_of(video, "cpu", video, "auto") == "cpu"
    assert decode_of(video, "mixed", video, "mixed") == "mixed"
    assert decode_of(jpeg, "cpu", jpeg, "mixed") == "mixed"
    for train, decode in ((jpeg, "mixed"), (video, "cpu")):
        with pytest.raises(ValueError, match=r"val\.decode=mixed .*--val\.decode cpu"):
            decode_of(train, decode, video, "mixed")
