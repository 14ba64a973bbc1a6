"""Every call that removes or replaces a file is listed here, with what proves that the file is the program's own."""

import ast
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints import retention
from mae3d.checkpoints.mirror import Mirror
from mae3d.io.files import TEMPORARY_PREFIX
from mae3d.io.html import page, refuse_other_page
from mae3d.tracking.run_dir import Run, RunError
from preprocess.__main__ import main
from tests.support.media import make_video

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "mae3d", "pipelines", "preprocess", "docker")

# Named anywhere, called or handed on: `atexit.register(shutil.rmtree, ...)`.
REMOVERS = {"unlink", "rmtree", "rmdir", "removedirs", "rename", "renames", "move", "rm", "rm_file", "remove_folder"}
WRITERS = {"truncate", "ftruncate", "write_bytes", "write_text", "replace_file", "copyfile", "copy2", "copytree"}
LIBRARIES = {
    "savefig",
    "save_file",
    "write_table",
    "ParquetWriter",
    "SummaryWriter",
    "open_memmap",
    "pipe_file",
    "put_file",
}
MODES = ("w", "a", "r+", "+")  # of open(): all but "x" replace, change or lengthen what is there

# What proves ownership ─► the functions that remove or replace files.
PROOF = {
    "a dataset's output: locked, refused if it holds other things (refuse_foreign), its plan is read first": (
        "preprocess.dataset.schema.write_shard_table",
        "preprocess.dataset.writer._adopt",
        "preprocess.dataset.writer._write_files",
        "preprocess.dataset.writer._write_meta",
        "preprocess.dataset.writer.write_dataset",
        "preprocess.encode.decoder_main.Server._write",
        "preprocess.encode.shard.build_shard",
        "preprocess.encode.tar_writer.TarWriter.abandon",
        "preprocess.jobs.output.FolderOutput.remove",
        "preprocess.jobs.output.UrlOutput.publish",
        "preprocess.jobs.output.UrlOutput.remove",
        "preprocess.plan.plan.write_plan",
    ),
    "shards that the plan of this output names, and that are not finished": (
        "preprocess.jobs.build._remove_leftovers",
    ),
    "a plan, a dataset.json or the shard's own table that is MAE3D's names each of them (dataset_files)": (
        "preprocess.jobs.build._publish_plan",
    ),
    "TEMPORARY_PREFIX, which no other program uses": (
        "mae3d.checkpoints.retention.sweep",
        "mae3d.io.files.replace_file",
        "preprocess.jobs.estimate._tried",
        "preprocess.jobs.output_state.sweep",
    ),
    "a lock's name in full, made by O_EXCL or a hard link, with its owner as MAE3D writes it": (
        "preprocess.jobs.lock.Lock.release",
        "preprocess.jobs.lock._acquire",
        "preprocess.jobs.lock._exclude",
        "preprocess.jobs.lock.hold",
        "preprocess.jobs.lock_store.FolderLockStore._now",
        "preprocess.jobs.lock_store.FolderLockStore._written",
        "preprocess.jobs.lock_store.FolderLockStore.create",
        "preprocess.jobs.lock_store.FolderLockStore.remove",
        "preprocess.jobs.lock_store.FolderLockStore.replace",
        "preprocess.jobs.lock_store.UrlLockStore.heartbeat",
        "preprocess.jobs.lock_store.UrlLockStore.remove",
    ),
    "a folder made for this process; a dead one's name has its host, namespace and process id": (
        "launch.export._made_aside",
        "launch.export.export",
        "launch.inference.probing._tokens",
        "preprocess.jobs.output.UrlOutput.work",
        "preprocess.sources.roots.Kept._fetch",
        "preprocess.sources.roots.Kept._make_room",
        "preprocess.sources.roots._process_folder",
        "preprocess.sources.roots.kept_files",
        "preprocess.sources.tar_files._Members.get",
    ),
    "no file of anybody's: memory, or /proc": (
        "launch.report.page._inlined",
        "pipelines.decoding.dali._plain_batch",
        "preprocess.encode.decoder_main.main",
        "preprocess.encode.images.encode_jpeg",
        "preprocess.inspect.report._sheet",
        "preprocess.workers.decoder._Child.__init__",
    ),
    "a mark in its head (refuse_foreign, refuse_other_page), looked for before anything is computed": (
        "launch.inference.embedding_map.draw_map",
        "launch.preview.preview",
        "launch.report.page.write_report",
        "launch.visualize._claim_folder",
        "mae3d.tracking.plots._save",
        "preprocess.inspect.filmstrip.write_filmstrip",
        "preprocess.inspect.report.write_report",
    ),
    "the ledger is not there, and train/ only beside the marker of an unfinished demo": (
        "preprocess.demo.clips.render_demo",
    ),
    "the settings in the table or beside its shards; without them no file has these names (begin)": (
        "launch.common.tables.write_csv",
        "launch.inference.classification.classify",
        "launch.inference.sharded_table.ShardedTable._remove_folder",
        "launch.inference.sharded_table.ShardedTable.begin",
        "launch.inference.sharded_table.ShardedTable.merge",
        "launch.inference.sharded_table.ShardedTable.write",
        "launch.inference.sharded_table._fill_mine",
        "launch.probe.probe",
    ),
    "a run's folder: config.yaml was compared, or written where no name of a run was (Run.claim)": (
        "launch.training.pretrain_eval.Monitor._save_picture",
        "mae3d.checkpoints.format.finish",
        "mae3d.checkpoints.mirror._fetch",
        "mae3d.checkpoints.mirror.restore",
        "mae3d.checkpoints.retention.keep_best",
        "mae3d.tracking.run_dir.Run.claim",
        "mae3d.tracking.run_dir.Run.cut_metrics",
        "mae3d.tracking.run_dir.Run.end",
        "mae3d.tracking.run_dir.Run.heartbeat",
        "mae3d.tracking.run_dir.Run.write_metrics",
        "mae3d.tracking.run_dir.Run.write_spike",
        "mae3d.tracking.trackers.TensorBoard.__init__",
        "mae3d.tracking.trackers.WeightsAndBiases._remember",
        "mae3d.training.loop.TrainingLoop.end_step",
        "mae3d.training.loop.TrainingLoop.save",
    ),
    "a checkpoint's name, no file in it but a checkpoint's, and one that only ours have (foreign)": (
        "mae3d.checkpoints.format.put_in_place",
        "mae3d.checkpoints.format.remove",
        "mae3d.checkpoints.mirror.Mirror._retain",
    ),
    "the config.yaml behind the URL is this run's, and was written before anything else (Mirror._push)": (
        "mae3d.checkpoints.mirror.Mirror._push",
        "mae3d.checkpoints.mirror.Mirror._send_checkpoint",
        "mae3d.checkpoints.mirror.Mirror._send_small",
    ),
    "the caller's: only the functions of this list call it": (
        "launch.export._save_foreign",
        "mae3d.io.contact_sheet._save_gif",
        "mae3d.io.contact_sheet.save_animation",
        "mae3d.io.files.write_text",
        "mae3d.io.storage.Storage.put.upload",
        "mae3d.io.storage.Storage.remove",
        "mae3d.io.storage.Storage.remove_folder",
        "mae3d.io.storage.Storage.write.upload",
        "mae3d.weights.tensors.save_tensors",
        "mae3d.weights.tensors.stream_tensors",
    ),
    "the cache's marker and names, a regular file of this user, and the time that only it gives (_is_ours)": (
        "pipelines.storage.cache.Cache._download",
        "pipelines.storage.cache.Cache._locked",
        "pipelines.storage.cache.Cache.discard",
        "pipelines.storage.cache.Cache.fetch",
        "pipelines.storage.cache._create_locked",
        "pipelines.storage.cache._remove_unlocked",
    ),
    "no file: tensors get other names": ("mae3d.weights.convert._renamed",),
    "beside a page with the mark, which is written before the first picture (visualize._claim_folder)": (
        "launch.report.attention._draw",
        "launch.report.attention.attention_section",
        "launch.report.neighbours._draw",
        "launch.report.reconstruction.draw",
        "launch.report.reconstruction.draw_best",
    ),
}


