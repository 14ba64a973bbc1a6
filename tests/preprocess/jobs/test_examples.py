"""The examples that preprocess on many machines: run for real where that can be, held to their schema where not."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from preprocess.__main__ import main, parser
from tests.support import fake_slurm
from tests.support.builds import make_archive, tree

ROOT = Path(__file__).resolve().parents[3]
SBATCH = ROOT / "examples" / "preprocess.sbatch"
KUBERNETES = ROOT / "examples" / "preprocess-kubernetes.yaml"


def submit(folder: Path, slices: int, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the batch script on a login node of a fake SLURM."""
    return subprocess.run(
        ["bash", str(SBATCH), str(slices), str(out), *options],
        cwd=ROOT, env=fake_slurm.login(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_batch_script_builds_in_an_array_and_merges_what_one_run_would_write(tmp_path: Path) -> None:
    archive, out = make_archive(tmp_path / "frames", clips=8, size=(48, 32)), tmp_path / "out"
    options = ["--frames", str(archive), "--shard-size", "2"]
    assert main(["build", *options, "--out", str(tmp_path / "whole"), "--workers", "1"]) == 0
    done = submit(tmp_path, 2, out, *options)
    logs = {path.name: path.read_text() for path in sorted(tmp_path.glob("job-*.log"))}
    assert fake_slurm.ended(tmp_path) == ["0", "0"], (done.stderr, logs)
    assert list(logs) == ["job-1000-0.log", "job-1000-1.log", "job-1001-0.log"]
    assert "2 of 4 shards are of this slice" in logs["job-1000-1.log"]
    assert "8 samples" in logs["job-1001-0.log"]
    assert tree(out) == tree(tmp_path / "whole")


def test_the_merge_is_cancelled_where_a_slice_fails(tmp_path: Path) -> None:
    assert submit(tmp_path, 1, tmp_path / "out", "--videos", str(tmp_path / "nowhere")).returncode == 0
    assert fake_slurm.ended(tmp_path) == ["2", "cancelled"]
    assert submit(tmp_path, 1, tmp_path / "out").returncode == 0  # nothing to build from: told in the log
    assert "required" in (tmp_path / "job-1002-0.log").read_text()
    told = subprocess.run(["bash", str(SBATCH)], capture_output=True, text=True, check=False)
    assert "usage: bash preprocess.sbatch SLICES OUT" in told.stderr


def test_the_batch_script_asks_slurm_for_what_it_relies_on() -> None:
    options = fake_slurm.directives(SBATCH)
    assert {"requeue", "open-mode", "time", "nodes"} <= options.keys()
    assert (options["nodes"], options["ntasks"]) == ("1", "1")


def test_the_batch_script_passes_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(SBATCH)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def jobs() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


def test_the_pods_of_the_kubernetes_job_build_all_slices_and_one_merges_them() -> None:
    slices, merge = jobs()
    count = slices["spec"]["completions"]
    assert slices["spec"]["completionMode"] == "Indexed"
    (container,), (merging,) = (job["spec"]["template"]["spec"]["containers"] for job in (slices, merge))
    built, merged = container["args"], merging["args"]
    for index in (0, count - 1):
        arguments = [argument.replace("$(JOB_COMPLETION_INDEX)", str(index)) for argument in built]
        assert arguments[:3] == ["python", "-m", "preprocess"]
        assert parser().parse_args(arguments[3:]).slice == f"{index}/{count}"
    options = parser().parse_args(merged[3:])
    assert (options.command, options.slices) == ("merge", count)
    assert options.out == parser().parse_args(built[3:]).out
    # A policy for failed pods needs this; and merge ends with 2 until the slices are there.
    assert slices["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert merge["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
    for job in (slices, merge):
        pod = job["spec"]["template"]["spec"]
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_kubernetes_objects_fit_their_schema() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for job in jobs():
        validate.validate(job, validate.latest_version(), strict=True)
