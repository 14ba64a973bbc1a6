"""Layout video beside layout jpeg, over the same videos at the same rate: bytes, quality, windows, loader, build.

    python benchmarks/layouts.py quality --videos FOLDER      # bytes, PSNR and SSIM of each video
    python benchmarks/layouts.py windows --videos FOLDER      # frames of windows against a full decode; what is read
    python benchmarks/layouts.py loader --videos FOLDER       # CPU time of clips, one view and four
    python benchmarks/layouts.py build --videos FOLDER        # CPU time of a build, by x264's preset

PSNR and SSIM (Wang et al. 2004, a Gaussian window of 11 x 11) are those of luma in full range, against the scaled
frames that both encoders are given. Ratios are those of paired rounds that take turns, in one process with one thread,
or of whole commands for `build`.
"""

import argparse
import io
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import preprocess as builds
from benchmarks.common import alternate, build, ratio
from benchmarks.loader import BATCH, CONFIG, FRAMES, SIZE, requests_of
from mae3d.video.errors import MediaError
from mae3d.video.groups import GroupDecoder
from mae3d.video.reader import open_video
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.stream import ClipStream
from preprocess.dataset.index import open_dataset
from preprocess.encode.frame_store import FrameStore, frame_store
from preprocess.encode.images import scaled_size
from preprocess.encode.video_frames import FrameScaler, plane_rows
from preprocess.plan.settings import Settings

FPS = 7.5
TO_FULL = 255 / 219  # luma of limited range


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "windows", "loader", "build"])
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--fps", type=float, default=FPS)
    parser.add_argument("--crf", type=float, default=Settings.crf)
    parser.add_argument("--preset", default=Settings.preset)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=64, help="in a block")
    options = parser.parse_args()
    torch.set_num_threads(1)
    video = Settings(layout="video", fps=options.fps, crf=options.crf, preset=options.preset)
    with tempfile.TemporaryDirectory(prefix="mae3d-bench-") as name:
        if options.what == "quality":
            quality(options.videos, video)
        elif options.what == "build":
            build_time(options.videos, Path(name), video, rounds=options.rounds)
        else:
            roots = both(options.videos, Path(name), video)
            if options.what == "windows":
                windows(roots["video"])
            loader(roots, clips=options.clips, rounds=options.rounds if options.what == "loader" else 0)


def both(videos: Path, work: Path, settings: Settings) -> dict[str, Path]:
    """Build the videos in both layouts."""
    of_video = ("--layout", "video", "--crf", settings.crf, "--preset", settings.preset)
    for layout, options in (("jpeg", ()), ("video", of_video)):
        build(work / layout, "--videos", videos, "--fps", settings.fps, "--workers", 1, *options)
    sizes = {layout: sum(path.stat().st_size for path in (work / layout).iterdir()) for layout in ("jpeg", "video")}
    kept = {layout: int(open_dataset(work / layout).num_frames.sum()) for layout in sizes}
    print(f"whole folders: {sizes['video'] / sizes['jpeg']:.3f} of the bytes ({sizes}), frames {kept}")
    return {layout: work / layout for layout in sizes}


# --- quality ---


def quality(videos: Path, settings: Settings) -> None:
    """Print bytes and quality of each video and of all, stored as JPEG q90, q75 and as H.264."""
    kinds = {"q90": Settings(fps=settings.fps), "q75": Settings(fps=settings.fps, quality=75), "h264": settings}
    print(f"{'':24}{'frames':>7}" + "".join(f"{kind:>8} kB/f  PSNR  SSIM" for kind in kinds) + "  h264/q90")
    totals = dict.fromkeys(kinds, 0)
    for path in sorted(videos.iterdir()):
        try:
            frames = list(scaled(path, settings.fps or FPS))
        except MediaError as error:
            print(f"{path.name:24} {error}")
            continue
        sizes, text = {}, ""
        for kind, how in kinds.items():
            parts = stored(frames, how)
            members = len(parts) if kind != "h264" else 1
            sizes[kind] = sum(map(len, parts)) + members * 768  # a tar's header and half a block of padding
            totals[kind] += sizes[kind]
            lumas = jpeg_lumas(parts) if kind != "h264" else group_lumas(parts, settings.group, frames)
            psnr, ssim = compared(lumas, [planes[0] for planes in frames])
            text += f"{sizes[kind] / len(frames) / 1000:13.2f} {psnr:5.1f} {ssim:.3f}"
        print(f"{path.name:24}{len(frames):7}{text}{sizes['h264'] / sizes['q90']:10.3f}", flush=True)
    print(f"all: {totals['h264'] / totals['q90']:.3f} of q90's bytes, q75 {totals['q75'] / totals['q90']:.3f}")


