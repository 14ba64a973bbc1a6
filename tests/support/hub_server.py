"""A test double of the Hugging Face Hub on the loopback, for the real client of huggingface_hub, both ways.

with hub_server() as hub:                    # the fixture `hub` of tests/conftest.py points the client at it
    hub.private.add("org/name")
    hub.log                                  # ["POST /api/repos/create", ...]

It knows two tokens and what the client needs: repositories, branches, preupload, Git LFS by the batch protocol
("basic"), commits, trees, files with redirects to LFS. Xet, pull requests and gated repositories are not here.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

TOKEN, READER = "hf_writes", "hf_reads"
LFS_ENDINGS = (".safetensors", ".png", ".pth", ".bin")
Files = dict[str, tuple[bytes, bool]]  # path -> content, whether it lies in LFS


@dataclass
class Repo:
    """Commits by id, and branches that name one each."""

    commits: dict[str, Files] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def commit(self, branch: str, files: Files) -> str:
        names = repr(sorted((path, hashlib.sha256(content).hexdigest()) for path, (content, _) in files.items()))
        oid = hashlib.sha1(f"{len(self.commits)} {names}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid


@dataclass
class Hub:
    """The state of the server."""

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    failing: str = ""  # a part of a path that is answered with `failure`
    failure: int = 503

    def add(self, repo: str, **files: bytes) -> str:
        """Make a repository with files (`config__json` is config.json); return its commit."""
        named = {name.replace("__", "."): content for name, content in files.items()}
        held = {name: (content, name.endswith(LFS_ENDINGS)) for name, content in named.items()}
        self.objects |= {hashlib.sha256(content).hexdigest(): content for content, is_lfs in held.values() if is_lfs}
        return self.repos.setdefault(repo, Repo()).commit("main", held)


class _Answered(Exception):
    """The end of a request that has got its answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self._body()
        self.hub.log.append(f"{self.command} {path}")
        try:
            if self.hub.failing and self.hub.failing in path:
                self._answer({"error": "out of order"}, status=self.hub.failure)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if path.startswith("/store/") and token and self.command == "GET":
                self._refuse(400, message="a token of the Hub has been sent to its store")
            if token not in ("", TOKEN, READER) and not path.startswith("/store/"):
                self._refuse(401, message="Invalid credentials in Authorization header")
            self._route(path, token)
            self._refuse(404)
        except _Answered:
            pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, path: str, token: str) -> None:
        if path.startswith("/store/"):
            self._lfs(path.rpartition("/")[2])
        if path == "/api/validate-yaml":
            text = json.loads(self.body)["content"]
            problems = [] if text.startswith("---\n") else [{"message": "empty or missing yaml metadata in repo card"}]
            self._answer({"errors": [], "warnings": problems})
        if path == "/api/repos/create":
            self._create(token)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._writer(match[1], token)
            self._batch()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path):
            self._api(*match.groups(), token=token)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups(), token=token)

    def _answer(self, content: Any = b"", *, status: int = 200, **headers: str) -> NoReturn:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        raise _Answered

    def _refuse(self, status: int, *, code: str = "", message: str = "") -> NoReturn:
        headers = {"X_Error_Code": code, "X_Error_Message": message}
        self._answer({"error": message}, status=status, **{name: value for name, value in headers.items() if value})

    def _reader(self, name: str, token: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (name in self.hub.private and token != TOKEN):
            self._refuse(404 if token else 401, code="RepoNotFound", message="Repository not found")
        return repo

    def _writer(self, name: str, token: str) -> Repo:
        repo = self._reader(name, token)
        if token != TOKEN:
            self._refuse(403 if token else 401, message="you may not write here")
        return repo

    def _create(self, token: str) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if token != TOKEN:
            self._refuse(403 if token else 401, message="you may not make a repository here")
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, Repo())
        if status == 200 and asked.get("visibility") == "private":
            self.hub.private.add(name)
        self._answer({"url": f"{self.hub.endpoint}/{name}", "error": "exists"}, status=status)

    def _batch(self) -> None:
        def one(asked: dict[str, Any]) -> dict[str, Any]:
            action = {"href": f"{self.hub.endpoint}/store/{asked['oid']}"}
            return asked if asked["oid"] in self.hub.objects else asked | {"actions": {"upload": action}}

        self._answer({"transfer": "basic", "objects": [one(asked) for asked in json.loads(self.body)["objects"]]})

    def _lfs(self, oid: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                self._refuse(400, message="the content has another hash")
            self.hub.objects[oid] = self.body
            self._answer()
        self._answer(self.hub.objects[oid])

    def _api(self, name: str, what: str | None, rest: str | None, *, token: str) -> None:
        if what == "branch":
            repo = self._writer(name, token)
            status = 409 if rest in repo.branches else 200
            repo.branches.setdefault(rest or "", repo.branches["main"])
            self._answer({}, status=status)
        if what == "preupload":
            self._writer(name, token)
            files = [
                {"path": path, "shouldIgnore": False, "uploadMode": "lfs" if path.endswith(LFS_ENDINGS) else "regular"}
                for path in (asked["path"] for asked in json.loads(self.body)["files"])
            ]
            self._answer({"files": files})
        if what == "commit":
            self._commit(name, self._writer(name, token), rest or "main")
        repo = self._reader(name, token)
        commit = repo.commit_of(rest or "main")
        if commit is None:
            self._refuse(404, code="RevisionNotFound", message="Invalid rev id")
        if what in (None, "revision"):
            self._answer({"id": name, "modelId": name, "sha": commit, "private": name in self.hub.private})
        if what == "tree":
            self._answer([_entry(path, *held) for path, held in repo.commits[commit].items()])

    def _commit(self, name: str, repo: Repo, branch: str) -> None:
        files = dict(repo.commits[repo.branches[branch]])
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif step["key"] == "lfsFile":
                files[value["path"]] = (self.hub.objects[value["oid"]], True)
        oid = repo.commit(branch, files)
        self._answer({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def _resolve(self, name: str, revision: str, path: str, *, token: str) -> None:
        repo = self._reader(name, token)
        commit = repo.commit_of(revision)
        if commit is None:
            self._refuse(404, code="RevisionNotFound")
        if path not in repo.commits[commit]:
            self._refuse(404, code="EntryNotFound")
        content, is_lfs = repo.commits[commit][path]
        oid = hashlib.sha256(content).hexdigest()
        headers = {"X_Repo_Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if is_lfs:
            elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")  # as the Hub's store is another host
            headers |= {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content))}
            headers |= {"Location": f"{elsewhere}/store/{oid}"}
            self._answer(status=302, **headers)
        self._answer(content, **headers)


def _entry(path: str, content: bytes, is_lfs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = hashlib.sha1(content).hexdigest()
    if is_lfs:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Yield a running server without repositories."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
