"""DALI's decoder of H.264 in closed groups: the section `nvdec` of `benchmarks/gpu.py`.

It makes its own frames (`gpu_loader.photograph`, under a moving camera), and judges nothing: `--data.decode mixed` is
judged by `pipelines.decoding.self_test`. Speeds are of DALI alone, with windows of 16 frames out of 24 from memory,
cropped to 224 x 224; cores are the process's CPU seconds per second. On a CPU the same frames come as VP9, which tries
this file and measures no NVDEC.
"""

import importlib
import importlib.util
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.gpu_cases import Case, Skipped, Trial
from benchmarks.gpu_loader import memory_mb, photograph, timed

FRAMES, SIZE, GROUP, LENGTH = 16, 224, 8, 24
HEIGHT, WIDTH = 256, 340
MANY = [(208 + 16 * i, HEIGHT, 208 + 16 * i) for i in range(32)]  # sizes in one batch
SIZES = {"padded": [(WIDTH, HEIGHT, 352)], "cropped": [(WIDTH, HEIGHT, WIDTH)]}  # width, height, stored width
ON_GPU = (32, 100, (1, 4, 8, 16))  # clips of a batch, batches of a figure, DALI's CPU threads
Groups = list[bytes]


def nvdec(trial: Trial) -> list[Case]:
    """Measure speed by threads and sizes; frames and colours beside the CPU's; damage; beside training; a rival."""
    batch, batches, threads = ON_GPU if trial.on_gpu else (1, 1, (1,))
    works: dict[str, Callable[[], dict[str, Any]]] = {"frames and colours": partial(frames_and_colours, trial.device)}
    for count in threads:
        for name, sizes in (SIZES | ({"32 sizes": MANY} if count > 1 and count == threads[-1] else {})).items():
            works[f"{name}, {count} threads"] = partial(speed, trial.device, sizes, count, batch, batches)
    for name in DAMAGES:
        works[f"damage: {name}"] = partial(damage, trial.device, name)
    works["beside matrix products"] = partial(beside_training, trial.device, batch)
    works["torchcodec on CUDA"] = partial(rival, trial.device, batch, max(1, batches // 10))
    return [Case(name, work) for name, work in works.items()]


def frames_and_colours(device: str) -> dict[str, Any]:
    """Compare windows that start anywhere, from the second group on too, with the CPU's frames."""
    from mae3d.video.groups import GroupDecoder

    rng, decoder, groups = np.random.default_rng(0), GroupDecoder(), encoded(WIDTH, HEIGHT, stored_width=352)
    whole = np.zeros((LENGTH, HEIGHT, WIDTH, 3), np.uint8)
    for part, group in enumerate(groups):
        for number, frame in enumerate(decoder.decode(group, range(GROUP))):
            decoder.rgb(frame, whole[part * GROUP + number])
    levels, wrong = [], 0
    for start in range(LENGTH):
        frames = np.sort(rng.integers(start, LENGTH, FRAMES))
        batch, graph = batch_and_graph(device, [groups], [frames], size=HEIGHT, box=(HEIGHT, HEIGHT))
        dali = decoder_of(device, batch, graph)
        (pixels,) = dali.run()[1]
        got = np.asarray(pixels.as_cpu().as_tensor())[0].astype(int)
        dali.close()
        distance = np.array([[np.abs(one - other[:, :HEIGHT]).mean() for other in whole] for one in got])
        wrong += int((distance.argmin(axis=1) != frames).sum())
        levels.append(distance[np.arange(FRAMES), frames].mean())
    return {
        "wrong frames": f"{wrong} of {LENGTH * FRAMES}", "levels off the CPU's": float(np.mean(levels)),
        "at most": float(max(levels)),
    }  # fmt: skip


def speed(device: str, sizes: list[tuple[int, int, int]], threads: int, num_clips: int, batches: int) -> dict[str, Any]:
    """Measure frames per second, and the memory before and after."""
    samples = [encoded(width, height, stored_width=stored) for width, height, stored in sizes]
    clips = [samples[i % len(samples)] for i in range(num_clips)]
    frames = [np.arange(i % (LENGTH - FRAMES), i % (LENGTH - FRAMES) + FRAMES) for i in range(num_clips)]
    batch, graph = batch_and_graph(device, clips, frames, size=SIZE, box=(HEIGHT, 208))
    decoder = decoder_of(device, batch, graph, threads=threads)
    decoder.run()
    first = memory_mb(device)
    measured = timed(decoder.run, rounds=batches, frames=num_clips * FRAMES, clips=num_clips)
    last = memory_mb(device)
    decoder.close()
    return {**measured.row(), **{f"{name} MB": f"{first[name]:.0f} to {last[name]:.0f}" for name in first}}


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": lambda group: (
        bytes([*group[: len(group) // 2], group[len(group) // 2] ^ 64]) + group[len(group) // 2 + 1 :]
    ),
    "half of it zeros": lambda group: group[: len(group) // 2] + bytes(len(group) - len(group) // 2),
    "a group missing": lambda group: None,
}


def damage(device: str, name: str) -> dict[str, Any]:
    """Return what becomes of a window whose first group is damaged: an error, or pixels, and how far these are."""
    first, *rest = encoded(WIDTH, HEIGHT, stored_width=352)
    damaged = DAMAGES[name](first)
    groups = rest if damaged is None else [damaged, *rest]
    try:
        pixels = [outputs_of(device, one, np.arange(FRAMES)) for one in ([first, *rest], groups)]
    except (RuntimeError, ValueError) as error:
        return {"gives": f"an error: {' '.join(str(error).split())[-120:]}"}
    return {"gives": f"pixels, {np.abs(pixels[0] - pixels[1]).mean():.1f} levels from the right ones in the mean"}


def beside_training(device: str, batch: int) -> dict[str, Any]:
    """Measure matrix products with and without decoding between them."""
    import torch

    if device == "cpu":
        raise Skipped("needs a GPU")
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    groups = encoded(WIDTH, HEIGHT, stored_width=352)
    clips, frames = [groups] * batch, [np.arange(FRAMES)] * batch
    decoder = decoder_of(device, *batch_and_graph(device, clips, frames, size=SIZE, box=(HEIGHT, HEIGHT)))
    stream = torch.cuda.current_stream()

    def products() -> None:
        for _ in range(20):
            torch.mm(matrix, matrix)

    def both() -> None:
        products()
        decoder.run(stream)

    works: dict[str, Callable[[], Any]] = {"products": products, "decoding": partial(decoder.run, stream), "both": both}
    milliseconds = {
        f"{name}, ms": 1000 * timed(work, rounds=50, frames=0, clips=0).seconds / 50 for name, work in works.items()
    }
    decoder.close()
    return milliseconds


def rival(device: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure torchcodec's CUDA decoder on the same files, without crops."""
    if device == "cpu":
        raise Skipped("needs a GPU")
    if importlib.util.find_spec("torchcodec") is None:
        raise Skipped("torchcodec is not installed")
    decoders: Any = importlib.import_module("torchcodec.decoders")
    video, places = packed(device, encoded(WIDTH, HEIGHT, stored_width=352), np.arange(FRAMES))

    def decode() -> None:
        for _ in range(batch):
            decoders.VideoDecoder(video, device="cuda").get_frames_at(places)

    return timed(decode, rounds=rounds, frames=batch * FRAMES, clips=batch).row()


def outputs_of(device: str, groups: Groups, frames: np.ndarray) -> np.ndarray:
    """Decode one clip, (1, T, size, size, C)."""
    decoder = decoder_of(device, *batch_and_graph(device, [groups], [frames], size=SIZE, box=(HEIGHT, HEIGHT)))
    (pixels,) = decoder.run()[1]
    return np.asarray(pixels.as_cpu().as_tensor()).astype(int)


def batch_and_graph(
    device: str, clips: list[Groups], frames: list[np.ndarray], *, size: int, box: tuple[int, int]
) -> tuple[Any, Any]:
    """Return a batch whose clips show a box in the upper left corner, and the graph that decodes it.

    Args:
        device: "cuda", or "cpu".
        clips: the groups of each clip's sample.
        frames: (T,) of each clip, rising.
        size: height and width of a view, in pixels.
        box: height and width of the box, in pixels.
    """
    from pipelines.decoding.dali import VideoGraph
    from pipelines.reading.source import EncodedBatch
    from pipelines.sampling.augment import Crop, View
    from pipelines.sampling.requests import BatchRequest, ClipRequest

    files = [packed(device, *pair) for pair in zip(clips, frames, strict=True)]
    views = (View(Crop(0, 0, *box, False)),)
    requests = tuple(ClipRequest(row, numbers, views) for row, numbers in enumerate(frames))
    request = BatchRequest(0, np.arange(len(requests)), requests, 1)
    batch = EncodedBatch(request, requests, ([],) * len(requests), (False,) * len(requests))
    decode: Any = "mixed" if device == "cuda" else "cpu"
    graph = VideoGraph(
        max_clips=len(clips), decode=decode, num_views=1, size=size, pack=lambda fetched: files[fetched.clip.row]
    )
    return batch, graph


def decoder_of(device: str, batch: Any, graph: Any, *, threads: int = 4) -> Any:
    """Return DALI over the same batch again and again."""
    from pipelines.decoding.dali import DaliDecoder

    return DaliDecoder(lambda: batch, graph, threads=threads, device_id=0 if device == "cuda" else None)


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
