"""The purpose of a file is read off its name or its first bytes: metadata of systems, sidecars, flow, media.

is_system("._clip.mp4"), is_system("Thumbs.db")         # True, True: ignored everywhere
role_of("v1_flow_x")                                    # Role(base="v1", kind="flow", word="flow_x")
kind_of(first_bytes)                                    # "video", "image", "text" or ""
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

# What Pillow reads here, see preprocess.encode.images; and pictures that it does not.
IMAGE_SUFFIXES = frozenset(
    (
        *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
        *(".tif", ".tiff", ".webp"),
    )
)
UNREAD_IMAGE_SUFFIXES = frozenset(
    (
        *(".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".dpx", ".exr", ".heic", ".heif", ".j2k", ".jp2", ".jxl"),
        *(".nef", ".tga"),
    )
)
# Files that lie beside media and are known by their suffix: none of them is opened.
_SIDECARS = frozenset(
    (
        *(".aac", ".ass", ".bin", ".bz2", ".cls", ".csv", ".db", ".doc", ".docx", ".flac", ".flo", ".gz", ".h5"),
        *(".hdf5", ".htm", ".html", ".idx", ".ini", ".ipynb", ".json", ".jsonl", ".lock", ".log", ".m3u", ".m3u8"),
        *(".m4a", ".mat", ".md", ".md5", ".mp3", ".npy", ".npz", ".nfo", ".ogg", ".opus", ".parquet", ".part", ".pdf"),
        *(".pkl", ".pt", ".pth", ".py", ".rar", ".rst", ".sbv", ".sh", ".sha256", ".smi", ".srt", ".ssa", ".sub"),
        *(".tgz", ".toml", ".torrent", ".tsv", ".ttml", ".txt", ".url", ".vtt", ".wav", ".xls", ".xlsx", ".xml"),
        *(".xz", ".yaml", ".yml", ".zip", ".zst", ".7z"),
    )
)
HEAD_BYTES = 4096  # of a file with an unknown suffix that are read

_SYSTEM_NAMES = frozenset(
    (
        *("$recycle.bin", "#recycle", "#snapshot", "@eadir", "@recycle", "__macosx", "desktop.ini", "ehthumbs.db"),
        *("ehthumbs_vista.db", "icon\r", "lost+found", "recycler", "system volume information", "thumbs.db"),
        *(".appledb", ".appledesktop", ".appledouble", ".apdisk", ".directory", ".documentrevisions-v100"),
        *(".ds_store", ".fseventsd", ".ipynb_checkpoints", ".localized", ".spotlight-v100", ".temporaryitems"),
        *(".trash", ".trashes", ".volumeicon.icns"),
    )
)
_SYSTEM_PREFIXES = ("._", ".fuse_hidden", ".nfs", ".smbdelete", ".trash-", ".~", "~$")


def is_system(path: str) -> bool:
    """Return whether a relative path is metadata of an operating system, a disk, or an editor, or lies in some."""
    for name in path.lower().split("/"):
        if name in _SYSTEM_NAMES or name.startswith(_SYSTEM_PREFIXES) or name.endswith("~"):
            return True
    return False


def is_ignored(name: str) -> bool:
    """Return whether walks pass by a file or folder: hidden, or the system's."""
    return name.startswith(".") or is_system(name)


_RGB = r"rgb|img|imgs|images?|frames?|pics?|colou?r|jpegs?(?:_\d+)?|jpegimages"
_FLOW = r"(?:(?:optical|tvl1|farneback|raft|pwc|liteflow)[_-]?)?flows?(?:[_-]?[xyuvi])?|[xyuv][_-]?flow|tvl1"
_BESIDE = (
    r"masks?|seg|segm|segmentations?|semantic|instances?|depths?|disp|disparity|normals?|heatmaps?|gt|alpha|matte|"
    r"labels?|annotations?|saliency|thumbs?|thumbnails?|preview|previews|cover|poster"
)
_ROLE = re.compile(
    rf"(?:(?P<base>.*?)[ _.-]+)??(?:(?P<rgb>{_RGB})|(?P<flow>{_FLOW})|(?P<axis>[xyuv])|(?P<beside>{_BESIDE}))",
    re.IGNORECASE | re.DOTALL,
)
PARTNER = {"x": "y", "y": "x", "u": "v", "v": "u"}


@dataclass(frozen=True)
class Role:
    """The parts of a stem or of a folder's name: of `v1_flow_x` the base is `v1`, the kind flow."""

    base: str
    kind: str  # "rgb", "flow", "axis" (x, y, u, v), "beside" (masks, depth, thumbnails), or "" for any other name
    word: str  # lower case


def role_of(name: str) -> Role:
    """Return the role that a stem or a folder's name announces; an empty one is the plain picture's."""
    match = _ROLE.fullmatch(name)
    if match is None or match.lastgroup is None:
        return Role(name, "" if name else "rgb", name.lower())
    return Role(match["base"] or "", match.lastgroup, match[match.lastgroup].lower())


def is_sidecar(name: str) -> bool:
    """Return whether a name's suffix is that of a file beside media: text, sound, arrays, archives."""
    return PurePosixPath(name).suffix.lower() in _SIDECARS


def is_picture(name: str) -> bool:
    """Return whether a name's suffix is that of a picture, read here or not."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in UNREAD_IMAGE_SUFFIXES


def kind_of(head: bytes) -> str:
    """Return what the first HEAD_BYTES of a file are: "video", "image", "text", or "" if nothing is recognised."""
    if _starts_as_image(head):
        return "image"
    if _starts_as_video(head):
        return "video"
    if _is_text(head):
        return "text"
    return "video" if _is_transport_stream(head) else ""


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if len(head) < HEAD_BYTES or error.start < len(head) - 3:  # else a character was cut off
            return False
        text = head[: error.start].decode()
    return "\0" not in text


_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")
_VIDEOS = (
    *(b"\x1a\x45\xdf\xa3", b"FLV\x01", b"OggS", b"YUV4MPEG2", b"DKIF", b"GIF87a", b"GIF89a", b".RMF"),  # Matroska first
    *(b"\0\0\x01\xba", b"\0\0\x01\xb3", b"\0\0\x01\xb0", b"nut/multimedia container"),  # MPEG program, MPEG, MPEG-4
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11",  # WTV
    *(b"\0\0\0\x01\x67", b"\0\0\0\x01\x09", b"\0\0\0\x01\x40\x01", b"\0\0\x01\x67"),  # H.264, HEVC
    *(b"\x1f\x07\0", b"\x12\0\x0a"),  # DV, AV1
)
_BRANDS_OF_PICTURES = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avis", b"msf1", b"crx ")


def _starts_as_image(head: bytes) -> bool:
    return (
        head.startswith(_IMAGES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or re.match(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s", head) is not None
    )


def _starts_as_video(head: bytes) -> bool:
    if head.startswith(_VIDEOS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] not in _BRANDS_OF_PICTURES
    return head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def _is_transport_stream(head: bytes) -> bool:
    """Return whether packets of 188 bytes follow each other, or of 192 with a time before each, or of 204."""
    return any(
        len(head) > start + 2 * step and {head[start], head[start + step], head[start + 2 * step]} == {0x47}
        for start, step in ((0, 188), (4, 192), (0, 204))
    )


def count_by_suffix(names: Iterable[str]) -> str:
    """Return the counts of files by suffix, the most frequent first: `3 .txt, 1 .json, 1 without`."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without a suffix" for name in names)
    first = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    more = sum(count for _, count in first[8:])
    return ", ".join(f"{count} {suffix}" for suffix, count in first[:8]) + (f", {more} others" if more else "")
