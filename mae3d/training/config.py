"""The settings of `--optim.*`, `--train.*` and `--run.*`. Standard library only, for a quick `--help`.

TrainConfig(global_batch=512, epochs=100, precision="bf16", zero_stage=1)
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from mae3d.io.bounds import bounded, check_bounds, seeded
from mae3d.io.hooks import canonical_hooks, hooked
from mae3d.io.resume import free, length
from mae3d.training.deepspeed_config import FREE_KEYS, check_settings, read_settings

_LARGEST_RATE = 100.0  # of learning: AdamW's steps are as long as the rate, and weights are some 0.02
_LONGEST_MINUTES = 1e6  # two years: more is a mistake, and beyond what clocks count in


@dataclass(frozen=True)
class OptimConfig:
    """AdamW under a half-cycle cosine with a linear warm-up.

    Attributes:
        blr: base learning rate; the rate is blr x global_batch / 256 (samples, not views: upstream's rule).
        lr: the learning rate itself; wins over blr.
        min_lr: rate at the end.
        warmup_epochs: epochs of linear warm-up from 0.
        warmup_steps: warm-up in steps; wins over warmup_epochs.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of matrices and of the class, mask and position tokens; biases and norms have none.
        clip_grad: greatest norm of the gradient; null for no clipping.
    """

    blr: float = bounded(1.6e-3, least=0, most=_LARGEST_RATE)
    lr: float | None = bounded(None, least=0, most=_LARGEST_RATE)
    min_lr: float = bounded(0.0, least=0, most=_LARGEST_RATE)
    warmup_epochs: float = bounded(5, least=0)
    warmup_steps: int | None = bounded(None, least=0)
    betas: tuple[float, float] = bounded((0.9, 0.95), least=0, below=1)
    eps: float = bounded(1e-8, above=0, most=1)
    weight_decay: float = bounded(0.05, least=0, most=100)
    clip_grad: float | None = bounded(0.02, above=0, hint="null switches clipping off")

    def __post_init__(self) -> None:
        check_bounds(self, "optim.")
        if self.lr is not None and self.min_lr > self.lr:
            raise ValueError(
                f"optim.min_lr={self.min_lr:g} is above optim.lr={self.lr:g}: the rate falls to it; give a smaller one"
            )


@dataclass(frozen=True)
class FinetuneOptimConfig(OptimConfig):
    """AdamW as for pretraining, with a rate that falls from the head to the first block, and averaged weights.

    Attributes:
        blr: base learning rate; the rate is blr x global_batch x repeat_aug / 256 (upstream's rule for finetuning).
        layer_decay: share of the rate from a block to the one below; 1 gives all layers the same rate.
        ema: largest decay a step of a moving average of the fp32 weights, which is then validated and saved as the
            model; 0 for none. It begins at 0.1 and rises with the steps, min(ema, (1 + t) / (10 + t)). VideoMAE's:
            0.9999, for runs of more than 10,000 steps.
    """

    blr: float = 1e-3
    min_lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = 5.0
    layer_decay: float = bounded(0.75, above=0, most=1, hint="1 switches it off")
    ema: float = bounded(0.0, least=0, below=1, hint="0 switches it off")


@dataclass(frozen=True)
class TrainConfig:
    """The length, the batches and the arithmetic of training.

    Attributes:
        global_batch: samples of one optimizer step over all processes, fixed for a run; each is data.repeat_aug clips.
        accumulation: micro-batches of one optimizer step.
        epochs: passes over the data, in loader epochs (the paper's effective epochs are these x repeat_aug).
        steps: optimizer steps; wins over epochs.
        seed: of the weights, the order, the crops and the masks.
        precision: `auto` takes bf16 or fp32, whichever is faster here, and keeps it for the run: bf16 on a GPU that has
            it; on a CPU that has it the winner of a trial of two seconds, else fp32. `bf16` (module in bf16, fp32
            master weights), `autocast` (fp32 weights, matrix products in bf16: more memory, closer to fp32), `fp32`.
        zero_stage: DeepSpeed ZeRO stage: 1 shares the optimizer out over the processes, 2 the gradients too, 3 the
            weights too; 0 (fp32 only) nothing, and over several ranks no gradient travels before all are made.
        grad_checkpointing: recompute activations in the backward pass: less memory, a third more work.
        compile: torch.compile the model.
        max_skipped: steps in a row whose gradient is not finite after which the last checkpoint is restored; the data
            goes on.
        max_rollbacks: how often that is done before the run stops.
        deepspeed: a JSON file of DeepSpeed's settings (bucket sizes and the like), merged over ours and kept in
            config.yaml; what has an option of ours is refused by name.
    """

    global_batch: int = bounded(512, least=1, most=1 << 30)
    accumulation: int = bounded(free(1), least=1, most=1 << 30)
    epochs: float = bounded(length(100), above=0, most=1e9)
    steps: int | None = bounded(length(None), least=1)
    seed: int = seeded()
    precision: Literal["auto", "bf16", "autocast", "fp32"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = free(1)
    grad_checkpointing: bool = free(False)
    compile: bool = False
    max_skipped: int = bounded(free(10), least=1)
    max_rollbacks: int = bounded(free(3), least=0)
    deepspeed: dict[str, Any] | str = free(default_factory=dict, below=FREE_KEYS)

    def __post_init__(self) -> None:
        check_bounds(self, "train.")
        if self.zero_stage == 0 and self.precision not in ("fp32", "auto"):
            # In bf16 DeepSpeed miscounts AdamW's steps there; under autocast it works, and has nothing over stage 1.
            raise ValueError(
                f"train.zero_stage=0 with train.precision={self.precision}: use zero_stage 1, or precision fp32"
            )
        settings = self.deepspeed
        if isinstance(settings, str):
            settings = read_settings(settings) if settings else {}
        check_settings(settings, where="train.deepspeed")
        object.__setattr__(self, "deepspeed", settings)
        accumulates = settings.get("data_types", {}).get("grad_accum_dtype")
        if accumulates and self.zero_stage < 2:
            raise ValueError(
                f"train.deepspeed: data_types.grad_accum_dtype={accumulates} takes another optimizer of DeepSpeed's at "
                f"train.zero_stage={self.zero_stage}, whose state we do not know: use zero_stage 2"
            )


@dataclass(frozen=True)
class RunConfig:
    """The run's folder and how often its state is saved; may change from start to start.

    Attributes:
        dir: the run's folder; starting again with the same folder resumes.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep_last: newest checkpoints that are kept, 2 or more.
        keep_every: checkpoints at multiples of this many steps are kept for good; 0 for none.
        time_limit: minutes from the first step on after which the run stops with a checkpoint, to be started again;
            null for none.
        timeout: minutes that a process waits for the others before it gives up.
        remote: a URL such as s3://bucket/run. Complete checkpoints, config.yaml and metrics.jsonl are mirrored to it in
            the background, and restored from it where dir is empty or older. Credentials come from the environment.
        callbacks: objects of yours that see steps, checkpoints and validations, `module:name` (docs/hooks.md).
        on_hook_change: what a run does whose mask, sampler or augmentation has other code than before: `refuse`, or
            `accept` it from here on.
    """

    dir: str = ""
    checkpoint_every: int = bounded(500, least=1)
    keep_last: int = bounded(2, least=2, hint="the newest may be cut short")
    keep_every: int = bounded(0, least=0)
    time_limit: float | None = bounded(None, above=0, most=_LONGEST_MINUTES, hint="in minutes")
    timeout: float = bounded(30, above=0, most=_LONGEST_MINUTES, hint="in minutes")
    remote: str = ""
    callbacks: tuple[str, ...] = hooked("callbacks", ())
    on_hook_change: Literal["refuse", "accept"] = "refuse"

    def __post_init__(self) -> None:
        check_bounds(self, "run.")
        canonical_hooks(self, "run.")
        address = self.remote.partition("://")[2]
        if "?" in address or ":" in address.rpartition("@")[0]:
            raise ValueError(  # without the value, which is no secret any more once it is printed
                "run.remote holds a password or a token, which config.yaml would keep: give the URL without it, and "
                "credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
            )

    def below(self, name: str) -> "RunConfig":
        """Return the config of a run in a folder below this one, here and behind the URL."""
        remote = f"{self.remote.rstrip('/')}/{name}" if self.remote else ""
        return replace(self, dir=f"{self.dir.rstrip('/')}/{name}", remote=remote)
