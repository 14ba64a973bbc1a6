"""launch/finetune.py: weights and labelled shards in, a validated classifier out; killed, refused, few-shot."""

import csv
import math
import shutil
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.finetune import classified_loss
from launch.training.config import FinetuneConfig, FinetuneModelConfig
from mae3d.analysis.scores import summary
from mae3d.distributed import World
from mae3d.model.config import ClassifierConfig, MixConfig
from mae3d.model.mae import MAE
from mae3d.tracking.run_dir import read_metrics
from mae3d.training.config import FinetuneOptimConfig
from mae3d.training.optim import lr_at
from mae3d.weights.files import load_classifier
from pipelines.samples.corpus import corpus_of
from pipelines.stream import evaluation_clips
from tests.support import launch
from tests.support.finetunings import MAE_CONFIG, NAMES, STEPS, into, scored, train
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def uncut(base: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uncut") / "run"
    assert run_ranks(train, [into(base, run)], world=1) == [[True]]
    return run


def as_options(config: Any, prefix: str = "") -> list[str]:
    """The command line that makes this config."""
    options = []
    for name, value in vars(config).items():
        if hasattr(value, "__dataclass_fields__"):
            options += as_options(value, f"{prefix}{name}.")
        elif isinstance(value, bool) or value is None:
            options += [f"--{prefix}{name}", {True: "true", False: "false", None: "null"}[value]]
        elif isinstance(value, tuple):
            options += [f"--{prefix}{name}", *map(str, value)] if value else []
        elif value != "":
            options += [f"--{prefix}{name}", str(value)]
    return options


def command(config: FinetuneConfig, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / "finetune.py"), *as_options(config), *more]


def test_killed_and_gone_on_with_it_is_the_uncut_run_to_the_last_bit(
    base: FinetuneConfig, uncut: Path, pretrained: Path, tmp_path: Path
) -> None:
    # The weights it starts from are gone by the time that it goes on: its checkpoints have them.
    init = shutil.copy(pretrained, tmp_path / "init.safetensors")
    config = into(base, tmp_path / "run", init=str(init))
    job = launch.Process(command(config))
    deadline = time.monotonic() + 120
    while not any(row["step"] >= 4 for row in read_metrics(tmp_path / "run")):
        assert job.poll() is None, job.output()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert not (tmp_path / "run" / "DONE").exists()
    Path(init).unlink()
    done = launch.run(command(config))
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stderr
    assert scored(tmp_path / "run") == scored(uncut)
    ours, theirs = load_classifier(tmp_path / "run").state_dict(), load_classifier(uncut).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_best_checkpoint_is_kept_and_is_the_model_that_was_validated(base: FinetuneConfig, uncut: Path) -> None:
    rows = [row for row in read_metrics(uncut) if "val_top1" in row]
    assert [row["step"] for row in rows] == [3, 6, 9]
    best = max(rows, key=lambda row: (row["val_top1"], -row["step"]))
    checkpoints = uncut / "checkpoints"
    assert (checkpoints / "best").read_text().strip() == f"step-{best['step']:08d}"
    kept = {path.name for path in checkpoints.glob("step-*")}
    assert kept == {f"step-{step:08d}" for step in (best["step"], 8, 9)}
    model = load_classifier(uncut)  # the average of the weights, which was what was validated
    corpus = corpus_of(base.data)
    rows_val = np.array([row for row in range(len(corpus)) if corpus.name(row) in NAMES[10:]])
    scores = []
    settings = {"num_frames": 4, "size": 32, "num_clips": 2, "num_crops": 3, "batch_size": 1}
    with torch.no_grad():
        for batch in evaluation_clips(corpus, replace(base.data, decode="cpu"), rows=rows_val, **settings):
            scores.append(model(batch.clips[0]).softmax(dim=1).mean(dim=0).numpy())
    expected = summary(np.stack(scores), np.array([corpus.labels_of(row)[0] for row in rows_val.tolist()]))
    assert {name: best[f"val_{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_validation_is_the_same_on_two_processes_and_so_is_training_without_drops(
    base: FinetuneConfig, tmp_path: Path
) -> None:
    """Mixing, dropout and drop path draw by process; without them fp32 losses agree to the order of sums."""
    plain = replace(
        base, mix=MixConfig(), model=FinetuneModelConfig(drop_path=0.0), train=replace(base.train, global_batch=4)
    )
    for world in (1, 2):
        assert run_ranks(train, [into(plain, tmp_path / str(world))], world=world) == [[True]] * world
    one, two = scored(tmp_path / "1"), scored(tmp_path / "2")
    assert len(one) == STEPS
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=2e-4)
    assert {row["val_top1"] for row in one if "val_top1" in row} <= {0, 0.25, 0.5, 0.75, 1}


