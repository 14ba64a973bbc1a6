"""The speed and memory of preprocessing, beside tools that do a part of it.

    python benchmarks/preprocess.py ffmpeg --videos FOLDER    # beside ffmpeg: decode, scale, MJPEG; CPU time
    python benchmarks/preprocess.py frames --videos FOLDER    # pass-through beside cp, and beside cp and one decoding
    python benchmarks/preprocess.py workers --videos FOLDER   # two workers beside one, by the clock and in CPU time
    python benchmarks/preprocess.py start                     # commands that have next to nothing to do, CPU time
    python benchmarks/preprocess.py memory --videos FOLDER    # of a worker at a video of two hours
    python benchmarks/preprocess.py scale --samples 100000    # an archive of short samples

FOLDER holds real videos. Candidates are whole commands, start-up included, that take turns; ratios are those of paired
rounds with their range. CPU seconds are those of a command and of all processes that it started; input is in the page
cache (it was just written or read), output goes to --work, a folder of this machine's disk.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av

from benchmarks.common import ROOT, ratio

SHORT_SIDE = 256
QUALITY = 85  # makes about as many bytes as -q:v 2
FLAGS = "bicubic+accurate_rnd+bitexact"  # those of preprocess.encode.video_frames


@dataclass(frozen=True)
class Cost:
    """The cost of a command, its children's time included."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ffmpeg", "frames", "workers", "start", "memory", "scale"])
    parser.add_argument("--videos", type=Path, help="folder of videos")
    parser.add_argument("--work", type=Path, help="folder for what is made; emptied by nobody")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=4, help="of the videos: more of them hide the start-up")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--hours", type=float, default=2.0)
    options = parser.parse_args()
    if options.what not in ("scale", "start") and options.videos is None:
        parser.error("--videos FOLDER is missing")
    with tempfile.TemporaryDirectory(prefix="mae3d-bench-", dir=options.work) as name:
        work = Path(name)
        if options.what == "ffmpeg":
            beside_ffmpeg(copied(options.videos, work / "videos", copies=options.copies), work, rounds=options.rounds)
        elif options.what == "frames":
            beside_cp(stored_frames(options.videos, work, copies=options.copies), work, rounds=options.rounds)
        elif options.what == "workers":
            two_workers(copied(options.videos, work / "videos", copies=options.copies), work, rounds=options.rounds)
        elif options.what == "start":
            start_up(work, rounds=options.rounds)
        elif options.what == "memory":
            memory(looped(options.videos, work / "videos", hours=options.hours), work)
        else:
            scale(work, samples=options.samples)


# --- the benchmarks ---


def beside_ffmpeg(videos: Path, work: Path, *, rounds: int) -> None:
    """Compare decoding, scaling and encoding of the same files with FFmpeg's MJPEG at about the same bytes."""
    print(
        subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.partition(" Copy")[0]
    )
    print(f"ours decodes with FFmpeg {av.ffmpeg_version_info}")

    def ours(out: Path) -> None:
        build(out, "--videos", videos, "--workers", 1, "--quality", QUALITY)

    ours(work / "ours")
    frames, num_bytes = totals(work / "ours")
    print(f"ours, --quality {QUALITY}: {frames} frames, {num_bytes / frames / 1000:.1f} kB a frame")
    sizes = {}
    for quality in (2, 3, 4):  # without -qmin 1, 1 is 2
        mjpeg(videos, work / f"q{quality}", quality=quality)
        sizes[quality] = sum(path.stat().st_size for path in (work / f"q{quality}").iterdir()) / frames
        print(f"ffmpeg -q:v {quality}: {sizes[quality] / 1000:.1f} kB a frame")
    chosen = min(sizes, key=lambda quality: abs(sizes[quality] - num_bytes / frames))
    costs = paired(
        {
            "ours": ours,
            f"ffmpeg -q:v {chosen}": lambda out: mjpeg(videos, out, quality=chosen),
            f"ffmpeg -q:v {chosen} -huffman default": lambda out: mjpeg(videos, out, quality=chosen, huffman="default"),
        },
        work,
        rounds=rounds,
    )
    report(costs, "ours", frames=frames, clock="cpu_s")


