"""Files that this program has not made stay as they are, whichever command or sweep meets them.

Names like the program's own are planted wherever it removes or replaces files (test_deletions.py lists the places).
"""

import json
import shutil
import subprocess
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
from tests.support.calls import ROOT
from tests.support.media import make_video


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
