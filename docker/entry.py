"""A command is run to its end, with every signal delivered to the processes that can act on it.

`deepspeed` must not get a SIGTERM itself: it dies of it and leaves its ranks behind, and its launch.py (like
torchrun) kills the ranks 30 seconds later, which may be in the middle of a checkpoint. The ranks agree on a stop,
write the checkpoint and exit with 75; the launchers then end by themselves, `deepspeed` with that code. So a signal
goes to the ranks where there are any, else to the command. This is the container's entry point, and it serves in a
batch script too, where `deepspeed` would otherwise leave orphans:

    python docker/entry.py deepspeed launch/pretrain.py ...
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

# Not to be passed on, or not catchable: the kernel's own, our child's end, and job control of the terminal.
KEPT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU}
FAULTS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGABRT,
    signal.SIGSYS,
}
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


def descendants() -> dict[int, int]:
    """Return all processes below this one, as pid -> parent's pid; orphans too, once adopted (`adopt_orphans`)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state ppid ..." and the name may hold spaces and parentheses.
            parents[int(stat.parent.name)] = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it ended meanwhile
    below: dict[int, int] = {}
    found = {os.getpid()}
    while found:
        found = {pid for pid, parent in parents.items() if parent in found}
        below.update({pid: parents[pid] for pid in found})
    return below


def adopt_orphans() -> None:
    """Adopt the orphans of a killed launcher outside of a container, too; torchrun's ranks have left its group."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def is_rank(pid: int) -> bool:
    """Return whether a launcher started this process, or an ancestor, as a rank: deepspeed and torchrun set RANK."""
    try:
        environment = b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return b"\0RANK=" in environment or b"\0OMPI_COMM_WORLD_RANK=" in environment  # mpirun's


def targets(command: int) -> list[int]:
    """Return the processes that a signal is meant for: the ranks (not their children), else the command."""
    if is_rank(os.getpid()):  # started by a launcher outside of the container: the command is the rank
        return [command]
    below = descendants()
    ranks = {pid for pid in below if is_rank(pid)}
    return sorted(pid for pid in ranks if below[pid] not in ranks) or [command]


def main(argv: list[str]) -> int:
    """Run `argv`, pass signals on, and return its exit code (128 + n if signal n ended it).

    Ranks that outlive it are a failure: `deepspeed` returns 0 when its launch.py is killed.
    """
    if not argv:
        print("entry.py: no command given", file=sys.stderr)
        return 2
    adopt_orphans()
    caught = set(signal.valid_signals()) - KEPT - FAULTS
    # Blocked and waited for: none is lost while the command starts, no handler runs in the middle of anything.
    signal.pthread_sigmask(signal.SIG_BLOCK, caught | {signal.SIGCHLD})
    # The command starts with a clean mask, and without what Python itself ignores.
    restored = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        command = os.posix_spawnp(argv[0], argv, os.environ, setpgroup=0, setsigmask=[], setsigdef=restored)
    except OSError as error:
        print(f"entry.py: {argv[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    _give_terminal(command)
    while True:
        signum = signal.sigwait(caught | {signal.SIGCHLD})
        if signum != signal.SIGCHLD:
            _send(signum, targets(command))
            continue
        code = _reap(command)
        if code is not None:
            ranks_were_left = _end_rest()
            return code or int(ranks_were_left)


def _give_terminal(group: int) -> None:
    """Make the command the terminal's foreground group: it may read, and gets the Ctrl-C (`docker run -it`)."""
    if sys.stdin is None or not sys.stdin.isatty():
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else the change itself would stop us
    with contextlib.suppress(OSError):  # a terminal, but not ours
        os.tcsetpgrp(sys.stdin.fileno(), group)
        os.killpg(group, signal.SIGCONT)  # it may have read too early and been stopped for it


def _reap(command: int) -> int | None:
    """Collect ended processes (process 1 inherits orphans); return the command's exit code once it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code


def _end_rest() -> bool:
    """End all processes that outlive the command: after 2 s by SIGTERM, after 30 s more by SIGKILL.

    Returns:
        Whether there were ranks among it, which their launcher should have waited for.
    """
    if _have_ended(2.0):  # the ranks' own helpers end when they notice that the ranks have gone
        return False
    below = descendants()
    ranks = {pid for pid in below if is_rank(pid)}
    _send(signal.SIGTERM, [pid for pid in below if below[pid] not in ranks])  # a rank itself sees to its children
    if not _have_ended(30.0):
        _send(signal.SIGKILL, descendants())
        _have_ended(5.0)
    return bool(ranks) and not is_rank(os.getpid())


def _have_ended(seconds: float) -> bool:
    """Wait until there is no process below this one; return whether that came about."""
    deadline = time.monotonic() + seconds
    while True:
        _reap(0)
        if not descendants():
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def _send(signum: int, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
