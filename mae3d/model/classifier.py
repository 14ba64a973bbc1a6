"""The classifier encodes every token of a clip, pools and normalises them, and computes logits.

    clip ─► tokens ─► features ─► logits
    model = Classifier(ClassifierConfig(preset="mae_vit_base_patch16", num_classes=174, drop_path=0.1))
    load_encoder(model, open_encoder("RUN"))               # without it: from scratch
    torch.manual_seed(drop_seed(0, step=step, rank=rank))  # of dropout and drop path
    logits = model(clip_uint8)                             # (B, classes)
    loss = classification_loss(logits, targets, multi_label=model.config.multi_label)

Names in the state dict: `encoder.*` as in the MAE (`encoder.vit.*` of an image ViT, `config.backbone`), and
`head.weight` (classes, D), `head.bias`. Dropout and drop
path draw from torch's generators, which the trainer seeds anew for each micro-batch.
"""

import numpy as np
from torch import Tensor, nn

from mae3d.io.random import Stream, philox_key
from mae3d.model.config import ClassifierConfig
from mae3d.model.encoder import Encoder
from mae3d.model.frames import FrameEncoder


class Classifier(nn.Module):
    """facebookresearch/mae_st's classifier, with the encoder's norm after the pooling; or an image ViT's, by frames."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder | FrameEncoder
        if config.backbone:
            self.encoder = FrameEncoder(config, drop_path=config.drop_path, pooling=config.pooling)
        else:
            self.encoder = Encoder(config, drop_path=config.drop_path)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=config.head_std)
        nn.init.zeros_(self.head.bias)

    def features(self, clip: Tensor) -> Tensor:
        """Compute the head's input, (B, D) pooled and normalised, for a clip as in `forward`."""
        if isinstance(self.encoder, FrameEncoder):
            of_frames_BD: Tensor = self.encoder(clip)
            return of_frames_BD
        tokens_BND = self.encoder(clip)
        if self.config.pooling == "cls":
            pooled_BD = tokens_BND[:, 0]
        else:
            # Upstream leaves the first token out even if it is no class token; weights finetuned there expect it.
            pooled_BD = tokens_BND[:, 1:].mean(dim=1)
        features_BD: Tensor = self.encoder.norm(pooled_BD)
        return features_BD

    def forward(self, clip: Tensor) -> Tensor:
        """Compute the logits of clips.

        Args:
            clip: uint8 or uint16 (B, T, H, W, C), or normalised float (B, C, T, H, W).

        Returns:
            (B, classes) logits, in the model's dtype.

        Raises:
            ValueError: The clip does not fit the config.
        """
        logits: Tensor = self.head(self.dropout(self.features(clip)))
        return logits

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Recompute the activations of each block in the backward pass: less memory, a third more work."""
        self.encoder.set_grad_checkpointing(enabled)


def classification_loss(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Compute the loss of a batch, a float32 scalar.

    Args:
        logits: (B, classes).
        targets: float (B, classes) of mae3d.training.mixing: shares that sum to 1, or with `multi_label` one
            independent probability per class.
        multi_label: Whether the loss is binary cross-entropy, averaged over classes and clips; else it is
            cross-entropy with soft targets, averaged over clips.

    Raises:
        ValueError: The shapes differ; class numbers go through `mixing.soft_targets` first.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"targets {tuple(targets.shape)} do not fit logits {tuple(logits.shape)}: turn labels into targets with "
            "mixing.soft_targets"
        )
    loss = nn.functional.binary_cross_entropy_with_logits if multi_label else nn.functional.cross_entropy
    return loss(logits.float(), targets.float())


def view_scores(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Turn the logits of each sample's views into the sample's scores, summed over views as upstream does.

    Args:
        logits: (B, V, C) of any dtype.
        multi_label: Whether probabilities are sigmoids; else they are a softmax.

    Returns:
        (B, C) float32: sums of probabilities, V of them.
    """
    logits = logits.float()
    return (logits.sigmoid() if multi_label else logits.softmax(dim=-1)).sum(dim=1)


def drop_seed(seed: int, *, step: int, rank: int, micro: int = 0) -> int:
    """Compute the seed of torch's generators for a forward pass in training; a resumed run then drops the same.

    Args:
        seed: The run's seed, 0 or more.
        step: The optimizer step, 0 or more.
        rank: The rank of the process.
        micro: The micro-batch within the step, if gradients are accumulated.

    Returns:
        63 bits, a pure function of the arguments (counter-based: Philox 4x64).
    """
    bits = np.random.Philox(key=philox_key(seed, Stream.DROP), counter=[0, micro, rank, step])
    return int(bits.random_raw()) >> 1
