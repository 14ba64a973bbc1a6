"""Runs a function in N fresh processes that find each other as under a launcher: real gloo, real DeepSpeed."""

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any


def run_ranks(function: Callable[..., Any], *arguments: Any, world: int) -> list[Any]:
    """`function(world, *arguments)` on every rank, with a started mae3d.distributed.World; results by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = _context()
    children = []
    for rank in range(world):
        ours, theirs = context.Pipe()
        process = context.Process(target=_child, args=(theirs, function, arguments, rank, world, port))
        process.start()
        children.append((process, ours))
    results = []
    for process, pipe in children:
        ok, value = pipe.recv() if pipe.poll(300) else (False, "no answer within 300 s")
        process.join(30)
        if not ok:
            for other, _ in children:
                other.kill()
            raise AssertionError(value)
        results.append(value)
    return results


def _context() -> ForkServerContext:
    """Forks from a process that has imported torch and DeepSpeed but done nothing: spawned, each would need seconds."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as start_world("cpu") says before DeepSpeed is imported
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "deepspeed"])
    return context


def _child(
    pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, world: int, port: int
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        import torch

        from mae3d.distributed import start_world

        torch.set_num_threads(1)
        started = start_world("cpu")
        result = function(started, *arguments)
        started.close()
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
