"""The settings of the input pipeline (`--data.*`) and their defaults.

Standard library only, so that `--help` is quick.

DataConfig(shards="out/shards", sampling_rate=8, repeat_aug=4, windows="shared")
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from mae3d.io.resume import free


@dataclass(frozen=True)
class SelectConfig:
    """The samples that take part; settings are applied in this order.

    Attributes:
        split: only samples of this split.
        names: a text file, one sample name or key a line.
        fraction: this fraction of them, at random.
        per_class: at most this many of each label, at random; 0 = all.
        seed: of `fraction` and `per_class`.
    """

    split: str = ""
    names: str = ""
    fraction: float = 1
    per_class: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"data.select.fraction={self.fraction} must lie in (0, 1]")
        if self.per_class < 0:
            raise ValueError(f"data.select.per_class={self.per_class} must not be negative")


@dataclass(frozen=True)
class RandAugment:
    """A parsed `data.rand_augment`: `layers` ops, each applied with `probability` at a magnitude N(magnitude, spread).

    `increasing` takes the ops that do more the higher the magnitude is, which runs from 0 to 10.
    """

    magnitude: float = 10
    layers: int = 2
    spread: float = 0
    probability: float = 0.5
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Parse timm's notation: `rand`, then m (magnitude), n (layers), mstd (spread), p (probability), inc (0 or 1).

        Raises:
            ValueError: a part that is none of these, or out of range; the message names it.
        """
        head, *parts = text.split("-")
        if head != "rand":
            raise ValueError(f"data.rand_augment={text} must begin with rand, such as rand-m7-mstd0.5-inc1")
        greatest = {"m": 10, "n": 15, "mstd": 100, "p": 1, "inc": 1}
        given: dict[str, float] = {}
        for part in parts:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            if match is None or match[1] not in greatest:
                raise ValueError(
                    f"data.rand_augment={text}: unknown part {part!r}; known are m7 (magnitude), n2 (ops), mstd0.5 "
                    "(spread of the magnitude), p0.5 (probability of an op) and inc1 (ops that increase)"
                )
            name, value = match[1], float(match[2])
            if value > greatest[name] or (name in ("n", "inc") and value % 1):
                kind = "whole numbers" if name in ("n", "inc") else "numbers"
                raise ValueError(f"data.rand_augment={text}: {name} takes {kind} from 0 to {greatest[name]}")
            given[name] = value
        return cls(
            magnitude=given.get("m", 10),
            layers=int(given.get("n", 2)),
            spread=given.get("mstd", 0),
            probability=given.get("p", 0.5),
            increasing=bool(given.get("inc", 0)),
        )


def is_url(root: str) -> bool:
    """Return whether a path is the URL of a store, rather than a folder or a `file://` URL of one."""
    return "://" in root and not root.startswith("file://")


