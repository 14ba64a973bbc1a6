import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.inspect import report as module
from preprocess.inspect.report import write_report
from preprocess.inspect.verify import verify
from tests.support.media import frame_number, make_dataset, make_numbered
from tests.support.pages import check_page

SECRET = "ward 3 <b>smith"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three samples, one with an awkward name; one was left out, one row of the ledger was wrong."""
    frames = tmp_path / "archive of smith"
    for name in (SECRET, "plain", "other"):
        make_numbered(frames / "train" / name, range(10))
    make_numbered(frames / "train" / "smith_broken", range(3))
    (frames / "train" / "smith_broken" / "img_00002.jpg").write_bytes(b"no picture")
    rows = [f"{SECRET},1,10,<cut>", "plain,1,10,tie", "other,1,4,tie", "smith_broken,1,3,tie", "plain,nine,10,tie"]
    (frames / "ledger_of_smith.csv").write_text("name,start,end,label\n" + "\n".join(rows) + "\n")
    out = tmp_path / "shards"
    options = ["--ledger", str(frames / "ledger_of_smith.csv"), "--max-bad-fraction", "0.9", "--workers", "1"]
    assert main(["build", "--frames", str(frames), "--out", str(out), *options]) == 0
    return out


class _Page(HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.values = "", [], []  # type: tuple[str, list[str], list[tuple[str, str | None]]]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += attrs

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def page_of(shards: Path, **options: object) -> _Page:
    path = shards.parent / "report.html"
    write_report(shards, path, **options)  # type: ignore[arg-type]
    check_page(path)
    return _Page(path.read_text())


def test_the_page_shows_what_is_there(shards: Path) -> None:
    page = page_of(shards)
    for words in (
        str(shards),
        "10 frames",
        SECRET,
        "<cut>",
        "64 x 48",
        "bad_frame",
        "line 6",
    ):
        assert words in page.text, words
    assert "3 samples drawn at random" in page.text
    assert page.tags.count("img") == 3


def test_nothing_is_run_or_fetched_and_all_is_escaped(shards: Path) -> None:
    page = page_of(shards)
    assert not {"script", "link", "iframe", "object", "cut", "smith"} & set(page.tags)
    assert page.tags.count("b") == 3  # the names in the captions, not the one in a name
    assert all(value.startswith("data:image/jpeg;base64,") for name, value in page.values if name in ("src", "href"))
    assert not [name for name, _ in page.values if name.startswith("on")]
    assert "url(" not in module._STYLE


def test_filmstrips_hold_frames_of_their_samples_in_order(shards: Path) -> None:
    strips = [value for name, value in page_of(shards).values if name == "src"]
    dataset = open_dataset(shards)
    for row, strip in enumerate(strips):
        image = Image.open(io.BytesIO(base64.b64decode(strip.split(",")[1])))
        assert image.height == 48  # not made larger
        numbers = [frame_number(image.crop((x, 0, x + 64, 48))) for x in range(0, image.width, 68)]
        first, last = 0, int(dataset.num_frames[row]) - 1
        assert (numbers[0], numbers[-1], len(numbers)) == (first, last, min(8, last + 1))
        assert numbers == sorted(set(numbers))


def test_a_private_archive_shows_no_frame_and_no_name(shards: Path) -> None:
    page = page_of(shards, images=False, hash_names=True)
    assert "img" not in page.tags
    told = page.text.lower() + str(page.values).lower()
    for secret in ("smith", "ward", "plain", "img_0", "ledger", "archive", "/tmp", "nine"):
        assert secret not in told, re.findall(f".{{60}}{secret}.{{20}}", told)
    assert "<cut>" in page.text
    assert "tie" in page.text
    assert "bad_frame" in page.text
    assert len(set(re.findall(r"\b[0-9a-f]{12}\b", page.text))) >= 5


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("john doe 0001.jpg: not an image", "#: not an image"),
        ("ends in /data/john doe/x.tar after 2.80 s", "# after 2.80 s"),
        ("first frame 'john' is not a whole number", "first frame # is not a whole number"),
        ("no frame between 2.5 s and 3 s", "no frame between 2.5 s and 3 s"),
        ("the tar is damaged after doe: end of data", "the tar is damaged after #: end of data"),
        ("doe_1 and doe: clip in b", "doe_1 and #: # in #"),
        ("s3://bucket/john/doe.mp4 is not there", "# is not there"),
    ],
)
def test_names_in_messages_are_hashed(message: str, shown: str) -> None:
    hashed = module._Names(hashed=True).message(message, ["b/doe/clip.mp4", ""])
    assert re.sub(r"\b[0-9a-f]{12}\b", "#", hashed) == shown
    assert module._Names().message(message, ["doe"]) == message


def test_settings_are_hashed_where_they_name_something() -> None:
    settings = {"sources": [{"name": "smith", "sha256": "12"}], "split": "train", "root": "/a b", "fps": 2.5, "x": None}
    hashed = module._Names(hashed=True).settings(settings)
    assert len(hashed["sources"][0].pop("name")) == len(hashed.pop("root")) == 12
    assert hashed == {"sources": [{"sha256": "12"}], "split": "train", "fps": 2.5, "x": None}


def test_the_same_seed_draws_the_same_samples(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=40, frames=2, size=(32, 24), shard_size=20)

    def drawn(**options: object) -> list[str]:
        return re.findall(r"key (\d{9})", page_of(shards, images=False, **options).text)

    assert drawn(samples=5, seed=1) == drawn(samples=5, seed=1) != drawn(samples=5, seed=2)
    assert len(set(drawn(samples=5))) == 5
    assert drawn(samples=100) == sorted(f"{i:09d}" for i in range(40))
    assert drawn(samples=0) == []


def test_the_page_is_bounded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IMAGE_BYTES", 100)
    page = page_of(shards)
    assert page.tags.count("img") == 1
    assert "too large with more pictures" in page.text


def test_bad_shards_are_told_and_not_shown(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=8, frames=2)
    (shards / "shard-00001.tar").unlink()
    page = page_of(shards)
    assert "1 of 2 shards are missing" in page.text
    assert page.tags.count("img") == 4


def test_damaged_frames_do_not_stop_the_page(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path, samples=2, frames=2)
    dataset = open_dataset(shards)
    tar = bytearray((shards / "shard-00000.tar").read_bytes())
    tar[int(dataset.offset[0]) : int(dataset.offset[0]) + 400] = bytes(400)
    (shards / "shard-00000.tar").write_bytes(tar)
    assert page_of(shards).tags.count("img") == 2


def test_what_a_page_would_end_on_is_known_before_anything_is_counted(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.inspect.report.look_over", None)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_report(shards, shards / "no" / "page.html")


def test_the_command_writes_beside_the_dataset(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(shards), "--samples", "1", "--no-images", "--hash-names"]) == 0
    path = Path(f"{shards}-report.html")
    assert capsys.readouterr().out == f"report: {path}\n"
    assert path.read_text().startswith("<!doctype html>")
    assert verify(shards) == []
    assert main(["report", str(shards / "nothing")]) == 2
    assert main(["report", str(shards), "--to", str(shards / "no" / "folder.html")]) == 3
    assert "no such" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--samples", "-3"], 2, "error: samples=-3 must be at least 0"),
        (["--seed", "-1"], 2, "error: seed=-1 must be at least 0"),
        (["--to", "/no/such/page.html"], 3, "error: /no/such: no such folder"),
    ],
)
def test_senseless_options_are_named(
    shards: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, told: str
) -> None:
    assert main(["report", str(shards), *options]) == code
    assert told in capsys.readouterr().err
