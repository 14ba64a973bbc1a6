"""A run behind a URL: mirrored in the background, restored where the folder is gone, faults of the store survived.

The store is a real S3-protocol server on the loopback (tests/support/s3.py), or a folder where the protocol does not
matter.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints import retention
from mae3d.checkpoints.format import CheckpointError
from mae3d.checkpoints.mirror import Mirror, complete, restore
from mae3d.io import storage
from mae3d.io.resume import ResumeRules
from mae3d.tracking.run_dir import Run, RunError, read_metrics
from mae3d.training.config import RunConfig
from mae3d.weights.files import load_model
from tests.mae3d.checkpoints.test_format import save
from tests.support.jobs import Job, wait_until
from tests.support.s3 import Server

CONFIG = {"model": {"depth": 2}, "train": {"steps": 500}, "run": {"dir": "here"}}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BACK_OFF_S", (0.01, 0.01))


@pytest.fixture
def bucket(s3: Server) -> Iterator[str]:
    """A URL in an empty bucket."""
    files = fsspec.filesystem("s3")
    files.mkdir("runs")
    yield "s3://runs/mine"
    s3.reset()
    files.rm("runs", recursive=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of the steps 100 and 200, the first of them the best."""
    return begun(tmp_path / "run", 100, 200)


def begun(folder: Path, *steps: int) -> Path:
    Run(folder).claim(CONFIG, extend=False)
    Run(folder).write_event(0, "started, 1 rank(s)")
    for step in steps:
        save(folder, step)
        Run(folder).write_metrics({"step": step, "loss": 1.0})
    (folder / "checkpoints" / "best").write_text(f"step-{steps[0]:08d}\n")
    return folder


def mirrored(run: Path, url: str, **options: Any) -> Mirror:
    """A mirror that has had the time to upload everything."""
    mirror = Mirror(run, url, **{"keep_last": 2, "keep_every": 0, **options})
    mirror.push()
    mirror.finish()
    return mirror


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_a_deleted_run_comes_back_byte_for_byte(run: Path, bucket: str, s3: Server) -> None:
    Run(run).end("STOPPED", "on request")
    mirror = mirrored(run, bucket)
    assert mirror.failures == 0
    puts = [request.path.partition("/mine/")[2] for request in s3.requests("PUT")]
    first = [f"checkpoints/step-00000200/{name}" for name in ("model.safetensors", "manifest.json")]
    assert puts.index(first[0]) < puts.index(first[1]) < puts.index("checkpoints/latest") < puts.index("STOPPED")
    # Killed after the manifest, a run goes on from that checkpoint: the lines before it must be there.
    assert max(puts.index(name) for name in ("config.yaml", "metrics.jsonl", "events.jsonl")) < puts.index(first[1])
    before = tree(run)
    shutil.rmtree(run)
    assert restore(run, bucket) == f"restored step-00000200 from {bucket}"
    assert tree(run) == before
    assert restore(run, bucket) == ""
    assert load_model(run).config.embed_dim == 12


def test_what_is_there_is_not_uploaded_again(run: Path, bucket: str, s3: Server) -> None:
    mirrored(run, bucket)
    s3.requests("PUT")
    mirrored(run, bucket)
    names = {request.path.rpartition("/")[2] for request in s3.requests("PUT")}
    assert names <= {"latest", "best", "config.yaml", "metrics.jsonl", "events.jsonl"}


@pytest.mark.slow
def test_the_url_keeps_what_the_folder_keeps_and_what_it_kept_before_a_restore(run: Path, bucket: str) -> None:
    mirror = Mirror(run, bucket, keep_last=2, keep_every=300)
    for step in (200, 300, 400, 500):
        save(run, step)
        retention.prune(run, keep_last=2, keep_every=300)
        mirror.push()
        wait_until(lambda step=step: complete(bucket)[-1:] == [f"step-{step:08d}"], 60)
    mirror.finish()
    kept = [f"step-{step:08d}" for step in (100, 300, 400, 500)]  # the best, every 300th, the last two
    assert complete(bucket) == kept
    shutil.rmtree(run)
    restore(run, bucket)
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [kept[0], kept[3]]
    save(run, 550)
    mirrored(run, bucket, keep_every=300)
    assert complete(bucket) == [*kept[:2], kept[3], "step-00000550"]


