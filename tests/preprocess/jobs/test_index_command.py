"""`python -m preprocess index`: the rows of a build over videos that stay where they are, and its ways of running."""

import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from mae3d.io import lock_store
from mae3d.io.storage import Storage
from mae3d.video.packets import PacketTable
from pipelines.samples.corpus import open_corpus
from preprocess.__main__ import main
from preprocess.dataset.index import Dataset, open_dataset
from preprocess.dataset.layout import INDEX_FILE
from preprocess.inspect.verify import verify
from tests.support import launch
from tests.support.archives import write_archive
from tests.support.builds import tree
from tests.support.kills import kill_at_every
from tests.support.media import make_video, numbered_image
from tests.support.s3 import Server

COLUMNS = ("shard", "num_frames", "first", "fps", "start_s", "width", "height", "label_offsets", "label_values")


def run(command: str, *options: str | Path) -> str:
    """Run a command of preprocessing and return what it printed; `--workers 1` unless others are given."""
    arguments = [command, *map(str, options)]
    if "--workers" not in arguments:
        arguments += ["--workers", "1"]
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()) as errors:
        assert main(arguments) == 0, errors.getvalue()
    return said.getvalue()


def refused(*options: str | Path) -> str:
    """Run `index` with options that are refused and return the message."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        assert main(["index", *map(str, options)]) == 2
    return errors.getvalue()


def rows(dataset: Dataset) -> dict[str, Any]:
    """What is known of the samples apart from how they are stored."""
    known: dict[str, Any] = {name: getattr(dataset, name).tolist() for name in COLUMNS}
    known |= {"keys": dataset.keys.to_pylist(), "names": dataset.names.to_pylist()}
    known |= {"splits": [dataset.split_names[code] for code in dataset.splits], "label_names": dataset.label_names}
    known["fps"] = [None if np.isnan(rate) else rate for rate in known["fps"]]
    return known


def problems(root: Path) -> list[dict[str, Any]]:
    """The rejects and remarks of a dataset, but for what an index alone, or a decode of all frames alone, finds."""
    listed = pq.read_table(root / "rejected.parquet").to_pylist()
    for row in listed:
        pairs = zip(row["reason"].split("+"), row["message"].split("; "), strict=False)
        if {"not_in_ranges", "mixed_sizes"} & set(row["reason"].split("+")):
            kept = [pair for pair in pairs if pair[0] not in ("not_in_ranges", "mixed_sizes")]
            row["reason"], row["message"] = ("+".join(part[0] for part in kept), "; ".join(part[1] for part in kept))
    return [row for row in listed if row["reason"]]


@pytest.fixture(scope="module")
def archive(shared: Any) -> Path:
    made: Path = shared("archive_of_all_kinds", write_archive)
    return made


@pytest.fixture(scope="module")
def listed(archive: Path) -> Path:
    """A list of spans of some of the videos, with labels and splits."""
    path = archive.parent / "spans.csv"
    lines = ["path,start,end,label,split"]
    for name in ("dog/b-frames.mp4", "dog/cut-up.ts", "cat/late.mkv", "cat/no-order.avi", "odd/uneven.mkv"):
        lines += [f"{name},0.1,0.62,3,train", f"{name},0.5,1.1,1,val", f"{name},0,0.9,0,train"]
    path.write_text("\n".join(lines) + "\n")
    return path


SETTINGS = {
    "as they are": (),
    "slower": ("--fps", "5"),
    "faster": ("--fps", "40"),
    "odd rate": ("--fps", "7.3", "--whole"),
    "seconds": ("--segment-seconds", "0.7", "--fps", "6"),
    "frames": ("--segment-frames", "7", "--split", "train"),
    "small": ("--short-side", "24", "--labels", "none", "--shard-size", "3"),
    "odd size": ("--short-side", "37", "--shard-size", "5"),
    "spans": ("--shard-size", "4"),
    "slower spans": ("--fps", "9"),
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_rows_of_an_index_are_those_of_a_build(archive: Path, listed: Path, settings: str, tmp_path: Path) -> None:
    given = [listed, "--root", archive] if "spans" in settings else [archive]
    options = ["--videos", *given, *SETTINGS[settings]]
    said = {name: run(name, *options, "--out", tmp_path / name) for name in ("build", "index")}
    built, index = (open_dataset(tmp_path / name) for name in ("build", "index"))
    assert rows(index) == rows(built)
    assert len(index) >= 14
    assert problems(tmp_path / "index") == problems(tmp_path / "build")
    assert index.layout.name == "files"
    assert [index.media_name(int(number)) for number in index.media] == [
        str(archive / name.partition("#")[0]) for name in paths_of(tmp_path / "index")
    ]
    counts = [text.partition(" MB")[0].rpartition(",")[0] for text in said.values()]
    assert counts[0] == counts[1]  # samples, frames, hours
    assert verify(tmp_path / "index", full=True) == []


def paths_of(root: Path) -> list[str]:
    """The paths of the media files of the samples, by the tables of the shards."""
    tables = [pq.read_table(path) for path in sorted(root.glob("shard-*.parquet"))]
    return [row["media_path"] for table in tables for row in table.to_pylist() if row["num_frames"]]


def test_each_sample_is_a_table_of_its_frames_in_the_tar(archive: Path, tmp_path: Path) -> None:
    run("index", "--videos", archive, "--segment-seconds", "0.7", "--out", tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == [f"{dataset.key(0)}.json", f"{dataset.key(0)}.packets"]
        described = json.loads(tar.extractfile(names[0]).read())  # type: ignore[union-attr]
        assert (described["num_frames"], described["name"]) == (int(dataset.num_frames[0]), dataset.name(0))
    for i in range(len(dataset)):
        spans = dataset.spans(i, np.arange(dataset.num_frames[i]))
        data = dataset.shard_path(int(dataset.shard[i])).read_bytes()[int(spans.offset[0]) :][: int(spans.size[0])]
        table = PacketTable.from_bytes(data)
        assert len(table) == dataset.num_frames[i]
        assert np.all(np.diff(table.seconds) > 0)
        assert table.seconds[0] == pytest.approx(dataset.start_s[i], abs=1e-9)
        if table.codec is not None:
            media = Path(dataset.media_name(int(dataset.media[i])))
            assert int((table.packets.offset + table.packets.size).max()) <= media.stat().st_size
            assert table.frame.min() >= 0  # no packet is listed that none of them needs
            assert table.frame.max() == len(table.packets) - 1
            assert int(table.packets.starts_of(table.frame).min()) == 0
    remarks = {row["name"]: row["reason"] for row in pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()}
    ranged = {name: "not_in_ranges" not in reason for name, reason in remarks.items()}
    cut_up = {name.partition("#")[0].rpartition("/")[2] for name, is_ranged in ranged.items() if not is_ranged}
    assert {re.sub(r"[^a-z-]", "", Path(name).stem) for name in cut_up} == {"cut-up", "no-order", "switch", "program"}


@pytest.mark.slow
def test_what_cannot_be_indexed_is_rejected_for_the_reason_of_a_build(tmp_path: Path, fresh: None) -> None:
    videos = tmp_path / "videos"
    names = ["good.mp4", "hangs_after_6.mp4", "segv_after_3.mp4", "raises_after_2.mp4", "large.mp4", "long.mp4"]
    for name in names:
        size = (320, 240) if name.startswith("large") else (64, 48)
        make_video(videos / name, 40 if name.startswith("long") else 20, size=size, codec="libx264")
    make_video(videos / "tables.mp4", 5, codec="mpeg4")  # its decoder's tables are too large for the limit
    names.append("tables.mp4")
    (videos / "junk.mp4").write_bytes(b"no video" * 100)
    (videos / "empty.mp4").touch()
    numbered_image(1).save(videos / "picture.png")
    (videos / "picture.png").rename(videos / "picture.mp4")
    (tmp_path / "list.csv").write_text("\n".join([*names, "junk.mp4", "empty.mp4", "picture.mp4", "gone.mp4"]) + "\n")
    options = ["--videos", tmp_path / "list.csv", "--root", videos, "--max-pixels", "40000", "--max-frames", "30"]
    more = ["--timeout", "1", "--whole", "--max-bad-fraction", "1"]
    for name in ("build", "index"):
        run(name, *options, *more, "--out", tmp_path / name)
    rejected = problems(tmp_path / "index")
    reasons = {row["name"]: row["reason"] for row in rejected}
    assert reasons["hangs_after_6.mp4"] == "timeout"
    assert reasons["segv_after_3.mp4"] == reasons["raises_after_2.mp4"] == "crashed"
    assert (reasons["large.mp4"], reasons["long.mp4"]) == ("too_large", "too_many_frames")
    assert reasons["tables.mp4"] == "undecodable"
    assert len(reasons) == 10
    assert {row["name"]: row["reason"] for row in problems(tmp_path / "build")} == reasons
    messages = [{row["name"]: row["message"] for row in problems(tmp_path / name)} for name in ("build", "index")]
    same = [name for name in reasons if messages[0][name] == messages[1][name]]
    assert set(reasons) - set(same) <= {"hangs_after_6.mp4", "segv_after_3.mp4"}  # they say where it stood
    assert [open_dataset(tmp_path / name).name(0) for name in ("index", "build")] == ["good.mp4"] * 2


def test_members_of_tars_are_rejected_and_files_beside_them_are_not(tmp_path: Path) -> None:
    make_video(tmp_path / "in" / "a.mp4", 8)
    make_video(tmp_path / "b.mp4", 8)
    with tarfile.open(tmp_path / "in" / "c.tar", "w") as tar:
        tar.add(tmp_path / "b.mp4", "b.mp4")
    run("index", "--videos", tmp_path / "in", "--out", tmp_path / "out")
    assert open_dataset(tmp_path / "out").names.to_pylist() == ["a.mp4"]
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["reason"], row["num_frames"]) == ("in_archive", 0)
    assert "unpack the tar, or `build`" in row["message"]
    with redirect_stderr(io.StringIO()) as errors, redirect_stdout(io.StringIO()):
        code = main(
            ["index", "--videos", str(tmp_path / "in"), "--out", str(tmp_path / "strict"), "--on-error", "fail"]
        )
    assert code == 2
    assert "in_archive" in errors.getvalue()


@pytest.fixture(scope="module")
def plain(shared: Any) -> Path:
    """Videos that are quickly indexed: nine of them, two in each of three shards and so on."""

    def write(folder: Path) -> Path:
        for number in range(9):
            make_video(folder / "in" / "ab"[number % 2] / f"{number}.mp4", 10 + number, gop=4)
        return folder / "in"

    made: Path = shared("plain_videos", write)
    return made


def command(videos: Path, out: Path | str, *more: str) -> list[str]:
    given = ["index", "--videos", str(videos), "--out", str(out), "--shard-size", "2", "--segment-frames", "8"]
    return [*given, *more, *([] if "--workers" in more else ["--workers", "1"])]


@pytest.fixture(scope="module")
def indexed(plain: Path, shared: Any) -> Path:
    """The index of `plain` that nothing happens to."""

    def index(folder: Path) -> Path:
        assert main(command(plain, folder / "out")) == 0
        return folder / "out"

    made: Path = shared("plain_index", index)
    return made


@pytest.mark.slow
def test_three_workers_write_the_bytes_of_one(plain: Path, indexed: Path, tmp_path: Path) -> None:
    assert main(command(plain, tmp_path / "three", "--workers", "3")) == 0
    assert tree(tmp_path / "three") == tree(indexed)


@pytest.mark.slow
def test_a_run_that_was_killed_and_is_run_again_writes_the_same_bytes(
    plain: Path, indexed: Path, tmp_path: Path
) -> None:
    whole = tree(indexed)
    kills, trees = kill_at_every((50,), lambda out: command(plain, out), tmp_path / "kills")
    assert kills == 1
    assert trees == {repr(whole)}


def test_slices_and_appended_parts_make_the_same_dataset(
    plain: Path, indexed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for number in range(3):
        assert main(command(plain, out, "--slice", f"{number}/3")) == 0
    assert main(["merge", str(out), "--slices", "3"]) == 0
    assert tree(out) == tree(indexed)
    archive = shutil.copytree(plain, tmp_path / "in")
    make_video(archive / "b" / "new.mp4", 12)
    make_video(archive / "c" / "new.mp4", 12)
    before = open_dataset(out)
    assert main(command(plain, out, "--append")) == 0
    assert "nothing new" in capsys.readouterr().out
    assert main(command(archive, out, "--append")) == 0
    after = open_dataset(out)
    added = len(after) - len(before)
    assert after.names.to_pylist()[: len(before)] == before.names.to_pylist()
    media = [after.media_name(int(number)) for number in after.media]
    assert media[: len(before)] == [before.media_name(int(number)) for number in before.media]
    assert set(media[len(before) :]) >= {str(archive / "b" / "new.mp4"), str(archive / "c" / "new.mp4")}
    assert added >= 4
    assert after.label_names == ["a", "b", "c"]
    assert len(list(out.glob("media-*"))) == len(list(out.glob("tables-*"))) == 2  # the index of before may be in use
    assert verify(out, full=True) == []
    assert all(re.fullmatch(INDEX_FILE, path.name) for path in out.glob("*-*.arrow"))


def test_paths_are_absolute_wherever_an_index_is_made(plain: Path, indexed: Path, tmp_path: Path) -> None:
    """Decoders keep the working directory in which they were started, hence the processes."""
    (tmp_path / "link").symlink_to(plain)
    for given, out, cwd in (("in", tmp_path / "here", plain.parent), ("./link", Path("there"), tmp_path)):
        launch.run([sys.executable, "-m", "preprocess", *command(Path(given), out)], cwd=cwd, check=True)
    assert tree(tmp_path / "here") == tree(indexed)
    for name in ("here", "there"):
        dataset = open_dataset(tmp_path / name)
        assert all(Path(dataset.media_name(int(number))).is_absolute() for number in dataset.media)
        assert dataset.media_files is not None
        assert dataset.media_files.changed() == {}


def test_a_plan_alone_estimates_an_index(plain: Path, indexed: Path, tmp_path: Path) -> None:
    said = run(*command(plain, tmp_path / "out", "--plan-only"))
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["plan.parquet"]
    assert "plan, and nothing else yet" in said
    samples = len(open_dataset(indexed))
    assert re.search(rf"\b{samples} samples", said)
    assert main(command(plain, tmp_path / "out")) == 0
    assert tree(tmp_path / "out") == tree(indexed)


def test_a_video_of_many_shards_is_one_file(plain: Path, indexed: Path) -> None:
    dataset = open_dataset(indexed)
    assert dataset.media_files is not None
    assert len(dataset.shards) == 10
    assert len(dataset.media_files) == 9
    assert dataset.media_files.num_bytes == sum(path.stat().st_size for path in plain.rglob("*.mp4"))
    assert np.all(np.diff(dataset.media) >= 0)


def test_an_index_is_split_as_shards_are(plain: Path, indexed: Path, tmp_path: Path) -> None:
    out = shutil.copytree(indexed, tmp_path / "out")
    assert main(["split", str(out), "--by", "name", "--fractions", "train=0.6,val=0.4"]) == 0
    dataset, before = open_dataset(out), open_dataset(indexed)
    assert set(dataset.split_names) == {"train", "val"}
    assert dataset.media.tolist() == before.media.tolist()
    by_file = {(int(number), int(code)) for number, code in zip(dataset.media, dataset.splits, strict=True)}
    names = {(dataset.media_name(number), code) for number, code in by_file}
    assert len(names) == 9  # no recording is on both sides
    assert dataset.fingerprint != before.fingerprint
    assert verify(out, full=True) == []


def test_an_index_is_overwritten_by_another_layout_and_nothing_is_left(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(plain, out)) == 0
    build = ["build", "--videos", str(plain), "--out", str(out), "--workers", "1", "--overwrite"]
    assert main(build) == 0
    assert not [*out.glob("media-*"), *out.glob("tables-*")]
    assert main(command(plain, out, "--overwrite")) == 0
    assert not list(out.glob("frames-*"))
    assert verify(out, full=True) == []
    assert sorted(path.name for path in plain.rglob("*.mp4")) == [f"{number}.mp4" for number in range(9)]


def test_videos_change_nothing_but_are_looked_at_when_they_do(plain: Path, tmp_path: Path) -> None:
    """A video that has become another one is another index; those of other videos stay the same."""
    archive = shutil.copytree(plain, tmp_path / "in")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in archive.rglob("*.mp4")}
    assert main(command(archive, tmp_path / "1")) == 0
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in archive.rglob("*.mp4")} == before
    make_video(archive / "a" / "2.mp4", 12, gop=6)
    assert main(command(archive, tmp_path / "2")) == 0
    one, other = (open_dataset(tmp_path / name, exclude_bad_shards=True) for name in "12")
    assert [one.media_name(number) for number in one.bad_media] == [str(archive / "a" / "2.mp4")]
    assert other.bad_media == {}
    assert one.fingerprint != other.fingerprint
    shards = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("shard-*.tar")} for name in "12"]
    assert sum(shards[0][name] != shards[1][name] for name in shards[0]) == 1


@pytest.fixture
def memory(plain: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Return a URL in the memory of this process with the videos of `plain` below `in/`."""
    monkeypatch.setattr(lock_store, "SETTLE_S", 0.01)
    fsspec.filesystem("memory").store.clear()
    storage = Storage("memory://bucket/in")
    for path in plain.rglob("*.mp4"):
        storage.put(path, str(path.relative_to(plain)))
    return storage


