"""Training over ssh, by `deepspeed --hostfile` with pdsh and Open MPI, and by mpirun: stopped, killed, cut off."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mae3d.tracking.run_dir import read_metrics
from tests.cluster.conftest import Seen, need
from tests.cluster.sshd import Node, ssh_hosts
from tests.launch.test_launchers import ENTRY, exact
from tests.support.jobs import ROOT, SCRIPT, Job, Launched, arguments, wait_until
from tests.support.two_hosts import NAMES, Host

LONG = ("--train.steps", "300", "--run.checkpoint_every", "100")  # some time for a signal to travel
MPI = ["-x", "OMP_NUM_THREADS=1", "-x", f"MASTER_ADDR={NAMES[0]}", "--mca", "btl_tcp_if_include", "10.77.0.0/24"]


@pytest.fixture
def nodes(hosts: list[Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Node]]:
    """Yield two hosts that reach each other over ssh."""
    need("sshd", "ssh", "ssh-keygen", "pdsh", "mpirun")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    with ssh_hosts(hosts, tmp_path) as made:
        # Sums differ with the number of threads, and a host with one rank takes all of its cores.
        (made[0].home / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
        yield made


@pytest.fixture(scope="module")
def long(recipe: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the losses of 300 steps on one host that nothing happens to."""
    run = tmp_path_factory.mktemp("long") / "run"
    code, output = Job(recipe, shards, run, *LONG, processes=2).end()
    assert code == 0, output
    return exact(run)


def over_pdsh(folder: Path, names: tuple[str, ...] = NAMES) -> list[str | Path]:
    (folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in names))
    return ["deepspeed", "--hostfile", folder / "hosts"]


def start(
    node: Node, launcher: list[str | Path], recipe: Path, shards: Path, run: Path, *options: str, entry: bool = True
) -> Launched:
    """The documented command, on that node, in the checkout."""
    command = [*(ENTRY if entry else []), *launcher, SCRIPT, *arguments(recipe, shards, run), *options]
    return Launched(node.command(*command, directory=ROOT), run)


def end(job: Launched) -> tuple[int, str]:
    """Its exit code and output, which goes to the test's as well."""
    code, output = job.end()
    print(*(line for line in output.splitlines() if "[INFO]" not in line and line.strip()), sep="\n")
    return code, output


def nothing_is_left(nodes: list[Node], seconds: float = 60) -> float:
    """Wait until nothing of a job runs on any host; return how long that took."""
    began = time.monotonic()
    wait_until(lambda: not any(node.processes() for node in nodes), seconds)
    return time.monotonic() - began


def stopped_through_entry(
    nodes: list[Node], launcher: list[str | Path], recipe: Path, shards: Path, run: Path, number: signal.Signals
) -> str:
    """Send a signal to the entry point of a training, which leaves with a checkpoint; return what was seen."""
    job = start(nodes[0], launcher, recipe, shards, run, *LONG)
    job.wait_for_step(20)
    job.process.send_signal(number)
    code, output = end(job)
    assert code == 75, output
    seconds, step = nothing_is_left(nodes), len(read_metrics(run))
    return f"exit 75, stopped after step {step} of 300; nothing is left on either host {seconds:.0f} s later"


def goes_on(
    nodes: list[Node], launcher: list[str | Path], recipe: Path, shards: Path, run: Path, long: list[dict[str, Any]]
) -> str:
    """Start the same command again; its losses are those of the run that nothing happened to."""
    code, output = end(start(nodes[0], launcher, recipe, shards, run, *LONG))
    assert code == 0, output
    assert exact(run) == long
    assert nothing_is_left(nodes) < 60
    return f"the same command goes on: all {len(long)} losses equal, bit for bit"


def test_deepspeed_over_pdsh_trains_in_paths_with_blanks_with_its_environment_file(
    nodes: list[Node], recipe: Path, shards: Path, uncut: Path, tmp_path: Path, seen: Seen
) -> None:
    folder = tmp_path / "my runs (new)"
    folder.mkdir()
    (folder / "my shards").symlink_to(shards)
    (folder / "tiny.yaml").symlink_to(recipe)
    with (nodes[0].home / ".deepspeed_env").open("a") as file:
        file.write("MAE3D_PROOF=over the cable\n")
    run = folder / "my run"
    launcher = over_pdsh(tmp_path)
    job = start(nodes[0], launcher, folder / "tiny.yaml", folder / "my shards", run)
    wait_until(lambda: len(nodes[1].ranks()) == 1)
    assert nodes[1].ranks()[0].environ()["MAE3D_PROOF"] == "over the cable"
    code, output = end(job)
    assert code == 0, output
    assert exact(run) == exact(uncut)
    assert nothing_is_left(nodes) < 60
    seen("~/.deepspeed_env reached node-b; RUN and shards in 'my runs (new)'; losses equal those of one host")


