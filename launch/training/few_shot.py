"""finetune.py with K samples per class, for several K and seeds ─► one table of mean and spread."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.common.tables import aligned, columns_of, write_csv
from launch.training.config import FinetuneConfig
from pipelines.samples.labels import SHOWN, listed

if TYPE_CHECKING:
    import numpy as np

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
    made as large as they are. Runs that are finished are not run again. Of a class with fewer than K samples all are
    taken, and the tables have the size of the smallest class, `fewest_per_class`, beside K.

    Args:
        config: `few_shot` has the K, `seeds` the number of seeds.
        corpus: the training datasets.
        world: all ranks.
        train: one finetuning; False after an agreed stop.

    Returns:
        False after an agreed stop. A dry run ends with the first run.

    Raises:
        ValueError: validation is off, or `train` refuses to start.
    """
    if config.val.every is None:
        raise ValueError("val.every is null, but few-shot runs are compared by their validation: give --val.every 0")
    folder, runs = Path(config.run.dir), []
    for shots in config.few_shot:
        for seed in range(config.train.seed, config.train.seed + config.seeds):
            run_config, rows = _config_of_run(config, corpus, world, shots=shots, seed=seed)
            per_class = {"samples": len(rows), "fewest_per_class": min(_class_sizes(corpus, rows).values(), default=0)}
            if world.is_first:
                print(f"\n{shots} per class, seed {seed}: {run_config.run.dir}", flush=True)
                if short := small_classes(corpus, rows, shots=shots):
                    print(f"warning: {short}", flush=True)
            if not train(run_config, corpus, world):
                return False
            if config.dry_run:  # the others differ in K and seed
                return True
            runs.append({"shots": shots, "seed": seed, **per_class} | _scores(Path(run_config.run.dir)))
    if world.is_first:
        table = columns_of([_statistics([run for run in runs if run["shots"] == shots]) for shots in config.few_shot])
        write_csv(folder / RUNS, columns_of(runs))
        write_csv(folder / TABLE, table)
        print("", *aligned(table), folder / TABLE, sep="\n", flush=True)
    return True


def _config_of_run(
    config: FinetuneConfig, corpus: "Corpus", world: "World", *, shots: int, seed: int
) -> "tuple[FinetuneConfig, np.ndarray]":
    """Return the config of one run, and the rows that it trains on."""
    from pipelines.samples.selection import select_rows

    select = replace(config.data.select, per_class=shots, seed=seed)
    rows = select_rows(corpus, select, rows=corpus.readable_rows)
    parts = world.ranks.size * config.train.accumulation
    batch = min(config.train.global_batch, len(rows) // parts * parts)
    run_config = replace(
        config,
        few_shot=(),
        data=replace(config.data, select=select),
        val=replace(config.val, every=0),
        train=replace(config.train, seed=seed, global_batch=batch or config.train.global_batch),
        run=config.run.below(f"shots-{shots:04d}-seed-{seed}"),
    )
    return run_config, rows


def small_classes(corpus: "Corpus", rows: "np.ndarray", *, shots: int) -> str:
    """Return a message that names the classes with fewer than K samples among the chosen rows; "" if there are none."""
    names = corpus.label_names
    sizes = {number: size for number, size in _class_sizes(corpus, rows).items() if size < shots}
    shown = [
        f"{names[number] if number < len(names) else number} ({size:,})" for number, size in list(sizes.items())[:SHOWN]
    ]
    if not sizes:
        return ""
    return f"{len(sizes):,} classes have fewer than {shots:,} samples, and all of theirs: {listed(shown, len(sizes))}"


def _class_sizes(corpus: "Corpus", rows: "np.ndarray") -> dict[int, int]:
    """Return the number of samples of each class among the rows, by its number."""
    return dict(sorted(Counter(label for row in rows.tolist() for label in corpus.labels_of(row)).items()))


def _scores(run: Path) -> dict[str, float]:
    from mae3d.tracking.run_dir import read_metrics

    last = read_metrics(run)[-1]
    return {name.removeprefix("val_"): value for name, value in last.items() if name.startswith("val_")}


def _statistics(runs: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Return mean and standard deviation of each score, over the runs of one K."""
    from mae3d.analysis.scores import mean_and_deviation

    row: dict[str, float | None] = {"shots": runs[0]["shots"], "runs": len(runs)}
    row["fewest_per_class"] = min(run["fewest_per_class"] for run in runs)
    for name in sorted(runs[0].keys() - {"shots", "seed", "samples", "fewest_per_class"}):
        row[f"{name}_mean"], row[f"{name}_std"] = mean_and_deviation([run[name] for run in runs])
    return row
