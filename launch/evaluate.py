"""A trained model and shards ─► its scores: one row per sample in a Parquet file, tables, plots and a summary.

    mae3d evaluate --run FINE --data.shards VAL --out out/test
    mae3d launch -n 8 evaluate --run FINE --data.shards VAL --out out/test     # the same, on 8 GPUs
    mae3d evaluate --task reconstruction --run RUN --data.shards VAL --mask prospective tube --out out/losses

A classifier's predictions, or a masked autoencoder's losses under chosen masks. Each sample counts once on any number
of ranks; starting the same command again goes on where it was killed. torchrun and srun start it as well.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import WAIT_MINUTES, joined, parse, set_threads
from launch.common.sole_writer import sole_writer
from launch.inference.settings import EvaluateConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0; SystemExit 2: usage or input, 3: I/O, 1: too much damage."""
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(EvaluateConfig, arguments, prog="mae3d evaluate", description=str(__doc__))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_threads()
    from launch.inference.classification import classify
    from launch.inference.reconstruction_loss import predict

    with (
        joined(config, where=config.out, timeout_minutes=WAIT_MINUTES) as world,
        sole_writer(Path(config.out), world, job="evaluation", what=config.task),
    ):
        report = (classify if config.task == "classification" else predict)(config, world)
        if world.is_first:
            print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
