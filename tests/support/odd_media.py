"""Odd and hostile video files, made from good ones: clocks, sizes, colours, lies, and references to other files."""

import math
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from preprocess.encode.images import decode_image
from preprocess.encode.sample import encode_sample
from preprocess.plan.samples import Facts, PlannedSample
from preprocess.plan.settings import Settings
from tests.support.media import frame_number, make_video, numbered_image

COLOURS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (200, 30, 60),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
    (20, 180, 220),
]
# Weights of red and blue in luma (ITU-T H.273, table 4) and the number that stands for them.
MATRICES = {"bt709": (0.2126, 0.0722, 1), "bt601": (0.299, 0.114, 6), "bt2020": (0.2627, 0.0593, 9)}


def make_colours(path: Path, matrix: str, *, full: bool, tagged: bool = True) -> Path:
    """A frame of 32 x 32 of each of COLOURS, in the matrix and the range given; untagged, nothing says which."""
    red, blue, number = MATRICES[matrix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = number, 2 if full else 1
        for r, g, b in np.array(COLOURS) / 255:
            y = red * r + (1 - red - blue) * g + blue * b
            chroma = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
            luma = 255 * y if full else 16 + 219 * y
            frame = av.VideoFrame(32, 32, "yuv420p")
            codes = [luma, *(128 + (255 if full else 224) * value for value in chroma)]
            for plane, code in zip(frame.planes, codes, strict=True):
                plane.update(bytes([min(255, round(code))]) * plane.buffer_size)
            if tagged:
                frame.colorspace, frame.color_range = number, 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_tagged(
    path: Path, count: int, change: Callable[[av.VideoStream, av.VideoFrame | None], None], codec: str = "ffv1"
) -> Path:
    """Numbered frames of which `change` alters the stream (once, with None) and each frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        change(stream, None)
        for index in range(count):
            frame = av.VideoFrame.from_image(numbered_image(index)).reformat(format="yuv420p")
            change(stream, frame)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_resolution_switch(path: Path) -> Path:
    """10 frames of 64x48 and 10 of 96x64, as when a camera is switched over; the clock begins anew."""
    parts = [
        make_video(path.with_name(f"part_{width}.ts"), 10, codec="libx264", fps=25, size=(width, height))
        for width, height in ((64, 48), (96, 64))
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


def announce_hours(path: Path, hours: float) -> Path:
    """Has the header of a Matroska file announce another length."""
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes, in milliseconds
    path.write_bytes(data[:at] + struct.pack(">d", hours * 3.6e6) + data[at + 8 :])
    return path


def make_reference(path: Path, secret: Path) -> Path:
    """A QuickTime file without frames of its own: its data reference is an alias of `secret` beside it."""
    data = secret.read_bytes()
    target = b"/x/" + secret.name.encode()
    target += b"\0" * (len(target) % 2)
    name = secret.name.encode()
    alias = bytes(14) + b"\1v".ljust(28, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    alias += struct.pack(">HH", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(target)) + target + b"\xff\xff\0\0"
    at = data.index(b"dref") - 4
    old = int.from_bytes(data[at : at + 4])
    dref = _box(b"dref", bytes(4) + struct.pack(">I", 1) + _box(b"alis", alias))
    changed = bytearray(data[:at] + dref + data[at + old :])
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = changed.index(parent) - 4
        size = int.from_bytes(changed[place : place + 4]) + len(dref) - old
        changed[place : place + 4] = size.to_bytes(4)
    place = changed.index(b"mdat") - 4
    size = int.from_bytes(changed[place : place + 4])
    changed[place + 8 : place + size] = bytes(size - 8)
    path.write_bytes(changed)
    return path


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {name}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S" minBufferTime="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
    '<Period><AdaptationSet contentType="video"><Representation id="0" mimeType="video/mp4" bandwidth="1000">'
    "<BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def store(
    path: Path, *, start_s: float = 0.0, stop_s: float = math.inf, **settings: float
) -> tuple[Facts, list[bytes]]:
    """The facts and the JPEGs of a video."""
    row = PlannedSample(0, 0, "video", 0, path.name, path.name, [], "", start_s=start_s, stop_s=stop_s)
    stored: list[bytes] = []
    facts = encode_sample(row, [path], settings=Settings(**settings), sink=stored.append)  # type: ignore[arg-type]
    return facts, stored


def numbers(stored: list[bytes]) -> list[int]:
    """What JPEGs show."""
    return [frame_number(decode_image(data)) for data in stored]
