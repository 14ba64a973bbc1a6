"""Files of many pictures, TIFF and DICOM, are opened: a file ─► its frames in time order, of 8 or 16 bits.

    with open_stack(Path("run.dcm"), max_pixels=MAX_PIXELS) as stack:
        stack.facts.num_frames, stack.facts.bits, stack.facts.fps
        for frame in stack.frames([0, 2, 4]):      # (H, W, C) uint8 or uint16
            ...

pydicom and tifffile are extras: without them, `MediaError` names the installation. Nothing but pixels, sizes, rates
and positions is read of a DICOM file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mae3d.video.errors import MediaError, raise_unless_of_the_file
from mae3d.video.facts import MAX_PIXELS
from mae3d.video.levels import Stack

DICOM_AT = 128  # bytes before the word DICM
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF's


def kind_of_stack(head: bytes) -> str:
    """Return "dicom" or "tiff" by a file's first bytes, 132 at least; "" for any other file."""
    if head[DICOM_AT : DICOM_AT + 4] == b"DICM":
        return "dicom"
    return "tiff" if head.startswith(TIFF_MARKS) else ""


def is_stack(path: Path) -> bool:
    """Return whether a file is a TIFF or DICOM by its first bytes; False if it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return bool(kind_of_stack(file.read(DICOM_AT + 4)))
    except OSError:
        return False


@contextmanager
def open_stack(path: Path, *, max_pixels: int = MAX_PIXELS) -> Iterator[Stack]:
    """Yield an opened stack.

    Args:
        path: the file.
        max_pixels: of a frame; files of larger ones are refused before anything is decoded.

    Raises:
        MediaError: it is missing, neither TIFF nor DICOM, too large, of a kind that is not read, or the package that
            reads it is not installed.
        OSError: the disk has gone.
    """
    try:
        with path.open("rb", buffering=0) as file:
            kind = kind_of_stack(file.read(DICOM_AT + 4))
    except FileNotFoundError as error:
        raise MediaError("missing_file", "no such file") from error
    except OSError as error:
        raise_unless_of_the_file(error, path)
        raise MediaError("unreadable", str(error.strerror)) from error
    if kind == "tiff":
        from mae3d.video.tiff import open_tiff

        with open_tiff(path) as stack:
            yield _checked(stack, max_pixels)
    elif kind == "dicom":
        from mae3d.video.dicom import open_dicom

        with open_dicom(path, max_pixels=max_pixels) as stack:
            yield _checked(stack, max_pixels)
    else:
        raise MediaError("unknown_format", "neither a TIFF nor a DICOM file by its first bytes")


def _checked(stack: Stack, max_pixels: int) -> Stack:
    facts = stack.facts
    if facts.width * facts.height > max_pixels:
        message = f"{facts.width}x{facts.height} pixels, --max-pixels {max_pixels} are allowed"
        raise MediaError("too_large", message)
    return stack
