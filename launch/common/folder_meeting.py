"""Doctors that are started on one folder by several hosts ─► whether they see each other's files, locks and time.

check = meet(Path("/runs"), hosts=2)       # on both hosts, within two minutes of each other
"""

import hashlib
import json
import os
import shutil
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from launch.common.machine_checks import FAIL, OK, WARN, Check
from mae3d.io.files import TEMPORARY_PREFIX, write_text
from mae3d.io.lock_store import LOCK_NAME, FolderLockStore, Owner

MEET_S = 120.0  # that a doctor waits for those on the other hosts
PREFIX = f"{TEMPORARY_PREFIX}doctor-"
OTHER_LOCKS = "name a folder whose server tells a name that is there from one that is not (NFS, Lustre, a local disk)"


def meet(at: Path, *, hosts: int, wait_s: float = MEET_S, name: str = "") -> Check:
    """Look for the doctors on other hosts: whether names are seen, one lock has one holder, and clocks agree."""
    meeting = at / f"{PREFIX}meeting"
    mine = name or f"{socket.gethostname()}-{os.getpid()}"
    start = time.monotonic()
    try:
        meeting.mkdir(exist_ok=True)
        clock = meeting / f"{mine}.clock"
        clock.touch()
        now = clock.stat().st_mtime  # the server's: what is older is left of another meeting
        clock.unlink()
        _say(meeting, mine, "here", ahead=time.time() - now)
        heard = partial(_heard, meeting, hosts=hosts, since=now - 2 * wait_s)
        here = heard("here", end=start + wait_s)
        if len(here) < hosts:
            names = ", ".join(sorted(here))
            detail = f"{len(here)} of {hosts} are to be seen after {wait_s:.0f} s: {names}"
            (meeting / f"{mine}.here").unlink(missing_ok=True)
            with suppress(OSError):  # others are there
                meeting.rmdir()
            return Check("hosts", FAIL, detail, "mount the same file system at this path on all hosts")
        seconds = time.monotonic() - start
        lock = f"{LOCK_NAME}-{hashlib.sha256(' '.join(sorted(here)).encode()).hexdigest()[:16]}"
        has_won = FolderLockStore(meeting).create(lock, Owner.here("doctor"))
        _say(meeting, mine, "done", won=has_won)
        done = heard("done", end=time.monotonic() + wait_s)
        winners = sum(bool(facts.get("won")) for facts in done.values())
        (meeting / f"{mine}.left").touch()  # nothing after it: the folder may go at once
        if has_won:  # it sweeps up, once all have heard all
            heard("left", end=time.monotonic() + 10)
            shutil.rmtree(meeting, ignore_errors=True)
    except OSError as error:
        return Check("hosts", FAIL, error.strerror or str(error), "name another folder")
    if len(done) < hosts:
        return Check("hosts", FAIL, f"{len(done)} of {hosts} are to be seen after the first words", OTHER_LOCKS)
    if winners != 1:
        return Check("hosts", FAIL, f"{winners} of {hosts} hosts got the same lock", OTHER_LOCKS)
    aheads = [facts["ahead"] for facts in here.values()]
    detail = f"{hosts} see each other after {seconds:.0f} s, clocks within {max(aheads) - min(aheads):.1f} s"
    if max(aheads) - min(aheads) > 30:
        return Check("hosts", WARN, detail, "chrony or ntpd on all hosts")
    return Check("hosts", OK, detail)


def _say(meeting: Path, name: str, word: str, **facts: float) -> None:
    write_text(meeting / f"{name}.{word}", json.dumps(facts))


def _heard(meeting: Path, word: str, *, hosts: int, since: float, end: float) -> dict[str, dict[str, float]]:
    """Return what those who meet have said, by name, as soon as all have, or at the end of the time."""
    while True:
        heard = {}
        for path in meeting.glob(f"[!.]*.{word}"):  # none that is being written
            with suppress(OSError, ValueError):
                if path.stat().st_mtime >= since:
                    heard[path.stem] = json.loads(path.read_text(encoding="utf-8") or "{}")
        if len(heard) >= hosts or time.monotonic() > end:
            return heard
        time.sleep(0.2)
