"""A command line -> that command, run to its end, with every signal delivered to whoever can act on it.

`deepspeed` must not get a SIGTERM itself: it dies of it and leaves its ranks behind, and its launch.py (like
torchrun) kills the ranks 30 seconds later, which may be in the middle of a checkpoint. The ranks agree on a stop,
write the checkpoint and exit with 75; the launchers then end by themselves, `deepspeed` with that code. So a signal
goes to the ranks where there are any, else to the command. This is the container's entry point, and it serves in a
batch script too, where `deepspeed` would otherwise leave orphans:

    python docker/entry.py deepspeed launch/pretrain.py ...
"""

import contextlib
import os
import signal
import sys
import time
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


def descendants() -> dict[int, int]:
    """All processes below this one, as pid -> parent's pid. Process 1 finds orphans too: they become its own."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state ppid ..." and the name may hold spaces and parentheses.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it ended meanwhile
    below: dict[int, int] = {}
    found = {os.getpid()}
    while found:
        found = {pid for pid, parent in parents.items() if parent in found}
        below.update({pid: parents[pid] for pid in found})
    return below


def is_rank(pid: int) -> bool:
    """Whether a launcher started this process, or an ancestor of it, as a rank: it set RANK."""
    try:
        return b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def targets(command: int) -> list[int]:
    """The processes that a signal is meant for: the ranks (not their children), else the command."""
    if is_rank(os.getpid()):  # started by a launcher outside of the container: the command is the rank
        return [command]
    below = descendants()
    ranks = {pid for pid in below if is_rank(pid)}
    return sorted(pid for pid in ranks if below[pid] not in ranks) or [command]


def main(argv: list[str]) -> int:
    """Run `argv`, pass signals on, and return its exit code (128 + n if signal n ended it)."""
    if not argv:
        print("entry.py: no command given", file=sys.stderr)
        return 2
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
            for pid in targets(command):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            continue
        code = _reap(command)
        if code is not None:
            _end_group(command)
            return code


def _give_terminal(group: int) -> None:
    """Make the command the terminal's foreground group: it may read, and gets the Ctrl-C (`docker run -it`)."""
    if sys.stdin is None or not sys.stdin.isatty():
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else the change itself would stop us
    with contextlib.suppress(OSError):  # a terminal, but not ours
        os.tcsetpgrp(sys.stdin.fileno(), group)
        os.killpg(group, signal.SIGCONT)  # it may have read too early and been stopped for it


def _reap(command: int) -> int | None:
    """Collect ended processes (process 1 inherits orphans); the command's exit code once it is among them."""
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


def _end_group(group: int) -> None:
    """Nothing outlives the command: ranks whose launcher was killed are asked to end, after 30 s made to."""
    for signum, seconds in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signum)
        while time.monotonic() < deadline:
            _reap(group)
            try:
                os.killpg(group, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
