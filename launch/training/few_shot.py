"""finetune.py with K samples per class, for several K and seeds ─► one table of mean and spread."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.common.tables import aligned, columns_of, write_csv
from launch.training.config import FinetuneConfig

if TYPE_CHECKING:
    from mae3d.distributed import World
    from pipelines.samples.corpus import Corpus

RUNS, TABLE = "few_shot_runs.csv", "few_shot.csv"


def few_shot(
    config: FinetuneConfig,
    corpus: "Corpus",
    world: "World",
    *,
    train: "Callable[[FinetuneConfig, Corpus, World], bool]",
) -> bool:
    """Train one run per K and seed, in folders below run.dir.

    A seed draws the samples (K of a class are among the K' > K of the same seed), their order and the head. Each run
    validates once, at its end: nothing is chosen by the validation samples. A batch larger than the few samples is
    made as large as they are. Runs that are finished are not run again.

    Args:
        config: `few_shot` has the K, `seeds` the number of seeds.
        corpus: the training datasets.
        world: all ranks.
        train: one finetuning; False after an agreed stop.

    Returns:
        False after an agreed stop.

    Raises:
        ValueError: validation is off, or `train` refuses to start.
    """
    if config.val.every is None:
        raise ValueError("val.every is null, but few-shot runs are compared by their validation: give --val.every 0")
    folder, runs = Path(config.run.dir), []
    for shots in config.few_shot:
        for seed in range(config.train.seed, config.train.seed + config.seeds):
            run_config = _config_of_run(config, corpus, world, shots=shots, seed=seed)
            if world.is_first:
                print(f"\n{shots} per class, seed {seed}: {run_config.run.dir}", flush=True)
            if not train(run_config, corpus, world):
                return False
            runs.append({"shots": shots, "seed": seed} | _scores(Path(run_config.run.dir)))
    if world.is_first:
        table = columns_of([_statistics([run for run in runs if run["shots"] == shots]) for shots in config.few_shot])
        write_csv(folder / RUNS, columns_of(runs))
        write_csv(folder / TABLE, table)
        print("", *aligned(table), folder / TABLE, sep="\n", flush=True)
    return True


def _config_of_run(
    config: FinetuneConfig, corpus: "Corpus", world: "World", *, shots: int, seed: int
) -> FinetuneConfig:
    from pipelines.samples.selection import select_rows

    select = replace(config.data.select, per_class=shots, seed=seed)
    samples = len(select_rows(corpus, select, rows=corpus.readable_rows))
    parts = world.ranks.size * config.train.accumulation
    batch = min(config.train.global_batch, samples // parts * parts)
    return replace(
        config,
        few_shot=(),
        data=replace(config.data, select=select),
        val=replace(config.val, every=0),
        train=replace(config.train, seed=seed, global_batch=batch or config.train.global_batch),
        run=config.run.below(f"shots-{shots:04d}-seed-{seed}"),
    )


def _scores(run: Path) -> dict[str, float]:
    from mae3d.tracking.run_dir import read_metrics

    last = read_metrics(run)[-1]
    return {name.removeprefix("val_"): value for name, value in last.items() if name.startswith("val_")}


def _statistics(runs: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return mean and standard deviation of each score, over the runs of one K."""
    row: dict[str, float | None] = {"shots": runs[0]["shots"], "runs": len(runs)}
    for name in sorted(runs[0].keys() - {"shots", "seed"}):
        values = [run[name] for run in runs]
        row[f"{name}_mean"] = statistics.mean(values)
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return row
