"""A planned sample of a video becomes a table of where its packets lie: nothing is copied, next to nothing is decoded.

    facts = index_sample(row, files, settings=settings, sink=tar.add)

The frames, their times and what is known of the sample are those of a build with the same settings
(`preprocess.encode.sample`), but for damage, which shows only when frames are decoded.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import av
import numpy as np

from mae3d.video.clock import within
from mae3d.video.errors import MediaError
from mae3d.video.listing import Listing
from mae3d.video.orientation import Orientation
from mae3d.video.packets import Packets, PacketTable
from mae3d.video.reader import Video, open_video
from preprocess.encode.frame_store import refuse_more_frames
from preprocess.encode.images import scaled_size
from preprocess.encode.sample import Clocked, chosen_frames, joined_remarks, video_facts
from preprocess.encode.video_properties import Looks
from preprocess.plan.samples import NOT_IN_RANGES, Facts, PlannedSample
from preprocess.plan.settings import Settings


def index_sample(
    row: PlannedSample,
    files: Sequence[Path],
    *,
    settings: Settings,
    sink: Callable[[bytes], None],
    opened: Callable[..., AbstractContextManager[Video]] = open_video,
    progress: Callable[[str], None] = lambda position: None,
) -> Facts:
    """Read one sample's packets and hand their table to `sink`; arguments and errors as of `encode_sample`."""
    try:
        with opened(files[0], max_pixels=settings.max_pixels, progress=progress) as video:
            return _index(video, row, settings=settings, sink=sink)
    except av.error.FFmpegError as error:
        raise MediaError("undecodable", str(error.strerror)) from error


def _index(video: Video, row: PlannedSample, *, settings: Settings, sink: Callable[[bytes], None]) -> Facts:
    listing, declared = video.listing(), video.facts.fps
    if listing.first is None:
        damage = video.damage
        raise MediaError("undecodable", str(damage)) if damage else MediaError("no_frames", "no frame in it")
    numbered = zip(listing.times.seconds, range(len(listing.times.seconds)), strict=True)
    span = within(numbered, row.start_s, row.stop_s)
    chosen = list(chosen_frames(span, row, settings, declared=declared))
    refuse_more_frames(len(chosen), settings)
    looks = Looks(pixel_aspect=video.pixel_aspect)
    size = scaled_size(*video.upright_size(listing.first), settings.short_side)
    looks.add(listing.first, same_size=True)
    remark = joined_remarks([_unranged(listing), *looks.remarks(size)])
    first_s, last_s = (chosen[0][0], chosen[-1][0]) if chosen else (math.nan, math.nan)
    facts = video_facts(Clocked(len(chosen), first_s, last_s, declared), row, settings, size=size, remark=remark)
    sink(_table(listing, [number for _, number in chosen], video.orientation(listing.first)).to_bytes())
    return facts


def _unranged(listing: Listing) -> tuple[str, str] | None:
    if listing.packets is not None:
        return None
    return (NOT_IN_RANGES, "its packets do not lie whole in the file, or are damaged: it is opened for every clip")


def _table(listing: Listing, numbers: list[int], way: Orientation) -> PacketTable:
    """Return the table of the frames with these numbers in the file, with no more packets than they need."""
    seconds = np.array([listing.times.seconds[number] for number in numbers])
    if listing.packets is None:
        return PacketTable(way, np.empty(0, np.int32), seconds, Packets.none(), None)
    packet = listing.packet[numbers]
    start = int(listing.packets.starts_of(packet).min())
    packets = listing.packets.cut(start, int(packet.max()) + 1)
    return PacketTable(way, (packet - start).astype(np.int32), seconds, packets, listing.codec)
