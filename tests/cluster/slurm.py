"""A real SLURM on two hosts: munged, slurmctld and two slurmd, with accounting in slurmdbd and MariaDB on request.

with slurm_cluster(folder) as slurm:
    job = slurm.sbatch("--nodes=2", "examples/slurm.sbatch", run, "--config", recipe, ...)
    slurm.wait_for(job, "COMPLETED")

Each host is a machine of its own: network, name, and the process ids within which the owner of a lock is looked up. All
that the daemons write lies in `folder`. Commands of users run on node-a, as on a login node.
"""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import psutil

from tests.cluster.conftest import PATH, need
from tests.support.jobs import ROOT, wait_until
from tests.support.two_hosts import NAMES, Host, two_hosts

WAIT_S = 240.0
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")  # after which a job may yet be queued
# cred_expire (120 s by default) is also for how long a job that was queued again is held; SlurmdTimeout is 300 s, and
# KillWait 30 s: those who wait for them here would see nothing else.
CONF = """
ClusterName=trial
SlurmctldHost={login}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdTimeout=15
KillWait=30
MinJobAge=86400
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={nodes} CPUs=96 RealMemory=200000 Gres=gpu:8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""
ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={login}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/linux
"""
DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={login}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageUser=slurm
StoragePass=trial
StorageLoc=slurm_acct
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""


class Node:
    """A host whose processes are its own, and end with the first of them."""

    def __init__(self, host: Host):
        self.host = host
        self._starter: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        return self._starter is not None

    def boot(self) -> None:
        """Start the first process, which waits for those whose parents have ended."""
        first = ["unshare", "--pid", "--fork", "--mount-proc", "bash", "-c", "while :; do sleep 60; done"]
        self._starter = subprocess.Popen([*self.host.prefix, *first], stdin=subprocess.DEVNULL)
        starter = psutil.Process(self._starter.pid)
        wait_until(lambda: [child.name() for child in starter.children()] == ["bash"])

    def crash(self) -> None:
        """End all of its processes at once."""
        if self._starter is not None:
            psutil.Process(self._starter.pid).children()[0].kill()
            self._starter.wait()
            self._starter = None

    def inside(self, *command: str | Path, cwd: Path) -> list[str]:
        """Return a command that runs another one on the host."""
        assert self._starter is not None, f"{self.host.name} is down"
        (first,) = psutil.Process(self._starter.pid).children()
        spaces = ("--mount", "--uts", "--net", "--pid")
        return ["nsenter", "--target", str(first.pid), *spaces, f"--wdns={cwd}", *map(str, command)]


