"""A folder ─► a Check for each thing that the program needs of its file system: space, names, locks, syncs, clocks.

    for check in check_folder("/runs"): ...
    python -m launch.common.folder_checks /runs 1      # the child that tries it all: a line of JSON for each need

A child tries everything, because a mount whose server is gone keeps a process for ever, SIGKILL or not: the child is
left behind then, and what it was doing is the report.
"""

import errno
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from launch.common.folder_meeting import MEET_S, PREFIX, meet
from launch.common.folder_needs import NEEDS, mounted, try_need
from launch.common.machine_checks import FAIL, OK, ROOT, WARN, Check

ANSWER_S = 20.0  # of silence, after which a mount counts as one that hangs
LEFT_S = 3600.0


def check_folder(path: str, *, hosts: int = 1, answer_s: float = ANSWER_S) -> list[Check]:
    """Try everything that the program does with RUN, shards or results in a folder, and leave nothing behind.

    Args:
        path: a folder; of one that does not exist yet, the nearest above it is tried.
        hosts: doctors that are started on it at the same time, on as many hosts: they look for each other.
        answer_s: seconds after which a mount that does not answer is reported.
    """
    whole = path if "://" in path else str(Path(path).absolute())  # nothing is looked up
    child = subprocess.Popen(
        _command(whole, hosts),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_pass_on, args=(child, lines), daemon=True).start()
    checks: list[Check] = []
    doing, problem = "start", ""
    while True:
        try:
            line = lines.get(timeout=answer_s + (MEET_S if doing == "hosts" else 0))
        except queue.Empty:
            child.kill()
            with suppress(subprocess.TimeoutExpired):  # the kernel holds it: it is left to it
                child.wait(1)
            remedy = "see to the server of that mount, or to the network; a trainer would hang there as well"
            return [
                *checks, Check(f"{doing} {path}", FAIL, f"no answer in {answer_s:.0f} s from {mounted(whole)}", remedy)
            ]  # fmt: skip
        if not line:
            break
        try:
            said = json.loads(line)
        except ValueError:
            problem = line.strip() or problem
            continue
        if "begun" in said:
            doing = said["begun"]
        else:
            checks.append(Check(f"{said['name']} {path}", said["status"], said["detail"], said["remedy"]))
    if child.wait() != 0:
        checks.append(Check(f"{doing} {path}", FAIL, f"the check has failed: {problem}", "report this as a bug"))
    return checks


def _command(path: str, hosts: int) -> list[str]:
    return [sys.executable, "-m", "launch.common.folder_checks", path, str(hosts)]


def _pass_on(child: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    """Put a child's lines into a queue, and an empty one at its end."""
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            lines.put(line)
    lines.put("")


def _print(check: Check) -> None:
    print(json.dumps(asdict(check)), flush=True)


def _begin(name: str) -> None:
    """Let the parent know what is tried next, for the case that it hangs."""
    print(json.dumps({"begun": name}), flush=True)


def try_all(path: str, hosts: int) -> None:
    """Print the name of each need as it is begun, and its check; the child's work."""
    _begin("folder")
    folder = Path(path)
    if "://" in path:
        _print(Check("folder", FAIL, "a URL", "--run.remote, --data.shards and --out take it, not --run.dir"))
        return
    there = next(above for above in (folder, *folder.parents) if above.exists())
    detail = f"{mounted(str(there))}{'' if there == folder else f'; not there yet: {there} is tried'}"
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        at = Path(tempfile.mkdtemp(prefix=PREFIX, dir=there))
    except OSError as error:
        _print(Check("folder", FAIL, f"{detail}: {error.strerror}", "name a folder that can be written: --path"))
        return
    _print(Check("folder", OK, detail))
    try:
        for need in NEEDS:
            _begin(need.name)
            _print(try_need(need, at))
    finally:
        _begin("remove")
        shutil.rmtree(at, ignore_errors=True)
    left = [old.name for old in there.glob(f"{PREFIX}*") if not _is_removed(old)]
    if left:
        _print(Check("remove", WARN, f"{', '.join(left)} cannot be removed", "remove it"))
    if hosts > 1:
        _begin("hosts")
        _print(meet(there, hosts=hosts))


def _is_removed(old: Path) -> bool:
    """Remove what a doctor that hung an hour ago has left; return whether nothing is left to be removed."""
    with suppress(FileNotFoundError):
        if time.time() - old.stat().st_mtime > LEFT_S:
            shutil.rmtree(old, ignore_errors=True)
            return not old.exists()
    return True


if __name__ == "__main__":
    try_all(sys.argv[1], int(sys.argv[2]))