def test_from_a_url_to_a_url_the_index_is_that_of_folders(
    memory: Storage, plain: Path, indexed: Path, tmp_path: Path
) -> None:
    out = "memory://bucket/out"
    scratch = ("--scratch", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert main([*command(Path("x"), out, *scratch)[:2], memory.url, *command(Path("x"), out, *scratch)[3:]]) == 0
    there = open_corpus([out], cache=tmp_path / "cache").datasets[0]
    here = open_dataset(indexed)
    assert rows(there) == rows(here)
    assert [there.media_name(int(number)) for number in there.media] == [
        here.media_name(int(number)).replace(str(plain), memory.url) for number in here.media
    ]
    store = Storage(out)
    tars = [name for name in store.sizes() if name.endswith((".tar", ".idx"))]
    assert len(tars) == 2 * len(here.shards)
    assert all(store.read(name) == (indexed / name).read_bytes() for name in tars)
    assert verify(out) == []
    memory.remove("a/4.mp4")
    assert any("a/4.mp4: missing" in finding for finding in verify(out))


def test_what_is_cut_up_is_rejected_behind_a_url(memory: Storage, tmp_path: Path) -> None:
    memory.put(make_video(tmp_path / "cut.ts", 12, codec="libx264"), "a/cut.ts")
    run("index", "--videos", memory.url, "--out", tmp_path / "out", "--scratch", tmp_path, "--workers", "1")
    (row,) = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert (row["name"], row["reason"], row["num_frames"]) == ("a/cut.ts", "not_in_ranges", 0)
    assert "behind a URL: `build`" in row["message"]


@pytest.mark.slow
def test_an_object_store_is_read_once_for_an_index_and_by_ranges_afterwards(
    s3: Server, plain: Path, tmp_path: Path
) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="archive")
    client.close()
    storage = Storage("s3://archive/in")
    for path in plain.rglob("*.mp4"):
        storage.put(path, str(path.relative_to(plain)))
    s3.reset()
    out = tmp_path / "out"
    run("index", "--videos", storage.url, "--out", out, "--scratch", tmp_path, "--segment-frames", "8")
    got = [request for request in s3.requests() if request.path.endswith(".mp4") and request.num_bytes > 64]
    whole = sum(path.stat().st_size for path in plain.rglob("*.mp4"))
    assert sum(request.num_bytes for request in got) < 1.5 * whole
    dataset = open_dataset(out)
    files, number = dataset.media_files, int(dataset.media[3])
    assert files is not None
    s3.reset()
    with files.open(number) as read:
        name = files.location(number).removeprefix(f"{storage.url}/")
        assert read(100, 50) == (plain / name).read_bytes()[50:150]
    assert [request.num_bytes for request in s3.requests() if request.path.endswith(".mp4")] == [100]


