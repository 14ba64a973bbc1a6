"""The file layer of checkpoints: any layout into any other, damage found, kills at every point survived."""

import errno
import json
import os
import random
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints import retention
from mae3d.checkpoints.format import CheckpointError, Slice
from mae3d.io.files import sha256_of, sync
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.weights.files import find_model_file, load_model, save_model
from mae3d.weights.tensors import save_tensors, stream_tensors
from tests.support import launch
from tests.support.disk import Disk

KINDS = ("master", "exp_avg", "exp_avg_sq", "ema")
CONFIG = MAEConfig(
    preset="mae_vit_tiny_patch16", img_size=16, num_frames=2, patch_size=8, embed_dim=12, depth=1, num_heads=2,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.5,
)  # fmt: skip


def state_of(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    shapes = {name: p.shape for name, p in MAE(CONFIG).named_parameters()}
    return {name: {kind: torch.randn(shape.numel()) for kind in KINDS} for name, shape in shapes.items()}


def split(state: dict[str, dict[str, torch.Tensor]], world: int) -> list[list[Slice]]:
    """Each parameter's elements over the ranks at cuts that fall anywhere."""
    draw = random.Random(world)
    slices: list[list[Slice]] = [[] for _ in range(world)]
    for name, kinds in state.items():
        size = kinds["master"].numel()
        cuts = sorted([0, size, *(draw.randint(0, size) for _ in range(world - 1))])
        for rank in range(world):
            start, stop = cuts[rank], cuts[rank + 1]
            if start < stop:
                slices[rank].append(Slice(name, start, stop, {k: v[start:stop] for k, v in kinds.items()}))
    return slices


def save(run: Path, step: int, *, world: int = 2, seed: int | None = None) -> Path:
    state = state_of(step if seed is None else seed)
    for rank, slices in enumerate(split(state, world)):
        checkpoint.write_rank(checkpoint.staging_folder(run, step), rank, slices)
    shapes = {name: p.shape for name, p in MAE(CONFIG).named_parameters()}
    return checkpoint.finish(run, step, shapes=shapes, config=CONFIG, state={"step": step, "optimizer_step": step})


def test_a_file_that_another_node_sees_late_is_waited_for_and_one_that_never_comes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = threading.Timer(0.1, (tmp_path / "rank-00001.safetensors").touch)
    late.start()
    checkpoint._wait_until_seen([tmp_path / "rank-00001.safetensors"])
    late.join()
    monkeypatch.setattr(checkpoint, "SEEN_S", 0)
    with pytest.raises(FileNotFoundError, match="storage that all share"):
        checkpoint._wait_until_seen([tmp_path / "rank-00002.safetensors"])


def test_a_folder_that_cannot_be_synced_is_passed_over_and_a_disk_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(os, "fsync", fails)
    number = errno.EINVAL
    sync(tmp_path)
    with pytest.raises(OSError, match=re.escape(str(file))):
        sync(file)
    number = errno.EIO
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        sync(tmp_path)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_any_range_reads_back_whatever_the_layout(tmp_path: Path, world: int) -> None:
    folder = save(tmp_path, 7, world=world)
    reader, draw = checkpoint.SliceReader(folder), random.Random(0)
    for name, kinds in state_of(7).items():
        for kind, values in kinds.items():
            start, stop = sorted(draw.sample(range(values.numel() + 1), 2))
            assert torch.equal(reader.read(name, kind, start, stop), values[start:stop])
            assert torch.equal(reader.whole(name, kind), values)


@pytest.mark.parametrize("again", [False, True])
def test_latest_names_a_checkpoint_that_is_in_place_and_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Also when a step is saved once more, after a rollback."""
    save(tmp_path, 1)
    if again:
        save(tmp_path, 2, seed=9)
    disk, latest = Disk(monkeypatch), tmp_path / "checkpoints" / "latest"
    folder, rmtree = checkpoint.step_folder(tmp_path, 2), shutil.rmtree
    removed: list[bool] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path: (removed.append(folder.exists()), rmtree(path)))
    assert save(tmp_path, 2) == folder
    assert removed == [True] * again  # a removal takes its time: what `latest` names is in place all the while
    assert latest.read_text() == f"{folder.name}\n"
    *before, (last, _) = disk.renames
    assert (before[-1], last) == ((folder.name, True), "latest")
    assert all(was_synced for name, was_synced in disk.renames if not name.startswith("."))
    assert disk.keeps(folder)
    assert disk.keeps(latest)


def test_the_weights_are_a_model_of_their_own(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    for path in (tmp_path, folder):
        model = load_model(path)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.detach().view(-1), state_of(3)[name]["master"])


def test_files_are_the_librarys_byte_for_byte(tmp_path: Path) -> None:
    tensors = {"b|é": torch.randn(3), "a": torch.randn(2, 5), "A.weight": torch.randn(1), "none": torch.zeros(0)}
    for kept, metadata in ((tensors, {"mae3d": '{"model": "Größe"}'}), (tensors, None), ({}, None)):
        save_tensors(kept, tmp_path / "theirs", metadata=metadata)
        shapes = {name: tensor.shape for name, tensor in kept.items()}
        sha256 = stream_tensors(shapes, lambda name: tensors[name].view(-1), tmp_path / "ours", metadata=metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
        assert sha256 == sha256_of(tmp_path / "ours")
    model = load_model(save(tmp_path, 5))
    save_model(model, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == find_model_file(tmp_path).read_bytes()


def test_a_foreign_or_incomplete_layout_is_told(tmp_path: Path) -> None:
    reader = checkpoint.SliceReader(save(tmp_path, 1))
    with pytest.raises(CheckpointError, match="another model"):
        reader.whole("no.such.weight", "master")
    with pytest.raises(CheckpointError, match=r"elements .* are missing"):
        reader.read("encoder.norm.weight", "master", 0, 10_000)


def test_fault_32_a_flipped_bit_a_cut_or_a_missing_file_falls_back_to_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 10)
    for damage in ("flip", "cut", "unlink", "manifest"):
        folder = save(tmp_path, 20)
        assert checkpoint.newest(tmp_path) == folder
        victim = folder / ("manifest.json" if damage == "manifest" else "rank-00001.safetensors")
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        if damage == "unlink":
            victim.unlink()
        else:
            victim.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
        newest = checkpoint.newest(tmp_path)
        assert newest is not None
        assert newest.name == "step-00000010"


def test_a_run_without_a_whole_checkpoint_never_starts_afresh(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    (save(tmp_path, 10) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole"):
        checkpoint.newest(tmp_path)


def test_fault_34_retention_keeps_the_last_and_every_nth(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        save(tmp_path, step)
        retention.prune(tmp_path, keep_last=2, keep_every=30)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*")) == [
        "latest", "step-00000030", "step-00000060", "step-00000070",
    ]  # fmt: skip
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000070\n"


@pytest.mark.parametrize("course", ["named", "damaged"])
def test_a_run_that_went_back_keeps_the_checkpoints_of_its_new_course(tmp_path: Path, course: str) -> None:
    """Later ones of the course that it left are no reason to remove those that it goes on from."""
    for step in (100, 200, 300):
        save(tmp_path, step)
    if course == "named":
        (tmp_path / "checkpoints" / "latest").write_text("step-00000100\n")
    else:
        for step in (200, 300):
            (checkpoint.step_folder(tmp_path, step) / "state.json").write_text("{}")
    for step in (150, 160):  # stopped on request, between the steps of its checkpoints
        save(tmp_path, step)
        retention.prune(tmp_path, keep_last=2, keep_every=0)
        assert checkpoint.newest(tmp_path) == checkpoint.step_folder(tmp_path, step)
    assert not checkpoint.step_folder(tmp_path, 100).exists()
    save(tmp_path, 300)
    retention.prune(tmp_path, keep_last=2, keep_every=0)
    assert checkpoint.newest(tmp_path) == checkpoint.step_folder(tmp_path, 300)


def test_a_latest_that_is_older_than_all_checkpoints_is_told(tmp_path: Path) -> None:
    save(tmp_path, 200)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000150\n")
    with pytest.raises(CheckpointError, match=r"names 'step-00000150'.*write .* into it \(step-00000200\)"):
        checkpoint.newest(tmp_path)


def _save_for_ever(run: str) -> None:
    for step in range(1, 10_000):
        save(Path(run), step)
        retention.prune(Path(run), keep_last=2, keep_every=0)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5, pytest.param(12, marks=pytest.mark.soak)])
def test_fault_30_kills_during_saves_leave_a_whole_checkpoint_no_older_than_the_last(
    tmp_path: Path, kills: int
) -> None:
    """The child is killed at random moments; what `latest` said before must be there."""
    draw, last = random.Random(0), 0
    for _ in range(kills):
        launch.killed_after(draw.uniform(0.15, 0.5), _save_for_ever, str(tmp_path))
        newest = checkpoint.newest(tmp_path)
        if newest is None:
            continue
        step = checkpoint.read_state(newest)["step"]
        manifest = json.loads((newest / "manifest.json").read_text())
        assert sorted(manifest) == sorted(p.name for p in newest.iterdir() if p.name != "manifest.json")
        reader = checkpoint.SliceReader(newest)
        assert torch.equal(
            reader.whole("encoder.norm.weight", "master"), state_of(step)["encoder.norm.weight"]["master"]
        )
        last = max(last, step)
        retention.sweep(tmp_path)
        assert not list((tmp_path / "checkpoints").glob(".staged-*"))
    assert last > 0


def save_scored(run: Path, step: int, score: float) -> None:
    folder = save(run, step)
    state = json.loads((folder / "state.json").read_text()) | {"score": score}
    (folder / "state.json").write_text(json.dumps(state))
    retention.keep_best(run, folder, score=score)


def test_the_best_is_kept_and_opened_whatever_else_is_removed(tmp_path: Path) -> None:
    for step, score in ((1, 0.2), (2, 0.5), (3, 0.4), (4, 0.5), (5, 0.1)):
        save_scored(tmp_path, step, score)
        retention.prune(tmp_path, keep_last=2, keep_every=0)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == [f"step-{step:08d}" for step in (2, 4, 5)]
    assert find_model_file(tmp_path) == checkpoint.step_folder(tmp_path, 2) / "model.safetensors"
    retention.keep_best(tmp_path, checkpoint.step_folder(tmp_path, 2), score=0.5)  # said again after a kill
    assert find_model_file(tmp_path).parent.name == "step-00000002"


def test_a_validation_without_a_score_is_never_the_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_scored(tmp_path, 1, float("nan"))
    assert "cannot be the best" in caplog.text
    assert not (tmp_path / "checkpoints" / "best").exists()
    save_scored(tmp_path, 2, 0.3)
    save_scored(tmp_path, 3, float("nan"))
    assert find_model_file(tmp_path).parent.name == "step-00000002"


def test_a_best_that_is_damaged_is_replaced_by_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_scored(tmp_path, 1, 0.9)
    (checkpoint.step_folder(tmp_path, 1) / "state.json").write_text("{")
    save_scored(tmp_path, 2, 0.3)
    assert find_model_file(tmp_path).parent.name == "step-00000002"
    assert "the best checkpoint so far, is damaged" in caplog.text
