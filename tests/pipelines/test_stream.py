"""A stream goes on where DALI fails: no batch is lost, none comes twice, undamaged clips keep every bit."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from pipelines import stream as stream_module
from pipelines.config import DataConfig, SelectConfig
from pipelines.decoding.clip_decoder import BadFrameError, jpeg_frames
from pipelines.decoding.dali import DaliDecoder
from pipelines.loader import Loader
from pipelines.reading.shard_reader import DataError
from pipelines.reading.source import STATUS_OK, STATUS_SUBSTITUTED, substitute
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.sampling.augment import Crop, View
from pipelines.sampling.requests import ClipRequest
from pipelines.stream import Batch, ClipStream
from tests.support.damage import Vouched, break_the_scan, flip_a_bit, overwrite
from tests.support.datasets import SAMPLES
from tests.support.loaders import requests_for, take

CONFIG = DataConfig(sampling_rate=2, repeat_aug=2, read_threads=2, prefetch=2, decode_threads=1)
FRAMES, SIZE, BATCH, BATCHES = 4, 16, 2, 6
ORDER = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])  # rows, two a batch

Windows = Literal["own", "shared"]


def copy_of(shards: Path, to: Path) -> Path:
    to.mkdir()
    for path in shards.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def stream_of(corpus: Corpus, windows: Windows, *, device: str = "cpu") -> ClipStream:
    """Six batches of two samples of two views, then the end."""
    config = replace(CONFIG, windows=windows)
    requests = requests_for(corpus, config, ORDER, batch=BATCH, num_frames=FRAMES, size=SIZE)
    return ClipStream(
        corpus,
        config,
        requests,
        max_clips=BATCH * (1 if windows == "shared" else 2),
        num_frames=FRAMES,
        num_views=2 if windows == "shared" else 1,
        size=SIZE,
        device=torch.device(device),
    )


def all_of(stream: ClipStream) -> list[Batch]:
    batches = list(stream)
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()
    return batches


@pytest.fixture(scope="module", params=["own", "shared"])
def windows(request: pytest.FixtureRequest) -> Windows:
    return request.param


@pytest.fixture(scope="module")
def undamaged(shards: Path, windows: Windows) -> list[Batch]:
    batches = all_of(stream_of(open_corpus([shards]), windows))
    assert len(batches) == BATCHES
    return batches


def assert_same_but(bad_rows: set[int], batches: list[Batch], undamaged: list[Batch]) -> None:
    """Every clip of every batch is that of the undamaged run, bit for bit; the bad rows have gone, with status 2."""
    assert [batch.positions.tolist() for batch in batches] == [batch.positions.tolist() for batch in undamaged]
    for batch, good in zip(batches, undamaged, strict=True):
        for b, row in enumerate(good.rows[:, 0].tolist()):
            if row in bad_rows:
                assert (batch.status[b] == STATUS_SUBSTITUTED).all()
                assert not set(batch.rows[b].tolist()) & bad_rows
            else:
                assert (batch.status[b] == STATUS_OK).all()
                assert (batch.rows[b] == row).all()
                assert torch.equal(batch.clips[b], good.clips[b])
                assert torch.equal(batch.labels[b], good.labels[b])


@pytest.mark.parametrize(
    ("bad", "failures"),
    [({1}, 1), ({5}, 1), ({12}, 1), ({5, 7}, 2), ({5, 6}, 1), ({1, 4, 12}, 3), (set(range(3, 11)), 4)],
    ids=["first batch", "middle", "last", "two in a row", "all of one", "first, second and last", "four in a row"],
)
def test_fault_23_the_batch_that_dali_fails_on_is_decoded_without_it(
    shards: Path, tmp_path: Path, windows: Windows, undamaged: list[Batch], bad: set[int], failures: int
) -> None:
    corpus = Vouched(open_corpus([copy_of(shards, tmp_path / "shards")]).datasets)
    for row in bad:
        overwrite(corpus, row, break_the_scan)
    stream = stream_of(corpus, windows)
    batches = all_of(stream)
    assert_same_but(bad, batches, undamaged)
    assert stream.counts() == {"substituted": len(bad), "read_retries": 0, "decode_errors": failures}
    assert {damage.key for damage in stream.damage} >= {corpus.key(row) for row in bad}
    assert all("does not decode" in damage.reason for damage in stream.damage)
    again = all_of(stream_of(corpus, windows))
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("how", ["no header", "another size"])
def test_fault_23_a_header_that_would_crash_dali_never_reaches_it(
    shards: Path, tmp_path: Path, undamaged: list[Batch], windows: Windows, how: str
) -> None:
    """DALI 2.4's CPU decoder takes the process with it where a header cannot be parsed."""
    corpus = Vouched(open_corpus([copy_of(shards, tmp_path / "shards")]).datasets)

    def other_size(data: bytes) -> bytes:
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + b"\x00\x08" + data[at + 2 :]

    overwrite(corpus, 5, other_size if how == "another size" else lambda data: bytes(len(data)))
    stream = stream_of(corpus, windows)
    assert_same_but({5}, all_of(stream), undamaged)
    assert stream.counts()["decode_errors"] == 0
    reason = "it is 8 x" if how == "another size" else "it is no JPEG"
    assert all(damage.reason.startswith(reason) for damage in stream.damage)


