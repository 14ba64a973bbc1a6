"""Pretrain a small masked autoencoder with Lightning; its checkpoint has the loader's position, and goes on exactly.

    python examples/lightning_loop.py out/demo/shards --steps 20
    python examples/lightning_loop.py out/demo/shards --steps 10 --checkpoint out/lightning.ckpt
    python examples/lightning_loop.py out/demo/shards --steps 20 --checkpoint out/lightning.ckpt    # goes on at step 11

Needs `pip install lightning`. Lightning calls state_dict and load_state_dict of the loader by itself, moves a batch
by `Batch.to`, and takes len(loader) batches for an epoch. Each rank reads its own share: no sampler, no DataLoader.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from torch_loop import BATCH, FRAMES, SEED, SIZE, loss_of, small_model

from pipelines import Batch, Loader


class Pretraining(lightning.LightningModule):
    """The model, its loss and its data."""

    def __init__(self, shards: Sequence[str]) -> None:
        super().__init__()
        self.shards = shards
        self.model = small_model()

    def train_dataloader(self) -> Loader:
        """Open this rank's loader; with accumulate_grad_batches=N give accumulation=N here."""
        trainer = self.trainer
        self.loader = Loader.open(
            self.shards,
            num_frames=FRAMES,
            size=SIZE,
            global_batch=BATCH,
            seed=SEED,
            rank=trainer.global_rank,
            world=trainer.world_size,
            local_world=trainer.num_devices,
            device=self.device,
            sampling_rate=1,
            repeat_aug=2,
        )
        return self.loader

    def on_fit_end(self) -> None:
        """Stop reading; the loader keeps its position."""
        self.loader.close()

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        loss = loss_of(self.model, batch)
        print(f"step {self.trainer.global_step + 1}: loss {loss.item():.7f}", flush=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(argv: Sequence[str] | None = None) -> None:
    """Train up to a step and print its losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", help="datasets of `python -m preprocess build`")
    parser.add_argument("--steps", type=int, default=20, help="train up to this step (%(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="processes on this machine (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="file to go on from, if it is there, and to save to at the end")
    options = parser.parse_args(argv)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_steps=options.steps, max_epochs=-1, devices=options.devices, **quiet)
    old = options.checkpoint if options.checkpoint and options.checkpoint.exists() else None
    trainer.fit(Pretraining(options.shards), ckpt_path=old)
    if options.checkpoint:
        trainer.save_checkpoint(options.checkpoint)


if __name__ == "__main__":
    main()
