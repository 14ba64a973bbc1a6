"""Videos that stay where they are are read as shards are, and beside them: order, windows, views, damage, changes."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae3d.io.storage import Storage
from mae3d.video.packets import PacketDecoder, PacketTable
from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.reading import shard_reader
from pipelines.reading.shard_reader import DataError
from pipelines.reading.source import STATUS_OK, STATUS_SUBSTITUTED, cost_in_place
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.stream import Batch, ClipStream, evaluation_clips
from preprocess.__main__ import main
from preprocess.dataset.index import DatasetError
from tests.support.loaders import take
from tests.support.media import make_video

CONFIG = DataConfig(
    sampling_rate=2, target_fps=10, repeat_aug=2, flip=0.5, read_threads=2, prefetch=2, decode_threads=2, retries=0
)
FRAMES, SIZE, BATCH = 4, 16, 4
VIDEOS, LENGTH = 9, 24  # the last one's packets do not lie whole in its file
OPENED = VIDEOS - 1  # its row


@pytest.fixture(scope="module")
def stores(shared: Any) -> dict[str, Path]:
    """The same videos three times: as JPEGs, in groups, and as they lie in `archive`."""

    def make(folder: Path) -> dict[str, Path]:
        archive = folder / "archive"
        for number in range(VIDEOS):
            suffix = "ts" if number == OPENED else ("mp4", "mkv", "avi")[number % 3]
            name = archive / "ab"[number % 2 if number < OPENED else 1] / f"{number}.{suffix}"
            make_video(name, LENGTH, codec="libx264" if suffix != "avi" else "mpeg4")
        given = ["--videos", str(archive), "--shard-size", "4", "--workers", "1"]
        roots = {name: folder / name for name in ("jpeg", "video", "files")}
        assert main(["build", *given, "--out", str(roots["jpeg"]), "--quality", "100"]) == 0
        as_video = ["--layout", "video", "--fps", "10", "--crf", "8", "--group", "4"]
        assert main(["build", *given, "--out", str(roots["video"]), *as_video]) == 0
        assert main(["index", *given, "--out", str(roots["files"])]) == 0
        return roots | {"archive": archive}

    made: dict[str, Path] = shared("layouts_of_videos", make)
    return made


def make(roots: list[Path], config: DataConfig = CONFIG, **settings: Any) -> Loader:
    options = {"num_frames": FRAMES, "size": SIZE, "seed": 5, "global_batch": BATCH} | settings
    return Loader(open_corpus(roots), config, **options)


def evaluated(corpus: Corpus, rows: np.ndarray | None = None, **settings: Any) -> tuple[list[Batch], ClipStream]:
    rows = np.arange(len(corpus)) if rows is None else rows
    stream = evaluation_clips(corpus, CONFIG, rows=rows, num_frames=FRAMES, size=SIZE, batch_size=4, **settings)
    batches = list(stream)
    stream.close()
    return batches, stream


def statuses(batches: list[Batch]) -> dict[int, list[int]]:
    """Return the status of each view by position."""
    pairs = [zip(batch.positions.tolist(), batch.status.tolist(), strict=True) for batch in batches]
    return {position: status for one in pairs for position, status in one}


@pytest.mark.parametrize("windows", ["own", "shared"])
@pytest.mark.parametrize("other", ["jpeg", "video"])
def test_batches_are_those_of_shards(stores: dict[str, Path], other: str, windows: Any) -> None:
    config = replace(CONFIG, windows=windows)
    pairs = zip(take(make([stores["files"]], config), 4), take(make([stores[other]], config), 4), strict=True)
    for ours, theirs in pairs:
        for name in ("rows", "labels", "positions", "status"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert (ours.status == STATUS_OK).all()
        difference = (ours.clips.float() - theirs.clips.float()).abs()
        assert difference.mean() < 3
        assert difference.max() < 60  # at the edges of the numbers, where the codecs differ


def test_every_world_and_every_resume_gets_the_same_clips(stores: dict[str, Path]) -> None:
    roots = [stores["jpeg"], stores["files"], stores["video"]]
    alone = take(make(roots), 6)
    assert {int(row) // VIDEOS for batch in alone for row in batch.rows.flatten()} == {0, 1, 2}
    ranks = [take(make(roots, rank=rank, world=2), 6) for rank in range(2)]
    for step in range(6):
        assert torch.equal(torch.cat([rank[step].clips for rank in ranks]), alone[step].clips)
    first = make(roots)
    next(first)
    state = first.state_dict()
    first.close()
    resumed = make(roots)
    resumed.load_state_dict(state)
    for ours, theirs in zip(take(resumed, 5), alone[1:], strict=True):
        assert torch.equal(ours.clips, theirs.clips)


def test_windows_of_one_sample_are_decoded_once(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = PacketDecoder.decode

    def counted(self: PacketDecoder, table: PacketTable, frames: Any, data: Any) -> Any:
        decoded.append(len(frames))
        return decode(self, table, frames, data)

    monkeypatch.setattr(PacketDecoder, "decode", counted)
    corpus = open_corpus([stores["files"]])
    several, _ = evaluated(corpus, num_clips=5)
    assert len(decoded) == OPENED
    monkeypatch.undo()
    for clip in range(5):  # alone, each window is decoded from packets of its own
        starts = np.array([several_starts(corpus, row)[clip] for row in range(len(corpus))])
        alone, _ = evaluated(corpus, starts=starts)
        for together, one in zip(several, alone, strict=True):
            assert torch.equal(together.clips[:, clip], one.clips[:, 0])


def several_starts(corpus: Corpus, row: int) -> list[int]:
    """Return where five windows of a sample begin: evenly spread, rounded as `pipelines.sampling.windows` does."""
    last = int(corpus.num_frames[row]) - 1 - (FRAMES - 1) * 2
    return [int(last * clip / 4) for clip in range(5)]


@pytest.fixture
def own(stores: dict[str, Path], tmp_path: Path) -> tuple[Corpus, Path]:
    """A copy of the archive that may be damaged, and the index of the original."""
    archive = shutil.copytree(stores["archive"], tmp_path / "archive")
    return open_corpus([stores["files"]], moved={str(stores["archive"]): str(archive)}), archive


def file_of(corpus: Corpus, row: int) -> Path:
    return Path(corpus.file_name(row))


def packet_of(corpus: Corpus, row: int, frame: int) -> tuple[int, int]:
    """Return offset and size of the packet of a stored frame in its file."""
    spans = corpus.spans(row, np.array([0]))
    shard = corpus.shard_path(int(corpus.shard[row])).read_bytes()
    table = PacketTable.from_bytes(shard[int(spans.offset[0]) :][: int(spans.size[0])])
    packet = int(table.frame[frame])
    return int(table.packets.offset[packet]), int(table.packets.size[packet])


def test_fault_13_a_flipped_bit_costs_the_windows_that_need_its_packet(own: tuple[Corpus, Path]) -> None:
    corpus, _ = own
    row = 3
    offset, size = packet_of(corpus, row, 16)  # the last keyframe
    with file_of(corpus, row).open("r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)[0]
        file.seek(offset + size // 2)
        file.write(bytes([byte ^ 0x40]))
    batches, stream = evaluated(corpus, num_clips=4)
    of_row = statuses(batches).pop(row)
    assert of_row[0] == STATUS_OK
    assert of_row[-1] == STATUS_SUBSTITUTED
    others = [status for position, status in statuses(batches).items() if position != row]
    assert {one for status in others for one in status} == {STATUS_OK}
    assert {damage.shard for damage in stream.damage} == {str(file_of(corpus, row))}
    assert all("crc32" in damage.reason for damage in stream.damage)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_with_noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(Path.unlink, "vanished"), (cut, "ends after"), (replace_with_noise, "crc32")],
    ids=["vanished", "cut", "replaced"],
)
@pytest.mark.parametrize("row", [1, OPENED])
def test_fault_13_a_file_that_changes_after_the_start_costs_its_clips(
    own: tuple[Corpus, Path], change: Callable[[Path], None], reason: str, row: int
) -> None:
    corpus, _ = own
    change(file_of(corpus, row))
    batches, stream = evaluated(corpus, starts=np.full(len(corpus), 17))
    for position, status in statuses(batches).items():
        assert status == [STATUS_SUBSTITUTED if position == row else STATUS_OK]
    assert {damage.shard for damage in stream.damage} == {str(file_of(corpus, row))}
    assert (row == OPENED and reason != "vanished") or all(reason in damage.reason for damage in stream.damage)


def test_a_read_that_fails_once_is_tried_again(own: tuple[Corpus, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, _ = own
    failed: set[int] = set()
    media = {file_of(corpus, row).stat().st_ino for row in range(len(corpus))}

    def fails_once(descriptor: int, size: int, offset: int) -> bytes:
        inode = os.fstat(descriptor).st_ino
        if inode in media and inode not in failed:
            failed.add(inode)
            raise OSError(errno.EIO, "input/output error")
        return os.pread(descriptor, size, offset)

    monkeypatch.setattr(shard_reader, "pread", fails_once)
    monkeypatch.setattr(shard_reader, "FIRST_WAIT_S", 0.01)
    config = replace(CONFIG, retries=1)
    stream = evaluation_clips(corpus, config, rows=np.arange(VIDEOS), num_frames=FRAMES, size=SIZE, batch_size=4)
    assert {int(one) for batch in stream for one in batch.status.flatten()} == {STATUS_OK}
    assert stream.counts()["read_retries"] == len(failed) == VIDEOS
    stream.close()


def test_an_archive_that_goes_away_as_a_whole_stops_the_run(own: tuple[Corpus, Path]) -> None:
    corpus, archive = own
    shutil.rmtree(archive)
    with pytest.raises(DataError, match="see to it that the storage is mounted"):
        evaluated(corpus, np.arange(OPENED))
    with pytest.raises(DataError, match="see to it that the storage is mounted"):
        evaluated(corpus, np.array([OPENED]))


@pytest.fixture
def changed(stores: dict[str, Path], own: tuple[Corpus, Path]) -> tuple[dict[str, str], list[int]]:
    """Where the archive has moved, with one file gone and one longer, and the rows of these."""
    corpus, archive = own
    file_of(corpus, 2).unlink()
    with file_of(corpus, 5).open("ab") as file:
        file.write(b"!")
    return {str(stores["archive"]): str(archive)}, [2, 5]


def test_files_that_have_gone_or_changed_are_named_at_the_start(
    stores: dict[str, Path], changed: tuple[dict[str, str], list[int]]
) -> None:
    moved, rows = changed
    with pytest.raises(DatasetError) as refused:
        open_corpus([stores["files"]], moved=moved)
    message = str(refused.value)
    names = [Path(open_corpus([stores["files"]]).file_name(row)).name for row in rows]
    assert f"2 of {VIDEOS} media files, 2 samples" in message
    assert f"{names[0]}: missing" in message
    assert re.search(rf"{names[1]}: \d+ bytes, it had \d+ when it was indexed", message)
    assert f"--data.moved {next(iter(moved.values()))}=NEW" in message
    assert "--data.exclude_bad_shards true" in message


def test_files_that_have_gone_or_changed_can_be_left_out(
    stores: dict[str, Path], changed: tuple[dict[str, str], list[int]]
) -> None:
    moved, rows = changed
    whole, corpus = open_corpus([stores["files"]]), open_corpus([stores["files"]], moved=moved, exclude_bad_shards=True)
    assert corpus.readable_rows.tolist() == [row for row in range(VIDEOS) if row not in rows]
    assert [line.partition(" (")[0] for line in corpus.left_out] == [corpus.file_name(row) for row in rows]
    left, all_of_them = evaluated(corpus, corpus.readable_rows)[0], evaluated(whole, corpus.readable_rows)[0]
    for ours, theirs in zip(left, all_of_them, strict=True):
        assert torch.equal(ours.clips, theirs.clips)
    state = Loader(corpus, CONFIG, num_frames=FRAMES, size=SIZE, seed=5, global_batch=4).state_dict()
    named = f"{corpus.file_name(2)} of dataset 1, {corpus.file_name(5)} of dataset 1"
    assert state["fingerprint"]["bad_shards"] == f"2 left out ({named})"


def test_an_archive_of_which_nothing_is_left_is_refused_in_any_case(
    stores: dict[str, Path], own: tuple[Corpus, Path]
) -> None:
    _, archive = own
    shutil.rmtree(archive)
    with pytest.raises(DatasetError, match=f"{VIDEOS} of {VIDEOS} media files"):
        open_corpus([stores["files"]], moved={str(stores["archive"]): str(archive)}, exclude_bad_shards=True)


def test_an_index_behind_a_url_looks_at_its_videos_too(
    stores: dict[str, Path], changed: tuple[dict[str, str], list[int]], tmp_path: Path
) -> None:
    moved, rows = changed
    storage = Storage("memory://in-place/index")
    for path in stores["files"].iterdir():
        storage.put(path, path.name)
    cache = tmp_path / "cache"
    with pytest.raises(DatasetError, match=f"2 of {VIDEOS} media files"):
        open_corpus([storage.url], cache=cache, moved=moved)
    corpus = open_corpus([storage.url], cache=cache, moved=moved, exclude_bad_shards=True)
    assert np.setdiff1d(np.arange(VIDEOS), corpus.readable_rows).tolist() == rows
    theirs = evaluated(open_corpus([stores["files"]]), corpus.readable_rows)[0]
    for ours, other in zip(evaluated(corpus, corpus.readable_rows)[0], theirs, strict=True):
        assert torch.equal(ours.clips, other.clips)


def test_the_packets_of_a_clip_are_one_read(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus([stores["files"]])
    tars = {corpus.shard_path(shard).stat().st_ino for shard in range(len(corpus.datasets[0].shards))}
    reads: list[bool] = []

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(os.fstat(descriptor).st_ino in tars)
        return os.pread(descriptor, size, offset)

    monkeypatch.setattr(shard_reader, "pread", counted)
    evaluated(corpus, np.arange(OPENED))
    assert (reads.count(True), reads.count(False)) == (OPENED, OPENED)


def test_an_archive_that_has_moved_is_the_same_dataset(stores: dict[str, Path], own: tuple[Corpus, Path]) -> None:
    corpus, archive = own
    assert corpus.fingerprint == open_corpus([stores["files"]]).fingerprint
    config = DataConfig(moved=(f"{stores['archive']}/={archive}",))
    assert config.new_places == {str(stores["archive"]): str(archive)}
    with pytest.raises(ValueError, match="OLD=NEW"):
        DataConfig(moved=("nowhere",))


def test_videos_behind_a_url_are_read_by_ranges(stores: dict[str, Path], tmp_path: Path) -> None:
    storage = Storage("memory://in-place/archive")
    for path in stores["archive"].rglob("*.*"):
        storage.put(path, str(path.relative_to(stores["archive"])))
    out = tmp_path / "index"
    given = ["--videos", storage.url, "--shard-size", "4", "--workers", "1", "--scratch", str(tmp_path)]
    assert main(["index", *given, "--out", str(out)]) == 0
    there, here = open_corpus([out]), open_corpus([stores["files"]])
    assert there.names.to_pylist() == here.names.to_pylist()[:OPENED]  # the other one is rejected there
    assert there.file_name(0) == f"{storage.url}/{there.name(0)}"
    ours, theirs = (evaluated(corpus, np.arange(OPENED))[0] for corpus in (there, here))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.clips, other.clips)
    storage.remove(there.name(1))
    with pytest.raises(DatasetError, match="1 of 8 media files"):
        open_corpus([out])
    batches, _ = evaluated(there, np.arange(OPENED))  # opened before
    assert [row for row, status in statuses(batches).items() if status == [STATUS_SUBSTITUTED]] == [1]


def test_the_cost_of_clips_is_counted_from_their_tables(stores: dict[str, Path]) -> None:
    loader = make([stores["files"]])
    clips = [clip for _, request in zip(range(6), loader.requests(), strict=False) for clip in request.clips]
    cost = cost_in_place(open_corpus([stores["files"]]), clips)
    assert cost is not None
    assert cost.num_clips == len(clips)
    assert cost.num_opened == sum(clip.row == OPENED for clip in clips) > 0
    assert 1 < cost.packets_a_frame < 3  # strides of 2 in groups of 8
    assert cost.bytes_a_clip > 0
    ranged = cost_in_place(open_corpus([stores["files"]]), [clip for clip in clips if clip.row != OPENED])
    assert ranged is not None
    assert (ranged.packets_a_frame, ranged.bytes_a_clip) == (cost.packets_a_frame, cost.bytes_a_clip)
    assert cost_in_place(open_corpus([stores["jpeg"]]), clips) is None
    loader.close()