def test_fault_23_a_substitute_that_does_not_decode_gives_way_to_the_next(shards: Path, tmp_path: Path) -> None:
    """And to the same one as if DALI had been asked for it first: only the row that was asked for decides."""
    root = copy_of(shards, tmp_path / "shards")
    sound, vouched = open_corpus([root]), Vouched(open_corpus([root]).datasets)
    asked = ClipRequest(5, np.arange(FRAMES), (View(Crop(0, 0, 30, 30, False)),))
    drawn = [substitute(sound, asked, attempt, spares=np.arange(len(sound))).row for attempt in range(1, 9)]
    overwrite(sound, 5, flip_a_bit)
    overwrite(sound, drawn[0], break_the_scan)

    class Half(Vouched):
        def spans(self, row: int, frame_indices: np.ndarray) -> Any:
            return sound.spans(row, frame_indices) if row == 5 else super().spans(row, frame_indices)

    stream = stream_of(Half(vouched.datasets), "own")
    rows = torch.cat([batch.rows[:, 0] for batch in all_of(stream)]).tolist()
    assert rows[4] == next(row for row in drawn if row not in (5, drawn[0]))
    assert [damage.key for damage in stream.damage if damage.key in (sound.key(5), sound.key(drawn[0]))]


class Failing:
    """Lets `DaliDecoder.run` fail where it is told, before or after the pipeline has run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: set[int], late: bool = False):
        self.calls = 0
        run = DaliDecoder.run

        def failing(decoder: DaliDecoder, stream: Any = None) -> Any:
            self.calls += 1
            if self.calls - 1 in at:
                if late:
                    assert decoder._pipeline is not None
                    decoder._pipeline.run()
                raise RuntimeError("injected: the decoder is dead")
            return run(decoder, stream)

        monkeypatch.setattr(DaliDecoder, "run", failing)


@pytest.mark.parametrize("late", [False, True])
def test_fault_23_a_pipeline_that_dies_for_no_sample_is_built_anew(
    shards: Path, windows: Windows, undamaged: list[Batch], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    # Two in a row, then a good one; the last batch at the end.
    Failing(monkeypatch, at={1, 2, BATCHES - 1}, late=late)
    stream = stream_of(open_corpus([shards]), windows)
    assert_same_but(set(), all_of(stream), undamaged)
    assert stream.counts()["decode_errors"] == 3


def test_fault_23_a_pipeline_that_keeps_dying_stops_with_words(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, at=set(range(100)), late=True)
    stream = stream_of(open_corpus([shards]), "own")
    with pytest.raises(DataError, match=r"4 times in a row though every frame decodes.*the decoder is dead"):
        list(stream)
    assert stream.counts()["decode_errors"] == stream_module.MAX_RESTARTS + 1
    stream.close()


def test_fault_23_a_pipeline_that_cannot_be_built_again_stops_with_words(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Failing(monkeypatch, at={1}, late=True)

    def refuse(decoder: DaliDecoder) -> None:
        raise RuntimeError("injected: no memory")

    monkeypatch.setattr(DaliDecoder, "restart", refuse)
    stream = stream_of(open_corpus([shards]), "own")
    with pytest.raises(DataError, match=r"dead\) and cannot be started again \(injected: no memory\)"):
        list(stream)
    stream.close()


def loader_of(corpus: Corpus, *, max_bad: int = 100, rank: int = 0, world: int = 1) -> Loader:
    config = replace(CONFIG, max_bad=max_bad)
    return Loader(
        corpus, config, num_frames=FRAMES, size=SIZE, seed=5, global_batch=4, rank=rank, world=world
    )  # fmt: skip


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Corpus:
    """Row 6 has a flipped bit in every frame; row 9 passes its crc32 and does not decode."""
    corpus = Vouched(open_corpus([copy_of(shards, tmp_path / "shards")]).datasets)
    overwrite(corpus, 9, break_the_scan)
    forged = open_corpus([tmp_path / "shards"])
    overwrite(forged, 6, flip_a_bit)

    class Half(Vouched):
        def spans(self, row: int, frame_indices: np.ndarray) -> Any:
            return super().spans(row, frame_indices) if row == 9 else forged.spans(row, frame_indices)

    return Half(forged.datasets)


def test_fault_20_damage_is_counted_listed_and_bounded_alike_in_every_world(damaged: Corpus) -> None:
    alone = loader_of(damaged)
    begin = alone.state_dict()
    batches = take(alone, 9)  # three epochs
    ranks = [loader_of(damaged, rank=rank, world=2) for rank in range(2)]
    halves = [take(rank, 9) for rank in ranks]
    for whole, *parts in zip(batches, *halves, strict=True):
        assert torch.equal(torch.cat([part.clips for part in parts]), whole.clips)
        assert torch.cat([part.status for part in parts]).tolist() == whole.status.tolist()
    status = torch.cat([batch.status[:, 0] for batch in batches])
    rows = torch.cat([batch.rows[:, 0] for batch in batches]).tolist()
    assert not {6, 9} & set(rows)
    total = int((status == STATUS_SUBSTITUTED).sum())
    assert 4 <= total <= 6  # two rows, each in at least two of three epochs
    assert alone.counts()["substituted"] == total
    assert sum(rank.counts()["substituted"] for rank in ranks) == total
    ranks[0].judge({"substituted": 100})
    with pytest.raises(DataError, match=r"101 damaged samples were substituted, data\.max_bad is 100"):
        ranks[0].judge({"substituted": 101})
    with pytest.raises(DataError) as stopped:
        take(loader_of(damaged, max_bad=total - 1), 9)
    for part in (f"{total} damaged samples", f"data.max_bad is {total - 1}", "crc32", "does not decode"):
        assert part in str(stopped.value)
    for row in (6, 9):
        assert f"sample {damaged.key(row)} ({damaged.name(row)}), frame" in str(stopped.value)
    listed = []
    for _ in range(2):
        alone.load_state_dict(begin)  # after an anomaly a run goes back, as often as it takes
        listed.append(list(alone._past_damage))
        take(alone, 9)
    assert listed[0] == listed[1] != []


def test_fault_20_only_samples_that_take_part_stand_in(damaged: Corpus) -> None:
    config = replace(CONFIG, select=SelectConfig(fraction=0.6, seed=1))
    loader = Loader(damaged, config, num_frames=FRAMES, size=SIZE, seed=5, global_batch=2)
    taking_part = {row for request in islice(loader.requests(), 50) for row in (clip.row for clip in request.clips)}
    assert taking_part & {6, 9}, "another seed is needed"
    assert len(taking_part) < 12
    batches = take(loader, 20)
    assert any((batch.status == STATUS_SUBSTITUTED).any() for batch in batches)
    assert {row for batch in batches for row in batch.rows.unique().tolist()} <= taking_part


def test_counts_outlive_a_stream_that_is_closed(damaged: Corpus) -> None:
    loader = loader_of(damaged)
    state = loader.state_dict()
    for _ in range(3):
        next(loader)
    before = loader.counts()
    assert before["substituted"] >= 1
    loader.load_state_dict(state)
    assert loader.counts() == before
    next(loader)
    assert loader.counts()["substituted"] >= before["substituted"]
    loader.close()


@pytest.mark.parametrize("found_by", ["crc32", "DALI"])
@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_each_view_has_the_label_of_what_was_decoded_for_it(
    shards: Path, tmp_path: Path, found_by: str, several: bool
) -> None:
    """Of a sample's own windows one may meet damage and the other not: the pixels decide what is right."""
    root = copy_of(shards, tmp_path / "shards")
    corpus = Vouched(open_corpus([root]).datasets) if found_by == "DALI" else open_corpus([root])
    if several:
        labels = "".join(f"{name},{label} {label + 4}\n" for name, _, _, _, label in SAMPLES)
        (tmp_path / "labels.csv").write_text("name,labels\n" + labels, encoding="utf-8")
        corpus.labels = open_corpus([root], labels=tmp_path / "labels.csv").labels
    for row in (7, 9, 10, 12):
        overwrite(corpus, row, break_the_scan if found_by == "DALI" else flip_a_bit, frames=slice(2, 8))
    torn = 0
    for batch in all_of(stream_of(corpus, "own")):
        assert batch.rows.shape == batch.status.shape == batch.labels.shape[:2] == batch.clips.shape[:2]
        asked = ORDER[batch.positions.numpy()]
        for b, v in np.ndindex(BATCH, 2):
            red = float(batch.clips[b, v, ..., 0].float().mean())
            name, _, _, _, label = SAMPLES[round((red - 8) / 16)]
            assert corpus.name(int(batch.rows[b, v])) == name
            got = batch.labels[b, v]
            assert (got.nonzero().flatten().tolist() if several else int(got)) == (
                [label, label + 4] if several else label
            )
            assert bool(batch.status[b, v] == STATUS_OK) == (int(batch.rows[b, v]) == asked[b])
        torn += int((batch.status[:, 0] != batch.status[:, 1]).sum())
        assert torch.equal(batch.is_whole, (batch.status == STATUS_OK).all(dim=1))
    assert torn, "no sample has lost one of its views only: another seed is needed"


def test_messages_of_dali_and_pil_keep_the_part_that_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failure = RuntimeError(
        "Critical error in pipeline:\nencountered:\n\nno memory\nStacktrace (1 entries):\n[frame 0]: x"
    )

    def restart() -> None:
        raise RuntimeError("Critical error\nencountered:\nno device")

    failing: Any = SimpleNamespace(_num_restarts=0, _decoding=SimpleNamespace(restart=restart))
    with pytest.raises(DataError, match=r"encountered: no memory\) .* started again \(.*no device\)") as refused:
        ClipStream._rescue(failing, failure)
    (record,) = caplog.records
    assert "no memory" in record.getMessage()
    assert "\n" not in record.getMessage() + str(refused.value)

    def damaged(*_: object) -> None:
        raise SyntaxError("broken picture\nno marker at byte 7")

    monkeypatch.setattr("PIL.Image.open", damaged)
    fetched: Any = SimpleNamespace(clip=SimpleNamespace(frames=np.array([3])), parts=[np.zeros(4, np.uint8)])
    with pytest.raises(BadFrameError, match=r"it does not decode \(broken picture no marker at byte 7\)") as bad:
        jpeg_frames(fetched, (1, 1))
    assert bad.value.frame == 3
