"""visualize.py --show neighbours: closest by cosine, never of the own video; labels counted beside chance."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import visualize
from launch.report import neighbours
from launch.report.neighbours import Pool, agreement
from mae3d.analysis.features import embed
from mae3d.weights.files import load_model
from pipelines.config import DataConfig
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.stream import evaluation_clips
from tests.support.media import make_dataset, make_video
from tests.support.pages import check_page

LABELS = ["a", "a", "a", "b", "b", ""]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), samples=6, frames=8, labels=LABELS)


@pytest.fixture(scope="module")
def corpus(shards: Path) -> Corpus:
    return open_corpus([shards])


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    return tiny_model


def look(model: Path, shards: Path, out: Path, *more: str) -> str:
    argv = ["--run", str(model), "--data.shards", str(shards), "--out", str(out), "--data.sampling_rate", "1"]
    assert visualize.main([*argv, "--show", "neighbours", *more]) == 0
    check_page(out / "index.html")
    return (out / "index.html").read_text(encoding="utf-8")


def found(page: str) -> list[list[tuple[str, float]]]:
    """Of each query: names and similarities of its neighbours, nearest first."""
    rows = re.findall(r"rows: query: ([^\"]*)", page)
    return [[(name, float(cosine)) for cosine, name in re.findall(r"\d\. (-?\d\.\d+)  (\w+)", row)] for row in rows]


def test_neighbours_are_the_closest_by_cosine(model: Path, shards: Path, corpus: Corpus, tmp_path: Path) -> None:
    keys = [corpus.key(row) for row in (4, 1)]
    page = look(model, shards, tmp_path, "--keys", *keys, "--neighbours", "3")
    clips = next(
        evaluation_clips(
            corpus, DataConfig(shards=str(shards), sampling_rate=1), rows=np.arange(6), num_frames=4, size=32
        )
    )
    vectors = embed(load_model(model), clips.clips[:, 0]).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, ones in zip((4, 1), found(page), strict=True):
        cosines = vectors @ vectors[row]
        best = [int(i) for i in np.argsort(-cosines) if i != row][:3]
        assert [name for name, _ in ones] == [corpus.name(i) for i in best]
        assert [cosine for _, cosine in ones] == pytest.approx([cosines[i] for i in best], abs=6e-4)
    assert "6 of the dataset&#x27;s 6 samples, embedded here" in page
    assert (tmp_path / "images" / f"{keys[0]}_neighbours.gif").is_file()


def write_table(path: Path, keys: list[str], vectors: list[list[float] | None]) -> Path:
    pq.write_table(pa.table({"key": keys, "vector": pa.array(vectors, pa.list_(pa.float32(), 2))}), path)
    return path


def test_a_table_of_embeddings_is_searched_instead(model: Path, shards: Path, corpus: Corpus, tmp_path: Path) -> None:
    angles = {0: 0.0, 3: 0.1, 5: -0.2, 1: 3.0}  # row 2 could not be read, row 4 is not in the table
    keys = [corpus.key(row) for row in (*angles, 2)]
    vectors: list[list[float] | None] = [[5 * np.cos(angle), 5 * np.sin(angle)] for angle in angles.values()]
    table = write_table(tmp_path / "vectors.parquet", keys, [*vectors, None])
    page = look(model, shards, tmp_path / "out", "--keys", keys[0], "--embeddings", str(table))
    expected = [(corpus.name(row), pytest.approx(np.cos(angles[row]), abs=6e-4)) for row in (3, 5, 1)]
    assert found(page) == [expected]
    assert "4 samples of vectors.parquet" in page
    assert str(tmp_path) not in page


@pytest.mark.parametrize("case", ["twice", "empty", "other", "absent", "text"])
def test_tables_that_do_not_fit_are_refused(
    model: Path, shards: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    key, file = corpus.key(0), tmp_path / "vectors.parquet"
    match case:
        case "twice":
            write_table(file, [key, key], [[1, 0], [0, 1]])
        case "empty":
            write_table(file, [key], [None])
        case "other":
            write_table(file, ["no_such_key"], [[1, 0]])
        case "absent":
            write_table(file, [corpus.key(1)], [[1, 0]])
        case "text":
            file.write_text("no Parquet")
    told = {
        "twice": "several vectors a sample",
        "empty": "has no vectors",
        "other": "no_such_key",
        "absent": "video_0: has no vector in --embeddings",
        "text": "no table of embeddings",
    }
    with pytest.raises(SystemExit) as stopped:
        look(model, shards, tmp_path / "out", "--keys", key, "--embeddings", str(file))
    assert stopped.value.code == 2
    assert told[case] in capsys.readouterr().err


def test_a_loose_video_is_looked_up_in_the_dataset(model: Path, shards: Path, tmp_path: Path) -> None:
    video = make_video(tmp_path / "new.mp4", 12)
    page = look(model, shards, tmp_path / "out", "--videos", str(video), "--neighbours", "2", "--pool", "4")
    assert [len(ones) for ones in found(page)] == [2]
    assert "4 of the dataset&#x27;s 6 samples" in page


def test_pieces_of_the_same_video_are_no_neighbours(model: Path, tmp_path: Path) -> None:
    from preprocess.__main__ import main

    for i in range(2):
        make_video(tmp_path / "videos" / f"v{i}.mp4", 24, fps=10)
    options = ["--segment-frames", "8", "--out", str(tmp_path / "shards"), "--workers", "1"]
    assert main(["build", "--videos", str(tmp_path / "videos"), *options]) == 0
    page = look(model, tmp_path / "shards", tmp_path / "out", "--samples", "6")
    queries = re.findall(r"rows: query: (v\d)", page)
    names = [{name for name, _ in ones} for ones in found(page)]
    assert names == [{"v1" if query == "v0" else "v0"} for query in queries]
    assert [len(ones) for ones in found(page)] == [3] * 6
    assert "same label" not in page


@pytest.mark.parametrize("chunk", [2, 256])
def test_labels_are_counted_beside_chance(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    angles = np.array([0.0, 0.1, 1.5, 1.55, 3.0, 0.05])  # the third a lies beside the first b; the last has no label
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pool = Pool(np.arange(6), vectors, "")
    sources = np.array([f"0:{i}" for i in range(6)], dtype=object)
    table = agreement(pool, corpus, sources, count=2)
    assert table is not None
    # Nearest: a0 a1, a1 a0, a2 b3, b3 a2, b4 b3. Two nearest: a0 a1 a2, a1 a0 a2, a2 b3 a1, b3 a2 (a1 | b4), b4 b3 a2.
    assert dict(table.rows) == {
        "of the 2 nearest": "60.0%",
        "of the nearest": "60.0%",
        "of any others: chance": "40.0%",
    }
    assert "5 labelled samples" in table.caption


def test_the_same_video_counts_neither_as_neighbour_nor_as_chance(corpus: Corpus) -> None:
    pool = Pool(np.arange(4), np.eye(4, dtype=np.float32), "")
    sources = np.array(["v", "v", "v", "w"], dtype=object)  # a, a, a of one video, b of another
    table = agreement(pool, corpus, sources, count=3)
    assert table is not None
    assert [row[1] for row in table.rows] == ["0.0%"] * 3
