"""Set up every scenario: programs that are missing skip it with their names, and each one leaves a line in the table.

A scenario is a test that is marked `cluster`. It takes the fixture `seen`, and says with it what happened:

    def test_a_job_is_requeued(slurm, seen):
        ...
        seen("stopped by USR1 at step 5, queued again by itself; 14 of 14 losses equal")
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.two_hosts import Host, two_hosts

Seen = Callable[[str], None]  # the fixture `seen`

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / "out" / "cluster" / "python"  # what `make cluster` takes from PyPI: weed, submitit
PATH = os.pathsep.join([str(TOOLS / "bin"), os.environ["PATH"], "/usr/sbin"])
SEEN = pytest.StashKey[list[str]]()
SCENARIOS = pytest.StashKey[list[tuple[str, str, str, float]]]()  # what was done, its outcome, what was seen, seconds


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SCENARIOS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, so that no scenario gets into `make test` by mistake."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Yield, and fail the last scenario if processes, mounts or namespaces of this session are there after it."""
    os.environ["MAE3D_SCENARIOS"] = token = str(os.getpid())
    yield
    left = [str(process) for process in processes_with(f"MAE3D_SCENARIOS={token}") if not _is_pytests(process)]
    mounts = Path("/proc/mounts").read_text().splitlines()
    left += [line for line in mounts if str(tmp_path_factory.getbasetemp()) in line]
    left += [str(path) for path in Path("/run/netns").glob(f"mae3d-{token}-*")]
    if left:
        pytest.fail(f"left behind: {', '.join(left)}")


def processes_with(variable: str) -> list[Path]:
    """Return the folders below /proc of the processes that have NAME=VALUE in their environment."""
    folders = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has just ended
            if variable.encode() in path.read_bytes().split(b"\0"):
                folders.append(path.parent)
    return folders


def _is_pytests(process: Path) -> bool:
    """Return whether this is pytest itself, or a helper that ends with it."""
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return True
    return process.name == str(os.getpid()) or any(name in command for name in (b"launch_server", b"decoder_main"))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Yield two hosts with a cable between them, node-a and node-b; see tests/support/two_hosts.py."""
    with two_hosts(tmp_path) as made:
        yield made


def need(*programs: str) -> None:
    """Skip what asks for programs that are not here, with their names."""
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (`make cluster` installs them, as root on Debian)")


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Seen:
    """Return a function that adds to what the table says about this scenario."""
    lines: list[str] = []
    request.node.stash[SEEN] = lines
    return lines.append


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Print a line for each scenario as soon as its outcome is known, and keep it for the table."""
    report: Any = yield
    if call.when == "call" or report.outcome != "passed":
        seen = "; ".join(item.stash.get(SEEN, []))
        if report.skipped:
            seen = str(call.excinfo.value) if call.excinfo else ""
        done = item.name.removeprefix("test_").replace("_", " ")
        row = (f"{item.path.stem.removeprefix('test_')}: {done}", report.outcome, seen, call.duration)
        item.config.stash[SCENARIOS].append(row)
        reporter = item.config.pluginmanager.get_plugin("terminalreporter")
        reporter.ensure_newline()
        reporter.write_line(f"{row[0]} | {row[1]} | {row[2]} | {row[3]:.1f} s")
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of scenarios, as Markdown."""
    rows = config.stash[SCENARIOS]
    if rows:
        terminalreporter.section("scenarios")
        terminalreporter.write_line("| scenario | outcome | what was seen | seconds |\n|---|---|---|---|")
        for done, outcome, seen, seconds in rows:
            terminalreporter.write_line(f"| {done} | {outcome} | {seen} | {seconds:.1f} |")
