"""launch/probe.py: features of the code of embed, labels matched by name, figures that can be made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from launch import probe
from launch.common.tables import read_vectors
from launch.inference import probing
from launch.inference.embeddings import Embedder
from mae3d.analysis import probes
from mae3d.analysis.features import embed
from mae3d.analysis.probes import knn_scores
from mae3d.analysis.scores import hits_at
from mae3d.model.mae import MAE
from mae3d.weights.files import load_model
from pipelines.config import DataConfig
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.stream import evaluation_clips
from tests.support.damage import flip_a_bit, overwrite
from tests.support.datasets import COLOURS, coloured
from tests.support.trainings import TINY


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured(tmp_path_factory.mktemp("train"), list(COLOURS) * 8, seed=0)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the three colours, in another order: its own numbers are others."""
    return coloured(tmp_path_factory.mktemp("test"), ["green", "blue", "blue", "green", "blue"] * 2, seed=1)


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attentive probe's 500 steps take ten seconds."""
    monkeypatch.setattr(probes, "MIN_STEPS", 60)


def run(model: Path, train: Path, test_set: Path, out: Path, *options: str) -> dict[str, Any]:
    command = ["--run", str(model), "--data.shards", str(train), "--test.shards", str(test_set), "--out", str(out)]
    assert probe.main([*command, "--device", "cpu", "--data.sampling_rate", "1", *options]) == 0
    results: dict[str, Any] = json.loads((out / "probe.json").read_text())
    return results


