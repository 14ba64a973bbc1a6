"""launch/embed.py: complete, keyed, the same whoever makes it and however often it was killed; times that are right."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from launch import embed
from launch.common.tables import read_vectors
from launch.inference import embedding_map as vector_map
from launch.inference import embeddings
from mae3d.analysis import features
from mae3d.model.mae import MAE
from mae3d.video.clip import read_clip
from mae3d.weights.files import load_model, save_model
from pipelines.config import DataConfig
from pipelines.samples.corpus import Corpus, open_corpus
from pipelines.stream import evaluation_clips
from tests.conftest import ROOT
from tests.support import launch
from tests.support.damage import flip_a_bit, overwrite
from tests.support.media import make_dataset, make_video
from tests.support.trainings import TINY

SAMPLING = ("--data.sampling_rate", "1", "--data.target_fps", "10")
FRAMES = [3, 8, 12, 30, 21]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    return tiny_model


def dataset(folder: Path) -> Path:
    """Five samples of 0.3 to 3 s, 10 frames a second."""
    labels = ["0", "2", "", "1", "0"]
    return make_dataset(folder, samples=5, frames=FRAMES, labels=labels, source_fps=10, shard_size=2)


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("timed"))


def run(model: Path, out: Path, *options: str | Path) -> pa.Table:
    """The table that the command makes."""
    command = ["--run", str(model), "--out", str(out), "--device", "cpu", *SAMPLING, *map(str, options)]
    assert embed.main(command) == 0
    return pq.read_table(out)


def plain(model: Path, shards: Path, *, clips: int = 1, **how: Any) -> torch.Tensor:
    """The same in a loop, clip by clip."""
    loaded, corpus = load_model(model), open_corpus([shards])
    config = DataConfig(shards=str(shards), sampling_rate=1, target_fps=10)
    rows = np.arange(len(corpus))
    stream = evaluation_clips(corpus, config, rows=rows, num_frames=4, size=32, num_clips=clips, batch_size=1)
    vectors = [features.embed(loaded, batch.clips[0], **how).mean(dim=0).flatten() for batch in stream]
    stream.close()
    return torch.stack(vectors)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ((), {}),
        (("--num_clips", "3"), {"clips": 3}),
        (("--layer", "1"), {"layer": 1}),
        (("--pool", "tokens"), {"pool": "tokens"}),
        (("--pool", "cls"), {"pool": "cls"}),
    ],
)
def test_vectors_are_those_of_a_plain_loop(
    model: Path, timed: Path, tmp_path: Path, options: tuple[str, ...], how: dict[str, Any]
) -> None:
    table = run(model, tmp_path / "a.parquet", "--data.shards", timed, "--batch", "2", *options)
    vectors, rows = read_vectors(tmp_path / "a.parquet")
    assert rows.tolist() == list(range(5))
    torch.testing.assert_close(torch.tensor(vectors), plain(model, timed, **how), rtol=1e-4, atol=1e-4)
    corpus = open_corpus([timed])
    assert table["key"].to_pylist() == corpus.keys.to_pylist()
    assert table["name"].to_pylist() == corpus.names.to_pylist()
    assert table["labels"].to_pylist() == [[0], [2], [], [1], [0]]
    told = json.loads(table.schema.metadata[b"mae3d"])
    assert told["grid"] == ([2, 2, 2] if "tokens" in options else None)
    assert told["layer"] == how.get("layer", 2)
    assert table.schema.field("vector").type.list_size == 192 * (8 if "tokens" in options else 1)


@pytest.mark.usefixtures("restored_threads")
def test_vectors_are_the_same_bytes_with_any_number_of_threads(timed: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)  # of a model so narrow that MKL's products differ between numbers of threads
    save_model(MAE(replace(TINY, embed_dim=24, num_heads=2)), model := tmp_path / "model.safetensors")
    tables = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run(model, out := tmp_path / f"{threads}.parquet", "--data.shards", timed, "--num_clips", "2")
        tables.add(out.read_bytes())
    assert len(tables) == 1


def test_first_frame_and_times_of_samples(model: Path, timed: Path, tmp_path: Path) -> None:
    """The middle four frames, the shortest sample begins again; three clips reach from first to last."""
    one = run(model, tmp_path / "one.parquet", "--data.shards", timed)
    assert one["first_frame"].to_pylist() == [0, 2, 4, 13, 8]
    assert one["start_s"].to_pylist() == pytest.approx([0, 0.2, 0.4, 1.3, 0.8])
    assert one["end_s"].to_pylist() == pytest.approx([0.3, 0.6, 0.8, 1.7, 1.2])
    three = run(model, tmp_path / "three.parquet", "--data.shards", timed, "--num_clips", "3")
    assert three["end_s"].to_pylist() == pytest.approx([frames / 10 for frames in FRAMES])


def test_a_row_every_so_many_seconds(model: Path, timed: Path, tmp_path: Path) -> None:
    table = run(model, tmp_path / "a.parquet", "--data.shards", timed, "--every", "0.9", "--batch", "2")
    own = open_corpus([timed]).names.to_pylist()
    names = [name for name, count in zip(own, [1, 1, 1, 3, 2], strict=True) for _ in range(count)]
    assert table["name"].to_pylist() == names
    assert table["first_frame"].to_pylist() == [0, 0, 0, 0, 9, 18, 0, 9]
    assert table["start_s"].to_pylist() == pytest.approx([0, 0, 0, 0, 0.9, 1.8, 0, 0.9])
    assert table["end_s"].to_pylist() == pytest.approx([0.3, 0.4, 0.4, 0.4, 1.3, 2.2, 0.4, 1.3])
    loaded, corpus = load_model(model), open_corpus([timed])
    config = DataConfig(shards=str(timed), sampling_rate=1, target_fps=10)
    stream = evaluation_clips(
        corpus, config, rows=np.array([3]), starts=np.array([18]), num_frames=4, size=32, batch_size=1
    )
    expected = features.embed(loaded, next(stream).clips[:, 0])[0]
    stream.close()
    torch.testing.assert_close(torch.tensor(table["vector"][5].as_py()), expected, rtol=1e-4, atol=1e-4)


def test_vectors_of_a_video_are_those_of_its_clip(model: Path, tmp_path: Path) -> None:
    videos = [make_video(tmp_path / f"{i}.mp4", 30 + 10 * i, size=(64, 48), fps=10) for i in range(3)]
    table = run(model, tmp_path / "a.parquet", "--videos", *videos, "--batch", "2")
    loaded = load_model(model)
    for video, name, vector in zip(videos, table["name"].to_pylist(), table["vector"].to_pylist(), strict=True):
        clip = read_clip(video, loaded.config, sampling_rate=1, target_fps=10)
        assert name == str(video)
        torch.testing.assert_close(torch.tensor(vector), features.embed(loaded, clip)[0], rtol=1e-4, atol=1e-4)
    assert table["start_s"].to_pylist() == pytest.approx([1.3, 1.8, 2.3])
    assert table["end_s"].to_pylist() == pytest.approx([1.7, 2.2, 2.7])


def test_vectors_of_a_video_and_of_its_shards_agree(model: Path, tmp_path: Path) -> None:
    """What lies between them is a JPEG and another filter."""
    from tests.support.datasets import run_build

    video = make_video(tmp_path / "videos" / "a.mp4", 40, size=(64, 48), fps=10)
    shards = run_build(tmp_path / "shards", "--videos", tmp_path / "videos")
    of_video = run(model, tmp_path / "v.parquet", "--videos", video, "--every", "1")
    of_shards = run(model, tmp_path / "s.parquet", "--data.shards", shards, "--every", "1")
    for name in ("first_frame", "start_s", "end_s"):
        assert of_video[name].to_pylist() == pytest.approx(of_shards[name].to_pylist(), abs=1e-6)
    one, other = (np.array(of["vector"].to_pylist()) for of in (of_video, of_shards))
    between = np.linalg.norm(one - other, axis=1).max()
    assert between < 0.1 * np.linalg.norm(one[0] - one[1]) or between < 0.05 * np.linalg.norm(one[0])


def test_videos_that_cannot_be_read_are_told_and_the_others_go_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 99)
    good = make_video(tmp_path / "good.mp4", 30, fps=10)
    files = [str(tmp_path / "bad.mp4"), str(good), str(tmp_path / "missing.mp4")]
    out = tmp_path / "a.parquet"
    command = ["--run", str(model), "--out", str(out), "--device", "cpu", *SAMPLING, "--videos", *files]
    for _ in range(2):  # also when it is finished already
        assert embed.main(command) == 1
        told = capsys.readouterr()
        assert "3 rows, 2 of them without a vector" in told.out
        assert files[0] in told.err
        assert f"{files[2]}: no such file" in told.err
    table = pq.read_table(out)
    assert table["name"].to_pylist() == files
    assert [vector is None for vector in table["vector"].to_pylist()] == [True, False, True]


def test_fault_40_a_damaged_sample_has_a_row_without_a_vector(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = dataset(tmp_path)
    whole = run(model, tmp_path / "whole.parquet", "--data.shards", shards)
    capsys.readouterr()
    overwrite(Corpus([open_corpus([shards]).datasets[0]]), 3, flip_a_bit)
    table = run(model, tmp_path / "a.parquet", "--data.shards", shards, "--map", str(tmp_path / "map.png"))
    assert "5 rows, 1 of them without a vector" in capsys.readouterr().out
    for i, (one, other) in enumerate(zip(whole.to_pylist(), table.to_pylist(), strict=True)):
        assert other == (one | {"vector": None} if i == 3 else one)


def command(model: Path, out: Path, *options: str | Path) -> list[str | Path]:
    script = ROOT / "launch" / "embed.py"
    return [sys.executable, script, "--run", model, "--out", out, "--device", "cpu", *SAMPLING, *options]


def test_fault_40_killed_and_started_again_on_two_processes(model: Path, timed: Path, tmp_path: Path) -> None:
    """SIGKILL when some parts are there; the table is that of an uninterrupted run in one process, to the byte."""
    options = ("--data.shards", timed, "--every", "0.1", "--batch", "1")
    whole, out = tmp_path / "whole.parquet", tmp_path / "a.parquet"
    table = run(model, whole, *options)
    assert len(table) == 1 + 5 + 9 + 27 + 18
    parts = out.with_name("a.parquet.parts")
    process = launch.Process(command(model, out, *options))
    while len(list(parts.glob("part-*"))) < 3:
        assert process.poll() is None, process.output()
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not out.exists()
    made = {part.name: part.stat().st_mtime_ns for part in parts.glob("part-*")}
    assert 3 <= len(made) < len(table)
    ranks = launch.Ranks(command(model, out, *options), world=2)
    output, _ = ranks.communicate()
    assert ranks.returncode == 0, output
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_another_model_or_layer_does_not_go_on_with_a_table(
    model: Path, timed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save_model(MAE(TINY), other)
    out = tmp_path / "a.parquet"
    run(model, out, "--data.shards", timed)
    before = out.read_bytes()
    for command, told in (
        (["--run", str(other), "--data.shards", str(timed)], "model was"),
        (["--run", str(model), "--data.shards", str(timed), "--layer", "1"], "layer was 2 and is 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            embed.main([*command, "--out", str(out), "--device", "cpu", *SAMPLING])
        assert stopped.value.code == 2
        assert told in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "give either --data.shards or --videos"),
        (("--data.shards", "a", "--videos", "b"), "give either --data.shards or --videos"),
        (("--videos", "a", "a"), "given twice"),
        (("--videos", "a", "--every", "1e-9"), "every=1e-09 must be 0 or at least 0.001 seconds"),
        (("--videos", "a", "--map", "m.png"), "one vector makes no map"),
        (("--videos", "a", "--every", "1", "--num_clips", "2"), "with --every each clip has a row of its own"),
        (("--videos", "a", "--pool", "tokens", "--map", "m.png"), "give --pool mean or cls"),
        (("--videos", "a", "--pool", "tokens", "--num_clips", "2"), "with pool=tokens"),
        (("--videos", "a", "--layer", "3"), "the encoder has 2 blocks"),
    ],
)
def test_what_cannot_be_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        embed.main(["--run", str(model), "--out", str(tmp_path / "a.parquet"), "--device", "cpu", *options])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_map_is_drawn_and_places_lie_beside_it(model: Path, timed: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "a.parquet", "--data.shards", timed, "--map", tmp_path / "new" / "map.png")
    with Image.open(tmp_path / "new" / "map.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 5
    places = pq.read_table(tmp_path / "new" / "map_places.parquet")
    assert places.column_names == ["key", "name", "labels", "start_s", "x", "y"]
    assert len(places) == 5


def test_what_a_map_would_end_on_is_known_before_any_clip(
    model: Path, timed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its places would replace the table; it lies where a file lies, or in a folder that cannot be written."""
    monkeypatch.setattr("launch.inference.embeddings.embed_samples", None)
    (tmp_path / "file").touch()
    for out, picture, told in (
        ("map_places.parquet", "map.png", "its places would be written to"),
        ("a.parquet", "file/map.png", "file"),
        ("a.parquet", "/proc/map.png", "/proc: "),
    ):
        command = ["--run", str(model), "--out", str(tmp_path / out), "--map", str(tmp_path / picture)]
        with pytest.raises(SystemExit):
            embed.main([*command, "--device", "cpu", *SAMPLING, "--data.shards", str(timed)])
        assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_name_and_no_length_of_one_ends_the_last_step(model: Path, timed: Path, tmp_path: Path) -> None:
    names = ["$\\no{formula$", "日本\n_", "plain"]
    table = tmp_path / f"{'v' * 190}.parquet"
    run(model, table, "--data.shards", timed)
    # what is written aside has a longer name than the picture
    picture = vector_map.draw_map(table, tmp_path / f"{'m' * 231}.png", label_names=names)
    assert picture.is_file()
    assert vector_map.places_of(picture).is_file()


