"""Media that cannot be read have errors of their own, apart from disks and machines that fail."""

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

# Errors of a disk that has gone or of a machine that is short of something, never of one broken file.
_NOT_OF_A_FILE = frozenset(
    (
        *(errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ENOLINK, errno.EREMOTEIO, errno.ETIMEDOUT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EMFILE, errno.ENFILE),
    )
)


class MediaError(Exception):
    """A source that cannot become a sample; `frame` is where it broke, or -1."""

    def __init__(self, reason: str, message: str, *, frame: int = -1) -> None:
        super().__init__(message)
        self.reason = reason
        self.frame = frame

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the error come back from another process."""
        return type(self), (self.reason, str(self)), {"frame": self.frame}


def raise_unless_of_the_file(error: BaseException, path: object) -> None:
    """Raise OSError if an error of reading a file, also FFmpeg's, is that of its disk or of the machine."""
    if (number := getattr(error, "errno", None)) in _NOT_OF_A_FILE:
        raise OSError(number, getattr(error, "strerror", ""), str(path)) from error


def refuse_unconvertible(frame: "av.VideoFrame") -> None:
    """Raise MediaError if swscale would end this process over a frame's pixels, or read what fills their lines."""
    name = frame.format.name
    if name.startswith("yaf32"):
        remedy = "FFmpeg cannot convert these; encode the video again in another pixel format"
    elif name.startswith("bayer_") and (frame.width % 2 or frame.height % 2):
        remedy = "a Bayer pattern needs an even width and height; crop the video"
    else:
        return
    raise MediaError("unsupported", f"{name} frames of {frame.width}x{frame.height} pixels: {remedy}")
