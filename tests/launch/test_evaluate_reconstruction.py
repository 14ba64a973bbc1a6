"""launch/evaluate.py --task reconstruction: losses and PSNR are the model's own, clip by clip and mask by mask."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae3d.analysis.reconstruct import clip_losses
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.model.masking import mask_noise
from mae3d.weights.files import save_model
from tests.support.evaluations import SIZES, clips_of, evaluated_shards, lines, refused, run


@pytest.fixture(scope="module")
def shards(shared: Any) -> Path:
    return shared("evaluated", evaluated_shards)


@pytest.fixture(scope="module")
def mae_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    config = MAEConfig(**SIZES | {"num_frames": 8}, decoder_depth=1, pred_t_dim=8, mask_ratio=0.5, mask_type="tube")
    save_model(MAE(config), file := tmp_path_factory.mktemp("mae") / "model.safetensors")
    return file


@pytest.mark.parametrize("reverse", [False, True])
def test_prediction_losses_equal_the_models_own_loss_clip_by_clip(
    mae_file: Path, shards: Path, tmp_path: Path, reverse: bool
) -> None:
    from mae3d.weights.files import load_model

    rows = run(
        mae_file, shards, tmp_path, "--task", "reconstruction", "--mask", "random", "prospective",
        "--mask_ratio", "0.75", "--draws", "3", "--batch", "4", "--reverse", str(reverse).lower(), "--seed", "7",
    )  # fmt: skip
    own = load_model(mae_file).config
    from dataclasses import replace

    for kind, draws in (("random", 3), ("prospective", 1)):
        model = load_model(mae_file)
        model.config = replace(own, mask_type=kind, mask_ratio=0.75)  # type: ignore[arg-type]
        expected = []
        with torch.no_grad():
            for row, views in enumerate(clips_of(shards, 8, range(9))):
                clip = views.flip(1) if reverse else views
                noises = [mask_noise(seed=7, epoch=d, positions=[row], views=1, tokens=16) for d in range(draws)]
                expected.append(np.mean([model(clip, noise).loss.item() for noise in noises]))
        np.testing.assert_allclose(rows[f"loss_{kind}"], expected, rtol=1e-5)
    a, b = (np.array(rows[f"loss_{kind}"]) for kind in ("random", "prospective"))
    (pair,) = lines(tmp_path / "differences.csv")
    assert (pair["a"], pair["b"], pair["clips"]) == ("random", "prospective", "9")
    assert float(pair["mean"]) == pytest.approx((a - b).mean())
    assert float(pair["standard_error"]) == pytest.approx((a - b).std(ddof=1) / 3)
    assert float(pair["share_a_greater"]) == (a > b).mean()
    summary = lines(tmp_path / "summary.csv")
    assert [float(row["mean"]) for row in summary] == pytest.approx([a.mean(), b.mean()])
    assert [row["hidden"] for row in summary] == ["0.75", "0.75"]
    with Image.open(tmp_path / "losses.png") as picture:
        assert min(picture.size) > 300


def test_backwards_is_told_from_forwards_and_all_masks_come_with_their_pairs(
    mae_file: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forwards = run(mae_file, shards, tmp_path / "f", "--task", "reconstruction", "--mask", "all")
    backwards = run(mae_file, shards, tmp_path / "b", "--task", "reconstruction", "--mask", "all", "--reverse", "true")
    assert "9 clips played backwards" in capsys.readouterr().out
    assert forwards["loss_prospective"] != backwards["loss_prospective"]
    assert len(lines(tmp_path / "f" / "summary.csv")) == 7
    assert len(lines(tmp_path / "f" / "differences.csv")) == 21


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_psnr_is_of_the_pixels_that_reconstruct_shows(shards: Path, norm_pix_loss: bool) -> None:
    from mae3d.analysis.reconstruct import reconstruct
    from mae3d.io.contact_sheet import psnr

    torch.manual_seed(0)
    model = MAE(MAEConfig(**SIZES, decoder_depth=1, norm_pix_loss=norm_pix_loss, mask_ratio=0.5, std=(0.2, 0.3, 0.1)))
    model.decoder.head.weight.data *= 0.1  # near the mean: what is shown is clipped to 0 to 255, the figure is not
    clips = torch.cat(clips_of(shards, 4, [0, 1, 3]))
    noise = mask_noise(seed=0, epoch=0, positions=range(3), views=1, tokens=8)
    losses, shown = clip_losses(model, clips, noise), reconstruct(model, clips, noise)
    torch.testing.assert_close(losses.loss.mean(), model(clips, noise).loss)
    for i in range(3):
        of_pixels = psnr(shown.predicted[i], shown.original[i], shown.hidden[i])
        assert losses.psnr[i].item() == pytest.approx(of_pixels, abs=0.05)


def test_masks_that_do_not_fit_are_refused_unless_all_are_asked_for(
    mae_file: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--run", str(mae_file), "--data.shards", str(shards), "--out", str(tmp_path), "--task", "reconstruction"]
    assert "did you mean tube?" in refused(capsys, *base, "--mask", "tubes", "random")
    assert "mask_ratio=1.5" in refused(capsys, *base, "--mask", "all", "--mask_ratio", "1.5")
