"""The speed of clips beside other loaders: the same clips of the same bytes, in turn, in one process.

    python benchmarks/loader.py speed --videos FOLDER     # beside frame folders, webdataset, PyAV; decoding alone
    python benchmarks/loader.py latency --videos FOLDER   # with 2 ms more for every read of the storage
    python benchmarks/loader.py start                     # first batch of 1,000 shards

FOLDER holds videos, real ones: noise and flat colours compress and decode at other speeds. Those of a short side of 240
pixels and more are scaled to 340 x 256, the size that Kinetics is handed round in, and stored as H.264 for the one who
reads videos, as JPEGs (quality 90, 7.5 frames a second) for all others: the shards' members and the loose files are the
same bytes. Clips have 16 frames; crops of half to all of the frame's area become 224 x 224 pixels. Every candidate is
handed the same frames, boxes and flips, and its pixels are compared before anything is timed.

Figures are medians of blocks, ratios those of paired blocks with their range: CPU seconds of the whole process with one
thread, seconds by the clock with two.
"""

import argparse
import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from mae3d.io.random import Stream, philox

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rivals
from benchmarks.common import ROOT, Ratio, alternate, build, ratio, settle
from benchmarks.rivals import MEAN, STD, Footage
from pipelines.config import DataConfig
from pipelines.decoding.dali import DaliDecoder, JpegGraph
from pipelines.reading import shard_reader as reads
from pipelines.reading.source import ClipSource
from pipelines.samples.corpus import Corpus
from pipelines.sampling.requests import BatchRequest, training_request
from pipelines.stream import ClipStream

FRAMES, SIZE, BATCH = 16, 224, 8
CONFIG = DataConfig(windows="shared", decode="cpu")
LATENCY_S = 0.002


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "latency", "start"])
    parser.add_argument("--videos", type=Path, help="folder of videos")
    parser.add_argument("--work", type=Path, help="folder for the stored footage, kept and used again")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=64, help="in a block")
    options = parser.parse_args()
    if options.what in ("speed", "latency") and options.videos is None:
        parser.error("--videos FOLDER is missing")
    torch.set_num_threads(1)  # two threads take two clips; OpenMP's own would only get in their way
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mae3d-bench-")))
        if options.what == "speed":
            speed(rivals.store(options.videos, work), clips=options.clips, rounds=options.rounds)
        elif options.what == "latency":
            latency(rivals.store(options.videos, work), clips=options.clips, rounds=options.rounds)
        else:
            start(work)


# --- the candidates ---