def beside_cp(frames: Path, work: Path, *, rounds: int) -> None:
    """Compare pass-through by header with `cp -r`, and strict decoding with `cp -r` plus one libjpeg-turbo decode."""

    def ours(out: Path, check: str) -> None:
        build(out, "--frames", frames, "--workers", 1, "--check", check)

    def decoded(out: Path) -> None:
        copy(frames, out)
        run(sys.executable, "-c", _DECODE, out)

    ours(work / "first", "header")
    num_frames, num_bytes = totals(work / "first")
    print(f"{num_frames} frames of {num_bytes / num_frames / 1000:.1f} kB")
    copying = {"ours, --check header": lambda out: ours(out, "header"), "cp -r": lambda out: copy(frames, out)}
    costs = paired(copying, work, rounds=rounds)
    report(costs, "ours, --check header", frames=num_frames, clock="wall_s")
    report(costs, "ours, --check header", frames=num_frames, clock="cpu_s")
    decoding = {"ours, --check decode": lambda out: ours(out, "decode"), "cp -r and one decoding": decoded}
    costs = paired(decoding, work, rounds=rounds)
    report(costs, "ours, --check decode", frames=num_frames, clock="wall_s")
    report(costs, "ours, --check decode", frames=num_frames, clock="cpu_s")


def two_workers(videos: Path, work: Path, *, rounds: int) -> None:
    """Compare two workers with one, and with the machine's own gain for two busy processes: the upper bound."""
    small = ("--shard-size", 4)  # many shards, so that no worker waits long for the other's last
    costs = paired(
        {
            "one worker": lambda out: build(out, "--videos", videos, "--workers", 1, *small),
            "two workers": lambda out: build(out, "--videos", videos, "--workers", 2, *small),
            "one loop": lambda _: spin(1),
            "two loops": lambda _: spin(2),
        },
        work,
        rounds=rounds,
    )
    seconds = {name: [cost.wall_s for cost in values] for name, values in costs.items()}
    pairs = sorted(a / b for a, b in zip(seconds["one worker"], seconds["two workers"], strict=True))
    most = sorted(2 * a / b for a, b in zip(seconds["one loop"], seconds["two loops"], strict=True))
    best = min(seconds["one worker"]) / min(seconds["two workers"])
    print("two workers beside one, by the clock: " + ", ".join(f"{pair:.2f}" for pair in pairs))
    print(f"  median {statistics.median(pairs):.2f}, fastest run of each {best:.2f}")
    print("two busy loops beside one: " + ", ".join(f"{pair:.2f}" for pair in most))
    print(f"  median {statistics.median(most):.2f}")
    used = {name: [cost.cpu_s for cost in costs[name]] for name in ("one worker", "two workers")}
    print(f"CPU time of one worker's build by that of two workers': {ratio(used['one worker'], used['two workers'])}")


def start_up(work: Path, *, rounds: int) -> None:
    """Measure commands that find one video of ten frames, or nothing to do: what is left is their start and end."""
    folder = work / "videos"
    folder.mkdir()
    one = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=10:duration=1", "-pix_fmt", "yuv420p")
    run("ffmpeg", "-v", "error", *one, folder / "a.mp4")
    build(work / "built", "--videos", folder)
    program = (sys.executable, "-m", "preprocess")
    costs = paired(
        {
            "python -c pass": lambda _: run(sys.executable, "-c", "pass"),
            "preprocess --help": lambda _: run(*program, "--help"),
            "preprocess build, one worker": lambda out: build(out, "--videos", folder, "--workers", 1),
            "preprocess build, two workers": lambda out: build(out, "--videos", folder, "--workers", 2),
            "preprocess index": lambda out: run(*program, "index", "--videos", folder, "--out", out),
            "preprocess verify": lambda _: run(*program, "verify", work / "built"),
            "preprocess inspect": lambda _: run(*program, "inspect", work / "built", "000000000"),
        },
        work,
        rounds=rounds,
    )
    for name, values in costs.items():
        used = sorted(cost.cpu_s for cost in values)
        clock = statistics.median(cost.wall_s for cost in values)
        print(f"{name:32} {statistics.median(used):.2f} CPU s ({used[0]:.2f} to {used[-1]:.2f}), {clock:.2f} s")


def memory(videos: Path, work: Path) -> None:
    """Measure each process's peak memory: the video cut as by default, and as one sample."""
    for extra in ((), ("--whole",)):
        peaks, cost = watched(build_command(work / f"out{len(extra)}", "--videos", videos, "--workers", 1, *extra))
        frames, num_bytes = totals(work / f"out{len(extra)}")
        told = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in peaks.items())
        print(f"{' '.join(extra) or 'cut'}: {frames} frames, {num_bytes / 1e9:.2f} GB, {cost.wall_s:.0f} s: {told}")


