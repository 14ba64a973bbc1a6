import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from tests.support import launch
from tests.support.builds import command, make_archive, tree
from tests.support.media import frame_number, make_frame_folder, make_video

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame folders of 24 clips with a ledger, which are made smaller when they are stored."""
    return make_archive(tmp_path_factory.mktemp("large") / "frames")


@pytest.fixture
def frames(large: Path, tmp_path: Path) -> Path:
    """A copy of `large`, which a test may change."""
    return shutil.copytree(large, tmp_path / "frames")


def test_a_ledger_becomes_a_dataset(frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(frames, tmp_path / "out", "--split", "train", "--source-fps", "8")) == 0
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset) == 24
    assert dataset.label_names == ["cat", "dog"]
    assert [dataset.labels_of(i) for i in range(4)] == [[1], [0], [1], [0]]
    assert [dataset.split_names[code] for code in dataset.splits] == ["train"] * 24
    assert set(dataset.fps) == {8.0}
    assert set(zip(dataset.width.tolist(), dataset.height.tolist(), strict=True)) == {(293, 256)}
    assert dataset.shard.tolist() == [i // 5 for i in range(24)]
    for i in (0, 11, 23):
        assert shown(tmp_path / "out", i) == [4 * i + f for f in range(4)]
    said = capsys.readouterr().out
    assert "24 samples, 96 frames, 0.00 hours" in said
    assert "rejected: 0" in said


START = """
import sys
from preprocess.__main__ import main
assert main(sys.argv[1:]) == 0
print(sorted({"av", "pandas", "PIL", "simplejpeg", "tqdm", "torch"} & set(sys.modules)))
import pandas, pyarrow
frame = pyarrow.table({"n": [1]}).to_pandas()
print(pyarrow.Table.from_pandas(frame, preserve_index=False).to_pylist())
"""


def test_a_build_imports_no_library_that_only_decoders_need_and_leaves_pandas_to_others(tmp_path: Path) -> None:
    make_video(tmp_path / "videos" / "a.mp4", 3)
    arguments = ["build", "--videos", str(tmp_path / "videos"), "--workers", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", START, *arguments], capture_output=True, encoding="utf-8", check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["[]", "[{'n': 1}]"]


def shown(out: Path, i: int) -> list[int]:
    """Return the numbers that the stored frames of sample i show."""
    from preprocess.encode.images import decode_image

    dataset = open_dataset(out)
    spans = dataset.spans(i, np.arange(dataset.num_frames[i]))
    tar = dataset.shard_path(int(dataset.shard[i])).read_bytes()
    pairs = zip(spans.offset.tolist(), spans.size.tolist(), strict=True)
    return [frame_number(decode_image(tar[offset : offset + size])) for offset, size in pairs]


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_bytes(frames: Path, tmp_path: Path) -> None:
    assert main(command(frames, tmp_path / "one")) == 0
    assert main(command(frames, tmp_path / "two", workers=2)) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert main(command(frames, tmp_path / "two", workers=2)) == 0  # once more, with nothing to do
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("wait_for", ["plan.parquet", "shard-00000.tar", "shard-00001.idx", "shard-00003.parquet"])
def test_fault_15_killed_and_rerun_it_ends_in_the_same_tree(frames: Path, tmp_path: Path, wait_for: str) -> None:
    assert main(command(frames, tmp_path / "whole")) == 0
    out = tmp_path / "killed"
    run = [sys.executable, "-m", "preprocess", *command(frames, out)]
    process = launch.Process(run, cwd=ROOT)
    while not (out / wait_for).exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}
    assert main(command(frames, out)) == 0
    assert tree(out) == tree(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())  # kept, not made again


@pytest.mark.slow
def test_fault_15_leftovers_of_a_kill_are_swept_or_made_again(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(frames, out)) == 0
    whole = tree(out)
    (out / "dataset.json").unlink()
    (out / "shard-00002.parquet").unlink()  # its tar is there, but it was not done
    (out / "shard-00003.tar").write_bytes(b"half")
    (out / ".tmp-mae3d-123-shard-00004.tar").write_bytes(b"half")
    assert main(command(frames, out)) == 0
    assert tree(out) == whole


def test_fault_19_other_settings_at_the_same_place_are_refused_by_name(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(frames, tmp_path / "out")) == 0
    whole = tree(tmp_path / "out")
    assert main(command(frames, tmp_path / "out", "--quality", "80")) == 2
    told = capsys.readouterr().err
    assert re.search(r"quality = 90 .*80 .*--out.*--overwrite\n", told)
    assert "--append" not in told
    (frames / "ledger.csv").write_text("v1 1 4 0\n")
    assert main(command(frames, tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert "sources" in told
    assert re.search(r"--out.*--overwrite.*--append", told)
    assert tree(tmp_path / "out") == whole
    assert main(command(frames, tmp_path / "out", "--overwrite")) == 0
    assert len(open_dataset(tmp_path / "out")) == 1


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_that_is_in_the_way_of_the_output_is_left_alone(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(command(frames, tmp_path / out)) == 2
    assert "a file is in the way; --out takes a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_other_things_in_it_is_left_alone(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert main(command(frames, tmp_path / "out", *more)) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert tree(tmp_path / "out").keys() == {"thesis.tex"}


@pytest.mark.slow
def test_fault_03_few_bad_rows_are_counted_and_many_stop(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (frames / "ledger.csv").open("a") as file:
        file.write("v1 4 one 0\n")
    assert main(command(frames, tmp_path / "out")) == 0
    assert "rejected: 1: 1 bad_row" in capsys.readouterr().out
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["file"], row["line"], row["reason"]) == ("ledger.csv", 25, "bad_row")
    assert main(command(frames, tmp_path / "out", "--overwrite", "--on-error", "fail")) == 2
    assert "ledger.csv, line 25: bad_row: last frame 'one' is not a whole number" in capsys.readouterr().err
    with (frames / "ledger.csv").open("a") as file:
        file.write("absent 1 4 0\n")
    assert main(command(frames, tmp_path / "other")) == 2
    told = capsys.readouterr().err
    assert "line 26: missing_folder" in told
    assert "2 of 26 rows cannot be used, --max-bad-fraction 0.05 allows 1: mend them, or allow more" in told
    assert main(command(frames, tmp_path / "other", "--max-bad-fraction", "0.1")) == 0


def test_fault_03_a_plan_tells_what_is_rejected_already(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (frames / "ledger.csv").write_text("v1 1 4 0\nv1 1 x 0\nv2 1 4 0\nnone 1 4 0\n")
    assert main(command(frames, tmp_path / "out", "--plan-only", "--max-bad-fraction", "0.5")) == 0
    told = capsys.readouterr().out
    assert (
        "rejected so far: 2: 1 bad_row, 1 missing_folder, such as ledger.csv, line 2: bad_row: last frame 'x'" in told
    )


@pytest.mark.slow
def test_fault_09_a_bad_frame_leaves_a_hole_and_shifts_nothing(frames: Path, tmp_path: Path) -> None:
    (frames / "train" / "v7" / "img_00003.jpg").write_bytes(b"")
    assert main(command(frames, tmp_path / "out")) == 0
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset) == 23
    assert [dataset.key(i) for i in (6, 7)] == ["000000006", "000000008"]
    assert shown(tmp_path / "out", 7) == [32, 33, 34, 35]
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["name"], row["line"], row["frame"], row["reason"]) == ("v7", 8, 3, "bad_frame")
    assert "empty file" in row["message"]
    for clip in (2, 3):
        (frames / "train" / f"v{clip}" / "img_00001.jpg").write_bytes(b"")
    assert main(command(frames, tmp_path / "other")) == 0  # broken media are counted, however many
    assert len(open_dataset(tmp_path / "other")) == 21
    assert main(command(frames, tmp_path / "strict", "--on-error", "fail")) == 2  # found while working, not planning
    assert not (tmp_path / "strict" / "dataset.json").exists()


def test_nothing_usable_is_an_error_whatever_is_allowed(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (frames / "ledger.csv").write_text("v1 1 4 0\n")
    (frames / "train" / "v1" / "img_00002.jpg").write_bytes(b"")
    assert main(command(frames, tmp_path / "out", "--max-bad-fraction", "1")) == 2
    assert "v1: bad_frame: img_00002.jpg: empty file" in capsys.readouterr().err


@pytest.mark.slow
def test_videos_become_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for clip in range(3):
        make_video(tmp_path / "clips" / f"v{clip}.mp4", 30, fps=10)
    (tmp_path / "clips" / "junk.mp4").write_bytes(b"junk")
    run = ["build", "--videos", str(tmp_path / "clips"), "--out", str(tmp_path / "out"), "--workers", "2"]
    assert main([*run, "--segment-seconds", "1", "--on-error", "fail"]) == 2
    assert "junk.mp4: unreadable: Invalid data found" in capsys.readouterr().err
    assert main([*run, "--segment-seconds", "1"]) == 0
    assert "rejected: 1: 1 unreadable" in capsys.readouterr().out
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["file"], row["reason"], row["num_frames"]) == ("junk.mp4", "unreadable", 0)
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset) == 9
    assert dataset.num_frames.tolist() == [10] * 9
    assert dataset.start_s.tolist() == pytest.approx([0, 1, 2] * 3, abs=1e-6)
    assert dataset.first.tolist() == [0, 10, 20] * 3
    assert shown(tmp_path / "out", 4) == list(range(10, 20))
    assert set(dataset.fps) == {10.0}


@pytest.mark.slow
def test_a_damaged_video_is_kept_in_part_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_video(tmp_path / "a.mp4", 40, codec="libx264", gop=4)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 3000
    data[start : start + 300] = b"\xff" * 300
    path.write_bytes(data)
    assert main(["build", "--videos", str(path), "--out", str(tmp_path / "out")]) == 0
    dataset = open_dataset(tmp_path / "out")
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["reason"], row["num_frames"]) == ("damaged", dataset.num_frames[0])
    assert 20 < dataset.num_frames[0] < 40
    assert dataset.fps[0] == 10.0
    assert "kept with a remark: 1: 1 damaged" in capsys.readouterr().out


@pytest.mark.slow
def test_long_samples_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_frame_folder(tmp_path / "train" / "v", 70, size=(16, 16))
    (tmp_path / "ledger.csv").write_text("v 1 70 0\n")
    run = ["build", "--frames", str(tmp_path), "--out", str(tmp_path / "out"), "--source-fps", "1", "--whole"]
    assert main(run) == 0
    assert (
        "1 samples are longer than 60 s or 1,800 frames; cut them with --segment-seconds 10" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["build", "--frames", "nowhere", "--out", "out"], "nowhere: no such file or folder"),
        (["build", "--videos", "nowhere", "--out", "out"], "nowhere: no such file or folder"),
        (["build", "--videos", ".", "--out", "out", "--short-side", "0"], "short_side=0 must be at least 1"),
        (["build", "--videos", ".", "--out", "out", "--ledger", "x"], "belongs to --frames"),
        (["build", "--videos", ".", "--out", "out", "--label-base", "1"], "the first of --label-names; give those"),
        (["verify", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_remedy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(wrong) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = "import sys; from preprocess.__main__ import parser; parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not {"numpy", "pyarrow", "av", "PIL", "torch"} & set(loaded.split())


def test_nothing_of_the_machine_is_in_the_dataset(frames: Path, tmp_path: Path) -> None:
    assert main(command(frames, tmp_path / "out")) == 0
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    meta = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert meta["settings"]["sources"][0]["name"] == "ledger.csv"


@pytest.mark.slow
def test_real_frame_folders_and_videos(media: Path, tmp_path: Path) -> None:
    """Footage of many kinds: every file is stored, with as many frames as an independent decoder counts."""
    frames, videos = tmp_path / "frames", tmp_path / "videos"
    assert main(["build", "--frames", str(media / "frames"), "--out", str(frames)]) == 0
    rows = [line.split() for line in (media / "frames" / "ledger.csv").read_text().splitlines()]
    dataset = open_dataset(frames)
    assert [dataset.name(i) for i in range(len(dataset))] == [row[0] for row in rows]
    assert dataset.num_frames.tolist() == [int(row[2]) - int(row[1]) + 1 for row in rows]
    assert [dataset.labels_of(i) for i in range(len(dataset))] == [[int(row[3])] for row in rows]
    assert main(["build", "--videos", str(media / "videos"), "--out", str(videos), "--short-side", "64"]) == 0
    dataset = open_dataset(videos)
    listed = pq.read_table(videos / "rejected.parquet").to_pylist()
    assert [row["name"] for row in listed if row["reason"] == "damaged"] == ["odd/corrupted.mp4"]
    assert all(row["num_frames"] for row in listed)  # remarks: nothing was left out
    for i in range(len(dataset)):
        counted = count_frames(media / "videos" / dataset.name(i))
        assert dataset.num_frames[i] == counted, dataset.name(i)


def count_frames(path: Path) -> int:
    """Count the complete frames that PyAV decodes by its plainest calls."""
    count = 0
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1  # several flag damaged frames differently
        for packet in container.demux(video=0):
            with contextlib.suppress(av.error.InvalidDataError):
                count += sum(not frame.is_corrupt for frame in packet.decode())
    return count