def row(results: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [row for row in results["probes"] if row["probe"] == name]
    return dict(found)


def test_colours_are_told_apart_and_labels_matched_by_name(
    model: Path, train: Path, test_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(model, train, test_set, tmp_path / "new" / "out", "--few_shot", "1", "4", "--seeds", "2")
    assert (results["classes"], results["train"], results["test"]) == (
        3,
        {"samples": 24, "failed": 0},
        {"samples": 10, "failed": 0},
    )
    assert row(results, "knn, k=1")["top1"] == 1
    assert row(results, "linear")["top1"] == 1
    assert row(results, "most frequent")["top1"] == pytest.approx(1 / 3)  # three classes as frequent
    assert [(few["shots"], few["probe"], few["runs"]) for few in results["few_shot"] if few["probe"] == "linear"] == [
        (1, "linear", 2),
        (4, "linear", 2),
    ]
    told = capsys.readouterr().out
    assert "24 samples of 3 classes" in told
    assert "linear" in told


def test_features_are_embeds_and_figures_can_be_made_by_hand(
    model: Path, train: Path, test_set: Path, tmp_path: Path
) -> None:
    results = run(model, train, test_set, tmp_path, "--layer", "1", "--probes", "knn")
    loaded, targets, found = load_model(model), {}, {}
    names = open_corpus([train]).label_names
    for name, folder in (("train", train), ("test", test_set)):
        corpus, config = open_corpus([folder]), DataConfig(sampling_rate=1)
        stream = evaluation_clips(
            corpus, config, rows=np.arange(len(corpus)), num_frames=4, size=32, batch_size=len(corpus)
        )
        found[name] = embed(loaded, next(stream).clips[:, 0], layer=1).numpy()
        stream.close()
        vectors, _ = read_vectors(tmp_path / f"{name}.parquet")
        np.testing.assert_allclose(vectors, found[name], rtol=1e-3, atol=1e-3)
        labels = [names.index(corpus.label_names[corpus.labels_of(i)[0]]) for i in range(len(corpus))]
        targets[name] = np.eye(3)[labels]
    scores = knn_scores(found["train"], targets["train"], found["test"])[5]
    assert row(results, "knn, k=5")["top1"] == hits_at(scores, targets["test"].argmax(1), k=1).mean()


def test_the_attentive_probe_sees_every_token(model: Path, train: Path, test_set: Path, tmp_path: Path) -> None:
    results = run(model, train, test_set, tmp_path, "--probes", "attentive")
    assert row(results, "attentive")["top1"] == 1
    assert results["train"]["samples"] == 24
    assert not (tmp_path / "train.parquet").exists()
    probed = probing.FeatureTables(tmp_path, num_classes=3, multi_label=False, num_heads=3, device=torch.device("cpu"))
    tokens, _ = probing._tokens(probed, "test", tmp_path / "mapped")
    corpus = open_corpus([test_set])
    stream = evaluation_clips(
        corpus, DataConfig(sampling_rate=1), rows=np.arange(10), num_frames=4, size=32, batch_size=10
    )
    expected = embed(load_model(model), next(stream).clips[:, 0], pool="tokens").numpy()
    stream.close()
    np.testing.assert_allclose(tokens, expected, rtol=1e-2, atol=1e-2)
    assert pq.read_schema(tmp_path / "test_tokens.parquet").field("vector").type.value_type == pa.float16()


def test_tokens_are_averaged_in_blocks_where_all_of_them_are_too_many(model: Path) -> None:
    loaded = load_model(model)
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    every = embed(loaded, clips, pool="tokens").numpy().reshape(2, *TINY.grid, -1)
    embedder = Embedder(loaded, torch.device("cpu"), pool="tokens", token_pool=(2, 1, 2))
    blocks = embedder(clips[:, None]).flatten().to_numpy().reshape(2, *embedder.settings["grid"], -1)
    means = (every[:, ::2, :, ::2] + every[:, ::2, :, 1::2] + every[:, 1::2, :, ::2] + every[:, 1::2, :, 1::2]) / 4
    np.testing.assert_allclose(blocks, means, rtol=1e-4, atol=1e-5)
    assert embedder.row_bytes == 4 * means[0].size


def test_a_finished_table_is_used_again_and_the_control_is_another_model(
    model: Path, train: Path, test_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(model, train, test_set, tmp_path, "--probes", "linear")
    made = (tmp_path / "train.parquet").stat().st_mtime_ns
    assert run(model, train, test_set, tmp_path, "--probes", "linear") == first
    assert (tmp_path / "train.parquet").stat().st_mtime_ns == made
    with pytest.raises(SystemExit) as stopped:
        run(model, train, test_set, tmp_path, "--probes", "linear", "--random_init", "true")
    assert stopped.value.code == 2
    assert "model was" in capsys.readouterr().err
    control = run(model, train, test_set, tmp_path / "control", "--random_init", "true", "--seed", "5")
    assert control["model"] == "untrained, seed 5"
    torch.manual_seed(5)
    untrained = MAE(TINY)  # as pretraining begins
    corpus = open_corpus([test_set])
    stream = evaluation_clips(
        corpus, DataConfig(sampling_rate=1), rows=np.arange(10), num_frames=4, size=32, batch_size=10
    )
    expected = embed(untrained, next(stream).clips[:, 0]).numpy()
    stream.close()
    np.testing.assert_allclose(read_vectors(tmp_path / "control" / "test.parquet")[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_samples_that_cannot_be_read_or_have_no_label_are_left_out_and_told(
    model: Path, test_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = list(COLOURS) * 4
    train = coloured(tmp_path / "train", words, seed=2, labels=["", *words[1:]])
    overwrite(Corpus(open_corpus([train]).datasets), 5, flip_a_bit)
    results = run(model, train, test_set, tmp_path / "out", "--probes", "knn", "attentive")
    assert results["train"] == {"samples": 10, "failed": 1}
    assert row(results, "knn, k=1")["top1"] == 1
    assert row(results, "attentive")["top1"] == 1
    told = capsys.readouterr()
    assert "data: 1 samples without a label are left out" in told.err
    assert "train: 10 samples of 3 classes, 1 left out: not readable" in told.out
    assert len(pq.read_table(tmp_path / "out" / "train.parquet")) == 11


def test_several_labels_are_told_as_map(model: Path, tmp_path: Path) -> None:
    words = list(COLOURS) * 5
    labels = [f"{word} any" if i % 2 else word for i, word in enumerate(words)]
    sets = [coloured(tmp_path / name, words, seed=seed, labels=labels) for seed, name in enumerate(("a", "b"))]
    results = run(model, *sets, tmp_path / "out")
    linear = row(results, "linear")
    assert "top1" not in linear
    assert 0.7 < linear["map"] < 1  # the colours are told apart, "any" is not


def test_labels_that_the_train_set_lacks_are_refused(
    model: Path, train: Path, test_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(model, test_set, train, tmp_path / "out")  # the other way round: red is new
    assert stopped.value.code == 2
    assert "red" in capsys.readouterr().err
    unlabelled = coloured(tmp_path / "u", ["red"] * 3, seed=0, labels=[""] * 3)
    with pytest.raises(SystemExit) as stopped:
        run(model, train, unlabelled, tmp_path / "out")
    assert stopped.value.code == 2
    assert "--test.labels" in capsys.readouterr().err


def test_a_train_set_of_one_class_is_refused_before_anything_is_embedded(
    model: Path, test_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = coloured(tmp_path / "one", ["red"] * 3, seed=0)
    with pytest.raises(SystemExit) as stopped:
        run(model, one, one, tmp_path / "out")
    assert stopped.value.code == 2
    assert "all train samples have one class" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--probes", "svm"), "give some of knn, linear, attentive"),
        (("--few_shot", "0"), "must be at least 1"),
        (("--pool", "tokens"), "tokens"),
        (("--layer", "7"), "the encoder has 2 blocks"),
        (("--probes", "knn", "attentive", "--token_pool", "3", "1", "1"), "does not divide the model's grid of tokens"),
        (("--test.shards", ""), "--test.shards is missing"),
    ],
)
def test_what_cannot_be_is_refused(
    model: Path,
    train: Path,
    test_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    told: str,
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(model, train, test_set, tmp_path, *options)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
