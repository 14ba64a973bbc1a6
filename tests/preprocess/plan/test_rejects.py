"""Samples that are kept with a remark are logged."""

import pytest

from preprocess.plan.rejects import Remarks


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
