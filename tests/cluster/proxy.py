"""A proxy before an object store, which answers slowly, wrongly, late or not at all.

with Proxy(store.endpoint) as proxy:           # a thread of this process, for clients with proxy.environment
    proxy.inject(refused(503, "SlowDown"), "shard-00001.tar", times=2)
    proxy.requests                             # [Request("GET", "/box/shards/dataset.json", 200, {...}), ...]
"""

import asyncio
import re
import threading
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tests.cluster.object_store import environment


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
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _end(self) -> None:
        """End all answers that are under way; each has closed its connection then."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        with suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

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
