"""The names of a folder's files become videos of numbered frames, and a list of what is left out, and why.

In: file names such as `img_00001.jpg`. Out: `Naming`, with a `FrameFolder` a video, which names the file of any frame.

    naming = scan_names(os.listdir("train/video_1"))
    naming.videos      # (FrameFolder('img_', digits=5, suffix='.jpg', numbers=[1 ... 3117]),)
    naming.left        # {"optical flow": ["x_00001.jpg", ...]}

Every prefix with two frames or more is a video of its own, but for optical flow, masks, depth and thumbnails beside
pictures, which their names announce (`preprocess.sources.file_kinds`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from preprocess.plan.samples import frame_name
from preprocess.sources.file_kinds import IMAGE_SUFFIXES, PARTNER, UNREAD_IMAGE_SUFFIXES, Role, role_of

_SUFFIXES = "|".join(sorted(map(re.escape, IMAGE_SUFFIXES | UNREAD_IMAGE_SUFFIXES)))
_NUMBERED = re.compile(rf"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>{_SUFFIXES})", re.IGNORECASE | re.DOTALL)
_LARGEST = 1 << 53
_JPEG = frozenset((".jfif", ".jpe", ".jpeg", ".jpg"))
_FEWEST = 3  # numbers that show a stride
UNREAD, UNREAD_DICOM = "pictures of a kind that is not read", "DICOM files, which --stacks reads"
FLOW, BESIDE = "optical flow", "masks, depth, thumbnails or the like"


@dataclass(frozen=True)
class FrameFolder:
    """The naming of one video's frames: `prefix`, a number of at least `digits` digits, `suffix`."""

    prefix: str
    digits: int
    suffix: str
    numbers: np.ndarray  # int64, ascending
    outside: str = ""  # a file among them that is a link to what lies outside the root

    @cached_property
    def stride(self) -> int:
        """Return the difference between neighbouring numbers: 1, or more if frames were numbered before thinning."""
        if len(self.numbers) < _FEWEST:
            return 1
        stride = int(np.gcd.reduce(np.diff(self.numbers)))
        # As few as half of the frames may be missing: else any few numbers would have a stride.
        span = int(self.numbers[-1] - self.numbers[0])
        return stride if span // stride + 1 <= 2 * len(self.numbers) else 1

    @cached_property
    def uneven_step(self) -> int:
        """Return the step of most numbers if it is not that of all (0, 25, 50, 75, 110); 0 if there is none."""
        steps = np.diff(self.numbers)
        step = int(np.median(steps)) if len(steps) > 1 else 0
        return step if step > self.stride and 2 * np.sum(np.abs(steps - step) <= 1) >= len(steps) else 0

    @property
    def stem(self) -> str:
        """Return the prefix without what separates it from the number."""
        return self.prefix.rstrip(" _.-")

    def file_name(self, number: int) -> str:
        """Return the name of a frame's file."""
        return frame_name(self.prefix, self.digits, self.suffix, number)

    @property
    def span(self) -> str:
        """Return the first and the last file, for messages."""
        first, last = int(self.numbers[0]), int(self.numbers[-1])
        steps = f" in steps of {self.stride}" if self.stride > 1 else ""
        steps = f", mostly in steps of {self.uneven_step}" if self.uneven_step else steps
        return f"{len(self.numbers)} frames, {self.file_name(first)} to {self.file_name(last)}{steps}"

    def expected(self, first: int, stop: int) -> range:
        """Return the numbers that frames in [first, stop) have: every one, or every `stride`-th."""
        begin = first + (int(self.numbers[0]) - first) % self.stride
        return range(begin, stop, self.stride)

    def first_missing(self, first: int, stop: int) -> int | None:
        """Return the first expected number in [first, stop) without a file, or None if all exist."""
        expected = self.expected(first, stop)
        low, high = np.searchsorted(self.numbers, [first, stop]).tolist()
        if high - low == len(expected):
            return None
        off = np.flatnonzero(self.numbers[low:high] != expected[0] + self.stride * np.arange(high - low))
        return expected[int(off[0] if len(off) else high - low)]

    def gaps(self, first: int, stop: int) -> tuple[int, ...] | None:
        """Return the expected numbers in [first, stop) without a file; None if no earlier frame could replace one.

        Also None for numbers beyond the last file, or where more frames are missing than there are, but for those
        between uneven steps.
        """
        expected = self.expected(first, stop)
        low, high = np.searchsorted(self.numbers, [first, stop]).tolist()
        if not len(expected) or self.numbers[0] > expected[0] or self.numbers[-1] < expected[-1]:
            return None
        if len(expected) > 2 * (high - low) * max(1, self.uneven_step // self.stride):
            return None
        grid = np.arange(expected.start, expected.stop, expected.step)
        return tuple(np.setdiff1d(grid, self.numbers[low:high], assume_unique=True).tolist())


@dataclass(frozen=True)
class Naming:
    """The videos of a folder by their names, and the files that belong to none."""

    videos: tuple[FrameFolder, ...] = ()  # by prefix
    left: dict[str, list[str]] = field(default_factory=dict)  # files that were left out, by what they are
    others: list[str] = field(default_factory=list)  # files that are no numbered pictures
    refusal: str = ""  # why there is no video although there are numbered pictures
    only_flow: bool = False  # the one video there is has a name as optical flow has


def is_frame(name: str) -> bool:
    """Return whether a file's name is that of a numbered picture, read or not."""
    return _NUMBERED.fullmatch(name) is not None


def scan_names(names: Iterable[str]) -> Naming:
    """Return the videos of a folder's files, of which ignored ones were left out before."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    others: list[str] = []
    unread: list[str] = []
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None or int(match["number"]) >= _LARGEST:
            others.append(name)
        elif match["suffix"].lower() in UNREAD_IMAGE_SUFFIXES:
            unread.append(name)
        else:
            groups[match["prefix"], match["suffix"]].append(match["number"])
    why = UNREAD_DICOM if unread and all(name.lower().endswith(".dcm") for name in unread) else UNREAD
    left: dict[str, list[str]] = {why: unread} if unread else {}
    videos = _one_a_prefix(groups, left)
    if not videos:
        return Naming((), left, others, why if unread else "")
    chosen, refusal = _chosen(videos, left)
    only_flow = len(chosen) == 1 and role_of(chosen[0].stem).kind == "flow" and FLOW not in left
    return Naming(tuple(chosen), left, others, refusal, only_flow)


def _one_a_prefix(groups: dict[tuple[str, str], list[str]], left: dict[str, list[str]]) -> list[FrameFolder]:
    """Return a video a prefix: of several suffixes the one of most frames (JPEG in a tie), the others are left out."""
    by_prefix: dict[str, list[FrameFolder]] = defaultdict(list)
    for (prefix, suffix), texts in groups.items():
        # A leading zero fixes the width; numbers without one fit every width up to their own.
        widths = Counter(len(text) for text in texts if text[0] == "0" and len(text) > 1)
        digits = max(widths, key=lambda width: (widths[width], width)) if widths else 1
        numbers = [int(text) for text in texts if text == f"{int(text):0{digits}d}"]
        by_prefix[prefix].append(FrameFolder(prefix, digits, suffix, np.array(sorted(numbers), np.int64)))
        if strays := [f"{prefix}{text}{suffix}" for text in texts if text != f"{int(text):0{digits}d}"]:
            left.setdefault("numbers of other widths", []).extend(strays)
    videos = []
    for prefix in sorted(by_prefix):
        ranked = sorted(
            by_prefix[prefix], key=lambda one: (len(one.numbers), one.suffix.lower() in _JPEG, one.suffix), reverse=True
        )
        videos.append(ranked[0])
        _leave(ranked[1:], left, "numbers with other suffixes")
    return videos


def _leave(videos: Iterable[FrameFolder], left: dict[str, list[str]], why: str) -> None:
    files = [one.file_name(int(number)) for one in videos for number in one.numbers]
    if files:
        left.setdefault(why, []).extend(files)


def _chosen(videos: list[FrameFolder], left: dict[str, list[str]]) -> tuple[list[FrameFolder], str]:
    """Return the videos of a folder that are pictures, or why there are none; the others are left out by name."""
    if len(videos) == 1:
        return videos, ""
    kinds = _kinds([role_of(one.stem) for one in videos])
    pictures = [one for one, kind in zip(videos, kinds, strict=True) if kind == "rgb"]
    flow = [one for one, kind in zip(videos, kinds, strict=True) if kind == "flow"]
    beside = [one for one, kind in zip(videos, kinds, strict=True) if kind == "beside"]
    _leave(flow, left, FLOW)
    if not pictures and flow:
        _leave(beside, left, BESIDE)
        return [], f"nothing but optical flow ({', '.join(sorted(one.prefix for one in flow))})"
    if not pictures:
        pictures = beside
    else:
        _leave(beside, left, BESIDE)
    if len(pictures) == 1:
        return pictures, ""
    long = [one for one in pictures if len(one.numbers) > 1]
    if not long:
        return [], f"no two of its {len(pictures)} numbered pictures share the name before their number (--images?)"
    _leave([one for one in pictures if len(one.numbers) == 1], left, "single pictures")
    return long, ""


def _kinds(roles: Sequence[Role]) -> list[str]:
    """Return for each prefix of a folder whether it is "rgb", "flow" or "beside" the pictures."""
    pictures = {role.base.lower() for role in roles if role.kind in ("rgb", "")}
    axes = {(role.base, role.word) for role in roles if role.kind == "axis"}
    num_pictures = sum(role.kind in ("rgb", "") for role in roles)
    num_flow = sum(role.kind == "flow" for role in roles)
    kinds = []
    for role in roles:
        kind = role.kind or "rgb"
        if role.word == "flow_i" and not num_pictures:
            kind = "rgb"  # the tool dense_flow calls the pictures so by default
        elif kind == "axis":
            # x_ and y_ are flow beside pictures, or if nothing else is there; among other videos they are two more.
            paired = (role.base, PARTNER[role.word]) in axes
            kind = "flow" if paired and (role.base.lower() in pictures or num_pictures <= 1 or num_flow) else "rgb"
        kinds.append(kind)
    return kinds


def left_out_folders(paths: Sequence[str]) -> dict[str, str]:
    """Return the frame folders that are optical flow, masks or the like by name, and which of it they are.

    A folder's role counts only among siblings that all have one (`img`, `flow_x`, `flow_y`), below flow, or in a
    folder that has frames itself: a class may be called `mask`, `u` or `x`.
    """
    children: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        parts = path.split("/")
        for depth, part in enumerate(parts):
            children["/".join(parts[:depth])].add(part)
    with_frames = set(paths)
    left = {}
    for path in paths:
        parts = path.split("/")
        for depth, part in enumerate(parts):
            parent = "/".join(parts[:depth])
            if part and (why := _why_left(part, children[parent], has_frames=parent in with_frames)):
                left[path] = why
                break
    return left


def _why_left(name: str, siblings: set[str], *, has_frames: bool) -> str:
    role = role_of(name)
    if role.base or role.kind in ("", "rgb"):
        return ""
    roles = [role_of(other) for other in siblings]
    beside_pictures = has_frames or any(other.kind == "rgb" for other in roles)
    all_known = all(other.kind and not other.base for other in roles)
    if role.kind == "flow" and (role.word != "flow" or (beside_pictures and all_known)):
        return FLOW
    if role.kind == "axis" and beside_pictures and all_known and PARTNER[role.word] in {one.word for one in roles}:
        return FLOW
    return BESIDE if role.kind == "beside" and beside_pictures and all_known else ""


def index_shift(folder: FrameFolder, first: int, stop: int) -> int:
    """Return the shift from a ledger's frame numbers to the file numbers of a folder: 0, 1 or -1.

    Args:
        folder: what is on disk.
        first: the smallest frame number that the ledger names in this folder.
        stop: one more than the largest.
    """
    low, high = int(folder.numbers[0]), int(folder.numbers[-1]) + 1
    if low <= first and stop <= high:
        return 0
    if low == 1 and first == 0 and stop + 1 <= high:
        return 1  # the ledger counts from 0, the files from 1
    if low == 0 and first >= 1 and stop - 1 == high:
        return -1  # the ledger counts from 1, the files from 0
    return 0
