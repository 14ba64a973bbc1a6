"""The examples for SLURM under a real one: whatever stops a job, the run goes on to the losses of the uncut one."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from mae3d.io.lock_store import STALE_S
from mae3d.meeting import RankInfo, meeting_point
from mae3d.tracking.run_dir import read_metrics
from tests.cluster.conftest import TOOLS, Seen
from tests.cluster.slurm import Slurm, slurm_cluster
from tests.launch.test_launchers import exact
from tests.support.builds import tree
from tests.support.jobs import Job, wait_until

STEPS = 40
# Many views, so that a step takes a tenth of a second: commands of SLURM have to hit it.
SLOW = ("--data.repeat_aug", "64", "--train.steps", str(STEPS), "--run.checkpoint_every", "10")
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
ONE_NODE = ("--nodes=1", "--ntasks-per-node=2")
# How a node is lost, the step that the run has come to before, and how it is brought back.
LOST = {
    "slurmd is killed": (5, Slurm.kill_slurmd, Slurm.start_slurmd),
    "everything there is": (12, Slurm.crash, Slurm.boot),
}


@dataclass(frozen=True)
class User:
    """Someone on the login node, with a checkout, shards, and the losses that a run should have."""

    slurm: Slurm
    recipe: Path
    shards: Path
    uncut: Path

    @property
    def options(self) -> list[str]:
        return ["--config", str(self.recipe), "--data.shards", str(self.shards), "--device", "cpu", *SLOW]

    def submit(self, run: Path | str, *sbatch: str, **more: str) -> str:
        """Submit the example and return the job's id."""
        return self.slurm.sbatch(*sbatch, "examples/slurm.sbatch", run, *self.options, **more)

    def submit_to_step(self, step: int, run: Path, *sbatch: str, **more: str) -> str:
        job = self.submit(run, *sbatch, **more)
        self.wait_for_step(job, run, step)
        return job

    def wait_for_step(self, job: str, run: Path, step: int) -> None:
        def is_there() -> bool:
            assert self.slurm.job(job)["JobState"] in ("PENDING", "RUNNING"), self.slurm.log(job)
            return any(row["step"] >= step for row in read_metrics(run))

        wait_until(is_there, 240)

    def ranks(self, run: Path) -> list[psutil.Process]:
        """The trainers of a run, on both nodes, by rank."""
        return sorted(processes("launch/pretrain.py", str(run)), key=lambda rank: int(rank.environ()["SLURM_PROCID"]))

    def complete(self, job: str, run: Path, *, restarts: int = 0) -> str:
        """Wait for the end, compare the losses, and return what the job has written."""
        self.slurm.wait_for(job, "COMPLETED", restarts=restarts)
        log = self.slurm.log(job)
        assert exact(run) == exact(self.uncut), log
        return log


