"""The loop when steps are not finite, a process dies or hangs, and a person or the clock wants it to stop."""

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mae3d.checkpoints import format as checkpoint
from mae3d.distributed import World, start_world
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.tracking.config import LogConfig
from mae3d.tracking.run_dir import Run, RunError, read_metrics
from mae3d.training.anomalies import TrainingError
from mae3d.training.config import OptimConfig, TrainConfig
from mae3d.training.engine import Engine
from mae3d.training.loop import TrainingLoop, TrainSchedule, Validation
from mae3d.training.optim import pretrain_groups
from mae3d.training.stop_request import Interrupted
from tests.support import launch
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

MODEL = MAEConfig(
    preset="mae_vit_tiny_patch16", img_size=16, num_frames=2, patch_size=8, embed_dim=24, depth=1, num_heads=2,
    decoder_embed_dim=24, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.5,
)  # fmt: skip
BATCH = 4  # samples a step
SCHEDULE = TrainSchedule(
    total_steps=12,
    accumulation=1,
    clips_per_step=BATCH,
    flops_per_clip=1.0,
    lr=lambda step: 1e-3,
    checkpoint_every=4,
    keep_last=2,
    keep_every=0,
    log=LogConfig(),
    max_skipped=3,
    max_rollbacks=1,
)


class Samples:
    """A loader of noise, by position; an epoch never ends. `at` sees each position before it is delivered."""

    epoch = 0.0

    def __init__(self, world: World, at: Callable[[int], None] = lambda position: None):
        self._world, self._at, self._position, self._delivered = world, at, 0, 0

    def __next__(self) -> Any:
        self._at(self._position)
        share = BATCH // self._world.ranks.size
        positions = [self._position + self._world.ranks.rank * share + i for i in range(share)]
        draws = [torch.Generator().manual_seed(position) for position in positions]
        clips = torch.stack([torch.randint(0, 256, (2, 16, 16, 3), generator=draw) for draw in draws]).to(torch.uint8)
        noise = torch.stack([torch.rand(MODEL.num_tokens, generator=draw) for draw in draws])
        self._position += BATCH
        self._delivered += 1
        return SimpleNamespace(clips=clips, noise=noise, positions=positions)

    def counts(self) -> dict[str, int]:
        return {"substituted": self._delivered}

    def judge(self, counts: dict[str, int]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": 0, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = state["position"]


def train(
    world: World,
    folder: Path,
    *,
    bad: range = range(0),
    stage: int = 1,
    precision: str = "fp32",
    schedule: TrainSchedule = SCHEDULE,
    at: Callable[[int], None] = lambda position: None,
    validation: Validation | None = None,
) -> bool:
    """A training; the loss is not a number where one of a rank's samples has a bad position."""
    torch.manual_seed(0)
    model = MAE(MODEL)
    config = TrainConfig(global_batch=BATCH, zero_stage=stage, precision=precision)
    optim = OptimConfig(clip_grad=1.0)
    groups = pretrain_groups(model, weight_decay=0.05)
    micro = BATCH // world.ranks.size
    engine = Engine(model, groups, train=config, optim=optim, micro_batch=micro, world=world)

    def loss_of(engine: Engine, batch: Any, *, step: int, micro: int) -> Tensor:
        loss: Tensor = engine(batch.clips, batch.noise).loss
        return loss * (float("nan") if set(bad) & set(batch.positions) else 1.0)

    run = Run(folder)
    if world.is_first:
        run.check({}, extend=False)
        run.claim({}, extend=False)
    world.barrier()
    try:
        return TrainingLoop(engine, Samples(world, at), loss_of, schedule, run, world, MODEL, validation).run()
    finally:
        engine.close()


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(folder)}


