"""The memory of long and large jobs, and the time of large probes; every size in a process of its own.

    python benchmarks/memory.py plan --work DIR        # 200,000 batches of 1,000,000 samples, planned and not read
    python benchmarks/memory.py loader --work DIR      # 20,000 batches, read and decoded
    python benchmarks/memory.py tables --work DIR      # evaluation and embedding of 10,000 and of 100,000 samples
    python benchmarks/memory.py attentive              # 100,000 samples x 400 classes: a step, and the whole from it
    python benchmarks/memory.py linear                 # beside scikit-learn's solver, then 240,000 x 400 classes

The samples of `tables` repeat 200 clips, and random numbers stand for the model's. The attentive probe reads a file of
random tokens again and again. Features of `linear` are Gaussian clusters that overlap, with a spectrum that falls as
1 / k. Memory is the process's own, without mapped files; times are CPU seconds of all threads.
"""

import argparse
import contextlib
import gc
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT

CLASSES = 400


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "loader", "tables", "attentive", "linear"])
    parser.add_argument("--work", type=Path, help="folder for datasets and tables, kept and used again")
    parser.add_argument("--batches", type=int, help="of plan and loader")
    parser.add_argument("--samples", type=int, nargs="+", help="of tables and linear")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # the arguments of a child
    options = parser.parse_args()
    if options.one is not None:
        CHILDREN[options.what](**options.one)
        return
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mae3d-bench-")))
        for arguments in runs_of(options.what, work, options):
            child(options.what, **arguments)


