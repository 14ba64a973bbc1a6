"""Pretrain a small masked autoencoder in a plain torch loop; stopped after any step, it goes on exactly.

    python examples/torch_loop.py out/demo/shards --steps 20
    python examples/torch_loop.py out/demo/shards --steps 10 --state out/loop.pt
    python examples/torch_loop.py out/demo/shards --steps 20 --state out/loop.pt    # steps 11 to 20, the same losses

The loader's state is a position: the order, the windows, the crops and the masks are functions of the seed and of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import mae3d
from pipelines import Batch, Loader

FRAMES, SIZE, BATCH, SEED = 8, 32, 4, 0


def small_model() -> mae3d.MAE:
    """Return a model that a CPU trains: at 224 pixels take a preset as it is, such as mae_vit_base_patch16."""
    torch.manual_seed(SEED)
    sizes = {"img_size": SIZE, "patch_size": 8, "num_frames": FRAMES, "embed_dim": 96, "depth": 2, "num_heads": 3}
    decoder = {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 3}
    return mae3d.MAE(mae3d.MAEConfig(preset="mae_vit_tiny_patch16", mask_ratio=0.75, **sizes, **decoder))


def loss_of(model: mae3d.MAE, batch: Batch) -> torch.Tensor:
    """Return the loss of a batch (B, R, T, H, W, C), each view under its own mask."""
    views = batch.clips.shape[1]
    tokens = model.config.num_tokens
    noise = mae3d.mask_noise(seed=SEED, epoch=batch.epoch, positions=batch.positions, views=views, tokens=tokens)
    return model(batch.clips.flatten(0, 1), noise.to(batch.clips.device)).loss


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train up to a step, print its losses, and return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", help="datasets of `python -m preprocess build`")
    parser.add_argument("--steps", type=int, default=20, help="train up to this step (%(default)s)")
    parser.add_argument("--state", type=Path, help="file to go on from, if it is there, and to save to at the end")
    options = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = small_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first, losses = 0, []
    settings = {"num_frames": FRAMES, "size": SIZE, "global_batch": BATCH, "seed": SEED, "device": device}
    with Loader.open(options.shards, **settings, sampling_rate=1, repeat_aug=2) as loader:
        if options.state and options.state.exists():
            state = torch.load(options.state, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            loader.load_state_dict(state["loader"])
            first = state["step"]
        for step in range(first, options.steps):
            loss = loss_of(model, next(loader))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            print(f"step {step + 1}, epoch {loader.epoch:.2f}: loss {losses[-1]:.7f}")
        if options.state:
            parts = {"model": model, "optimizer": optimizer, "loader": loader}
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"step": options.steps}, options.state)
    return losses


if __name__ == "__main__":
    main()
