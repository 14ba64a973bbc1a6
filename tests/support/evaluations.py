"""Evaluations in this process: their dataset, the command, and what it wrote."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from launch import evaluate
from pipelines.config import DataConfig
from pipelines.samples.corpus import open_corpus
from pipelines.stream import evaluation_clips
from tests.support.media import make_dataset

SIZES: dict[str, Any] = {"preset": "mae_vit_tiny_patch16", "img_size": 32, "num_frames": 4, "depth": 2}
NAMES = ("ant", "bird", "cat", "cow", "dog", "emu", "fox")
LABELS = ["cat", "dog", "", "cow", "cat", "fox", "dog", "cat", "bird"]


def evaluated_shards(folder: Path) -> Path:
    """Nine samples; their dataset numbers its five classes unlike the model."""
    return make_dataset(folder, samples=9, frames=[8, 20] * 4 + [3], labels=LABELS)


def run(file: Path, shards: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run the command in this process; the table's columns."""
    argv = ["--run", str(file), "--data.shards", str(shards), "--out", str(out), "--device", "cpu"]
    assert evaluate.main([*argv, "--data.sampling_rate", "1", *more]) == 0
    return table(out)


def table(out: Path) -> dict[str, Any]:
    (file,) = out.glob("*.parquet")
    return dict(pq.read_table(file).to_pydict())


def metrics(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "metrics.json").read_text()))


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def clips_of(shards: Path, num_frames: int, rows: Sequence[int], **views: int) -> list[torch.Tensor]:
    """The clips of each sample, (views, T, H, W, 3), one sample at a time."""
    config, corpus = DataConfig(shards=str(shards), sampling_rate=1), open_corpus([shards])
    stream = evaluation_clips(
        corpus, config, rows=np.array(rows), num_frames=num_frames, size=32, batch_size=1, **views
    )
    return [batch.clips[0] for batch in stream]
