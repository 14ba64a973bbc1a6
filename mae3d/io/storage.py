"""Files in object stores, or behind any other URL, are listed, read and written through fsspec.

A URL ─► the files below it, by their relative names: input, output, and the copy of a run.

    storage = Storage("s3://bucket/videos")
    storage.sizes()                        # {"a/1.mp4": 182736, ...}
    storage.get("a/1.mp4", Path("1.mp4"))

Any fsspec URL. Credentials and endpoints come from the environment only: for s3:// AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL and the rest of AWS_*, or FSSPEC_S3_* for any argument of s3fs.
"""

import errno
import logging
import posixpath
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_NO_CONDITIONS = {errno.ENOSYS, errno.EINVAL}  # answers of servers of S3's protocol that know no conditional writes
BACK_OFF_S = (1.0, 4.0, 10.0, 20.0, 30.0)  # seconds before a call is tried again: a server may be started anew
# Of the answers from 300 to 499, which say that the request is wrong, those that another try may change.
_PASSING = {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch", "408", "409", "425", "429"}
# Errors of botocore before anything is sent.
_UNSENT = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError", "NoRegionError"}
_AT_A_TIME = 16  # files that are looked for at the same time
_S3 = ("s3://", "s3a://")
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"}  # folders make themselves


def is_url(text: str) -> bool:
    """Return whether a source or a target is a URL, not a path."""
    return "://" in text


@dataclass(frozen=True)
class Storage:
    """Files below a URL; every call is tried several times. Can be sent to other processes.

    All methods raise FileNotFoundError for a missing file, an OSError that names the URL if the store cannot be reached
    or refuses, and ValueError for a URL that is none or needs a package that is not installed.
    """

    url: str
    back_off_s: tuple[float, ...] = field(default_factory=lambda: BACK_OFF_S)

    def sizes(self, below: str = "", *, expected: Mapping[str, int | None] | None = None) -> dict[str, int | None]:
        """Return the bytes of every file by name, from one listing; None if the store does not know.

        Args:
            below: a folder, of which alone the files are listed; their names begin with it.
            expected: files with their bytes, None for any, that should be there. Those that the listing lacks, or has
                otherwise, are looked for by name: listings of some stores lag behind.
        """
        sizes = self._listed(below)

        def look(name: str) -> None:
            with suppress(FileNotFoundError):
                info = self._info(name)
                if info.get("type") != "directory":
                    sizes[name] = info.get("size")

        doubted = [
            name
            for name, size in (expected or {}).items()
            if name not in sizes or (None not in (size, sizes[name]) and size != sizes[name])
        ]
        if doubted:
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                list(pool.map(look, doubted))
        return sizes

    def exists(self, name: str) -> bool:
        """Return whether there is such a file; no listing has a say."""
        try:
            return bool(self._info(name).get("type") != "directory")
        except FileNotFoundError:
            return False

    def _listed(self, below: str) -> dict[str, int | None]:
        path = self._path(below)

        def listed() -> dict[str, int | None]:
            files, root = self._opened
            files.invalidate_cache()
            entries = files.find(path, detail=True)
            # Consoles of stores make objects that stand for folders: a name with a slash at its end.
            names = {name for name, entry in entries.items() if entry.get("type") != "directory" and name[-1:] != "/"}
            return {str(name)[len(root) + 1 :]: entries[name].get("size") for name in sorted(names)}

        try:
            sizes: dict[str, int | None] = self._call(listed, below)
        except FileNotFoundError as error:
            if self._is_object_store:  # folders need not exist there, but buckets must
                raise OSError(errno.ENXIO, error.strerror, error.filename) from error
            return {}
        return sizes

    def size(self, name: str) -> int | None:
        """Return the bytes of one file, None if the store does not know."""
        size: int | None = self._info(name).get("size")
        return size

    def is_folder(self, name: str = "") -> bool:
        """Return whether there are files below a name, rather than one file; one of them is listed at most."""
        return bool(self._info(name).get("type") == "directory")

    def _info(self, name: str) -> dict[str, Any]:
        try:
            info: dict[str, Any] = self._call(lambda: self._files.info(self._path(name)), name)
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            if self.url.startswith(_S3) and "/" in self._path(name) and not is_missing and _is_final(error.__cause__):
                with suppress(FileNotFoundError):
                    self.read(name, 0, 1)  # raises the same, with the words that an answer to HEAD lacks
            raise
        return info

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return a file's bytes, or those from `start` up to `stop`, fewer at its end."""
        # Whole: without a look at the size before it, whose refusal would have no words, as no answer to HEAD has.
        more = {"max_concurrency": 1} if start is stop is None and self.url.startswith(_S3) else {}
        data: bytes = self._call(lambda: self._files.cat_file(self._path(name), start=start, end=stop, **more), name)
        return data

    def read_exactly(self, name: str, start: int, stop: int) -> bytes:
        """Return a file's bytes from `start` up to `stop`; to be given fewer is a failure of the store."""

        def read() -> bytes:
            data: bytes = self._files.cat_file(self._path(name), start=start, end=stop)
            if len(data) != stop - start:
                raise OSError(errno.EIO, f"the store gave {len(data)} of the bytes {start} to {stop}")
            return data

        data: bytes = self._call(read, name)
        return data

    def read_text(self, name: str) -> str:
        """Return a text file's text."""
        return self.read(name).decode()

    def get(self, name: str, path: Path) -> None:
        """Download a file."""
        self._call(lambda: self._files.get_file(self._path(name), str(path)), name)

    def put(self, path: Path, name: str) -> None:
        """Upload a file."""

        def upload() -> None:
            path.stat()  # raises FileNotFoundError if it is missing here
            self._make_folder(name)
            self._files.put_file(str(path), self._path(name))

        self._call(upload, name)

    def write(self, name: str, data: bytes) -> None:
        """Replace a small file."""

        def upload() -> None:
            self._make_folder(name)
            self._files.pipe_file(self._path(name), data)

        self._call(upload, name)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one, in one step in S3's and Google's stores; return whether it was."""

        def upload() -> bool:
            self._make_folder(name)
            try:
                self._files.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_CONDITIONS:
                    raise
                files, _ = self._opened
                files.invalidate_cache()
                if files.exists(self._path(name)):
                    return False
                files.pipe_file(self._path(name), data)
            return True

        created: bool = self._call(upload, name)
        return created

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            self._call(lambda: self._files.rm_file(self._path(name)), name)

    def remove_folder(self, name: str, *, first: str) -> None:
        """Remove a folder after `first`, the file that makes it one."""
        self.remove(f"{name}/{first}")
        if self._is_object_store:  # by names: a folder's would be taken for a pattern
            for file in self.sizes(name):
                self.remove(file)
            return
        with suppress(FileNotFoundError):
            self._call(lambda: self._files.rm(self._path(name), recursive=True), name)

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """Return fsspec's filesystem, and the path there."""
        import fsspec
        from fsspec.registry import known_implementations

        for library in ("botocore", "aiobotocore"):  # they log where they found the credentials
            logging.getLogger(library).setLevel(logging.WARNING)
        protocol = self.url.partition("://")[0].partition("::")[0]
        try:
            files, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            package = known_implementations.get(protocol, {}).get("class", protocol).partition(".")[0]
            hint = f"pip install {package}" if package != "fsspec" else "install what it names"
            raise ValueError(f"{self.url}: {protocol}:// needs another package ({error}): {hint}") from error
        except ValueError as error:
            raise ValueError(f"{self.url}: {error}; give a folder, or a URL such as s3://bucket/folder") from error
        # What other processes write is seen at once: a name that the last listing lacked would pass for missing.
        if (cache := getattr(files, "dircache", None)) is not None:
            cache.use_listings_cache = False
            files.invalidate_cache()
        return files, root.rstrip("/")

    def _path(self, name: str) -> str:
        return posixpath.join(self._opened[1], name).rstrip("/")

    @property
    def _is_object_store(self) -> bool:
        return self.url.partition("://")[0] in _OBJECT_STORES

    def _make_folder(self, name: str) -> None:
        if not self._is_object_store:
            self._files.makedirs(posixpath.dirname(self._path(name)), exist_ok=True)

    def _call(self, call: Callable[[], Any], name: str) -> Any:
        """Return what the store answers; try again after a while if it fails, and raise errors that name the URL."""
        url = f"{self.url.rstrip('/')}/{name}".rstrip("/")
        _ = self._opened  # a wrong URL is not tried again
        for attempt, seconds in enumerate((*self.back_off_s, None), 2):
            try:
                return call()
            except FileNotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, describe_error(error), url) from error
            except Exception as error:
                if seconds is None or _is_final(error):
                    raise _as_os_error(error, url) from error
                tries = len(self.back_off_s) + 1
                logger.warning("%s: %s; try %d of %d in %g s", url, describe_error(error), attempt, tries, seconds)
                time.sleep(seconds)


