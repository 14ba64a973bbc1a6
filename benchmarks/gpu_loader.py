"""The speed at which a GPU is fed: the sections `jpeg` and `clips` of `benchmarks/gpu.py`.

    jpeg     JPEGs from memory to DALI's decoder; "+ resize" adds a crop of each frame on the device
    clips    the Loader as a trainer sees it: files, crc32, labels and the copy into the batch included

Frames are 340 x 256, quality 90: noise with a spectrum like that of photographs under a moving camera. Cores are the
process's CPU seconds per second.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import build, resident_mb
from benchmarks.gpu_cases import Case, Trial

FRAMES, SIZE = 16, 224
HEIGHT, WIDTH, LENGTH = 256, 340, 24
HW_LOADS = (0.65, 0.0, 0.9, 1.0)  # shares of the JPEG engines, DALI's default first
WARM_UP = 5


@dataclass(frozen=True)
class Speed:
    """The cost of a number of rounds."""

    frames: int  # decoded
    clips: int  # handed out, views counted
    seconds: float
    cpu_seconds: float

    def row(self) -> dict[str, float]:
        """Return the figures of a table's row."""
        speeds = {"frames/s": self.frames / self.seconds, "clips/s": self.clips / self.seconds}
        return {name: speed for name, speed in speeds.items() if speed} | {"cores": self.cpu_seconds / self.seconds}


@dataclass(frozen=True)
class Work:
    """The amount of work of a section: `Work.of(trial)`.

    Attributes:
        device: "cuda" or "cpu".
        batch: samples per batch.
        batches: batches of a figure.
        soak: batches over which the memory is watched.
        threads: DALI's CPU threads.
    """

    device: str
    batch: int
    batches: int
    soak: int
    threads: int

    @staticmethod
    def of(trial: Trial, samples: int) -> "Work":
        """Return a GPU's amount, or a CPU's small one; no batch is larger than the dataset."""
        if trial.on_gpu:
            return Work("cuda", batch=min(32, samples), batches=60, soak=600, threads=6)
        return Work("cpu", batch=min(2, samples), batches=2, soak=4, threads=1)


def jpeg(trial: Trial) -> list[Case]:
    """Measure DALI's decoder by the share of frames that the GPU's JPEG engines take."""
    corpus, work = opened(trial)
    mode, resizes = ("mixed", (None, "gpu")) if trial.on_gpu else ("cpu", (None, "cpu"))

    def measure(resize: Any, load: float) -> dict[str, Any]:
        speed = decoder_speed(corpus, work, decode=mode, resize=resize, hw_decoder_load=load)
        return {"hw_decoder_load": load, "decode": mode, **speed.row()}

    return [
        Case(f"{'decode + resize' if resize else 'decode'}, load {load}", partial(measure, resize, load))
        for load in (HW_LOADS if trial.on_gpu else HW_LOADS[:1])
        for resize in resizes
    ]


def clips(trial: Trial) -> list[Case]:
    """Measure the Loader at one and four views with each decoder, and its memory over many batches."""
    corpus, work = opened(trial)

    def measure(decode: str, views: int) -> dict[str, Any]:
        return {"decode": decode, "views": views, **pipeline_speed(corpus, work, decode=decode, views=views).row()}

    def watch(decode: str) -> dict[str, Any]:
        first, last, speed = soak(corpus, work, decode=decode)
        grown = {f"{name} MB": f"{first[name]:.0f} to {last[name]:.0f}" for name in first}
        return {"decode": decode, "views": 1, **speed.row(), "batches": work.soak, **grown}

    modes = ("mixed", "cpu") if trial.on_gpu else ("cpu",)
    cases = [
        Case(f"{decode}, {views} view{'s' * (views > 1)}", partial(measure, decode, views))
        for decode in modes
        for views in (1, 4)
    ]
    return [*cases, Case("memory", partial(watch, modes[0]))]


def opened(trial: Trial) -> tuple[Any, Work]:
    """Return the dataset that the section `footage` has made, and the amount of work."""
    from pipelines.samples.corpus import open_corpus

    corpus = open_corpus([trial.shards])
    return corpus, Work.of(trial, len(corpus))


