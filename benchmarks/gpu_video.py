"""What only a GPU can show of DALI's decoder of H.264 in closed groups: frames, speed, memory, colours, damage, rivals.

    python benchmarks/gpu_video.py                    # an NVIDIA GPU; --batches 10000 watches the memory for longer
    python benchmarks/gpu_video.py --device cpu       # tries this file: the same frames as VP9, the rest is left out

It makes its own frames (`gpu_loader.photograph`, under a moving camera), prints measurements only, and judges nothing:
`--data.decode mixed` is judged by `pipelines.decoding.self_test`. Speeds are of DALI alone, with windows of 16 frames
out of 24 from memory, cropped to 224 x 224; cores are the process's CPU seconds a second.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_loader import memory_mb, photograph, timed

FRAMES, SIZE, GROUP, LENGTH = 16, 224, 8, 24
HEIGHT, WIDTH = 256, 340
Groups = list[bytes]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; return 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=32, help="clips a batch")
    parser.add_argument("--batches", type=int, default=200, help="batches a figure")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 8, 16], help="DALI's CPU threads")
    parser.add_argument("--sizes", type=int, default=50, help="sizes in one batch, of the figure with many")
    options = parser.parse_args(argv)
    import torch

    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured (--device cpu tries the benchmark itself)")
        return 2
    where = torch.cuda.get_device_name() if on_gpu else "the CPU, VP9 in the place of H.264"
    print(f"{where}, {len(os.sched_getaffinity(0))} CPU cores, torch {torch.__version__}", flush=True)
    frames_and_colours(options)
    speeds(options)
    damage(options)
    if on_gpu:
        beside_training(options)
        rival(options)
    else:
        print("left out on the CPU: H.264 itself, NVDEC's sessions and memory, training beside it, torchcodec on CUDA")
    return 0


def frames_and_colours(options: argparse.Namespace) -> None:
    """Compare windows that start anywhere, from the second group on too, with the CPU's frames (1 and 3)."""
    from mae3d.video.groups import GroupDecoder

    rng, decoder, groups = np.random.default_rng(0), GroupDecoder(), encoded(WIDTH, HEIGHT, stored_width=352)
    whole = np.zeros((LENGTH, HEIGHT, WIDTH, 3), np.uint8)
    for part, group in enumerate(groups):
        for number, frame in enumerate(decoder.decode(group, range(GROUP))):
            decoder.rgb(frame, whole[part * GROUP + number])
    levels, wrong = [], 0
    for start in range(LENGTH):
        frames = np.sort(rng.integers(start, LENGTH, FRAMES))
        batch, graph = batch_and_graph(options, [groups], [frames], size=HEIGHT, box=(HEIGHT, HEIGHT))
        (pixels,) = decoder_of(options, batch, graph).run()[1]
        got = np.asarray(pixels.as_cpu().as_tensor())[0].astype(int)
        distance = np.array([[np.abs(one - other[:, :HEIGHT]).mean() for other in whole] for one in got])
        wrong += int((distance.argmin(axis=1) != frames).sum())
        levels.append(distance[np.arange(FRAMES), frames].mean())
    print(f"frames             {wrong} of {LENGTH * FRAMES} frames are nearer to another frame of the CPU's")
    print(
        f"colours            {np.mean(levels):.2f} levels off the CPU's in the mean, at most {max(levels):.2f} a window"
    )


