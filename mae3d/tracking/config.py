"""The configuration of a run's log and trackers."""

from dataclasses import dataclass
from typing import Literal

from mae3d.io.bounds import bounded, check_bounds
from mae3d.io.hooks import canonical_hooks, hooked


@dataclass(frozen=True)
class LogConfig:
    """The log and the trackers of a run; may change from start to start.

    Attributes:
        every: steps between lines of metrics.jsonl and of the console.
        metrics: functions of yours whose figures join these lines, `module:name` (docs/hooks.md).
        tensorboard: write them for TensorBoard as well, in RUN/tensorboard; needs the package tensorboard.
        wandb: a Weights & Biases project that they also go to, PROJECT or ENTITY/PROJECT; needs the package wandb and
            its key (`wandb login`, or WANDB_API_KEY). A resumed run goes on with its W&B run.
        wandb_mode: `online`, or `offline`: kept in RUN/wandb for `wandb sync`.
    """

    every: int = bounded(10, least=1)
    metrics: tuple[str, ...] = hooked("metrics", ())
    tensorboard: bool = False
    wandb: str = ""
    wandb_mode: Literal["online", "offline"] = "online"

    def __post_init__(self) -> None:
        check_bounds(self, "log.")
        canonical_hooks(self, "log.")