def test_files_have_the_umask_of_the_sessions_and_a_run_goes_on_under_another(
    nodes: list[Node], recipe: Path, shards: Path, uncut: Path, tmp_path: Path, seen: Seen
) -> None:
    run, launcher = tmp_path / "run", over_pdsh(tmp_path)
    before: set[Path] = set()
    for umask, options, expected in ((0o077, ["--run.time_limit", "0.0001"], 75), (0o027, [], 0)):
        for node in nodes:
            node.stop_sshd()
            node.start_sshd(f"{umask:03o}")
        code, output = end(start(nodes[0], launcher, recipe, shards, run, *options))
        assert code == expected, output
        new = set(run.rglob("*")) - before
        assert new
        assert not any(path.stat().st_mode & umask for path in new)
        assert umask == 0o077 or any(path.stat().st_mode & 0o040 for path in new)
        before |= new
    assert exact(run) == exact(uncut)
    seen("077: nothing is for group and others; 027: the same command goes on, new files are the group's; losses equal")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_fault_31_entry_stops_the_ranks_of_both_hosts_over_pdsh(
    name: str, nodes: list[Node], recipe: Path, shards: Path, long: list[dict[str, Any]], tmp_path: Path, seen: Seen
) -> None:
    run, launcher = tmp_path / "run", over_pdsh(tmp_path)
    seen(stopped_through_entry(nodes, launcher, recipe, shards, run, signal.Signals[name]))
    assert name in (run / "STOPPED").read_text()
    seen(goes_on(nodes, launcher, recipe, shards, run, long))


def test_fault_31_deepspeed_over_pdsh_that_gets_a_sigterm_itself_leaves_a_checkpoint(
    nodes: list[Node], recipe: Path, shards: Path, long: list[dict[str, Any]], tmp_path: Path, seen: Seen
) -> None:
    run, launcher = tmp_path / "run", over_pdsh(tmp_path)
    job = start(nodes[0], launcher, recipe, shards, run, *LONG, entry=False)
    job.wait_for_step(20)
    job.process.send_signal(signal.SIGTERM)
    code, output = end(job)
    assert code != 0, output
    seconds = nothing_is_left(nodes)
    stopped = (run / "STOPPED").read_text().strip()
    seen(f"exit {code}; {stopped}; the last rank ended {seconds:.0f} s after the command")
    seen(goes_on(nodes, launcher, recipe, shards, run, long))


@pytest.mark.parametrize("what", ["pdsh", "ssh"])
def test_fault_29_ranks_whose_launcher_is_killed_stop_with_a_checkpoint(
    what: str, nodes: list[Node], recipe: Path, shards: Path, long: list[dict[str, Any]], tmp_path: Path, seen: Seen
) -> None:
    run, launcher = tmp_path / "run", over_pdsh(tmp_path)
    job = start(nodes[0], launcher, recipe, shards, run, *LONG)
    job.wait_for_step(20)
    for process in nodes[0].processes():
        is_meant = process.cmdline()[:1] == ["pdsh"] if what == "pdsh" else "node-b" in process.cmdline()
        if is_meant and process.name().startswith(what):
            process.kill()
    code, _ = end(job)
    seconds = nothing_is_left(nodes)
    stopped = (run / "STOPPED").read_text().strip()
    assert "output" in stopped
    assert len(read_metrics(run)) < 300
    # DeepSpeed's runner makes a success of a pdsh that was killed: RUN/DONE tells.
    assert code == (75 if what == "ssh" else 0)
    seen(f"exit {code}; {stopped}; nothing is left {seconds:.0f} s later")
    seen(goes_on(nodes, launcher, recipe, shards, run, long))


