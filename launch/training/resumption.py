"""A run as its last start left it, and this start ─► RUN/config.yaml, if it may go on, and what changes thereby.

change = claim(run, config, loader, schedule, world)     # "total_steps was 12, is 24. The rate was …"; "" for nothing

`Run.check` compares settings one by one; here is what they come to: the length, the rates, and the data.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from launch.common.cli import defaults_of
from launch.training.config import TrainingConfig
from mae3d.io.hooks import code_of, hooks_of
from mae3d.tracking.run_dir import STOP, RunError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mae3d.distributed import World
    from mae3d.model.config import ClassifierConfig, MAEConfig
    from mae3d.tracking.run_dir import Run
    from mae3d.training.loop import TrainSchedule
    from pipelines.loader import Loader


def claim(
    run: "Run",
    config: TrainingConfig,
    loader: "Loader",
    schedule: "TrainSchedule",
    world: "World",
    *,
    model_config: "MAEConfig | ClassifierConfig",
) -> str:
    """Write config.yaml on rank 0, once all has been accepted that can be refused; all ranks raise what is refused.

    A dry run writes nothing. A setting that an older run lacks had its default: the model's, because that of an option
    may be null, as derived from elsewhere.

    Returns:
        What going on changes in the schedule; "" if nothing.

    Raises:
        ValueError: other settings, another length, other data, or a request to stop.
        OSError: the folder cannot be written.
    """

    def check_and_write() -> str:
        settings = dataclasses.asdict(config)
        run.check(settings, extend=config.extend, defaults=defaults_of(config) | {"model": defaults_of(model_config)})
        note = "; ".join(filter(None, (changed_hooks(run, config), change_of_schedule(run, config, loader, schedule))))
        if not config.dry_run:
            run.claim(settings, extend=config.extend)
        return note

    return world.on_first(check_and_write)


def changed_hooks(run: "Run", config: TrainingConfig) -> str:
    """Return which of the user's code has changed since the newest checkpoint; "" if none, or if it sees steps only.

    Raises:
        RunError: the losses depend on code that has changed, and the settings do not accept that.
    """
    before = _newest_state(run).get("hooks", {})
    codes = {text: code_of(text) for option, _, text in hooks_of(config) if not run.rules.is_free(option)}
    changes = [
        f"{text}: was {before[text]}, is {code}" for text, code in codes.items() if before.get(text, code) != code
    ]
    if changes and config.run.on_hook_change == "refuse":
        raise RunError(
            f"{run.folder} was trained with other code: {'; '.join(changes)}. Restore it, or add "
            "--run.on_hook_change accept to go on with this one"
        )
    return f"code of hooks: {'; '.join(changes)}" if changes else ""


def change_of_schedule(run: "Run", config: TrainingConfig, loader: "Loader", schedule: "TrainSchedule") -> str:
    """Return how this start changes the schedule of a run, with the rates of both; "" if it does not.

    Args:
        run: its settings have been compared.
        config: this start's.
        loader: of this start.
        schedule: of this start.

    Raises:
        RunError: the run would be shorter than it is.
        ValueError: the data cannot go on.
    """
    from mae3d.training.optim import lr_at

    stored, state = run.stored(), _newest_state(run)
    if not stored:
        return ""
    if state:
        loader.check_state(state["loader"])
    taken = int(state.get("step", 0))
    now = dict(schedule.rate)
    before = state.get("rate") or now | {"total_steps": _stored_length(stored["train"], loader)}
    least = max(before["total_steps"], taken)
    if schedule.total_steps < least:
        raise RunError(
            f"{run.folder} is {before['total_steps']:,} steps long and has a checkpoint of step {taken:,}; this start "
            f"would make it {schedule.total_steps:,}. --extend true makes a run longer: give train.steps of {least} or "
            f"more; the file {run.folder / STOP} ends it early"
        )
    changes = [f"{name} was {before[name]:.12g}, is {now[name]:.12g}" for name in now if before.get(name) != now[name]]
    if not changes:
        train = config.train
        why = f" (train.steps={train.steps} wins over train.epochs)" if train.steps else ""
        return f"none: {schedule.total_steps:,} steps as before{why}" if config.extend else ""
    if not taken:
        return "; ".join(changes)
    last, old, new = lr_at(taken - 1, **before), lr_at(taken, **before), lr_at(taken, **now)
    ratio = new / last if last else math.inf
    leap = f", {ratio:.3g} times the last" if math.isfinite(ratio) and not 0.5 < ratio < 2 else ""
    return (
        f"{'; '.join(changes)}. The rate was {last:.3g} in step {taken:,}; the next one has {old:.3g} by the old "
        f"schedule, and {new:.3g} by this one{leap}"
    )


def _newest_state(run: "Run") -> "Mapping[str, Any]":
    """Return the state in the newest checkpoint that has one that can be read; empty without any."""
    from mae3d.checkpoints import format as checkpoint

    for folder in reversed(checkpoint.up_to_latest(run.folder)):
        try:
            return checkpoint.read_state(folder)
        except (OSError, ValueError):  # resuming passes it over as well
            continue
    return {}


def _stored_length(train: "Mapping[str, Any]", loader: "Loader") -> int:
    """Return the steps of the run's last start; of checkpoints that are older than `rate`, only the config knows."""
    return max(train.get("steps") or round(train["epochs"] * loader.steps_per_epoch), 1)
