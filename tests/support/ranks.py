"""Run a function in N processes that find each other as under a launcher: real gloo, real DeepSpeed."""

from collections.abc import Callable
from typing import Any

import torch

from mae3d.distributed import start_world
from tests.support import launch


def run_ranks(function: Callable[..., Any], *arguments: Any, world: int) -> list[Any]:
    """Return by rank what `function(world, *arguments)` returns on each, with a started mae3d.distributed.World."""
    ranks = [launch.call(_rank, function, arguments, env=place) for place in launch.places(world)]
    return [launch.result_of(rank, timeout=300) for rank in ranks]


def _rank(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    started = start_world("cpu")
    result = function(started, *arguments)
    started.close()
    return result