def runs_of(what: str, work: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each process."""
    if what == "plan":
        from benchmarks.index_scale import make_tables
        from preprocess.dataset.writer import write_dataset

        corpus = work / "million"
        if not (corpus / "dataset.json").exists():
            corpus.mkdir(parents=True, exist_ok=True)
            for number in range(1000):
                make_tables(corpus, number, 1000, 8)
            write_dataset(corpus, tables=sorted(corpus.glob("shard-*.parquet")), settings={})
        for order, windows in itertools.product(("global", "shards"), ("shared", "own")):
            batches = options.batches or (200_000 if windows == "shared" else 20_000)
            yield {"corpus": str(corpus), "order": order, "windows": windows, "batches": batches}
    elif what == "loader":
        yield {"corpus": str(small_dataset(work)), "batches": options.batches or 20_000}
    elif what == "tables":
        corpus = small_dataset(work)
        for task, samples in itertools.product(("embed", "evaluate"), options.samples or (10_000, 100_000)):
            yield {"corpus": str(corpus), "work": str(work), "task": task, "samples": samples}
    elif what == "attentive":
        for width, tokens in ((768, 1568), (768, 196), (1024, 1568), (1024, 196)):
            yield {"width": width, "tokens": tokens}
    else:
        small, large = options.samples or (24_000, 240_000)
        yield {"samples": small, "solver": "scikit-learn"}
        yield {"samples": small, "solver": "ours"}
        yield {"samples": large, "solver": "ours"}


def child(what: str, **arguments: Any) -> None:
    """Run one measurement in a process of its own, which prints it."""
    print(
        ", ".join(f"{name} {value}" for name, value in arguments.items() if name not in ("corpus", "work")), flush=True
    )
    subprocess.run([sys.executable, __file__, what, "--one", json.dumps(arguments)], check=True, cwd=ROOT)


def small_dataset(work: Path) -> Path:
    """Build 200 clips of 20 frames of 96 x 64 pixels."""
    from benchmarks import loader

    work.mkdir(parents=True, exist_ok=True)
    return loader.small_dataset(work, samples=200, shard_size=20)


class Watch(threading.Thread):
    """A block that measures: CPU seconds, and the most memory of the process's own beyond what it had before."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        self.before = self.peak = own_mb()
        self._began = time.process_time()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._began
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look every 20 ms."""
        while not self._over.wait(0.02):
            self.peak = max(self.peak, own_mb())

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s of CPU, {self.peak - self.before:.0f} MB beyond {self.before:.0f}"


def own_mb() -> float:
    """Return the memory of this process in RAM that is no file's, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3


def growth(batches: Iterator[Any], count: int) -> None:
    """Print memory and living objects after parts of the batches."""
    marks = sorted({count // 200, count // 10, count // 2, count})
    with Watch() as watch:
        for number, _ in enumerate(itertools.islice(batches, count), 1):
            if number in marks:
                gc.collect()
                alive = len(gc.get_objects())
                print(f"  after {number:7,}: {own_mb():8.1f} MB, {alive:,} objects alive", flush=True)
    print(f"  {watch}; {1e6 * watch.seconds / count:.0f} us a batch", flush=True)


def plan(corpus: str, order: str, windows: str, batches: int) -> None:
    """Plan the batches of one of 32 ranks, 2 of 64 samples a step, four views: a day of two steps a second and more."""
    from pipelines.loader import Loader

    loader = Loader.open(
        corpus, num_frames=4, size=224, global_batch=64, rank=3, world=32, order=order, windows=windows, repeat_aug=4
    )
    print(f"  {loader.num_samples:,} samples, {batches / len(loader):.1f} epochs; opened {own_mb():.1f} MB")
    growth(loader.requests(), batches)


def loader(corpus: str, batches: int) -> None:
    """Read and decode small batches."""
    from pipelines.loader import Loader

    settings: dict[str, Any] = {"windows": "shared", "decode": "cpu", "repeat_aug": 2, "decode_threads": 1}
    with Loader.open(corpus, num_frames=4, size=32, global_batch=2, **settings) as opened:
        growth(opened, batches)


def tables(corpus: str, work: str, task: str, samples: int) -> None:
    """Embed samples into 768 numbers, or evaluate 400 classes: everything but the clips and the model's own numbers."""
    import torch

    from launch import embed, evaluate
    from launch.common.eval_set import EvalSet
    from launch.inference import classification, embeddings
    from launch.inference import evaluate as opening
    from mae3d.model.classifier import Classifier
    from mae3d.model.config import ClassifierConfig
    from mae3d.weights.files import save_model

    sizes: dict[str, Any] = {"embed_dim": 768, "depth": 1, "num_heads": 12, "num_frames": 2, "img_size": 32}
    model, out = Classifier(ClassifierConfig(**sizes, num_classes=CLASSES)), Path(work) / f"{task}-{samples}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    save_model(model, out / "model.safetensors")
    open_samples, rng = opening.open_samples, np.random.default_rng(0)

    def repeated(*arguments: Any) -> Any:
        opened = open_samples(*arguments)
        return replace(opened, rows=np.sort(np.resize(opened.rows, samples)))

    class Stream:
        def __init__(self, *_: Any, rows: np.ndarray, batch_size: int, **__: Any) -> None:
            self.rows = iter([rows[i : i + batch_size] for i in range(0, len(rows), batch_size)])

        def __next__(self) -> Any:
            rows = torch.from_numpy(next(self.rows))[:, None]
            return SimpleNamespace(rows=rows, status=np.zeros(rows.shape), clips=rows)

        def close(self) -> None:
            pass

    def vectors(_: Any, clips: Any) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(len(clips) * 768, np.float32)), 768)

    def scores(_: Any, batch: Any, **__: Any) -> np.ndarray:
        return rng.random((len(batch.rows), CLASSES), np.float32)

    words = ["--run", out / "model.safetensors", "--data.shards", corpus, "--device", "cpu", "--out"]
    words += [out / "vectors.parquet" if task == "embed" else out / "scores"]
    with (
        mock.patch.object(opening, "open_samples", repeated),
        mock.patch.object(EvalSet, "stream", lambda *a, **k: Stream(*a, **k)),
        mock.patch.object(embeddings.Embedder, "__call__", vectors),
        mock.patch.object(classification, "scores_of", scores),
        Watch() as watch,
    ):
        code = (embed if task == "embed" else evaluate).main([str(word) for word in words])
    size = sum(path.stat().st_size for path in out.rglob("*.parquet")) / 1e6
    print(f"  exit code {code}: {watch}; table of {size:.0f} MB", flush=True)


def attentive(width: int, tokens: int, samples: int = 100_000, steps: int = 20) -> None:
    """Train for a few steps among all samples, whose tokens repeat those of a small file."""
    from mae3d.analysis import probes

    class Repeated(np.ndarray):  # a few samples that pass for all
        def __len__(self) -> int:
            return samples

        def __getitem__(self, rows: Any) -> Any:
            return np.asarray(self)[rows % self.shape[0]]

    targets = np.eye(CLASSES, dtype=np.uint8)[np.arange(samples) % CLASSES]
    with tempfile.TemporaryDirectory(prefix="mae3d-bench-") as folder:
        shape = (128, tokens, width)
        mapped = np.lib.format.open_memmap(Path(folder) / "tokens", mode="w+", dtype=np.float16, shape=shape)
        rng = np.random.default_rng(0)
        for row in mapped:
            row[:] = rng.standard_normal(row.shape, np.float32)
        arrays = mapped.view(Repeated)
        whole = -(-samples // probes.BATCH) * probes.EPOCHS
        with mock.patch.multiple(probes, EPOCHS=0, MIN_STEPS=steps), Watch() as watch:
            probes.attentive_scores(arrays, targets, mapped[:8], multi_label=False, num_heads=width // 64)
    on_disk = 2 * samples * tokens * width / 1e9
    print(
        f"  {steps} steps: {watch}; all {whole:,} steps {watch.seconds / steps * whole / 3600:.1f} h of CPU; "
        f"tokens {on_disk:.0f} GB in float16, read {probes.EPOCHS} times"
    )


def clusters(samples: int, *, width: int = 768, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw classes that overlap, and features that depend on each other; (N, D) float32 and (N,)."""
    shared, rng = np.random.default_rng(0), np.random.default_rng(1 + seed)
    axes = np.linalg.qr(shared.standard_normal((width, width)))[0].astype(np.float32)
    deviations = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    centres = (0.15 * shared.standard_normal((CLASSES, width))).astype(np.float32)
    labels = rng.integers(0, CLASSES, samples)
    features = rng.standard_normal((samples, width), np.float32)
    for begin in range(0, samples, 8192):
        part = slice(begin, begin + 8192)
        features[part] = ((features[part] + centres[labels[part]]) * deviations) @ axes + 1
    return features, labels


def linear(samples: int, solver: str) -> None:
    """Run the linear probe, and print every fit: seconds, objective, and the accuracy in the end."""
    from mae3d.analysis import logistic, probes

    features, labels = clusters(samples, seed=0)
    test, expected = clusters(10_000, seed=1)
    path = logistic.fit_path if solver == "ours" else scikit_learns

    def shown(fitted: Any, strengths: Any, *, start: Any = None) -> Iterator[Any]:
        began = time.process_time()
        for fit in path(fitted, strengths, start=start):
            seconds = time.process_time() - began
            loss = fitted.loss(fit.weights, fit.biases)[0]
            penalty = float(fit.weights.double().square().sum()) / (2 * fit.strength * fitted.count)
            print(f"  C={fit.strength:<6g} {seconds:7.1f} s of CPU, objective {loss + penalty:.6f}", flush=True)
            yield fit
            began = time.process_time()

    targets = np.eye(CLASSES, dtype=np.uint8)[labels]
    with mock.patch.object(probes, "fit_path", shown), Watch() as watch:
        scores, chosen = probes.linear_scores(features, targets, test, multi_label=False)
    right = float((scores.argmax(axis=1) == expected).mean())
    loss = -float(np.log(scores[np.arange(len(test)), expected]).mean())
    print(f"  all: {watch}; top-1 {right:.2%}, loss {loss:.4f} of 10,000 others, {chosen}", flush=True)


def scikit_learns(samples: Any, strengths: Any, *, start: Any = None) -> Iterator[Any]:
    """Fit by scikit-learn's own L-BFGS, every C from 0, as this program did before."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from mae3d.analysis.logistic import Fit

    rows = np.concatenate(samples.blocks)
    x = (samples.features[rows] - samples.mean.numpy()) / samples.scale.numpy()
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=1000).fit(x, samples._targets[rows].argmax(axis=1))
        weights, biases = (torch.from_numpy(np.ascontiguousarray(of)) for of in (model.coef_.T, model.intercept_))
        yield Fit(samples, strength, weights.float(), biases.float(), model.n_iter_[0] < 1000)


CHILDREN: dict[str, Any] = {
    "plan": plan,
    "loader": loader,
    "tables": tables,
    "attentive": attentive,
    "linear": linear,
}

if __name__ == "__main__":
    main()
