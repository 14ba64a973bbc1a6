"""Files that this program has not made stay as they are in and beside a run, its checkpoints and its mirror."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints import retention
from mae3d.checkpoints.mirror import Mirror, restore
from mae3d.io.files import TEMPORARY_PREFIX
from mae3d.tracking.run_dir import Run, RunError
from mae3d.tracking.trackers import TrackerError, WeightsAndBiases
from tests.support.foreign import contents, plant


def a_checkpoint(run: Path, step: int) -> Path:
    folder = checkpoint.step_folder(run, step)
    files = plant(folder, "rank-00000.safetensors", "model.safetensors", "state.json")
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    (folder / "manifest.json").write_text(json.dumps(entries))
    return folder


def test_retention_removes_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (0, 1, 2, 3, 4):
        a_checkpoint(run, step)
    kept = plant(run, "checkpoints/step-00000002/notes.txt", "checkpoints/step-00000000/notes/of/mine")
    kept |= plant(run, "checkpoints/.staged-thesis/model.safetensors", "checkpoints/step-1/manifest.json")
    kept |= plant(run, "checkpoints/step-00000001.bak/manifest.json", "checkpoints/.staged-step-00000009/notes.txt")
    (run / "checkpoints" / ".staged-step-00000008").mkdir()
    (run / "checkpoints" / "latest").write_text("step-00000004\n")
    retention.prune(run, keep_last=1, keep_every=0)
    gone = kept.keys() - contents(run).keys()
    assert {name.split("/")[1] for name in gone} == {"step-00000001", "step-00000003"}
    assert not (run / "checkpoints" / ".staged-step-00000008").exists()


@pytest.mark.parametrize(
    "foreign",
    [
        ["step-00000002/model.safetensors", "step-00000002/config.json"],  # of transformers
        ["step-00000002/model.safetensors"],  # put there by hand
        ["step-00000002/a/b"],
        [".latest.swp", ".best.swp", ".latest.notes"],  # an editor's
        [".staged-thesis/a", ".staged-step-1/a", ".tmp-mine-latest", ".tmp-host-1-best"],
    ],
)
def test_retention_neither_counts_nor_removes_what_others_put_beside_checkpoints(
    tmp_path: Path, foreign: list[str]
) -> None:
    for step in (0, 1, 3, 4):
        a_checkpoint(tmp_path, step)
    before = plant(tmp_path / "checkpoints", *foreign)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000004\n")
    retention.prune(tmp_path, keep_last=3, keep_every=0)
    after = contents(tmp_path / "checkpoints")
    assert {name.split("/")[0] for name in before.keys() - after.keys()} == {"step-00000000"}


@pytest.mark.parametrize(
    "foreign",
    [
        "step-00000001/manifest.json/notes.txt",  # a folder with the name of a checkpoint's file
        "step-00000001/manifest.json.bak",
        ".staged-step-00000001 my copy/manifest.json",
    ],
)
def test_names_that_are_nearly_a_checkpoints_stay(tmp_path: Path, foreign: str) -> None:
    for step in (2, 3):
        a_checkpoint(tmp_path, step)
    plant(checkpoint.step_folder(tmp_path, 1), "rank-00000.safetensors")
    plant(tmp_path / "checkpoints", foreign)
    before = contents(tmp_path / "checkpoints" / foreign.split("/")[0])
    (tmp_path / "checkpoints" / "latest").write_text("step-00000003\n")
    retention.prune(tmp_path, keep_last=1, keep_every=0)
    assert contents(tmp_path / "checkpoints" / foreign.split("/")[0]) == before
    assert not checkpoint.step_folder(tmp_path, 2).exists()


def test_what_is_read_stays_and_what_was_begun_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        a_checkpoint(tmp_path, step)
    checkpoint.step_folder(tmp_path, 0).mkdir()  # a save that was killed at once
    folder = tmp_path / "checkpoints"
    for pointer in ("latest", "best"):
        (folder / f"{TEMPORARY_PREFIX}1-{pointer}").write_text("")
    (folder / f"{TEMPORARY_PREFIX}1-notes").write_text("of another writer")
    (folder / "latest").write_text("step-00000003\n")
    removed: list[str] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path: (removed.append(path.name), rmtree(path)))
    retention.prune(tmp_path, keep_last=1, keep_every=0, in_use={"step-00000001"})
    left = [f"{TEMPORARY_PREFIX}1-notes", "latest", "step-00000001", "step-00000003"]
    assert sorted(path.name for path in folder.iterdir()) == left
    # Under another name first: a killed removal leaves nothing that looks like a checkpoint.
    assert [name.startswith(checkpoint.STAGED) for name in removed] == [True, True]


@pytest.mark.parametrize(("linked", "left"), [(1, [1, 3]), (3, [2, 3])])
def test_a_checkpoint_that_is_a_link_stays_and_does_not_count(tmp_path: Path, linked: int, left: list[int]) -> None:
    for step in (1, 2, 3):
        a_checkpoint(tmp_path, step)
    a_checkpoint(tmp_path, linked).rename(tmp_path / "archive")
    checkpoint.step_folder(tmp_path, linked).symlink_to(tmp_path / "archive")
    before = contents(tmp_path / "archive")
    (tmp_path / "checkpoints" / "latest").write_text("step-00000003\n")
    retention.prune(tmp_path, keep_last=1, keep_every=0)
    assert sorted((tmp_path / "checkpoints").glob("*step*")) == [
        checkpoint.step_folder(tmp_path, step) for step in left
    ]
    assert contents(tmp_path / "archive") == before


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "a/b", ""])
def test_a_checkpoint_takes_the_place_of_another_checkpoint_only(tmp_path: Path, name: str) -> None:
    final = checkpoint.step_folder(tmp_path, 2)
    before = plant(final.parent, f"{final.name}/{name}" if name else final.name)
    staging = checkpoint.staging_folder(tmp_path, 2)
    plant(staging, "manifest.json")
    with pytest.raises(FileExistsError, match=r"in the way of a checkpoint.*move it away"):
        checkpoint.put_in_place(staging, final)
    assert {file: contents(final.parent).get(file) for file in before} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/x", "heartbeats/rank-00000", "DONE", "STOPPED"])
def test_a_folder_with_the_names_of_a_run_and_no_config_is_refused(tmp_path: Path, name: str) -> None:
    before = plant(tmp_path, name)
    with pytest.raises(RunError, match=r"run\.dir"):
        Run(tmp_path).check({"run": {"dir": "x"}}, extend=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("config", ["", "a: [", "- 1", "lr: 1\nepochs: 3\n"])
def test_another_programs_config_is_never_rewritten(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(RunError, match=r"config\.yaml.*run\.dir"):
        Run(tmp_path).check({"run": {"dir": "x"}}, extend=True)
    assert (tmp_path / "config.yaml").read_text() == config


def test_a_start_removes_the_heartbeats_of_ranks_only(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.claim({"run": {}}, extend=False)
    before = plant(tmp_path, "heartbeats/notes.txt", "heartbeats/rank-list", "heartbeats/rank-00003")
    Run(tmp_path).check({"run": {}}, extend=False)
    run.claim({"run": {}}, extend=False)
    assert before.keys() - contents(tmp_path).keys() == {"heartbeats/rank-00003"}


def test_a_mirror_touches_no_place_that_is_not_its_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"run": {"dir": "x"}}))
    for name in ("metrics.jsonl", "DONE", "checkpoints/step-00000001/manifest.json"):
        before = plant(tmp_path / "there" / name.partition(".")[0], name, "thesis.tex")
        mirror = Mirror(run, f"file://{tmp_path / 'there' / name.partition('.')[0]}", keep_last=1, keep_every=0)
        mirror.push()
        mirror.finish()
        assert mirror.failures
        assert "run.remote" in caplog.text
        assert contents(tmp_path / "there" / name.partition(".")[0]) == before


def test_a_mirror_removes_superseded_checkpoints_of_its_own_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, there = tmp_path / "run", tmp_path / "there"
    Run(run).claim({"run": {"dir": "x"}}, extend=False)
    for step in (1, 2, 3):
        a_checkpoint(run, step)
    (run / "checkpoints" / "latest").write_text("step-00000003\n")
    shutil.copytree(run, there)
    a_checkpoint(there, 9)  # of a course that was left: it does not count as the last
    names = ("checkpoints/step-00000001/thesis.tex", "metrics.jsonl")  # the folder has lost its metrics
    planted = plant(there, *names)
    for step in (1, 2):
        shutil.rmtree(checkpoint.step_folder(run, step))
    mirror = Mirror(run, f"file://{there}", keep_last=1, keep_every=0)
    mirror.push()
    mirror.finish()
    assert not mirror.failures
    assert "thesis.tex stays: it is no file of a checkpoint" in caplog.text
    assert all(contents(there).get(name) == planted[name] for name in names)
    left = [1, 3, 9]
    assert sorted((there / "checkpoints").glob("step-*/manifest.json")) == [
        checkpoint.step_folder(there, step) / "manifest.json" for step in left
    ]


@pytest.mark.parametrize("config", [b"lr: 1\n", b"a: [", b"\xff", b""])
def test_a_mirror_and_a_restore_leave_another_programs_place_alone(tmp_path: Path, config: bytes) -> None:
    run, there = tmp_path / "run", tmp_path / "there"
    Run(run).claim({"run": {"dir": "x"}}, extend=False)
    plant(there, "metrics.jsonl", "DONE")
    (there / "config.yaml").write_bytes(config)
    before, mine = contents(there), contents(run)
    mirror = Mirror(run, f"file://{there}", keep_last=1, keep_every=0)
    mirror.push()
    mirror.finish()
    assert mirror.failures
    with pytest.raises(RunError, match=r"config\.yaml.*run\.remote"):
        restore(run, f"file://{there}")
    assert (contents(there), contents(run)) == (before, mine)


def test_a_restore_refuses_a_folder_of_others_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, there, config = tmp_path / "run", tmp_path / "there", {"run": {"dir": "x"}}
    Run(run).claim(config, extend=False)
    a_checkpoint(run, 1)
    (run / "checkpoints" / "latest").write_text("step-00000001\n")
    Run(run).write_metrics({"step": 1})
    shutil.copytree(run, there)
    before = plant(tmp_path / "others", "metrics.jsonl", "DONE")
    with pytest.raises(RunError, match=r"metrics\.jsonl.*run\.dir"):
        restore(tmp_path / "others", f"file://{there}")
    assert contents(tmp_path / "others") == before

    put_in_place = checkpoint.put_in_place

    def killed(staging: Path, final: Path) -> None:
        put_in_place(staging, final)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "put_in_place", killed)
    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path / "new", f"file://{there}")
    monkeypatch.undo()
    restore(tmp_path / "new", f"file://{there}")
    Run(tmp_path / "new").claim(config, extend=False)
    assert checkpoint.newest(tmp_path / "new") == checkpoint.step_folder(tmp_path / "new", 1)


def test_a_wandb_state_of_others_is_not_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=lambda prompt: True))
    plant(tmp_path, "wandb.json")
    with pytest.raises(TrackerError, match=r"wandb\.json.*move it away"):
        WeightsAndBiases(Run(tmp_path), project="p", mode="offline")
    assert (tmp_path / "wandb.json").read_bytes() == b"a thesis"