Planes = tuple[np.ndarray, np.ndarray, np.ndarray]


def scaled(path: Path, fps: float, *, seconds: float = 20.0) -> Iterator[Planes]:
    """Yield the planes of a video's frames at a rate, as they are given to the encoders."""
    scaler = FrameScaler()
    with open_video(path) as video:
        step = 0
        for at, frame in video.frames(0.0, seconds):
            if at * fps >= step - 1e-6:
                size = scaled_size(*video.upright_size(frame), 256)
                yield scaler.scale(frame, width=size[0], height=size[1])
                step += 1


def stored(frames: list[Planes], settings: Settings) -> list[bytes]:
    """Return the parts that a store makes of planes."""
    parts: list[bytes] = []
    if settings.layout == "jpeg":
        from preprocess.encode.images import encode_planes

        return [encode_planes(*planes, quality=settings.quality) for planes in frames]
    store: FrameStore = frame_store(settings, parts.append)
    height, width = frames[0][0].shape
    for planes in frames:
        store._add(planes, (width, height))  # type: ignore[attr-defined]
    store.finish()
    return parts


def jpeg_lumas(parts: list[bytes]) -> Iterator[np.ndarray]:
    """Yield the luma of JPEGs."""
    for part in parts:
        picture = Image.open(io.BytesIO(part))
        picture.draft("L", picture.size)
        yield np.asarray(picture, float)


def group_lumas(parts: list[bytes], group: int, frames: list[Planes]) -> Iterator[np.ndarray]:
    """Yield the luma of groups in full range, without padding."""
    decoder = GroupDecoder()
    height, width = frames[0][0].shape
    for number, part in enumerate(parts):
        count = min(group, len(frames) - number * group)
        for frame in decoder.decode(part, range(count)):
            yield (plane_rows(frame.planes[0])[:height, :width].astype(float) - 16) * TO_FULL


