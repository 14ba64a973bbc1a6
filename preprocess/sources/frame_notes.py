"""Videos of frame folders get their names, and what was left out beside them becomes lines for the summary.

for video in named_videos({"a": naming}): ...       # NamedVideo(path="a", name="a/v1", folder=FrameFolder(...))
notes = naming_notes({"a": naming})                  # ["optical flow left out by name: 20 files in 1 folders: ..."]
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from preprocess.plan.samples import Request
from preprocess.sources.file_kinds import count_by_suffix, role_of
from preprocess.sources.frame_names import FrameFolder, Naming
from preprocess.sources.source import shortened

NO_FRAMES = "no numbered pictures (such as img_00001.jpg) in the folder"


@dataclass(frozen=True)
class NamedVideo:
    """A video of a tree of frame folders; `folder` is None if there is none, for the reason in `refusal`."""

    path: str
    name: str
    folder: FrameFolder | None = None
    refusal: str = NO_FRAMES


def named_videos(namings: Mapping[str, Naming]) -> Iterator[NamedVideo]:
    """Yield the videos of folders, each named by its folder, or by folder/prefix where folders hold several.

    Where one folder of a depth holds several videos, all of that depth are named so, because then the class is the
    folder; but for prefixes that name no video (`img_`).
    """
    depths = {path.count("/") for path, naming in namings.items() if len(naming.videos) > 1 if path}
    for path, naming in namings.items():
        if not naming.videos:
            yield NamedVideo(path, path, None, naming.refusal or NO_FRAMES)
        stems = Counter(one.stem for one in naming.videos)
        for one in naming.videos:
            alone = len(naming.videos) == 1
            if alone and (path.count("/") not in depths or not path or role_of(one.stem).kind):
                yield NamedVideo(path, path, one)
                continue
            name = f"{path}/{one.stem}" if path else one.stem
            if stems[one.stem] > 1 or name in namings:  # v1_ and v1-, or v1_ beside a folder v1
                name = f"{path}/{one.prefix}" if path else one.prefix
            yield NamedVideo(path, name.rstrip("/"), one)


def naming_notes(namings: Mapping[str, Naming]) -> list[str]:
    """Return lines on the folders that hold several videos, and on files that were left out."""
    notes = []
    if shared := [path for path, naming in namings.items() if len(naming.videos) > 1]:
        count = sum(len(namings[path].videos) for path in shared)
        notes.append(f"{len(shared)} folders hold frames of {count} videos, one a prefix{shortened(shared)}")
    left: dict[str, list[str]] = defaultdict(list)
    folders: Counter[str] = Counter()
    for path, naming in namings.items():
        for why, files in (*naming.left.items(), ("", naming.others)):
            left[why] += [f"{path}/{file}" if path else file for file in sorted(files)]
            folders[why] += bool(files)
    for why, files in sorted(left.items()):
        if files and why:
            notes.append(f"{why} left out by name: {len(files)} files of {folders[why]} folders{shortened(files)}")
        elif files:
            counted = f"{len(files)} other files of {folders[why]} frame folders are not read"
            notes.append(f"{counted}, {count_by_suffix(files)}{shortened(files)}")
    if flow := [path for path, naming in namings.items() if naming.only_flow]:
        notes.append(
            f"warning: {len(flow)} folders hold only what is named like optical flow, and are taken{shortened(flow)}"
        )
    return notes


def folder_notes(root: str, beside: Mapping[str, str]) -> list[str]:
    """Return lines on the folders that were left out by their names."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for path, why in beside.items():
        by_kind[why].append(path)
    return [f"{root}: {why} left out by name: {len(paths)} folders{shortened(paths)}" for why, paths in by_kind.items()]


def stride_notes(requests: Sequence[Request]) -> list[str]:
    """Return a line on the videos whose frames are numbered in steps."""
    strided = {(one.root, one.name): one.stride for one in requests if one.stride > 1}
    by_stride: dict[int, list[str]] = defaultdict(list)
    for (_, name), stride in strided.items():
        by_stride[stride].append(name)
    return [
        f"{len(names)} videos have frames numbered in steps of {stride}, "
        f"so their rate is --source-fps / {stride}{shortened(names)}"
        for stride, names in sorted(by_stride.items())
    ]
