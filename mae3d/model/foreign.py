"""A module of the user's stands in for the video encoder: clips go in as they are, tokens or one vector come out.

    encoder = open_hook_encoder("my_models:make(width=64)", num_frames=16, img_size=224)
    features = encoder(clip)                                 # (B, D)
    tokens = encoder.features(clip, blocks=1, pool="tokens")     # (B, t*h*w, D), if the module returns tokens

The module gets uint8 (B, T, H, W, 3), normalises it itself, and returns floats (B, t, h, w, D) or (B, D). It counts as
one block: it has no layers between. Parameters lie under `module.`. docs/hooks.md has the protocol.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mae3d.io.hooks import Hook, load, parse, require_trust
from mae3d.io.shapes import Size, sides
from mae3d.model.config import ClassifierConfig, FrameConfig
from mae3d.model.frames import FrameEncoder
from mae3d.model.patches import frames_last

SIZE = 224  # pixels of a frame, unless the user says otherwise


class HookEncoder(FrameEncoder):
    """A module that the user's function makes; it is taken wherever a FrameEncoder is."""

    def __init__(
        self,
        config: FrameConfig | ClassifierConfig,
        *,
        drop_path: float = 0.0,
        pooling: Literal["mean", "cls"] = "mean",
    ) -> None:
        """Let the hook that `config.backbone` names make the module.

        Args:
            config: Sizes as `open_hook_encoder` finds them.
            drop_path: Without effect: the module has its own.
            pooling: `mean`; there is no class token.

        Raises:
            ValueError: The hook is not installed, only a model file names it, or it makes something else.
            HookError: It failed.
        """
        nn.Module.__init__(self)
        require_trust(config.backbone)
        self.config = config
        self.hook = load(config.backbone, "encoders")
        self.module = _made(self.hook, config.num_frames, config.img_size)

    def forward(self, clip: Tensor) -> Tensor:
        """Compute pooled features, (B, D), for a clip as in `features`."""
        return self.features(clip, blocks=1, pool="mean")

    def features(self, clip: Tensor, *, blocks: int, pool: Literal["mean", "cls", "tokens"]) -> Tensor:
        """Compute features, (B, D), or (B, t*h*w, D) for `tokens`.

        Args:
            clip: uint8 (B, T, H, W, 3).
            blocks: 1.
            pool: `mean` over the tokens, or `tokens`.

        Raises:
            ValueError: The clip, the layer or the pooling does not fit the module.
            HookError: The module failed.
        """
        config = self.config
        if blocks != 1:
            raise ValueError(f"{config.backbone} is an encoder of yours, which has its last layer alone: give layer -1")
        if clip.dtype != torch.uint8:
            raise ValueError(f"{config.backbone} is an encoder of yours, which takes clips of uint8, not {clip.dtype}")
        x = self.hook.guarded(self.module, frames_last(clip))
        _check(self.hook, x, len(clip))
        if x.ndim == 2:
            if pool == "tokens":
                raise self.hook.refuse("returns (B, D), one vector a clip: for tokens it must return (B, t, h, w, D)")
            pooled: Tensor = x
            return pooled
        tokens: Tensor = x.flatten(1, 3)
        return tokens if pool == "tokens" else tokens.mean(dim=1)

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Let the module recompute its activations, if it has a method of this name."""
        if callable(switch := getattr(self.module, "set_grad_checkpointing", None)):
            switch(enabled)

    def resized(self, *, img_size: Any, num_frames: int) -> "HookEncoder":
        """Return an encoder of the same weights for clips of another size, which the hook makes anew.

        Raises:
            ValueError: It makes a module of other weights for that size.
        """
        other = open_hook_encoder(self.config.backbone, num_frames=num_frames, img_size=img_size)
        try:
            other.module.load_state_dict(self.module.state_dict())
        except RuntimeError as error:
            problem = f"has other weights for {num_frames} frames of {img_size} pixels: {error}"
            raise self.hook.refuse(problem) from error
        return other

    def untrained(self) -> "HookEncoder":
        """Return the encoder with random weights, drawn from torch's generator as its modules' constructors draw."""
        config = self.config
        other = open_hook_encoder(config.backbone, num_frames=config.num_frames, img_size=config.img_size)
        for module in other.module.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            else:
                for parameter in module.parameters(recurse=False):
                    nn.init.normal_(parameter, std=0.02)
        return other


def open_hook_encoder(text: str, *, num_frames: int = 16, img_size: Size | None = None, seed: int = 0) -> HookEncoder:
    """Let a hook make an encoder, on the CPU, in evaluation mode, and find its sizes from a black clip.

    Args:
        text: `module:name` or `module:name(key=value)`.
        num_frames: Frames of a clip.
        img_size: Height and width of a frame; None is 224.
        seed: Of what it draws from torch's generator.

    Raises:
        ValueError: There is no such hook, or it makes something else.
        HookError: It failed.
    """
    hook = load(text, "encoders")
    size = img_size or SIZE
    height, width = sides(size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = _made(hook, num_frames, size).eval()
        x = hook.guarded(module, torch.zeros(1, num_frames, height, width, 3, dtype=torch.uint8))
        _check(hook, x, 1)
        t, h, w = x.shape[1:4] if x.ndim == 5 else (1, 1, 1)
        if num_frames % t or height % h or width % w or height // h != width // w:
            raise hook.refuse(
                f"returned {t} x {h} x {w} tokens of {num_frames} frames of {height} x {width} pixels: tokens are of "
                "whole frames and of squares of whole pixels"
            )
        heads = x.shape[-1] // 64 if x.shape[-1] % 64 == 0 else 1  # of an attentive probe over the tokens
        config = FrameConfig(
            backbone=str(parse(text)),
            num_frames=num_frames,
            img_size=size,
            patch_size=height // h,
            t_patch_size=num_frames // t,
            embed_dim=x.shape[-1],
            depth=1,
            num_heads=heads,
            cls_embed=False,
        )
        torch.manual_seed(seed)
        return HookEncoder(config).eval()


def _made(hook: Hook, num_frames: int, img_size: Size) -> nn.Module:
    module = hook(num_frames, img_size)
    if not isinstance(module, nn.Module):
        raise hook.refuse(f"made a {type(module).__name__}: it must make a torch.nn.Module")
    return module


def _check(hook: Hook, x: Any, batch: int) -> None:
    fits = isinstance(x, Tensor) and x.ndim in (2, 5) and len(x) == batch and x.is_floating_point()
    if not fits:
        given = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise hook.refuse(f"returned {given} for {batch} clips: its module returns floats (B, t, h, w, D) or (B, D)")
