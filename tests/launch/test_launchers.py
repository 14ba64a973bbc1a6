"""The same script under every launcher writes the same losses; the examples do what their comments say."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launch.common.cli import EXIT_STOPPED, EXIT_USAGE
from mae3d.tracking.run_dir import read_metrics
from tests.support import fake_slurm
from tests.support.jobs import DEEPSPEED, PORT, ROOT, STEPS, Job, Launched, arguments, losses, wait_until

EXAMPLES = ROOT / "examples"
SBATCH = EXAMPLES / "slurm.sbatch"
JOB = str(os.getpid())  # its port is made of it: another pytest on this machine has another
ENTRY = [sys.executable, str(ROOT / "docker" / "entry.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def exact(run: Path) -> list[dict[str, Any]]:
    """What may not depend on the launcher in any bit; the rest of metrics.jsonl is time."""
    return [{key: row[key] for key in ("step", "epoch", "loss", "lr", "grad_norm")} for row in read_metrics(run)]


def sbatch(folder: Path, recipe: Path, shards: Path, run: Path) -> Launched:
    """The example as two nodes of one task; the processes find each other by the first one's name, localhost."""
    command = fake_slurm.batch(folder, SBATCH, nodes=["localhost", "elsewhere"], job=JOB)
    options = [option for option in arguments(recipe, shards, run) if option not in ("--run.dir", str(run))]
    return Launched([*command, str(run), *options], run, cwd=ROOT)


def stop_in_slurm(recipe: Path, shards: Path, run: Path) -> None:
    """A start that reaches its time limit after a few steps, and asks for the next one."""
    before, taken = fake_slurm.requeued(run.parent), len(read_metrics(run))
    job = sbatch(run.parent, recipe, shards, run)
    ranks = job.wait_for_ranks(2)
    job.wait_for_step(taken + 2)
    assert len(ranks) == 2
    for rank in ranks:  # as SLURM does: to the step, not to the script
        rank.send_signal(signal.SIGUSR1)
    code, output = job.end()
    assert code in (75, 128 + signal.SIGKILL), output
    assert "SIGUSR1" in (run / "STOPPED").read_text()
    assert fake_slurm.requeued(run.parent) == [*before, JOB]


