"""Start commands in processes that have torch, DeepSpeed and DALI loaded: a server has imported them and forks itself.

    command line ─► a server's child that runs it

    done = launch.run([sys.executable, "launch/pretrain.py", "--config", "demo"], cwd=ROOT)    # as subprocess.run
    job = launch.Process([sys.executable, "-m", "preprocess", "build", ...])                   # as subprocess.Popen

    deepspeed tests/support/launch.py launch/pretrain.py ...   # a launcher's ranks: they hand over all but their pid

The processes are real, as are their signals and exit codes; they lack only the three seconds of imports that each
`python` takes. One server (launch_server.py) serves all pytest workers and ends with the last one. It has no GPU.
"""

import atexit
import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]

SERVER = "MAE3D_LAUNCH_SERVER"  # the name of its socket, for pytest's workers and for what they start
os.environ.setdefault(SERVER, f"mae3d-launch-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}")

cpu_seconds = 0.0  # used by the processes that have ended, with their children


class Process:
    """A forked command with the part of subprocess.Popen that tests use. Its output goes to files, not to pipes."""

    def __init__(
        self,
        command: Sequence[str | Path] | bytes,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        merged: bool = False,
        files: Sequence[int] = (),
    ):
        """Start the process.

        Args:
            command: `python` and its arguments; or a pickled function with its arguments.
            cwd: working directory.
            env: environment instead of this process's.
            merged: write standard error into standard output.
            files: descriptors, which it closes: output, errors and, for a function, its pickled result.
        """
        self.args = command
        self.returncode: int | None = None
        self.files = list(files) or _files(2)
        if merged:
            os.dup2(self.files[0], self.files[1])
        request: dict[str, Any] = {"cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        if isinstance(command, bytes):
            request["call"] = command.hex()
        else:
            python, *arguments = map(str, command)
            assert python == sys.executable, f"{python} cannot be forked"
            request["argv"] = arguments
        text = json.dumps(request).encode()
        server = _connect()
        socket.send_fds(server, [len(text).to_bytes(8, "big")], self.files)
        server.sendall(text)
        self._server = server.detach()  # descriptors alone: the collector of a failed test's objects has no order
        self.pid = int(self._reply() or "0")
        assert self.pid, "the launch server has ended: its error is on standard error"

    def poll(self) -> int | None:
        """Return the exit code, -N after signal N, or None while the process runs."""
        global cpu_seconds
        if self.returncode is None and _is_readable(self._server, 0):
            self.returncode, cpu = json.loads(self._reply())
            cpu_seconds += cpu
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended."""
        if self.returncode is None and not _is_readable(self._server, timeout):
            raise subprocess.TimeoutExpired(str(self.args), timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def output(self) -> tuple[str, str]:
        """Return what standard output and standard error hold so far."""
        out, err = [os.pread(file, os.fstat(file).st_size, 0).decode() for file in self.files[:2]]
        return out, err

    def result(self) -> Any:
        """Return what a called function has returned."""
        return pickle.loads(os.pread(self.files[2], os.fstat(self.files[2]).st_size, 0))

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return standard output and standard error."""
        self.wait(timeout)
        return self.output()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _reply(self) -> str:
        line = b""
        while not line.endswith(b"\n") and (byte := os.read(self._server, 1)):
            line += byte
        return line.decode()

    def __del__(self) -> None:
        # The server kills a process that nobody waits for any more.
        for descriptor in (getattr(self, "_server", None), *getattr(self, "files", ())):
            if descriptor is not None:
                os.close(descriptor)


class Ranks:
    """N forked ranks of one command, and the least that launchers have in common.

    The ranks find the launcher's variables in their environment (one rank finds none) and write to one file. If one
    fails, the others get SIGTERM, and SIGKILL half a minute later; the exit code is that of the first failure.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        world: int,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ):
        (output,) = _files(1)
        self.processes = [
            Process(command, cwd=cwd, env={**(env or os.environ), **place}, files=[os.dup(output), os.dup(output)])
            for place in (places(world) if world > 1 else [{}])
        ]
        os.close(output)
        self.returncode: int | None = None
        self._failure = 0
        self._patience = 0.0

    def poll(self) -> int | None:
        """Return the exit code once all ranks have ended, and end the others if one has failed."""
        codes = [process.poll() for process in self.processes]
        if not self._failure and any(codes):
            self._failure = next(code for code in codes if code)
            self._patience = time.monotonic() + 30
            self.send_signal(signal.SIGTERM)
        if self._failure and time.monotonic() > self._patience:
            self.send_signal(signal.SIGKILL)
        if None not in codes:
            self.returncode = self._failure
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, None]:
        """Wait for the end and return what all ranks have written."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("ranks", timeout)
            time.sleep(0.01)
        return self.processes[0].output()[0], None

    def send_signal(self, number: int) -> None:
        """Send a signal to all ranks that run."""
        for process in self.processes:
            process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL to all ranks."""
        self.send_signal(signal.SIGKILL)


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a `python` command to its end and return its exit code and output, which is always captured."""
    process = Process(command, cwd=cwd, env=env)
    out, err = process.communicate(timeout)
    done = subprocess.CompletedProcess(command, process.wait(), out, err)
    if check:
        assert done.returncode == 0, f"exit code {done.returncode}\n{out}{err}"
    return done


def call(function: Callable[..., Any], *arguments: Any, env: Mapping[str, str] | None = None) -> Process:
    """Start a process that calls a module's function; `result_of` gives what it returns.

    A fork of pytest itself can hang: earlier tests have left it threads, whose locks nobody opens in the child.
    """
    return Process(pickle.dumps((function, arguments)), env={**os.environ, **(env or {})}, files=_files(3))


def killed_after(seconds: float, function: Callable[..., Any], *arguments: Any) -> bool:
    """Kill a process that calls a function after so many seconds, and return whether it was still at work."""
    process = call(function, *arguments)
    time.sleep(seconds)
    was_at_work = process.poll() is None
    process.kill()
    process.wait()
    return was_at_work


def result_of(process: Process, timeout: float) -> Any:
    """Wait for a called function and return its result.

    Raises:
        AssertionError: the function raised, or its process died; the message has its output.
    """
    code = process.wait(timeout)
    out, err = process.output()
    assert code == 0, f"exit code {code}\n{out}{err}"
    return process.result()


def places(world: int) -> list[dict[str, str]]:
    """Return the environment of every rank, as torchrun sets it on one node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def _files(count: int) -> list[int]:
    return [os.memfd_create("output", os.MFD_CLOEXEC) for _ in range(count)]


def _is_readable(connection: int, timeout: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(timeout))


def _connect() -> socket.socket:
    """Return a connection to the session's server. The first one starts it, and it ends with the last one."""
    address = f"\0{os.environ[SERVER]}"
    _stay(address, os.getpid())
    return _connected(address)


@cache
def _stay(address: str, pid: int) -> None:
    """Keep one connection until this process ends, so that the server does not end before it."""
    atexit.register(_connected(address).close)


def _connected(address: str) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address)
            return connection
        except ConnectionRefusedError:
            connection.close()
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(address)
            except OSError:  # another worker starts the server at this moment
                time.sleep(0.01)
                continue
            listener.listen(64)
            os.set_inheritable(listener.fileno(), True)
            os.posix_spawn(
                sys.executable,
                [sys.executable, str(Path(__file__).with_name("launch_server.py")), str(listener.fileno())],
                os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
                file_actions=[(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)],
            )


def _relay(arguments: list[str]) -> NoReturn:
    """Run a command in a forked process that has this one's environment, output and signals, and end as it does."""
    while arguments[0].startswith("--local_rank"):  # deepspeed puts it first
        arguments.append(arguments.pop(0))
    process = Process([sys.executable, *arguments], files=[1, 2])
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: os.kill(process.pid, number))
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    _relay(sys.argv[1:])
