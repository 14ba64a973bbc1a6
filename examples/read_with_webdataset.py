"""Read shards with webdataset: the tars are its format; labels are joined from the index, where they can be replaced.

    python examples/read_with_webdataset.py out/demo/shards

For programs that read WebDataset already. Each sample is a .json and its frames, `<key>.000000.jpg`, in time order.
Here the order is that of the shards; `pipelines.Loader` draws windows from a true permutation of all samples.
"""

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import webdataset
from PIL import Image


def labels_of(shards: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Return the labels of each sample by its key, and the names of the ids; dataset.json names the index file."""
    meta = json.loads((shards / "dataset.json").read_text(encoding="utf-8"))
    index = pd.read_parquet(shards / meta["files"]["index"]["name"], columns=["key", "labels"])
    return {key: list(labels) for key, labels in zip(index["key"], index["labels"], strict=True)}, meta["label_names"]


def clip_of(sample: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Return what a sample's .json says, its key, and its frames, uint8 (T, H, W, 3)."""
    frames = sorted(name for name in sample if name.endswith(".jpg"))
    pictures = [np.asarray(Image.open(io.BytesIO(sample[name])).convert("RGB")) for name in frames]
    return {"key": sample["__key__"], **json.loads(sample["json"])}, np.stack(pictures)


def read_clips(shards: Path) -> Iterator[tuple[dict[str, Any], np.ndarray, list[int]]]:
    """Yield description, frames and labels of each sample; in a DataLoader each worker takes shards of its own."""
    labels, _ = labels_of(shards)
    tars = sorted(map(str, shards.glob("shard-*.tar")))
    for facts, clip in webdataset.WebDataset(tars, shardshuffle=False).map(clip_of):
        yield facts, clip, labels[facts["key"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="a dataset of `python -m preprocess build`, layout jpeg")
    shards = parser.parse_args(argv).shards
    _, names = labels_of(shards)
    for facts, clip, labels in read_clips(shards):
        words = ", ".join(names[label] if names else str(label) for label in labels) or "no label"
        print(f"{facts['name']}: {clip.shape} {clip.dtype}, mean {clip.mean():.1f}, {words}")


if __name__ == "__main__":
    main()
