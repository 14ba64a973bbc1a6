"""launch/finetune.py: labels and classes that fit, that do not, and those of the validation."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from launch.common.eval_set import EvalSet
from launch.training.config import FinetuneConfig, FinetuneModelConfig, ValConfig
from launch.training.finetune_eval import Validator
from mae3d.meeting import RankInfo
from mae3d.model.config import ClassifierConfig, MixConfig
from mae3d.tracking.run_dir import read_metrics
from mae3d.weights.files import load_classifier
from pipelines.config import SelectConfig
from pipelines.samples.corpus import corpus_of
from tests.support.datasets import build_named
from tests.support.evaluations import lines, metrics
from tests.support.evaluations import run as evaluated
from tests.support.finetunings import MAE_CONFIG, NAMES, STEPS, into, scored, train
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow


def test_what_cannot_be_trained_or_validated_is_refused_before_any_step(base: FinetuneConfig, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("name,label\n" + "".join(f"{name},{i % 3}\n" for i, name in enumerate(NAMES[1:])))
    other = build_named(tmp_path / "other", {"a0": "walk", "a1": "run"})
    configs = [
        into(base, tmp_path / "r", data=replace(base.data, labels=str(labels))),
        into(base, tmp_path / "r", model=FinetuneModelConfig(num_classes=2)),
        into(
            base,
            tmp_path / "r",
            model=FinetuneModelConfig(num_classes=9),
            data=replace(base.data, missing_classes="refuse"),
        ),
        into(base, tmp_path / "r", val=ValConfig()),
        into(base, tmp_path / "r", val=ValConfig(shards=str(other))),
        into(base, tmp_path / "r", train=replace(base.train, global_batch=1), data=replace(base.data, repeat_aug=1)),
    ]
    unlabelled, outside, missing, overlap, stranger, alone = run_ranks(train, configs, world=1)[0]
    assert f"1 of 10 samples do not have one label each: {NAMES[0]}, key 000000000 (0)" in unlabelled
    assert "labels are out of range for 2 classes" in outside
    assert "5 of 9 classes have no training sample: 4, 5, 6, 7, 8." in missing
    assert "validation on samples that are trained on: give --val.shards FOLDER" in overlap
    assert "the dataset's classes have names and the model's are mere numbers" in stranger
    assert "mixup and cutmix need two clips or more in a micro-batch, got 1" in alone
    assert not (tmp_path / "r").exists()


def test_scores_that_memory_cannot_hold_are_refused_before_any_step(
    base: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(base.data)
    model = ClassifierConfig(preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, num_classes=4)
    world: Any = SimpleNamespace(ranks=RankInfo(local_size=8), on_first=lambda call: call())
    samples = EvalSet(corpus, base.data, np.arange(10))
    needed = 12 * len(NAMES[10:]) * 4 * 8
    for available, refused in ((needed, nullcontext()), (needed - 1, pytest.raises(ValueError, match="validation"))):
        monkeypatch.setattr("mae3d.io.resources.available_memory", lambda available=available: available)
        with refused:
            Validator(base.val, samples, model, world, steps_per_epoch=1)


def test_fault_39_every_remedy_for_a_class_that_only_validation_has_works(base: FinetuneConfig, tmp_path: Path) -> None:
    shards = build_named(tmp_path / "train", {f"t{i}": ("walk", "run")[i % 2] for i in range(4)})
    held_out = build_named(tmp_path / "val", {"v0": "walk", "v1": "run", "v2": "swim"})
    (names := tmp_path / "names.txt").write_text("v0\nv1\n")
    (labels := tmp_path / "labels.csv").write_text("name,label\nv0,walk\nv1,run\nv2,run\n")
    val = ValConfig(shards=str(held_out), every=0)
    one = into(
        base, tmp_path / "refused", val=val, mix=MixConfig(),
        data=replace(base.data, shards=str(shards), select=SelectConfig()),
        train=replace(base.train, steps=1, global_batch=2), model=FinetuneModelConfig(),
    )  # fmt: skip
    remedies = [
        replace(into(one, tmp_path / "select"), val=replace(val, select=SelectConfig(names=str(names)))),
        replace(into(one, tmp_path / "labels"), val=replace(val, labels=str(labels))),
        replace(
            into(one, tmp_path / "classes"),
            model=FinetuneModelConfig(class_names=("walk", "run", "swim")),
        ),
    ]
    refused, *results = run_ranks(train, [one, *remedies], world=1)[0]
    assert "1 classes of the dataset are none of the model's 2: 'swim'" in refused
    for option in ("--val.select.names", "--val.labels", "--model.class_names"):
        assert option in refused
    assert results == [True] * 3


def test_more_classes_than_the_data_has_are_trained_and_scored_without_those(
    base: FinetuneConfig, tmp_path: Path
) -> None:
    shards = build_named(tmp_path / "train", {f"t{i}": ("walk", "run")[i % 2] for i in range(4)})
    held_out = build_named(tmp_path / "val", {"v0": "walk", "v1": "run", "v2": "walk"})
    (several := tmp_path / "several.csv").write_text(
        "name,labels\n" + "".join(f"{name},{i % 4} {(i + 1) % 4}\n" for i, name in enumerate(NAMES))
    )
    one = into(
        base, tmp_path / "one", val=ValConfig(shards=str(held_out), every=0), mix=MixConfig(),
        data=replace(base.data, shards=str(shards), select=SelectConfig()),
        train=replace(base.train, steps=1, global_batch=2), model=FinetuneModelConfig(num_classes=5),
    )  # fmt: skip
    many = into(
        base, tmp_path / "many", data=replace(base.data, labels=str(several)), model=FinetuneModelConfig(num_classes=6),
        val=replace(base.val, labels=str(several), every=0), train=replace(base.train, steps=1),
    )  # fmt: skip
    refused = into(one, tmp_path / "refused", data=replace(one.data, missing_classes="refuse"))
    *trained, message = run_ranks(train, [one, many, refused], world=1)[0]
    assert trained == [True, True]
    assert "3 of 5 classes have no training sample: 2, 3, 4." in message
    model = load_classifier(tmp_path / "one").config
    assert (model.num_classes, model.class_names[2:]) == (5, ("(class 2)", "(class 3)", "(class 4)"))
    assert sorted(model.class_names[:2]) == ["run", "walk"]
    assert 0 < read_metrics(tmp_path / "many")[-1]["val_map"] <= 1
    for name, data in (("one", held_out), ("many", base.data.roots[0])):
        labels = ["--data.labels", str(several)] if name == "many" else []
        columns = evaluated(tmp_path / name, Path(data), tmp_path / f"{name}-scores", *labels)
        assert {len(scores) for scores in columns["scores"]} == {5 if name == "one" else 6}
        classes = lines(tmp_path / f"{name}-scores" / "classes.csv")
        empty = [row for row in classes if row["samples"] == "0"]
        assert [row["class"] for row in empty] == {"one": ["2", "3", "4"], "many": ["4", "5"]}[name]
        assert {row["average_precision"] for row in empty} == {""}
        given = [float(row["average_precision"]) for row in classes if row["samples"] != "0"]
        assert metrics(tmp_path / f"{name}-scores")["map"] == pytest.approx(np.mean(given))


def test_several_labels_a_clip_are_scored_by_average_precision(base: FinetuneConfig, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    rows = [f"{name},{i % 4} {(i + 1) % 4}\n" if i % 2 else f"{name},{i % 4}\n" for i, name in enumerate(NAMES)]
    labels.write_text("name,labels\n" + "".join(rows))
    config = into(
        base,
        tmp_path / "run",
        data=replace(base.data, labels=str(labels)),
        val=replace(base.val, labels=str(labels), every=0),
    )
    assert run_ranks(train, [config], world=1) == [[True]]
    assert load_classifier(tmp_path / "run").config.multi_label
    (row,) = [row for row in read_metrics(tmp_path / "run") if "val_map" in row]
    assert row["step"] == STEPS
    assert 0 < row["val_map"] <= 1
    assert row["val_loss"] > 0


def test_several_labels_may_be_asked_for_where_no_sample_has_more_than_one(
    base: FinetuneConfig, tmp_path: Path
) -> None:
    """Also where some have none, and of data with classes that nothing is trained on."""
    (single := tmp_path / "single.csv").write_text(
        "name,label\n" + "".join(f"{name},{i % 3}\n" for i, name in enumerate(NAMES) if i != 1)
    )
    (further := tmp_path / "further.csv").write_text(
        "name,labels\n" + "".join(f"{name},{i % 2} {3 if i >= 10 else i % 2}\n" for i, name in enumerate(NAMES))
    )
    several, two = FinetuneModelConfig(multi_label=True), FinetuneModelConfig(multi_label=True, num_classes=2)
    brief = {"train": replace(base.train, steps=2)}
    configs = [
        into(base, tmp_path / "single", data=replace(base.data, labels=str(single)), model=several, **brief),
        into(
            base, tmp_path / "further", data=replace(base.data, labels=str(further)), model=two,
            val=replace(base.val, every=None), **brief,
        ),
    ]  # fmt: skip
    assert run_ranks(train, configs, world=1) == [[True, True]]
    assert 0 < read_metrics(tmp_path / "single")[-1]["val_map"] <= 1


def test_labels_of_a_batch_become_what_the_classifier_takes() -> None:
    from launch.finetune import fit_labels

    one, several = (ClassifierConfig.of(MAE_CONFIG, num_classes=2, multi_label=many) for many in (False, True))
    assert fit_labels(torch.tensor([1, 0]), one).tolist() == [1, 0]
    assert fit_labels(torch.tensor([1, -1, 0]), several).tolist() == [[0, 1], [0, 0], [1, 0]]
    assert fit_labels(torch.tensor([[1.0, 1, 0], [0, 0, 0]]), several).tolist() == [[1, 1], [0, 0]]


def test_validation_on_the_training_shards_has_the_labels_of_the_training(base: FinetuneConfig, tmp_path: Path) -> None:
    """Their own numbers, 0 to 3 in turn, would be taken for the file's, which are the other way round."""
    (turned := tmp_path / "turned.csv").write_text(
        "name,label\n" + "".join(f"{name},{3 - i % 4}\n" for i, name in enumerate(NAMES))
    )
    data, brief = replace(base.data, labels=str(turned)), {"train": replace(base.train, steps=1)}
    configs = [
        into(base, tmp_path / "told", data=data, val=replace(base.val, labels=str(turned)), **brief),
        into(base, tmp_path / "untold", data=data, **brief),
    ]
    assert run_ranks(train, configs, world=1) == [[True, True]]
    assert scored(tmp_path / "told") == scored(tmp_path / "untold")
