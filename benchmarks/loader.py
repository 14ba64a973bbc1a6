"""How fast clips come, beside what else there is: the same clips from the same bytes, in turn, in one process.

    python benchmarks/loader.py speed --videos FOLDER     # against frame folders, webdataset, PyAV; decode alone
    python benchmarks/loader.py latency --videos FOLDER   # 2 ms more for every read of the storage
    python benchmarks/loader.py start                     # first batch from 1,000 shards
    python benchmarks/loader.py memory --batches 20000

FOLDER holds videos, real ones: noise and flat colours compress and decode at other speeds. Videos of a short side of 240
pixels and more are scaled to 340 x 256, the size that Kinetics is handed round in, stored as H.264 for the one who reads videos, and as JPEGs (quality 90, 7.5 frames a
second) for all others: the shards' frames and the loose files are the same bytes. Clips are 16 frames, crops of half to
all of the frame's area go to 224 x 224 pixels; every candidate is handed the same frames, boxes and flips.

All ratios are medians of paired blocks with their range: CPU seconds of the whole process with one thread, seconds by
the clock with two.
"""

import argparse
import contextlib
import io
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import alternate, ratio
from pipelines.config import DataConfig
from pipelines.corpus import Corpus, open_corpus

FRAMES, SIZE, BATCH = 16, 224, 8
STORED_FPS, SEGMENT_FRAMES = 7.5, 20  # every fourth frame of 30 a second: a clip takes 16 of a sample's 20
WIDTH, HEIGHT, LEAST_SHORT_SIDE = 340, 256, 240
CONFIG = DataConfig(sampling_rate=4, windows="shared", decode="cpu", read_threads=2, prefetch=2)


@dataclass(frozen=True)
class Footage:
    """One footage, stored three ways."""

    corpus: Corpus
    folders: Path  # folders/<key>/<member>.jpg, the shards' members
    videos: Path  # what the corpus was made of: its names are paths below


def main() -> None:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "latency", "start", "memory"])
    parser.add_argument("--videos", type=Path, help="folder of videos")
    parser.add_argument("--work", type=Path, help="folder for the stored footage; kept and used again")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=64, help="a block")
    parser.add_argument("--batches", type=int, default=20_000)
    options = parser.parse_args()
    if options.what in ("speed", "latency") and options.videos is None:
        parser.error("--videos FOLDER is missing")
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mae3d-bench-")))
        if options.what == "speed":
            speed(store(options.videos, work), clips=options.clips, rounds=options.rounds)
        elif options.what == "latency":
            latency(store(options.videos, work), clips=options.clips, rounds=options.rounds)
        elif options.what == "start":
            start(work)
        else:
            memory(work, batches=options.batches)


# --- the footage ---


def store(videos: Path, work: Path) -> Footage:
    """Videos ─► H.264 of a short side of 256, shards, and the shards' members as loose files."""
    small, shards, folders = work / "videos", work / "shards", work / "folders"
    if not small.exists():
        small.mkdir(parents=True)
        for video in sorted(path for path in videos.rglob("*") if path.is_file()):
            _scale(video, small / f"{video.stem}.mp4")
    fps, segment = str(STORED_FPS), str(SEGMENT_FRAMES)
    _build(shards, "--videos", small, "--fps", fps, "--segment-frames", segment)
    corpus = open_corpus([shards])
    if not folders.exists():
        for number in range(len(corpus.datasets[0].shards)):
            with tarfile.open(corpus.shard_path(number)) as tar:
                for member in tar:
                    key, _, name = member.name.partition(".")
                    file = tar.extractfile(member)
                    if name.endswith(".jpg") and file is not None:
                        (folders / key).mkdir(parents=True, exist_ok=True)
                        (folders / key / name).write_bytes(file.read())
    return Footage(corpus, folders, small)


def _scale(source: Path, target: Path) -> None:
    """Transcodes to H.264 as FFmpeg does by default (x264, crf 23, a keyframe at least every 250 frames)."""
    import av

    with contextlib.ExitStack() as stack:
        container = stack.enter_context(av.open(str(source)))
        video = container.streams.video[0]
        width, height = video.codec_context.width, video.codec_context.height
        if min(width, height) < LEAST_SHORT_SIDE:
            return
        output = stack.enter_context(av.open(str(target), "w"))
        stream = output.add_stream("libx264", rate=Fraction(video.average_rate or 30), options={"crf": "23"})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuv420p"
        for frame in container.decode(video):
            frame.pict_type = 0
            for packet in stream.encode(frame.reformat(stream.width, stream.height, format="yuv420p")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)


