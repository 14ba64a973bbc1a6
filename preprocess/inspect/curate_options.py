"""The settings of `curate`, as options of the command line and as a dataclass; standard library only."""

import argparse
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mae3d.io.bounds import bounded, check_bounds


def _option(default: Any, text: str, **limits: Any) -> Any:
    return bounded(field(default=default, metadata={"help": text}), **limits)


@dataclass(frozen=True)
class CurateSettings:
    """All that the flags depend on; levels are grey levels of 0 to 255, of thumbnails of 32 x 32."""

    frames: int = _option(96, "most frames that are decoded of a sample, evenly spread", least=8, most=1 << 16)
    still_levels: float = _option(1.0, "still: frames differ less from their mean, on average", least=0, most=255)
    frozen_levels: float = _option(3.0, "frozen: no pixel changes by more, from frame to frame", least=0, most=255)
    frozen_seconds: float = _option(1.0, "frozen: so long a run of equal frames", above=0, most=1e6)
    frozen_share: float = _option(0.5, "frozen: or such a share of the sample", above=0, most=1)
    black_levels: float = _option(24.0, "black: frames no brighter, on average", least=0, most=255)
    black_spread: float = _option(10.0, "black: and of no larger standard deviation", least=0, most=255)
    black_share: float = _option(0.5, "black: such a share of the frames", above=0, most=1)
    cut_threshold: float = _option(3.0, "cut: change over that of the frames around it", above=1, most=1000)
    cut_levels: float = _option(15.0, "cut: least change of hue, saturation and brightness", least=0, most=255)
    duplicate_distance: float = _option(0.1, "near_duplicate: 1 - correlation of the thumbnails", least=0, most=1)
    duplicate_motion: float = _option(0.5, "near_duplicate: least correlation of the change in them", least=0, most=1)
    mirrored: bool = False
    cuts: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)


def add_curate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `curate`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="the dataset's folder; gets curation.parquet")
    for one in fields(CurateSettings):
        if "help" in one.metadata:
            name = f"--{one.name.replace('_', '-')}"
            kind, text = type(one.default), f"{one.metadata['help']} (%(default)s)"
            parser.add_argument(name, type=kind, default=one.default, metavar="X", help=text)
    parser.add_argument("--mirrored", action="store_true", help="near_duplicate: mirrored copies too")
    parser.add_argument("--no-cuts", dest="cuts", action="store_false", help="without PySceneDetect: no flag `cut`")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads (%(default)s)")


def settings_of(options: argparse.Namespace) -> CurateSettings:
    """Return the settings of a command line."""
    return CurateSettings(**{one.name: getattr(options, one.name) for one in fields(CurateSettings)})
