"""Pretrain a small masked autoencoder with Accelerate, on one process or many, and go on exactly.

    python examples/accelerate_loop.py out/demo/shards --steps 20
    accelerate launch --num_processes 2 --cpu examples/accelerate_loop.py out/demo/shards --steps 20
    python examples/accelerate_loop.py out/demo/shards --steps 10 --state out/accelerate
    python examples/accelerate_loop.py out/demo/shards --steps 20 --state out/accelerate     # goes on at step 11

Needs `pip install accelerate`. The loader is not given to `prepare`, which would deal its batches out once more: it
knows its rank, and reads its own share of each global batch. save_state and load_state take its position along.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch_loop import BATCH, FRAMES, SEED, SIZE, loss_of, small_model

from pipelines import Loader


class Progress:
    """The number of steps done, which goes into the checkpoint."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        """Return it."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set it."""
        self.step = state["step"]


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train up to a step, print its losses, and return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", help="datasets of `python -m preprocess build`")
    parser.add_argument("--steps", type=int, default=20, help="train up to this step (%(default)s)")
    parser.add_argument("--state", type=Path, help="folder to go on from, if it is there, and to save to at the end")
    options = parser.parse_args(argv)

    accelerator = Accelerator()
    model = small_model()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    losses, progress = [], Progress()
    with Loader.open(
        options.shards,
        num_frames=FRAMES,
        size=SIZE,
        global_batch=BATCH,
        seed=SEED,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        local_world=accelerator.num_processes,
        device=accelerator.device,
        sampling_rate=1,
        repeat_aug=2,
    ) as loader:
        accelerator.register_for_checkpointing(loader, progress)
        if options.state and options.state.exists():
            accelerator.load_state(str(options.state))
        while progress.step < options.steps:
            loss = loss_of(model, next(loader))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            progress.step += 1
            losses.append(accelerator.reduce(loss.detach(), "mean").item())
            accelerator.print(f"step {progress.step}: loss {losses[-1]:.7f}")
        if options.state:
            accelerator.save_state(str(options.state))
    accelerator.end_training()
    return losses


if __name__ == "__main__":
    main()
