"""`build --append`: what is there stays byte for byte, what is new comes after it."""

import re
from pathlib import Path

import pytest

from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.plan import read_plan
from tests.support.builds import SMALL, as_schema_1, command, make_archive, tree
from tests.support.kills import inodes, kill_at_every, killed_at
from tests.support.media import make_video


def test_appending_leaves_what_is_there_and_adds_samples_shards_and_labels(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, more = tmp_path / "out", make_archive(tmp_path / "more", first=24, clips=7, size=SMALL)
    ledger = (more / "ledger.csv").read_text().replace("dog", "bee")
    (more / "ledger.csv").write_text(ledger)
    assert main(command(archive, out)) == 0
    running, kept = open_dataset(out), inodes(out)
    assert main(command(more, out, "--append", "--split", "late")) == 0
    assert "appended: 7 samples in 2 shards" in capsys.readouterr().out
    dataset = open_dataset(out)
    assert [dataset.name(i) for i in range(31)] == [f"v{i}" for i in range(31)]
    assert [dataset.key(i) for i in (0, 23, 24, 30)] == ["000000000", "000000023", "000000024", "000000030"]
    assert dataset.label_names == ["cat", "dog", "bee"]
    assert [dataset.labels_of(i) for i in (0, 1, 24, 25)] == [[1], [0], [2], [0]]
    assert dataset.shard.tolist() == [i // 5 for i in range(24)] + [5] * 5 + [6] * 2
    assert [dataset.split_names[code] for code in dataset.splits] == [""] * 24 + ["late"] * 7
    assert {name: which for name, which in inodes(out).items() if name in kept} == kept
    # A trainer that has the earlier index open keeps it.
    assert whole.keys() <= tree(out).keys()
    assert len(running) == 24
    assert [running.name(i) for i in (0, 23)] == ["v0", "v23"]
    assert main(["verify", str(out), "--full"]) == 0
    # Once more, and the first command once more: nothing is new.
    there = tree(out)
    assert main(command(more, out, "--append", "--split", "late")) == 0
    assert "nothing new to append" in capsys.readouterr().out
    assert main(command(archive, out)) == 0
    assert tree(out) == there
    assert {name: which for name, which in inodes(out).items() if name in kept} == kept


def test_an_archive_that_grew_is_appended_to_by_the_same_command(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    frames, out = make_archive(tmp_path / "frames", clips=7, size=SMALL), tmp_path / "out"
    nightly = command(frames, out, "--append")
    assert main(nightly) == 0  # nothing there yet: a build
    make_archive(frames, clips=9, size=SMALL)
    with (frames / "ledger.csv").open("a") as file:
        file.write("v1 4 one dog\n")
    assert main([*nightly, "--max-bad-fraction", "0.5"]) == 0
    assert "appended: 2 samples in 1 shards" in capsys.readouterr().out
    assert [open_dataset(out).name(i) for i in range(9)] == [f"v{i}" for i in range(9)]
    assert main(nightly) == 0
    said = capsys.readouterr().out
    assert "nothing new to append" in said
    assert "rejected: 1: 1 bad_row" in said
    assert len(read_plan(out / "plan.parquet")) == 9


def test_the_same_names_in_another_folder_are_other_samples(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for day in ("monday", "tuesday"):
        assert main(command(make_archive(tmp_path / day, clips=2, size=SMALL), out, "--append")) == 0
    assert [open_dataset(out).name(i) for i in range(4)] == ["v0", "v1", "v0", "v1"]


def test_other_spans_of_a_video_are_other_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_video(tmp_path / "in" / "v.mp4", 30, fps=10)
    listed, out = tmp_path / "in" / "list.csv", tmp_path / "out"
    nightly = ["build", "--videos", str(listed), "--out", str(out), "--workers", "1", "--append"]
    spans = ["0,1", "1,2", "1,2.5", "0.5,2"]
    for count in range(1, len(spans) + 1):
        listed.write_text("path,start,end\n" + "".join(f"v.mp4,{span}\n" for span in spans[:count]))
        assert main(nightly) == 0
        assert ("appended: 1 samples" in capsys.readouterr().out) == (count > 1)
        assert main(nightly) == 0
        assert "nothing new to append" in capsys.readouterr().out
    dataset = open_dataset(out)
    assert dataset.num_frames.tolist() == [10, 10, 15, 15]
    assert dataset.start_s.tolist() == pytest.approx([0, 1, 1, 0.5])


def test_appending_with_other_settings_is_refused_by_name(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, more = tmp_path / "out", make_archive(tmp_path / "more", first=24, clips=2, size=SMALL)
    assert main(command(archive, out)) == 0
    there = tree(out)
    assert main(command(more, out, "--append", "--quality", "80")) == 2
    assert re.search("--append: quality = 90 .*80 ", capsys.readouterr().err)
    assert tree(out) == there


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (["--label-base", "1"], ["--label-base", "0"], ("1", "0")),
        ([], ["--label-base", "0"], ("1", "0")),  # the file's own
        (["--label-base", "0"], [], ("0", "1")),
        ([], ["--label-base", "1"], ()),
        (["--label-base", "1"], [], ()),
    ],
)
def test_fault_45_appending_with_another_base_of_labels_is_refused_with_both(
    tmp_path: Path, capsys: pytest.CaptureFixture, first: list[str], second: list[str], told: tuple[str, ...]
) -> None:
    (tmp_path / "names.txt").write_text("1 ant\n2 bee\n3 cat\n")
    for name in ("a", "b"):
        make_video(tmp_path / f"{name}.mp4", 3)
        (tmp_path / f"{name}.csv").write_text(f"{name}.mp4,2\n")
    tail = ["--label-names", str(tmp_path / "names.txt"), "--out", str(tmp_path / "out"), "--workers", "1", "--whole"]
    assert main(["build", "--videos", str(tmp_path / "a.csv"), *tail, *first]) == 0
    assert ("2 is 'cat' if they count from 0, 'bee' if they count from 1" in capsys.readouterr().out) == (not first)
    code = main(["build", "--videos", str(tmp_path / "b.csv"), *tail, *second, "--append"])
    assert code == (2 if told else 0)
    if told:
        assert re.search(r"--label-base {}\).*--label-base {}\)".format(*told), capsys.readouterr().err)


def test_a_shard_of_the_first_build_that_was_lost_is_made_again_whatever_was_rejected_there(tmp_path: Path) -> None:
    base, out = make_archive(tmp_path / "base", clips=7, size=SMALL), tmp_path / "out"
    for clip in (0, 1):
        for frame in (base / "train" / f"v{clip}").iterdir():
            frame.write_bytes(b"no image")
    more = make_archive(tmp_path / "more", first=7, clips=2, size=SMALL)
    assert main(command(base, out)) == 0
    assert main(command(more, out, "--append")) == 0
    there = tree(out)
    (out / "shard-00000.tar").unlink()
    assert main(command(base, out)) == 0  # the two that are rejected are as many as all that was appended
    assert tree(out) == there


def append_to_copy(whole: Path, more: Path, out: Path) -> list[str]:
    """Copy a finished dataset and return the command that appends to it."""
    out.mkdir()
    for path in whole.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return command(more, out, "--append")


@pytest.mark.slow
@pytest.mark.parametrize("step", [89, pytest.param(31, marks=pytest.mark.soak)])
def test_fault_15_an_append_killed_at_any_file_operation_ends_in_the_same_tree(
    archive: Path, whole: dict[str, str], tmp_path: Path, step: int
) -> None:
    more = make_archive(tmp_path / "more", first=24, clips=7, size=SMALL)
    begin = lambda out: append_to_copy(archive.parent / "whole", more, out)  # noqa: E731
    assert main(begin(tmp_path / "uncut")) == 0
    kills, trees = kill_at_every(range(3, 2000, step), begin, tmp_path)
    assert kills >= 2
    assert trees == {repr(tree(tmp_path / "uncut"))}


@pytest.mark.slow
def test_an_append_that_was_not_finished_is_finished_by_its_own_sources_only(
    archive: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more, out = make_archive(tmp_path / "more", first=24, clips=7, size=SMALL), tmp_path / "out"
    other = make_archive(tmp_path / "other", first=40, clips=2, size=SMALL)
    append_to_copy(archive.parent / "whole", more, out)
    at = next(at for at in range(5, 200, 5) if killed_at(command(more, out, "--append"), out, at) and grown(out))
    assert at
    for wrong in (command(other, out, "--append"), command(archive, out)):
        assert main(wrong) == 2
        assert "of the build --append of ledger.csv are not there yet; finish that first" in capsys.readouterr().err
    assert len(open_dataset(out)) == 24  # all the while
    assert main(command(more, out, "--append")) == 0
    assert main(command(other, out, "--append")) == 0
    assert len(open_dataset(out)) == 33


def grown(out: Path) -> bool:
    return len(read_plan(out / "plan.parquet")) == 31


def test_a_dataset_of_schema_1_stays_readable_and_ends_in_the_same_tree(archive: Path, tmp_path: Path) -> None:
    more = make_archive(tmp_path / "more", first=24, clips=3, size=SMALL)
    trees = {}
    for schema in (1, 2):
        out = tmp_path / f"schema_{schema}"
        assert main(command(archive, out)) == 0
        now, fingerprint = tree(out), open_dataset(out).fingerprint
        if schema == 1:
            as_schema_1(out)
            assert open_dataset(out).meta["schema"] == 1
            assert open_dataset(out).fingerprint == fingerprint  # a run that was trained on it goes on
            assert {name for name, sha256 in tree(out).items() if now[name] != sha256} == {"dataset.json"}
            assert main(["verify", str(out), "--full", "--decode"]) == 0
        assert main(command(more, out, "--append")) == 0
        assert main(["verify", str(out), "--full"]) == 0
        trees[schema] = tree(out)
        for finish in (["merge", str(out)], command(archive, out)):
            as_schema_1(out)
            assert main(finish) == 0
            assert tree(out) == trees[schema]
    assert trees[1] == trees[2]


def test_an_append_mends_a_dataset_json_that_cannot_be_read(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(command(archive, out)) == 0
    undamaged = tree(out)
    (out / "dataset.json").write_text("{")
    assert main(command(archive, out, "--append")) == 0
    assert "nothing new" in capsys.readouterr().out
    assert tree(out) == undamaged
