"""A Saver without DeepSpeed: the engine that it saves, and what the checkpoint that it wrote holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mae3d.checkpoints import format as checkpoint
from mae3d.checkpoints.format import Slice, SliceReader
from mae3d.distributed import World
from mae3d.meeting import RankInfo
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.tracking.run_dir import Run
from mae3d.training.saver import Saver
from mae3d.weights.files import load_model

CONFIG = MAEConfig(
    preset="mae_vit_tiny_patch16", img_size=16, num_frames=2, patch_size=8, embed_dim=12, depth=1, num_heads=2,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.5,
)  # fmt: skip
NORM = "encoder.norm.weight"


class StandIn:
    """What a Saver asks of an Engine, without DeepSpeed: every value of the weights and moments is `value`."""

    kind = "master"

    def __init__(self, *, rank: int = 0, size: int = 1):
        self.shapes = {name: parameter.shape for name, parameter in MAE(CONFIG).named_parameters()}
        self.optimizer_step = 0
        self._rank, self._size = rank, size
        self._tensors = {name: torch.zeros(shape.numel()) for name, shape in self.shapes.items()}

    def set(self, value: float) -> None:
        self.optimizer_step = int(value)
        for tensor in self._tensors.values():
            tensor.fill_(value)

    def slices(self) -> Iterator[Slice]:
        for name, tensor in self._tensors.items():
            first, last = (len(tensor) * part // self._size for part in (self._rank, self._rank + 1))
            if first < last:
                mine = tensor[first:last]
                yield Slice(name, first, last, {"master": mine, "exp_avg": mine, "exp_avg_sq": mine})

    def load(self, reader: SliceReader, *, optimizer_step: int) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(reader.whole(name, "master"))
        self.optimizer_step = optimizer_step


def alone() -> World:
    """A world of this process only, joined."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return World(RankInfo(), torch.device("cpu"), dist.new_group(backend="gloo"))


def make(run: Path, world: World, **options: Any) -> Saver:
    run.mkdir(exist_ok=True)
    return Saver(Run(run), world, model_config=CONFIG, **{"keep_last": 2, "keep_every": 0, **options})


def value_of(run: Path) -> float:
    """What all weights of the newest checkpoint are, after every byte was verified."""
    folder = checkpoint.newest(run)
    assert folder is not None
    reader = SliceReader(folder)
    values = {float(v) for name, _ in MAE(CONFIG).named_parameters() for v in reader.whole(name, "master")}
    assert len(values) == 1
    assert float(load_model(folder).state_dict()[NORM][0]) == min(values)
    assert checkpoint.read_state(folder)["step"] == min(values)
    return min(values)
