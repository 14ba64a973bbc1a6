"""Frames of 8 or 16 bits and any number of channels become PNGs, and PNGs frames, without loss.

    data = encode_png(pixels)                  # (H, W, C) uint8 or uint16
    pixels = decode_png(data, channels=4)      # the same array

One channel is a grey picture, three are RGB. Of any other number the channels stand one below the other in a grey
picture, C x H rows, which every reader of PNG opens and `reshape(C, H, W)` takes apart. FFmpeg's encoder, its filter
and its effort fixed: equal pixels give equal bytes on all machines that have the same PyAV.
"""

import struct
from fractions import Fraction

import av
import numpy as np

_FORMATS = {(1, 1): "gray", (1, 2): "gray16be", (3, 1): "rgb24", (3, 2): "rgb48be"}
_READ = frozenset((*_FORMATS.values(), "rgba", "rgba64be"))
_OPTIONS = {"pred": "up", "compression_level": "6"}  # of all filters the fastest to undo, on noise the smallest too
_HEADER = struct.Struct(">8s4x4sIIBB")  # signature, length, type, width, height, bits, kind of colour
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # of each kind of colour; a palette is RGB


class PngError(ValueError):
    """A PNG that does not decode, or has other pixels than it should; the message says which."""


def encode_png(pixels: np.ndarray) -> bytes:
    """Return a frame, (H, W, C) uint8 or uint16, as a PNG."""
    height, width, channels = pixels.shape
    if channels not in (1, 3):
        pixels = pixels.transpose(2, 0, 1).reshape(channels * height, width, 1)
    kind = _FORMATS[pixels.shape[2], pixels.dtype.itemsize]
    flat = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    # One encoder per frame: nothing of the frames before can show.
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, len(flat), kind, Fraction(1)
    encoder.thread_count, encoder.options = 1, dict(_OPTIONS)
    frame = av.VideoFrame.from_ndarray(flat, kind)
    return b"".join(bytes(packet) for packet in encoder.encode(frame))


def decode_png(data: bytes, *, channels: int) -> np.ndarray:
    """Return the frame of a PNG that `encode_png` wrote, (H, W, C) uint8 or uint16.

    Raises:
        PngError: it is damaged, or its pixels are of another kind.
    """
    pixels = png_pixels(data)
    if channels == 3 or pixels.shape[2] != 1:
        if pixels.shape[2] != channels:
            raise PngError(f"a PNG of {pixels.shape[2]} channels, not of {channels}")
        return pixels
    if len(pixels) % channels:
        raise PngError(f"{len(pixels)} rows, which are not those of {channels} channels")
    stacked = pixels.reshape(channels, len(pixels) // channels, -1)
    return np.ascontiguousarray(stacked.transpose(1, 2, 0))


def png_pixels(data: bytes) -> np.ndarray:
    """Return the pixels of a PNG as they are, (H, W, C) uint8 or uint16.

    Raises:
        PngError: it is damaged, or not grey, RGB or RGBA of 8 or 16 bits.
    """
    if png_header(data) is None:
        raise PngError("not a PNG")
    decoder = av.CodecContext.create("png", "r")
    decoder.thread_count, decoder.options = 1, {"err_detect": "crccheck+explode"}
    try:
        frames = decoder.decode(av.Packet(data))
    except av.error.FFmpegError as error:
        raise PngError(f"damaged PNG: {error.strerror}") from error
    if len(frames) != 1 or frames[0].format.name not in _READ:
        kind = frames[0].format.name if frames else "no picture"
        raise PngError(f"a PNG that is not grey, RGB or RGBA of 8 or 16 bits ({kind})")
    pixels: np.ndarray = frames[0].to_ndarray()
    return pixels[..., None] if pixels.ndim == 2 else pixels


def png_header(data: bytes) -> tuple[int, int, int, int] | None:
    """Return width, height, channels (alpha included) and bits of a PNG, as it announces them; None if it is none."""
    if len(data) < _HEADER.size or not data.startswith(_SIGNATURE):
        return None
    _, chunk, width, height, bits, colour = _HEADER.unpack_from(data)
    return (width, height, _CHANNELS[colour], bits) if chunk == b"IHDR" and colour in _CHANNELS else None
