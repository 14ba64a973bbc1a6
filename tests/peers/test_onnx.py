"""ONNX Runtime computes what our encoders and classifiers compute, for any number of clips."""

from pathlib import Path

import pytest
import torch

from launch.export import export
from mae3d.weights import graphs
from tests.launch.test_export_formats import MODELS, clips, drawn, expected_of, saved

pytestmark = pytest.mark.peers
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("kind", MODELS)
def test_a_session_gives_our_outputs(kind: str, tmp_path: Path) -> None:
    model = drawn(MODELS[kind]())
    out = export(saved(model, tmp_path / "model"), tmp_path / "out", format="onnx")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.onnx"]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    names = [entry.name for entry in session.get_outputs()]
    assert names == (["logits"] if kind in ("classifier", "cls", "mean") else ["tokens", "vector"])
    for number in (1, 2, 5):
        results = [torch.from_numpy(one) for one in session.run(None, {"clip": clips(number).numpy()})]
        torch.testing.assert_close(results, expected_of(model, clips(number)), rtol=1e-5, atol=1e-5)


def test_large_weights_lie_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX file ends at 2 GB."""
    monkeypatch.setattr(graphs, "_ONE_FILE", 0)
    model = drawn(MODELS["classifier"]())
    out = export(saved(model, tmp_path / "model"), tmp_path / "out", format="onnx")
    assert (out / "model.onnx.data").stat().st_size > (out / "model.onnx").stat().st_size
    moved = out.rename(tmp_path / "moved")
    (logits,) = onnxruntime.InferenceSession(moved / "model.onnx").run(None, {"clip": clips(3).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(clips(3)).detach(), rtol=1e-5, atol=1e-5)


def test_an_image_vit_goes_too(tmp_path: Path) -> None:
    from mae3d.model.classifier import Classifier
    from mae3d.model.config import ClassifierConfig
    from mae3d.model.frames import frame_config

    config = frame_config("vit_tiny_patch16_224", num_frames=2, img_size=32)
    model = drawn(Classifier(ClassifierConfig.of(config, num_classes=3)))
    out = export(saved(model, tmp_path / "model"), tmp_path / "out", format="onnx")
    session = onnxruntime.InferenceSession(out / "model.onnx")
    for number in (1, 3):
        clip = clips(number)[:, :2]
        (logits,) = session.run(None, {"clip": clip.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(clip).detach(), rtol=1e-4, atol=1e-4)