def test_weights_come_from_init_or_from_scratch_and_fit_another_size(
    base: FinetuneConfig, pretrained: Path, tmp_path: Path
) -> None:
    scratch = {"preset": "mae_vit_tiny_patch16", "embed_dim": 24, "depth": 2, "num_heads": 2}
    resized = FinetuneModelConfig(img_size=48, num_frames=8, drop_path=0.0)
    at_zero = {
        "optim": replace(base.optim, lr=0.0, min_lr=0.0, ema=0.0, weight_decay=0.0),
        "train": replace(base.train, steps=1),
    }
    configs = [
        into(base, tmp_path / "init", **at_zero),
        into(base, tmp_path / "resized", model=resized, **at_zero),
        into(
            base,
            tmp_path / "scratch",
            init="",
            model=FinetuneModelConfig(img_size=32, num_frames=4, **scratch),
            optim=replace(base.optim, lr=None, blr=0.3, min_lr=0.0, warmup_steps=None, warmup_epochs=0.2),
        ),
        into(base, tmp_path / "neither", init=""),
        into(base, tmp_path / "both", model=FinetuneModelConfig(preset="mae_vit_base_patch16")),
    ]
    *trained, neither, both = run_ranks(train, configs, world=1)[0]
    assert trained == [True] * 3
    assert "--init RUN" in neither
    assert "model.preset=mae_vit_base_patch16 has embed_dim 768" in both
    weights = {name: load_classifier(tmp_path / name) for name in ("init", "resized", "scratch")}
    torch.manual_seed(1)
    encoder = MAE(MAE_CONFIG).encoder.state_dict()
    for name, tensor in encoder.items():
        assert torch.equal(weights["init"].encoder.state_dict()[name], tensor)
        fits = name not in ("positions.spatial", "positions.temporal")
        assert (weights["resized"].encoder.state_dict()[name].shape == tensor.shape) == fits
    assert weights["resized"].config.grid == (4, 3, 3)
    block = "blocks.0.mlp.fc1.weight"
    assert not torch.allclose(weights["scratch"].encoder.state_dict()[block], encoder[block], atol=0.01)
    # Of blr, counted for 3 samples of 2 views; the warm-up of 0.2 epochs of 3 steps is over before the second step.
    rate = partial(lr_at, lr=0.3 * 3 * 2 / 256, min_lr=0.0, warmup_steps=0.6, total_steps=STEPS)
    rates = [row["lr"] for row in read_metrics(tmp_path / "scratch")]
    assert rates == pytest.approx([rate(step) for step in range(STEPS)])
    assert rates[0] == 0


