"""The cost of a coding to pretraining: one set of clips as JPEG q90 and q75, and as H.264 at crf 17 and 26.

    python benchmarks/codings.py out/codings             # five hours or more on two CPU cores; started again it goes on
    OMP_NUM_THREADS=1 python benchmarks/codings.py out/codings --epochs 24 --jobs 2

The clips of benchmarks/motion.py, rendered without loss and coded four times. From each coding the recipe
motion_pretrain with three seeds, then kNN and linear probes of the frozen encoder that are trained on the train clips
and tested on the validation clips of the same coding; the same for the untrained encoder. Seed 0 of all codings comes
first. Prints a table: bytes and luma PSNR of the train clips, accuracies.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import build
from benchmarks.motion import CLIPS, SEEDS, render_clips, run, spread
from pipelines.decoding.clip_decoder import ClipDecoder
from pipelines.reading.source import ClipSource
from pipelines.samples.corpus import open_corpus
from pipelines.sampling.requests import ClipRequest
from preprocess.dataset.index import Dataset, open_dataset

# Without the floor, crf 26 would lose the clips that come out below 30 dB, and the sets would differ.
_VIDEO = ("--layout", "video", "--min-psnr", "0")
CODINGS = {
    "q90": ("--quality", "90"),
    "q75": ("--quality", "75"),
    "crf17": (*_VIDEO, "--crf", "17"),
    "crf26": (*_VIDEO, "--crf", "26"),
}
FPS = 30  # the rate of the recipe; layout video needs one
PROBES = ("linear", "knn, k=20")
LUMA = np.array([0.299, 0.587, 0.114])  # BT.601


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--epochs", type=int, default=60, help="of pretraining (%(default)s, the recipe's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1, help="pretraining runs at a time (%(default)s)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for part in CLIPS:
        frames = render_clips(out / f"{part}-frames", part, lossless=True)
        rates = ("--source-fps", FPS, "--fps", FPS)
        for coding, how in CODINGS.items():
            build(out / coding / part, "--frames", frames, "--ledger", frames / "ledger.csv", *rates, *how)
        check_alike([open_dataset(out / coding / part) for coding in CODINGS], clips=CLIPS[part]["clips"])
    runs = [Run(out, coding, seed, options.epochs, options.device) for seed in options.seeds for coding in CODINGS]
    with ThreadPoolExecutor(options.jobs) as jobs:
        scores = dict(zip(runs, jobs.map(Run.scores, runs), strict=True))
    print(f"| {options.epochs} epochs | MB on disk, of these frames | luma PSNR, dB | linear | kNN, k = 20 |")
    print("|---|---|---|---|---|")
    for coding in CODINGS:
        on_disk = sum(path.stat().st_size for path in (out / coding / "train").rglob("*") if path.is_file())
        of_frames, psnr = quality(out / coding / "train", out / "train-frames")
        mine = [score for each, score in scores.items() if each.coding == coding]
        accuracies = " | ".join(spread([score[probe] for score in mine]) for probe in PROBES)
        print(f"| {coding} | {on_disk / 1e6:.1f}, {of_frames / 1e6:.1f} | {psnr:.1f} | {accuracies} |")
    for coding in CODINGS:
        floor = Run(out, coding, options.seeds[0], options.epochs, options.device).scores_untrained()
        print(f"| {coding}, untrained | | | " + " | ".join(f"{100 * floor[probe]:.1f} %" for probe in PROBES) + " |")


@dataclass(frozen=True)
class Run:
    """A pretraining run from one coding, and its probes."""

    out: Path
    coding: str
    seed: int
    epochs: int
    device: str

    def scores(self) -> dict[str, float]:
        """Return the accuracy of each probe; the model is trained unless its probes exist."""
        if not (self.folder / "probe" / "probe.json").exists():
            lengths = ("--train.epochs", self.epochs, "--optim.warmup_epochs", self.epochs / 12)  # the recipe's 5 of 60
            data = ("--data.shards", self.out / self.coding / "train", "--data.decode_threads", 1)
            rest = ("--train.seed", self.seed, "--run.dir", self.folder / "pre", "--device", self.device)
            run("pretrain.py", "--config", "motion_pretrain", *data, *lengths, *rest)
        scores = self._probed("probe")
        print(f"{self.coding}, seed {self.seed}: {scores}", flush=True)
        return scores

    def scores_untrained(self) -> dict[str, float]:
        """Return the accuracy of each probe of the same model before any training."""
        return self._probed("untrained", "--random_init", "true")

    @property
    def folder(self) -> Path:
        """The folder of the run and of its probes."""
        return self.out / f"{self.coding}-{self.epochs}-{self.seed}"

    def _probed(self, name: str, *more: str) -> dict[str, float]:
        folder = self.folder / name
        if not (folder / "probe.json").exists():
            sets = ("--data.shards", self.out / self.coding / "train", "--test.shards", self.out / self.coding / "val")
            rest = ("--out", folder, "--batch", 50, "--device", self.device)
            run("probe.py", "--run", self.folder / "pre", *sets, *rest, *more)
        rows = json.loads((folder / "probe.json").read_text())["probes"]
        return {row["probe"]: row["top1"] for row in rows if row["probe"] in PROBES}


def check_alike(datasets: list[Dataset], *, clips: int) -> None:
    """Refuse datasets that differ in more than their coding: training would see other windows."""
    first = datasets[0]
    for dataset in datasets:
        alike = all(
            np.array_equal(getattr(dataset, column), getattr(first, column))
            for column in ("num_frames", "fps", "height", "width", "label_values")
        )
        names_alike = all(dataset.name(i) == first.name(i) for i in range(len(first)))
        if len(dataset) != clips or not alike or not names_alike:
            raise SystemExit(f"{dataset.root} has other samples than {first.root}, or not {clips}")


def quality(root: Path, frames: Path, *, step: int = 10) -> tuple[int, float]:
    """Return the bytes of all frames of a dataset, and the luma PSNR of every `step`-th clip, in dB."""
    corpus = open_corpus([root])
    source, decoder = ClipSource(corpus, iter(()), read_threads=1, prefetch=0), ClipDecoder(corpus)
    dataset = open_dataset(root)
    num_bytes, errors = 0, []
    for row in range(len(dataset)):
        numbers = np.arange(int(dataset.num_frames[row]))
        num_bytes += int(dataset.spans(row, numbers).size.sum())
        if row % step == 0:
            coded = decoder.decode(source.fetch(ClipRequest(row, numbers, ()))).numpy()
            folder = frames / "train" / dataset.name(row)
            rendered = np.stack([np.asarray(Image.open(folder / f"img_{i + 1:05d}.png")) for i in numbers])
            errors.append(float(np.mean(((coded - rendered.astype(float)) @ LUMA) ** 2)))
    source.close()
    return num_bytes, 10 * float(np.log10(255**2 / np.mean(errors)))


if __name__ == "__main__":
    main()
