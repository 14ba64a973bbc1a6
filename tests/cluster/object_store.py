"""A real object store: seaweedfs' S3 gateway, a process that can be killed, stopped and started again.

with ObjectStore(folder) as store:                 # what is written lies in `folder`
    store.client.create_bucket(Bucket="box")
    with Proxy(store.endpoint) as proxy:           # tests/cluster/proxy.py
        ...
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.cluster.conftest import TOOLS
from tests.support.jobs import wait_until

KEY, SECRET = "trial", "trialsecret"
PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")


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
