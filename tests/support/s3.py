"""A real S3-protocol server on the loopback, in a process of its own: moto behind werkzeug, every request logged.

with s3_server() as server:                     # the fixture `s3` (tests/conftest.py) is such a server
    server.upload(folder, "bucket/shards")
    ...                                         # s3://bucket/shards, where os.environ holds server.environment
    server.requests()                           # [Request("GET", "/bucket/shards/dataset.json", 200, 1234), ...]
    server.fail("shard-00001", status=503, times=3)
"""

import json
import logging
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

CONTROL = "/-/control"  # no name of a bucket


class Request(NamedTuple):
    """One request that the server answered; `num_bytes` is the length of the answer."""

    method: str
    path: str
    status: int
    num_bytes: int


@dataclass(frozen=True)
class Server:
    """A running server; its methods talk to it from the test's process."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",  # botocore's own tries take half a minute
        }

    def upload(self, folder: Path, to: str) -> None:
        """Puts what dataset.json names, and that last, under bucket/prefix; makes the bucket."""
        import boto3

        bucket, _, prefix = to.partition("/")
        client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="test",
            aws_secret_access_key="test",
        )  # fmt: skip
        client.create_bucket(Bucket=bucket)
        meta = json.loads((folder / "dataset.json").read_text())
        named = [entry["name"] for entry in meta["files"].values()] + [name for name, *_ in meta["shards"]]
        for name in [*named, "dataset.json"]:
            client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=(folder / name).read_bytes())
        client.close()

    def requests(self, method: str = "GET") -> list[Request]:
        """What was asked with this method since the last call."""
        return [Request(*entry) for entry in self._control({"take": method})]

    def reset(self) -> None:
        """Forgets what was asked, and what should fail."""
        self._control({"fail": None})
        self._control({"take": ""})

    def fail(self, name: str, *, status: int, times: int) -> None:
        """The next `times` requests with `name` in their path get this status; 0 = no answer for 5 s."""
        self._control({"fail": [name, status, times]})

    def _control(self, order: dict[str, Any]) -> Any:
        asked = urllib.request.Request(self.endpoint + CONTROL, data=json.dumps(order).encode(), method="POST")
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def s3_server() -> Iterator[Server]:
    """Starts a server on a free port and ends it."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        assert ours.poll(120), "the S3 server did not start"
        yield Server(f"http://127.0.0.1:{ours.recv()}")
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection) -> None:
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # tracebacks of clients that were killed on purpose
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, _Logged(DomainDispatcherApplication(create_backend_app)), threaded=True)
    pipe.send(server.port)
    server.serve_forever()


class _Logged:
    """WSGI middleware: logs every answer, fails those it was told to."""

    def __init__(self, application: Any):
        self._application = application
        self._log: list[Request] = []
        self._failures: list[list[Any]] = []  # [name, status, times left]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == CONTROL:
            return self._control(json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))), start_response)
        for failure in self._failures:
            if failure[0] in path and failure[2] > 0:
                failure[2] -= 1
                self._log.append(Request(method, path, failure[1], 0))
                if failure[1] == 0:
                    time.sleep(5)
                start_response(f"{failure[1] or 500} Told To Fail", [("Content-Length", "0")])
                return []
        statuses: list[str] = []

        def started(status: str, *arguments: Any) -> Any:
            statuses.append(status)
            return start_response(status, *arguments)

        body = b"".join(self._application(environ, started))
        self._log.append(Request(method, path, int(statuses[0].split()[0]), len(body)))
        return [body]

    def _control(self, order: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        answer: Any = None
        if "take" in order:
            answer = [entry for entry in self._log if entry.method == order["take"]]
            self._log = []
        else:
            self._failures = [*self._failures, order["fail"]] if order["fail"] else []
        body = json.dumps(answer).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
