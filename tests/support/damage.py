"""Real damage to a dataset's shards, and an index that vouches for it."""

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipelines.samples.corpus import Corpus
from preprocess.dataset.index import Spans


def overwrite(corpus: Corpus, row: int, change: Callable[[bytes], bytes], *, frames: slice = slice(None)) -> None:
    """Writes other bytes of the same length over frames of a sample, in place."""
    spans = corpus.spans(row, np.arange(corpus.num_frames[row])[frames])
    with corpus.shard_path(int(corpus.shard[row])).open("r+b") as shard:
        for offset, size in zip(spans.offset.tolist(), spans.size.tolist(), strict=True):
            shard.seek(offset)
            changed = change(shard.read(size))
            assert len(changed) == size
            shard.seek(offset)
            shard.write(changed)


def flip_a_bit(data: bytes) -> bytes:
    """One bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


def zero_a_block(data: bytes) -> bytes:
    """The second half, as a lost block of a file system reads."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def break_the_scan(data: bytes) -> bytes:
    """A good header, and behind it nothing that decodes."""
    at = data.index(b"\xff\xda")
    scan = at + 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[:scan] + b"\xff" * (len(data) - scan)


class Vouched(Corpus):
    """An index that says of whatever lies in the shards now that it was written so: crc32 finds no damage."""

    def spans(self, row: int, frame_indices: np.ndarray) -> Spans:
        spans = super().spans(row, frame_indices)
        with self.shard_path(int(self.shard[row])).open("rb") as shard:
            crc32s = []
            for offset, size in zip(spans.offset.tolist(), spans.size.tolist(), strict=True):
                shard.seek(offset)
                crc32s.append(zlib.crc32(shard.read(size)))
        return replace(spans, crc32=np.array(crc32s, dtype=np.uint32))