@dataclass(frozen=True)
class DataConfig:
    """The clips that are read and how they are cut. Frame count and image size belong to the model's config.

    Attributes:
        shards: folders made by `python -m preprocess build`, or URLs of such (s3://bucket/shards).
        weights: share of each folder in an epoch, such as 2 1; none = every sample of every folder.
        labels: a CSV or Parquet file with columns name (or key) and label that replaces the datasets' own labels.
        select: which samples take part.
        exclude_bad_shards: leave out the samples of shards that are missing or not whole, instead of refusing to start.
        order: `global`, a true permutation of all samples; `shards`, shuffled shards whose samples are mixed over
            `mix_shards` of them; `auto` is `shards` for URLs, `global` for folders.
        mix_shards: shards that are mixed at a time in the order `shards`.
        on_change: what a run does that finds its dataset grown: `refuse`, or go on with a `new-epoch`.
        sampling: `strided` (num_frames, one every sampling_rate frames at target_fps) or `segments`
            (num_segments x frames_per_segment, the frame-folder loaders' rule).
        sampling_rate: distance of two frames, in frames at target_fps; in stored frames where fps is unknown.
        target_fps: frame rate that sampling_rate refers to.
        num_segments: `segments` only.
        frames_per_segment: `segments` only; num_segments x frames_per_segment must be the model's num_frames.
        short: what a sample shorter than a clip gets: `loop` it, `pad` with its last frame, or `drop` it.
        repeat_aug: R, views of each sample in a batch.
        windows: `own`, a new temporal window for each view (the paper), or `shared`, one decode for all R crops.
        area: least and greatest area of the random crop, as a fraction of the frame.
        aspect: least and greatest aspect ratio (width / height) of the random crop.
        flip: probability of a horizontal flip; 0 where left and right matter (Something-Something).
        short_side: least and greatest length, in pixels, that the frame's short side is scaled to before a square of
            the model's size is cut from it, instead of a random resized crop (area, aspect); 0 0 = off.
        rand_augment: RandAugment in timm's words, such as rand-m7-mstd0.5-inc1; "" = off.
        colour_jitter: greatest relative change of brightness, contrast and saturation; 0 = off.
        erase: probability of random erasing.
        decode: `auto`, `mixed` (GPU) or `cpu`.
        read_threads: clips that are read at once, a process; 16 hide 2 ms a read up to 8,000 frames/s.
        decode_threads: DALI's threads, a process; 0 = the cores of the node divided by its processes, at most 8.
        prefetch: batches read ahead.
        read_gap: bytes between two frames of a shard up to which they are read together; -1 = 0 for folders,
            256 KiB for URLs.
        retries: attempts after a failed read of the storage, each after a longer wait, before a run stops.
        max_bad: substituted samples after which a run stops.
        cache: folder on the node for what is fetched from URLs; the processes of a user share `mae3d-cache-<user id>`
            inside it and touch nothing else. None = $XDG_CACHE_HOME, else $TMPDIR or /tmp.
        cache_gb: most that the cache may hold, in GB.
    """

    shards: str | tuple[str, ...] = free("", local=True)
    weights: tuple[float, ...] = ()
    labels: str = ""
    select: SelectConfig = field(default_factory=SelectConfig)
    exclude_bad_shards: bool = free(False)
    order: Literal["auto", "global", "shards"] = free("auto")
    mix_shards: int = free(16)
    on_change: Literal["refuse", "new-epoch"] = free("refuse")
    sampling: Literal["strided", "segments"] = "strided"
    sampling_rate: float = 4
    target_fps: float = 30
    num_segments: int = 8
    frames_per_segment: int = 2
    short: Literal["loop", "pad", "drop"] = "loop"
    repeat_aug: int = 4
    windows: Literal["own", "shared"] = "own"
    area: tuple[float, float] = (0.5, 1.0)
    aspect: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    short_side: tuple[int, int] = (0, 0)
    rand_augment: str = ""
    colour_jitter: float = 0
    erase: float = 0
    decode: Literal["auto", "mixed", "cpu"] = free("auto")
    read_threads: int = free(16, local=True)
    decode_threads: int = free(0, local=True)
    prefetch: int = free(4)
    read_gap: int = free(-1)
    retries: int = free(5)
    max_bad: int = free(100)
    cache: str = free("", local=True)
    cache_gb: float = free(100, local=True)

    def __post_init__(self) -> None:
        positive = ("sampling_rate", "target_fps", "num_segments", "frames_per_segment", "repeat_aug")
        for name in (*positive, "read_threads", "prefetch", "mix_shards"):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.{name}={getattr(self, name)} must be greater than 0")
        for name, bound in (("area", 1.0), ("aspect", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= bound:
                raise ValueError(f"data.{name}={[low, high]} must rise and lie in (0, {bound:g}]")
        for name in ("flip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name}={getattr(self, name)} is a probability: give 0 to 1")
        if self.colour_jitter < 0:
            raise ValueError(f"data.colour_jitter={self.colour_jitter} must not be negative")
        shortest, longest = self.short_side
        if not (0 < shortest <= longest or shortest == longest == 0):
            raise ValueError(f"data.short_side={[shortest, longest]} must rise, such as 256 320; 0 0 switches it off")
        if self.rand_augment:
            RandAugment.parse(self.rand_augment)

    @property
    def roots(self) -> tuple[str, ...]:
        """`shards` as a tuple, none for ""."""
        return tuple(root for root in ([self.shards] if isinstance(self.shards, str) else self.shards) if root)

    @property
    def has_urls(self) -> bool:
        """Return whether a dataset lies behind a URL, where reads are slow to begin; `file://` is a folder."""
        return any(is_url(root) for root in self.roots)