def test_help_names_the_options_of_videos_and_none_of_an_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["index", "--help", "all"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for option in ("--videos", "--fps", "--short-side", "--segment-seconds", "--append", "--slice", "--timeout"):
        assert option in said
    for option in ("--frames", "--images", "--ledger", "--quality", "--crf", "--layout", "--group", "--preset"):
        assert not re.search(rf"{option}\b", said), option
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "mae3d preprocess index --videos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--videos"),
        (["--videos", "IN"], "--out"),
        (["--videos", "IN", "--out", "OUT", "--quality", "80"], "unknown option --quality"),
        (["--videos", "IN", "--out", "OUT", "--layout", "files"], "unknown option --layout"),
        (["--frames", "IN", "--out", "OUT"], "--videos"),
        (["--videos", "IN", "--out", "OUT", "--whole", "--segment-frames", "3"], "not allowed with"),
    ],
)
def test_options_that_an_index_does_not_have_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["index", *options])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slice", "0/2", "--append"), "--slice goes with neither"),
        (("--slice", "2/2"), "slices of 2 count from 0"),
        (("--plan-only", "--overwrite"), "--plan-only removes nothing"),
        (("--label-base", "1"), "--label-names"),
        (("--fps", "0"), r"fps=0\.0 must be"),
        (("--short-side", "0"), "short_side=0 must be at least 1"),
        (("--workers", "0"), "workers=0 must be at least 1"),
        (("--columns", "path=0", "--split", "x", "--header", "yes", "--root", "NOWHERE"), "NOWHERE|columns|list"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    plain: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert re.search(message, refused("--videos", plain, "--out", tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_other_settings_or_another_layout_are_another_dataset(plain: Path, indexed: Path, tmp_path: Path) -> None:
    given = command(plain, indexed)[1:]
    before = tree(indexed)
    assert "fps" in refused(*given, "--fps", "5")
    assert "short_side = 256 there, 64 given" in refused(*given, "--short-side", "64")
    with redirect_stderr(io.StringIO()) as errors:
        assert main(["build", *given]) == 2
    assert "layout = files there, None given" in errors.getvalue()
    assert main(["build", "--videos", str(plain), "--out", str(tmp_path / "built"), "--workers", "1"]) == 0
    assert "layout = None there, files given" in refused("--videos", plain, "--out", tmp_path / "built")
    assert tree(indexed) == before


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda meta: meta.pop(key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("media_roots"), "has no media_roots"),
        (lambda meta: meta["files"].pop("media"), "has no media"),
        (lambda meta: meta["files"].pop("tables"), "has no tables"),
        (lambda meta: meta["files"]["media"].update(bytes=1), r"media-.*1; restore it"),
    ],
)
def test_an_index_that_is_not_all_there_is_refused(
    indexed: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    out = shutil.copytree(indexed, tmp_path / "out")
    meta = json.loads((out / "dataset.json").read_text())
    damage(meta)
    (out / "dataset.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=message):
        open_dataset(out)