def _build(out: Path, *options: object) -> None:
    command = [sys.executable, "-m", "preprocess", "build", "--out", out, *options]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])


# --- the candidates: the same requests ─► (clips, R, T, H, W, C) uint8 ---


def requests_of(corpus: Corpus, *, clips: int, views: int) -> list:
    """Batches of requests over shuffled samples, as a Loader asks them, the last epoch's rest included."""
    from pipelines.order import philox
    from pipelines.views import training_request

    config = replace(CONFIG, repeat_aug=views)
    rows = np.concatenate(
        [philox(0, 1, epoch=epoch).permutation(len(corpus)) for epoch in range(-(-clips // len(corpus)))]
    )[:clips]
    return [
        training_request(
            corpus, config, rows=rows[i : i + BATCH], positions=np.arange(i, i + BATCH), epoch=0, seed=0,
            num_frames=FRAMES,
            size=SIZE,
        )
        for i in range(0, clips, BATCH)
    ]  # fmt: skip


def ours(footage: Footage, requests: list, *, views: int, threads: int) -> "ClipStream":
    """The stream that a Loader reads from, without end: `requests` over and over."""
    import torch

    from pipelines.stream import ClipStream

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


def decode_alone(footage: Footage, requests: list, *, threads: int) -> "Decoder":
    """DALI's decoder over bytes that lie in memory already: what no pipeline of ours can pass."""
    from pipelines.dali import Decoder
    from pipelines.source import ClipSource

    source = ClipSource(footage.corpus, iter(requests), read_threads=2, prefetch=2)
    batches = []
    while (batch := source.next()) is not None:
        batches.append(batch)
    source.close()

    left = itertools.cycle(batches)
    return Decoder(
        lambda: next(left), max_frames=BATCH * FRAMES, decode="cpu", resize=None, num_views=2, size=SIZE,
        threads=threads,
    )  # fmt: skip


def _views(decoded: "torch.Tensor", clip) -> "torch.Tensor":
    """(T, C, H, W) ─► (R, T, H, W, C) by torchvision's functions."""
    import torch
    import torchvision.transforms.v2.functional as F

    out = []
    for view in clip.views:
        cut = F.resized_crop(decoded, *view.crop[:4], size=[SIZE, SIZE], antialias=True)
        out.append((F.horizontal_flip(cut) if view.crop.flip else cut).permute(0, 2, 3, 1))
    return torch.stack(out)


def frame_folders(footage: Footage, clip) -> "torch.Tensor":
    """The frame-folder loader of the seeds: one file a frame, PIL; every view reads and decodes its frames again."""
    import torch
    import torchvision.transforms.functional as F
    from PIL import Image

    folder = footage.folders / footage.corpus.key(clip.row)
    views = []
    for view in clip.views:
        crop = view.crop
        frames = []
        for frame in clip.frames.tolist():
            with Image.open(folder / f"{frame:06d}.jpg") as image:
                cut = F.resized_crop(image.convert("RGB"), *crop[:4], size=[SIZE, SIZE])
            frames.append(F.hflip(cut) if crop.flip else cut)
        views.append(torch.stack([torch.from_numpy(np.array(frame)) for frame in frames]))
    return torch.stack(views)


def samples_of_tars(footage: Footage) -> Iterator[tuple[str, dict]]:
    """webdataset over the same tars, one pass: (key, member ─► bytes)."""
    import webdataset

    corpus = footage.corpus
    tars = [str(corpus.shard_path(number)) for number in range(len(corpus.datasets[0].shards))]
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        yield sample["__key__"], sample


def web_dataset(clip, sample: dict) -> "torch.Tensor":
    """webdataset's bytes, torchvision's decoder and crop; all views share one decode."""
    import torch
    from torchvision.io import decode_jpeg

    jpegs = [torch.frombuffer(bytearray(sample[f"{frame:06d}.jpg"]), dtype=torch.uint8) for frame in clip.frames]
    return _views(torch.stack([decode_jpeg(jpeg) for jpeg in jpegs]), clip)


def video_file(footage: Footage, clip) -> "torch.Tensor":
    """PyAV: seek to the keyframe before the clip, decode to its last frame; all views share one decode."""
    import av
    import torch

    dataset, row = footage.corpus.locate(clip.row)
    times = dataset.start_s[row] + clip.frames / dataset.fps[row]
    frames = {}
    with av.open(str(footage.videos / dataset.name(row))) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(int(times.min() / stream.time_base), stream=stream)
        half = 0.5 / float(stream.average_rate)  # preprocessing stored the frame nearest in time
        wanted = sorted(set(times.tolist()))
        for frame in container.decode(stream):
            while wanted and frame.time > wanted[0] - half - 1e-6:
                frames[wanted.pop(0)] = frame.to_ndarray(format="rgb24")
            last = frame
            if not wanted:
                break
        frames |= {t: last.to_ndarray(format="rgb24") for t in wanted}  # the video ends before that time
    return _views(torch.from_numpy(np.stack([frames[t] for t in times.tolist()])).permute(0, 3, 1, 2), clip)


def speed(footage: Footage, *, clips: int, rounds: int) -> None:
    """All candidates at one view and at four, by CPU time with one thread and by the clock with two."""
    import torch

    torch.set_num_threads(1)  # two threads take two clips; OpenMP's own would only get in their way
    corpus = footage.corpus
    clips = -(-clips // len(corpus)) * len(corpus)
    sizes = {f"{w}x{h}" for w, h in zip(corpus.width.tolist(), corpus.height.tolist(), strict=True)}
    print(f"{len(corpus)} samples of {', '.join(sorted(sizes))}; blocks of {clips} clips, {rounds} rounds")
    for views in (1, 4):
        requests = requests_of(corpus, clips=clips, views=views)
        _check_pixels(footage, requests, views=views)
        for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
            seconds = alternate(_blocks(footage, requests, views=views, threads=threads), rounds=rounds, clock=clock)
            unit = "CPU time, 1 thread" if threads == 1 else "wall time, 2 threads"
            print(f"\n{views} view{'s' * (views > 1)}, {unit}")
            for name, values in seconds.items():
                note = "" if name == "ours" else f"ours is {ratio(values, seconds['ours'])} as fast"
                print(f"  {name:28} {1000 * float(np.median(values)) / clips:7.2f} ms/clip   {note}")


def _blocks(footage: Footage, requests: list, *, views: int, threads: int) -> dict[str, Callable[[], None]]:
    clips = [clip for request in requests for clip in request.clips]
    by_key: dict[str, list] = {}
    for clip in clips:
        by_key.setdefault(footage.corpus.key(clip.row), []).append(clip)

    def drain(made: Iterator) -> None:
        for _ in made:
            pass

    def each(make: Callable, work: Iterator) -> None:
        if threads == 1:
            drain(map(lambda arguments: make(*arguments), work))
            return
        with ThreadPoolExecutor(threads) as pool:
            drain(pool.map(lambda arguments: make(*arguments), work))

    def from_tars() -> Iterator:
        for again in range(len(next(iter(by_key.values())))):
            for key, sample in samples_of_tars(footage):
                yield by_key[key][again], sample

    stream, decoder = (
        ours(footage, requests, views=views, threads=threads),
        decode_alone(footage, requests, threads=threads),
    )
    return {
        "ours": lambda: drain(itertools.islice(stream, len(requests))),
        "frame folders, PIL": lambda: each(frame_folders, ((footage, clip) for clip in clips)),
        "webdataset + torchvision": lambda: each(web_dataset, from_tars()),
        "video files, PyAV": lambda: each(video_file, ((footage, clip) for clip in clips)),
        "decode alone, DALI": lambda: drain(decoder.run() for _ in requests),
    }


def _check_pixels(footage: Footage, requests: list, *, views: int) -> None:
    """Every candidate must make the same clips; the video was not compressed as JPEG, so it is near, not equal."""
    import torch

    stream = ours(footage, requests, views=views, threads=1)
    made = torch.cat([batch.clips for batch in itertools.islice(stream, len(requests))]).int()
    stream.close()
    samples = dict(samples_of_tars(footage))
    clips = [clip for request in requests for clip in request.clips]
    assert len(made) == len(clips)
    for name, make, mean, most in (
        ("frame folders", lambda clip: frame_folders(footage, clip), 1.0, 24),
        ("webdataset", lambda clip: web_dataset(clip, samples[footage.corpus.key(clip.row)]), 1.0, 24),
        ("video files", lambda clip: video_file(footage, clip), 4.0, 255),
    ):
        gaps = [(make(clip).int() - ours_made).abs() for clip, ours_made in zip(clips, made, strict=True)]
        found = float(np.mean([gap.float().mean() for gap in gaps])), max(int(gap.max()) for gap in gaps)
        print(f"pixels, {views} view(s): ours against {name}: mean |difference| {found[0]:.2f}, most {found[1]} of 255")
        if found[0] > mean or found[1] > most:
            raise SystemExit(f"{name} does not make the same clips")


if __name__ == "__main__":
    main()
