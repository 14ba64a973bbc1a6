"""A picture becomes the JPEG to store: untouched if trainers can decode it, else decoded and encoded anew.

    jpeg, natural = stored_frame(data, jpeg_header(data), (455, 256), quality=90)

A JPEG that is 8-bit, 3-component, baseline, upright and of the right size passes through byte for byte
(`passes_through`) once it has been decoded strictly, or at once with `check="header"`; everything else that Pillow
reads is turned upright, converted to RGB, resized and encoded as baseline JPEG, 4:2:0.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

# No others: Pillow would hand an EPS file of any name to an interpreter of PostScript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
GREY_MODES = ("1", "L", "LA")
_LONGEST_TAIL = 64  # some writers pad
Check = Literal["decode", "header"]  # how a JPEG shows that it is whole


@dataclass(frozen=True)
class JpegHeader:
    """The properties that decide whether a JPEG can stay as it is."""

    baseline: bool
    bits: int
    components: int
    width: int
    height: int
    orientation: int
    tail: int  # bytes after the end of the image; -1 = the end is missing


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the size with the same aspect and a short side of at most `short_side`; never larger than it was."""
    short = min(width, height)
    if short <= short_side:
        return width, height
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


def passes_through(header: JpegHeader | None, size: tuple[int, int]) -> bool:
    """Return whether a JPEG may be stored untouched: 8-bit baseline RGB, upright, of the sample's size.

    What phones append to a picture (a film, often) is not stored: then it is encoded anew.
    """
    return (
        header is not None
        and header.baseline
        and header.tail <= _LONGEST_TAIL
        and (header.bits, header.components, header.orientation) == (8, 3, 1)
        and (header.width, header.height) == size
    )


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Parse the segments before the scan (ITU-T T.81, annex B); None if `data` is no JPEG."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    orientation = 1
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(body)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(body) < 6:
                return None
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            end = data.rfind(b"\xff\xd9", at)  # an earlier one would be a thumbnail's
            tail = len(data) - end - 2 if end >= 0 else -1
            return JpegHeader(marker == 0xC0, body[0], body[5], width, height, orientation, tail)
        at += 2 + length
    return None


def announced_size(data: bytes, header: JpegHeader | None) -> tuple[int, int]:
    """Return (width, height) of an image as stored, from its header alone; (0, 0) if it has none."""
    if header is not None:
        return header.width, header.height
    image = picture_header(data)
    return (0, 0) if image is None else image.size


def picture_header(data: bytes) -> Image.Image | None:
    """Return an image file of which only the header has been read; None if it has none.

    Raises:
        ValueError: it announces too many pixels.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"too large: {error}") from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        return None


def decode_strictly(data: bytes) -> None:
    """Decode a JPEG; any irregularity of its stream is an error.

    libjpeg-turbo goes on after what it warns of; its warnings find a quarter of all single flipped bits, more than
    FFmpeg's strictest decoding, and without converting colours it takes little more than half the time.

    Raises:
        ValueError: the stream is damaged.
    """
    try:
        simplejpeg.decode_jpeg(data, "gray", strict=True)
    except ValueError as error:
        raise ValueError(f"damaged JPEG: {error}") from error


def check_whole(data: bytes, header: JpegHeader | None, *, check: Check = "decode") -> None:
    """Refuse a JPEG whose end is missing, or, unless the header is enough, one that does not decode strictly.

    Raises:
        ValueError: the JPEG is damaged. What is no JPEG, or none that is baseline, is left to `decode_image`.
    """
    if header is None:
        return
    if header.tail < 0:
        raise ValueError("damaged JPEG: its end is missing")
    if header.baseline and check == "decode":
        decode_strictly(data)


def decode_image(data: bytes) -> Image.Image:
    """Decode an image file to upright 8-bit RGB, without alpha; errors as `decode_upright`."""
    return as_rgb(decode_upright(data))


def decode_upright(data: bytes) -> Image.Image:
    """Decode an image file in its own mode and turn it upright; of more than one picture the first is taken.

    Raises:
        ValueError: not an image, damaged, or too large; the message says which.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError("not an image" if data else "empty file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"damaged image: {error}") from error
    return ImageOps.exif_transpose(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of 8 bits as RGB."""
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB Pillow warns of transparency in a palette
    return image.convert("RGB")


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode a baseline JPEG, 4:2:0, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def encode_planes(y: np.ndarray, cb: np.ndarray, cr: np.ndarray, *, quality: int) -> bytes:
    """Encode luma (height, width) and two planes of chroma of half that, rounded up; uint8, full range.

    Raises:
        ValueError: the planes' sizes do not belong together.
    """
    height, width = y.shape
    half = (-(-height // 2), -(-width // 2))
    if not height or not width or cb.shape != half or cr.shape != half:
        raise ValueError(f"planes of {y.shape}, {cb.shape} and {cr.shape} make no picture of 4:2:0")
    # libjpeg-turbo is given the height, the width and the stride, and reads luma to the next even row and column: they
    # must lie in memory, behind the view.
    whole = np.pad(y, ((0, height % 2), (0, width % 2)), "edge") if height % 2 or width % 2 else np.ascontiguousarray(y)
    chroma = map(np.ascontiguousarray, (cb, cr))
    data: bytes = simplejpeg.encode_jpeg_yuv_planes(whole[:height, :width], *chroma, quality)
    return data


def natural_size(data: bytes, header: JpegHeader | None) -> tuple[int, int]:
    if header is not None and header.orientation == 1:
        return header.width, header.height
    return decode_image(data).size


def stored_frame(
    data: bytes, header: JpegHeader | None, size: tuple[int, int], *, quality: int, check: Check = "decode"
) -> tuple[bytes, tuple[int, int]]:
    """Return the JPEG to store of an image file.

    Args:
        data: the file.
        header: of its JPEG; None if it is none.
        size: (width, height) that the sample has.
        quality: of what is encoded anew.
        check: "header" lets a JPEG pass whose header fits and whose end is there; its middle may be damaged.

    Returns:
        The JPEG to store, and the size that the frame had.

    Raises:
        ValueError: not an image, damaged, or too large; the message says which.
    """
    passes = passes_through(header, size)
    check_whole(data, header, check=check if passes else "decode")
    if passes:
        return data, size
    image, natural = upright_picture(data, size)
    return encode_jpeg(image, quality), natural


def upright_picture(data: bytes, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """Return an image file as upright RGB of a size, and the size that it had; errors as `decode_image`."""
    image = decode_image(data)
    natural = image.size
    return (image if natural == size else image.resize(size, Image.Resampling.BICUBIC)), natural


def _exif_orientation(body: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(body)
        value = exif.get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return 1  # as every viewer does with EXIF that it cannot read
    return value if value in range(1, 9) else 1
