"""Shards ─► a pretrained masked autoencoder.

    mae3d pretrain --config demo --data.shards out/shards --run.dir out/run --train.steps 50
    mae3d launch -n 8 pretrain --config k400_vit_large --data.shards shards --run.dir runs/a     # on 8 GPUs

Starting the same command again resumes. `deepspeed launch/pretrain.py`, torchrun and srun start it as well.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: use the checkout this file sits in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.common.cli import parse
from launch.training.config import PretrainConfig
from launch.training.trainer import run_task, run_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    import torch

    from launch.training.pretrain_eval import Monitor
    from mae3d.distributed import World
    from mae3d.model.mae import MAE
    from mae3d.tracking.run_dir import Run
    from mae3d.training.engine import Engine
    from pipelines.loader import Loader
    from pipelines.samples.corpus import Corpus
    from pipelines.stream import Batch


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_training(parse(PretrainConfig, arguments, prog="mae3d pretrain", description=str(__doc__)), pretrain)


def pretrain(config: PretrainConfig, corpus: "Corpus", world: "World") -> bool:
    """Train to the end, or to an agreed stop, as `run_task` does; False after a stop."""
    return run_task(PretrainTask, config, corpus, world)


class PretrainTask:
    """A masked autoencoder, its masked loss, and held-out clips."""

    ema = 0.0

    def __init__(self, config: PretrainConfig, corpus: "Corpus", run: "Run", world: "World"):
        """Load a mask of the user's, open and check the initial weights; the arguments are `run_task`'s."""
        from launch.common.init import InitialWeights
        from mae3d.model.masking import use_mask

        use_mask(config.model.mask_type)
        self._config, self._corpus, self._run, self._world = config, corpus, run, world
        self.stored_config, self.model_config = config, config.model
        self.lr_batch = [config.train.global_batch]
        self.model_note = f"{config.model.num_kept} of {config.model.num_tokens} tokens visible"
        self._initial = InitialWeights(
            config.init,
            config.model,
            run,
            world,
            decoder=config.init_decoder,
            weights=config.init_weights,
            inflate=config.init_inflate,
            seed=config.train.seed,
        )
        self.notes = {"init": str(self._initial)}

    def open_evaluation(self, loader: "Loader") -> "Monitor":
        """Open the clips of `--eval.*`."""
        from launch.common.eval_set import EvalSet
        from launch.training.pretrain_eval import Monitor

        train = EvalSet(self._corpus, self._config.data, loader.rows)
        return Monitor(self._config.eval, train, self.model_config, self._run, self._world)

    def build_model(self) -> "MAE":
        """Return the autoencoder with its initial weights."""
        from mae3d.model.mae import MAE

        model = MAE(self.model_config)
        self._initial.load_into(model)
        return model

    def parameter_groups(self, model: "MAE") -> "Iterable[Any]":
        """Return the groups with and without weight decay."""
        from mae3d.training.optim import pretrain_groups

        return pretrain_groups(model, weight_decay=self._config.optim.weight_decay)

    def loss(self) -> "Callable[..., torch.Tensor]":
        """Return `masked_loss`."""
        return masked_loss(self._config)


def masked_loss(config: PretrainConfig) -> "Callable[..., torch.Tensor]":
    """Return the loss of a batch: each view is a clip of its own under a mask of its own, drawn by position."""
    from mae3d.model.masking import mask_noise

    def loss_of(engine: "Engine", batch: "Batch", *, step: int, micro: int) -> "torch.Tensor":
        noise = mask_noise(
            seed=config.train.seed,
            epoch=batch.epoch,
            positions=batch.positions.tolist(),
            views=config.data.repeat_aug,
            tokens=config.model.num_tokens,
        )
        clips = batch.clips.flatten(0, 1)
        if clips.is_cuda:  # from pageable memory the copy would wait for the device
            noise = noise.pin_memory()
        loss: torch.Tensor = engine(clips, noise.to(clips.device, non_blocking=True)).loss
        return loss

    return loss_of


if __name__ == "__main__":
    sys.exit(main())
