"""The frames of a sample that stays in its video file are decoded: from packets that were read, or from the file.

    decoder = InPlaceDecoder()
    frames = decoder.frames(table, [0, 4, 8], data, "clip.mp4")     # av.VideoFrame each
    decoder.rgb(frames[0], table, width=455, height=256)

A decoder belongs to one thread.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import numpy as np

from mae3d.video.errors import MediaError
from mae3d.video.packets import PacketDecoder, PacketError, PacketTable
from mae3d.video.pictures import Pictures
from mae3d.video.reader import open_video


class InPlaceDecoder:
    """A decoder of samples of any file."""

    def __init__(self) -> None:
        self._packets, self._pictures = PacketDecoder(), Pictures()

    def frames(
        self, table: PacketTable, numbers: Sequence[int] | np.ndarray, data: Mapping[int, bytes], path: str
    ) -> list[av.VideoFrame]:
        """Decode stored frames; those that are one frame of the file are one object.

        If packets do not decode though their bytes are those that were indexed, the file was damaged before that: it
        is opened, and read as a build would read it, which passes over the damage.

        Args:
            table: of the sample.
            numbers: of stored frames.
            data: the bytes of the packets that they need, by number; none if the table has no packets.
            path: the file, which is opened if the table has no packets, or they do not decode.

        Raises:
            PacketError: a frame does not decode.
        """
        is_behind_url = "://" in path
        if table.codec is not None:
            try:
                by_packet = self._packets.decode(table, numbers, data)
                return [by_packet[number] for number in table.packets_of(numbers).tolist()]
            except PacketError:
                if is_behind_url:
                    raise
        elif is_behind_url:
            raise PacketError("its packets do not lie whole in the file, which is behind a URL: build it")
        times = table.seconds[np.asarray(numbers, np.int64)].tolist()
        by_time = _frames_at(Path(path), set(times))
        return [by_time[seconds] for seconds in times]

    def rgb(
        self, frame: av.VideoFrame, table: PacketTable, *, width: int, height: int, channels: int = 3
    ) -> np.ndarray:
        """Return the upright picture of a frame, (height, width, 3) uint8, valid until the next call; or its luma.

        Raises:
            PacketError: its pixels cannot be converted.
        """
        try:
            return self._pictures.rgb(frame, width=width, height=height, way=table.way, channels=channels)
        except av.error.FFmpegError as error:
            raise PacketError(f"{frame.format.name} cannot be converted ({error.strerror})") from error


def _frames_at(path: Path, times: set[float]) -> dict[float, av.VideoFrame]:
    """Return the frames of a file that are shown at certain times, as its own container decodes them."""
    last, decoded = max(times), {}
    try:
        with open_video(path) as video:
            for seconds, frame in video.frames(min(times), last):
                if seconds in times:
                    decoded[seconds] = frame
                if seconds >= last:
                    break
    except (MediaError, av.error.FFmpegError, OSError) as error:
        raise PacketError(f"it does not decode ({getattr(error, 'strerror', None) or error})") from error
    if len(decoded) < len(times):
        raise PacketError(f"{len(times) - len(decoded)} of {len(times)} frames do not decode")
    return decoded
