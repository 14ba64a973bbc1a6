"""The user's metrics and callbacks see a training between two steps, and change nothing of it.

    observers = Observers(world, seed=0, metrics=config.log.metrics, callbacks=config.run.callbacks)
    observers.start(view)                               # on_start; an error in it ends the run before the first step
    row |= observers.figures(view, taken=row)           # of all ranks, after each log interval
    observers.stepped(view, scores, checkpoints, taken=True)     # of rank 0

A hook that fails later costs its traceback in the log, never the run: after FAILURES in a row it is called no more.
They run without gradients; torch's random state and the modules' modes are afterwards as they were. docs/hooks.md.
"""

import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mae3d.distributed import World
from mae3d.io.hooks import Hook, HookError, load
from mae3d.io.random import Stream, philox
from mae3d.tracking.history import SCORES

logger = logging.getLogger(__name__)

FAILURES = 3
_FIGURE = re.compile(r"[A-Za-z][\w./-]{0,63}")


@dataclass(frozen=True)
class StepView:
    """A training after a step, to be looked at.

    Attributes:
        step: Steps taken.
        total_steps: Steps of the whole run.
        epoch: Passes over the data.
        lr: The learning rate of the step.
        row: The line of metrics.jsonl of this step; empty if it has none.
        model: The module. Under ZeRO 3 a rank has a part of its weights alone; gradients are gone after a step.
        folder: The run's folder.
        rank: The rank that calls.
        world_size: Number of ranks.
        rng: Generator of (seed, step, hook), the same on every rank and after every resume.
        weights: Returns all weights by name, float32, as checkpoints have them; a collective, for metrics alone.
        step_loss: The loss of this rank's last step, on the device; None before the first.
    """

    step: int
    total_steps: int
    epoch: float
    lr: float
    row: Mapping[str, Any]
    model: nn.Module
    folder: Path
    rank: int
    world_size: int
    rng: np.random.Generator
    weights: Callable[[], dict[str, Tensor]]
    step_loss: Tensor | None = None

    @property
    def loss(self) -> float | None:
        """Return the loss of this rank's last step; it waits for the device."""
        return None if self.step_loss is None else float(self.step_loss)


class _Observer:
    """A hook with the number of its failures in a row."""

    def __init__(self, hook: Hook) -> None:
        self.hook, self.failures = hook, 0

    @property
    def is_off(self) -> bool:
        return self.failures >= FAILURES

    def ended(self, *, failed: bool) -> None:
        self.failures = self.failures + 1 if failed else 0
        if self.is_off:
            hook = self.hook
            logger.warning("the %s %s failed %d times in a row: it is off now", hook.noun, hook.text, FAILURES)


