"""Videos that stay where they are, beside decord and torchcodec on the same files, and the time to a first batch.

    python benchmarks/archive.py footage --videos FOLDER --work FOLDER    # transcodes, for the two others
    python benchmarks/archive.py speed --videos FOLDER                    # CPU time of random clips of each file
    python benchmarks/archive.py start --videos FOLDER --files 1000       # index, build and first batch

`speed` hands every candidate the same frames of the same file: 16 in steps of 4 at 30 a second from a random start, as
a Loader draws them. Ours reads the table of a sample and its packets by the index, and decodes these; the others open
the file for every clip, as the loaders of VideoMAE (decord) and of V-JEPA do. All give RGB of the stored size (short
side 256 at most): the others scale by their own scaler or by torchvision's uint8 resize, whichever is quicker; "as it
is" they do not scale, and leave more to whoever crops. Frames are compared before anything is timed. One thread each,
CPU time, ratios of blocks that take turns. Decord, torchcodec and the FFmpeg libraries that it needs are no
requirements of MAE3D: install them beside it.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torchvision.transforms.v2.functional as v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import preprocess as builds
from benchmarks.common import Ratio, alternate, ratio
from benchmarks.loader import requests_of
from mae3d.video.packets import PacketTable
from pipelines.decoding.clip_decoder import ClipDecoder
from pipelines.reading.source import ClipSource
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.requests import ClipRequest

MOST_APART = 2.0  # levels of 255 in the mean; other frames or colours are farther apart
TRANSCODED = {"340": (340, 256), "720": (1280, 720)}
LONG = ["nasa.mp4", "arm_wrestling.mp4", "demo.avi"]  # one behind the other: half a minute

Make = Callable[[ClipRequest], torch.Tensor]  # a clip ─► (T, H, W, 3) uint8


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["footage", "speed", "start"])
    parser.add_argument("--videos", type=Path, nargs="+", required=True, help="folders of videos")
    parser.add_argument("--work", type=Path, help="folder for what is made")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=6, help="of each file, in a block")
    parser.add_argument("--files", type=int, default=1000, help="of an archive that is indexed")
    parser.add_argument("--built", type=int, default=100, help="of those that are indexed and built for comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mae3d-bench-", dir=options.work) as name:
        if options.what == "footage":
            footage(options.videos[0], options.work or Path(name))
        elif options.what == "speed":
            index(Path(name) / "index", "--videos", *options.videos, "--whole", "--workers", 1)
            speed(open_corpus([Path(name) / "index"]), clips=options.clips, rounds=options.rounds)
        else:
            start(options.videos, Path(name), files=options.files, built=options.built)


def index(out: Path, *options: object) -> None:
    """Run `python -m preprocess index` with these options."""
    builds.run(sys.executable, "-m", "preprocess", "index", "--out", out, *options)


# --- footage ---


def footage(videos: Path, work: Path) -> None:
    """Transcode videos by x264 at its defaults (crf 23, B-frames, a keyframe every 250 frames at least)."""
    sources = [[path.name] for path in sorted(videos.iterdir()) if path.suffix != ".webm"]
    for name, (width, height) in TRANSCODED.items():
        (work / name).mkdir(parents=True, exist_ok=True)
        for parts in [*sources, LONG]:
            stem = "long" if parts == LONG else Path(parts[0]).stem
            transcode([videos / part for part in parts], work / name / f"{stem}_{name}.mp4", width, height)


def transcode(sources: Sequence[Path], target: Path, width: int, height: int) -> None:
    """Write all frames of some videos, one behind the other, at the rate of the first."""
    with av.open(str(sources[0])) as container:
        rate = Fraction(container.streams.video[0].average_rate or 30)
    with av.open(str(target), "w") as output:
        stream = output.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, frame in enumerate(frames_of(sources)):
            scaled = frame.reformat(width, height, "yuv420p")
            scaled.pict_type, scaled.pts, scaled.time_base = 0, number, 1 / rate
            output.mux(stream.encode(scaled))
        output.mux(stream.encode())


def frames_of(sources: Sequence[Path]) -> Iterator[av.VideoFrame]:
    """Yield the frames of some videos."""
    for source in sources:
        with av.open(str(source)) as container:
            yield from container.decode(video=0)


# --- random clips ---


class Candidates:
    """The ways to clips of one corpus, whose samples are whole files."""

    def __init__(self, corpus: Corpus):
        import decord
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize

        self._corpus, self._decord, self._torchcodec, self._resize = corpus, decord, VideoDecoder, Resize
        self.source = ClipSource(corpus, iter(()), read_threads=1, prefetch=0)
        self._decoder = ClipDecoder(corpus)

    def of(self, row: int) -> dict[str, list[tuple[str, Make]]]:
        """Return each rival's ways to the clips of a row, by their names."""
        with av.open(self._corpus.file_name(row)) as container:
            stream = container.streams.video[0]
            is_scaled = (stream.codec_context.height, stream.codec_context.width) != self._size(row)
            number = stream.index
        calls: dict[str, Callable[..., torch.Tensor]] = {"decord": self.decord}
        calls |= {f"torchcodec {mode}": partial(self.torchcodec, mode, number) for mode in ("approximate", "exact")}
        ways: dict[str, list[tuple[str, Make]]] = {}
        for rival, call in calls.items():
            plain: tuple[str, Make] = ("", partial(call, scale=""))
            ways[rival] = [plain]
            if is_scaled:
                ways[rival] = [(scale, partial(call, scale=scale)) for scale in ("own", "torchvision")]
            if is_scaled and rival == "decord":
                ways[f"{rival} as it is"] = [plain]
        return ways

    def ours(self, clip: ClipRequest) -> torch.Tensor:
        """Read and decode by the index."""
        return self._decoder.decode(self.source.fetch(clip))

    def decord(self, clip: ClipRequest, *, scale: str) -> torch.Tensor:
        """Open the file, seek and decode as VideoMAE does; decord chooses the stream."""
        height, width = self._size(clip.row)
        size = {"width": width, "height": height} if scale == "own" else {}
        reader = self._decord.VideoReader(self._corpus.file_name(clip.row), num_threads=1, **size)
        frames = torch.from_numpy(reader.get_batch(clip.frames.tolist()).asnumpy())
        return self._scaled(frames.permute(0, 3, 1, 2), clip.row) if scale == "torchvision" else frames

    def torchcodec(self, mode: str, stream: int, clip: ClipRequest, *, scale: str) -> torch.Tensor:
        """Open the file, seek and decode by torchcodec."""
        decoder = self._torchcodec(
            self._corpus.file_name(clip.row),
            stream_index=stream,
            num_ffmpeg_threads=1,
            seek_mode=mode,
            transforms=[self._resize(self._size(clip.row))] if scale == "own" else None,
        )
        frames = decoder.get_frames_at(clip.frames.tolist()).data
        return self._scaled(frames, clip.row) if scale == "torchvision" else frames.permute(0, 2, 3, 1)

    def apart(self, make: Make, clips: Sequence[ClipRequest]) -> float:
        """Return how far a candidate's frames are from ours, in levels in the mean."""
        gaps = []
        for clip in clips:
            frames = self._scaled(make(clip).permute(0, 3, 1, 2), clip.row)
            gaps.append(float((frames.int() - self.ours(clip).int()).abs().float().mean()))
        return float(np.mean(gaps))

    def packets(self, clips: Sequence[ClipRequest]) -> float:
        """Return how many packets ours decodes for a frame that is used."""
        needed = used = 0
        for clip in clips:
            table = PacketTable.from_bytes(self.source.fetch(clip).parts[0].data)
            needed, used = needed + len(table.needed_at_all(clip.frames)), used + len(np.unique(clip.frames))
        return needed / used

    def _scaled(self, frames: torch.Tensor, row: int) -> torch.Tensor:
        """Return (T, 3, h, w) frames in the stored size, (T, H, W, 3)."""
        size = list(self._size(row))
        resized: Any = frames if list(frames.shape[-2:]) == size else v2.resize(frames, size, antialias=True)
        permuted: torch.Tensor = resized.permute(0, 2, 3, 1)
        return permuted

    def _size(self, row: int) -> tuple[int, int]:
        return int(self._corpus.height[row]), int(self._corpus.width[row])


