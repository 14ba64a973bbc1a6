"""DeepSpeed's settings: the buckets that gradients travel in are computed, and a user's JSON is merged over ours.

    settings = read_settings("ds.json")        # {"zero_optimization": {"reduce_bucket_size": 50000000}}
    config = merged({"zero_optimization": bucket_settings(sizes, stage=1, precision="bf16", ranks=64)}, settings)

Standard library only, for a quick `--help`. A setting that has an option of ours is refused by name, and so is an
unknown key: DeepSpeed passes it over in silence.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# A setting of DeepSpeed's ─► what to give instead, or why it cannot be had.
_REFUSED = {
    "train_batch_size": "give train.global_batch",
    "train_micro_batch_size_per_gpu": "it follows from train.global_batch, train.accumulation and the processes",
    "gradient_accumulation_steps": "give train.accumulation",
    "managed_gradient_accumulation": "give train.accumulation",
    "gradient_clipping": "give optim.clip_grad",
    "optimizer": "give optim.betas, optim.eps, optim.weight_decay and optim.lr",
    "scheduler": "give optim.lr, optim.warmup_epochs and optim.min_lr",
    "bf16": "give train.precision bf16",
    "bfloat16": "give train.precision bf16",
    "fp16": "give train.precision bf16 or autocast",
    "amp": "give train.precision autocast",
    "torch_autocast": "give train.precision autocast",
    "elasticity": "a run goes on with another number of processes by itself, under the same train.global_batch",
    "activation_checkpointing": "give train.grad_checkpointing",
    "compile": "give train.compile",
    "checkpoint": "give run.checkpoint_every and the other settings of run",
    "flops_profiler": "metrics.jsonl has the share of the GPU's peak, mfu",
    "tensorboard": "give log.tensorboard",
    "wandb": "give log.wandb",
    "zero_optimization.stage": "give train.zero_stage",
    "zero_optimization.offload_optimizer": "the optimizer's state stays on the device, where checkpoints read it; "
    "train.zero_stage 2 or 3 on more processes takes less memory",
    "zero_optimization.offload_param": "weights stay on the device; train.zero_stage 3 takes less memory",
    "zero_optimization.cpu_offload": "as zero_optimization.offload_optimizer",
    "zero_optimization.compute_grad_norm": "the norm is needed to clip and to skip a gradient that is not finite",
    "zero_allow_untested_optimizer": "it is set",
}

# settings that may be given
_ALLOWED = {
    "zero_optimization.contiguous_gradients",
    "zero_optimization.reduce_scatter",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.use_multi_rank_bucket_allreduce",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.overlap_comm",
    "zero_optimization.round_robin_gradients",
    "zero_optimization.sub_group_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_model_persistence_threshold",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_module_granularity_threshold",
    "zero_optimization.stage3_use_all_reduce_for_fetch_params",
    "zero_optimization.stage3_allgather_sequential",
    "zero_optimization.enable_sanity_checks",
    "communication_data_type",
    "data_types.grad_accum_dtype",
    "prescale_gradients",
    "gradient_predivide_factor",
    "comms_logger",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "steps_per_print",
}

# Settings that touch speed, memory and logs alone: they may differ between two starts of a run.
FREE_KEYS = (
    "zero_optimization",
    "comms_logger",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "steps_per_print",
)

# The network that buckets are computed for. A slower or quicker one changes the best count by the root of its share.
BANDWIDTH = 50e9  # bytes a second through each rank: 400 Gbit/s
LATENCY = 10e-6  # seconds a collective takes for every doubling of the ranks, however small it is
FEWEST_BUCKETS, MOST_BUCKETS = 12, 48


def latency(ranks: int) -> float:
    """Return the seconds that a collective of a few bytes takes."""
    return LATENCY * math.log2(ranks)


def bucket_count(seconds: float, *, ranks: int) -> int:
    """Return how many buckets gradients travel in that take `seconds` in all.

    A bucket travels while the next gradients are made. The last one does not, and costs seconds / count; each costs
    `latency`, which counts where the network binds: the sum is least at the root of seconds / latency. There are at
    least 12, so that most of a small model's gradients overlap, and at most 48, because each takes DeepSpeed some
    tenths of a millisecond of Python.
    """
    best = math.sqrt(seconds / latency(ranks)) if ranks > 1 else 0.0
    return min(max(round(best), FEWEST_BUCKETS), MOST_BUCKETS)


def bucket_settings(sizes: Sequence[int], *, stage: int, precision: str, ranks: int) -> dict[str, Any]:
    """Return settings of `zero_optimization` by which gradients travel while others are being made.

    DeepSpeed's default is one bucket of 500 million elements, which holds all of ViT-L, so that nothing travels before
    the last gradient is made; and it is allocated whole. Ours holds the largest tensor at least, because a larger one
    bypasses DeepSpeed's two buffers, without which a GPU may use its memory again before it has been sent.

    Losses stay as they are up to two ranks; over more, sums are taken in another order. Nothing changes in which rank
    holds which part of the state.

    Args:
        sizes: elements of every trained tensor.
        stage: ZeRO's; at 0 DeepSpeed has no buckets to set.
        precision: as in TrainConfig.
        ranks: how many there are.
    """
    if not stage:
        return {}
    total, itemsize = sum(sizes), 4 if precision == "fp32" else 2
    passes = 1 if stage == 3 else 2  # scattered, or all-reduced by a ring
    seconds = passes * total * itemsize * (ranks - 1) / ranks / BANDWIDTH
    bucket = max(-(-total // bucket_count(seconds, ranks=ranks)), *sizes)
    settings = {"reduce_bucket_size": bucket, "overlap_comm": ranks > 1}
    if stage == 3:
        settings["stage3_prefetch_bucket_size"] = bucket  # weights are gathered ahead of their use in equal pieces
        if precision != "autocast":  # which gathers in bf16: all losses would change
            # Tensors below DeepSpeed's threshold of 100,000 would be gathered after the step, one by one.
            settings["stage3_param_persistence_threshold"] = 0
    return settings


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read and check a file.

    Raises:
        ValueError: there is no such file, it is no JSON object (the message names the line), or a setting in it cannot
            be given here.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"train.deepspeed={path}: cannot be read ({reason}); give a JSON file") from None
    try:
        settings = json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f'{path}: DeepSpeed\'s settings are an object, like {{"zero_optimization": {{...}}}}')
    check_settings(settings, where=str(path))
    return settings


def check_settings(settings: Mapping[str, Any], *, where: str) -> None:
    """Refuse settings that cannot be given.

    Raises:
        ValueError: names every such setting, with the option to use instead where there is one.
    """
    refused = [
        f"{name}: {_REFUSED.get(name, 'not a setting that can be given here')}"
        for name in _leaves(settings)
        if name not in _ALLOWED
    ]
    if refused:
        raise ValueError(f"{where}: {'; '.join(refused)}. What can be given: {', '.join(sorted(_ALLOWED))}")


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; a value of `above` wins."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all settings, down to those in the tables above."""
    names = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        known = name in _REFUSED or name in _ALLOWED
        names += _leaves(value, f"{name}.") if isinstance(value, Mapping) and value and not known else [name]
    return names


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"given twice: {', '.join(doubles)}")
    return dict(pairs)
