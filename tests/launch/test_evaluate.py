"""launch/evaluate.py: what it writes equals a plain loop over clips, on any number of processes, killed or not."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launch import evaluate
from launch.common.clip_options import ClipsConfig
from launch.inference import classification
from launch.inference.classification import scores_of
from launch.inference.settings import EvaluateConfig
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.mae import MAE
from mae3d.weights.files import save_model
from pipelines.samples.corpus import open_corpus
from pipelines.stream import Batch
from tests.mae3d.model.test_upstream_parity import OUTPUT_TOLERANCE, cases, classifier, error
from tests.support import launch
from tests.support.damage import flip_a_bit, overwrite
from tests.support.evaluations import (
    LABELS,
    NAMES,
    SIZES,
    clips_of,
    evaluated_shards,
    lines,
    metrics,
    refused,
    run,
    table,
)
from tests.support.media import make_dataset

ROOT = Path(__file__).resolve().parents[2]
VIEWS = ("--num_clips", "2", "--num_crops", "3")


@pytest.fixture(scope="module")
def shards(shared: Any) -> Path:
    return shared("evaluated", evaluated_shards)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = Classifier(ClassifierConfig(**SIZES, num_classes=len(NAMES), class_names=NAMES, head_std=1.0))
    save_model(model, file := tmp_path_factory.mktemp("run") / "model.safetensors")
    return file


def expected_scores(model: Classifier, shards: Path) -> np.ndarray:
    """One clip at a time, in float64 from the logits on."""
    with torch.no_grad():
        return np.stack(
            [
                torch.stack([model(view[None])[0].double().softmax(0) for view in views]).mean(0).numpy()
                for views in clips_of(shards, 4, range(9), num_clips=2, num_crops=3)
            ]
        )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model_file: Path, shards: Path) -> Path:
    """One evaluation, for the tests that look at what it wrote."""
    out = tmp_path_factory.mktemp("done")
    run(model_file, shards, out, *VIEWS)
    return out


@pytest.mark.slow
def test_predictions_equal_a_plain_loop(done: Path, model_file: Path, shards: Path) -> None:
    from mae3d.weights.files import load_classifier

    rows, corpus = table(done), open_corpus([shards])
    expected = expected_scores(load_classifier(model_file), shards)
    np.testing.assert_allclose(np.array(rows["scores"]), expected, atol=1e-5)
    best = expected.argmax(1)
    assert rows["prediction"] == best.tolist()
    assert rows["prediction_name"] == [NAMES[i] for i in best]
    np.testing.assert_allclose(rows["score"], expected.max(1), atol=1e-5)
    assert rows["key"] == [corpus.key(row) for row in range(9)]
    assert rows["labels"] == [[NAMES.index(label)] if label else [] for label in LABELS]
    right = [NAMES[i] == label if label else None for i, label in zip(best, LABELS, strict=True)]
    assert rows["correct"] == right
    top5 = np.argsort(-expected, 1)[:, :5]
    hits = [NAMES.index(label) in top if label else None for top, label in zip(top5.tolist(), LABELS, strict=True)]
    assert rows["hit5"] == hits
    found = metrics(done)
    assert (found["samples"], found["scored"], found["unlabelled"], found["failed"]) == (9, 8, 1, 0)
    assert found["top1"] == sum(map(bool, right)) / 8
    assert found["top5"] == sum(map(bool, hits)) / 8
    own = [expected[i, NAMES.index(label)] for i, label in enumerate(LABELS) if label]
    assert found["loss"] == pytest.approx(-np.log(own).mean(), abs=1e-5)


def test_classes_and_confusion_count_each_labelled_sample_once(done: Path) -> None:
    classes = {row["name"]: row for row in lines(done / "classes.csv")}
    assert {name: int(row["samples"]) for name, row in classes.items()} == {n: LABELS.count(n) for n in NAMES}
    rows = table(done)
    matrix = {row.pop("true \\ predicted"): row for row in lines(done / "confusion.csv")}
    for true in NAMES:
        named = zip(LABELS, rows["prediction_name"], strict=True)
        predicted = [prediction for label, prediction in named if label == true]
        assert {name: int(count) for name, count in matrix[true].items()} == {n: predicted.count(n) for n in NAMES}
    with Image.open(done / "confusion.png") as picture:
        assert min(picture.size) > 300


def test_the_numbers_are_those_of_mean_average_precision_and_of_scikit_learn(done: Path) -> None:
    from sklearn.metrics import average_precision_score

    labelled = [i for i, label in enumerate(LABELS) if label]
    scores = np.array(table(done)["scores"])[labelled]
    truth = np.array([[name == LABELS[i] for name in NAMES] for i in labelled])
    for number, row in enumerate(lines(done / "classes.csv")):
        if truth[:, number].any():
            expected = average_precision_score(truth[:, number], scores[:, number])
            assert float(row["average_precision"]) == pytest.approx(expected)
        else:
            assert row["average_precision"] == ""


@pytest.mark.parametrize("case", cases("vit"))
def test_golden_logits_come_out_of_the_commands_own_code(case: str) -> None:
    """Golden clips are floats; the path from a batch to scores is the command's. Two equal views change nothing."""
    model, _, golden = classifier(case)
    clip = golden["clip"]
    batch = Batch(torch.stack([clip, clip], 1), *[torch.zeros(len(clip), 2)] * 2, 0, *[torch.zeros(len(clip), 2)] * 2)  # type: ignore[arg-type]
    for at_once in (1, 3, 64):
        scores = scores_of(model, batch, at_once=at_once, precision="fp32")
        assert error(torch.from_numpy(scores), golden["logits"].softmax(1)) <= OUTPUT_TOLERANCE