def speed(corpus: Corpus, *, clips: int, rounds: int) -> None:
    """Compare CPU time per file, and over all files by the geometric mean of each round."""
    candidates = Candidates(corpus)
    drawn: dict[int, list[ClipRequest]] = defaultdict(list)
    for request in requests_of(corpus, clips=clips * len(corpus), views=1):
        for clip in request.clips:
            drawn[clip.row].append(clip)
    pairs: dict[str, list[list[float]]] = defaultdict(list)
    for row, of_row in sorted(drawn.items()):
        ours = partial(each, candidates.ours, of_row)
        blocks, notes = {"ours": ours}, []
        for rival, ways in candidates.of(row).items():
            right = [(name, make) for name, make in ways if candidates.apart(make, of_row) < MOST_APART]
            if not right:
                notes.append(f"{rival} gives other frames")
                continue
            name, make = min(right, key=lambda way: cpu_s(partial(each, way[1], of_row)))
            blocks[rival] = partial(each, make, of_row)
            notes += [f"{rival} scales by {name}"] if name else []
        seconds = alternate(blocks, rounds=rounds, clock=time.process_time)
        kilobytes = {name: read_kb(block) / len(of_row) for name, block in blocks.items()}
        print(f"{corpus.name(row)}: {1000 * float(np.median(seconds['ours'])) / len(of_row):.1f} ms a clip, "
              f"{candidates.packets(of_row):.2f} packets a frame, {kilobytes['ours']:.0f} kB read; "
              + "; ".join(notes))  # fmt: skip
        for rival in list(blocks)[1:]:
            print(f"    {rival:32} takes {ratio(seconds[rival], seconds['ours'])}, {kilobytes[rival]:.0f} kB read")
            pairs[rival].append([a / b for a, b in zip(seconds[rival], seconds["ours"], strict=True)])
        sys.stdout.flush()
    for rival, of_files in pairs.items():
        means = np.exp(np.log(of_files).mean(axis=0)).tolist()
        print(f"all: {rival} takes {Ratio(float(np.median(means)), min(means), max(means))} of ours, "
              f"{len(of_files)} files")  # fmt: skip


