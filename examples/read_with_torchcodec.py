"""Read shards of layout video with torchcodec: a sample's .h264 is one stream that any decoder of H.264 takes.

    python -m preprocess build --videos archive --fps 7.5 --layout video --out shards
    python examples/read_with_torchcodec.py shards

Needs `pip install torchcodec` and FFmpeg's libraries, version 4 or later (Debian: apt install ffmpeg). The stream is
padded to multiples of 16 pixels by its edge; width and height in the .json say what of it is the picture.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from torchcodec.decoders import VideoDecoder


def in_mp4(stream: bytes, fps: float) -> bytes:
    """Put a bare stream into an MP4, bit for bit: torchcodec needs times, and a file in which it can seek."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(stream), format="h264") as bare, av.open(buffer, "w", format="mp4") as file:
        track = file.add_stream_from_template(bare.streams.video[0])
        clock = 1 / Fraction(fps).limit_denominator(1001)
        for number, packet in enumerate(packet for packet in bare.demux() if packet.size):
            packet.stream, packet.time_base = track, clock
            packet.pts, packet.dts, packet.duration = number, number, 1
            file.mux(packet)
    return buffer.getvalue()


def read_videos(shards: Path) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    """Yield what each sample's .json says, and its frames, uint8 (T, 3, H, W)."""
    for path in sorted(shards.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            facts: dict[str, Any] = {}
            for member in tar:
                key, _, kind = member.name.partition(".")
                data = tar.extractfile(member).read()
                if kind == "json":  # it comes before the frames
                    facts = {"key": key, **json.loads(data)}
                else:
                    frames = VideoDecoder(in_mp4(data, facts["fps"]))[:]
                    yield facts, frames[:, :, : facts["height"], : facts["width"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="a dataset of `python -m preprocess build --layout video`")
    for facts, frames in read_videos(parser.parse_args(argv).shards):
        print(f"{facts['name']}: {tuple(frames.shape)} {frames.dtype}, mean {frames.float().mean():.1f}")


if __name__ == "__main__":
    main()
