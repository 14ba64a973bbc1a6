"""When collectives begin, by the real engine in two processes, with the settings that are computed."""

import pytest

from benchmarks.scaling import DEFAULTS, Collective, count_steps, is_reduction
from mae3d.model.config import MAEConfig
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

SMALL = MAEConfig(preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, patch_size=8, depth=2, decoder_depth=1)
ONE_BUCKET = DEFAULTS | {"overlap_comm": False}


def early(calls: list[Collective]) -> float:
    """The share of the gradients' bytes that are sent while others are being made."""
    sent = [(call.size, call.phase) for call in calls if is_reduction(call)]
    return sum(size for size, phase in sent if phase == "backward") / sum(size for size, _ in sent)


def test_most_gradients_travel_while_others_are_being_made() -> None:
    cases = {"1": (1, {}), "1 in one bucket": (1, ONE_BUCKET), "3": (3, {}), "3 in one bucket": (3, ONE_BUCKET)}
    _, counted = run_ranks(count_steps, "bf16", cases, SMALL, world=2)[0]
    for stage in ("1", "3"):
        assert early(counted[stage]) >= 0.8
        assert early(counted[f"{stage} in one bucket"]) == 0  # else the count means nothing
    # Stage 3 gathers small weights with large ones: it needs no more calls than there are pieces.
    assert sum(not is_reduction(call) for call in counted["3"]) <= 16
