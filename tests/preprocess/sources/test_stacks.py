"""`build --stacks`: files and series become videos in time order, all else a row of rejects, and no patient is seen."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from mae3d.io.png import decode_png
from mae3d.video.levels import widened
from preprocess.__main__ import main
from preprocess.dataset.index import Dataset, open_dataset
from preprocess.plan.plan import ScanResult
from preprocess.plan.settings import Settings
from preprocess.sources.source import Reading
from preprocess.sources.stacks import stack_files
from tests.support.builds import tree
from tests.support.stacks import PATIENT, SERIES, random_frames, write_dicom

TWELVE = random_frames(12, bits=12)
LEVELS = widened(TWELVE, stored_bits=12)


def write_series(folder: Path, numbers: dict[str, int | None], *, series: str = SERIES, **tags: Any) -> None:
    """Single frames of TWELVE by file name: the frame, and its InstanceNumber unless that is None."""
    for name, number in numbers.items():
        frame = TWELVE[(number or 0) : (number or 0) + 1]
        extra = {key: value(number) if callable(value) else value for key, value in tags.items()}
        more = {"NumberOfFrames": None, "SeriesInstanceUID": series, "InstanceNumber": number} | extra
        write_dicom(folder / name, frame, stored=12, **{key: value for key, value in more.items() if value is not None})


def scan(root: Path, settings: Settings | None = None, **reading: Any) -> ScanResult:
    return stack_files([root], settings=settings or Settings(layout="png"), reading=Reading(**reading)).find()


def stored(dataset: Dataset, i: int) -> np.ndarray:
    spans = dataset.spans(i, np.arange(int(dataset.num_frames[i])))
    tar = dataset.shard_path(int(dataset.shard[i])).read_bytes()
    parts = zip(spans.offset.tolist(), spans.size.tolist(), strict=True)
    return np.stack([decode_png(tar[at : at + size], channels=dataset.layout.channels) for at, size in parts])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of scans, with all that goes wrong in one of them."""
    root = tmp_path_factory.mktemp("archive")
    write_dicom(root / "a" / "cine", TWELVE, stored=12, FrameTime=40, BurnedInAnnotation="YES")
    write_series(root / "a" / "series", {f"IM{9 - number}": number for number in range(1, 7)}, CineRate=5)
    tifffile.imwrite(root / "a" / "run.tif", LEVELS[..., 0], photometric="minisblack")
    write_dicom(root / "b" / "rgb.dcm", random_frames(3, channels=3, bits=8))
    tifffile.imwrite(root / "b" / "float.tif", LEVELS[..., 0].astype(np.float32), photometric="minisblack")
    whole = (root / "a" / "cine").read_bytes()
    (root / "b" / "cut.dcm").write_bytes(whole[: len(whole) - 700])
    write_dicom(root / "b" / "report.dcm", TWELVE, PixelData=None)
    write_series(root / "b" / "gap", {"1": 1, "2": 2, "4": 4})
    (root / "b" / "notes.txt").write_text("of nobody")
    return root


@pytest.fixture(scope="module")
def built(archive: Path) -> Path:
    out = archive.parent / "out"
    assert main(command(archive, out)) == 0
    return out


def command(archive: Path, out: Path, *more: str, workers: int = 1) -> list[str]:
    given = ["--stacks", str(archive), "--layout", "png", "--max-bad-fraction", "1", "--shard-size", "2"]
    return ["build", *given, "--workers", str(workers), "--out", str(out), *more]


def test_files_and_series_are_videos_with_their_rates(built: Path) -> None:
    dataset = open_dataset(built)
    assert dataset.names.to_pylist() == ["a/cine", "a/run.tif", "a/series"]
    assert dataset.label_names == ["a", "b"]
    np.testing.assert_array_equal(stored(dataset, 0), LEVELS)
    np.testing.assert_array_equal(stored(dataset, 1), LEVELS)
    np.testing.assert_array_equal(stored(dataset, 2), LEVELS[1:7])
    rates = dataset.fps.tolist()
    assert (rates[0], rates[2], math.isnan(rates[1])) == (25, 5, True)


