"""Steps that are left out, losses that leap: what follows, and that a cut changes nothing of it."""

import json
import math
import random

import pytest

from mae3d.training.anomalies import AnomalyGuard, TrainingError


def feed(guard: AnomalyGuard, losses: list[float], *, first: int = 0) -> None:
    for i in range(len(losses)):
        assert not guard.stepped(True, origin=(0, 4 * (first + i)))


def test_a_checkpoint_is_restored_after_so_many_in_a_row_and_only_so_often() -> None:
    guard = AnomalyGuard(max_skipped=3, max_rollbacks=2)
    guard.start(0)
    for rollback in range(2):
        asked = [guard.stepped(False, origin=(0, i)) for i in range(3)]
        assert asked == [False, False, True]
        guard.went_back(0)
        assert guard.rollbacks == rollback + 1
        assert guard.in_a_row == 0
    # One that works in between begins the row anew.
    assert not guard.stepped(False, origin=(1, 0))
    assert not guard.stepped(False, origin=(1, 4))
    assert not guard.stepped(True, origin=(1, 8))
    assert not guard.stepped(False, origin=(1, 12))
    assert not guard.stepped(False, origin=(1, 16))
    with pytest.raises(TrainingError, match=r"3 steps .* position 20 of epoch 1, after 2 restored checkpoints"):
        guard.stepped(False, origin=(1, 20))
    assert guard.skipped == 11


def test_fault_28_steps_that_are_left_out_silently_are_told() -> None:
    guard = AnomalyGuard(max_skipped=3, max_rollbacks=2)
    guard.start(100)
    for applied in (True, True, False, True):
        guard.stepped(applied, origin=(0, 0))
    guard.check(103)
    guard.stepped(True, origin=(0, 0))
    with pytest.raises(TrainingError, match=r"told of 104 optimizer steps, AdamW counts 103.*8415"):
        guard.check(103)


def test_fault_27_a_leap_is_told_with_its_samples_wherever_the_run_was_cut() -> None:
    draw = random.Random(0)
    losses = [1 + draw.gauss(0, 0.05) for _ in range(60)]
    losses[45] = 3.0
    losses[50] = math.nan  # a step that was left out is none, and spoils no comparison
    losses[55] = 2.5
    whole = AnomalyGuard(max_skipped=3, max_rollbacks=0)
    feed(whole, losses)
    spikes = whole.judge(losses, step=60)
    assert (spikes[0].step, spikes[0].loss, spikes[0].epoch, spikes[0].position) == (46, 3.0, 0, 180)
    assert 0.9 < spikes[0].usual < 1.1

    first = AnomalyGuard(max_skipped=3, max_rollbacks=0)
    feed(first, losses[:20])
    assert first.judge(losses[:20], step=20) == []
    feed(first, losses[20:33], first=20)  # cut within an interval
    second = AnomalyGuard(max_skipped=3, max_rollbacks=0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    feed(second, losses[33:], first=33)
    assert second.judge(losses[20:], step=60) == spikes


def test_a_state_does_not_change_with_the_steps_after_it() -> None:
    guard = AnomalyGuard(max_skipped=3, max_rollbacks=2)
    guard.start(0)
    feed(guard, [1.0])
    state = guard.state_dict()  # a thread writes it while training goes on
    before = json.dumps(state)
    feed(guard, [1.0], first=1)
    guard.judge([1.0, 1.0], step=2)
    assert json.dumps(state) == before


def test_the_first_steps_are_compared_with_nothing() -> None:
    guard = AnomalyGuard(max_skipped=3, max_rollbacks=0)
    losses = [9.0, 1.0, 1.1, 7.0, 1.0]
    feed(guard, losses)
    assert guard.judge(losses, step=5) == []
