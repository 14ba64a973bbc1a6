"""Several workers build one shard: its bytes are those of one worker, and an error of any of them leaves nothing."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from preprocess.encode import shared_shard
from preprocess.encode.shared_shard import Crew, Piece, SharedShard, build_shard
from preprocess.plan.samples import PlannedSample
from preprocess.plan.settings import Settings
from preprocess.sources.roots import Folder
from preprocess.workers.executors import local_workers, run_tasks
from tests.support.media import make_frame_folder

NAMES = ("a", "b", "lost", "c", "d")


def planned(number: int, path: str) -> PlannedSample:
    where: dict[str, Any] = {"prefix": "img_", "digits": 5, "suffix": ".jpg", "first": 1, "stop": 4}
    return PlannedSample(number, 0, "frames", 0, path, path, [number], "", **where)


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """Five samples, the one in the middle without its last frame."""
    for name in NAMES:
        make_frame_folder(tmp_path / "frames" / name, 2 if name == "lost" else 3)
    (tmp_path / "out").mkdir()
    samples = [planned(number, name) for number, name in enumerate(NAMES)]
    fields = {"roots": [Folder(tmp_path / "frames")], "settings": Settings(), "folder": nullcontext(tmp_path / "out")}
    return {"samples": samples, **fields}


def taken_away(out: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in files:
        (out / name).unlink()
    return files


def test_a_shard_in_pieces_has_the_bytes_of_one(tmp_path: Path, arguments: dict[str, Any]) -> None:
    alone = build_shard(0, **arguments)
    expected = taken_away(tmp_path / "out")
    for helpers in (1, 3):
        shard = SharedShard(0, **arguments)
        assert [shard.help() for _ in range(helpers)] == [None] * helpers
        assert shard.build() == alone
        assert shard.help() is None
        assert taken_away(tmp_path / "out") == expected


def test_samples_of_one_file_stay_together() -> None:
    paths = ["a", "a", "b", "b", "b", "b", "c"]
    piece = Piece([planned(number, path) for number, path in enumerate(paths)])
    cuts = []
    for begun in range(len(paths) + 1):
        piece.num_begun = begun
        cuts.append(piece.cut())
    assert cuts == [2, 2, 2, 6, 6, 6, 6, None]
    assert Piece([planned(number, "a") for number in range(4)]).cut() is None
    assert Piece([planned(number, path) for number, path in enumerate("aabb")]).cut() == 2


def test_workers_without_a_shard_help(tmp_path: Path, arguments: dict[str, Any]) -> None:
    crew = Crew(lambda number: SharedShard(number, **arguments))
    numbers = crew.numbers([0])
    first, second = (crew.task(next(numbers)) for _ in range(2))
    assert second() is None  # it has written half of the samples
    result = first()
    assert result is not None
    assert result.num_samples == 4
    assert next(numbers, None) is None
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".idx", ".parquet", ".tar"]
    with local_workers(2) as workers:
        results = [result for result in run_tasks(crew.numbers([0, 1]), crew.task, workers) if result is not None]
    assert sorted(result.number for result in results) == [0, 1]


@pytest.mark.parametrize("who", ["the one that ends", "a helper"])
def test_an_error_of_any_worker_leaves_no_file(
    tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    shard = SharedShard(0, **arguments)
    if who == "a helper":
        with monkeypatch.context() as patch:
            patch.setattr(shared_shard, "media_files", full)
            with pytest.raises(OSError, match="No space left"):
                shard.help()
    else:
        assert shard.help() is None
        monkeypatch.setattr(shared_shard, "write_shard_table", full)
        with pytest.raises(OSError, match="No space left"):
            shard.build()
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".idx" and path.suffix != ".tar"] == []
    assert not list((tmp_path / "out").glob(".tmp-*"))
    assert shard.num_left == 0  # nobody is called to help with it any more