def test_all_that_was_left_out_has_its_row_and_reason(built: Path) -> None:
    rows = pq.read_table(built / "rejected.parquet").to_pylist()
    reasons = {row["name"]: row["reason"] for row in rows}
    assert reasons == {
        "a/cine": "burned_in",
        "b/cut.dcm": "undecodable",
        "b/float.tif": "needs_window",
        "b/gap": "missing_frame",
        "b/report.dcm": "no_pixels",
        "b/rgb.dcm": "other_pixels",
    }
    kept = {row["name"]: row["num_frames"] for row in rows}
    assert (kept.pop("a/cine"), set(kept.values())) == (12, {0})


def test_nothing_of_a_patient_is_written(built: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PATIENT.encode() in (archive / "a" / "cine").read_bytes()
    written = b"".join(path.read_bytes() for path in built.iterdir())
    for text in (PATIENT, SERIES, "Doe"):
        assert text.encode() not in written
    main(command(archive, archive.parent / "again"))
    assert "burned into them stay; 2 files announce some" in "".join(capsys.readouterr())


def test_two_workers_write_the_bytes_of_one(built: Path, archive: Path) -> None:
    two = archive.parent / "two"
    assert main(command(archive, two, workers=2)) == 0
    assert tree(two) == tree(built)


def test_cuts_rates_and_windows_hold_for_stacks(archive: Path, tmp_path: Path) -> None:
    more = ("--fps", "12.5", "--source-fps", "25", "--segment-frames", "3", "--window", "0", "65535", "--bits", "8")
    assert main(command(archive / "a", tmp_path / "out", *more)) == 0
    dataset = open_dataset(tmp_path / "out")
    assert dataset.names.to_pylist() == ["cine"] * 2 + ["run.tif"] * 2 + ["series"]
    assert dataset.num_frames.tolist() == [3] * 5
    assert dataset.first.tolist() == [0, 6, 0, 6, 0]
    assert dataset.start_s.tolist() == pytest.approx([0, 0.24, 0, 0.24, 0])
    expected = np.rint(LEVELS[6::2] / 257)
    np.testing.assert_array_equal(stored(dataset, 3), expected)


def test_a_series_is_in_the_order_of_instances_or_of_times(tmp_path: Path) -> None:
    write_series(tmp_path / "one", {"c": 1, "a": 2, "b": 3})
    write_series(tmp_path / "two", {"c": None, "a": None}, AcquisitionTime=None)
    write_series(tmp_path / "two", {"b": None}, AcquisitionTime="101010")
    by_name = {request.name: list(request.files) for request in scan(tmp_path).requests}
    assert by_name == {"one": ["one/c", "one/a", "one/b"], "two": ["two/a", "two/c", "two/b"]}


def test_series_of_one_folder_are_videos_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "f", {"a": 1, "b": 2})
    write_series(tmp_path / "f", {"c": 1, "d": 2}, series=f"{SERIES}.7")
    found = scan(tmp_path)
    assert [(request.name, request.files) for request in found.requests] == [
        ("f/a", ("f/a", "f/b")),
        ("f/c", ("f/c", "f/d")),
    ]


def test_a_missing_instance_costs_the_series_unless_it_is_filled(tmp_path: Path) -> None:
    write_series(tmp_path / "f", {"a": 1, "b": 2, "c": 4, "d": 5})
    (problem,) = scan(tmp_path).problems
    assert (problem.reason, problem.name) == ("missing_frame", "f")
    assert "instance 3" in problem.message
    (request,) = scan(tmp_path, fill_gaps=True).requests
    assert request.files == ("f/a", "f/b", "f/b", "f/c", "f/d")


def test_a_rate_that_is_needed_and_not_announced_is_requested(tmp_path: Path) -> None:
    write_series(tmp_path / "f", {"a": 1, "b": 2})
    (problem,) = scan(tmp_path, Settings(layout="png", fps=5.0)).problems
    assert problem.reason == "no_rate"
    assert "--source-fps" in problem.message
    assert not scan(tmp_path, Settings(layout="png", fps=5.0, source_fps=10.0)).problems


def test_a_frame_that_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", TWELVE)
    (problem,) = scan(tmp_path, Settings(layout="png", max_pixels=300)).problems
    assert (problem.reason, "20x16" in problem.message) == ("too_large", True)
