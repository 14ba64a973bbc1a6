"""The two hosts that the other scenarios stand on are two: by name, by address, by a cable that can be pulled."""

import subprocess

from tests.cluster.conftest import Seen
from tests.support.two_hosts import NAMES, Host


def run(host: Host, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*host.prefix, *command], capture_output=True, text=True)


def test_two_hosts_have_names_and_a_cable_that_can_be_pulled(hosts: list[Host], seen: Seen) -> None:
    names = [run(host, "hostname").stdout.strip() for host in hosts]
    assert tuple(names) == NAMES
    connect = f"exec 3<>/dev/tcp/{NAMES[1]}/9"  # nothing listens there: a host that is reached refuses
    assert "Connection refused" in run(hosts[0], "bash", "-c", connect).stderr
    hosts[1].plug("down")
    assert "No route to host" in run(hosts[0], "timeout", "10", "bash", "-c", connect).stderr
    seen(f"{' and '.join(names)}; without the cable: no route to host")