def test_fault_29_a_rank_killed_on_the_other_host_ends_both(
    nodes: list[Node], recipe: Path, shards: Path, long: list[dict[str, Any]], tmp_path: Path, seen: Seen
) -> None:
    run, launcher = tmp_path / "run", over_pdsh(tmp_path)
    job = start(nodes[0], launcher, recipe, shards, run, *LONG)
    job.wait_for_step(120)
    (rank,) = nodes[1].ranks()
    rank.kill()
    code, output = end(job)
    assert code not in (0, 75), output
    assert "another process is gone" in output
    nothing_is_left(nodes)
    seen(f"exit {code}; nothing is left on either host")
    seen(goes_on(nodes, launcher, recipe, shards, run, long))


def test_fault_36_a_pulled_cable_ends_the_ranks_and_the_launcher(
    nodes: list[Node], recipe: Path, shards: Path, long: list[dict[str, Any]], tmp_path: Path, seen: Seen
) -> None:
    run, launcher = tmp_path / "run", over_pdsh(tmp_path)
    job = start(nodes[0], launcher, recipe, shards, run, *LONG, "--run.timeout", "1")
    job.wait_for_step(120)
    nodes[1].host.plug("down")
    pulled = time.monotonic()
    code, output = end(job)
    assert code not in (0, 75), output
    seconds = time.monotonic() - pulled
    assert seconds < 240
    assert not nodes[0].processes()
    wait_until(lambda: not nodes[1].ranks(), 120)
    nodes[1].host.plug("up")
    nothing_is_left(nodes, 240)  # the session of a host that hears nothing more ends when it does again
    seen(f"exit {code} after {seconds:.0f} s; nothing is left on either host")
    seen(goes_on(nodes, launcher, recipe, shards, run, long))


def test_fault_36_a_host_without_an_sshd_is_named_and_the_other_does_not_wait_for_ever(
    nodes: list[Node], recipe: Path, shards: Path, tmp_path: Path, seen: Seen
) -> None:
    run, launcher = tmp_path / "run", over_pdsh(tmp_path)
    nodes[1].stop_sshd()
    began = time.monotonic()
    code, output = end(start(nodes[0], launcher, recipe, shards, run, "--run.timeout", "0.5"))
    assert code == 255, output
    assert "connect to host node-b" in output
    nothing_is_left(nodes)
    assert not run.exists()
    seen(f"exit 255 after {time.monotonic() - began:.0f} s with --run.timeout 0.5; ssh names node-b")


@pytest.mark.parametrize("hosts_of_ranks", ["localhost:2", "node-a,node-b"])
def test_mpirun_trains_on_one_host_and_on_two(
    hosts_of_ranks: str, nodes: list[Node], recipe: Path, shards: Path, uncut: Path, tmp_path: Path, seen: Seen
) -> None:
    run = tmp_path / "run"
    options = MPI[:2] if hosts_of_ranks.startswith("localhost") else MPI
    launcher = ["mpirun", "-np", "2", "--host", hosts_of_ranks, *options, sys.executable]
    code, output = end(start(nodes[0], launcher, recipe, shards, run, entry=False))
    assert code == 0, output
    assert exact(run) == exact(uncut)
    assert nothing_is_left(nodes) < 60
    seen("losses equal those of forked ranks")


def test_fault_31_deepspeed_over_open_mpi_is_stopped_through_entry(
    nodes: list[Node], recipe: Path, shards: Path, long: list[dict[str, Any]], tmp_path: Path, seen: Seen
) -> None:
    run = tmp_path / "run"
    launcher = [*over_pdsh(tmp_path), "--launcher", "openmpi", "--launcher_args", " ".join(MPI[2:])]
    seen(stopped_through_entry(nodes, launcher, recipe, shards, run, signal.SIGTERM))
    assert "SIGTERM" in (run / "STOPPED").read_text()
    seen(goes_on(nodes, launcher, recipe, shards, run, long))


def test_fault_31_mpirun_with_all_ranks_on_another_host_is_stopped_through_entry(
    nodes: list[Node], recipe: Path, shards: Path, long: list[dict[str, Any]], tmp_path: Path, seen: Seen
) -> None:
    run = tmp_path / "run"
    launcher: list[str | Path] = ["mpirun", "-np", "2", "--host", "node-b:2", *MPI[:2], sys.executable]
    seen(stopped_through_entry(nodes, launcher, recipe, shards, run, signal.SIGTERM))
    assert (run / "STOPPED").exists()
    seen(goes_on(nodes, launcher, recipe, shards, run, long))
