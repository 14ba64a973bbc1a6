"""`deepspeed --no_ssh` on two hosts, which are network namespaces: the losses of one host; a host that is lost."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.launch.test_launchers import EXAMPLES, TORCHRUN, exact, objects
from tests.repository.test_docker import instructions
from tests.support.jobs import ROOT, SCRIPT, Job, Launched, arguments, losses
from tests.support.two_hosts import NAMES, Host, two_hosts

pytestmark = pytest.mark.soak


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    with two_hosts(tmp_path) as made:
        yield made


def start(
    hosts: list[Host], recipe: Path, shards: Path, run: Path, *options: str, slots: Sequence[int] = (1, 1)
) -> list[Launched]:
    """The command of examples/hosts on both."""
    text = (EXAMPLES / "hosts").read_text()
    for name, count in zip(NAMES, slots, strict=True):
        text = text.replace(f"\n{name} slots=8", f"\n{name} slots={count}")
    hostfile = run.parent / "hostfile"
    hostfile.write_text(text)
    jobs = []
    for index, host in enumerate(hosts):
        launcher = ["deepspeed", "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(index)]
        launcher += ["--master_addr", NAMES[0], SCRIPT, *arguments(recipe, shards, run), *options]
        jobs.append(Launched([*host.prefix, *launcher], run))
    return jobs


def end(jobs: list[Launched]) -> list[int]:
    """Both exit codes; what they printed goes to the test's output."""
    codes = []
    for name, job in zip(NAMES, jobs, strict=True):
        code, output = job.end()
        kept = [line for line in output.splitlines() if "[INFO]" not in line and line.strip()]
        print(f"--- {name}: exit {code}", *kept, sep="\n")
        codes.append(code)
    return codes


def test_two_hosts_write_the_losses_of_one(
    hosts: list[Host], recipe: Path, shards: Path, uncut: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert end(start(hosts, recipe, shards, run)) == [0, 0]
    assert exact(run) == exact(uncut)


def test_fault_29_a_rank_killed_on_one_host_ends_both_and_a_restart_goes_on(
    hosts: list[Host], recipe: Path, shards: Path, uncut: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    jobs = start(hosts, recipe, shards, run)
    (rank,) = jobs[1].wait_for_ranks(1)
    jobs[0].wait_for_step(6)
    rank.kill()
    killed = time.monotonic()
    codes = end(jobs)
    print(f"both ended {time.monotonic() - killed:.1f} s after the kill")
    assert 0 not in codes
    assert 75 not in codes
    assert end(start(hosts, recipe, shards, run)) == [0, 0]
    assert exact(run) == exact(uncut)


def test_fault_36_a_pulled_cable_ends_both_within_the_timeout_and_a_restart_goes_on(
    hosts: list[Host], recipe: Path, shards: Path, uncut: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    jobs = start(hosts, recipe, shards, run, "--run.timeout", "1")
    jobs[0].wait_for_step(6)
    hosts[1].plug("down")
    pulled = time.monotonic()
    codes = end(jobs)
    seconds = time.monotonic() - pulled
    print(f"both ended {seconds:.1f} s after the cable was pulled")
    assert 0 not in codes
    assert seconds < 60 + 60  # a minute of patience, and the launchers
    hosts[1].plug("up")
    assert end(start(hosts, recipe, shards, run)) == [0, 0]
    assert exact(run) == exact(uncut)


def test_hosts_with_unequal_slots_write_the_losses_of_one(
    hosts: list[Host], recipe: Path, shards: Path, tmp_path: Path
) -> None:
    options = ("--train.global_batch", "3", "--train.steps", "4")
    assert end(start(hosts, recipe, shards, tmp_path / "two", *options, slots=(1, 2))) == [0, 0]
    code, output = Job(recipe, shards, tmp_path / "one", *options, launcher=[*TORCHRUN, "3"]).end()
    assert code == 0, output
    assert exact(tmp_path / "two") == exact(tmp_path / "one")


def test_the_commands_of_the_kubernetes_pods_train_together(
    hosts: list[Host], recipe: Path, shards: Path, uncut: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    hostfile = tmp_path / "hosts"
    hostfile.write_text(objects()["ConfigMap"]["data"]["hosts"].replace("slots=8", "slots=1"))
    (container,) = objects()["Job"]["spec"]["template"]["spec"]["containers"]
    here = {"/etc/mae3d/hosts": hostfile, "k400_vit_large": recipe, "/data/shards": shards, "/runs/a": run}
    entry = [part.replace("/src", str(ROOT)) for part in json.loads(dict(instructions())["ENTRYPOINT"])]
    jobs = []
    for index, host in enumerate(hosts):
        command = [*entry, *container["args"], "--device=cpu"]
        for name, value in {**here, "$(JOB_COMPLETION_INDEX)": index}.items():
            command = [part.replace(name, str(value)) for part in command]
        jobs.append(Launched([*host.prefix, *command], run, cwd=ROOT))  # the image's working directory
    assert end(jobs) == [0, 0]
    assert len(losses(run))
    assert exact(run) == exact(uncut)
