"""A real object store (seaweedfs' S3 gateway), and a proxy before it that answers slowly, wrongly, late or not at all.

with ObjectStore(folder) as store:                 # a process, which can be killed, stopped and started again
    store.client.create_bucket(Bucket="box")       # what is written lies in `folder`
    with Proxy(store.endpoint) as proxy:           # a thread of this process, for clients with proxy.environment
        proxy.inject(status(503), "shard-00001.tar", times=2)
        proxy.requests                             # [Request("GET", "/box/shards/dataset.json", 200), ...]
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.conftest import TOOLS
from tests.support.jobs import wait_until

KEY, SECRET = "trial", "trialsecret"
PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def environment(endpoint: str, *, secret: str = SECRET) -> dict[str, str]:
    """Return what a client needs in its environment, and no more: its patience is the one that users get."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class ObjectStore:
    """`weed server -s3` with ports and files of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        certificate: Path | None = None,
        options: Sequence[str] = (),
    ):
        """Choose its ports; it is started by `with`.

        Args:
            folder: where it keeps the objects, and its log.
            address: what it listens at.
            prefix: the beginning of its command, that of a host.
            certificate: serve TLS with this one; a PEM file that holds the key too.
            options: more of its own.
        """
        self.folder, self._prefix = folder, prefix
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        identity: dict[str, Any] = {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
        identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self._command = [
            *prefix, str(TOOLS / "bin" / "weed"), "-logtostderr=true", "server", f"-ip={address}",
            f"-ip.bind={address}", f"-dir={folder / 'data'}", "-master.volumeSizeLimitMB=256", "-volume.max=20",
            "-volume.minFreeSpace=1", "-filer", f"-filer.localSocket={folder / 'filer.sock'}",
            "-s3", f"-s3.config={folder / 's3.json'}", f"-s3.localSocket={folder / 's3.sock'}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", *options,
        ]  # fmt: skip
        for name, port in self._ports.items():
            server, _, kind = name.partition(".")
            self._command.append(f"-{server}.port{'.' if kind else ''}{kind}={port}")
        if certificate:
            self._command += [f"-s3.cert.file={certificate}", f"-s3.key.file={certificate}"]
        self.port = self._ports["s3"]
        self.endpoint = f"http{'s' if certificate else ''}://{address}:{self.port}"
        self._certificate = certificate
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client needs in its environment."""
        return environment(self.endpoint)

    @property
    def client(self) -> Any:
        """Return a client of boto3, which the program does not use: a second opinion on what is there."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=KEY,
            aws_secret_access_key=SECRET, verify=str(self._certificate) if self._certificate else None,
            config=Config(retries={"total_max_attempts": 1}),
        )  # fmt: skip

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Return what lies below a prefix, by the rest of the name."""
        client = self.client
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        there = {}
        for key in keys:
            with client.get_object(Bucket=bucket, Key=key)["Body"] as body:
                there[key[len(prefix) :]] = body.read()
        client.close()
        return there

    def __enter__(self) -> "ObjectStore":
        try:
            self.start()
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for name in PORTS:  # it makes these sockets there whatever its options say
            server, _, kind = name.partition(".")
            if kind:
                Path(f"/tmp/seaweedfs-{server}-{kind}-{self._ports[name]}.sock").unlink(missing_ok=True)

    def start(self) -> None:
        """Start it; it takes objects some seconds later."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        """Wait until it takes objects; it answers before it does."""

        def takes() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "log").read_text()[-3000:]
            put = f"import boto3; c = boto3.client('s3', verify={self._certificate and str(self._certificate)!r}); "
            put += (
                "'started' in [b['Name'] for b in c.list_buckets()['Buckets']] or c.create_bucket(Bucket='started'); "
            )
            put += "c.put_object(Bucket='started', Key='one', Body=b'1')"
            return subprocess.run(self.here("python", "-c", put), capture_output=True).returncode == 0

        wait_until(takes, 120)

    def here(self, *command: str) -> list[str]:
        """Return a command that runs on the store's host with the environment of a client."""
        return [*self._prefix, "env", *(f"{name}={value}" for name, value in self.environment.items()), *command]

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens at; weed's others are theirs plus 10000 where none is given."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [int(bound.getsockname()[1]) for bound in sockets]


class Request(NamedTuple):
    """A request that passed the proxy, and the status of the answer; 0: none."""

    method: str
    path: str
    status: int
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What goes back to the client; `cut`: the bytes of the body after which the connection is reset."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None


Overwrite = Callable[[str, bytes], object]  # writes an object, whatever is there, as a store without conditions
Forward = Callable[[], Awaitable[Answer]]
Fault = Callable[[Forward], Awaitable[Answer]]  # makes the answer, with that of the store or without


def delayed(seconds: float) -> Fault:
    """Return the fault of a slow store."""

    async def fault(forward: Forward) -> Answer:
        await asyncio.sleep(seconds)
        return await forward()

    return fault


def refused(status: int, code: str, message: str = "injected", **headers: str) -> Fault:
    """Return the fault of a store that refuses with one of S3's errors."""

    async def fault(forward: Forward) -> Answer:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Answer(status, {"Content-Type": "application/xml", **named}, text.encode())

    return fault


