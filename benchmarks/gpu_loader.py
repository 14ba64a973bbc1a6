"""The speed at which a GPU is fed: JPEG frames and clips per second, CPU cores in use, memory over 1,000 batches.

    python benchmarks/gpu_loader.py                        # makes its own frames
    python benchmarks/gpu_loader.py --shards out/shards --batch 64

Frames of its own are 340 x 256, quality 90: noise with a spectrum like that of photographs under a moving camera.
`decode` hands JPEGs from memory to DALI's decoder; `decode + resize` adds a crop of each frame on the device;
`pipeline` is the Loader as a trainer sees it, files, crc32, labels and the copy into the batch included. Cores are the
process's CPU seconds a second. `--device cpu` does the same on the CPU, to try this file.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import build, resident_mb

FRAMES, SIZE = 16, 224
HEIGHT, WIDTH, LENGTH = 256, 340, 24
HW_LOADS = (0.0, 0.65, 0.9, 1.0)
WARM_UP = 5


@dataclass(frozen=True)
class Speed:
    """The cost of a number of rounds."""

    frames: int  # decoded
    clips: int  # handed out, views counted
    seconds: float
    cpu_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.frames / self.seconds:9,.0f} frames/s  {self.clips / self.seconds:8,.1f} clips/s  "
            f"{self.cpu_seconds / self.seconds:5.2f} cores"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; return 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="a dataset; without it one is made")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=32, help="samples a batch")
    parser.add_argument("--batches", type=int, default=60, help="batches a figure")
    parser.add_argument("--soak", type=int, default=1000, help="batches of the soak")
    parser.add_argument("--samples", type=int, default=128, help="samples of the dataset that is made")
    parser.add_argument("--threads", type=int, default=6, help="DALI's CPU threads")
    options = parser.parse_args(argv)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured (--device cpu tries the benchmark itself)")
        return 2
    with tempfile.TemporaryDirectory(prefix="mae3d-gpu-") as work:
        shards = options.shards or make_shards(Path(work), samples=max(options.samples, options.batch))
        report(shards, options)
    return 0


def report(shards: Path, options: argparse.Namespace) -> None:
    """Return all figures, one line each."""
    import torch
    from nvidia.dali import __version__ as dali_version

    from pipelines.samples.corpus import open_corpus

    corpus = open_corpus([shards])
    on_gpu = options.device == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else "the CPU"
    print(f"{where}, {len(os.sched_getaffinity(0))} CPU cores, torch {torch.__version__}, DALI {dali_version}")
    print(f"{len(corpus)} samples; batches of {options.batch} x {FRAMES} frames to {SIZE} x {SIZE}", flush=True)
    mode = "mixed" if on_gpu else "cpu"
    for load in HW_LOADS if on_gpu else (HW_LOADS[1],):
        for resize in (None, "gpu" if on_gpu else "cpu"):
            speed = decoder_speed(corpus, options, decode=mode, resize=resize, hw_decoder_load=load)
            what = "decode + resize" if resize else "decode"
            print(f"{what:18} {mode:6} hw_decoder_load {load:4}  {speed}", flush=True)
    for decode in ("mixed", "cpu") if on_gpu else ("cpu",):
        for views in (1, 4):
            speed = pipeline_speed(corpus, options, decode=decode, views=views)
            print(f"{'pipeline':18} {decode:6} {views} view{'s' * (views > 1):15}  {speed}", flush=True)
    first, last, speed = soak(corpus, options, decode=mode)
    grown = ", ".join(f"{name} {first[name]:.0f} -> {last[name]:.0f} MB" for name in first)
    print(f"{'soak':18} {mode:6} {options.soak} batches         {speed}; {grown}", flush=True)


def decoder_speed(
    corpus: Any, options: argparse.Namespace, *, decode: Any, resize: Any, hw_decoder_load: float
) -> Speed:
    """Measure DALI alone, on JPEGs that lie in memory."""
    from pipelines.decoding.dali import DaliDecoder, JpegGraph
    from pipelines.reading.source import ClipSource

    loader = _loader(corpus, options, decode="cpu", views=1)
    requests = loader.requests()
    source = ClipSource(corpus, (next(requests) for _ in range(4)), read_threads=4, prefetch=2)
    batches = list(iter(source.next, None))
    source.close()
    fed = iter(range(sys.maxsize))
    graph = JpegGraph(
        max_frames=options.batch * FRAMES,
        decode=decode,
        resize=resize,
        num_views=1,
        size=SIZE,
        hw_decoder_load=hw_decoder_load,
    )
    decoder = DaliDecoder(
        lambda: batches[next(fed) % len(batches)],
        graph,
        threads=options.threads,
        device_id=0 if options.device == "cuda" else None,
    )
    clips = options.batch if resize else 0
    speed = timed(decoder.run, rounds=options.batches, frames=options.batch * FRAMES, clips=clips)
    decoder.close()
    return speed


def pipeline_speed(corpus: Any, options: argparse.Namespace, *, decode: str, views: int) -> Speed:
    """Measure the Loader with `views` crops of each decoded clip."""
    loader = _loader(corpus, options, decode=decode, views=views)
    speed = _timed_loader(loader, options, rounds=options.batches, views=views)
    loader.close()
    return speed


def soak(corpus: Any, options: argparse.Namespace, *, decode: str) -> tuple[dict[str, float], dict[str, float], Speed]:
    """Measure memory after the warm-up and at the end of many batches, in MB, and their speed."""
    loader = _loader(corpus, options, decode=decode, views=1)
    for _ in range(4 * WARM_UP):
        next(loader)
    first = memory_mb(options.device)
    speed = _timed_loader(loader, options, rounds=options.soak, views=1)
    last = memory_mb(options.device)
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


def _timed_loader(loader: Any, options: argparse.Namespace, *, rounds: int, views: int) -> Speed:
    frames = options.batch * FRAMES
    return timed(lambda: next(loader), rounds=rounds, frames=frames, clips=options.batch * views)


def _loader(corpus: Any, options: argparse.Namespace, *, decode: Any, views: int) -> Any:
    from pipelines.config import DataConfig
    from pipelines.loader import Loader

    config = DataConfig(sampling_rate=1, repeat_aug=views, windows="shared", decode_threads=options.threads)
    return Loader(
        corpus,
        replace(config, decode=decode),
        num_frames=FRAMES,
        size=SIZE,
        seed=0,
        global_batch=options.batch,
        device=options.device,
    )


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
