"""Checkpoints that other trainers write are opened: Lightning's, with an averaged model and hyperparameters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mae3d.weights.files import open_encoder
from mae3d.weights.inflate import Inflate

pytestmark = pytest.mark.peers
lightning = pytest.importorskip("lightning", reason="lightning is not installed")


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders and loggers
def test_lightnings_checkpoint_with_an_average_and_hyperparameters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, out: Path, lr: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.compile(timm.create_model("test_vit", num_classes=3, img_size=32), backend="eager")

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch[0]).square().mean()
            return loss

        def on_train_batch_end(self, *_: Any) -> None:  # at the end of all the average replaces the model
            self.trainer.save_checkpoint(tmp_path / "last.ckpt")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.1)

    module = Module(out=tmp_path, lr=np.float64(0.1))
    images = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", callbacks=[EMAWeightAveraging()], default_root_dir=tmp_path, **quiet
    )
    trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=2))
    (tmp_path / "config.json").write_text('{"model_type": "vit", "num_attention_heads": 2}')
    whole = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert whole["hyper_parameters"] == {"out": tmp_path, "lr": 0.1}
    for key, state in (("", "state_dict"), ("#current_model_state", "current_model_state")):
        encoder = open_encoder(f"{tmp_path / 'last.ckpt'}{key}", inflate=Inflate("mean", 2, 2))
        assert torch.equal(encoder.norm.bias, whole[state]["net._orig_mod.norm.bias"])
    assert not torch.equal(
        whole["state_dict"]["net._orig_mod.norm.bias"], whole["current_model_state"]["net._orig_mod.norm.bias"]
    )
    assert "state_dict (" in caplog.text
    assert "left out: current_model_state (" in caplog.text
