"""An image ViT of timm stands in for the video encoder: it sees every frame alone, and the frames are averaged.

    clip ─► frames ─► timm's tokens ─► mean over the patches, or the class token ─► mean over the frames

    config = frame_config("vit_small_patch14_dinov2", num_frames=16, img_size=224)   # sizes, mean and std are timm's
    encoder = FrameEncoder(config)                           # random weights; mae3d.weights.frames opens trained ones
    features = encoder(clip)                                 # (B, D)
    tokens = encoder.features(clip, blocks=12, pool="tokens")     # (B, T*h*w, D), order t, h, w

The order of the frames is invisible to it: a clip and the same clip backwards have equal features. Parameters lie
under `vit.` with timm's own names. Models of timm's classes VisionTransformer (ViT, DeiT III, DINOv2, CLIP, SigLIP)
and Eva (EVA-02, DINOv3) are taken. Shapes: legend in patches.py.
"""

from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mae3d.io.shapes import Size, plain_size, sides, size_text
from mae3d.model.config import ClassifierConfig, FrameConfig
from mae3d.model.patches import frames_last, normalise

TIMM_CLASSES = ("VisionTransformer", "Eva")  # whose parts have the names and the order that are used here


class FrameEncoder(nn.Module):
    """A ViT of timm without its head; `drop_path` is the last block's share of skipped branches, for finetuning."""

    def __init__(
        self,
        config: FrameConfig | ClassifierConfig,
        *,
        drop_path: float = 0.0,
        pooling: Literal["mean", "cls"] = "mean",
        pretrained: bool = False,
    ) -> None:
        """Build the ViT that `config.backbone` names.

        Args:
            config: Sizes as `frame_config` gives them.
            drop_path: As in `Encoder`.
            pooling: Pooling of `forward`.
            pretrained: Whether timm downloads its weights; without it nothing is fetched.

        Raises:
            ValueError: There is no such model, or the config has other sizes than it.
        """
        super().__init__()
        self.config = config
        self.vit = _create(
            config.backbone,
            pretrained=pretrained,
            img_size=sides(config.img_size),
            in_chans=config.in_chans,
            drop_path_rate=drop_path,
        )
        # Norms stay where they are; a pooling by attention, which is part of a head, is dropped.
        self.vit.reset_classifier(0, "token" if pooling == "cls" else "avg")
        self.vit.pool_include_prefix = False
        if differences := _differences(config, _sizes(self.vit)):
            raise ValueError(f"timm's {config.backbone} has {differences}: leave these settings out")

    def forward(self, clip: Tensor) -> Tensor:
        """Compute the pooled features after the last block and norm, (B, D), for a clip as in `features`."""
        frames = self._frames(clip)
        pooled: Tensor = self.vit(frames)  # by the module's own call, in which ZeRO-3 gathers its parameters
        return pooled.unflatten(0, (clip.shape[0], -1)).mean(dim=1)

    def features(self, clip: Tensor, *, blocks: int, pool: Literal["mean", "cls", "tokens"]) -> Tensor:
        """Compute the features after some of the blocks; the model's last norm follows the last block alone.

        Args:
            clip: uint8 or uint16 (B, T, H, W, C), or normalised float (B, C, T, H, W).
            blocks: Number of blocks that are run: 0 to depth.
            pool: `mean` over patches and frames, `cls`, the mean of the frames' class tokens, or `tokens`, each patch's
                token.

        Returns:
            (B, D), or (B, T*h*w, D) for `tokens`, in the model's dtype.

        Raises:
            ValueError: The clip does not fit the config.
        """
        x = self._tokens(self._frames(clip), blocks)
        if pool == "cls":
            x = x[:, 0]
        else:
            x = x[:, self.vit.num_prefix_tokens :]
            x = x.mean(dim=1) if pool == "mean" else x
        if blocks == self.config.depth:
            x = self.vit.fc_norm(x)  # of models that pool first and normalise then
        x = x.unflatten(0, (clip.shape[0], -1))
        return x.flatten(1, 2) if pool == "tokens" else x.mean(dim=1)

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Recompute the activations of each block in the backward pass: less memory, a third more work."""
        self.vit.set_grad_checkpointing(enabled)

    def _tokens(self, frames: Tensor, blocks: int) -> Tensor:
        """Return (B*T, prefix + h*w, D) after so many blocks."""
        vit = self.vit
        if not blocks:
            x = vit._pos_embed(vit.patch_embed(frames))
            embedded: Tensor = vit.norm_pre(x[0] if isinstance(x, tuple) else x)  # Eva's comes with rotations
            return embedded
        has_prefix = vit.num_prefix_tokens > 0
        (x,) = vit.forward_intermediates(
            frames,
            indices=[blocks - 1],
            return_prefix_tokens=has_prefix,
            norm=blocks == self.config.depth,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        tokens: Tensor = torch.cat([x[1], x[0]], dim=1) if has_prefix else x
        return tokens

    def _frames(self, clip: Tensor) -> Tensor:
        """Return (B*T, C, H, W), normalised, in the weights' dtype."""
        config, x_BTHWC = self.config, frames_last(clip, self.config.in_chans)
        if tuple(x_BTHWC.shape[1:4]) != (config.num_frames, config.height, config.width):
            raise ValueError(
                f"clip {tuple(clip.shape)} does not fit: give a clip of {config.num_frames} frames, "
                f"{size_text(config.img_size)} pixels"
            )
        x = normalise(x_BTHWC, mean=config.mean, std=config.std).flatten(0, 1)
        return x.permute(0, 3, 1, 2).to(next(self.vit.parameters()).dtype)


