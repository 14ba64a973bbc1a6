"""Two hosts on this machine: network namespaces with a cable between them, each with its own names and address.

with two_hosts(folder) as hosts:
    jobs = [Launched([*host.prefix, "deepspeed", ...], run) for host in hosts]
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("node-a", "node-b")
ALIASES = ("mae3d-0.mae3d", "mae3d-1.mae3d")  # as a headless service names the pods of a job
_count = itertools.count()  # a process may have other hosts at the same time
ADDRESSES = ("10.77.0.1", "10.77.0.2")  # reached over the cable alone: no host has a route anywhere else


@dataclass(frozen=True)
class Host:
    """`prefix` runs a command there."""

    name: str
    address: str
    namespace: str
    cable: str
    prefix: tuple[str, ...]

    def pids(self) -> list[int]:
        """All processes that run there, of whatever parent."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]

    def plug(self, state: str) -> None:
        """Puts the cable in ("up") or pulls it ("down")."""
        _ip("-n", self.namespace, "link", "set", self.cable, state)


@contextmanager
def two_hosts(folder: Path) -> Iterator[list[Host]]:
    """The hosts, until the end of the block; skips the test where they cannot be made, with the reason."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (Debian, Ubuntu: iproute2)")
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    hosts = []
    table = folder / "hosts-of-both"
    known = [("127.0.0.1", "localhost"), *zip(ADDRESSES, NAMES, strict=True), *zip(ADDRESSES, ALIASES, strict=True)]
    table.write_text("".join(f"{address} {name}\n" for address, name in known))
    for index, name in enumerate(NAMES):
        namespace = f"mae3d-{os.getpid()}-{next(_count)}"
        # Namespaces of its own for mounts and for its name, as for the network.
        set_up = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        prefix = ("ip", "netns", "exec", namespace, "unshare", "--uts", "sh", "-c", set_up, name, str(table))
        hosts.append(Host(name, ADDRESSES[index], namespace, f"cable{index}", prefix))
    try:
        try:
            _lay_cable(hosts)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {' '.join(error.cmd)}: {error.stderr.strip()}")
        yield hosts
    finally:
        for host in hosts:
            end = time.monotonic() + 30
            while (pids := host.pids()) and time.monotonic() < end:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)


def _lay_cable(hosts: list[Host]) -> None:
    for host in hosts:
        _ip("netns", "add", host.namespace)
    ends = [argument for host in hosts for argument in ("name", host.cable, "netns", host.namespace)]
    _ip("link", "add", *ends[:4], "type", "veth", "peer", *ends[4:])
    for host, address in zip(hosts, ADDRESSES, strict=True):
        _ip("-n", host.namespace, "address", "add", f"{address}/24", "dev", host.cable)
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        host.plug("up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
