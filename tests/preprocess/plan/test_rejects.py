"""Samples that cannot be used are counted, and those that are kept with a remark are logged."""

import pytest

from preprocess.plan.rejects import Rejects, Remarks, TooManyBad
from preprocess.problems import Problem


def test_the_first_remarks_of_a_reason_are_told_by_name_and_the_others_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    remarks = Remarks()
    for shard in range(50):
        remarks.log([(f"{shard}-{i}.dv", "interlaced", "as it is") for i in range(10)])
    remarks.log([("late.mp4", "hdr", "PQ")])
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "0-0.dv: kept, but interlaced: as it is"
    assert told[19:] == [
        "1-9.dv: kept, but interlaced: as it is",
        "more that is interlaced is only counted; rejected.parquet has all of it",
        "late.mp4: kept, but hdr: PQ",
    ]


@pytest.mark.parametrize("reason", ["missing_folder", "ambiguous_folder", "ambiguous_file", "unknown_label"])
def test_rows_that_do_not_fit_the_disk_or_the_names_stop_the_build_and_broken_media_do_not(reason: str) -> None:
    rejects = Rejects(100, source="l.csv", on_error="skip", max_bad_fraction=0.05)
    rejects.add([Problem("unreadable", "broken", "v", 1)] * 20)
    rejects.add([Problem(reason, "so", "v", 1)] * 5)
    with pytest.raises(TooManyBad, match=r"6 of 100 rows cannot be used, --max-bad-fraction 0\.05 allows 5"):
        rejects.add([Problem(reason, "so", "v", 1)])
