"""Signatures of samples become groups of near-duplicates: hashes, pictures ─► for each sample the one that stays.

stays, distance = find_duplicates(hashes, pictures, settings)       # int64 (N,): its own number, or an earlier sample's

Candidates come from sorted lists: the bits of all hashes are permuted, the numbers sorted, and each is compared with
the next few (Charikar, "Similarity estimation techniques from rounding algorithms", 2002; Ravichandran et al.,
"Randomized algorithms and NLP", 2005). Near hashes begin alike in one of the lists, however many samples there are: the
time is L n (log n + W) for n hashes, L lists and W neighbours, the memory 50 bytes per hash; pictures are mapped. The
hashes of all frames of a candidate must be near on average, and then its pictures, both at three shifts in time. A
sample is left out only for one that stays and that it was compared with.
"""

from collections.abc import Iterator

import numpy as np

from mae3d.io.progress import followed
from mae3d.io.random import Stream, philox
from preprocess.inspect.curate_options import CurateSettings
from preprocess.inspect.measures import FEW, HASH_BITS, SMALL, mirrored

LISTS, NEIGHBOURS = 16, 4
MOST_BITS = 12  # that two hashes of a candidate differ in
MEAN_BITS = 15  # the same on average over all frames; copies cropped by 4 % a side have 13 at most, others 20 at least
SHIFTS = (0, 1, -1)  # in time, frames of a signature
STILL = 1.5  # root mean square of the change, in levels, below which it is noise
_PAIRS_AT_ONCE = 1 << 18
_PICTURES_AT_ONCE = 2048