def decoder_speed(corpus: Any, work: Work, *, decode: Any, resize: Any, hw_decoder_load: float) -> Speed:
    """Measure DALI alone, on JPEGs that lie in memory."""
    from pipelines.decoding.dali import DaliDecoder, JpegGraph
    from pipelines.reading.source import ClipSource

    loader = _loader(corpus, work, decode="cpu", views=1)
    requests = loader.requests()
    source = ClipSource(corpus, (next(requests) for _ in range(4)), read_threads=4, prefetch=2)
    batches = list(iter(source.next, None))
    source.close()
    loader.close()
    fed = iter(range(sys.maxsize))
    graph = JpegGraph(
        max_frames=work.batch * FRAMES,
        decode=decode,
        resize=resize,
        num_views=1,
        size=SIZE,
        hw_decoder_load=hw_decoder_load,
    )
    decoder = DaliDecoder(
        lambda: batches[next(fed) % len(batches)],
        graph,
        threads=work.threads,
        device_id=0 if work.device == "cuda" else None,
    )
    clips = work.batch if resize else 0
    speed = timed(decoder.run, rounds=work.batches, frames=work.batch * FRAMES, clips=clips)
    decoder.close()
    return speed


def pipeline_speed(corpus: Any, work: Work, *, decode: str, views: int) -> Speed:
    """Measure the Loader with `views` crops of each decoded clip."""
    loader = _loader(corpus, work, decode=decode, views=views)
    speed = _timed_loader(loader, work, rounds=work.batches, views=views)
    loader.close()
    return speed


def soak(corpus: Any, work: Work, *, decode: str) -> tuple[dict[str, float], dict[str, float], Speed]:
    """Measure memory after the warm-up and at the end of many batches, in MB, and their speed."""
    loader = _loader(corpus, work, decode=decode, views=1)
    for _ in range(4 * WARM_UP):
        next(loader)
    first = memory_mb(work.device)
    speed = _timed_loader(loader, work, rounds=work.soak, views=1)
    last = memory_mb(work.device)
    loader.close()
    return first, last, speed


def timed(work: Callable[[], Any], *, rounds: int, frames: int, clips: int) -> Speed:
    """Run a function `rounds` times after a warm-up.

    Args:
        work: one round; leaves its GPU work behind if it likes.
        rounds: how often.
        frames: decoded in a round.
        clips: handed out in a round.
    """
    for _ in range(WARM_UP):
        work()
    _synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        work()
    _synchronize()
    return Speed(frames * rounds, clips * rounds, time.perf_counter() - start, time.process_time() - cpu)


def memory_mb(device: str) -> dict[str, float]:
    """Return the resident memory of this process; of the GPU all that is in use."""
    memory = {"host": resident_mb()}
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        memory["GPU"] = (total - free) / 1e6
    return memory


def make_shards(root: Path, *, samples: int, length: int = LENGTH) -> Path:
    """Build frame folders of synthetic photographs by `python -m preprocess build`; return the dataset's folder."""
    from PIL import Image

    rows = []
    for sample in range(samples):
        folder = root / "frames" / "train" / f"clip_{sample:05d}"
        folder.mkdir(parents=True)
        scene = photograph(sample, height=HEIGHT + length, width=WIDTH + 2 * length)
        for i in range(length):
            frame = scene[i : i + HEIGHT, 2 * i : 2 * i + WIDTH]
            Image.fromarray(frame).save(folder / f"img_{i + 1:05d}.jpg", quality=90)
        rows.append(f"{folder.name} 1 {length} {sample % 10}\n")
    (root / "ledger.csv").write_text("".join(rows))
    build(root / "shards", "--frames", root / "frames", "--ledger", root / "ledger.csv")
    return root / "shards"


def photograph(seed: int, *, height: int, width: int) -> np.ndarray:
    """Return (height, width, 3) uint8 noise whose amplitude falls a little faster than photographs' 1/f (Field, 1987).

    So 340 x 256 pixels take about 25 kB at quality 90; frames of real videos take 15 to 29.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    white = np.fft.rfft2(rng.standard_normal((3, height, width)))
    pink = np.fft.irfft2(white / frequency**1.5, s=(height, width))
    pink = 0.8 * pink[:1] + 0.2 * pink  # colours go together
    pink = 128 + 38 * (pink - pink.mean(axis=(1, 2), keepdims=True)) / pink.std()
    return np.ascontiguousarray(pink.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _timed_loader(loader: Any, work: Work, *, rounds: int, views: int) -> Speed:
    frames = work.batch * FRAMES
    return timed(lambda: next(loader), rounds=rounds, frames=frames, clips=work.batch * views)


def _loader(corpus: Any, work: Work, *, decode: Any, views: int) -> Any:
    from pipelines.config import DataConfig
    from pipelines.loader import Loader

    config = DataConfig(sampling_rate=1, repeat_aug=views, windows="shared", decode_threads=work.threads)
    return Loader(
        corpus,
        replace(config, decode=decode),
        num_frames=FRAMES,
        size=SIZE,
        seed=0,
        global_batch=work.batch,
        device=work.device,
    )


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
