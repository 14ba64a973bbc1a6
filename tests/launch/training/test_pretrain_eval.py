"""Pretraining that is looked at: held-out loss, neighbours and pictures, which touch nothing of the training."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launch.common.clip_options import clips_config
from launch.common.eval_set import EvalSet
from launch.pretrain import pretrain
from launch.training.config import EvalConfig, PretrainConfig
from launch.training.heldout import score_samples
from launch.training.pretrain_eval import Monitor
from mae3d.analysis.features import embed
from mae3d.checkpoints.format import step_folder
from mae3d.distributed import World
from mae3d.io.random import Stream
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.model.masking import mask_noise
from mae3d.tracking.config import LogConfig
from mae3d.tracking.run_dir import Run, read_metrics
from mae3d.training.config import OptimConfig, RunConfig, TrainConfig
from mae3d.weights.files import find_model_file, load_model
from pipelines.config import DataConfig, SelectConfig
from pipelines.samples.corpus import Corpus, corpus_of
from pipelines.stream import evaluation_clips
from tests.support.damage import flip_a_bit, overwrite
from tests.support.datasets import SAMPLES
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

NAMES = [name for name, *_ in SAMPLES]
TRAINED, HELD_OUT = 8, 6
STEPS, EVERY = 8, 3


@pytest.fixture(scope="module")
def base(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("names")
    for name, chosen in (("train", NAMES[:TRAINED]), ("held", NAMES[TRAINED:])):
        (folder / name).write_text("\n".join(chosen))
    return PretrainConfig(
        model=MAEConfig(
            preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, embed_dim=24, depth=1, num_heads=2,
            decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.75,
        ),
        data=DataConfig(
            shards=str(shards), select=SelectConfig(names=str(folder / "train")), sampling_rate=1, repeat_aug=2,
            read_threads=2, prefetch=2, decode_threads=1,
        ),
        eval=EvalConfig(every=EVERY, select=SelectConfig(names=str(folder / "held")), batch=4, pictures=2),
        optim=OptimConfig(lr=1e-2, warmup_steps=1, clip_grad=1.0),
        train=TrainConfig(global_batch=4, steps=STEPS, precision="fp32"),
        run=RunConfig(checkpoint_every=100, keep_every=1),
        log=LogConfig(every=2),
        device="cpu",
    )  # fmt: skip


def into(config: PretrainConfig, run: Path, **changes: Any) -> PretrainConfig:
    return replace(config, run=replace(config.run, dir=str(run)), **changes)


def train(world: World, configs: list[PretrainConfig]) -> list[Any]:
    """Runs one after the other in this process; what refuses to start gives its message."""
    results = []
    for config in configs:
        try:
            results.append(pretrain(config, corpus_of(config.data), world))
        except ValueError as error:
            results.append(str(error))
    return results


@pytest.fixture(scope="module")
def runs(base: PretrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`watched`, `alone`, and `bf16`; and what refused to start, in one process."""
    folder = tmp_path_factory.mktemp("runs")
    never = replace(base.eval, every=0)
    bf16 = replace(base.train, precision="bf16", steps=EVERY)
    started = [
        into(base, folder / "watched"),
        into(base, folder / "alone", eval=never),
        into(base, folder / "bf16", train=bf16),
        into(base, folder / "refused", eval=EvalConfig(every=1)),
    ]
    *ended, refused = run_ranks(train, started, world=1)[0]
    assert ended == [True] * 3
    assert "evaluation on samples that are trained on: give --eval.shards FOLDER" in refused
    assert not (folder / "refused").exists()
    return folder


