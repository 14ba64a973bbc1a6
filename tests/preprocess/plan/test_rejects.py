"""Rows that cannot be used are counted, and samples that are kept with a remark are logged."""

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


@pytest.mark.parametrize(
    ("reason", "is_of_the_list"),
    [
        *(
            (reason, True)
            for reason in (
                "bad_row",
                "missing_frame",
                "unknown_label",
                "several_videos",
                "missing_folder",
                "ambiguous_folder",
                "ambiguous_file",
            )
        ),
        *((reason, False) for reason in ("unreadable", "unknown_format", "no_frames")),
    ],
)
def test_faults_of_a_list_count_against_the_limit_and_those_of_media_do_not(reason: str, is_of_the_list: bool) -> None:
    rejects = Rejects(10, source="list.csv", on_error="skip", max_bad_fraction=0.1)
    problem = Problem(reason, "why", "v", 1)
    rejects.add([problem])
    if is_of_the_list:
        with pytest.raises(TooManyBad, match="2 of 10 rows cannot be used, --max-bad-fraction"):
            rejects.add([problem])
    else:
        rejects.add([problem])


def test_videos_that_no_row_names_are_no_share_of_the_rows() -> None:
    rejects = Rejects(20, source="events.csv", on_error="skip", max_bad_fraction=0.1)
    rejects.add([Problem("no_event", "why", "v", expected=True)] * 9)
    rejects.add([Problem("bad_row", "why", "v", 1)])
    with pytest.raises(TooManyBad, match=r"2 of 11 rows cannot .* --max-bad-fraction 0\.1 allows 1"):
        rejects.add([Problem("bad_row", "why", "v", 2)])