def speeds(options: argparse.Namespace) -> None:
    """Measure frames per second by threads, by padding and by sizes, and the memory before and after (2)."""
    for threads in options.threads:
        cases: dict[str, list[tuple[int, int, int]]] = {
            "padded": [(WIDTH, HEIGHT, 352)],
            "cropped": [(WIDTH, HEIGHT, WIDTH)],
        }
        if threads == options.threads[-1]:
            cases[f"{options.sizes} sizes"] = [(208 + 16 * i, HEIGHT, 208 + 16 * i) for i in range(options.sizes)]
        for name, sizes in cases.items():
            samples = [encoded(width, height, stored_width=stored) for width, height, stored in sizes]
            clips = [samples[i % len(samples)] for i in range(options.batch)]
            frames = [np.arange(i % (LENGTH - FRAMES), i % (LENGTH - FRAMES) + FRAMES) for i in range(options.batch)]
            batch, graph = batch_and_graph(options, clips, frames, size=SIZE, box=(HEIGHT, 208))
            decoder = decoder_of(options, batch, graph, threads=threads)
            decoder.run()
            first = memory_mb(options.device)
            speed = timed(decoder.run, rounds=options.batches, frames=options.batch * FRAMES, clips=options.batch)
            last = memory_mb(options.device)
            grown = ", ".join(f"{where} {first[where]:.0f} -> {last[where]:.0f} MB" for where in first)
            print(f"{threads:3} threads {name:>10} {speed}; {grown}", flush=True)
            decoder.close()


def damage(options: argparse.Namespace) -> None:
    """Print what becomes of groups whose bytes are wrong: an error, or pixels, and how far these are (4)."""
    groups, frames = encoded(WIDTH, HEIGHT, stored_width=352), np.arange(FRAMES)
    middle = len(groups[0]) // 2
    flipped = [groups[0][:middle] + bytes([groups[0][middle] ^ 0x40]) + groups[0][middle + 1 :], *groups[1:]]
    zeroed = [groups[0][:middle] + bytes(len(groups[0]) - middle), *groups[1:]]
    for name, damaged in {"a flipped bit": flipped, "half of it zeros": zeroed, "a group missing": groups[1:]}.items():
        try:
            pixels = [outputs_of(options, one, frames) for one in (groups, damaged)]
        except (RuntimeError, ValueError) as error:
            result = f"an error: {' '.join(str(error).split())[-120:]}"
        else:
            result = f"pixels, {np.abs(pixels[0] - pixels[1]).mean():.1f} levels from the right ones in the mean"
        print(f"damage             {name}: {result}", flush=True)


def beside_training(options: argparse.Namespace) -> None:
    """Measure matrix products with and without decoding between them (5)."""
    import torch

    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    groups = encoded(WIDTH, HEIGHT, stored_width=352)
    clips, frames = [groups] * options.batch, [np.arange(FRAMES)] * options.batch
    decoder = decoder_of(options, *batch_and_graph(options, clips, frames, size=SIZE, box=(HEIGHT, HEIGHT)))
    stream = torch.cuda.current_stream()

    def products() -> None:
        for _ in range(20):
            torch.mm(matrix, matrix)

    def both() -> None:
        products()
        decoder.run(stream)

    seconds = {}
    works: dict[str, Callable[[], Any]] = {"products": products, "decoding": partial(decoder.run, stream), "both": both}
    for name, work in works.items():
        seconds[name] = timed(work, rounds=50, frames=0, clips=0).seconds / 50
    print(
        "beside training    " + ", ".join(f"{name} {1000 * took:.1f} ms" for name, took in seconds.items()), flush=True
    )