def command(model_file: Path, shards: Path, out: Path, *more: str) -> list[str]:
    return [
        str(ROOT / "launch" / "evaluate.py"), "--run", str(model_file), "--data.shards", str(shards),
        "--out", str(out), "--device", "cpu", "--data.sampling_rate", "1", *VIEWS, "--batch", "6", *more,
    ]  # fmt: skip


@pytest.fixture
def thin_files(tmp_path: Path) -> dict[str, Path]:
    """A classifier and an autoencoder so narrow that MKL's products differ between numbers of threads."""
    torch.manual_seed(3)
    narrow = SIZES | {"embed_dim": 24, "num_heads": 2}
    models: dict[str, Classifier | MAE] = {
        "classification": Classifier(ClassifierConfig(**narrow, num_classes=7, class_names=NAMES, head_std=1.0)),
        "reconstruction": MAE(
            MAEConfig(
                **narrow, decoder_embed_dim=24, decoder_num_heads=2, decoder_depth=1, pred_t_dim=4, mask_ratio=0.5
            )
        ),
    }
    for task, model in models.items():
        save_model(model, tmp_path / f"{task}.safetensors")
    return {task: tmp_path / f"{task}.safetensors" for task in models}


@pytest.mark.parametrize("task", ["classification", "reconstruction"])
@pytest.mark.usefixtures("restored_threads")
def test_tables_are_the_same_bytes_with_any_number_of_threads(
    thin_files: dict[str, Path], shards: Path, tmp_path: Path, task: str
) -> None:
    tables = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run(thin_files[task], shards, out := tmp_path / str(threads), "--task", task, *VIEWS, "--batch", "6")
        (file,) = out.glob("*.parquet")
        tables.add(file.read_bytes())
    assert len(tables) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("restored_threads")