def processes(*arguments: str) -> list[psutil.Process]:
    """What slurmstepd runs on either node with these arguments."""

    def is_it(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            parent = process.parent()
            return parent is not None and parent.name() == "slurmstepd" and {*arguments} <= {*process.cmdline()}
        return False

    return [process for process in psutil.process_iter() if is_it(process)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def user(slurm: Slurm, recipe: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> User:
    uncut = tmp_path_factory.mktemp("uncut") / "run"
    code, output = Job(recipe, shards, uncut, *SLOW, processes=2).end()
    assert code == 0, output
    return User(slurm, recipe, shards, uncut)


@pytest.fixture(autouse=True)
def a_whole_cluster(slurm: Slurm) -> Iterator[None]:
    """Cancel and bring back what a test has left, failed or not."""
    yield
    slurm.mend()


@contextmanager
def a_long_step(rank: psutil.Process) -> Iterator[None]:
    """Let a rank, and thereby all, pause in a step until a signal has come for it: SLURM may take half a minute."""
    rank.suspend()
    wait_until(lambda: rank.status() == psutil.STATUS_STOPPED, 30)  # or what follows would see it run, and resume it
    yield
    signals = (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL)
    mask = sum(1 << (number - 1) for number in signals)

    def is_signalled() -> bool:
        try:
            text = Path(f"/proc/{rank.pid}/status").read_text()
        except OSError:
            return True
        pending = [int(value, 16) for value in re.findall(r"^S\S*Pnd:\s*(\w+)", text, flags=re.MULTILINE)]
        return "T (stopped)" not in text or any(value & mask for value in pending)

    wait_until(is_signalled, 240)
    with suppress(psutil.NoSuchProcess):
        rank.resume()


def silent_for_long(lock: Path) -> None:
    """Let the owner's last sign of life lie as far back as SLURM's own time for a silent node, 300 s, would put it."""
    then = time.time() - STALE_S
    os.utime(lock, (then, then))


def resumed_at(log: str) -> str:
    """The steps at which a job's starts went on."""
    return ", ".join(re.findall(r"resumed from \S*step-0*(\d+)", log))


@pytest.mark.parametrize("shape", [TWO_NODES, ONE_NODE], ids=["two_nodes", "one_node"])
def test_the_batch_script_writes_the_losses_of_the_uncut_run(
    shape: tuple[str, ...], user: User, tmp_path: Path, seen: Seen
) -> None:
    run = tmp_path / "run of mine"
    log = user.complete(user.submit(run, *shape), run)
    assert "(processes 2 x" in log
    seen(f"{STEPS} of {STEPS} losses equal")


def test_before_the_time_limit_a_job_stops_and_queues_itself_again(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(5, run, *TWO_NODES)
    with a_long_step(user.ranks(run)[1]):
        user.slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")  # less than --signal=USR1@300 leaves
    user.slurm.wait_for(job, "PENDING", restarts=1)
    assert "SIGUSR1" in (run / "STOPPED").read_text()
    taken = read_metrics(run)[-1]["step"]
    user.slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    log = user.complete(job, run, restarts=1)
    assert resumed_at(log) == str(taken)
    seen(f"stopped by USR1 at step {taken}, queued again by itself; {STEPS} of {STEPS} losses equal")


def test_scontrol_requeue_costs_no_step(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(5, run, *ONE_NODE)
    assert user.slurm.run("scontrol", "requeue", job).returncode == 0
    log = user.complete(job, run, restarts=1)
    seen(f"SIGTERM stopped it, it went on at step {resumed_at(log)}; {STEPS} of {STEPS} losses equal")


def test_scancel_signal_term_stops_and_queues_again(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(5, run, *TWO_NODES)
    assert user.slurm.run("scancel", "--signal=TERM", job).returncode == 0
    log = user.complete(job, run, restarts=1)
    seen(f"went on at step {resumed_at(log)}; {STEPS} of {STEPS} losses equal")


def test_scancel_ends_a_run_after_a_checkpoint_and_the_same_command_goes_on(
    user: User, tmp_path: Path, seen: Seen
) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(5, run, *TWO_NODES)
    assert user.slurm.run("scancel", job).returncode == 0
    user.slurm.wait_for(job, "CANCELLED", restarts=0)
    assert "SIGTERM" in (run / "STOPPED").read_text()
    log = user.complete(user.submit(run, *ONE_NODE), run)
    seen(f"cancelled, not queued again; the second job went on at step {resumed_at(log)}; losses equal")


def test_at_the_time_limit_itself_a_run_saves_and_the_same_command_goes_on(
    user: User, tmp_path: Path, seen: Seen
) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(5, run, *TWO_NODES, "--signal=CONT@1")  # no notice
    with a_long_step(user.ranks(run)[0]):
        assert user.slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now").returncode == 0
    user.slurm.wait_for(job, "TIMEOUT", restarts=0)
    assert "SIGTERM" in (run / "STOPPED").read_text()
    log = user.complete(user.submit(run, *TWO_NODES), run)
    seen(f"TIMEOUT; SIGTERM saved it; the second job went on at step {resumed_at(log)}; losses equal")


def test_a_notice_that_is_longer_than_the_time_limit_is_named(user: User, tmp_path: Path, seen: Seen) -> None:
    job = user.submit(tmp_path / "run", *ONE_NODE, "--time=00:05:00")
    wait_until(lambda: bool(user.ranks(tmp_path / "run")), 240)
    with a_long_step(user.ranks(tmp_path / "run")[0]):  # it still imports
        pass
    user.slurm.wait_for(job, "FAILED")
    log = user.slurm.log(job)
    assert "SIGUSR1 came before training had begun" in log
    seen(log.splitlines()[-1])


def test_a_preempted_run_gives_way_and_goes_on(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(5, run, *TWO_NODES, "--exclusive")
    urgent = user.slurm.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    user.slurm.wait_for(urgent, "COMPLETED")
    assert "SIGTERM" in (run / "STOPPED").read_text()
    log = user.complete(job, run, restarts=1)
    seen(f"SIGTERM stopped it, the urgent job ran, it went on at step {resumed_at(log)}; losses equal")


def test_a_file_stop_ends_a_job_for_good(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(3, run, *ONE_NODE)
    (run / "STOP").touch()
    code = user.slurm.wait_for(job, "FAILED", restarts=0)["ExitCode"]
    assert (run / "STOPPED").exists()
    seen(f"FAILED with {code}, not queued again")


@pytest.mark.parametrize("how", LOST)
def test_a_node_that_is_lost_costs_no_step(how: str, user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    step, lose, bring_back = LOST[how]
    job = user.submit_to_step(step, run, *TWO_NODES)
    user.ranks(run)[0].suspend()  # a step that is longer than SlurmdTimeout
    lose(user.slurm, "node-b")
    user.slurm.wait_for(job, "PENDING", restarts=1)
    bring_back(user.slurm, "node-b")
    log = user.complete(job, run, restarts=1)
    seen(f"node-b was DOWN, the job queued again, went on at step {resumed_at(log)}; losses equal")


def test_a_run_that_outlives_its_slurmd_is_waited_for(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    with user.slurm.drained("node-a"):
        job = user.submit_to_step(5, run, *ONE_NODE)
        left = user.ranks(run)
        left[1].suspend()  # a long step; the first rank keeps the lock
        user.slurm.kill_slurmd("node-b")
        user.slurm.wait_for(job, "PENDING", restarts=1)
    user.slurm.wait_for(job, "PENDING", restarts=2)
    assert "in use by training on node-b" in user.slurm.log(job)
    assert all(rank.is_running() for rank in left)
    user.slurm.start_slurmd("node-b")
    wait_until(lambda: not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in left), 240)
    silent_for_long(run / ".lock")
    user.slurm.wait_for(job, "COMPLETED")
    assert exact(run) == exact(user.uncut)
    starts = int(user.slurm.job(job)["Restarts"])
    seen(f"refused while node-b trained, queued again {starts} times; slurmd came back, ended it; losses equal")


def test_the_lock_of_a_node_that_crashed_is_waited_for_on_another(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    with user.slurm.drained("node-a"):
        job = user.submit_to_step(12, run, *ONE_NODE)
        user.slurm.crash("node-b")
        user.slurm.wait_for(job, "PENDING", restarts=1)
    user.slurm.wait_for(job, "RUNNING", restarts=1)
    wait_until(lambda: "waiting for the next one" in user.slurm.log(job), 240)
    silent_for_long(run / ".lock")
    log = user.complete(job, run, restarts=1)
    seen(f"waited for the lock of node-b, went on at step {resumed_at(log)}; losses equal")


def test_a_pulled_cable_costs_no_step(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(12, run, *TWO_NODES)
    user.slurm.nodes["node-b"].host.plug("down")
    user.slurm.wait_for(job, "PENDING", restarts=1)
    user.slurm.nodes["node-b"].host.plug("up")
    log = user.complete(job, run, restarts=1)
    seen(f"node-b was DOWN, the job queued again, went on at step {resumed_at(log)}; losses equal")


def test_two_runs_share_a_node(user: User, tmp_path: Path, seen: Seen) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    jobs = [user.submit(run, *ONE_NODE, "--nodelist=node-b", "--gpus-per-node=2") for run in runs]
    for run in runs:
        wait_until(lambda run=run: bool(read_metrics(run)), 240)
    assert [user.slurm.job(job)["JobState"] for job in jobs] == ["RUNNING", "RUNNING"]
    for job, run in zip(jobs, runs, strict=True):
        user.complete(job, run)
    seen("both at work at once; losses of each equal")


def test_a_second_job_for_a_run_is_refused_by_name(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    job = user.submit_to_step(1, run, *ONE_NODE, "--nodelist=node-a", "--gpus-per-node=2")
    (_, other) = user.ranks(run)
    other.suspend()  # a long step; the first rank keeps the lock
    second = user.submit(run, *ONE_NODE, "--nodelist=node-b", "--gpus-per-node=2")
    known = user.slurm.wait_for(second, "FAILED", restarts=0)
    assert "in use by training on node-a" in user.slurm.log(second)
    other.resume()
    user.complete(job, run)
    seen(f"FAILED with {known['ExitCode']}, names node-a and the pid there; losses of the first equal")


def test_an_array_is_a_run_each_and_queues_only_the_task_that_stopped(user: User, tmp_path: Path, seen: Seen) -> None:
    array = user.submit(f"{tmp_path}/run-%a", "--array=0-1", *ONE_NODE, "--gpus-per-node=2")
    runs = [tmp_path / f"run-{task}" for task in range(2)]
    for run in runs:
        wait_until(lambda run=run: len(read_metrics(run)) > 2, 240)
    last = next(task for task in range(2) if user.slurm.job(f"{array}_{task}")["JobId"] == array)
    user.slurm.run("scancel", "--signal=USR1", f"{array}_{last}")
    for task, run in enumerate(runs):
        user.complete(f"{array}_{task}", run, restarts=int(task == last))
    seen(f"task {last}, which has the array's id, stopped and was queued again alone; losses of both equal")


def test_srun_inside_salloc_trains_and_a_plain_python_there_is_one_process(
    user: User, tmp_path: Path, seen: Seen
) -> None:
    python = user.slurm.checkout / ".venv" / "bin" / "python"
    salloc = ("salloc", *TWO_NODES, "--cpus-per-task=2", "bash", "-c")
    command = [*user.options, "--run.dir", tmp_path / "run"]
    done = user.slurm.run(*salloc, 'srun "$@"', "-", python, "launch/pretrain.py", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert exact(tmp_path / "run") == exact(user.uncut)
    command = [*user.options, "--run.dir", tmp_path / "alone", "--train.steps", "2"]
    done = user.slurm.run(*salloc, '"$@"', "-", python, "launch/pretrain.py", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(processes 1 x" in done.stdout
    seen("srun: losses equal; plain python: 1 process")


def test_steps_of_one_job_at_once_meet_at_ports_of_their_own(user: User, tmp_path: Path, seen: Seen) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    python = user.slurm.checkout / ".venv" / "bin" / "python"
    both = 'for run in "$1" "$2"; do srun --overlap "${@:3}" --run.dir "$run" & done; wait'
    train = [python, "launch/pretrain.py", *user.options]
    done = user.slurm.run("salloc", *TWO_NODES, "bash", "-c", both, "-", *runs, *train)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [exact(run) for run in runs] == [exact(user.uncut)] * 2, done.stdout + done.stderr
    seen("two steps with --overlap: losses of each equal")


def test_a_job_starts_without_the_environment_of_its_submission(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    job = user.submit(run, *ONE_NODE, "--export=NONE")
    user.slurm.wait_for(job, "COMPLETED")
    losses = [row["loss"] for row in exact(run)]  # OMP_NUM_THREADS is not there, either
    assert losses == pytest.approx([row["loss"] for row in exact(user.uncut)], abs=1e-5)
    seen(f"--export=NONE: {STEPS} of {STEPS} losses within 1e-5")


def test_an_active_environment_serves_where_the_checkout_has_none(user: User, tmp_path: Path, seen: Seen) -> None:
    checkout = tmp_path / "another checkout"
    checkout.mkdir()
    for path in user.slurm.checkout.iterdir():
        if path.is_symlink() and path.name != ".venv":
            (checkout / path.name).symlink_to(path.resolve())
    run = tmp_path / "run"
    active = f"{user.slurm.checkout}/.venv/bin:{user.slurm.env['PATH']}"
    pmi = {"SLURM_MPI_TYPE": "pmi2"}  # as where slurm.conf has MpiDefault=pmi2
    user.complete(user.submit(run, *TWO_NODES, cwd=checkout, PATH=active, **pmi), run)
    assert list(checkout.glob("mae3d-*.log"))
    seen("no .venv, PATH as conda leaves it, blanks in the checkout's path, srun --mpi=pmi2; losses equal")


def test_a_job_from_another_folder_says_where_to_submit_it(user: User, tmp_path: Path, seen: Seen) -> None:
    example = user.slurm.checkout / "examples" / "slurm.sbatch"
    job = user.slurm.sbatch(*ONE_NODE, example, tmp_path / "run", cwd=tmp_path)
    assert user.slurm.wait_for(job, "FAILED")["ExitCode"] == "2:0"
    log = user.slurm.log(job)
    assert f"{tmp_path} is not the checkout" in log
    seen(log.strip())


def test_the_first_of_a_list_of_hosts_is_the_one_that_slurm_names(slurm: Slurm, seen: Seen) -> None:
    lists = ("gpu01,gpu02,gpu10", "rack3n1,rack3n2,rack4n1", "n1-ib,n2-ib,n10-ib", "a-1.b.c,a-2.b.c", "node-a,node-b")
    lists += ("login1,gpu07,gpu08", "gpu7", "n000,n001")
    ranks = RankInfo(rank=1, size=4, local_rank=0, local_size=1)
    written = []
    for names in lists:
        short = slurm.run("scontrol", "show", "hostlist", names).stdout.strip()
        first = slurm.run("scontrol", "show", "hostnames", short).stdout.split()[0]
        step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": short}
        assert meeting_point(step, ranks)[0] == first, short
        written.append(short)
    seen(", ".join(written))


def build(user: User, out: Path, archive: Path, slices: int = 2) -> tuple[str, str]:
    """Run the example for preprocessing on the login node; return the ids of the array and of the merge."""
    options = ["--frames", archive, "--shard-size", "5", "--workers", "1"]
    done = user.slurm.run("bash", "examples/preprocess.sbatch", str(slices), out, *options)
    assert done.returncode == 0, done.stderr
    merge = re.findall(r"Submitted batch job (\d+)", done.stdout)[0]
    array = re.findall(r"afterok:(\d+)", user.slurm.job(merge)["Dependency"])[0]
    return array, merge


def test_an_array_preprocesses_and_a_dependent_job_merges(
    user: User, archive: Path, whole: dict[str, str], tmp_path: Path, seen: Seen
) -> None:
    out = tmp_path / "sh ards"
    _, merge = build(user, out, archive)
    user.slurm.wait_for(merge, "COMPLETED")
    assert tree(out) == whole
    seen(f"{len(whole)} of {len(whole)} files are those of one build, byte for byte")


def test_a_task_that_is_killed_cancels_the_merge_and_the_same_command_finishes(
    user: User, archive: Path, whole: dict[str, str], tmp_path: Path, seen: Seen
) -> None:
    out = tmp_path / "shards"
    array, merge = build(user, out, archive)
    wait_until(lambda: bool(processes("--slice", "1/2", str(out))), 240)
    processes("--slice", "1/2", str(out))[0].kill()  # as the kernel does when memory runs out
    user.slurm.wait_for(f"{array}_1", "FAILED")
    user.slurm.wait_for(merge, "CANCELLED")
    _, merge = build(user, out, archive)
    user.slurm.wait_for(merge, "COMPLETED")
    assert tree(out) == whole
    seen(f"merge CANCELLED; after the same command again all {len(whole)} files are those of one build")


def test_a_slice_whose_node_crashes_is_built_by_the_requeued_task(
    user: User, archive: Path, whole: dict[str, str], tmp_path: Path, seen: Seen
) -> None:
    out = tmp_path / "shards"
    with user.slurm.drained("node-a"):
        array, merge = build(user, out, archive, slices=1)
        wait_until(lambda: bool(list(out.glob(".lock.slice-*"))), 240)
        user.slurm.crash("node-b")
        user.slurm.wait_for(f"{array}_0", "PENDING", restarts=1)
    wait_until(lambda: "waiting for it" in user.slurm.log(f"{array}_0"), 240)
    for lock in out.glob(".lock*"):  # of the slice, and of the plan
        silent_for_long(lock)
    user.slurm.wait_for(merge, "COMPLETED")
    assert tree(out) == whole
    seen("the task waited for the lock of node-b; then the merge ran; files are those of one build")


def test_submitit_submits_and_queues_again_what_stops(user: User, tmp_path: Path, seen: Seen) -> None:
    run = tmp_path / "run"
    python = user.slurm.checkout / ".venv" / "bin" / "python"
    example = ["examples/submitit_pretrain.py", "--nodes", "2", "--gpus", "1", "--cpus", "1", "--run.dir", run]
    done = user.slurm.run(python, *example, *user.options, PYTHONPATH=str(TOOLS))
    assert done.returncode == 0, done.stderr
    job = re.findall(r"job (\d+):", done.stdout)[0]
    user.wait_for_step(job, run, 5)
    user.slurm.run("scancel", "--signal=USR1", job)
    user.complete(job, run, restarts=1)
    seen(f"stopped by USR1, queued again, {STEPS} of {STEPS} losses equal")


def test_with_accounting_a_job_stops_is_queued_again_and_is_counted(
    user: User, archive: Path, whole: dict[str, str], tmp_path: Path, seen: Seen
) -> None:
    run, out = tmp_path / "run", tmp_path / "shards"
    (tmp_path / "slurm").mkdir()
    with slurm_cluster(tmp_path / "slurm", accounting=True) as slurm:
        accounted = replace(user, slurm=slurm)
        job = accounted.submit_to_step(5, run, *TWO_NODES)
        slurm.run("scancel", "--signal=USR1", job)
        accounted.complete(job, run, restarts=1)
        _, merge = build(accounted, out, archive)
        slurm.wait_for(merge, "COMPLETED")
        assert tree(out) == whole
        table = ("sacct", "--noheader", "--parsable2", "--duplicates", "--allocations", "--format=JobID,State,ExitCode")
        wait_until(lambda: "|COMPLETED" in slurm.run(*table, f"--jobs={merge}").stdout, 60)
        rows = slurm.run(*table).stdout.split()
    states = [row.split("|")[1] for row in rows if row.startswith(f"{job}|")]
    assert states == ["REQUEUED", "COMPLETED"], rows
    seen("sacct: " + " ".join(rows))
