"""Pretraining is submitted to SLURM from Python by submitit (pip install submitit), and queues itself again.

    python examples/submitit_pretrain.py --nodes 2 --gpus 8 --run.dir RUN --config k400_vit_large --data.shards SHARDS

from the checkout, in the environment that trains, with RUN and SHARDS on storage that all nodes see. Logs lie in
out/submitit/JOB. `touch RUN/STOP` ends it for good after a checkpoint.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # by default USR2, which training does not listen to; read on import

import submitit

STOPPED = 75  # the exit code after an agreed stop


class Pretraining:
    """One rank: submitit calls it on every task of the job, which finds its rank in srun's variables."""

    def __call__(self, run: str, *arguments: str) -> int:
        """Train to the end; after an agreed stop, queue the job again instead of returning."""
        from launch.pretrain import main

        code = main(["--run.dir", run, *arguments])
        if code == STOPPED:
            environment = submitit.JobEnvironment()
            if environment.global_rank == 0 and not (Path(run) / "STOP").exists():
                subprocess.run(["scontrol", "requeue", environment.job_id], check=True)
            sys.exit(STOPPED)  # a result would tell submitit that the job is over
        return code

    def checkpoint(self, *arguments: str) -> submitit.helpers.DelayedSubmission:
        """Return what the next start calls, for a signal that comes before training has begun: the same."""
        return submitit.helpers.DelayedSubmission(self, *arguments)


def main() -> None:
    """Submit a job and print its id, and where its output goes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="of each node, with a process each")
    parser.add_argument("--cpus", type=int, default=12, help="of each process")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--run.dir", dest="run", required=True)
    options, arguments = parser.parse_known_args()
    executor = submitit.AutoExecutor(folder="out/submitit/%j", cluster="slurm")
    executor.update_parameters(
        name="mae3d",
        nodes=options.nodes,
        tasks_per_node=options.gpus,
        gpus_per_node=options.gpus,
        cpus_per_task=options.cpus,
        timeout_min=round(60 * options.hours),
        slurm_signal_delay_s=300,  # USR1 comes that long before the time limit
        slurm_setup=["export SUBMITIT_PREEMPT_SIGNAL=USR1"],
        # srun does not take --cpus-per-task from the batch job, and waits for the others when a process dies.
        slurm_srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={options.cpus}", "--export=ALL"],
        slurm_additional_parameters={"requeue": True},
    )
    job = executor.submit(Pretraining(), options.run, *arguments)
    print(f"job {job.job_id}: {job.paths.stdout}")


if __name__ == "__main__":
    main()