def frame_config(name: str, *, num_frames: int = 16, img_size: Size | None = None) -> FrameConfig:
    """Return the settings of a model of timm for clips; no weights are made.

    Args:
        name: timm's, with or without a tag of pretrained weights, which sets mean and std.
        num_frames: Frames of a clip.
        img_size: Side of a square frame, or height and width: multiples of the patch; None is the model's own.

    Raises:
        ValueError: There is no such model, it is of a class that is not taken, or a size does not fit it.
    """
    with torch.device("meta"):
        vit = _create(name)
    sizes = _sizes(vit)
    default = plain_size(vit.patch_embed.img_size)
    described = vit.pretrained_cfg
    return FrameConfig(
        backbone=name,
        num_frames=num_frames,
        img_size=default if img_size is None else img_size,
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        **sizes,
    )


def _create(name: str, **settings: Any) -> Any:
    """Return timm's model without a head; ValueError if there is none or it is of another class."""
    import timm  # loads torchvision, and with it torch's compiler: over a second

    try:
        vit = timm.create_model(name, num_classes=0, **settings)
    except (RuntimeError, ValueError) as error:
        if "Unknown model" not in str(error):
            raise ValueError(f"timm:{name}: {error}") from error
        near = get_close_matches(name, timm.list_models("*vit*") + timm.list_models("eva*"), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"timm:{name}: timm {timm.__version__} has no such model; {hint}timm.list_models() has all"
        ) from error
    kind = type(vit).__name__
    if kind not in TIMM_CLASSES:
        raise ValueError(
            f"timm:{name} is a {kind}, whose tokens are made in another way: give a model of timm's class "
            f"{' or '.join(TIMM_CLASSES)}, as vit_small_patch14_dinov2"
        )
    return vit


def _sizes(vit: Any) -> dict[str, Any]:
    """Return the settings of an encoder that the ViT has."""
    heads = (module.num_heads for module in vit.blocks[0].modules() if hasattr(module, "num_heads"))
    return {
        "patch_size": vit.patch_embed.patch_size[0],
        "t_patch_size": 1,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": next(heads, 1),
        "cls_embed": vit.cls_token is not None,
    }


def _differences(config: FrameConfig | ClassifierConfig, sizes: dict[str, Any]) -> str:
    """Describe the sizes that a config has otherwise; "" if none."""
    return ", ".join(
        f"{name} {value}, not {getattr(config, name)}"
        for name, value in sizes.items()
        if getattr(config, name) != value
    )
