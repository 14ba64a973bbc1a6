"""Samples of a source of the user's become requests for the plan; the workers read their frames by name.

    source = hooked_source("my_scans:Dicoms(root='scans')", settings=settings, reading=reading)
    result = source.find()      # ScanResult(requests, problems, notes)

`samples()` of the user's object is called once, for the plan; `frames(name)` in the workers' decoder processes, in any
order and as often as a sample is tried. docs/hooks.md has the protocol.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae3d.io.hooks import canonical, code_of, load
from preprocess.plan.plan import ScanResult
from preprocess.plan.samples import HOOK, Request
from preprocess.plan.settings import Settings
from preprocess.sources.fetched_files import Scratch
from preprocess.sources.roots import Listing
from preprocess.sources.source import PLAIN, SCRATCH, Reading, Source, encodable, given_label_names, reading_identity

_ENTRIES = {"name", "label", "fps", "num_frames", "split", "group"}  # of a sample


@dataclass(frozen=True)
class HookRoot:
    """The root of a source of the user's: its "files" are the names of samples, which it alone can read."""

    text: str

    @property
    def name(self) -> str:
        return self.text

    @property
    def where(self) -> str:
        return self.text

    def files(self, below: str = "", *, follow: bool = False) -> Listing:
        return Listing([])

    def read(self, path: str) -> bytes:
        raise FileNotFoundError(path)

    def head(self, path: str, count: int) -> bytes:
        return b""

    def inside(self, path: str) -> bool:
        return True

    @contextmanager
    def local(self, files: Sequence[str]) -> Iterator[list[Path]]:
        yield [Path(file) for file in files]


def hooked_source(given: str, *, settings: Settings, reading: Reading = PLAIN, scratch: Scratch = SCRATCH) -> Source:
    """Return the samples of a source of the user's.

    Args:
        given: `module:name` or `module:name(key=value)`.
        settings: sizes and rates.
        reading: label names and kinds.
        scratch: room for a file of label names that is fetched.

    Raises:
        ValueError: there is no such source, or a setting is for other input.
    """
    text = canonical(given, "sources", option="--source")
    if settings.source_fps or settings.segment_seconds or settings.segment_frames:
        raise ValueError(
            "--source-fps, --segment-seconds and --segment-frames have no meaning for --source: it gives the rate and "
            "the length of each sample itself"
        )
    load(text, "sources")
    names = given_label_names(reading, scratch=scratch)
    identity = [{"name": text, "code": code_of(text)}, *reading_identity(reading, names)]

    def find() -> ScanResult:
        requests, problems = encodable(_requests(text))
        return ScanResult(requests, problems, [], names, reading.label_kind)

    return Source((HookRoot(text),), text, identity, find)


def _requests(text: str) -> Iterator[Request]:
    hook, seen = load(text, "sources"), set[str]()
    for number, sample in enumerate(hook.guarded(lambda: list(hook.target.samples())), 1):
        if not isinstance(sample, Mapping) or not isinstance(sample.get("name"), str) or sample.keys() - _ENTRIES:
            raise hook.refuse(
                f"gave sample {number} as {sample!r:.80}: samples are mappings with a name, and perhaps "
                f"{', '.join(sorted(_ENTRIES - {'name'}))}"
            )
        if sample["name"] in seen:
            raise hook.refuse(f"gave two samples the name {sample['name']!r}: the workers read samples by name")
        seen.add(sample["name"])
        yield _request(text, sample)


def _request(text: str, sample: Mapping[str, Any]) -> Request:
    label, fps = sample.get("label", ()), float(sample.get("fps") or math.nan)
    labels = (label,) if isinstance(label, str | int) else tuple(label or ())
    count = int(sample.get("num_frames") or 0)
    request = Request(
        HOOK, 0, sample["name"], sample["name"], tuple(map(str, labels)), "", -1, 0, count, 0.0, math.inf, prefix=text
    )
    request.rate, request.length_s = fps, count / fps if count else math.nan
    request.split, request.group = str(sample.get("split", "")), str(sample.get("group", ""))
    return request