def test_the_training_is_bit_for_bit_the_one_that_nobody_looks_at(runs: Path) -> None:
    watched, alone = (
        [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(runs / name) if "loss" in row]
        for name in ("watched", "alone")
    )
    assert [step for step, *_ in watched] == [2, 4, 6, 8]
    assert watched == alone
    ours, theirs = (load_model(step_folder(runs / name, STEPS)).state_dict() for name in ("watched", "alone"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_evaluations_are_where_they_were_asked_for_and_the_best_is_the_lowest_loss(runs: Path) -> None:
    found = {row["step"]: row for row in read_metrics(runs / "watched") if "eval_loss" in row}
    assert list(found) == [3, 6, STEPS]
    assert "loss" not in found[3]  # between two lines
    assert "loss" in found[6]
    assert {"eval_loss", "eval_psnr", "eval_knn_top1"} <= set(found[3])
    assert not any("eval_loss" in row for row in read_metrics(runs / "alone"))
    lowest = min(found, key=lambda step: found[step]["eval_loss"])
    assert find_model_file(runs / "watched").parent == step_folder(runs / "watched", lowest)


@pytest.mark.parametrize("name", ["watched", "bf16"])
def test_the_scores_are_those_of_a_plain_loop_over_the_checkpoint(base: PretrainConfig, runs: Path, name: str) -> None:
    row = next(row for row in read_metrics(runs / name) if row["step"] == EVERY)
    model = load_model(step_folder(runs / name, EVERY))
    model.to(torch.bfloat16 if name == "bf16" else torch.float32)
    clips = clips_config(replace(base.eval, shards=base.data.shards), asdict(base.data))
    corpus = corpus_of(clips)

    def middle(names: list[str]) -> Iterator[tuple[int, torch.Tensor]]:
        rows = np.array([i for i in range(len(corpus)) if corpus.name(i) in names])
        for batch in evaluation_clips(corpus, clips, rows=rows, num_frames=4, size=32, batch_size=1):
            yield int(batch.rows[0, 0]), batch.clips[0]

    losses, hits = [], []
    with torch.no_grad():
        pool = [(corpus.labels_of(i)[0], embed(model, clip)) for i, clip in middle(NAMES[:TRAINED])]
        for position, (i, clip) in enumerate(middle(NAMES[TRAINED:])):
            noise = mask_noise(seed=Stream.EVAL, epoch=0, positions=[position], views=1, tokens=model.config.num_tokens)
            losses.append(model(clip, noise).loss.item())
            ours = embed(model, clip)
            votes = torch.zeros(4)
            for label, theirs in pool:  # fewer than k = 20: all of them vote
                votes[label] += torch.exp(torch.cosine_similarity(ours, theirs) / 0.07).item()
            hits.append(votes.argmax().item() == corpus.labels_of(i)[0])
    assert len(losses) == HELD_OUT
    assert row["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-6 if name == "watched" else 1e-2)
    if name == "watched":
        assert row["eval_knn_top1"] == pytest.approx(np.mean(hits))


def test_each_evaluation_leaves_a_picture(runs: Path) -> None:
    files = sorted(path.name for path in (runs / "watched" / "eval").iterdir())
    assert files == [f"step-{step:08d}.png" for step in (3, 6, STEPS)]
    with Image.open(runs / "watched" / "eval" / files[0]) as image:
        assert image.height > 6 * 32  # two samples, three rows each
    assert not (runs / "alone" / "eval").exists()


class Still:
    """An engine that does not train."""

    def __init__(self, model: MAE):
        self.model = model

    @contextmanager
    def evaluating(self) -> Iterator[MAE]:
        with torch.no_grad():
            yield self.model


def monitor_of(config: PretrainConfig, corpus: Corpus, rows: np.ndarray, folder: Path, world: World) -> Monitor:
    return Monitor(config.eval, EvalSet(corpus, config.data, rows), config.model, Run(folder), world)


def scores_of(world: World, config: PretrainConfig, folder: Path) -> dict[str, float]:
    torch.manual_seed(0)
    corpus = corpus_of(config.data)
    rows = np.array([i for i in range(len(corpus)) if corpus.name(i) in NAMES[:TRAINED]])
    monitor = monitor_of(config, corpus, rows, folder, world)
    return monitor.scores(Still(MAE(config.model)), 1, lambda: False)  # type: ignore[arg-type]


def one_process(rank: int = 0, size: int = 1) -> Any:
    """A World without a process group, which asks the others nothing."""
    return SimpleNamespace(
        ranks=SimpleNamespace(rank=rank, size=size, local_size=1),
        device=torch.device("cpu"),
        is_first=True,
        gather=lambda value: [value],
        share=lambda value: value,
        on_first=lambda call: call(),
    )


def test_held_out_samples_that_memory_cannot_hold_are_refused_before_any_step(
    base: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(base.data)
    rows = np.array([i for i in range(len(corpus)) if corpus.name(i) in NAMES[:TRAINED]])
    monkeypatch.setattr("mae3d.io.resources.available_memory", lambda: 20_000)
    with pytest.raises(ValueError, match=r"6 held-out samples and .* neighbours, and . pictures.* --eval\.samples"):
        monitor_of(base, corpus, rows, tmp_path, one_process())


@pytest.mark.soak
def test_two_processes_say_the_same_as_one(base: PretrainConfig, tmp_path: Path) -> None:
    alone = scores_of(one_process(), base, tmp_path)
    both = run_ranks(scores_of, base, tmp_path, world=2)
    assert both[0] == both[1] == pytest.approx(alone, rel=1e-6)


def test_each_sample_is_looked_at_once_by_one_of_three_processes_in_as_many_batches(base: PretrainConfig) -> None:
    corpus = corpus_of(base.data)
    held = EvalSet(corpus, base.data, np.arange(1, 14))
    parts: list[Any] = []
    batches = []
    for rank in (*range(3), 0):
        world, looked = one_process(rank=rank, size=3), []

        def look(batch: Any, looked: list[int] = looked) -> np.ndarray:
            looked.append(len(batch.rows))
            rows: np.ndarray = batch.rows[:, 0].numpy()
            return rows

        whole = list(parts)  # of all three, when the first looks again
        world.gather = lambda value, whole=whole: (parts.append(value), whole or [value])[1]
        rows, said = score_samples(held, look, model_config=base.model, world=world, batch=2, stopping=lambda: False)
        batches.append(looked)
    assert batches[0] == batches[1] == batches[2]
    assert rows.tolist() == said.tolist() == list(range(1, 14))


def test_a_damaged_sample_is_left_out(base: PretrainConfig, shards: Path, tmp_path: Path) -> None:
    held, damaged = (tmp_path / "held"), Path(shutil.copytree(shards, tmp_path / "damaged"))
    held.write_text("\n".join([*NAMES[TRAINED:-1]]))
    # Masks go by place: the last sample is the damaged one, so that the others keep theirs.
    without = replace(base, eval=replace(base.eval, select=SelectConfig(names=str(held))))
    corpus = corpus_of(replace(base.data, shards=str(damaged)))
    overwrite(corpus, next(i for i in range(len(corpus)) if corpus.name(i) == NAMES[-1]), flip_a_bit)
    with_damage = replace(base, eval=replace(base.eval, shards=str(damaged)))
    found = scores_of(one_process(), with_damage, tmp_path)
    assert found == pytest.approx(scores_of(one_process(), without, tmp_path), rel=1e-6)
    assert found["loss"] != pytest.approx(scores_of(one_process(), base, tmp_path)["loss"], rel=1e-6)


def test_a_picture_that_cannot_be_written_is_a_warning(
    base: PretrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "eval").write_text("a file in its place")
    with caplog.at_level(logging.WARNING):
        found = scores_of(one_process(), base, tmp_path)
    assert np.isfinite(found["loss"])
    assert "step-00000001.png cannot be written" in caplog.text


def test_nothing_of_the_training_random_state_is_drawn(base: PretrainConfig, tmp_path: Path) -> None:
    before = []
    corpus = corpus_of(base.data)
    rows = np.array([i for i in range(len(corpus)) if corpus.name(i) in NAMES[:TRAINED]])
    monitor, model = monitor_of(base, corpus, rows, tmp_path, one_process()), MAE(base.model)
    for _ in range(2):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - what others may draw from
        before.append((monitor.scores(Still(model), 1, lambda: False), torch.rand(1).item(), np.random.rand()))  # type: ignore[arg-type]  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    assert before[0] == before[1]
    assert before[0][1:] == (torch.rand(1).item(), np.random.rand())  # noqa: NPY002


def test_neighbours_need_labels_of_two_classes(base: PretrainConfig, tmp_path: Path) -> None:
    corpus = corpus_of(base.data)
    rows = np.array([i for i in range(len(corpus)) if corpus.name(i) in NAMES[:TRAINED]])

    def told(**changes: Any) -> str:
        config = replace(base, eval=replace(base.eval, **changes))
        return str(monitor_of(config, corpus, rows, tmp_path, one_process()))

    assert told() == f"every {EVERY} steps, {HELD_OUT} samples held out, kNN among {TRAINED}"
    assert told(samples=2, pool=3) == f"every {EVERY} steps, 2 samples held out, kNN among 3"
    assert told(pool=0).endswith("no kNN (eval.pool is 0)")
    labels = tmp_path / "labels.csv"
    labels.write_text("name,label\n" + "".join(f"{name},\n" for name in NAMES[:-1]) + f"{NAMES[-1]},word\n")
    assert "no kNN (" in told(labels=str(labels))
    assert told(every=0) == "never"


@pytest.mark.parametrize("wrong", [{"every": -1}, {"samples": 0}, {"batch": 0}, {"pool": -1}, {"pictures": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"eval\.{next(iter(wrong))}="):
        EvalConfig(**wrong)
