"""The server of launch.py: it imports torch, DeepSpeed and DALI once, and forks a child for each command.

python tests/support/launch_server.py FD      # a listening socket; it ends with its last client
"""

import atexit
import gc
import importlib
import json
import os
import pickle
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "deepspeed",
    "matplotlib.figure",
    "nvidia.dali.fn",
    "nvidia.dali.types",
    "pytest",
    "sklearn.linear_model",
    "timm",  # and with it torch's compiler
)
OURS = ("mae3d", "pipelines", "preprocess", "launch")


def _serve(listener: socket.socket) -> dict[str, Any] | None:
    """Fork a child per request. Return the request in the child, and None in the server after the last client."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    children: dict[socket.socket, tuple[int, int]] = {}  # the pid and the pidfd of every client's running child
    clients: set[socket.socket] = set()
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                client, _ = listener.accept()
                clients.add(client)
                selector.register(client, selectors.EVENT_READ)
            elif key.data:  # a child has ended
                client = key.data
                pid, pidfd = children.pop(client)
                _, status, usage = os.wait4(pid, 0)
                selector.unregister(pidfd)
                os.close(pidfd)
                reply = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]
                if client in clients:
                    _send(client, json.dumps(reply))
            elif isinstance(key.fileobj, socket.socket):
                client = key.fileobj
                header, files = _header(client)
                if not header:
                    if client in children:
                        os.killpg(children[client][0], signal.SIGKILL)
                    selector.unregister(client)
                    clients.remove(client)
                    client.close()
                    if not clients:
                        return None
                    continue
                request = json.loads(_exactly(client, int.from_bytes(header, "big")))
                pid = os.fork()
                if not pid:
                    selector.close()
                    for pidfd in [pidfd for _, pidfd in children.values()]:
                        os.close(pidfd)
                    for connection in (listener, *clients):
                        connection.close()
                    return request | {"files": files}
                for file in files:
                    os.close(file)
                children[client] = (pid, os.pidfd_open(pid))
                selector.register(children[client][1], selectors.EVENT_READ, client)
                _send(client, str(pid))


def _header(client: socket.socket) -> tuple[bytes, list[int]]:
    """Return the beginning of a request; nothing of a client that has gone, or was killed before it read an answer."""
    try:
        header, files, *_ = socket.recv_fds(client, 8, 3)
    except ConnectionResetError:
        return b"", []
    return header, files


def _exactly(client: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        received += client.recv(count - len(received))
    return received


def _send(client: socket.socket, line: str) -> None:
    with suppress(
        BrokenPipeError, ConnectionResetError
    ):  # a client that has gone is noticed when its connection is read
        client.sendall(f"{line}\n".encode())


def _become(request: dict[str, Any]) -> None:
    """Make this child of the server a process as exec would have made it."""
    os.setsid()
    for number, file in enumerate(request["files"]):
        os.dup2(file, number + 1 if number < 2 else 3)
    os.closerange(4, 256)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])


def _execute(argv: list[str]) -> None:
    """Run a script, `-m MODULE` or `-c CODE`, as `python` does."""
    first, *rest = argv
    if first == "-m":
        sys.argv = rest
        sys.path[0] = str(Path.cwd())
        if not hasattr(sys.modules.get(rest[0]), "__path__"):
            sys.modules.pop(rest[0], None)  # or runpy warns of the two copies
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    else:
        sys.argv = argv
        sys.path[0] = str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def _call(pickled: str) -> None:
    function, arguments = pickle.loads(bytes.fromhex(pickled))
    result = function(*arguments)
    with os.fdopen(3, "wb") as file:
        pickle.dump(result, file)


def _report(error: BaseException) -> int:
    """Return the exit code of `python` for what its script raised, after printing it as `python` does."""
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _exit(code: int) -> NoReturn:
    """End this process as `python` does, but leave its memory to the kernel: 5,000 modules take half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _preload() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    for package in OURS:
        folder = importlib.import_module(package)
        for module in pkgutil.walk_packages(folder.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    threads = {path.read_text() for path in Path("/proc/self/task").glob("*/comm")}
    others = threads - {Path("/proc/self/comm").read_text(), "jemalloc_bg_thd\n"}  # pyarrow's, which minds forks
    assert not others, f"a process with threads cannot be forked: {others}"
    gc.collect()
    gc.freeze()


def _main() -> None:
    sys.path[0] = str(ROOT)
    listener = socket.socket(fileno=int(sys.argv[1]))
    _preload()
    request = _serve(listener)
    if request is None:
        return
    del listener
    _become(request)
    try:
        if "call" in request:
            _call(request["call"])
        else:
            _execute(request["argv"])
        code = 0
    except BaseException as error:
        code = _report(error)
    _exit(code)


if __name__ == "__main__":
    _main()