def scale(work: Path, *, samples: int, distinct: int = 500, frames: int = 8) -> None:
    """Build an archive of short frame folders; their files are hard links to those of `distinct` folders."""
    began = time.perf_counter()
    many_folders(work / "frames", samples=samples, distinct=distinct, frames=frames)
    print(f"{samples} folders of {frames} frames, made in {time.perf_counter() - began:.0f} s")
    peaks, cost = watched(build_command(work / "out", "--frames", work / "frames", "--workers", 2))
    stored, num_bytes = totals(work / "out")
    told = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in peaks.items())
    print(
        f"{stored} frames, {num_bytes / 1e9:.2f} GB in {cost.wall_s:.0f} s by the clock, {cost.cpu_s:.0f} CPU seconds:"
        f" {samples / cost.wall_s:.0f} samples/s; {told}"
    )


# --- what they share ---


def paired(candidates: Mapping[str, Callable[[Path], None]], work: Path, *, rounds: int) -> dict[str, list[Cost]]:
    """Run every candidate once per round, forwards and backwards in turn, after one round that is not counted.

    Args:
        candidates: name ─► a command that writes to the path that it is given, which is not there yet.
        work: where those paths are; what is written is removed again.
        rounds: counted rounds.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name in list(candidates)[:: 1 if number % 2 else -1]:
            out = work / "output"
            used, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            candidates[name](out)
            wall_s, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            if number:
                costs[name].append(Cost(wall_s, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime))
            shutil.rmtree(out, ignore_errors=True)
    return costs


def report(costs: dict[str, list[Cost]], ours: str, *, frames: int, clock: str) -> None:
    """Print a line per candidate: its median time per frame, and how many times as fast ours is."""
    print("by the clock" if clock == "wall_s" else "CPU time")
    seconds = {name: [getattr(cost, clock) for cost in values] for name, values in costs.items()}
    for name, values in seconds.items():
        note = "" if name == ours else f"ours is {ratio(values, seconds[ours])} as fast"
        print(f"  {name:40} {1000 * statistics.median(values) / frames:6.3f} ms a frame   {note}".rstrip())


def build_command(out: Path, *options: object) -> list[str]:
    """Return `python -m preprocess build` with these options."""
    return [sys.executable, "-m", "preprocess", "build", "--out", str(out), *map(str, options)]


def build(out: Path, *options: object) -> None:
    """Run a build."""
    run(*build_command(out, *options))


def run(*command: object) -> None:
    """Run a command silently; its output is shown if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)


def copy(source: Path, out: Path) -> None:
    """Run `cp -r`, which does not wait for the disk as ours does."""
    run("cp", "-r", source, out)


_DECODE = """
import sys
from pathlib import Path
import simplejpeg
for path in Path(sys.argv[1]).rglob("*.jpg"):
    simplejpeg.decode_jpeg(path.read_bytes())
"""


def mjpeg(videos: Path, out: Path, *, quality: int, huffman: str = "optimal") -> None:
    """Run ffmpeg on one thread: every frame to JPEG, one file per video."""
    out.mkdir()
    size = f"'if(gt(iw,ih),-2,min({SHORT_SIDE},iw))':'if(gt(iw,ih),min({SHORT_SIDE},ih),-2)'"
    for video in sorted(videos.iterdir()):
        run(
            *("ffmpeg", "-v", "error", "-nostdin", "-threads", 1, "-filter_threads", 1, "-i", video, "-map", "0:v:0"),
            *("-vf", f"scale={size}:flags={FLAGS}", "-fps_mode", "passthrough", "-threads", 1, "-c:v", "mjpeg"),
            *("-q:v", quality, "-huffman", huffman, "-f", "image2pipe", out / f"{video.name}.mjpeg"),
        )


def spin(processes: int) -> None:
    """Run so many busy loops of some seconds at once."""
    loop = [sys.executable, "-c", "n = 0\nwhile n < 30_000_000: n += 1"]
    for started in [subprocess.Popen(loop) for _ in range(processes)]:
        started.wait()


