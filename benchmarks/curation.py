"""Precision and recall of the flags of `preprocess curate`, and what leaving flagged samples out does to a training.

    python benchmarks/curation.py flags out/curation --videos FOLDER     # a minute
    python benchmarks/curation.py train out/curation                     # four minutes on two CPU cores
    python benchmarks/curation.py scale      # near-duplicates among 10^5 random signatures, a minute

Clips of 24 frames, 10 a second: rendered ones (waves, photographs, drawn noise and shapes), and pieces of real videos
(every second frame, short side 128). Into them go altered copies of some (coded again as JPEG of quality 30, halved in
size, cropped by 4 % on each side, brightened by a fifth, shifted by 1 to 4 frames; all are coded again), and, made of
clips that are not in the set otherwise: stills with noise, clips of which 60 % are black, clips that freeze for half of
their length, and two clips joined by a cut. Real videos have cuts of their own, listed by eye in CUTS.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, build, resident_mb
from preprocess.dataset.curation import CURATION_NAME, FLAGS
from preprocess.demo.clips import render_demo

FRAMES, SPARE = 24, 4  # of a clip; more that are rendered, for shifts in time
TEXTURES = ("waves", "china", "flower", "noise", "shapes")
CUTS = {  # frames of the real videos before which the picture changes at once, by eye
    "arm_wrestling.mp4": (206, 229, 268),
    "bikes.mp4": (30, 76, 137, 187, 242),
    "nasa.mp4": (202,),
}
AT_REST = {"nasa.mp4": ("still", 0, 112), "arm_wrestling.mp4": ("frozen", 229, 268)}  # frames that nearly stand still
CLEAN, JUNK = 240, 120  # clips of the training, and of each kind of junk beside them

Clip = list[Image.Image]
Truth = dict[str, tuple[set[str], set[str], str]]  # true flags, flags that are left open, the kind of the change


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    flags = commands.add_parser("flags")
    flags.add_argument("out", type=Path)
    flags.add_argument("--videos", type=Path, required=True)
    train = commands.add_parser("train")
    train.add_argument("out", type=Path)
    train.add_argument("--steps", type=int, default=400)
    scale = commands.add_parser("scale")
    scale.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    if options.command == "flags":
        measure_flags(options.out.resolve(), options.videos)
    elif options.command == "train":
        measure_training(options.out.resolve(), options.steps)
    else:
        measure_scale(options.samples)


def measure_flags(out: Path, videos: Path) -> None:
    """Print precision and recall per flag, of rendered clips and of real ones."""
    for name, clips in (("rendered", rendered(out, 220, seed=0)), ("real", pieces(videos))):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        truth = inject(clips, folder, each=20 if name == "rendered" else 6)
        flags = curated(folder)
        print(f"{name}: {len(truth)} samples", flush=True)
        print_scores(truth, flags)


def rendered(
    out: Path, count: int, *, seed: int, textures: Sequence[str] = TEXTURES
) -> list[tuple[str, Clip, set[str]]]:
    """Return clips of the demo as (name, frames, flags that they have anyway)."""
    folder = out / f"clips-{seed}-{count}"
    if not (folder / "ledger.csv").exists():
        render_demo(folder, clips=count, size=96, frames=FRAMES + SPARE, seed=seed, textures=textures)
    clips = []
    for one in sorted((folder / "train").iterdir()):
        frames = [Image.open(path).convert("RGB") for path in sorted(one.iterdir())]
        clips.append((one.name, frames, set[str]()))
    return clips


def pieces(videos: Path) -> list[tuple[str, Clip, set[str]]]:
    """Return pieces of real videos, with their own cuts."""
    import av

    clips = []
    for path in sorted(videos.iterdir()):
        with av.open(str(path)) as container:
            frames = [frame.to_image() for n, frame in enumerate(container.decode(video=0)) if n % 2 == 0]
        scale = 128 / min(frames[0].size)
        size = round(frames[0].width * scale), round(frames[0].height * scale)
        for begin in range(0, len(frames) - FRAMES - SPARE + 1, FRAMES + SPARE):
            clip = [frame.resize(size, Image.Resampling.BICUBIC) for frame in frames[begin : begin + FRAMES + SPARE]]
            inside = any(2 * begin < cut < 2 * (begin + FRAMES - 1) for cut in CUTS.get(path.name, ()))
            flags = {"cut"} if inside else set[str]()
            kind, first, last = AT_REST.get(path.name, ("", 0, 0))
            if min(last, 2 * (begin + FRAMES)) - max(first, 2 * begin) >= FRAMES:  # of 2 FRAMES frames of the video
                flags.add(kind)
            clips.append((f"{path.stem}_{begin:04d}", clip, flags))
    return clips


def inject(clips: list[tuple[str, Clip, set[str]]], folder: Path, *, each: int) -> Truth:
    """Write the set as frame folders with a ledger; return the truth of each name."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(clips))
    spent = min(5 * each, len(clips) // 2)  # clips that stills and the like are made of, which are not in the set
    others, kept = [clips[i] for i in order[:spent]], [clips[i] for i in order[spent:]]
    truth: Truth = {}
    lines = []

    def put(name: str, frames: Clip, flags: set[str], kind: str, left_open: set[str], quality: int = 90) -> None:
        target = folder / "frames" / "train" / name
        target.mkdir(parents=True)
        for number, frame in enumerate(frames, 1):
            frame.save(target / f"img_{number:05d}.jpg", quality=quality)
        truth[name] = flags, left_open, kind
        lines.append(f"{name} 1 {len(frames)} 0\n")

    for name, frames, flags in kept:
        put(name, frames[:FRAMES], flags, "original", {"frozen"} if "still" in flags else set())
    for kind, change in COPIES.items():
        for at in rng.permutation(len(kept))[: min(each, len(kept))]:
            name, frames, flags = kept[at]
            quality = 30 if kind == "coded again" else 80
            put(
                f"{name}_{kind.replace(' ', '_')}",
                change(frames, rng),
                flags,
                kind,
                {"frozen"} if "still" in flags else set(),
                quality,
            )
    for at in range(min(each, spent // 5)):
        still, black, frozen, first, second = (others[5 * at + k] for k in range(5))
        put(f"still_{at}", [noisy(still[1][0], rng) for _ in range(FRAMES)], {"still"}, "still", {"frozen"})
        dark = [noisy(Image.new("RGB", frame.size, (6, 6, 6)), rng) for frame in black[1][: round(0.6 * FRAMES)]]
        put(f"black_{at}", [*dark, *black[1][len(dark) : FRAMES]], {"black", "cut"}, "black", {"frozen"})
        half = FRAMES // 2
        stuck = [*frozen[1][:half], *[frozen[1][half]] * (FRAMES - half)]
        put(f"frozen_{at}", stuck, {"frozen"}, "frozen", frozen[2])
        cut = int(rng.integers(4, FRAMES - 4))
        tail = [frame.resize(first[1][0].size) for frame in second[1][cut:FRAMES]]
        put(f"cut_{at}", [*first[1][:cut], *tail], {"cut"}, "cut", first[2] | second[2])
    (folder / "frames" / "ledger.csv").write_text("".join(lines))
    return truth


def noisy(frame: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a frame with noise of a standard deviation of 2 levels."""
    pixels = np.asarray(frame, np.float32)
    return Image.fromarray((pixels + rng.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8))


def _cropped(frames: Clip, _: np.random.Generator) -> Clip:
    width, height = frames[0].size
    box = round(0.04 * width), round(0.04 * height), round(0.96 * width), round(0.96 * height)
    return [frame.crop(box) for frame in frames[:FRAMES]]


def _shifted(frames: Clip, rng: np.random.Generator) -> Clip:
    by = int(rng.integers(1, SPARE + 1))
    return frames[by : by + FRAMES]


COPIES: dict[str, Callable[[Clip, np.random.Generator], Clip]] = {
    "coded again": lambda frames, _: frames[:FRAMES],
    "half size": lambda frames, _: [frame.resize((frame.width // 2, frame.height // 2)) for frame in frames[:FRAMES]],
    "cropped": _cropped,
    "brightened": lambda frames, _: [
        frame.point(lambda level: min(255, round(1.2 * level + 8))) for frame in frames[:FRAMES]
    ],
    "shifted": _shifted,
}


def curated(folder: Path) -> dict[str, dict[str, object]]:
    """Build and curate the set; return the rows of its flags by name."""
    shards = folder / "shards"
    build(shards, "--frames", folder / "frames", "--source-fps", 10, "--shard-size", 32)
    began = time.monotonic()
    run("-m", "preprocess", "curate", shards)
    print(f"curate: {time.monotonic() - began:.1f} s", flush=True)
    rows = pq.read_table(shards / CURATION_NAME).to_pylist()
    (index,) = (shards / json.loads((shards / "dataset.json").read_text())["files"][name]["name"] for name in ["index"])
    table = pq.read_table(index, columns=["key", "name"]).to_pylist()
    names = {row["key"]: row["name"] for row in table}
    return {names[row["key"]]: row | {"duplicate_of": names.get(row["duplicate_of"])} for row in rows}


def base_of(name: str) -> str:
    """Return the name of the original of a copy."""
    return re.sub("|".join(f"_{kind.replace(' ', '_')}$" for kind in COPIES), "", name)


def print_scores(truth: Truth, flags: dict[str, dict[str, object]]) -> None:
    """Print a row per flag, and the recall of each kind of copy; a copy counts if it is joined with its original.

    Of an original and its copies any but the first by name's order in the dataset may be the one that is flagged.
    """
    groups: dict[str, list[str]] = {}
    for name in flags:
        groups.setdefault(base_of(name), []).append(name)
    print("flag            true  flagged  precision  recall")
    for flag in FLAGS:
        flagged = {name for name, row in flags.items() if row[flag]}
        if flag == "near_duplicate":
            right = {name for name in flagged if base_of(name) == base_of(str(flags[name]["duplicate_of"]))}
            true = sum(len(group) - 1 for group in groups.values())
        else:
            flagged -= {name for name, (_, left_open, _) in truth.items() if flag in left_open - truth[name][0]}
            right = {name for name in flagged if flag in truth[name][0]}
            true = sum(flag in one for one, _, _ in truth.values())
        precision, recall = len(right) / max(1, len(flagged)), len(right) / max(1, true)
        print(f"{flag:15} {true:5} {len(flagged):8} {precision:10.3f} {recall:7.3f}")
        for name in sorted(flagged - right)[:8]:
            print(f"   wrong: {name} {flags[name]['duplicate_of'] if flag == 'near_duplicate' else ''}")
        if flag != "near_duplicate":
            for name in [name for name, (one, _, _) in truth.items() if flag in one and name not in flagged][:8]:
                print(f"   missed: {name}")
    for kind in COPIES:
        mine = [name for name, (_, _, of) in truth.items() if of == kind]
        joined = [name for name in mine if _is_joined(name, flags)]
        print(f"  copies {kind:12} {len(joined)} of {len(mine)}")


def _is_joined(name: str, flags: dict[str, dict[str, object]]) -> bool:
    """Return whether a copy is flagged for a relative, or a relative for it."""
    relatives = [other for other in flags if base_of(other) == base_of(name)]
    return base_of(str(flags[name]["duplicate_of"])) == base_of(name) or any(
        flags[other]["duplicate_of"] == name for other in relatives
    )


def measure_training(out: Path, steps: int) -> None:
    """Pretrain on clean clips with as much junk again, with and without what curate flags; print held-out losses."""
    clean = rendered(out, CLEAN, seed=1, textures=("waves",))
    rng = np.random.default_rng(1)
    folder = out / "junk"
    if not (folder / "shards" / CURATION_NAME).exists():
        shutil.rmtree(folder, ignore_errors=True)
        lines = []
        for name, frames in _with_junk(clean, rng):
            target = folder / "frames" / "train" / name
            target.mkdir(parents=True)
            for number, frame in enumerate(frames, 1):
                frame.save(target / f"img_{number:05d}.jpg", quality=90)
            lines.append(f"{name} 1 {len(frames)} 0\n")
        (folder / "frames" / "ledger.csv").write_text("".join(lines))
        curated(folder)
    held = out / "held-out"
    if not held.exists():
        render_demo(out / "held-frames", clips=64, size=96, frames=FRAMES, seed=2, textures=("waves",))
        build(held, "--frames", out / "held-frames", "--source-fps", 10)
    for name, options in {"all samples": [], "without flagged": ["--data.select.without", *FLAGS]}.items():
        of_run = out / f"run-{name.split()[0]}"
        shutil.rmtree(of_run, ignore_errors=True)
        train = ["launch/pretrain.py", "--config", "demo", "--data.shards", folder / "shards", "--device", "cpu"]
        sampling = ["--data.target_fps", 10, "--data.sampling_rate", 2]
        ends = ["--train.steps", steps, "--optim.warmup_steps", 50, "--run.dir", of_run, "--eval.shards", held]
        print(name, *[line for line in run(*train, *sampling, *ends, "--eval.every", steps, "--eval.samples", 64,
                      *options).splitlines() if line.startswith("samples")], flush=True)  # fmt: skip
        last = json.loads((of_run / "metrics.jsonl").read_text().splitlines()[-1])
        print("  ", {key: value for key, value in last.items() if "eval" in key or key in ("step", "loss")}, flush=True)


def _with_junk(clean: list[tuple[str, Clip, set[str]]], rng: np.random.Generator) -> Iterator[tuple[str, Clip]]:
    """Yield the clean clips, then copies, stills, black and frozen clips and cuts, `JUNK` of each."""
    for name, frames, _ in clean:
        yield name, frames[:FRAMES]
    kinds = list(COPIES.values())
    for at in range(JUNK):
        one, other = (clean[int(rng.integers(len(clean) // 8))][1] for _ in range(2))  # of few clips, again and again
        yield f"copy_{at}", kinds[at % len(kinds)](one, rng)[:FRAMES]
        yield f"still_{at}", [noisy(one[0], rng) for _ in range(FRAMES)]
        yield f"black_{at}", [noisy(Image.new("RGB", one[0].size, (6, 6, 6)), rng) for _ in range(FRAMES)]
        yield f"frozen_{at}", [*one[:8], *[one[8]] * (FRAMES - 8)]
        yield f"cut_{at}", [*one[:12], *other[12:FRAMES]]


def measure_scale(count: int) -> None:
    """Print time and memory of the search among random signatures, one in fifty of which is a noisy copy."""
    from preprocess.inspect.curate_options import CurateSettings
    from preprocess.inspect.measures import FEW, SIDE, SMALL, picture_hashes
    from preprocess.inspect.near_duplicates import find_duplicates

    rng = np.random.default_rng(0)
    hashes, pictures = np.zeros((count, FEW), np.uint64), np.zeros((count, FEW, SMALL, SMALL), np.uint8)
    for begin in range(0, count, 2000):
        few = min(2000, count - begin)
        small = rng.integers(0, 256, (few * FEW, 12, 12), dtype=np.uint8)
        grey = np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE))) for one in small]).astype(np.float32)
        hashes[begin : begin + few] = picture_hashes(grey).reshape(few, FEW)
        pictures[begin : begin + few] = grey[:, ::2, ::2].reshape(few, FEW, SMALL, SMALL)
    copies = np.arange(count - count // 50, count)
    hashes[copies] = hashes[copies - count // 2]
    flips = rng.random((len(copies), FEW, 64)) < 0.06
    hashes[copies] ^= np.packbits(flips, axis=2, bitorder="little").view("<u8")[..., 0]
    pictures[copies] = pictures[copies - count // 2]
    before, began = resident_mb(), time.monotonic()
    stays, _ = find_duplicates(hashes, pictures, np.zeros(count, bool), CurateSettings())
    seconds, found = time.monotonic() - began, np.flatnonzero(stays != np.arange(count))
    right = np.isin(found, copies).sum()
    print(f"{count:,} samples: {seconds:.1f} s, {resident_mb() - before:+.0f} MB", flush=True)
    print(f"{right} of {len(copies)} copies whose bits are flipped by 6 %, {len(found) - right} others")


def run(*command: object) -> str:
    """Run Python with arguments and return its output; end with its errors."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
