"""A URL ─► files below it by their relative names: a run's copy in an object store, or on another disk.

store = Store("s3://bucket/run")
store.put(Path("out/run/config.yaml"), "config.yaml")

Any fsspec URL. Credentials and endpoints come from the environment only: for s3:// AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL and the rest of AWS_*, or FSSPEC_S3_* for any argument of s3fs.
"""

import errno
import logging
import posixpath
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BACK_OFF_S = (1, 4)  # before an upload or a download is tried again
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"}  # folders make themselves


class Store:
    """Files below a URL by their relative names; every call is tried several times and fails with an OSError."""

    def __init__(self, url: str):
        import fsspec
        from fsspec.registry import known_implementations

        for library in ("botocore", "aiobotocore"):  # they would tell where they found the credentials
            logging.getLogger(library).setLevel(logging.WARNING)
        self.url = url.rstrip("/")
        protocol = url.partition("://")[0].partition("::")[0]
        try:
            self._files, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            package = known_implementations.get(protocol, {}).get("class", protocol).partition(".")[0]
            raise ValueError(f"run.remote={url}: needs another package ({error}): pip install {package}") from error
        except ValueError as error:
            raise ValueError(f"run.remote={url}: {error}; give a URL such as s3://bucket/run") from error
        self._root = root.rstrip("/")
        self._makes_folders = protocol not in _OBJECT_STORES

    def sizes(self) -> dict[str, int | None]:
        """Bytes of every file by name, None where the store does not tell; from one listing."""

        def listed() -> dict[str, int | None]:
            self._files.invalidate_cache()
            found = self._files.find(self._root, detail=True)
            return {str(path)[len(self._root) + 1 :]: entry.get("size") for path, entry in found.items()}

        try:
            sizes: dict[str, int | None] = self._asked(listed, "")
        except FileNotFoundError:
            return {}
        return sizes

    def text(self, name: str) -> str:
        """A text file."""
        data: bytes = self._asked(lambda: self._files.cat_file(self._path(name)), name)
        return data.decode()

    def get(self, name: str, path: Path) -> None:
        """Downloads a file."""
        self._asked(lambda: self._files.get_file(self._path(name), str(path)), name)

    def put(self, path: Path, name: str) -> None:
        """Uploads a file."""

        def upload() -> None:
            path.stat()  # FileNotFoundError for what is missing here
            self._make_folder(name)
            self._files.put_file(str(path), self._path(name))

        self._asked(upload, name)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Replaces a small file."""

        def upload() -> None:
            self._make_folder(name)
            self._files.pipe_file(self._path(name), data)

        self._asked(upload, name)

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        with suppress(FileNotFoundError):
            self._asked(lambda: self._files.rm_file(self._path(name)), name)

    def remove_folder(self, name: str, *, first: str) -> None:
        """Removes a folder after the file that makes it one."""
        self.remove(f"{name}/{first}")
        with suppress(FileNotFoundError):
            self._asked(lambda: self._files.rm(self._path(name), recursive=True), name)

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _make_folder(self, name: str) -> None:
        if self._makes_folders:
            self._files.makedirs(posixpath.dirname(self._path(name)), exist_ok=True)

    def _asked(self, ask: Callable[[], Any], name: str) -> Any:
        for seconds in (*BACK_OFF_S, None):
            try:
                return ask()
            except FileNotFoundError:
                raise
            except Exception as error:
                if seconds is None or isinstance(error, PermissionError):
                    raise _as_os_error(error, f"{self.url}/{name}".rstrip("/")) from error
                time.sleep(seconds)


def _as_os_error(error: Exception, url: str) -> OSError:
    """What a store's library raised, with a number, words and the URL."""
    number = getattr(error, "errno", None)
    if isinstance(error, PermissionError):
        number = errno.EACCES
    return OSError(number or errno.EIO, words_of(error), url)


def words_of(error: Exception) -> str:
    """An error of a store's library in one line."""
    words = " ".join(str(getattr(error, "strerror", None) or error).split())
    return words or type(error).__name__


def remedy_of(url: str) -> str:
    """What may help where a store refuses; starts with a semicolon."""
    if url.startswith("s3"):
        return "; see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_ENDPOINT_URL"
    return ""