def compared(lumas: Iterator[np.ndarray], sources: list[np.ndarray]) -> tuple[float, float]:
    """Return PSNR of the mean squared error, in dB, and mean SSIM."""
    errors, similar = [], []
    for luma, source in zip(lumas, sources, strict=True):
        errors.append(float(np.mean((luma - source) ** 2)))
        similar.append(ssim(luma, source))
    return 10 * float(np.log10(255**2 / np.mean(errors))), float(np.mean(similar))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Return the structural similarity of two pictures of one size."""
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def smooth(x: torch.Tensor) -> torch.Tensor:
        across = torch.nn.functional.conv2d(x[None, None], taps[None, None, None])
        return torch.nn.functional.conv2d(across, taps[None, None, :, None])

    x, y = torch.from_numpy(one).double(), torch.from_numpy(other.astype(float))
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y, both_xy = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2, smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * both_xy + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(similar.mean())


# --- windows ---


def windows(root: Path, *, count: int = 30) -> None:
    """Compare the frames of random windows of strides 1 to 4 with a full decode, and count what they cost."""
    dataset = open_dataset(root)
    rng = np.random.default_rng(0)
    compared_frames = differing = decoded = used = clips = 0
    for row in range(len(dataset)):
        length = int(dataset.num_frames[row])
        whole = window(root, row, np.arange(length))
        for stride, _ in itertools.product((1, 2, 3, 4), range(count)):
            frames = (int(rng.integers(length)) + stride * np.arange(FRAMES)) % length
            frames = np.unique(frames)
            got = window(root, row, frames)
            differing += int((got != whole[frames]).reshape(len(frames), -1).any(axis=1).sum())
            compared_frames += len(frames)
        for first in range(max(1, length - FRAMES + 1)):  # windows as training at the stored rate has them
            frames = np.arange(first, min(first + FRAMES, length))
            decoded += sum(numbers[-1] + 1 for _, _, numbers in dataset.layout.by_part(frames))
            used, clips = used + len(frames), clips + 1
    index = sum(dataset.meta["files"][stem]["bytes"] for stem in ("rows", "groups"))
    print(f"{compared_frames} frames of windows compared with a full decode: {differing} differ")
    print(f"packets decoded over frames used: {decoded / used:.3f}, {clips} windows of {FRAMES} frames, stride 1")
    print(f"mapped index: {dataset.meta['files']['groups']['bytes'] / int(dataset.num_frames.sum()):.2f} bytes a frame "
          f"of groups, {index / int(dataset.num_frames.sum()):.2f} with the rows (mean {dataset.num_frames.mean():.0f} "
          "frames a sample)")  # fmt: skip


def window(root: Path, row: int, frames: np.ndarray) -> np.ndarray:
    """Return frames of a sample as RGB, read by their spans."""
    dataset, decoder = open_dataset(root), GroupDecoder()
    spans = dataset.spans(row, frames)
    out = np.empty((len(frames), int(dataset.height[row]), int(dataset.width[row]), 3), np.uint8)
    parts = dataset.layout.by_part(frames)
    with dataset.shard_path(int(dataset.shard[row])).open("rb") as tar:
        for (_, places, within), offset, size in zip(parts, spans.offset.tolist(), spans.size.tolist(), strict=True):
            tar.seek(offset)
            for place, frame in zip(places.tolist(), decoder.decode(tar.read(size), within), strict=True):
                decoder.rgb(frame, out[place])
    return out


# --- the loader, the build ---


def loader(roots: dict[str, Path], *, clips: int, rounds: int) -> None:
    """Compare the CPU time of clips, one thread; and print the reads of a clip."""
    corpora = {layout: open_corpus([root]) for layout, root in roots.items()}
    for views in (1, 4):
        streams = {layout: stream_of(corpus, clips=clips, views=views) for layout, corpus in corpora.items()}
        reader = streams["video"]._source.reader
        batches = len(requests_of(corpora["jpeg"], clips=clips, views=views))
        blocks = {layout: partial(take, stream, batches) for layout, stream in streams.items()}
        if rounds:
            seconds = alternate(blocks, rounds=rounds, clock=time.process_time)
            print(f"{views} view(s): video takes {ratio(seconds['video'], seconds['jpeg'])} of jpeg's CPU time, "
                  f"{1000 * float(np.median(seconds['jpeg'])) / batches / BATCH:.2f} ms a clip")  # fmt: skip
        elif views == 1:
            blocks["video"]()
            print(f"bytes read over bytes used: {reader.bytes_read / reader.bytes_used:.4f}")
        for stream in streams.values():
            stream.close()


def take(stream: ClipStream, batches: int) -> None:
    """Take batches and keep none."""
    for _ in itertools.islice(stream, batches):
        pass


def stream_of(corpus: Corpus, *, clips: int, views: int) -> ClipStream:
    """Return the stream that a Loader reads from, without end."""
    requests = requests_of(corpus, clips=clips, views=views)
    config = replace(CONFIG, decode_threads=1)
    return ClipStream(
        corpus, config, itertools.cycle(requests), max_clips=BATCH, num_frames=FRAMES, num_views=views, size=SIZE,
        device=torch.device("cpu"),
    )  # fmt: skip


def build_time(videos: Path, work: Path, settings: Settings, *, rounds: int) -> None:
    """Compare the CPU time of builds: JPEG, and H.264 at several presets."""
    common = ("--videos", builds.copied(videos, work / "videos", copies=2), "--fps", settings.fps, "--workers", 1)
    names = dict.fromkeys(["superfast", "veryfast", "faster", "medium", settings.preset])
    candidates = {"jpeg": lambda out: builds.build(out, *common)} | {
        preset: (lambda out, preset=preset: builds.build(out, *common, "--layout", "video", "--preset", preset))
        for preset in names
    }
    costs = builds.paired(candidates, work, rounds=rounds)
    seconds = {name: [cost.cpu_s for cost in values] for name, values in costs.items()}
    for name, values in seconds.items():
        if name != "jpeg":
            print(f"{name:10} takes {ratio(values, seconds['jpeg'])} of the JPEG build's CPU time")


if __name__ == "__main__":
    main()
