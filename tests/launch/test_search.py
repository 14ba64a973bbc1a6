"""launch/search.py: the nearest moments, exactly or by an index, as a page whose links lead to file and second."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import embed, search
from launch.inference.moments import Archive, Query, nearest_moments, open_archive, query_of_key, stored_query
from launch.inference.vector_index import index_path, measure_recall, open_index
from launch.report.moments_page import Moment, clock
from launch.search import SearchConfig
from tests.support.foreign import contents, plant
from tests.support.media import make_dataset, make_video
from tests.support.pages import check_page

SETTINGS = {
    "model": "none", "layer": -1, "pool": "mean", "num_frames": 4, "precision": "fp32", "img_size": 32,
    "data": {"sampling_rate": 1, "target_fps": 10}, "every_s": 1.0,
}  # fmt: skip
NARROW = 0.05  # spread of vectors around a common direction, as a model's are


def made_table(path: Path, *, files: int, each: int, seed: int = 0, width: int = 24) -> Archive:
    """Moments of 2 s, one a second; one row in fifty has no vector."""
    rng, count = np.random.default_rng(seed), files * each
    vectors = (1 + NARROW * rng.standard_normal((count, width))).astype(np.float32)
    rows = [None if i % 50 == 49 else vector.tolist() for i, vector in enumerate(vectors)]
    seconds = np.arange(count) % each
    table = pa.table(
        {
            "key": [f"{i:06d}" for i in range(count)],
            "name": [f"v{i // each}.mp4" for i in range(count)],
            "first_frame": seconds * 10,
            "start_s": seconds.astype(float),
            "end_s": seconds + 2.0,
            "vector": pa.array(rows, pa.list_(pa.float32(), width)),
        }
    ).replace_schema_metadata({"mae3d": json.dumps(SETTINGS)})
    pq.write_table(table, path, row_group_size=70)
    return open_archive(path)


def plain(archive: Archive, row: int, *, count: int, apart_s: float, other_files: bool) -> list[int]:
    """The same, by the definition."""
    stored = pq.read_table(archive.path)["vector"].to_pylist()
    vectors = np.array([vector or [np.nan] * archive.width for vector in stored])
    cosines = vectors @ vectors[row] / np.linalg.norm(vectors, axis=1)
    chosen: list[int] = []
    for i in np.argsort(-cosines)[: np.isfinite(cosines).sum()].tolist():
        if archive.name(i) == archive.name(row) and (other_files or abs(archive.start_s[i] - archive.start_s[row]) < 2):
            continue
        if all(archive.name(i) != archive.name(j) or abs(i - j) >= apart_s for j in chosen):
            chosen.append(i)
    return chosen[:count]


@pytest.mark.parametrize("other_files", [False, True])
@pytest.mark.parametrize("apart_s", [0, 3])
def test_nearest_moments_are_those_of_a_plain_sort_by_either_way(
    tmp_path: Path, apart_s: float, other_files: bool
) -> None:
    archive = made_table(tmp_path / "t.parquet", files=6, each=60)
    by_index = open_index(archive, say=lambda _: None)
    for row in (0, 17, 200):
        query = query_of_key(archive, f"{row:06d}")
        how = {"count": 12, "apart_s": apart_s, "other_files": other_files}
        expected = plain(archive, row, **how)  # type: ignore[arg-type]
        for found in (None, by_index):
            rows, cosines = nearest_moments(archive, query, search=found, **how)  # type: ignore[arg-type]
            assert len(set(rows) & set(expected)) >= 11  # threads build an index, each time another one
            assert rows == expected or found is not None
            assert cosines == sorted(cosines, reverse=True)


def test_an_index_is_made_once_and_no_other_file_is_taken_for_it(tmp_path: Path) -> None:
    archive = made_table(tmp_path / "t.parquet", files=20, each=100)
    said: list[str] = []
    first = open_index(archive, say=said.append)
    path = index_path(archive.path)
    before = path.stat().st_mtime_ns
    assert measure_recall(archive, first, queries=20)["recall@10"] > 0.95
    open_index(archive, say=said.append)
    assert (len(said), path.stat().st_mtime_ns) == (1, before)
    other = made_table(tmp_path / "t.parquet", files=20, each=100, seed=1)  # other vectors under the same name
    assert index_path(other.path) != path
    open_index(other, say=said.append)
    assert path.name in said[1]
    whole = index_path(other.path).read_bytes()
    for data in (b"a thesis", whole[: len(whole) // 2], b""):
        index_path(other.path).write_bytes(data)
        with pytest.raises(ValueError, match=r"usearch.*not an index"):
            open_index(other)
        assert index_path(other.path).read_bytes() == data


def test_the_stored_moment_nearest_to_a_second_is_the_query(tmp_path: Path) -> None:
    archive = made_table(tmp_path / "t.parquet", files=2, each=60)
    query = stored_query(archive, video="v1.mp4", at_s=7.4)
    assert query is not None
    assert (query.row, query.start_s) == (66, 6.0)
    query = stored_query(archive, video="v0.mp4", at_s=50.3)  # row 49 has no vector
    assert query is not None
    assert query.row == 50
    assert stored_query(archive, video="v1.mp4", at_s=99) is None
    assert stored_query(archive, video="elsewhere/v1.mp4", at_s=7) is None
    assert stored_query(archive, video=str(tmp_path / "v1.mp4"), at_s=7, root=str(tmp_path)) is not None
    with pytest.raises(ValueError, match=r"000049.*no vector"):
        query_of_key(archive, "000049")


def test_seconds_are_shown_and_linked(tmp_path: Path) -> None:
    assert [clock(s) for s in (3.04, 73.4, 3673.96, 59.99)] == ["0:03.0", "1:13.4", "1:01:14.0", "1:00.0"]
    (tmp_path / "a b.mp4").touch()
    moment = Moment("a b.mp4", "0", 3673.4567, 3675, file=tmp_path / "a b.mp4")
    assert moment.link == f"file://{tmp_path}/a%20b.mp4#t=3673.457"
    assert moment.command == f"ffplay -ss 3673.457 '{tmp_path}/a b.mp4'"


@pytest.fixture(scope="module")
def embedded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 4 s, embedded every half second."""
    folder = tmp_path_factory.mktemp("embedded")
    videos = [str(make_video(folder / f"{name}.mp4", 40) or folder / f"{name}.mp4") for name in "ab"]
    command = ["--run", str(tiny_model), "--videos", *videos, "--every", "0.5", "--out", str(folder / "t.parquet")]
    assert embed.main([*command, "--device", "cpu", "--data.sampling_rate", "1", "--data.target_fps", "10"]) == 0
    return folder