def requests_of(corpus: Corpus, *, clips: int, views: int) -> list[BatchRequest]:
    """Return batches of every sample equally often, in a shuffled order, drawn as a Loader draws them."""
    config = replace(CONFIG, repeat_aug=views)
    times = range(-(-clips // len(corpus)))
    rows = np.concatenate([philox(0, Stream.ORDER, epoch=again).permutation(len(corpus)) for again in times])
    return [
        training_request(
            corpus,
            config,
            rows=rows[i : i + BATCH],
            positions=np.arange(i, min(i + BATCH, len(rows))),
            epoch=0,
            seed=0,
            num_frames=FRAMES,
            size=SIZE,
        )
        for i in range(0, len(rows), BATCH)
    ]


def ours(footage: Footage, requests: list[BatchRequest], *, views: int, threads: int) -> ClipStream:
    """Return the stream that a Loader reads from, without end: `requests` over and over."""
    return ClipStream(
        footage.corpus,
        replace(CONFIG, decode_threads=threads),
        itertools.cycle(requests),
        max_clips=BATCH,
        num_frames=FRAMES,
        num_views=views,
        size=SIZE,
        device=torch.device("cpu"),
    )


def decode_alone(footage: Footage, requests: list[BatchRequest], *, threads: int) -> DaliDecoder:
    """Run DALI's decoder over bytes in memory, complete frames: the limit of any pipeline around it."""
    source = ClipSource(footage.corpus, iter(requests), read_threads=2, prefetch=2)
    batches = list(iter(source.next, None))
    source.close()
    again = itertools.cycle(batches)
    graph = JpegGraph(max_frames=BATCH * FRAMES, decode="cpu", resize=None, num_views=1, size=SIZE)
    return DaliDecoder(lambda: next(again), graph, threads=threads)


def blocks_of(
    footage: Footage, requests: list[BatchRequest], *, views: int, threads: int, stack: contextlib.ExitStack
) -> dict[str, Callable[[], None]]:
    """Return a block per candidate: all `requests` once."""
    clips = [clip for request in requests for clip in request.clips]
    by_key = defaultdict(list)
    for clip in clips:
        by_key[footage.corpus.key(clip.row)].append(clip)
    workers = stack.enter_context(ThreadPoolExecutor(threads))

    def each(make: Callable[..., Any], work: Iterable[tuple[Any, ...]]) -> None:
        run = map if threads == 1 else workers.map
        drain(run(lambda arguments: make(*arguments), work))

    def from_tars() -> Iterator[tuple[Any, ...]]:
        for again in range(len(clips) // len(by_key)):
            for key, sample in rivals.samples_of_tars(footage):
                yield sample, by_key[key][again]

    def folders(clip: Any, normalise: bool) -> torch.Tensor:
        return rivals.frame_folders(footage, clip, size=SIZE, normalise=normalise)

    stream = ours(footage, requests, views=views, threads=threads)
    stack.callback(stream.close)
    decoder = decode_alone(footage, requests, threads=threads)
    stack.callback(decoder.close)
    return {
        "ours": lambda: drain(itertools.islice(stream, len(requests))),
        "frame folders, float": lambda: each(folders, ((clip, True) for clip in clips)),
        "frame folders, uint8": lambda: each(folders, ((clip, False) for clip in clips)),
        "webdataset + torchvision": lambda: each(lambda *a: rivals.web_dataset(*a, size=SIZE), from_tars()),
        "video files, PyAV": lambda: each(lambda clip: rivals.video_file(footage, clip, size=SIZE), zip(clips)),
        "decoding alone, DALI": lambda: drain(decoder.run() for _ in requests),
    }


def drain(made: Iterable[Any]) -> None:
    """Consume all and keep none."""
    for _ in made:
        pass


# --- the benchmarks ---


def speed(footage: Footage, *, clips: int, rounds: int) -> None:
    """Compare all candidates at one view and at four, by CPU time with one thread and by the clock with two."""
    corpus = footage.corpus
    sizes = {f"{w}x{h}" for w, h in zip(corpus.width.tolist(), corpus.height.tolist(), strict=True)}
    frame_bytes = sum(shard.bytes for shard in corpus.datasets[0].shards) / int(corpus.num_frames.sum())
    print(f"{len(corpus)} samples of {', '.join(sizes)}, {frame_bytes / 1000:.1f} kB a frame; {rounds} rounds")
    for views in (1, 4):
        requests = requests_of(corpus, clips=clips, views=views)
        check_pixels(footage, requests, views=views)
        in_block = sum(len(request.clips) for request in requests)
        for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
            with contextlib.ExitStack() as stack:
                blocks = blocks_of(footage, requests, views=views, threads=threads, stack=stack)
                seconds = alternate(blocks, rounds=rounds, clock=clock)
            print(f"\n{views} view(s), {'CPU time, 1 thread' if threads == 1 else 'by the clock, 2 threads'}")
            for name, values in seconds.items():
                note = "" if name == "ours" else f"ours is {ratio(values, seconds['ours'])} as fast"
                print(f"  {name:26} {1000 * float(np.median(values)) / in_block:7.2f} ms/clip   {note}".rstrip())
            sys.stdout.flush()


def check_pixels(footage: Footage, requests: list[BatchRequest], *, views: int) -> None:
    """Check that every candidate makes the same clips; the video's may only be near, because JPEG is lossy."""
    stream = ours(footage, requests, views=views, threads=1)
    # A batch's memory is used again once it is dropped: `cat` copies while all of them are held.
    made = torch.cat([batch.clips for batch in itertools.islice(stream, len(requests))]).int()
    stream.close()
    samples = dict(rivals.samples_of_tars(footage))

    def floats(clip: Any) -> torch.Tensor:
        normalised = rivals.frame_folders(footage, clip, size=SIZE, normalise=True).permute(0, 1, 3, 4, 2)
        return (255 * (normalised * torch.tensor(STD) + torch.tensor(MEAN))).round()

    candidates: dict[str, tuple[Callable[[Any], torch.Tensor], float, int]] = {
        "frame folders, float": (floats, 0.1, 2),
        "frame folders, uint8": (
            lambda clip: rivals.frame_folders(footage, clip, size=SIZE, normalise=False),
            0.1,
            2,
        ),
        "webdataset + torchvision": (
            lambda clip: rivals.web_dataset(samples[footage.corpus.key(clip.row)], clip, size=SIZE),
            0.1,
            2,
        ),
        "video files, PyAV": (lambda clip: rivals.video_file(footage, clip, size=SIZE), 4.0, 255),
    }
    clips = [clip for request in requests for clip in request.clips]
    print(f"\n{views} view(s), pixels: difference to ours, of 255")
    for name, (make, mean_bound, bound) in candidates.items():
        gaps = [(make(clip).int() - mine).abs() for clip, mine in zip(clips, made, strict=True)]
        mean, most = float(np.mean([gap.float().mean() for gap in gaps])), max(int(gap.max()) for gap in gaps)
        print(f"  {name:26} mean {mean:.3f}, most {most}")
        if mean > mean_bound or most > bound:
            raise SystemExit(f"{name} does not make the same clips: mean at most {mean_bound}, most at most {bound}")


def latency(footage: Footage, *, clips: int, rounds: int) -> None:
    """Compare the clock with and without `LATENCY_S` more per read, two threads; and bytes read over bytes used."""
    for views in (1, 4):
        requests = requests_of(footage.corpus, clips=clips, views=views)
        slower = _lateness(footage, requests, views=views, rounds=rounds)
        print(f"{views} view(s): with {1000 * LATENCY_S:g} ms a read it takes {slower} of the time")
    source = ClipSource(footage.corpus, iter(requests), read_threads=2, prefetch=2)
    drain(iter(source.next, None))
    source.close()
    reader = source.reader
    print(f"bytes read over bytes used at gap 0: {reader.bytes_read / reader.bytes_used:.4f}")


def _lateness(footage: Footage, requests: list[BatchRequest], *, views: int, rounds: int) -> Ratio:
    real = reads.pread

    def late(descriptor: int, size: int, offset: int) -> bytes:
        time.sleep(LATENCY_S)
        return real(descriptor, size, offset)

    def block(stream: ClipStream, pread: Callable[[int, int, int], bytes]) -> None:
        with mock.patch.object(reads, "pread", pread):
            drain(itertools.islice(stream, len(requests)))
            settle()  # what is read ahead belongs to this block, and so to this latency

    prompt_stream, late_stream = (ours(footage, requests, views=views, threads=2) for _ in range(2))
    blocks = {"prompt": lambda: block(prompt_stream, real), "late": lambda: block(late_stream, late)}
    seconds = alternate(blocks, rounds=rounds, clock=time.perf_counter)
    prompt_stream.close()
    late_stream.close()
    return ratio(seconds["late"], seconds["prompt"])


def start(work: Path, *, shards: int = 1000) -> None:
    """Measure the seconds to the first batch of a new process with 1,000 shards."""
    folder = small_dataset(work, samples=shards, shard_size=1)
    code = f"""
import time
begin = time.perf_counter()
from pipelines.config import DataConfig
from pipelines.samples.corpus import open_corpus
imported = time.perf_counter()
corpus = open_corpus([{str(folder)!r}])
opened = time.perf_counter()
loader = Loader(corpus, DataConfig(), num_frames=16, size=224, seed=0, global_batch=8)
next(loader)
first = time.perf_counter()
loader.close()
print(imported - begin, opened - imported, first - opened)
"""
    rounds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        rounds.append([float(word) for word in done.stdout.split()])
    for name, values in zip(("imports", "opening", "first batch"), zip(*rounds, strict=True), strict=True):
        print(f"{name:12} {np.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")


def small_dataset(work: Path, *, samples: int, shard_size: int) -> Path:
    """Build shards of clips of 20 frames of 96 x 64 pixels of smooth noise."""
    shards = work / f"small-{samples}"
    if not shards.exists():
        rng = np.random.default_rng(0)
        ledger = []
        for sample in range(samples):
            folder = work / "frames" / "train" / f"clip_{sample:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((96, 64))
            for frame in range(20):
                picture.rotate(frame).save(folder / f"img_{frame + 1:05d}.jpg")
            ledger.append(f"{folder.name} 1 20 {sample % 10}\n")
        (work / "frames" / "ledger.csv").write_text("".join(ledger))
        build(shards, "--frames", work / "frames", "--shard-size", shard_size)
    return shards


if __name__ == "__main__":
    main()