async def half(forward: Forward) -> Answer:
    """Reset the connection in the middle of the body."""
    answer = await forward()
    return replace(answer, cut=len(answer.body) // 2)


async def shorter(forward: Forward) -> Answer:
    """Answer with half of the body, as if that were all."""
    answer = await forward()
    return replace(answer, body=answer.body[: len(answer.body) // 2])


async def flipped(forward: Forward) -> Answer:
    """Answer with one other bit in the middle."""
    answer = await forward()
    body = bytearray(answer.body)
    if body:
        body[len(body) // 2] ^= 1
    return replace(answer, body=bytes(body))


async def lost(forward: Forward) -> Answer:
    """Do what was asked, and lose the answer."""
    return replace(await forward(), cut=-1)


@dataclass
class _Rule:
    fault: Fault
    fragment: str
    method: str
    times: int


@dataclass
class Lag:
    """Listings that lack what is younger than `seconds`, as those of stores that are consistent in the end only.

    Attributes:
        seconds: how long.
        remember_missing: whether an object that was asked for before it was there stays missing as long.
    """

    seconds: float
    remember_missing: bool = False
    put: dict[str, float] = field(default_factory=dict)
    missed: dict[str, float] = field(default_factory=dict)

    def hides(self, key: str) -> bool:
        return time.monotonic() - self.put.get(key, -1e9) < self.seconds


class Proxy:
    """A server before the store, whose answers can be tampered with; it signs nothing, so the client must name it."""

    def __init__(self, endpoint: str):
        self._upstream = urllib.parse.urlsplit(endpoint)
        self.requests: list[Request] = []
        self.lag = Lag(0)
        self.overwrite: Overwrite | None = None
        self._rules: list[_Rule] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client needs in its environment."""
        return environment(self.endpoint)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result(30)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(30)
        self._loop.close()

    def _end(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_later(0.1, self._loop.stop)

    def inject(self, fault: Fault, fragment: str = "", *, method: str = "", times: int = 1) -> None:
        """Tamper with the answers to the next requests with `fragment` in their URL, and this method if one is given.

        A request is tampered with by the first rule that fits and has times left.
        """
        self._rules.append(_Rule(fault, fragment, method, times))

    def reset(self) -> None:
        """Forget the faults and the requests."""
        self._rules, self.requests, self.lag = [], [], Lag(0)

    @property
    def left(self) -> int:
        """Return how many faults have not come to pass."""
        return sum(rule.times for rule in self._rules)

    def remaining(self) -> list[str]:
        """Return the faults that have not come to pass."""
        return [f"{rule.times} x {rule.method} {rule.fragment}" for rule in self._rules if rule.times]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; the client opens another connection for the next."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
            lower = {name.lower(): value for name, value in headers.items()}
            if "100-continue" in lower.get("expect", ""):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await _body(reader, lower)
            dropped = {"expect", "connection", "transfer-encoding"}
            passed = {name: value for name, value in headers.items() if name.lower() not in dropped}
            passed |= {"Connection": "close", "Content-Length": str(len(body))}
            path = urllib.parse.unquote(target.partition("?")[0])

            async def forward() -> Answer:
                if self.overwrite and "if-none-match" in lower:  # the condition is signed: it cannot be left out
                    await asyncio.get_running_loop().run_in_executor(None, self.overwrite, path, body)
                    return Answer(200, {"ETag": '"overwritten"'}, b"")
                return await self._forwarded(method, target, passed, body)

            named = urllib.parse.unquote(target)
            rule = next((rule for rule in self._rules if self._fits(rule, method, named)), None)
            if rule:
                rule.times -= 1
            answer = await (rule.fault(forward) if rule else self._lagging(method, target, path, forward))
            self.requests.append(Request(method, path, 0 if answer.cut == -1 else answer.status, lower))
            if answer.cut != -1:
                fields = {"Content-Length": str(len(answer.body)), **answer.headers, "Connection": "close"}
                if method != "HEAD" and answer.status not in (204, 304):
                    fields["Content-Length"] = str(len(answer.body))
                lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in fields.items())]
                writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
                writer.write(b"" if method == "HEAD" else answer.body[: answer.cut])
                await writer.drain()
            if answer.cut is not None:
                writer.transport.abort()
        writer.close()

    @staticmethod
    def _fits(rule: _Rule, method: str, target: str) -> bool:
        return rule.times > 0 and rule.fragment in target and rule.method in ("", method)

    async def _lagging(self, method: str, target: str, path: str, forward: Forward) -> Answer:
        lag = self.lag
        if not lag.seconds:
            return await forward()
        if lag.remember_missing and method in ("HEAD", "GET") and time.monotonic() < lag.missed.get(path, 0):
            body = b"" if method == "HEAD" else b"<Error><Code>NoSuchKey</Code><Message>cached</Message></Error>"
            return Answer(404, {}, body)
        answer = await forward()
        if answer.status == 404:
            lag.missed[path] = time.monotonic() + lag.seconds
        elif method in ("PUT", "POST") and answer.status == 200:
            lag.put[path] = time.monotonic()
        elif method == "GET" and "list-type=2" in target:
            return replace(answer, body=self._without_young(path.strip("/"), answer.body))
        return answer

    def _without_young(self, bucket: str, body: bytes) -> bytes:
        def kept(entry: re.Match[str]) -> str:
            key = re.search(r"<Key>(.*?)</Key>", entry[0])
            assert key is not None
            return "" if self.lag.hides(f"/{bucket}/{urllib.parse.unquote(key[1])}") else entry[0]

        return re.sub(r"<Contents>.*?</Contents>", kept, body.decode(), flags=re.DOTALL).encode()

    async def _forwarded(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            answered = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
            lower = {name.lower(): value for name, value in answered.items()}
            data = b"" if method == "HEAD" else await _body(reader, lower)
            kept = {n: v for n, v in answered.items() if n.lower() not in ("connection", "transfer-encoding")}
            return Answer(int(head[0].split(" ")[1]), kept, data)
        finally:
            writer.close()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Read the body that headers announce."""
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0)))
    data = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        data += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":  # trailers
        pass
    return data
