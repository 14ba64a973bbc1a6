"""The facts of video files that are known without a decoder: names, limits, and the properties that headers announce.

Programs that leave decoding to a child process import this, and not PyAV.
"""

from dataclasses import dataclass

VIDEO_SUFFIXES = frozenset(
    (
        *(".360", ".3gpp", ".insv", ".lrv"),
        *(".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265"),
        *(".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mod"),
        *(".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm"),
        *(".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
    )
)
MAX_PIXELS = 1 << 26  # of one frame, 8192 x 8192, unless a setting allows others


@dataclass(frozen=True)
class VideoFacts:
    """A video as its header announces it; NaN = not announced."""

    fps: float
    duration_s: float
    width: int
    height: int