def find_duplicates(
    hashes: np.ndarray, pictures: np.ndarray, flat: np.ndarray, settings: CurateSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Find each sample that is nearly an earlier one.

    Args:
        hashes: uint64 (N, FEW).
        pictures: uint8 (N, FEW, SMALL, SMALL); may be mapped.
        flat: bool (N,), samples without content, which are compared with none.
        settings: the distances.

    Returns:
        (N,) the number of the sample that stays in place of each, its own if it stays; and (N,) float32, the distance.
    """
    parent = np.arange(len(hashes))
    for turn in followed(range(LISTS), "list", doing="near-duplicates"):
        alive = np.flatnonzero((parent == np.arange(len(parent))) & ~flat)
        pairs = _candidates(hashes, alive, turn, mirrors=settings.mirrored)
        pairs = pairs[_are_near(hashes, pairs, mirrors=settings.mirrored)]
        distances = compare(pictures, pairs, settings)
        first, second = pairs[np.isfinite(distances)].T
        order = np.lexsort((first, second))
        second, at = np.unique(second[order], return_index=True)
        parent[second] = first[order][at]
    return _resolve(parent, pictures, settings)


def _resolve(parent: np.ndarray, pictures: np.ndarray, settings: CurateSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample that stays for each; one that is not near to its parent's stays itself."""
    stays, distance = np.arange(len(parent)), np.full(len(parent), np.nan, np.float32)
    later = np.flatnonzero(parent != stays).tolist()  # rising: an earlier one's is known
    for i in followed(later, "pair", doing="near-duplicates"):
        root = int(stays[parent[i]])
        near = float(compare(pictures, np.array([[root, i]]), settings)[0])
        if np.isfinite(near):
            stays[i], distance[i] = root, near
    return stays, distance


def _candidates(hashes: np.ndarray, alive: np.ndarray, turn: int, *, mirrors: bool) -> np.ndarray:
    """Return (P, 2) rising pairs of samples with near hashes, each once, from one sorted list."""
    values = hashes[alive].ravel()
    owners = np.repeat(alive, FEW)
    if mirrors:
        values, owners = np.concatenate([values, mirrored(values)]), np.tile(owners, 2)
    order = np.argsort(_permuted(values, turn), kind="stable")
    values, owners = values[order], owners[order]
    pairs = [np.empty(0, np.int64)]
    for step in range(1, NEIGHBOURS + 1):
        near = np.bitwise_count(values[:-step] ^ values[step:]) <= MOST_BITS
        one, other = owners[:-step][near], owners[step:][near]
        apart = one != other
        low, high = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
        pairs.append(np.unique(low * len(hashes) + high))
    codes = np.unique(np.concatenate(pairs))
    return np.stack(np.divmod(codes, len(hashes)), axis=1) if len(codes) else np.zeros((0, 2), np.int64)


def _permuted(values: np.ndarray, turn: int) -> np.ndarray:
    """Return the numbers with their bits in another order, byte by byte from tables."""
    order = philox(turn, Stream.CURATE).permutation(HASH_BITS).astype(np.uint64)
    result = np.zeros(len(values), np.uint64)
    numbers = np.arange(256, dtype=np.uint64)
    for byte in range(HASH_BITS // 8):
        places = np.zeros(256, np.uint64)
        for bit in range(8):
            places |= (numbers >> np.uint64(bit) & np.uint64(1)) << order[8 * byte + bit]
        result |= places[(values >> np.uint64(8 * byte)).astype(np.uint8)]
    return result


def _overlaps() -> list[tuple[slice, slice]]:
    """Return the frames of both signatures that lie over one another at each shift in time."""
    return [(slice(max(0, by), FEW + min(0, by)), slice(max(0, -by), FEW + min(0, -by))) for by in SHIFTS]


def _are_near(hashes: np.ndarray, pairs: np.ndarray, *, mirrors: bool) -> np.ndarray:
    """Return whether the hashes of each pair (P, 2) are near on average, at any shift."""
    near = np.zeros(len(pairs), bool)
    for begin in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[begin : begin + _PAIRS_AT_ONCE]
        one, other = hashes[part[:, 0]], hashes[part[:, 1]]
        for turned in (other, mirrored(other)) if mirrors else (other,):
            for mine, others in _overlaps():
                bits = np.bitwise_count(one[:, mine] ^ turned[:, others]).mean(axis=1)
                near[begin : begin + _PAIRS_AT_ONCE] |= bits <= MEAN_BITS
    return near


def compare(pictures: np.ndarray, pairs: np.ndarray, settings: CurateSettings) -> np.ndarray:
    """Return the distance (P,) of each pair, infinite if it is none: 1 - the mean correlation of the pictures.

    The change of the pictures must agree as well, so that two takes of a camera that stands still are no duplicates.

    Args:
        pictures: uint8 (N, FEW, SMALL, SMALL).
        pairs: (P, 2).
        settings: the greatest distance, and whether mirrored copies count.
    """
    distances = np.full(len(pairs), np.inf, np.float32)
    for begin in range(0, len(pairs), _PICTURES_AT_ONCE):
        some_pairs = pairs[begin : begin + _PICTURES_AT_ONCE]
        one = pictures[some_pairs[:, 0]].astype(np.float32)
        other = pictures[some_pairs[:, 1]].astype(np.float32)
        for turned in (other, other[..., ::-1]) if settings.mirrored else (other,):
            for distance in _at_shifts(one, turned, settings):
                part = distances[begin : begin + _PICTURES_AT_ONCE]
                np.minimum(part, distance, out=part)
    return distances


def _at_shifts(one: np.ndarray, other: np.ndarray, settings: CurateSettings) -> Iterator[np.ndarray]:
    """Yield the distances (p,) at each shift in time; one: (p, FEW, SMALL, SMALL)."""
    for mine, others in _overlaps():
        a = one[:, mine].reshape(len(one), -1, SMALL * SMALL)
        b = other[:, others].reshape(len(one), -1, SMALL * SMALL)
        look = _correlation(a - a.mean(2, keepdims=True), b - b.mean(2, keepdims=True), (2,)).mean(1)
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        change = _correlation(a, b, (1, 2))
        still = np.maximum((a * a).mean((1, 2)), (b * b).mean((1, 2))) < STILL**2
        near = (1 - look <= settings.duplicate_distance) & (still | (change >= settings.duplicate_motion))
        yield np.where(near, np.maximum(1 - look, 0), np.inf).astype(np.float32)


def _correlation(a: np.ndarray, b: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    lengths = np.sqrt((a * a).sum(axes) * (b * b).sum(axes))
    result: np.ndarray = (a * b).sum(axes) / np.maximum(lengths, 1e-6)
    return result
