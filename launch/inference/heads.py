"""A head of the user's over a frozen encoder's features ─► columns that join the table of a command.

head = open_head(config.head, frozen.encoder, layer=-1, precision="fp32")      # None without one
columns |= head.columns(batch.clips, taken=columns)      # (B, K, T, H, W, C) uint8

It sees one clip at a time, so that the table is the same on any number of ranks. docs/hooks.md has the protocol.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import torch

from mae3d.analysis.exact import each_clip
from mae3d.analysis.features import Pool, check_pool, embed, encoder_of
from mae3d.io.hooks import code_of, load

Precision = Literal["fp32", "bf16"]
# Columns that tables have before or behind those of a model.
KEYS = frozenset(
    {
        *("key", "name", "labels", "first_frame", "start_s", "end_s", "status"),
        *("novelty", "change", "label", "true_label"),
    }
)


class Head:
    """A function of features, or an object that is called like one; its attribute `pool` chooses the features."""

    def __init__(
        self, text: str, model: Any, device: torch.device, *, layer: int = -1, precision: Precision = "fp32"
    ) -> None:
        """Load it.

        Args:
            text: The hook.
            model: A model or encoder, moved to the device.
            device: Where features are computed.
            layer: Number of blocks that are run, as in `mae3d.embed`.
            precision: As in `Embedder`.

        Raises:
            ValueError: There is no such head, or the encoder has not the features that it needs.
        """
        self._hook = load(text, "heads")
        self._pool: Pool = getattr(self._hook.target, "pool", "mean")
        if self._pool not in get_args(Pool):
            raise self._hook.refuse(f"has pool={self._pool!r}: give {', '.join(get_args(Pool))}")
        self._encoder = encoder_of(model).to(device).eval()
        check_pool(self._encoder, self._pool)
        self._device, self._layer, self._bf16 = device, layer, precision == "bf16"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the columns depend on beside weights and clips."""
        text = self._hook.text
        return {"head": text, "head_code": code_of(text), "head_features": [self._pool, self._layer]}

    def columns(self, clips: torch.Tensor, *, taken: Collection[str]) -> dict[str, Any]:
        """Return the columns of a batch.

        Args:
            clips: uint8 (B, K, T, H, W, 3); of a sample's K clips numbers are averaged.
            taken: Names of the columns that the table has already.

        Raises:
            ValueError: It returns something else than values by name, or a name that is taken.
            HookError: It failed.
        """
        features = each_clip(self._features, clips.flatten(0, 1).to(self._device, non_blocking=True))
        with torch.no_grad():
            values = [self._values(one) for one in features.split(1)]
        columns: dict[str, Any] = {}
        for name in values[0]:
            if name in taken or name in KEYS:
                raise self._hook.refuse(f"has a column {name!r}, which the table has already: give it another name")
            if any(one.keys() != values[0].keys() for one in values):
                raise self._hook.refuse("returned other columns for another clip")
            columns[name] = self._column(np.concatenate([one[name] for one in values]), len(clips), name)
        return columns

    def _features(self, clips: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            return embed(self._encoder, clips, layer=self._layer, pool=self._pool)

    def _values(self, features: torch.Tensor) -> dict[str, np.ndarray]:
        returned = self._hook(features)
        if not isinstance(returned, Mapping) or not all(isinstance(name, str) and name for name in returned):
            raise self._hook.refuse(f"returned a {type(returned).__name__}: it must return values by column name")
        values = {}
        for name, value in returned.items():
            array = value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            if array.ndim not in (1, 2) or len(array) != 1 or array.dtype.kind not in "fiubU":
                raise self._hook.refuse(
                    f"returned {name} of {array.dtype} {array.shape} for one clip: give (1,) or (1, n) of numbers, or "
                    "(1,) of texts"
                )
            values[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return values

    def _column(self, values: np.ndarray, batch: int, name: str) -> Any:
        if len(values) > batch:
            if values.dtype.kind not in "fiu":
                raise self._hook.refuse(f"has {name} of {values.dtype}, which cannot be averaged over clips")
            values = values.reshape(batch, -1, *values.shape[1:]).mean(axis=1).astype(np.float32)
        if values.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        return pa.array(values)


def open_head(
    text: str, model: Any, device: torch.device, *, layer: int = -1, precision: Precision = "fp32"
) -> Head | None:
    """Return the head that a command line names, as `Head` does; None without one."""
    return Head(text, model, device, layer=layer, precision=precision) if text else None
