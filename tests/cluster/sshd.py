"""Two hosts reach each other by ssh, with the test's home folder and keys; nothing else on the machine changes.

with ssh_hosts(hosts, folder) as nodes:
    job = Launched(nodes[0].command("deepspeed", "--hostfile", ...), run)
    rank, = nodes[1].ranks()
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.jobs import wait_until
from tests.support.two_hosts import NAMES, Host

_SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
# The names are those of the network's own: no host of them is known to anybody yet.
_CLIENT = "Host *\n StrictHostKeyChecking accept-new\n LogLevel ERROR\n BatchMode yes\n ConnectTimeout 10\n"


@dataclass(frozen=True)
class Node:
    """A host with an sshd; all of them see the same disks, as nodes of a cluster do."""

    host: Host
    home: Path
    folder: Path

    def command(self, *command: str | Path, directory: Path | None = None) -> list[str]:
        """Return what runs a command there, in the test's home folder, which ssh takes for that of root."""
        enter = 'mount --bind "$0" /etc/passwd && cd "$1" && export HOME="$2" && shift 2 && exec "$@"'
        where = [str(self.folder / "passwd"), str(directory or self.home), str(self.home)]
        return [*self.host.prefix, "sh", "-c", enter, *where, *map(str, command)]

    def start_sshd(self, umask: str = "022") -> None:
        """Start its sshd, of which sessions inherit the umask, and wait until it answers."""
        settings = ("UsePAM=no", "StrictModes=no", "PermitRootLogin=yes", f"PidFile={self._pid_file}")
        options = ["-h", self.folder / "host-key", "-E", self.folder / f"sshd-{self.host.name}.log"]
        options += [f"-o{setting}" for setting in settings]
        # Debian's sshd insists on this folder.
        script = f'mount -t tmpfs none /run && mkdir -p /run/sshd && umask {umask} && exec "$0" "$@"'
        subprocess.run(self.command("sh", "-c", script, _SSHD, "-f", "/dev/null", *options), check=True)
        wait_until(self._pid_file.exists, 60)

    def stop_sshd(self) -> None:
        """End the sshd; sessions go on."""
        if self._pid_file.exists():
            with contextlib.suppress(psutil.NoSuchProcess):
                listener = psutil.Process(int(self._pid_file.read_text()))
                listener.terminate()
                listener.wait(30)
            self._pid_file.unlink(missing_ok=True)

    def processes(self) -> list[psutil.Process]:
        """Return all that runs there, but for the sshd that listens."""
        listener = int(self._pid_file.read_text()) if self._pid_file.exists() else 0
        processes = []
        for pid in self.host.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid != listener:
                    processes.append(psutil.Process(pid))
        return processes

    def ranks(self) -> list[psutil.Process]:
        """Return the trainers there, without their launchers and their children."""
        ranks = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                variables = process.environ().keys() & {"RANK", "OMPI_COMM_WORLD_RANK"}
                if variables and any(part.endswith("launch/pretrain.py") for part in process.cmdline()):
                    ranks.append(process)
        pids = {rank.pid for rank in ranks}
        return [rank for rank in ranks if _parent(rank) not in pids]

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"sshd-{self.host.name}.pid"


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def ssh_hosts(hosts: Sequence[Host], folder: Path) -> Iterator[list[Node]]:
    """Yield a node a host, each with its sshd; what else runs at the end is `two_hosts`'s to end."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for key in (home / ".ssh" / "id_ed25519", folder / "host-key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shutil.copy(home / ".ssh" / "id_ed25519.pub", home / ".ssh" / "authorized_keys")
    (home / ".ssh" / "config").write_text(_CLIENT)
    users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    users = [[*user[:5], str(home), "/bin/bash"] if user[0] == "root" else user for user in users]
    (folder / "passwd").write_text("".join(":".join(user) + "\n" for user in users))
    nodes = [Node(host, home, folder) for host in hosts]
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.stop_sshd)
            node.start_sshd()
        for name in NAMES:
            subprocess.run(nodes[0].command("ssh", name, "true"), check=True, timeout=60)
        yield nodes