def test_stopped_goes_when_the_run_goes_on(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    Run(run).end("STOPPED", "on request")
    mirrored(run, str(there))
    assert (there / "STOPPED").exists()
    (run / "STOPPED").unlink()
    mirrored(run, str(there))
    assert not (there / "STOPPED").exists()


def test_the_newer_of_both_wins_and_a_person_has_the_last_word(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    mirrored(run, str(there))
    older = begun(tmp_path / "older", 100)
    assert restore(older, str(there)) == f"restored step-00000200 from {there}; {older} had step-00000100"
    assert tree(older / "checkpoints" / "step-00000200") == tree(run / "checkpoints" / "step-00000200")
    newer = begun(tmp_path / "newer", 100, 300)
    assert restore(newer, str(there)) == ""
    (run / "checkpoints" / "latest").write_text("step-00000100\n")
    assert restore(run, str(there)) == ""
    assert checkpoint.newest(run) == checkpoint.step_folder(run, 100)


def test_a_step_that_was_taken_again_replaces_its_checkpoint(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    mirrored(run, str(there))
    save(run, 200, seed=7)
    mirrored(run, str(there))
    assert tree(there / "checkpoints") == tree(run / "checkpoints")


def test_fault_37_errors_of_the_store_are_counted_and_tried_again_with_the_next_checkpoint(
    run: Path, bucket: str, s3: Server, caplog: pytest.LogCaptureFixture
) -> None:
    s3.fail("model.safetensors", status=503, times=2)  # two tries fail, the third does not
    mirror = Mirror(run, bucket, keep_last=2, keep_every=0)
    mirror.push()
    wait_until(lambda: len(complete(bucket)) == 2, 60)
    assert mirror.failures == 0
    assert "cannot be mirrored" not in caplog.text
    s3.fail("step-00000300/model.safetensors", status=503, times=3)
    save(run, 300)
    mirror.push()
    wait_until(lambda: mirror.failures == 1, 60)
    assert f"{bucket}: cannot be mirrored to (" in caplog.text
    assert "training goes on, the next checkpoint tries again" in caplog.text
    assert complete(bucket) == ["step-00000100", "step-00000200"]  # half a checkpoint is none
    again = run.with_name("again")
    assert restore(again, bucket).startswith("restored step-00000200")
    save(run, 400)
    mirror.push()
    mirror.finish()
    assert mirror.failures == 1
    assert complete(bucket)[-2:] == ["step-00000300", "step-00000400"]


def test_fault_32_a_damaged_checkpoint_there_is_passed_over(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, again = tmp_path / "there", tmp_path / "again"
    mirrored(run, str(there))
    for damage in ("flip", "cut", "missing", "manifest", "path"):
        victim = there / "checkpoints" / "step-00000200" / "rank-00001.safetensors"
        manifest = victim.with_name("manifest.json")
        whole = {path: path.read_bytes() for path in (victim, manifest)}
        if damage == "flip":
            victim.write_bytes(whole[victim][:-1] + bytes([whole[victim][-1] ^ 1]))
        elif damage == "cut":
            victim.write_bytes(whole[victim][:-1])
        elif damage == "missing":
            victim.unlink()
        elif damage == "manifest":
            manifest.write_text("{")
        else:
            manifest.write_text(json.dumps({"../../evil": json.loads(manifest.read_text())["state.json"]}))
        caplog.clear()
        assert restore(again, str(there)) == f"restored step-00000100 from {there}"
        assert "step-00000200" in caplog.text
        assert checkpoint.newest(again) == checkpoint.step_folder(again, 100)
        shutil.rmtree(again)
        for path, data in whole.items():
            path.write_bytes(data)
    for manifest in (there / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{")
    with pytest.raises(CheckpointError, match=r"no checkpoint behind .* is whole: .*step-00000200/manifest\.json"):
        restore(again, str(there))
    local = begun(tmp_path / "local", 50)
    assert restore(local, str(there)) == ""


def test_half_a_restore_is_no_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, again = tmp_path / "there", tmp_path / "again"
    mirrored(run, str(there))
    get, calls = storage.Storage.get, []

    def failing(self: storage.Storage, name: str, path: Path) -> None:
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        get(self, name, path)

    monkeypatch.setattr(storage.Storage, "get", failing)
    with pytest.raises(KeyboardInterrupt):
        restore(again, str(there))
    assert checkpoint.newest(again) is None
    assert restore(again, str(there)).startswith("restored step-00000200")


def test_a_restore_needs_no_listing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, again = tmp_path / "there", tmp_path / "again"
    mirrored(run, str(there))
    monkeypatch.setattr(storage.Storage, "_listed", lambda *_: {})
    assert restore(again, str(there)) == f"restored step-00000200 from {there}"
    assert tree(again / "checkpoints" / "step-00000200") == tree(run / "checkpoints" / "step-00000200")
    assert (again / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    other = begun(tmp_path / "other", 100)
    (other / "config.yaml").write_text("model: {depth: 3}\n")
    with pytest.raises(RunError, match="holds another run"):
        restore(other, str(there))


def test_fault_32_what_is_damaged_on_its_way_is_fetched_once_more(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, again = tmp_path / "there", tmp_path / "again"
    mirrored(run, str(there))
    get, calls = storage.Storage.get, []

    def damaging(self: storage.Storage, name: str, path: Path) -> None:
        get(self, name, path)
        calls.append(name)
        if len(calls) == 1:
            path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(storage.Storage, "get", damaging)
    assert restore(again, str(there)) == f"restored step-00000200 from {there}"
    assert calls[0] == calls[1]


def test_what_a_killed_start_left_of_an_old_checkpoint_goes(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    mirrored(run, str(there))
    left = there / "checkpoints" / "step-00000050"
    shutil.copytree(there / "checkpoints" / "step-00000100", left)
    (left / "manifest.json").unlink()  # killed while it removed the rest
    noted = there / "checkpoints" / "step-00000060"
    noted.mkdir()
    (noted / "note.txt").write_text("mine")
    mirrored(run, str(there))
    assert not left.exists()
    assert noted.exists()


def test_another_runs_url_is_refused_and_left_alone(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    mirrored(run, str(there))
    before = tree(there)
    other = tmp_path / "other"
    Run(other).claim({**CONFIG, "model": {"depth": 3}}, extend=False)
    for step in (300, 400, 500):
        save(other, step)
    with pytest.raises(RunError, match=r"holds another run than .*model\.depth: 2 there, 3 here"):
        restore(other, str(there))
    assert mirrored(other, str(there)).failures > 0
    assert tree(there) == before
    Run(tmp_path / "longer").claim({**CONFIG, "train": {"steps": 900}}, extend=False)
    assert restore(tmp_path / "longer", str(there), ResumeRules(length=("train.steps",))).startswith("restored")


def test_a_store_that_cannot_be_asked_stops_only_a_run_without_checkpoints(
    run: Path, bucket: str, s3: Server, tmp_path: Path
) -> None:
    s3.fail("/runs", status=403, times=20)
    told = restore(run, bucket)
    assert told.startswith(f"{bucket} cannot be asked (")
    assert told.endswith(f"going on from {run / 'checkpoints' / 'step-00000200'}")
    with pytest.raises(OSError) as raised:
        restore(tmp_path / "empty", bucket)
    assert raised.value.filename == bucket
    with pytest.raises(ValueError, match="nonsense://x"):
        restore(run, "nonsense://x")


@pytest.mark.parametrize("url", ["ftp://me:secret@host/run", "https://host/run?sig=secret"])
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ValueError, match="credentials in the environment") as refused:
        RunConfig(dir="x", remote=url)
    assert "secret" not in str(refused.value)
    RunConfig(dir="x", remote="abfs://box@account.dfs.core.windows.net/run")


@pytest.mark.slow
def test_a_run_that_is_deleted_goes_on_from_its_mirror_with_the_same_losses(
    recipe: Path, shards: Path, bucket: str, tmp_path: Path
) -> None:
    """Behind the URL it is made to look as if the machine had died after step 8."""
    run, options = tmp_path / "run", ("--run.remote", bucket, "--run.keep_every", "4")
    code, output = Job(recipe, shards, run, *options, processes=1).end()
    assert code == 0, output
    uncut = read_metrics(run)
    assert uncut[-1]["failed_mirrors"] == 0
    assert "test" not in [line.partition(": ")[2] for line in (run / "config.yaml").read_text().splitlines()]
    shutil.rmtree(run)
    files, root = fsspec.core.url_to_fs(bucket)
    files.rm([f"{root}/DONE", f"{root}/checkpoints/step-00000012", f"{root}/checkpoints/step-00000014"], recursive=True)
    files.pipe_file(f"{root}/checkpoints/latest", b"step-00000008\n")
    code, output = Job(recipe, shards, run, *options, processes=1).end()
    assert code == 0, output
    assert f"restored step-00000008 from {bucket}" in output
    assert f"resumed from {run / 'checkpoints' / 'step-00000008'}" in output
    assert [(row["step"], row["loss"]) for row in read_metrics(run)] == [(row["step"], row["loss"]) for row in uncut]
    assert complete(bucket) == [f"step-{step:08d}" for step in (4, 8, 12, 14)]
    assert files.exists(f"{root}/DONE")
