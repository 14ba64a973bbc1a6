"""Each exact trick of the lean step is taken back, one at a time; the loss stays the same.

python benchmarks/step.py ablation --size base --precision fp32
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.common import Pair, alternate, clock_of, config_of, ratio, saved_bytes
from mae3d.model.blocks import Attention, Blocks
from mae3d.model.encoder import Encoder
from mae3d.model.mae import MAE, Decoder
from mae3d.model.patches import normalise


def ablate(options: argparse.Namespace) -> int:
    """Print, per trick, how much longer a step takes and how much more it keeps without it."""
    for precision in options.precision:
        pair = Pair(config_of(options), batch=options.batch, device=options.device, precision=precision)
        expected = pair.lean_loss().item()
        whole = saved_bytes(pair.lean_loss, pair.lean)
        steps = {"lean": pair.lean_step}
        print(f"{precision}: lean keeps {whole / options.batch / 1e6:.1f} MB a clip", flush=True)
        kept = {}
        for name, without in TAKE_BACK.items():
            with without():
                loss = pair.lean_loss().item()
                kept[name] = (saved_bytes(pair.lean_loss, pair.lean) - whole) / options.batch
            assert abs(loss - expected) < 1e-3 * expected, (name, loss, expected)
            steps[name] = _under(without, pair.lean_step)
        clock, wait = clock_of(options.device)
        seconds = alternate(steps, rounds=options.rounds, clock=clock, wait=wait)
        for name in TAKE_BACK:
            longer = ratio(seconds[name], seconds["lean"])
            print(f"  {name:45} time {longer}, kept {kept[name] / 1e6:+.1f} MB a clip", flush=True)
    return 0


def _under(context: Callable[[], AbstractContextManager[None]], step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with context():
            step()

    return run


@contextmanager
def scores_written_out() -> Iterator[None]:
    """Compute softmax(Q K^T / sqrt(d)) V in place of the fused kernel."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v

    with patch("mae3d.model.blocks.scaled_dot_product_attention", attend):
        yield


@contextmanager
def three_projections() -> Iterator[None]:
    """Compute query, key and value as separate products."""
    from mae3d.model.blocks import scaled_dot_product_attention as attend

    def forward(self: Attention, x: Tensor, asked: int | None = None, rotation: None = None) -> Tensor:
        weights = self.qkv.weight.chunk(3)
        biases = self.qkv.bias.chunk(3) if self.qkv.bias is not None else (None,) * 3
        q, k, v = (
            linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for weight, bias in zip(weights, biases, strict=True)
        )
        q = q if asked is None else q[:, :, -asked:]
        attended: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return attended

    with patch.object(Attention, "forward", forward):
        yield


@contextmanager
def queries_of_their_own() -> Iterator[None]:
    """Compute in the last block queries of the predicted tokens only, keys and values of all: two products.

    Not a trick that we use: it shows that the one product is right."""
    from mae3d.model.blocks import scaled_dot_product_attention as attend

    whole = Attention.forward

    def forward(self: Attention, x: Tensor, asked: int | None = None, rotation: None = None) -> Tensor:
        if asked is None:
            return whole(self, x)
        width = x.shape[-1]
        weights = self.qkv.weight.split([width, 2 * width])
        biases = self.qkv.bias.split([width, 2 * width]) if self.qkv.bias is not None else (None, None)
        q = linear(x[:, -asked:], weights[0], biases[0]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = linear(x, weights[1], biases[1]).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return attended

    with patch.object(Attention, "forward", forward):
        yield


@contextmanager
def every_patch_embedded() -> Iterator[None]:
    """Normalise and embed all tokens and add positions; then take the visible ones."""
    lean = Encoder.embed

    def embed(self: Encoder, clip: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        x = lean(self, clip)
        if ids_keep is None:
            return x
        tokens = _pick(x[:, self.num_prefix :], ids_keep)
        return torch.cat([x[:, : self.num_prefix], tokens], dim=1)

    with patch.object(Encoder, "embed", embed):
        yield


@contextmanager
def last_block_for_all() -> Iterator[None]:
    """Let the decoder's last block attend, project and mix for every token."""
    lean = Blocks.forward

    def forward(self: Blocks, x: Tensor, asked: int | None = None, rotation: None = None) -> Tensor:
        x = lean(self, x)
        return x if asked is None else x[:, -asked:]

    with patch.object(Blocks, "forward", forward):
        yield


@contextmanager
def last_block_and_head_for_all() -> Iterator[None]:
    """Predict every token, as upstream does."""
    lean = Decoder.forward

    def forward(self: Decoder, latent: Tensor, ids_keep: Tensor, ids_masked: Tensor, *, full: bool) -> Tensor:
        return lean(self, latent, ids_keep, ids_masked, full=True)

    with patch.object(Decoder, "forward", forward):
        yield


@contextmanager
def every_patch_a_target() -> Iterator[None]:
    """Make targets of all tokens, of which the hidden ones' are taken."""
    lean = MAE.targets

    def targets(self: MAE, clip: Tensor, ids: Tensor | None) -> Tensor:
        whole = lean(self, clip, None)
        return whole if ids is None else _pick(whole, ids)

    with patch.object(MAE, "targets", targets):
        yield


@contextmanager
def tokens_put_in_order() -> Iterator[None]:
    """Gather all of the decoder's tokens once more."""
    lean = Blocks.forward

    def forward(self: Blocks, x: Tensor, asked: int | None = None, rotation: None = None) -> Tensor:
        if asked is not None:
            x = _pick(x, torch.arange(x.shape[1], device=x.device).expand(len(x), -1))
        return lean(self, x, asked)

    with patch.object(Blocks, "forward", forward):
        yield


@contextmanager
def clips_normalised_whole() -> Iterator[None]:
    """Normalise the entire clip to float32 first, as a loader would hand it out."""
    lean = MAE.forward

    def forward(self: MAE, clip: Tensor, noise: Tensor, full: bool = False) -> object:
        pixels = normalise(clip, mean=self.config.mean, std=self.config.std)
        return lean(self, pixels.permute(0, 4, 1, 2, 3), noise, full)

    with patch.object(MAE, "forward", forward):
        yield


def _pick(x: Tensor, ids: Tensor) -> Tensor:
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


TAKE_BACK = {
    "attention's scores written out": scores_written_out,
    "query, key, value as three products": three_projections,
    "every patch embedded": every_patch_embedded,
    "last decoder block for all tokens": last_block_for_all,
    "last decoder block and head for all tokens": last_block_and_head_for_all,
    "targets of all patches": every_patch_a_target,
    "tokens put back in order": tokens_put_in_order,
    "the whole clip normalised to float first": clips_normalised_whole,
    "(not used: last block's queries apart)": queries_of_their_own,
}
