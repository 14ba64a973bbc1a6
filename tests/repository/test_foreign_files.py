"""Files that this program has not made stay as they are, whichever command or sweep meets them.

Names like the program's own are planted wherever it removes or replaces files (test_deletions.py lists the places).
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from launch.embed import EmbedConfig
from launch.export import export
from launch.inference.embedding_map import prepare_map
from launch.inference.probe_sets import refuse_other_results
from launch.inference.sharded_table import ShardedTable, TableError
from launch.preview import main as preview
from launch.visualize import _claim_folder as claim_report_folder
from mae3d.io.files import TEMPORARY_PREFIX
from mae3d.io.html import page, refuse_other_page
from mae3d.metrics import main as plot
from mae3d.tracking.run_dir import Run
from preprocess.__main__ import main
from preprocess.sources.fetched_files import process_folder
from tests.support.calls import ROOT
from tests.support.foreign import contents, plant
from tests.support.media import make_video


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
    foreign = [
        "thesis.tex",
        "plan.parquet.old",
        "index-2020.parquet",
        "shard-7.tar",
        "rows-x.arrow",
        ".tmp-x",
        "sub/shard-00000.tar",
    ]
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
    for folder in ("junk", "mixed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.mp4").write_bytes(b"no video")
    (tmp_path / "mixed" / "w.mp4").hardlink_to(tmp_path / "in" / "v.mp4")
    refused = (("absent", []), ("junk", []), ("mixed", ["--on-error", "fail"]), ("in", ["--plan-only"]))
    for videos, more in refused:
        build = ["build", "--videos", str(tmp_path / videos), "--out", str(tmp_path / "out"), "--overwrite", *more]
        assert main(build) != 0
        assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "names",
    [
        ["t.parquet"],
        ["t.parquet/x"],
        ["t.parquet.parts/part-00000.parquet"],
        ["t.parquet.parts/settings.json"],
        ["t.parquet.parts/settings.json", "t.parquet.parts/part-00000.parquet"],
        ["metrics.json"],
    ],
)
def test_a_table_is_begun_where_nothing_is_in_its_way(tmp_path: Path, names: list[str]) -> None:
    before = plant(tmp_path, *names)
    with pytest.raises(TableError, match="--out"):
        a_table(tmp_path).begin()
    assert contents(tmp_path) == before


def a_table(folder: Path) -> ShardedTable:
    return ShardedTable(folder / "t.parquet", num_rows=2, batch_size=1, settings={"a": 1}, beside=["metrics.json"])


def test_a_table_removes_its_own_shards_only(tmp_path: Path) -> None:
    table, rows = a_table(tmp_path), pa.table({"x": [1]})
    assert table.begin() == [0, 1]
    kept = plant(table.folder, "notes.txt", "part-00002.parquet", "part-1.parquet", "sub/part-00000.parquet")
    for shard in (0, 1):
        table.write(shard, [rows])
    table.merge()
    assert contents(table.folder) == {name: data for name, data in kept.items() if name != "settings.json"}
    before = plant(table.folder, "part-00000.parquet")
    assert table.begin() == []  # another program's shards beside a finished table
    assert contents(table.folder) == before
    (table.folder / "settings.json").write_text('{"a": 2, "rows": 2, "rows_at_once": 1}')  # another table's of ours
    assert table.begin() == []
    assert (table.folder / "part-00000.parquet").exists()


def test_an_export_and_a_scratch_folder_remove_nothing_that_has_almost_their_name(
    tmp_path: Path, tiny_model: Path
) -> None:
    pid, host, namespace = os.getpid(), socket.gethostname(), Path("/proc/self/ns/pid").stat().st_ino
    before = plant(
        tmp_path,
        *(f".out.{pid}.tmp/a", ".out-x/a", f"mae3d-in-{host}-{pid}/a", f"mae3d-in-{host}-1/a", "mae3d-in-notes/a"),
        *(f"mae3d-in-{host}-999999999/a", f"mae3d-in-{host}-{namespace}-notes/a"),
    )
    export(tiny_model, tmp_path / "out")
    process_folder(tmp_path, "in")
    assert {name: contents(tmp_path).get(name) for name in before} == before


def of_commands(folder: Path, shards: Path, recipe: Path) -> dict[str, tuple[Callable[[], int], list[str]]]:
    """Commands by name, and the files that they write."""
    run = folder / "run"
    Run(run).claim({"run": {"dir": "x"}, "train": {"steps": 2}}, extend=False)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    small = ["--config", str(recipe), "--data.shards", str(shards), "--batch", "1", "--num_frames", "2", "--size", "16"]
    return {
        "plot": (lambda: plot(["plot", str(run), "--out", str(folder / "curves.png")]), ["curves.png"]),
        "inspect": (
            lambda: main(["inspect", str(shards), "000000000", "--to", str(folder / "sample.png")]),
            ["sample.png"],
        ),
        "report": (
            lambda: main(["report", str(shards), "--to", str(folder / "r.html"), "--no-images"]),
            ["r.html"],
        ),
        "preview": (
            lambda: preview([str(folder / "out"), *small]),
            ["out/epoch-0-batch-000.png", "out/epoch-0-batch-000.gif"],
        ),
    }


@pytest.mark.parametrize("command", ["plot", "inspect", "report", "preview"])
def test_pictures_and_pages_replace_those_of_ours_only(
    tmp_path: Path, shards: Path, recipe: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call, files = of_commands(tmp_path, shards, recipe)[command]
    assert call() == 0
    assert call() == 0  # over its own
    for name in files:
        ours = (tmp_path / name).read_bytes()
        before = plant(tmp_path, name)
        try:
            code: Any = call()
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2
        assert f"{tmp_path / name}: not replaced" in capsys.readouterr().err
        assert contents(tmp_path) == before
        (tmp_path / name).write_bytes(ours)


@pytest.mark.parametrize("name", ["map.png", "map_places.parquet"])
def test_a_map_takes_the_place_of_a_map_only(tmp_path: Path, name: str) -> None:
    before = plant(tmp_path, name)
    with pytest.raises(ValueError, match=rf"{name}: no"):
        prepare_map(tmp_path / "map.png", table=tmp_path / "vectors.parquet")
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="--map"):
        EmbedConfig(run="r", out=str(tmp_path / "map.png"), videos=("v",), map=str(tmp_path / "x/../map.png"))


@pytest.mark.parametrize("data", [b"a thesis", b"[]", b'{"probes": 1}', None])
def test_the_results_of_probes_take_no_other_place(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "probe.json"
    path.write_bytes(data or b'{"model": "x", "probes": []}')
    with pytest.raises(ValueError, match=r"probe\.json.*--out") if data else nullcontext():
        refuse_other_results(path, names=("model", "probes"))


@pytest.mark.parametrize("name", ["index.html", "images/000000000.png"])
def test_a_folder_of_pictures_is_claimed_with_a_page(tmp_path: Path, name: str) -> None:
    before = plant(tmp_path / "a", name)
    with pytest.raises(ValueError, match=r"--out|another file"):
        claim_report_folder(tmp_path / "a")
    assert contents(tmp_path / "a") == before
    claim_report_folder(tmp_path / "b")
    plant(tmp_path / "b", "images/000000000.png")  # of a report that was interrupted
    claim_report_folder(tmp_path / "b")


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