def totals(out: Path) -> tuple[int, int]:
    """Return (frames, bytes of them) of a dataset."""
    from preprocess.dataset.index import open_dataset

    dataset = open_dataset(out)
    sizes = dataset.part_rows(0, int(dataset.layout.count(dataset.num_frames).sum()))[0]
    return int(dataset.num_frames.sum()), int(sizes.sum(dtype="int64"))


def watched(command: Sequence[str]) -> tuple[dict[str, float], Cost]:
    """Run a command; return peak memory (VmHWM, in MB) of the process and of any decoding child."""
    peaks: dict[str, float] = {}
    used, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for name, peak in _peaks(process.pid):
                peaks[name] = max(peak, peaks.get(name, 0.0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return peaks, Cost(time.perf_counter() - start, cpu_s)


def _peaks(parent: int) -> list[tuple[str, float]]:
    found = []
    pending = [parent]
    while pending:
        pid = pending.pop()
        try:
            words = (Path(f"/proc/{pid}/cmdline").read_bytes()).split(b"\0")
            status = Path(f"/proc/{pid}/status").read_text()
            pending += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        child = "decoding" if b"preprocess.encode.decoder_main" in words else "worker"
        name = "the command" if pid == parent else child
        found += [(name, int(line.split()[1]) / 1000) for line in status.splitlines() if line.startswith("VmHWM")]
    return found


def copied(videos: Path, folder: Path, *, copies: int) -> Path:
    """Copy the videos, many times over."""
    folder.mkdir()
    for copy_number in range(copies):
        for video in sorted(videos.iterdir()):
            shutil.copyfile(video, folder / f"{copy_number}-{video.name}")
    return folder


def stored_frames(videos: Path, work: Path, *, copies: int) -> Path:
    """Make frame folders with a ledger, `copies` of each video's frames as we would store them."""
    from mae3d.video.reader import open_video
    from preprocess.encode.images import scaled_size
    from preprocess.encode.video_frames import FrameEncoder

    rows = []
    for video in sorted(videos.iterdir()):
        with open_video(video) as opened:
            encoder = FrameEncoder(90)
            jpegs = []
            for _, frame in opened.frames():
                width, height = scaled_size(*opened.upright_size(frame), SHORT_SIDE)
                jpegs.append(encoder.encode(frame, width=width, height=height))
        for copy_number in range(copies):
            folder = work / "frames" / "train" / f"{video.stem}-{copy_number}"
            folder.mkdir(parents=True)
            for number, jpeg in enumerate(jpegs, 1):
                (folder / f"img_{number:05d}.jpg").write_bytes(jpeg)
            rows.append(f"{folder.name} 1 {len(jpegs)} 0\n")
    (work / "frames" / "ledger.csv").write_text("".join(rows))
    return work / "frames"


def looped(videos: Path, folder: Path, *, hours: float) -> Path:
    """Copy the first video's packets over and over until it has the requested length."""
    folder.mkdir()
    source = min(videos.glob("*.mp4"))
    with av.open(str(source)) as given, av.open(str(folder / "long.mp4"), "w") as long:
        stream = given.streams.video[0]
        out = long.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size]
        data = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        base = stream.time_base or Fraction(1, 90_000)
        length = max(pts for _, pts, _, _ in data if pts is not None) + round(1 / (stream.average_rate or 25) / base)
        for again in range(int(hours * 3600 / float(length * base)) + 1):
            for payload, pts, dts, key in data:
                packet = av.Packet(payload)
                packet.stream, packet.time_base, packet.is_keyframe = out, base, key
                packet.pts, packet.dts = (pts or 0) + again * length, (dts or 0) + again * length
                long.mux(packet)
    return folder


def many_folders(root: Path, *, samples: int, distinct: int, frames: int) -> None:
    """Make root/train/<name>/img_00001.jpg ..., and a ledger."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = []
    for sample in range(samples):
        folder = root / "train" / f"clip_{sample:06d}"
        folder.mkdir(parents=True)
        first = root / "train" / f"clip_{sample % distinct:06d}"
        names = [f"img_{frame:05d}.jpg" for frame in range(1, frames + 1)]
        if sample < distinct:
            picture = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((96, 64))
            for degrees, name in enumerate(names):
                picture.rotate(degrees).save(folder / name)
        else:
            for name in names:
                os.link(first / name, folder / name)
        rows.append(f"{folder.name} 1 {frames} {sample % 10}\n")
    (root / "ledger.csv").write_text("".join(rows))


if __name__ == "__main__":
    main()