def test_fault_40_killed_and_gone_on_with_by_two_processes_it_ends_in_the_same_bytes(
    model_file: Path, shards: Path, tmp_path: Path
) -> None:
    """A real kill -9 in the middle, then torchrun with two ranks; against one process of other threads, left alone."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    options = command(model_file, shards, tmp_path / "cut")
    child = launch.Process([sys.executable, *options], env=environment)
    folder, deadline = tmp_path / "cut" / "predictions.parquet.parts", time.monotonic() + 120
    while not list(folder.glob("part-*")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.001)
    child.kill()
    child.wait()
    left = {part.name: part.stat().st_mtime_ns for part in folder.glob("part-*")}
    assert 0 < len(left) < 9
    shutil.copytree(tmp_path / "cut", tmp_path / "kept")
    ranks = launch.Ranks([sys.executable, *options], world=2, env=environment)
    output, _ = ranks.communicate()
    assert ranks.returncode == 0, output
    torch.set_num_threads(3)
    assert evaluate.main(command(model_file, shards, tmp_path / "uncut")[1:]) == 0
    for name in ("predictions.parquet", "classes.csv", "confusion.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "uncut" / name).read_bytes()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "uncut")
    assert len(table(tmp_path / "cut")["key"]) == 9
    assert not folder.exists()


def test_a_finished_evaluation_is_left_alone_and_other_settings_are_refused(
    model_file: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model_file, shards, tmp_path, *VIEWS)
    before = (tmp_path / "predictions.parquet").stat().st_mtime_ns
    (tmp_path / "metrics.json").unlink()  # killed before it was written
    run(model_file, shards, tmp_path, *VIEWS)
    assert (tmp_path / "predictions.parquet").stat().st_mtime_ns == before
    assert metrics(tmp_path)["scored"] == 8
    assert "finished already" in capsys.readouterr().out
    options = ["--run", str(model_file), "--data.shards", str(shards), "--out", str(tmp_path), "--device", "cpu"]
    told = refused(capsys, *options, "--num_clips", "2", "--num_crops", "1")
    assert "num_crops was 3 and is 1" in told
    assert "data.sampling_rate was 1.0 and is 4" in told
    assert "another --out" in told


def test_what_would_fail_at_the_end_is_refused_before_the_first_clip(
    model_file: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--run", str(model_file), "--data.shards", str(shards), "--out", str(tmp_path), "--device", "cpu")
    for name in ("metrics.json", "classes.csv", "confusion.csv", "confusion.png"):
        (tmp_path / name).write_text("of another program")
        assert f"{tmp_path / name}: there already" in refused(capsys, *argv)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    monkeypatch.setattr(classification, "BYTES_A_SCORE", 10**15)
    assert "evaluate in parts, with --data.select.names FILE" in refused(capsys, *argv)
    assert not list(tmp_path.iterdir())


def test_samples_that_cannot_be_read_are_null_counted_and_not_scored(
    model_file: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], done: Path
) -> None:
    damaged = Path(shutil.copytree(shards, tmp_path / "shards"))
    overwrite(open_corpus([damaged]), 4, flip_a_bit)
    rows = run(model_file, damaged, tmp_path / "out", *VIEWS)
    whole = table(done)
    for name in ("prediction", "prediction_name", "score", "correct", "hit5", "scores"):
        assert rows[name] == [None if row == 4 else value for row, value in enumerate(whole[name])]
    assert [rows[name] for name in ("key", "name", "labels")] == [whole[name] for name in ("key", "name", "labels")]
    found = metrics(tmp_path / "out")
    assert (found["samples"], found["scored"], found["failed"]) == (9, 7, 1)
    assert "1 could not be read" in capsys.readouterr().out


def test_several_labels_are_sigmoids_and_mean_average_precision(tmp_path: Path) -> None:
    from mae3d.analysis.scores import mean_average_precision

    labels = ["0 2", "1", "", "2", "0 1 2", "1 2"]
    shards = make_dataset(tmp_path, samples=6, frames=8, labels=labels)
    torch.manual_seed(5)
    model = Classifier(ClassifierConfig(**SIZES, num_classes=4, multi_label=True, head_std=1.0)).eval()
    save_model(model, tmp_path / "model.safetensors")
    rows = run(tmp_path / "model.safetensors", shards, tmp_path / "out", "--num_clips", "2", "--num_crops", "1")
    with torch.no_grad():
        expected = np.stack(
            [model(views).sigmoid().mean(0).numpy() for views in clips_of(shards, 4, range(6), num_clips=2)]
        )
    np.testing.assert_allclose(rows["scores"], expected, atol=1e-5)
    assert "hit5" not in rows
    targets = np.array([[str(c) in label.split() for c in range(4)] for label in labels]).astype(int)
    found = metrics(tmp_path / "out")
    assert found["scored"] == 6  # no label is an answer, too
    assert found["map"] == pytest.approx(mean_average_precision(expected, targets), abs=1e-6)
    assert "top1" not in found
    assert [row["samples"] for row in lines(tmp_path / "out" / "classes.csv")] == ["2", "3", "4", "0"]
    assert not (tmp_path / "out" / "confusion.csv").exists()


def test_all_processes_open_the_checkpoint_that_the_first_one_found(tmp_path: Path) -> None:
    """A run that still trains: another process already sees the next one."""
    from launch.common.clip_options import agreed_model_file

    first, following = (tmp_path / "checkpoints" / f"step-0000000{i}" / "model.safetensors" for i in (1, 2))
    for file in (first, following):
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "checkpoints" / "latest").write_text(following.parent.name)
    sent: list[Path] = []
    late = type("World", (), {"on_first": lambda self, call: sent.append(call()) or first})()
    assert agreed_model_file(str(tmp_path), late) == first
    assert sent == [following]  # which is what counts where this process is the first


def test_footage_without_any_label_is_predicted(model_file: Path, tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=3, frames=8, labels=[""] * 3)
    rows = run(model_file, shards, tmp_path / "out", "--num_clips", "1", "--num_crops", "1")
    assert None not in rows["prediction"]
    assert rows["correct"] == [None] * 3
    assert metrics(tmp_path / "out")["unlabelled"] == 3
    assert not (tmp_path / "out" / "classes.csv").exists()


def test_classes_that_the_model_has_not_learned_are_refused(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_dataset(tmp_path, samples=2, frames=8, labels=["cat", "gnu"])
    out = ("--out", str(tmp_path / "out"), "--device", "cpu")
    assert "'gnu'" in refused(capsys, "--run", str(model_file), "--data.shards", str(shards), *out)


def test_samples_of_other_classes_can_be_left_out(model_file: Path, tmp_path: Path) -> None:
    """What the refusal asks for."""
    shards = make_dataset(tmp_path, samples=3, frames=8, labels=["cat", "gnu", "dog"])
    corpus = open_corpus([shards])
    (tmp_path / "names.txt").write_text(f"{corpus.name(0)}\n{corpus.name(2)}\n")
    rows = run(model_file, shards, tmp_path / "out", "--data.select.names", str(tmp_path / "names.txt"))
    assert rows["labels"] == [[NAMES.index("cat")], [NAMES.index("dog")]]
    assert metrics(tmp_path / "out")["scored"] == 2


def test_few_of_each_class_of_several_labels_under_the_models_numbers(tmp_path: Path) -> None:
    """They are chosen under the dataset's numbers, which are fewer."""
    shards = make_dataset(tmp_path, samples=3, frames=8, labels=["cat fox", "fox cat", "cat"])
    config = ClassifierConfig(**SIZES, num_classes=len(NAMES), class_names=NAMES, multi_label=True)
    save_model(Classifier(config), tmp_path / "model.safetensors")
    rows = run(tmp_path / "model.safetensors", shards, tmp_path / "out", "--data.select.per_class", "1")
    assert {NAMES[label] for labels in rows["labels"] for label in labels} <= {"cat", "fox"}


