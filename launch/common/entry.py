"""A command is run to its end, with every signal delivered to the processes that can act on it.

`deepspeed` must not get a SIGTERM itself: it dies of it and leaves its ranks behind, and its launch.py (like
torchrun) kills the ranks 30 seconds later, which may be in the middle of a checkpoint. The ranks agree on a stop,
write the checkpoint and exit with 75; the launchers then end by themselves, `deepspeed` with that code. So a signal
goes to the ranks where there are any, else to the command. `mae3d launch` starts launchers so, and docker/entry.py, the
container's entry point, which serves in a batch script too, where `deepspeed` would otherwise leave orphans:

    python docker/entry.py deepspeed launch/pretrain.py ...
    python docker/entry.py deepspeed --hostfile examples/hosts launch/pretrain.py ...     # ranks on other hosts, too
"""

import base64
import contextlib
import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import takewhile
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
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}  # requests to stop a training
MPIRUN = {"mpirun", "mpiexec", "orterun", "prterun"}  # pass SIGUSR1 on to all ranks
REACHED = "reached its ranks"
REMOTE_S = 20.0  # that hosts have to pass a signal on, out of the half minute that a container is given to end
# ssh notices nothing of a host that is lost while it has nothing to send, and `deepspeed` waits for it.
KEEP_ALIVE = "-o ServerAliveInterval=15 -o ServerAliveCountMax=8"
# What a shell takes for its own in an argument, and in one with blanks, which DeepSpeed's pdsh runner does quote.
SPECIAL = {False: re.compile(r"[\s$`\"'\\;&|<>(){}*?]"), True: re.compile(r"[$`\\]")}


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
    newest = {os.getpid()}
    while newest:
        newest = {pid for pid, parent in parents.items() if parent in newest}
        below.update({pid: parents[pid] for pid in newest})
    return below


def adopt_orphans() -> None:
    """Adopt the orphans of a killed launcher outside of a container, too; torchrun's ranks have left its group."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def is_rank(pid: int) -> bool:
    """Return whether a launcher started this process, or an ancestor, as a rank: deepspeed and torchrun set RANK."""
    return any(text.startswith(("RANK=", "OMPI_COMM_WORLD_RANK=")) for text in _strings(pid, "environ"))  # mpirun's


def targets(command: int) -> list[int]:
    """Return the processes that a signal is meant for: the ranks (not their children), else the command."""
    if is_rank(os.getpid()):  # started by a launcher outside of the container: the command is the rank
        return [command]
    below = descendants()
    ranks = {pid for pid in below if is_rank(pid)}
    return sorted(pid for pid in ranks if below[pid] not in ranks) or [command]


def pass_on(signum: int, command: int) -> None:
    """Send a signal to those that it is meant for, wherever the command has started ranks."""
    pids = targets(command)
    if pids == [command] and not is_rank(os.getpid()):
        for pid in descendants():
            words, environment = _strings(pid, "cmdline"), _strings(pid, "environ")
            program = Path(words[0]).name if words else ""
            if program.startswith("pdsh") and "deepspeed.launcher.launch" in words:
                if not reach_ranks(signum, words, dict(text.split("=", 1) for text in environment if "=" in text)):
                    # There are none yet, or no more. The runner of `deepspeed` ends what there is at a SIGTERM only.
                    _send(signal.SIGTERM if signum in STOPS else signum, pids)
                return
            if program in MPIRUN:  # all ranks are elsewhere; at a SIGTERM it would kill them a second later
                _send(signal.SIGUSR1 if signum in STOPS else signum, [pid])
                return
    _send(signum, pids)


def _strings(pid: int, name: str) -> list[str]:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/{name}").read_bytes()).split("\0")[:-1]
    except OSError:
        return []  # it ended meanwhile


def reach_ranks(signum: int, pdsh: list[str], environment: dict[str, str]) -> bool:
    """Send a signal to the ranks on all hosts of a `deepspeed` over pdsh; return whether one host at least has some.

    They are no processes of ours, and a killed pdsh or ssh passes nothing on. So it goes by the same pdsh, as the
    signals do by which DeepSpeed itself ends its launch.py.
    """
    options = {name: value for name, equals, value in (word.partition("=") for word in pdsh) if equals}
    world, port = options["--world_info"], options["--master_port"]
    hosts = list(json.loads(base64.urlsafe_b64decode(world)))
    # What follows the hosts, which pdsh itself splits at their commas, up to the command: --launcher_args.
    words = iter(pdsh[pdsh.index("-w") + 1 :])
    more = [word for word in takewhile(lambda word: word and ";" not in word, words) if word.split(",")[0] not in hosts]
    # The shells that have such a command line, this one's too, do not begin with a python.
    launch = rf"^[^ ]+ -u -m deepspeed\.launcher\.launch .*{re.escape(world)} .*--master_port={port} "
    script = f"pkill -{signum} -P $(pgrep -d , -f {shlex.quote(launch)}) && echo {REACHED}"
    try:
        done = subprocess.run(
            ["pdsh", "-w", ",".join(hosts), *more, script],
            env=environment,
            stdout=subprocess.PIPE,
            timeout=REMOTE_S,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, []),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"entry.py: signal {signum} cannot be passed on to {','.join(hosts)}: {error}", file=sys.stderr)
        return False
    return REACHED.encode() in done.stdout


def changed_by_pdsh(argv: list[str]) -> list[str]:
    """Return the arguments that the shells of the hosts would change: `deepspeed` over pdsh hardly quotes them.

    `$HOME` in the folder of a run would be another folder, without a word; an empty argument vanishes.
    """
    script = next((at for at, word in enumerate(argv) if word.endswith(".py")), 0)
    ours = [word.partition("=")[0] for word in argv[:script]]
    if (
        Path(argv[0]).name != "deepspeed"
        or not {"-H", "--hostfile"} & set(ours)
        or {"--no_ssh", "--launcher"} & set(ours)
    ):
        return []
    return [word for word in argv[script:] if not word or SPECIAL[" " in word].search(word)]


def main(argv: list[str]) -> int:
    """Run `argv`, pass signals on, and return its exit code (128 + n if signal n ended it).

    Ranks that outlive it are a failure: `deepspeed` returns 0 when its launch.py is killed.
    """
    if not argv:
        print("entry.py: no command given", file=sys.stderr)
        return 2
    if changed := changed_by_pdsh(argv):
        words = ", ".join(map(shlex.quote, changed))
        print(
            f"entry.py: the shells of the hosts would change {words}: deepspeed's pdsh does not quote", file=sys.stderr
        )
        return 2
    adopt_orphans()
    os.environ.setdefault("PDSH_SSH_ARGS_APPEND", KEEP_ALIVE)
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
            pass_on(signum, command)
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