def fetch_whole(get: Callable[[], None], damage_of: Callable[[], str]) -> str:
    """Get a file, and once more if it is damaged, which may have happened on its way; return the damage that is left.

    Args:
        get: downloads it.
        damage_of: says what is wrong with what has come; "" if nothing.
    """
    for _ in range(2):
        get()
        damage = damage_of()
        if not damage:
            break
    return damage


def _is_final(error: BaseException | None) -> bool:
    """Return whether another try would get the same answer: the request is not allowed, or makes no sense."""
    if isinstance(error, PermissionError) or type(error).__name__ in _UNSENT:
        return True
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return True
    answer: dict[str, Any] = getattr(error and error.__cause__, "response", None) or {}  # of botocore's ClientError
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return 300 <= status < 500 and not {str(status), answer.get("Error", {}).get("Code")} & _PASSING


def _as_os_error(error: Exception, url: str) -> OSError:
    """Return an error of a store's library with a number, words and the URL."""
    number = getattr(error, "errno", None)
    if isinstance(error, PermissionError):
        number = errno.EACCES
    elif isinstance(error, TimeoutError):
        number = errno.ETIMEDOUT
    return OSError(number or errno.EIO, describe_error(error), url)


def describe_error(error: Exception) -> str:
    """Return an error of a store's library in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def access_remedy(url: str) -> str:
    """Return what to do if a store refuses or cannot be reached."""
    if not url.startswith("s3"):
        return "see to it that this machine may use it"
    return (
        "see to it that this machine may use it (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
        "AWS_ENDPOINT_URL for a store other than Amazon's, AWS_CA_BUNDLE for a certificate of its own, the bucket's "
        "AWS_DEFAULT_REGION; a clock that is right)"
    )