class Slurm:
    """A cluster, as a user on its login node sees it; `checkout` is the user's, with an environment in it."""

    def __init__(self, folder: Path, hosts: list[Host], *, accounting: bool):
        self.folder, self.accounting = folder, accounting
        self.nodes = {host.name: Node(host) for host in hosts}
        # Without the tests' environment in PATH: the batch scripts have to bring their own.
        programs = PATH.replace(f"{Path(sys.executable).parent}{os.pathsep}", "")
        self.env = os.environ | {"PATH": programs, "SLURM_CONF": str(folder / "slurm.conf")}
        self.env.pop("PYTHONPATH", None)
        self.checkout = folder / "checkout"
        self._daemons: dict[tuple[str, str], subprocess.Popen[bytes]] = {}  # by program and host

    def set_up(self) -> None:
        """Write the files, and start all but the nodes."""
        folder, names = self.folder, {"folder": self.folder, "login": NAMES[0], "nodes": ",".join(NAMES)}
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text((CONF + ACCOUNTING * self.accounting).format(**names))
        for number in range(8):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # none is used, and the hosts have none
        (folder / "plugstack.conf").touch()  # instead of the machine's
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        self.checkout.mkdir()
        for name in ("docker", "examples", "launch", "mae3d", "pipelines", "preprocess"):
            (self.checkout / name).symlink_to(ROOT / name)
        (self.checkout / ".venv").symlink_to(sys.prefix)
        for node in self.nodes.values():
            node.boot()
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
        # --force: the folders of tests are for one user only, and so is this one.
        self._daemon("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        wait_until((folder / "munge.socket").exists)
        if self.accounting:
            self._keep_accounts(names)
        self._daemon("slurmctld", "-D")
        wait_until(lambda: self.run("scontrol", "ping").returncode == 0)

    def _keep_accounts(self, names: Mapping[str, object]) -> None:
        data, socket = self.folder / "mariadb", self.folder / "mariadb.socket"
        install = ("mysql_install_db", "--no-defaults", "--user=root", f"--datadir={data}")
        done = self.run(*install, "--auth-root-authentication-method=normal")
        assert done.returncode == 0, done.stdout + done.stderr
        served = ("--bind-address=127.0.0.1", f"--socket={socket}", f"--pid-file={self.folder}/mariadb.pid")
        self._daemon("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", *served)
        grant = "CREATE DATABASE slurm_acct; GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1' IDENTIFIED BY 'trial'"
        admin = ("mysql", "--no-defaults", f"--socket={socket}", "--user=root", "--execute", grant)
        wait_until(lambda: self.run(*admin).returncode == 0)
        (self.folder / "slurmdbd.conf").write_text(DATABASE.format(**names))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        self._daemon("slurmdbd", "-D")
        wait_until(lambda: self.run("sacctmgr", "--immediate", "add", "cluster", "trial").returncode == 0)

    def _daemon(self, program: str, *options: str, host: str = NAMES[0]) -> None:
        with (self.folder / f"{program}-{host}.out").open("ab") as log:
            command = self.nodes[host].inside(program, *options, cwd=self.folder)
            started = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._daemons[program, host] = started

    def start_slurmd(self, name: str) -> None:
        """Start a node's slurmd, and wait until jobs can run there."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self._daemon("slurmd", "-D", host=name)
        wait_until(lambda: self.state_of_node(name) in ("idle", "mixed", "allocated"), WAIT_S)

    def kill_slurmd(self, name: str) -> None:
        """Kill a node's slurmd; what it has started goes on."""
        started = self._daemons.pop(("slurmd", name))
        (daemon,) = psutil.Process(started.pid).children()  # of nsenter
        daemon.kill()
        started.wait()

    def crash(self, name: str) -> None:
        """End everything on a node at once."""
        self.nodes[name].crash()
        for program, host in [key for key in self._daemons if key[1] == name]:
            self._daemons.pop((program, host)).wait()

    def boot(self, name: str) -> None:
        """Start a node that has crashed."""
        self.nodes[name].boot()
        self.start_slurmd(name)

    @contextmanager
    def drained(self, name: str) -> Iterator[None]:
        """Keep new jobs off a node until the end of the block; after a failure `mend` brings it back."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")
        yield
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def mend(self) -> None:
        """Cancel all jobs, and bring back all nodes."""
        self.run("scancel", "--user=root")
        for name, node in self.nodes.items():
            node.host.plug("up")
            if not node.is_up:
                node.boot()
            if ("slurmd", name) not in self._daemons:
                self.start_slurmd(name)
            if "drain" in self.state_of_node(name):
                self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
        wait_until(lambda: not self.run("squeue", "--noheader").stdout, WAIT_S)

    def run(self, *command: str | Path, cwd: Path | None = None, **more: str) -> CompletedProcess[str]:
        """Run a command on the login node, in the checkout if no other folder is given."""
        inside = self.nodes[NAMES[0]].inside(*command, cwd=cwd or self.checkout)
        return subprocess.run(inside, env=self.env | more, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def sbatch(self, *arguments: str | Path, cwd: Path | None = None, **more: str) -> str:
        """Submit a job and return its id."""
        done = self.run("sbatch", "--parsable", *arguments, cwd=cwd, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """Return what SLURM knows of a job, or of an array's task (7_1), by name."""
        text = self.run("scontrol", "show", "--oneliner", "job", job).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait_for(self, job: str, *states: str, restarts: int | None = None) -> dict[str, str]:
        """Return what SLURM knows of a job once it is in one of the states, perhaps after a number of restarts."""

        def is_there() -> bool:
            known = self.job(job)
            there = known["JobState"] in states and restarts in (None, int(known["Restarts"]))
            over = known["JobState"] in ENDS and restarts in (None, int(known["Restarts"]))
            assert there or not over, f"job {job}: {known['JobState']} {known['ExitCode']}\n{self.log(job)}"
            return there

        wait_until(is_there, WAIT_S)
        return self.job(job)

    def log(self, job: str) -> str:
        """Return what a job has written so far."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    def state_of_node(self, name: str) -> str:
        return self.run("sinfo", "--noheader", f"--nodes={name}", "--format=%T", "--partition=main").stdout.strip()


@contextmanager
def slurm_cluster(folder: Path, *, accounting: bool = False) -> Iterator[Slurm]:
    """The cluster, until the end of the block."""
    need("munged", "slurmctld", "slurmd", *["slurmdbd", "mariadbd"] * accounting)
    with ExitStack() as stack:
        slurm = Slurm(folder, stack.enter_context(two_hosts(folder)), accounting=accounting)
        for name in NAMES:
            stack.callback(slurm.crash, name)
        slurm.set_up()
        for name in NAMES:
            slurm.start_slurmd(name)
        yield slurm
