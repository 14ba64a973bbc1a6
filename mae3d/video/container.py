"""Video files are opened in such a way that nothing else is, by PyAV (FFmpeg in a wheel).

A file ─► its container and video stream.

    container, stream = open_container(Path("clip.mp4"), max_pixels=MAX_PIXELS)

Only the file itself is opened: no network protocol, no playlist, no reference to other files. Decoding is set to one
thread, so that two runs do not differ.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.logging
from av.stream import Disposition

from mae3d.video.errors import MediaError, raise_unless_of_the_file

# Containers that hold media themselves; playlists (hls, concat, dash) and image patterns would name other files.
_FORMATS = (
    "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,gif,flv,live_flv,asf,asf_o,ogg,h264,hevc,m4v,mxf,dv,ivf,nut,rm,obu,"
    "av1,apng,cavsvideo,dirac,dnxhd,gxf,h263,ivr,mjpeg,mjpeg_2000,nsv,nuv,smjpeg,vc1,vc1test,vvc,webp,wtv,yuv4mpegpipe"
)
# FFmpeg's `err_detect` that refuses a damaged frame: its missing parts would hold what was in memory before.
STRICT = "crccheck+bitstream+buffer+explode"
_TOO_LARGE = re.compile(r"(\d+x\d+) exceeds specified max pixel count")  # libavutil/imgutils.c


def open_container(path: Path, max_pixels: int) -> tuple[Any, Any]:
    """Open a file.

    Args:
        path: The file.
        max_pixels: Files that announce larger frames are refused.

    Returns:
        The container (PyAV's), and its first real video stream, set up to be decoded.

    Raises:
        MediaError: The file is missing, not a video in a known container, without a video stream (a cover picture is
            none) or a decoder for it, or too large.
        OSError: The disk of the file has gone.
    """
    try:
        if not path.is_file():
            raise MediaError("missing_file", "no such file")
    except OSError as error:
        raise_unless_of_the_file(error, path)
        raise MediaError("unreadable", str(error.strerror)) from error
    # "file:" so that no part of a name is taken for a protocol.
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "enable_drefs": "0"}
    options["max_pixels"] = str(max_pixels)
    with _ffmpeg_messages() as messages:
        try:
            container = av.open(f"file:{path}", options=options, metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            raise_unless_of_the_file(error, path)
            raise MediaError("unreadable", _explain(error, messages)) from error
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            container.close()
            raise MediaError("no_decoder", "this FFmpeg has no decoder for the video stream")
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        # A decoder that was refused its size while FFmpeg read the first frames logs it, and forgets it.
        refused = next((match[1] for _, _, words in messages if (match := _TOO_LARGE.search(words))), None)
        if refused or stream.codec_context.width * stream.codec_context.height > max_pixels:
            container.close()
            raise MediaError("too_large", f"{refused or size} pixels, --max-pixels {max_pixels} are allowed")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        if is_strict(stream.codec_context):
            stream.codec_context.options |= {"err_detect": STRICT}
        return container, stream
    container.close()
    raise MediaError("no_video", "the file has no video stream")


def is_strict(context: Any) -> bool:
    """Return whether a decoder leaves damaged frames out: if each frame stands alone, or has a checksum."""
    return bool(context.codec.intra_only or context.name == "ffv1")


def check_readable(path: Path) -> None:
    """Read the end of a file that seems to have ended: FFmpeg takes some errors of the disk for the file's end.

    Raises:
        OSError: The disk has gone.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(max(0, file.seek(0, 2) - 1))
            file.read(1)
    except OSError as error:
        raise_unless_of_the_file(error, path)


@contextmanager
def _ffmpeg_messages() -> Iterator[list[tuple[int, str, str]]]:
    """Yield a list of the messages that FFmpeg logs; elsewhere it is silent."""
    av.logging.set_skip_repeated(False)  # the messages of one file must not depend on the file before
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_level(None)


def _explain(error: av.error.FFmpegError | OSError, messages: list[tuple[int, str, str]]) -> str:
    words = [message.strip() for _, _, message in messages if message.strip()]
    return f"{error.strerror}: {words[0]}" if words else str(error.strerror)