def rival(options: argparse.Namespace) -> None:
    """Measure torchcodec's CUDA decoder on the same files, if it is installed (6)."""
    if importlib.util.find_spec("torchcodec") is None:
        print("torchcodec         is not installed: left out")
        return
    decoders: Any = importlib.import_module("torchcodec.decoders")
    video, places = packed(options.device, encoded(WIDTH, HEIGHT, stored_width=352), np.arange(FRAMES))

    def decode() -> None:
        for _ in range(options.batch):
            decoders.VideoDecoder(video, device="cuda").get_frames_at(places)

    speed = timed(decode, rounds=max(1, options.batches // 10), frames=options.batch * FRAMES, clips=options.batch)
    print(f"torchcodec         {speed} (no crops)", flush=True)


def outputs_of(options: argparse.Namespace, groups: Groups, frames: np.ndarray) -> np.ndarray:
    """Decode one clip, (1, T, size, size, C)."""
    decoder = decoder_of(options, *batch_and_graph(options, [groups], [frames], size=SIZE, box=(HEIGHT, HEIGHT)))
    (pixels,) = decoder.run()[1]
    return np.asarray(pixels.as_cpu().as_tensor()).astype(int)


def batch_and_graph(
    options: argparse.Namespace, clips: list[Groups], frames: list[np.ndarray], *, size: int, box: tuple[int, int]
) -> tuple[Any, Any]:
    """Return a batch whose clips show a box in the upper left corner, and the graph that decodes it.

    Args:
        options: the command line's.
        clips: the groups of each clip's sample.
        frames: (T,) of each clip, rising.
        size: height and width of a view, in pixels.
        box: height and width of the box, in pixels.
    """
    from pipelines.decoding.dali import VideoGraph
    from pipelines.reading.source import EncodedBatch
    from pipelines.sampling.augment import Crop, View
    from pipelines.sampling.requests import BatchRequest, ClipRequest

    files = [packed(options.device, *pair) for pair in zip(clips, frames, strict=True)]
    views = (View(Crop(0, 0, *box, False)),)
    requests = tuple(ClipRequest(row, numbers, views) for row, numbers in enumerate(frames))
    request = BatchRequest(0, np.arange(len(requests)), requests, 1)
    batch = EncodedBatch(request, requests, ([],) * len(requests), (False,) * len(requests))
    decode: Any = "mixed" if options.device == "cuda" else "cpu"
    graph = VideoGraph(
        max_clips=len(clips), decode=decode, num_views=1, size=size, pack=lambda fetched: files[fetched.clip.row]
    )
    return batch, graph


def decoder_of(options: argparse.Namespace, batch: Any, graph: Any, *, threads: int = 4) -> Any:
    """Return DALI over the same batch again and again."""
    from pipelines.decoding.dali import DaliDecoder

    return DaliDecoder(lambda: batch, graph, threads=threads, device_id=0 if options.device == "cuda" else None)


def packed(device: str, groups: Groups, frames: np.ndarray) -> tuple[bytes, list[int]]:
    """Return the file of a window, H.264 for a GPU, else VP9, and the places of the frames in it."""
    from mae3d.video.ivf import window_in_ivf
    from tests.support import vp9

    numbers, place_of = np.unique(frames, return_inverse=True)
    parts = np.unique(numbers // GROUP)
    window = [(groups[part], (numbers[numbers // GROUP == part] % GROUP).tolist()) for part in parts]
    pack = window_in_ivf if device == "cuda" else vp9.window_in_ivf
    video, places = pack(window, width=WIDTH, height=HEIGHT)
    return video, [places[place] for place in place_of.tolist()]


@cache
def encoded(width: int, height: int, *, stored_width: int) -> Groups:
    """Return groups of a moving scene as the product's; the SPS crops a stored width that is no multiple of 16."""
    import av

    context: Any = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = stored_width, height, "yuv420p"
    context.time_base, context.thread_count = Fraction(1, 30), 1
    params = f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=0:open-gop=0:threads=1:slices=1"
    context.options = {"crf": "17", "preset": "veryfast", "tune": "psnr,fastdecode", "x264-params": params}
    scene = photograph(width, height=height + LENGTH, width=width + 2 * LENGTH)
    groups: Groups = []
    packets: list[Any] = []
    for number in range(LENGTH):
        pixels = scene[number : number + height, 2 * number : 2 * number + width]
        padded = np.pad(pixels, ((0, 0), (0, stored_width - width), (0, 0)), "edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), "rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
        )
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    for packet in packets:
        if packet.is_keyframe:
            groups.append(b"")
        groups[-1] += bytes(packet)
    return groups


if __name__ == "__main__":
    started = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
