from pathlib import Path

import pytest
from PIL import Image

from preprocess.__main__ import main
from preprocess.dataset.index import DatasetError, open_dataset
from preprocess.inspect.sample import describe, find
from tests.support.media import frame_number, make_dataset, make_numbered


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two segments of "a", one "b" that is broken, one "c"; two shards."""
    frames = tmp_path / "frames"
    for name in "abc":
        make_numbered(frames / "train" / name, range(12))
    (frames / "train" / "b" / "img_00002.jpg").write_bytes(b"no picture")
    (frames / "ledger.csv").write_text("a,1,6,cut\nb,1,3,tie\na,7,12,tie\nc,1,12,cut\nlost,1,2,cut\n")
    options = ["--max-bad-fraction", "0.5", "--workers", "1", "--shard-size", "2", "--source-fps", "5"]
    assert main(["build", "--frames", str(frames), "--out", str(tmp_path / "shards"), *options]) == 0
    return tmp_path / "shards"


def told(shards: Path, wanted: str) -> dict[str, str]:
    dataset = open_dataset(shards)
    pairs = (line.split("  ", 1) for line in describe(dataset, find(dataset, wanted)))
    return {name: value.strip() for name, value in pairs}


def test_all_that_is_known_is_told(shards: Path) -> None:
    facts = told(shards, "000000002")
    assert facts["key"] == "000000002"
    assert facts["name"] == "a"
    assert facts["labels"] == "1 (tie)"
    assert facts["row"] == "1, counted from 0, of 3"
    assert facts["frames"] == "6, the first is the source's number 7; 5 a second, 1.200 s, from 1.200 s on"
    assert facts["size"] == "64 x 48 pixels"
    assert facts["shard"].startswith("shard-00001.tar, bytes 0 to ")
    assert '"name": "a"' in facts["json"]
    assert facts["requested by"] == "ledger.csv, line 3"


def test_samples_lie_end_to_end(shards: Path) -> None:
    stop = told(shards, "2")["shard"].rpartition(" ")[2]
    assert told(shards, "3")["shard"].startswith(f"shard-00001.tar, bytes {stop} to ")
    assert '"name": "c"' in told(shards, "3")["json"]


def test_a_number_is_a_key_and_a_name_may_have_several(shards: Path) -> None:
    dataset = open_dataset(shards)
    assert find(dataset, "3") == find(dataset, "000000003") == find(dataset, "c") == [2]
    assert find(dataset, "a") == [0, 1]
    assert "000000002 (1 more)" in "\n".join(describe(dataset, [0, 1]))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("b", ["left out", "000000001", "line 2", "bad_frame: img_00002.jpg"]),
        ("1", ["left out", "bad_frame"]),
        ("lost", ["left out", "line 5", "missing_folder"]),
        ("99", ["none was left out", "near ones: 000000003"]),
        ("C", ["near ones: 'c'"]),
        ("zzz", ["index-*.parquet"]),
    ],
)
def test_what_is_not_there_is_explained(shards: Path, wanted: str, words: list[str]) -> None:
    with pytest.raises(DatasetError) as caught:
        find(open_dataset(shards), wanted)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_command_writes_a_filmstrip(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = shards.parent / "c.png"
    assert main(["inspect", str(shards), "c", "--to", str(picture)]) == 0
    assert "labels" in capsys.readouterr().out
    image = Image.open(picture)
    numbers = [frame_number(image.crop((x, 0, x + 64, 48)).convert("RGB")) for x in range(0, image.width, 68)]
    assert numbers == [0, 2, 3, 5, 6, 8, 9, 11]
    assert main(["inspect", str(shards), "nothing"]) == 2
    assert main(["inspect", str(shards), "c", "--to", "c.gif"]) == 2
    assert "ends in .png" in capsys.readouterr().err


def test_a_sample_of_a_bad_shard_is_told_without_its_tar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = make_dataset(tmp_path, samples=8, frames=2)
    (shards / "shard-00001.tar").unlink()
    (shards / "shard-00001.parquet").unlink()
    assert main(["inspect", str(shards), "7"]) == 0
    out = capsys.readouterr().out
    assert "(missing)" in out
    assert "not a shard's table" in out
    assert main(["inspect", str(shards), "7", "--to", str(tmp_path / "x.png")]) == 2
    assert "no frames can be shown" in capsys.readouterr().err