class Observers:
    """The metrics of all ranks and the callbacks of rank 0."""

    def __init__(
        self, world: World, *, seed: int = 0, metrics: Sequence[str] = (), callbacks: Sequence[str] = ()
    ) -> None:
        """Load them; all ranks call it.

        Args:
            world: All ranks.
            seed: Of the generators.
            metrics: Texts of hooks.
            callbacks: Likewise; they are made on rank 0 alone.

        Raises:
            ValueError: One of them cannot be used; on all ranks if it is a callback.
            HookError: The module of a metric failed.
        """
        self._world, self._seed = world, seed
        self._metrics = [_Observer(load(text, "metrics")) for text in metrics]
        self._callbacks: list[_Observer] = []
        if callbacks:
            world.on_first(lambda: self._make(callbacks))
        self.has_callbacks = bool(self._callbacks)

    def start(self, view: StepView) -> None:
        """Call on_start; all ranks call it.

        Raises:
            ValueError: It failed, and its traceback is in the log.
        """
        self._world.on_first(lambda: self._start(view))

    def figures(self, view: StepView, *, taken: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics' figures by name, rank 0's on every rank; all ranks call it.

        Raises:
            ValueError: A metric returned something else than numbers by name, or a name that the line has already.
        """
        figures: dict[str, float] = {}
        for number, observer in enumerate(self._metrics):
            if observer.is_off:
                continue
            values: Any = None
            error = None
            try:
                with _unchanged(view.model):
                    values = observer.hook(self._numbered(view, number))
            except HookError as caught:
                error = caught
                _log(error)
            failed = self._world.any(error is not None)
            observer.ended(failed=failed)
            if not failed:
                used = taken.keys() | figures.keys()
                figures |= self._world.on_first(lambda: _checked(observer.hook, values, used))  # noqa: B023 - at once
        return figures

    def stepped(self, view: StepView, scores: Mapping[str, float], checkpoints: Sequence[Path], *, taken: bool) -> None:
        """Call what a step gives rise to: on_checkpoint for those that are whole by now, on_step, on_validation.

        Args:
            view: After the step.
            scores: Of a validation after it, by their names in metrics.jsonl; empty without one.
            checkpoints: Folders that have become whole.
            taken: Whether this start has taken the step.
        """
        for folder in checkpoints:
            self._call("on_checkpoint", view, folder)
        if taken:
            self._call("on_step", view)
        if scores:
            self._call("on_validation", view, dict(scores))

    def ended(self, view: StepView, checkpoints: Sequence[Path], reason: str) -> None:
        """Call on_checkpoint for the last ones, then on_end."""
        self.stepped(view, {}, checkpoints, taken=False)
        self._call("on_end", view, reason)

    def _call(self, method: str, view: StepView, *arguments: Any) -> None:
        for number, observer in enumerate(self._callbacks, len(self._metrics)):
            function = getattr(observer.hook.target, method, None)
            if function is None or observer.is_off:
                continue
            try:
                with _unchanged(view.model):
                    observer.hook.guarded(function, self._numbered(view, number), *arguments)
            except HookError as error:
                _log(error)
                observer.ended(failed=True)
            else:
                observer.ended(failed=False)

    def _make(self, callbacks: Sequence[str]) -> None:
        for text in callbacks:
            with _stopping():
                self._callbacks.append(_Observer(load(text, "callbacks")))

    def _start(self, view: StepView) -> None:
        for number, observer in enumerate(self._callbacks, len(self._metrics)):
            if function := getattr(observer.hook.target, "on_start", None):
                with _stopping(), _unchanged(view.model):
                    observer.hook.guarded(function, self._numbered(view, number))

    def _numbered(self, view: StepView, number: int) -> StepView:
        return replace(view, rng=philox(self._seed, Stream.OBSERVE, position=view.step, number=number))


@contextmanager
def _stopping() -> Iterator[None]:
    """Turn a failure into an error that all ranks raise, once its traceback is in the log."""
    try:
        yield
    except HookError as error:
        _log(error)
        raise ValueError(str(error)) from error


def _log(error: HookError) -> None:
    cause = error.__cause__ or error
    logger.error("%s\n%s", error, "".join(traceback.format_exception(cause)).rstrip())


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Keep torch's random state and the modules' modes as they are, and record no gradients."""
    modes = [(module, module.training) for module in model.modules()]
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []), torch.no_grad():
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _checked(hook: Hook, values: Any, used: set[str]) -> dict[str, float]:
    """Return a metric's figures as plain numbers; ValueError if they are none."""
    if not isinstance(values, Mapping):
        raise hook.refuse(f"returned a {type(values).__name__}: it must return numbers by name, {{'name': 1.0}}")
    figures = {}
    for name, value in values.items():
        if not isinstance(name, str) or not _FIGURE.fullmatch(name) or name.startswith(SCORES):
            raise hook.refuse(
                f"has a figure {name!r}: names are of letters, digits, _, ., / and -, and do not begin with "
                f"{' or '.join([SCORES] if isinstance(SCORES, str) else SCORES)}"
            )
        if name in used:
            raise hook.refuse(f"has a figure {name!r}, which the line has already: give it another name")
        number = value.item() if isinstance(value, Tensor | np.generic | np.ndarray) and np.size(value) == 1 else value
        if not isinstance(number, Real):
            raise hook.refuse(f"has {name}={value!r:.80}, which is no number")
        figures[name] = float(number)
    return figures
