"""The videos that rows of lists name are found: by their path, by another spelling of it, or by their name.

    videos = ListedVideos(Folder(Path("videos")), follow=False)
    videos.find(ListRow(1, "Archery\\one.MP4"))           # "archery/one.mp4"

What exists decides; what could be two files is refused, and the message of a missing one has where it was looked for.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from mae3d.video.errors import MediaError
from preprocess.sources.archives import archives_among, beside, how_to_unpack
from preprocess.sources.list_records import ends_as_video
from preprocess.sources.list_tables import ListRow
from preprocess.sources.roots import Folder, Root
from preprocess.sources.spellings import by_spelling, plain_path, spelling

_ABSOLUTE = re.compile(r"/|[A-Za-z]:[/\\]|\\\\")


@dataclass
class ListedVideos:
    """The videos below a root by their names; listed at first use."""

    root: Root
    follow: bool  # linked folders too
    num_respelled: int = 0  # rows whose file was found under another spelling
    num_moved: int = 0  # rows with an absolute path whose end is a path below the root
    moved_from: str = ""  # where those paths begin

    @cached_property
    def _files(self) -> list[str]:
        return self.root.files(follow=self.follow).names

    @cached_property
    def _names(self) -> list[str]:
        return [name for name in self._files if ends_as_video(name)]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """Return the files by their names without suffix, with and without their folder."""
        stems: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            path = PurePosixPath(name)
            for stem in {path.stem, str(path.with_suffix(""))}:
                stems[stem].append(name)
        return dict(stems)

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        stems = [(stem, name) for stem, names in self._by_stem.items() for name in names]
        return by_spelling([*stems, *((name, name) for name in self._names)])

    @cached_property
    def _archives(self) -> dict[str, str]:
        return archives_among(self._files)

    def find(self, row: ListRow) -> str:
        """Return the file of a row: its path, its path in another spelling, or the video that it names.

        Of several videos of one name, it is the one in the folder of the row's label.

        Raises:
            MediaError: there is none, or there are several.
        """
        is_there = (self.root.path / row.path).is_file() if isinstance(self.root, Folder) else not row.stems
        if row.path and is_there:
            if row.stems and archives_among([row.path]):
                raise MediaError("unknown_format", f"it is an archive: {how_to_unpack(self.root, row.path)}")
            return row.path
        named = [paths for stem in row.stems if (paths := self._by_stem.get(stem))]
        paths = named[0] if named else []
        if not paths and row.path and isinstance(self.root, Folder):
            plain = plain_path(row.path)
            if (self.root.path / plain).is_file():
                paths = [plain]
            elif paths := self._moved(plain):
                self.num_moved += 1
            else:
                paths = self._by_spelling.get(spelling(plain), [])
                self.num_respelled += len(paths) == 1
        label = _plain(row.labels[0]) if row.labels else ""
        if exact := [path for path in paths if str(PurePosixPath(path).with_suffix("")) in row.stems]:
            paths = exact
        if len(paths) > 1:
            paths = [path for path in paths if label in map(_plain, path.split("/")[:-1])] or paths
        if len(paths) == 1:
            return paths[0]
        if paths:
            raise MediaError("ambiguous_file", f"it could be {' or '.join(paths[:3])}; give the whole path")
        raise MediaError("missing_file", self._why_missing(row))

    def _moved(self, path: str) -> list[str]:
        """Return the file below the root that an absolute path of another machine or folder means, or nothing.

        The first such path that ends as a file below the root does shows what the others begin with.
        """
        if not _ABSOLUTE.match(path) or not isinstance(self.root, Folder):
            return []
        parts = path.split("/")
        if not self.moved_from:
            tails = (i for i in range(1, len(parts)) if (self.root.path / "/".join(parts[i:])).is_file())
            if (begin := next(tails, 0)) == 0:
                return []
            self.moved_from = "/".join(parts[:begin]) + "/"
        tail = path.removeprefix(self.moved_from)
        return [tail] if tail != path and (self.root.path / tail).is_file() else []

    def _why_missing(self, row: ListRow) -> str:
        """Return where a row's file was looked for, how the row was understood, and the options that help."""
        where = self.root.where
        understood = f"the path {row.path!r}" if row.path else f"the video {row.name!r}"
        understood += f" with the labels {', '.join(row.labels)}" if row.labels else " without labels"
        remedy = f"the row is read as {understood}; --root begins paths elsewhere, --columns names other columns"
        if isinstance(self.root, Folder) and row.path and (self.root.path / row.path).is_dir():
            return f"{self.root.path / row.path} is a folder; frame folders are read with --frames {where} --ledger"
        archive = beside(plain_path(row.path), self._archives) if row.path else ""
        if not archive and not self._names:
            archive = next(iter(self._archives.values()), "")
        if archive:
            remedy = f"it may be in {archive}: {how_to_unpack(self.root, archive)}; {remedy}"
        if row.stems:
            return f"no {' or '.join(row.stems)} with a video's suffix below {where}; {remedy}"
        stem = PurePosixPath(plain_path(row.path)).stem
        there = f", but there is {named[0]}" if (named := self._by_stem.get(stem)) else ""
        file = f"{where}/{row.path}" if not _ABSOLUTE.match(row.path) else row.path
        return f"no file {file}{there}; paths begin at {where}; {remedy}"


def _plain(label: str) -> str:
    return label.replace("_", " ").strip().lower()