def is_destructive(node: ast.AST) -> bool:
    """Return whether an expression removes, replaces or changes files, as far as its names show."""
    if isinstance(node, ast.Attribute | ast.Name):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        return name in REMOVERS | WRITERS | LIBRARIES or name == "O_TRUNC"
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    receiver = getattr(getattr(node.func, "value", None), "id", "")
    if name == "open":
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        return any(set("waxr+b") >= set(mode) and any(part in mode for part in MODES) for mode in modes)
    if not isinstance(node.func, ast.Attribute):
        return False
    if name == "replace":  # a path's has one argument, a string's has two, dataclasses' has names
        return receiver == "os" or (len(node.args) == 1 and not node.keywords)
    if name in ("put", "write"):  # a storage's; a file's and a queue's have one
        return len(node.args) == 2
    if name == "copy":
        return receiver == "shutil"
    return name in ("remove", "save")


def destructive_functions() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield from _walk(ast.parse(path.read_text(encoding="utf-8")), module)


def _walk(node: ast.AST, where: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = where
        if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            inner = f"{where}.{child.name}"
        if is_destructive(child):
            yield where
        yield from _walk(child, inner)


def test_every_deletion_says_what_proves_that_the_file_is_ours() -> None:
    listed = [function for functions in PROOF.values() for function in functions]
    found = set(destructive_functions())
    assert not found - set(listed), "say in PROOF what proves that what these remove or replace is the program's own"
    assert sorted(found) == sorted(listed)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def plant(folder: Path, *names: str) -> dict[str, bytes]:
    """Make a foreign file of each name; return what the folder holds then."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a thesis")
    return contents(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["shard-000000.tar", "shard-000001.tar"],  # as webdataset's ShardWriter names them
        ["shard-00000.tar", "shard-00000.idx", "shard-00000.parquet", "index-0123456789abcdef.parquet"],
        ["plan.parquet"],
        ["dataset.json", "rejected.parquet"],
        ["plan.parquet", "thesis.tex"],
        [".tmp-notes", ".tmp-host-1-shard-00000.tar"],
    ],
)
def test_overwriting_removes_nothing_that_another_program_made(tmp_path: Path, names: list[str]) -> None:
    make_video(tmp_path / "in" / "v.mp4", 3)
    before = plant(tmp_path / "out", *names)
    for more in ([], ["--overwrite"]):
        assert main(["build", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *more]) == 2
        assert contents(tmp_path / "out") == before


def test_overwriting_leaves_what_lies_beside_a_dataset(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "v.mp4", 3)
    build = ["build", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--overwrite"]
    assert main(build) == 0
    ours = contents(tmp_path / "out").keys()
    foreign = ["thesis.tex", "index-2020.parquet", "shard-7.tar", "rows-x.arrow", ".tmp-x", "sub/shard-00000.tar"]
    plant(tmp_path / "out", *foreign)
    (tmp_path / "out" / f"{TEMPORARY_PREFIX}host-1-shard-00000.tar").touch()
    assert main([*build, "--quality", "80"]) == 0
    after = contents(tmp_path / "out")
    assert {name: after.get(name) for name in foreign} == dict.fromkeys(foreign, b"a thesis")
    assert len(after) == len(ours) + len(foreign)


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-00001.tar", "shard-00001.parquet"])
def test_overwriting_refuses_shards_that_no_plan_of_the_place_names(tmp_path: Path, name: str) -> None:
    """The new plan may name them: what would be taken for a leftover is another program's."""
    make_video(tmp_path / "in" / "v.mp4", 3)
    build = ["build", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--overwrite"]
    assert main(build) == 0
    before = plant(tmp_path / "out", name)
    assert main(build) == 2
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("left", [["shard-00000.parquet"], ["plan.parquet", "shard-00000.tar"], ["dataset.json"]])
def test_overwriting_goes_on_after_a_kill_in_the_middle_of_it(tmp_path: Path, left: list[str]) -> None:
    make_video(tmp_path / "in" / "v.mp4", 3)
    build = ["build", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--overwrite"]
    assert main(build) == 0
    whole = contents(tmp_path / "out")
    for name in whole:
        if name not in left:
            (tmp_path / "out" / name).unlink()
    assert main(build) == 0
    assert contents(tmp_path / "out") == whole


def test_overwriting_removes_nothing_before_the_new_plan_stands(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "v.mp4", 3)
    assert main(["build", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "v.mp4").write_bytes(b"no video")
    for videos, more in (("absent", []), ("junk", []), ("in", ["--plan-only"])):
        build = ["build", "--videos", str(tmp_path / videos), "--out", str(tmp_path / "out"), "--overwrite", *more]
        assert main(build) != 0
        assert contents(tmp_path / "out") == before


def a_checkpoint(run: Path, step: int) -> Path:
    folder = checkpoint.step_folder(run, step)
    plant(folder, "rank-00000.safetensors", "model.safetensors", "state.json")
    (folder / "manifest.json").write_text(json.dumps({}))
    return folder


def test_retention_removes_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2, 3, 4):
        a_checkpoint(run, step)
    kept = plant(run, "checkpoints/step-00000002/notes.txt", "checkpoints/.staged-thesis/x", "checkpoints/step-1/x")
    kept |= plant(run, "checkpoints/step-00000001.bak/x", "checkpoints/.staged-step-00000009/notes.txt")
    (run / "checkpoints" / ".staged-step-00000008").mkdir()
    (run / "checkpoints" / "latest").write_text("step-00000004\n")
    retention.prune(run, keep_last=1, keep_every=0)
    gone = kept.keys() - contents(run).keys()
    assert {name.split("/")[1] for name in gone} == {"step-00000001", "step-00000003"}
    assert not (run / "checkpoints" / ".staged-step-00000008").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/x", "heartbeats/rank-00000", "DONE", "STOPPED"])
def test_a_folder_with_the_names_of_a_run_and_no_config_is_refused(tmp_path: Path, name: str) -> None:
    before = plant(tmp_path, name)
    with pytest.raises(RunError, match=r"run\.dir"):
        Run(tmp_path).claim({"run": {"dir": "x"}}, extend=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("config", ["", "a: [", "- 1", "lr: 1\nepochs: 3\n"])
def test_another_programs_config_is_never_rewritten(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(RunError, match=r"config\.yaml.*run\.dir"):
        Run(tmp_path).claim({"run": {"dir": "x"}}, extend=True)
    assert (tmp_path / "config.yaml").read_text() == config


def test_a_start_removes_the_heartbeats_of_ranks_only(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.claim({"run": {}}, extend=False)
    before = plant(tmp_path, "heartbeats/notes.txt", "heartbeats/rank-list", "heartbeats/rank-00003")
    Run(tmp_path).claim({"run": {}}, extend=False)
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


def test_pages_replace_pages_of_ours_only(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    refuse_other_page(path)
    path.write_text(page("title", []))
    refuse_other_page(path)
    path.write_text("<html>my home page</html>")
    with pytest.raises(ValueError, match=r"index\.html.*MAE3D"):
        refuse_other_page(path)


def test_a_demo_writes_into_no_folder_that_has_a_train(tmp_path: Path) -> None:
    before = plant(tmp_path, "train/clip_0000/img_00001.jpg")
    assert main(["demo", "--out", str(tmp_path), "--clips", "1", "--frames", "2", "--size", "16"]) == 2
    assert contents(tmp_path) == before


def test_make_clean_removes_what_make_made(tmp_path: Path) -> None:
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    checkout.mkdir()
    shutil.copyfile(ROOT / "Makefile", checkout / "Makefile")
    made = ["out/demo/run/config.yaml", "out/demo/shards/plan.parquet", "site/index.html", "a/__pycache__/b.pyc"]
    plant(checkout, *made)
    kept = ["out/demo/thesis.tex", "out/demo/run2/config.yaml", "out/run/config.yaml", ".venv/a/__pycache__/b.pyc"]
    kept_there = plant(elsewhere, "build/x", "site/x", "frames/x", "run/x", "a/__pycache__/b.pyc", "out/demo/run/x")
    before = plant(checkout, *kept).keys()
    clean = ["make", "--silent", "-f", str(checkout / "Makefile"), "clean", f"DEMO={elsewhere}"]
    subprocess.run(clean, cwd=elsewhere, check=True)
    assert before - contents(checkout).keys() == set(made)
    assert contents(elsewhere) == kept_there
