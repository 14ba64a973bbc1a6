"""mae3d.io.collector: what a start makes is not walked, and the collector is as it was afterwards."""

import gc

import pytest

from mae3d.io.collector import uncollected


@pytest.mark.parametrize("is_on", [True, False])
def test_a_start_is_not_collected_and_the_collector_is_left_as_it_was(*, is_on: bool) -> None:
    kept: list[list[int]] = []
    try:
        (gc.enable if is_on else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
            kept.append([])
        assert gc.isenabled() == is_on
        assert not any(known is kept[0] for known in gc.get_objects())  # frozen
        gc.unfreeze()
        assert any(known is kept[0] for known in gc.get_objects())
    finally:
        gc.enable()
