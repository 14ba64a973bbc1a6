"""mae3d/training/observers.py: ranks agree on metrics, and nothing of a training changes under who looks at it."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mae3d.distributed import World
from mae3d.io import hooks
from mae3d.training.observers import FAILURES, Observers, StepView
from tests.support.ranks import run_ranks

SOURCE = """
import torch

def rank(view):
    if view.rank and view.step < 4:
        raise RuntimeError("on rank 1 alone")
    return {"rank": view.rank, "draw": view.rng.random()}

def touches(view):
    torch.rand(2)
    view.model.eval()
    assert not torch.is_grad_enabled()
    return {}

def returns(view, what=None):
    return what
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the current folder with a module of metrics."""
    (tmp_path / "ob_own.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    hooks.load.cache_clear()
    sys.modules.pop("ob_own", None)
    yield tmp_path
    hooks.load.cache_clear()
    sys.modules.pop("ob_own", None)


def view_of(model: nn.Module, *, step: int = 1, rank: int = 0) -> StepView:
    return StepView(
        step=step, total_steps=9, epoch=0.0, lr=0.1, row={}, model=model, folder=Path(), rank=rank, world_size=2,
        rng=np.random.default_rng(0), weights=dict, step_loss=torch.tensor(2.0),
    )  # fmt: skip


def looked_at(world: World) -> list[Any]:
    observers = Observers(world, seed=5, metrics=["ob_own:rank", "ob_own:returns(what={'b': 1})"])
    view = view_of(nn.Linear(1, 1), rank=world.ranks.rank)
    return [observers.figures(replace(view, step=step), taken={}) for step in range(1, 7)]


def test_ranks_agree_on_a_metric_that_fails_on_one_of_them(module: Path) -> None:
    first, second = run_ranks(looked_at, world=2)
    assert first == second == [{"b": 1.0}] * 6  # off on both after three, though the fourth would have gone well


def test_figures_are_rank_0s_and_drawn_by_step_and_hook(module: Path, world: World) -> None:
    model = nn.Linear(1, 1)
    draws = []
    for _ in range(2):
        observers = Observers(world, seed=5, metrics=["ob_own:rank", "ob_own:returns(what={})"])
        draws.append([observers.figures(view_of(model, step=step), taken={})["draw"] for step in (1, 2)])
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[0][1]
    second = Observers(world, seed=5, metrics=["ob_own:returns(what={})", "ob_own:rank"])
    assert second.figures(view_of(model), taken={})["draw"] != draws[0][0]


def test_a_metric_leaves_random_state_and_modes_as_they_are(module: Path, world: World) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).train()
    model[1].eval()
    observers = Observers(world, metrics=["ob_own:touches"])
    before = torch.get_rng_state()
    observers.figures(view_of(model), taken={})
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in model.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("3", "returned a int: it must return numbers by name"),
        ("{'loss': 1}", "figure 'loss', which the line has already"),
        ("{'val_x': 1}", "do not begin with val_ or eval_"),
        ("{'a b': 1}", "figure 'a b': names are of letters"),
        ("{'a': 'b'}", "a='b', which is no number"),
        ("{'a': None}", "a=None, which is no number"),
    ],
)
def test_what_is_no_figure_ends_the_run(module: Path, world: World, what: str, message: str) -> None:
    observers = Observers(world, metrics=[f"ob_own:returns(what={what})"])
    with pytest.raises(ValueError, match=message):
        observers.figures(view_of(nn.Linear(1, 1)), taken={"loss": 1})


def test_an_error_now_and_then_leaves_a_callback_on(module: Path, world: World) -> None:
    (module / "ob_call.py").write_text(
        "class Now:\n    seen = []\n    def on_step(self, view):\n"
        "        self.seen.append(view.step)\n        if view.step % 3: raise OSError('away')\n"
    )
    observers = Observers(world, callbacks=["ob_call:Now"])
    for step in range(1, 8):
        observers.stepped(view_of(nn.Linear(1, 1), step=step), {}, [], taken=True)
    assert sys.modules.pop("ob_call").Now.seen == list(range(1, 8))
    assert FAILURES == 3
