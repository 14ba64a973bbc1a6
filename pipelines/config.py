"""The settings of the input pipeline (`--data.*`) and their defaults.

Standard library only, so that `--help` is quick.

DataConfig(shards="out/shards", sampling_rate=8, repeat_aug=4, windows="shared")
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mae3d.io.bounds import bounded, check_bounds, seeded
from mae3d.io.hooks import canonical_hooks, hooked
from mae3d.io.resume import free

RATE: Mapping[str, Any] = {"above": 0, "most": 1e6}  # bounds of frames, and of frames per second
CACHE_GB: Mapping[str, Any] = {"above": 0, "most": 1e9}


@dataclass(frozen=True)
class SelectConfig:
    """The samples that take part; settings are applied in this order.

    Attributes:
        split: only samples of this split.
        names: a text file, one sample name or key a line.
        without: not those with one of these flags of `mae3d preprocess curate`: near_duplicate (the first of each
            group stays), still, black, frozen, cut.
        fraction: this fraction of them, at random.
        per_class: at most this many of each label, at random; 0 = all.
        seed: of `fraction` and `per_class`.
    """

    split: str = ""
    names: str = ""
    without: tuple[str, ...] = ()
    fraction: float = bounded(1, above=0, most=1)
    per_class: int = bounded(0, least=0)
    seed: int = seeded()

    def __post_init__(self) -> None:
        check_bounds(self, "select.")


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
        shards: folders made by `mae3d preprocess build`, or URLs of such (s3://bucket/shards).
        weights: share of each folder in an epoch, such as 2 1; none = every sample of every folder.
        labels: a CSV or Parquet file with columns name (or key) and label that replaces the datasets' own labels.
        select: which samples take part.
        exclude_bad_shards: leave out the samples of shards, and of videos of an index, that are missing or not whole,
            instead of refusing to start.
        moved: OLD=NEW for each folder or URL whose videos lie elsewhere than when they were indexed.
        order: `global`, a true permutation of all samples; `shards`, shuffled shards whose samples are mixed over
            `mix_shards` of them; `auto` is `shards` for URLs, `global` for folders.
        mix_shards: shards that are mixed at a time in the order `shards`.
        on_change: what a run does that finds its dataset grown: `refuse`, or go on with a `new-epoch`.
        sampling: `strided` (num_frames, one every sampling_rate frames at target_fps) or `segments`
            (num_segments x frames_per_segment, the frame-folder loaders' rule); or a sampler of yours, `module:name`
            (docs/hooks.md).
        sampling_rate: distance of two frames, in frames at target_fps; in stored frames where fps is unknown.
        target_fps: frame rate that sampling_rate refers to.
        num_segments: `segments` only.
        frames_per_segment: `segments` only; num_segments x frames_per_segment must be the model's num_frames.
        short: what a sample shorter than a clip gets: `loop` it, `pad` with its last frame, or `drop` it.
        repeat_aug: R, views of each sample in a batch.
        windows: `own`, a new temporal window for each view (the paper), or `shared`, one decode for all R crops.
        area: least and greatest area of the random crop, as a fraction of the frame.
        aspect: least and greatest aspect ratio (width / height) of the random crop, over that of the model's frames: 1
            is a crop without distortion.
        flip: probability of a horizontal flip; 0 where left and right matter (Something-Something).
        short_side: least and greatest length, in pixels, that the frame's short side is scaled to before a frame of
            the model's size is cut from it, instead of a random resized crop (area, aspect); 0 0 = off.
        rand_augment: RandAugment in timm's words, such as rand-m7-mstd0.5-inc1; "" = off.
        colour_jitter: greatest relative change of brightness, contrast and saturation; 0 = off.
        erase: probability of random erasing.
        augment: augmentations of yours, `module:name` or `module:name(key=value)`, applied in turn after all of these
            (docs/hooks.md).
        decode: `auto`, `mixed` (GPU) or `cpu`. `auto` takes the GPU for JPEGs if it works; H.264 of shards is decoded
            on a GPU only with `mixed`, after a try, which no GPU has passed yet.
        read_threads: clips that are read at once, a process; 16 hide 2 ms a read up to 8,000 frames/s.
        decode_threads: threads that decode, a process; 0 = the cores of the node divided by its processes, at most 8.
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
    weights: tuple[float, ...] = bounded((), least=0, most=1e9)
    labels: str = ""
    select: SelectConfig = field(default_factory=SelectConfig)
    exclude_bad_shards: bool = free(False)
    moved: tuple[str, ...] = free((), local=True)
    order: Literal["auto", "global", "shards"] = free("auto")
    mix_shards: int = bounded(free(16), least=1)
    on_change: Literal["refuse", "new-epoch"] = free("refuse")
    sampling: Literal["strided", "segments"] | str = hooked("windows", "strided", known=("strided", "segments"))
    sampling_rate: float = bounded(4, **RATE)
    target_fps: float = bounded(30, **RATE)
    num_segments: int = bounded(8, least=1, most=1 << 20)
    frames_per_segment: int = bounded(2, least=1, most=1 << 20)
    short: Literal["loop", "pad", "drop"] = "loop"
    repeat_aug: int = bounded(4, least=1, most=1 << 16)
    windows: Literal["own", "shared"] = "own"
    area: tuple[float, float] = bounded((0.5, 1.0), above=0, most=1)
    aspect: tuple[float, float] = bounded((0.75, 4 / 3), above=0, most=1000)
    flip: float = bounded(0.5, least=0, most=1, hint="it is a probability")
    short_side: tuple[int, int] = bounded((0, 0), least=0, most=1 << 16)
    rand_augment: str = ""
    colour_jitter: float = bounded(0, least=0, most=100)
    erase: float = bounded(0, least=0, most=1, hint="it is a probability")
    augment: tuple[str, ...] = hooked("augmentations", ())
    decode: Literal["auto", "mixed", "cpu"] = free("auto")
    read_threads: int = bounded(free(16, local=True), least=1, most=4096)
    decode_threads: int = bounded(free(0, local=True), least=0, most=4096)
    prefetch: int = bounded(free(4), least=1, most=4096)
    read_gap: int = bounded(free(-1), least=-1)
    retries: int = bounded(free(5), least=0, most=1000)
    max_bad: int = bounded(free(100), least=0)
    cache: str = free("", local=True)
    cache_gb: float = bounded(free(100, local=True), **CACHE_GB)

    def __post_init__(self) -> None:
        check_bounds(self, "data.")
        canonical_hooks(self, "data.")
        for name in ("area", "aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"data.{name}={[low, high]} must rise: give the least, then the greatest")
        shortest, longest = self.short_side
        if not (0 < shortest <= longest or shortest == longest == 0):
            raise ValueError(f"data.short_side={[shortest, longest]} must rise, such as 256 320; 0 0 switches it off")
        for pair in self.moved:
            if not all(pair.partition("=")):
                raise ValueError(f"data.moved={pair} must be OLD=NEW, as in /archive=/mnt/archive")
        if self.rand_augment:
            RandAugment.parse(self.rand_augment)

    @property
    def roots(self) -> tuple[str, ...]:
        """`shards` as a tuple, none for ""."""
        return tuple(root for root in ([self.shards] if isinstance(self.shards, str) else self.shards) if root)

    @property
    def new_places(self) -> dict[str, str]:
        """`moved` by old places."""
        return {old.rstrip("/"): new for old, _, new in (pair.partition("=") for pair in self.moved)}

    @property
    def has_urls(self) -> bool:
        """Return whether a dataset lies behind a URL, where reads are slow to begin; `file://` is a folder."""
        return any(is_url(root) for root in self.roots)