def test_a_page_of_clips_and_a_table_are_written(embedded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["--embeddings", str(embedded / "t.parquet"), "--out", str(out), "--count", "5"]
    for more in ([], ["--index_from", "1"]):
        assert search.main([*command, "--video", str(embedded / "a.mp4"), "--at", "1.7", *more]) == 0
        check_page(out / "search.html")
        text = (out / "search.html").read_text()
        assert text.count("image/webp") == 5
        assert text.count("image/jpeg") == 4
        rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
        assert [row["rank"] for row in rows] == list("12345")
        assert (rows[0]["name"], rows[0]["start_s"]) == (str(embedded / "b.mp4"), "1.5")  # the same frames
        assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-5)
        assert rows[0]["link"] == f"file://{embedded}/b.mp4#t=1.5"
        assert rows[0]["link"] in text
        assert f"ffplay -ss 1.5 {embedded}/b.mp4" in text
        assert all(abs(float(row["start_s"]) - 1.5) >= 0.4 for row in rows if row["name"].endswith("a.mp4"))


def test_a_new_moment_is_embedded_as_the_table_was_by_its_model_alone(
    embedded: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.config import DataConfig

    archive = open_archive(embedded / "t.parquet")
    config = SearchConfig("t", out="o", video=str(embedded / "a.mp4"), at=1.65, run=str(tiny_model), device="cpu")
    data = DataConfig(sampling_rate=1, target_fps=10)
    query: Query = search._embedded_query(config, archive, data, at_s=1.65)
    stored = query_of_key(archive, "000003")
    assert (query.start_s, query.end_s, query.file) == (stored.start_s, pytest.approx(stored.end_s), stored.file)
    np.testing.assert_allclose(query.vector, stored.vector, rtol=1e-4, atol=1e-4)
    other = replace(archive, settings=archive.settings | {"model": "0" * 64})
    with pytest.raises(ValueError, match=r"--run.*sha256.*000000000000"):
        search._embedded_query(config, other, data, at_s=1.65)
    command = ["--embeddings", str(embedded / "t.parquet"), "--out", str(tmp_path), "--video", "c.mp4", "--at", "1"]
    with pytest.raises(SystemExit):
        search.main(command)
    assert "--run" in capsys.readouterr().err


def test_clips_of_shards_are_shown_from_the_shards(tiny_model: Path, tmp_path: Path) -> None:
    shards = make_dataset(tmp_path / "d", samples=4, frames=[12, 14, 12, 12], source_fps=10, labels=["0", "1", "", "0"])
    table = ["--out", str(tmp_path / "t.parquet"), "--data.sampling_rate", "1", "--data.target_fps", "10"]
    assert embed.main(["--run", str(tiny_model), "--data.shards", str(shards), "--device", "cpu", *table]) == 0
    command = ["--embeddings", str(tmp_path / "t.parquet"), "--key", open_archive(tmp_path / "t.parquet").key(0)]
    assert search.main([*command, "--data.shards", str(shards), "--out", str(tmp_path / "o")]) == 0
    text = (tmp_path / "o" / "search.html").read_text()
    assert (text.count("image/webp"), text.count("image/jpeg")) == (3, 4)
    assert search.main([*command, "--out", str(tmp_path / "p")]) == 0
    assert (tmp_path / "p" / "search.html").read_text().count("--data.shards") == 4


@pytest.mark.parametrize("name", ["search.html", "results.csv"])
def test_a_page_takes_the_place_of_a_page_only(embedded: Path, tmp_path: Path, name: str) -> None:
    before = plant(tmp_path, name)
    command = ["--embeddings", str(embedded / "t.parquet"), "--out", str(tmp_path), "--key", "000001"]
    with pytest.raises(SystemExit) as stopped:
        search.main(command)
    assert stopped.value.code == 2
    assert contents(tmp_path) == before