def test_the_rate_counts_repeats_and_the_losses_are_drawn_by_step_and_micro_batch(base: FinetuneConfig) -> None:
    from launch.training.schedule import make_schedule

    class Epoch:
        steps_per_epoch = 3

    config = replace(base, optim=FinetuneOptimConfig(blr=1e-3, warmup_steps=0))
    plan = make_schedule(config, Epoch(), lr_batch=[3, 2], flops_per_clip=1.0)  # type: ignore[arg-type]
    assert plan.lr(0) == pytest.approx(1e-3 * 3 * 2 / 256)

    class Place:
        rank, size = 0, 1

    class OtherPlace:
        rank, size = 1, 2

    own = ClassifierConfig.of(MAE_CONFIG, num_classes=4)
    loss_of = classified_loss(base, own, World(Place(), torch.device("cpu")))  # type: ignore[arg-type]

    class Batch:
        clips = torch.randint(0, 255, (3, 2, 4, 32, 32, 3), dtype=torch.uint8)
        labels = torch.tensor([[0, 0], [1, 3], [2, 2]])  # a view of the second is a substitute

    seen: list[torch.Tensor] = []

    def engine(clips: torch.Tensor) -> torch.Tensor:
        seen.append(clips)
        return torch.rand(6, 4)  # dropout's draws, as it were

    order = [(0, 0), (0, 1), (1, 0), (0, 0)]
    losses = [float(loss_of(engine, Batch, step=step, micro=micro)) for step, micro in order]
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3
    assert torch.equal(seen[0], seen[3])
    other = classified_loss(base, own, World(OtherPlace(), torch.device("cpu")))  # type: ignore[arg-type]
    other(engine, Batch, step=0, micro=0)
    mixed = [seen[i] for i in (0, 1, 2, 4)]  # of one batch, in two micro-batches, two steps and on two ranks
    assert all(not torch.equal(a, b) for a, b in combinations(mixed, 2))


@pytest.mark.parametrize("warmup_epochs", [0, 1 / 30, 0.05, 0.15, 0.25, 1.0, 1.37, 99.0])
def test_a_warmup_of_any_part_of_a_step_counts(base: FinetuneConfig, warmup_epochs: float) -> None:
    from launch.training.schedule import make_schedule

    class Epoch:
        steps_per_epoch = 10

    optim = FinetuneOptimConfig(lr=1.0, min_lr=0.0, warmup_epochs=warmup_epochs)
    config = replace(base, optim=optim, train=replace(base.train, steps=20))
    plan = make_schedule(config, Epoch(), lr_batch=[3], flops_per_clip=1.0)  # type: ignore[arg-type]
    warmup = min(10 * warmup_epochs, 20)  # a run may end in it
    for step in range(20):
        if step < warmup:
            assert plan.lr(step) == pytest.approx(step / warmup)
        else:
            part = (step - warmup) / (20 - warmup)
            assert plan.lr(step) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * part))


def test_few_shot_writes_one_table_and_goes_on_where_it_was(base: FinetuneConfig, tmp_path: Path) -> None:
    config = into(base, tmp_path / "run", train=replace(base.train, steps=2, global_batch=64))
    options = ["--few-shot", "1,2", "--seeds", "2"]
    done = launch.run(command(config, *options))
    assert done.returncode == 0, done.stderr
    runs = sorted(path for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert [run.name for run in runs] == [f"shots-{k:04d}-seed-{s}" for k in (1, 2) for s in (0, 1)]
    with (tmp_path / "run" / "few_shot_runs.csv").open() as file:
        listed = list(csv.DictReader(file))
    last = [read_metrics(run)[-1] for run in runs]
    assert [float(row["top1"]) for row in listed] == [row["val_top1"] for row in last]
    with (tmp_path / "run" / "few_shot.csv").open() as file:
        table = list(csv.DictReader(file))
    losses = [row["val_loss"] for row in last]
    for row, values in zip(table, (losses[:2], losses[2:]), strict=True):
        assert float(row["loss_mean"]) == pytest.approx(statistics.mean(values))
        assert float(row["loss_std"]) == pytest.approx(statistics.stdev(values))
    assert len(set(losses)) == 4
    assert f"{statistics.mean(losses[:2]):.4f}     {statistics.stdev(losses[:2]):.4f}" in done.stdout
    assert "step:    4 samples x 2 views" in done.stdout  # one a class: a batch of 64 does not fit
    shutil.rmtree(runs[-1])
    stamps = [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs[:-1]]
    again = launch.run(command(config, *options))
    assert again.returncode == 0, again.stderr
    assert [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs[:-1]] == stamps
    assert read_metrics(runs[-1])[-1]["val_loss"] == losses[-1]