def one_rank_is_not_finite(world: World, folder: Path) -> list[str]:
    """Everything of row 26 in one start of two processes; what went wrong, by name."""
    wrong = []
    each = replace(SCHEDULE, log=replace(SCHEDULE.log, every=1))
    short = replace(each, total_steps=5)
    kinds = [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
    for stage, precision in kinds:
        at = folder / f"{stage}-{precision}"
        train(world, at, bad=range(10, 12), stage=stage, precision=precision, schedule=short)  # step 3, on rank 1 only
        rows = read_metrics(at)
        finite = [row["loss"] == row["loss"] for row in rows]
        weights = checkpoint.SliceReader(checkpoint.newest(at)).whole("encoder.patch_embed.weight", "master")
        if finite != [row["step"] != 3 for row in rows] or rows[-1]["skipped_steps"] != 1:
            wrong.append(f"stage {stage}, {precision}: {rows}")
        if not weights.isfinite().all():
            wrong.append(f"stage {stage}, {precision}: weights")
        world.barrier()
    # Steps 6, 7 and 8 in a row: back to the checkpoint of step 4, with the samples after them.
    back = folder / "back"
    train(world, back, bad=range(20, 32), schedule=each)
    rows = read_metrics(back)
    if [row["step"] for row in rows] != list(range(1, 13)) or rows[-1]["rollbacks"] != 1:
        wrong.append(f"back: {rows}")
    if checkpoint.read_state(checkpoint.newest(back))["loader"]["position"] != (8 + 8) * BATCH:
        wrong.append("the data went back")
    world.barrier()
    try:
        train(world, folder / "lost", bad=range(20, 1000), schedule=each)
        wrong.append("a run that is never finite ended")
    except TrainingError as error:
        if "after 1 restored checkpoints" not in str(error):
            wrong.append(str(error))
    return wrong


def test_fault_26_steps_that_are_not_finite_on_one_rank_are_left_out_by_all(tmp_path: Path) -> None:
    assert run_ranks(one_rank_is_not_finite, tmp_path, world=2) == [[], []]


def what_is_told(world: World, folder: Path) -> None:
    """Alone: a start with nothing finite, too little memory, a leap of the loss."""
    with pytest.raises(TrainingError, match="first 3 steps had no finite gradient"):
        train(world, folder / "nothing", bad=range(100))

    def full(self: Engine, loss: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "backward", full)  # what torch raises on a GPU; there is none here
        with pytest.raises(TrainingError, match=r"2\.00 GiB\. .*The step .*\(train\.accumulation.*grad_checkpointing"):
            train(world, folder / "full")

    long = replace(SCHEDULE, total_steps=60, checkpoint_every=100, log=replace(SCHEDULE.log, every=7))
    train(world, folder / "even", schedule=long)
    assert not (folder / "even" / "spikes.jsonl").exists()
    original, calls = MAE.loss, []

    def spoilt(self: MAE, *inputs: Any) -> Tensor:
        calls.append(1)
        return original(self, *inputs) * (50 if len(calls) == 41 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAE, "loss", spoilt)
        train(world, folder / "leap", schedule=long)
    spike = json.loads((folder / "leap" / "spikes.jsonl").read_text().splitlines()[0])
    assert (spike["step"], spike["epoch"], spike["position"]) == (41, 0, 40 * BATCH)
    assert spike["loss"] > 10 * spike["usual"]


def test_faults_25_to_27_are_told_with_what_helps(tmp_path: Path) -> None:
    run_ranks(what_is_told, tmp_path, world=1)


def stops(world: World, folder: Path) -> None:
    """Alone: stopped among bad steps, by a file, by the clock; what comes after is what an uncut run has."""
    bad, each = range(20, 32), replace(SCHEDULE, log=replace(SCHEDULE.log, every=1))

    def stop(position: int) -> None:
        if position == 6 * BATCH:  # the second of three bad steps in a row
            os.kill(os.getpid(), signal.SIGTERM)

    train(world, folder / "uncut", bad=bad, schedule=each)
    assert not train(world, folder / "cut", bad=bad, schedule=each, at=stop)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored after an agreed stop, to the end of the process
    assert train(world, folder / "cut", bad=bad, schedule=each)
    cut, uncut = read_metrics(folder / "cut")[-1], read_metrics(folder / "uncut")[-1]
    assert (cut["skipped_steps"], cut["rollbacks"]) == (uncut["skipped_steps"], uncut["rollbacks"]) == (3, 1)
    assert cut["step"] == uncut["step"] == SCHEDULE.total_steps

    run = Run(folder / "run")

    def make_stop(position: int) -> None:
        if position == 5 * BATCH:
            (run.folder / "STOP").touch()

    assert not train(world, run.folder, at=make_stop)
    assert "STOP after step 6" in (run.folder / "STOPPED").read_text()
    with pytest.raises(RunError, match="remove that file to go on"):
        train(world, run.folder)
    (run.folder / "STOP").unlink()
    assert not train(world, run.folder, schedule=replace(SCHEDULE, time_limit=1e-6))
    assert "the time limit after step 7" in (run.folder / "STOPPED").read_text()
    assert train(world, run.folder)
    train(world, folder / "even")
    cut, uncut = read_metrics(run.folder), read_metrics(folder / "even")
    assert [row["substituted"] for row in uncut] == [10, 12]  # the first line holds losses and counts of three parts
    for key in ("step", "loss", "substituted"):
        assert [row[key] for row in cut] == [row[key] for row in uncut]
    assert (run.folder / "heartbeats" / "rank-00000").read_text() == "12\n"


def stops_while_validating(world: World, folder: Path) -> None:
    """Alone: validations that are left for a stop are made up for at the next start, before anything else."""
    cut_at = [6, 6, 12]

    def scores(step: int, stopping: Callable[[], bool]) -> dict[str, float]:
        if cut_at and step == cut_at[0]:
            cut_at.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        if stopping():
            raise Interrupted
        return {"top1": 1 / (20 - step)}

    each = replace(SCHEDULE, log=replace(SCHEDULE.log, every=3))
    for _ in range(3):
        assert not train(world, folder / "cut", schedule=each, validation=Validation(3, scores, "top1"))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert train(world, folder / "cut", schedule=each, validation=Validation(3, scores, "top1"))
    assert not cut_at
    train(world, folder / "uncut", schedule=each, validation=Validation(3, scores, "top1"))
    found = []
    for name in ("cut", "uncut"):
        rows = read_metrics(folder / name)
        found.append(({row["step"]: row["loss"] for row in rows if "loss" in row},
                      {row["step"]: row["val_top1"] for row in rows if "val_top1" in row}))  # fmt: skip
        assert (folder / name / "checkpoints" / "best").read_text() == "step-00000012\n"
    assert found[0] == found[1]
    assert sorted(found[0][1]) == [3, 6, 9, 12]


def test_fault_31_a_stop_does_not_wait_for_a_validation(tmp_path: Path) -> None:
    run_ranks(stops_while_validating, tmp_path, world=1)


def test_fault_31_signals_a_file_and_the_clock_stop_a_run_and_change_nothing(tmp_path: Path) -> None:
    run_ranks(stops, tmp_path, world=1)


def lose_a_peer(rank: int, port: int, folder: Path, how: str) -> None:
    """A rank of two; the second one dies, or hangs, at step 4. The first writes what it was told."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)

    def at(position: int) -> None:
        if rank == 1 and position == 3 * BATCH:
            os.kill(os.getpid(), signal.SIGKILL if how == "dies" else signal.SIGSTOP)

    try:
        train(start_world("cpu", timeout_minutes=0.1), folder, at=at)
    except TrainingError as error:
        (folder / f"told-{rank}").write_text(str(error))
        os._exit(1)


@pytest.mark.parametrize("how", ["hangs", pytest.param("dies", marks=pytest.mark.soak)])
def test_fault_36_a_lost_process_ends_the_others_with_the_last_step_of_each(tmp_path: Path, how: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [launch.call(lose_a_peer, rank, port, tmp_path, how) for rank in range(2)]
    assert ranks[0].wait(120) == 1
    ranks[1].kill()
    told = (tmp_path / "told-0").read_text()
    assert "another process is gone or hangs" in told
    assert "rank 1: step 3" in told
    assert "rank 0: step 3" in told