def test_samples_too_short_for_the_trainings_drop_are_told_and_none_at_all_refused(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint := tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    shutil.copy(model_file, checkpoint)
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    (tmp_path / "run" / "config.yaml").write_text("data: {short: drop}\n")
    shards = make_dataset(tmp_path, samples=3, frames=[2, 8, 3], labels=["cat", "dog", "cat"])
    assert len(run(tmp_path / "run", shards, tmp_path / "out")["key"]) == 1
    assert "left out: 2 samples shorter than a clip" in capsys.readouterr().err
    options = ("--run", str(tmp_path / "run"), "--data.shards", str(shards), "--out", str(tmp_path / "none"))
    told = refused(capsys, *options, "--device", "cpu", "--data.sampling_rate", "20")
    assert "no sample can be used; left out: 3 samples shorter" in told
    assert "smaller --data.sampling_rate than 20" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--run": "nowhere"}, "nowhere: no such file or folder"),
        ({"--data.shards": "nowhere"}, "nowhere"),
        ({"--task": "reconstruction"}, "holds a classifier"),
        ({"--num_clips": "0"}, "num_clips=0 must be at least 1"),
        ({"--precision": "fp16"}, "fp16"),
        ({"--num-crop": "3"}, "did you mean --num_crops"),
    ],
)
def test_what_is_wrong_is_told(
    model_file: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    told: str,
) -> None:
    options = {"--run": str(model_file), "--data.shards": str(shards), "--out": str(tmp_path)} | change
    assert told in refused(capsys, *(word for option in options.items() for word in option))


def test_defaults_are_checked_without_a_command_line() -> None:
    with pytest.raises(ValueError, match="draws=0 must be at least 1"):
        EvaluateConfig(run="r", data=ClipsConfig(), out="o", draws=0)
