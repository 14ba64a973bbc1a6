"""The settings of a dataset: sizes, rates, layout and limits, which decide the bytes that a build writes.

settings = Settings(layout="video", fps=7.5)
settings.identity()      # what two builds of one dataset share
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mae3d.io.bounds import bounded, check_bounds
from mae3d.video.facts import MAX_PIXELS
from preprocess.dataset.layout import GROUP, LAYOUTS, Layout, layout_of

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
Layouts = Literal["jpeg", "video", "files", "png"]
# Settings that only one layout has. They are no part of the other's identity: JPEG datasets keep theirs from before.
_ONLY_OF = {
    "jpeg": frozenset({"quality", "check"}),
    "video": frozenset({"crf", "preset", "group", "min_psnr"}),
    "files": frozenset[str](),
    "png": frozenset({"channels", "bits"}),
}
FPS: Mapping[str, Any] = {"above": 0, "most": 1e6}  # bounds of a frame rate


@dataclass(frozen=True)
class Settings:
    """The settings of a dataset; two builds with equal settings and input write equal bytes."""

    short_side: int = bounded(256, least=1)
    quality: int = bounded(90, least=1, most=100, hint="75 to 95 make sense")
    fps: float | None = bounded(None, **FPS)
    source_fps: float | None = bounded(None, **FPS)
    # Without either of two, what is longer than a minute is cut: preprocess.sources.segments.
    segment_seconds: float | None = bounded(None, above=0)
    segment_frames: int | None = bounded(None, least=1)
    whole: bool = False  # nothing is cut
    shard_size: int | None = bounded(None, least=1)  # samples; None = 1000, fewer for small sets, for some 16 shards
    split: str = ""
    max_pixels: int = bounded(MAX_PIXELS, least=1)  # of a frame before scaling
    max_frames: int = bounded(1_000_000, least=1, most=1_000_000)  # of a sample; their names have six digits
    max_gb: float = bounded(100.0, above=0)  # that one sample may write
    timeout_s: float = bounded(60.0, above=0, most=1e8)  # without progress; then the decoder hangs
    check: Literal["decode", "header"] = "decode"  # how a JPEG that passes through shows that it is whole
    layout: Layouts = "jpeg"  # how frames are stored; preprocess.dataset.layout
    channels: int = bounded(0, least=0, most=256)  # of layout png; 0 = those of the first sample
    bits: int = bounded(0, least=0, most=16)  # of layout png, 8 or 16; 0 = those of the first sample, 16 with a window
    window: tuple[float, float] | None = None  # values that become the first and the last level; None = as they are
    crf: float = bounded(17.0, least=0, most=51)  # of layout video: x264's constant quality, lower is better
    preset: Preset = "veryfast"  # x264's effort
    group: int = bounded(GROUP, least=1, most=250)  # frames that are decoded together at most
    min_psnr: float = bounded(30.0, least=0, most=100)  # in dB, of luma; a group that comes out worse is rejected
    encoder: int = 3  # how pictures are made; not to be chosen, but no two kinds may meet in one dataset

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.check not in ("decode", "header"):
            raise ValueError(f"check = {self.check!r} must be decode or header")
        if self.segment_seconds and self.segment_frames:
            raise ValueError("segment_seconds and segment_frames exclude each other; give one")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout = {self.layout!r} must be {' or '.join(LAYOUTS)}")
        if self.layout == "video" and self.fps is None:
            raise ValueError("--layout video needs --fps, the rate of training: frames that it skips are decoded too")
        if self.bits not in (0, 8, 16):
            raise ValueError(f"bits = {self.bits} must be 8 or 16")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window = {list(self.window)} must rise: give the value of black, then that of white")
        if self.window is not None and self.layout == "files":
            raise ValueError("window: an index stores no frames; leave it out, or `build`")
        if self.preset not in PRESETS:
            raise ValueError(f"preset = {self.preset!r} must be one of {', '.join(PRESETS)}")
        other = _of_others(self.layout)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if misplaced := sorted(name for name in other if getattr(self, name) != defaults[name]):
            raise ValueError(f"{', '.join(misplaced)}: of another layout than {self.layout}; leave it out")
        if self.whole and (self.segment_seconds or self.segment_frames):
            raise ValueError("whole excludes segment_seconds and segment_frames; give one")

    @property
    def stored_as(self) -> Layout:
        """Return the layout of the shards."""
        return layout_of(vars(self))

    @property
    def stored_bits(self) -> int:
        """Return the bits of a stored channel: 8, but for what layout png says."""
        return self.bits if self.layout == "png" else 8

    def in_layout(self, layout: Layouts) -> "Settings":
        """Return these settings in another layout, what belongs to this one at its defaults."""
        defaults: dict[str, Any] = {
            field.name: field.default for field in dataclasses.fields(self) if field.name in _of_others("")
        }
        return dataclasses.replace(self, layout=layout, **defaults)

    def identity(self) -> dict[str, Any]:
        """Return what two builds of one dataset share: the settings without those of other layouts."""
        without = _of_others(self.layout) | ({"layout"} if self.layout == "jpeg" else set())
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name not in without}
        window = kept.pop("window")
        return kept | ({"window": list(window)} if window else {})  # datasets from before there was one keep theirs


def _of_others(layout: str) -> frozenset[str]:
    """Return the settings that only other layouts have."""
    return frozenset().union(*(names for name, names in _ONLY_OF.items() if name != layout))


def kind_words(channels: int, bits: int) -> str:
    """Return the channels and bits of frames in words; 0 bits are values that need a window."""
    depth = f"{bits} bits" if bits else "floating point, signed or more than 16 bits"
    return f"{channels} channel{'s' * (channels != 1)} of {depth}"


def refuse_unfit(channels: int, bits: int, layout: str) -> None:
    """Raise ValueError unless layout jpeg or video can hold frames: grey or RGB of 8 bits."""
    if bits == 8 and channels in (1, 3):
        return
    remedies = ["--layout png keeps them"] if bits else []
    remedies += ["--window LOW HIGH maps a range of them to 8 bits"] if bits != 8 and channels in (1, 3) else []
    held = f"layout {layout} holds 1 or 3 channels of 8 bits"
    raise ValueError(f"{kind_words(channels, bits)}, and {held}: {', or '.join(remedies)}")