def each(make: Make, clips: Sequence[ClipRequest]) -> None:
    """Make clips and keep none."""
    for clip in clips:
        make(clip)


def cpu_s(block: Callable[[], None]) -> float:
    """Return the CPU seconds of the quicker of two runs."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        block()
        seconds.append(time.process_time() - start)
    return min(seconds)


def read_kb(block: Callable[[], None]) -> float:
    """Return the bytes that a block reads from files, in kB."""

    def so_far() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = so_far()
    block()
    return (so_far() - before) / 1000


# --- from nothing to the first batch ---


FIRST = """
import sys
from pipelines.config import DataConfig
from pipelines.samples.corpus import open_corpus
from pipelines.loader import Loader
loader = Loader(open_corpus([sys.argv[1]]), DataConfig(), num_frames=16, size=224, seed=0, global_batch=8)
next(loader)
loader.close()
"""


def start(videos: Sequence[Path], work: Path, *, files: int, built: int) -> None:
    """Print the time of an index and of the first batch from it; of fewer files, beside a build."""
    sources = sorted(path for folder in videos for path in folder.iterdir())
    preprocess = [sys.executable, "-m", "preprocess"]
    build = ("--layout", "video", "--fps", "7.5")
    for count, hows in ((files, {"index": ()}), (built, {"index": (), "build": build})):
        archive = work / f"archive-{count}"
        archive.mkdir()
        for number in range(count):
            source = sources[number % len(sources)]
            shutil.copyfile(source, archive / f"{number:04d}-{source.name}")
        size = sum(path.stat().st_size for path in archive.iterdir())
        print(f"{count} files, copies of {len(sources)} videos, {size / 1e6:.0f} MB")
        for how, options in hows.items():
            out = str(work / f"{how}-{count}")
            made = [*preprocess, how, "--videos", str(archive), "--workers", "2", "--out", out, *options]
            for name, command in ((how, made), ("first batch of it", [sys.executable, "-c", FIRST, out])):
                _, cost = builds.watched(command)
                print(f"  {name}: {cost.wall_s:.1f} s by the clock, {cost.cpu_s:.1f} CPU seconds, "
                      f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