def test_some_vectors_are_read_without_the_others(tmp_path: Path) -> None:
    """Of a table that pyarrow reads in several batches."""
    count = 140_000
    values = np.arange(count * 2, dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), 2)
    there = np.arange(count) % 3 > 0
    pq.write_table(pa.table({"vector": vectors.take(pa.array(np.arange(count), mask=~there))}), tmp_path / "v.parquet")
    everything, rows = read_vectors(tmp_path / "v.parquet")
    np.testing.assert_array_equal(rows, np.flatnonzero(there))
    np.testing.assert_array_equal(everything, values.reshape(-1, 2)[rows])
    few, chosen = read_vectors(tmp_path / "v.parquet", most=10)
    np.testing.assert_array_equal(chosen, rows[np.linspace(0, len(rows) - 1, 10).astype(int)])
    np.testing.assert_array_equal(few, values.reshape(-1, 2)[chosen])


def test_what_is_alike_lies_together() -> None:
    """Three groups far apart: of each vector the nearest ones in the map are its own group's."""
    rng = np.random.default_rng(0)
    for of_each in (4, 30):  # PCA alone; t-SNE
        groups = np.repeat(np.arange(3), of_each)
        vectors = (20 * np.eye(3, 16)[groups] + rng.standard_normal((3 * of_each, 16))).astype(np.float32)
        places, method = vector_map.project(vectors)
        assert method.startswith("PCA" if of_each == 4 else "t-SNE")
        distance = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
        assert (groups[distance.argmin(axis=1)] == groups).all()


def test_single_videos_are_coloured_by_time_and_several_by_file(model: Path, tmp_path: Path) -> None:
    videos = [make_video(tmp_path / f"{i}.mp4", 40, fps=10) for i in range(2)]
    for name, some in (("one", videos[:1]), ("two", videos)):
        table = tmp_path / f"{name}.parquet"
        run(model, table, "--videos", *some, "--every", "0.5", "--map", table.with_suffix(".png"))
        groups = vector_map._groups(pq.read_table(table), [])
        assert set(groups) == ({""} if name == "one" else {"0.mp4", "1.mp4"})


def test_bf16_vectors_are_about_the_same(model: Path, timed: Path, tmp_path: Path) -> None:
    exact = run(model, tmp_path / "a.parquet", "--data.shards", timed)
    short = run(model, tmp_path / "b.parquet", "--data.shards", timed, "--precision", "bf16")
    one, other = (np.array(table["vector"].to_pylist()) for table in (exact, short))
    assert 0 < np.abs(one - other).max() < 0.05
    assert embeddings.count_failed(tmp_path / "b.parquet") == 0