@pytest.mark.launch
def test_fault_31_begun_under_slurm_and_ended_by_torchrun_a_run_has_the_losses_of_deepspeed(
    recipe: Path, shards: Path, uncut: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stop_in_slurm(recipe, shards, run)
    code, output = Job(recipe, shards, run, launcher=[*TORCHRUN, "2"]).end()
    assert code == 0, output
    assert "resumed from" in output
    assert len(losses(run)) == STEPS
    assert exact(run) == exact(uncut)


@pytest.mark.launch
def test_deepspeed_and_its_rank_write_the_same_losses_when_nothing_is_forked(
    recipe: Path, shards: Path, uncut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything loaded that takes a second and is not used, such as torch's compiler, to which many ways lead."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    run = tmp_path / "run"
    job = Job(recipe, shards, run, "--train.steps", "2", launcher=[*DEEPSPEED, "1"], executed=True)
    code, output = job.end()
    assert code == 0, output[-5000:]
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", output, flags=re.MULTILINE))
    assert {"torch", "deepspeed.runtime.zero.stage_1_and_2", "nvidia.dali.fn"} <= loaded
    assert not loaded & {
        "torch._dynamo",
        "torch._inductor",
        "triton.language",
        "timm",
        "torchvision",
        "sympy",
        "pandas",
    }
    written, expected = read_metrics(run), losses(uncut)[:2]  # of one process, and of two
    assert [row["step"] for row in written] == [1, 2]
    assert [row["loss"] for row in written] == pytest.approx(expected, abs=1e-5)


@pytest.mark.soak
def test_fault_31_stopped_under_torchrun_and_queued_twice_by_slurm_a_run_has_the_losses_of_deepspeed(
    recipe: Path, shards: Path, uncut: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = Job(recipe, shards, run, launcher=[*ENTRY, *TORCHRUN, "2"], executed=True)
    ranks = job.wait_for_ranks(2)
    job.wait_for_step(2)
    assert len(ranks) == 2
    job.process.send_signal(signal.SIGUSR1)
    code, output = job.end()
    assert code == 1, output  # torchrun's word for every failure: scripts look for the file
    assert "SIGUSR1" in (run / "STOPPED").read_text()
    assert not any(rank.is_running() for rank in ranks)
    stop_in_slurm(recipe, shards, run)
    stop_in_slurm(recipe, shards, run)
    code, output = sbatch(tmp_path, recipe, shards, run).end()
    assert code == 0, output
    assert not (run / "STOPPED").exists()
    assert fake_slurm.requeued(tmp_path) == [JOB, JOB]
    assert exact(run) == exact(uncut)


@pytest.mark.soak
def test_fault_29_and_fault_41_ranks_that_torchrun_starts_again_take_over_and_go_on(
    recipe: Path, shards: Path, uncut: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    torchrun = [*TORCHRUN[:-1], "--max-restarts", "1", TORCHRUN[-1], "2"]
    job = Job(recipe, shards, run, launcher=torchrun, executed=True)
    first, _ = sorted(job.wait_for_ranks(2), key=lambda rank: rank.environ()["RANK"])
    wait_until((run / "checkpoints" / "latest").exists)
    first.kill()
    code, output = job.end()
    assert code == 0, output
    assert f"the lock of a dead process is taken over (training on {socket.gethostname()}, pid {first.pid}" in output
    assert "resumed from" in output
    assert exact(run) == exact(uncut)


@pytest.mark.soak
def test_every_launcher_writes_the_same_losses(recipe: Path, shards: Path, uncut: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    by_hostfile = ["--hostfile", str(tmp_path / "hosts"), "--no_ssh", "--node_rank", "0", "--master_addr", "localhost"]
    deepspeed = ["deepspeed", "--master_port", PORT]
    two = fake_slurm.srun(nodes=["localhost"], tasks_per_node=2)
    one = fake_slurm.srun(nodes=["localhost"], tasks_per_node=1)
    shell = ["env", "SLURM_NTASKS=8", "SLURM_PROCID=0", "SLURM_LOCALID=0"]  # of an allocation: no step, so alone
    launchers = {
        2: {"hostfile": [*deepspeed, *by_hostfile], "torchrun": [*TORCHRUN, "2"], "srun": two},
        1: {"python": [sys.executable], "deepspeed": [*deepspeed, "--num_gpus", "1"], "torchrun": [*TORCHRUN, "1"],
            "srun": one, "shell of an allocation": [*shell, sys.executable]},
    }  # fmt: skip
    written: dict[int, dict[str, list[dict[str, Any]]]] = {2: {"deepspeed": exact(uncut)}, 1: {}}
    for world, starts in launchers.items():
        for name, launcher in starts.items():
            run = tmp_path / f"{name}-{world}"
            code, output = Job(recipe, shards, run, launcher=launcher, executed=True).end()
            assert code == 0, output
            assert f"(processes {world} x" in output
            written[world][name] = exact(run)
        first = next(iter(written[world].values()))
        assert all(rows == first for rows in written[world].values())
    for one_process, two_processes in zip(written[1]["python"], written[2]["deepspeed"], strict=True):
        assert one_process["loss"] == pytest.approx(two_processes["loss"], abs=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_fault_31_entry_stops_the_ranks_of_deepspeed(name: str, recipe: Path, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(recipe, shards, run, launcher=[*ENTRY, *DEEPSPEED, "2"], executed=True)
    job.wait_for_step(5)
    below = psutil.Process(job.process.pid).children(recursive=True)
    job.process.send_signal(signal.Signals[name])
    code, output = job.end()
    assert code == 75, output
    assert name in (run / "STOPPED").read_text()
    assert not any(process.is_running() for process in below)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_fault_31_mae3d_launch_stops_its_ranks_and_returns_their_code(
    name: str, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = [sys.executable, "-m", "launch", "launch", "-n", "2", "--port", PORT, "pretrain"]
    job = Launched([*start, *arguments(recipe, shards, run), "--train.steps", "100000"], run, cwd=ROOT)
    job.wait_for_ranks(2)
    job.wait_for_step(3)
    job.process.send_signal(signal.Signals[name])
    code, output = job.end()
    assert code == 75, output
    assert name in (run / "STOPPED").read_text()


@pytest.mark.soak
@pytest.mark.parametrize(("launcher", "code"), [("deepspeed.launcher.launch", 1), ("torch.distributed.run", 137)])
def test_fault_29_entry_ends_the_ranks_of_a_killed_launcher(
    launcher: str, code: int, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = [*DEEPSPEED, "2"] if launcher.startswith("deepspeed") else [*TORCHRUN, "2"]
    slow = ("--train.steps", "100000", "--run.checkpoint_every", "1000")
    job = Job(recipe, shards, run, *slow, launcher=[*ENTRY, *start], executed=True)
    job.wait_for_step(5)
    below = psutil.Process(job.process.pid).children(recursive=True)
    next(process for process in below if launcher in process.cmdline()).kill()
    ended, output = job.end()
    assert ended == code, output
    assert not any(process.is_running() for process in below)
    assert "SIGTERM" in (run / "STOPPED").read_text()


@pytest.mark.launch
def test_a_failed_job_is_not_queued_again_though_an_earlier_start_was_stopped(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "STOPPED").touch()
    code, output = sbatch(tmp_path, recipe, tmp_path / "nowhere", run).end()
    assert code != 0
    assert "nowhere" in output
    assert fake_slurm.requeued(tmp_path) == []


def start_of_job(folder: Path, srun: str, *arguments: str, cwd: Path = ROOT, **variables: str) -> list[str]:
    """Run the batch script, with a shell's commands in place of srun; return its code, its words, what it requeued."""
    for name, text in (("srun", srun), ("scontrol", f'echo "$2" >> {folder}/requeued')):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", **variables}
    command = ["bash", str(SBATCH), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return [str(done.returncode), done.stderr, *fake_slurm.requeued(folder)]


def test_a_task_of_an_array_has_a_run_of_its_own_and_is_queued_again_alone(tmp_path: Path) -> None:
    stop = f'echo "$@" > {tmp_path}/command; mkdir {tmp_path}/run-3; touch {tmp_path}/run-3/STOPPED; exit 75'
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}  # the last one has the array's own id
    arguments = (f"{tmp_path}/run-%a", "--train.seed", "%a")
    assert start_of_job(tmp_path, stop, *arguments, **task) == ["75", "", "7_3"]
    command = (tmp_path / "command").read_text()
    assert command.endswith(f"python launch/pretrain.py --run.dir {tmp_path}/run-3 --train.seed 3\n")
    assert "--export=ALL" in command  # `sbatch --export=NONE` would leave srun's processes without PATH


def test_a_job_that_cannot_begin_says_why(tmp_path: Path) -> None:
    assert "submit the job from there" in start_of_job(tmp_path, "", "run", cwd=tmp_path)[1]
    code, told = start_of_job(tmp_path, "exit 138", f"{tmp_path}/run")  # 128 + SIGUSR1
    assert code == "138"
    assert "give more --time" in told


@pytest.mark.parametrize(
    ("restarts", "srun", "requeued"),
    [
        ("1", "exit 143", ["7"]),
        ("0", "exit 143", []),  # another job's run, by mistake
        ("1", "echo ours > {lock}; exit 1", []),  # taken over, and failed
        ("1", "touch -d -6min {lock}; exit 1", []),  # of a dead owner, who was not come to
        ("1", "exit 0", []),
    ],
)
def test_a_job_queues_itself_while_its_run_goes_on_at_a_lost_node(
    restarts: str, srun: str, requeued: list[str], tmp_path: Path
) -> None:
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    lock.write_text("theirs")
    done = start_of_job(tmp_path, srun.format(lock=lock), str(lock.parent), SLURM_RESTART_COUNT=restarts)
    assert done[2:] == requeued


def test_the_batch_script_asks_slurm_for_what_it_relies_on() -> None:
    options = fake_slurm.directives(SBATCH)
    assert options["signal"].startswith("USR1@")  # without B: to the processes, not to the script
    assert {"requeue", "open-mode", "time", "nodes"} <= options.keys()
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == options["gpus-per-node"]


def test_the_batch_script_passes_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(SBATCH)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def objects(name: str = "kubernetes") -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text())
    return {document["kind"]: document for document in documents}


def jobs_of(name: str) -> list[dict[str, Any]]:
    """The Jobs of an example, those within a JobSet too."""
    documents = list(yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()))
    within = [job["template"] for one in documents if one["kind"] == "JobSet" for job in one["spec"]["replicatedJobs"]]
    jobs = [one for one in documents if one["kind"] == "Job"]
    return jobs + [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "mae3d"}, **job} for job in within]


def test_the_pods_of_the_kubernetes_job_meet_and_come_back() -> None:
    service, hosts, job = (objects()[kind] for kind in ("Service", "ConfigMap", "Job"))
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    name = job["metadata"]["name"]
    slots = hosts["data"]["hosts"].split()[1::2]
    assert spec["completions"] == spec["parallelism"] == len(slots)
    assert hosts["data"]["hosts"].split()[::2] == [f"{name}-{index}" for index in range(len(slots))]
    (container,) = pod["containers"]
    assert set(slots) == {f"slots={container['resources']['limits']['nvidia.com/gpu']}"}
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--master_addr={name}-0.{pod['subdomain']}" in container["args"]


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-jobset", "preprocess-kubernetes"])
def test_the_pods_of_kubernetes_are_restricted_and_what_they_write_to_is_mounted(name: str) -> None:
    for job in jobs_of(name):
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        # The standard "restricted" of https://kubernetes.io/docs/concepts/security/pod-security-standards/
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not pod["automountServiceAccountToken"]
        assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert "/tmp" in mounts.values()


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-jobset"])
def test_a_stop_counts_as_no_failure_and_wrong_usage_is_not_tried_again(name: str) -> None:
    (job,) = jobs_of(name)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a policy for failed pods needs this
    assert spec["podReplacementPolicy"] == "Failed"
    actions = [
        (rule.get("onExitCodes", {}).get("values"), rule["action"]) for rule in spec["podFailurePolicy"]["rules"]
    ]
    assert actions == [([EXIT_STOPPED], "Ignore"), ([EXIT_USAGE], "FailJob"), (None, "Ignore")]
    assert pod["terminationGracePeriodSeconds"] >= 600
    (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["medium"] == "Memory"


def test_the_probes_tell_a_training_process_from_a_hung_one(tmp_path: Path) -> None:
    (container,) = objects()["Job"]["spec"]["template"]["spec"]["containers"]
    beats, born = tmp_path / "heartbeats", tmp_path / "hostname"

    def touch(path: Path, minutes: float) -> None:
        subprocess.run(["touch", "-d", f"-{int(60 * minutes)} seconds", str(path)], check=True)

    def passes(probe: str) -> bool:
        assert container[probe]["timeoutSeconds"] > 1  # a busy volume
        command = [
            part.replace("/runs/a", str(tmp_path)).replace("/etc/hostname", str(born))
            for part in container[probe]["exec"]["command"]
        ]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def answers(*minutes: float) -> tuple[bool, bool]:
        for rank, age in enumerate(minutes):
            touch(beats / f"rank-{rank:05d}", age)
        return passes("startupProbe"), passes("livenessProbe")

    touch(born, 1)
    assert answers() == (False, False)
    beats.mkdir()
    assert answers() == (False, False)
    assert answers(1.5, 1.2) == (False, True)  # of the start before, which has just been stopped
    assert answers(0.2, 0.1) == (True, True)
    touch(born, 60)
    assert answers(20, 20) == (True, True)
    assert answers(40, 40) == (True, False)  # hung


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-jobset", "preprocess-kubernetes"])
def test_the_kubernetes_objects_fit_their_schema(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    documents = [*yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()), *jobs_of(name)]
    for document in documents:
        if document["kind"] != "JobSet":
            validate.validate(document, validate.latest_version(), strict=True)


def test_the_jobset_has_the_fields_of_its_schema_and_the_pod_of_the_job() -> None:
    """The CRD's fields: https://github.com/kubernetes-sigs/jobset/blob/main/api/jobset/v1alpha2/jobset_types.go."""
    hosts, jobset = (objects("kubernetes-jobset")[kind] for kind in ("ConfigMap", "JobSet"))
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["metadata"]["labels"].keys() == {"kueue.x-k8s.io/queue-name"}
    spec = jobset["spec"]
    assert spec.keys() == {"network", "ttlSecondsAfterFinished", "failurePolicy", "replicatedJobs"}
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "mae3d", "publishNotReadyAddresses": True}
    policy = spec["failurePolicy"]
    assert policy.keys() == {"maxRestarts", "restartStrategy", "rules"}
    assert policy["restartStrategy"] in ("Recreate", "BlockingRecreate", "InPlaceRestart")
    (rule,) = policy["rules"]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule.pop("name"))
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (nodes,) = spec["replicatedJobs"]
    assert nodes.keys() == {"name", "replicas", "template"}
    assert nodes["replicas"] == 1
    # Pods are <set>-<job>-<index of the job>-<index of the pod>.<subdomain>.
    first = f"{jobset['metadata']['name']}-{nodes['name']}-0"
    count = nodes["template"]["spec"]["completions"]
    assert hosts["data"]["hosts"].split()[::2] == [f"{first}-{index}" for index in range(count)]
    assert nodes["template"]["spec"]["backoffLimit"] == 0
    pod, other = nodes["template"]["spec"]["template"], objects()["Job"]["spec"]["template"]
    assert other["spec"].pop("subdomain") == spec["network"]["subdomain"]
    arguments = other["spec"]["containers"][0]["args"]
    arguments[arguments.index("--master_addr=mae3d-0.mae3d")] = f"--master_addr={first}-0.mae3d"
    assert pod == other


def test_the_merge_is_tried_for_as_long_as_the_slices_may_take() -> None:
    build, merge = (job["spec"] for job in jobs_of("preprocess-kubernetes"))
    assert merge["backoffLimit"] * 300 > merge["activeDeadlineSeconds"]  # restarts wait five minutes at most
    slices = build["completions"]
    assert f"--slice=$(JOB_COMPLETION_INDEX)/{slices}" in build["template"]["spec"]["containers"][0]["args"]
    assert f"--slices={slices}" in merge["template"]["spec"]["containers"][0]["args"]
