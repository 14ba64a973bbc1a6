"""The lines of the cards of launch/export.py run in processes that cannot import MAE3D, and give our outputs."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launch.export import export
from mae3d.model.classifier import Classifier
from mae3d.model.mae import MAE
from tests.launch.test_export_formats import CLASSIFIER, CONFIG, clips, drawn, expected_of, saved, videomae_like

pytestmark = pytest.mark.peers

NEEDS = {"onnx": ("onnxruntime", "onnxscript"), "transformers": ("transformers",)}


def run_alone(folder: Path, clip: Tensor) -> list[Tensor]:
    """Run the lines of a folder's card, with a clip of ours, in a process that cannot import MAE3D."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    lines = code.replace("THIS FOLDER", str(folder)).splitlines()
    torch.save(clip, folder / "clip.pt")
    names = lines[-1].partition(" = ")[0].strip("()").rstrip(",")
    lines = [re.sub(r"= np\.random.*", "= torch.load('clip.pt').numpy()", line) for line in lines]
    start = ["import sys", f"sys.path = {sys.path!r}", "sys.modules.update(mae3d=None, pipelines=None)", "import torch"]
    lines = [*start, *lines, f"torch.save([torch.as_tensor(one).detach() for one in [{names}]], 'result.pt')"]
    (folder / "card.py").write_text("\n".join(lines))
    child = subprocess.run([sys.executable, "-I", "card.py"], cwd=folder, capture_output=True, encoding="utf-8")
    assert child.returncode == 0, child.stderr
    result: list[Tensor] = torch.load(folder / "result.pt")
    return result


@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
@pytest.mark.parametrize("format", ["encoder", "torch_export", "onnx", "transformers"])
def test_the_lines_of_a_card_give_our_outputs(kind: str, format: str, tmp_path: Path) -> None:
    for name in NEEDS.get(format, ()):
        if find_spec(name) is None:
            pytest.skip(f"needs {name}")
    model: torch.nn.Module
    if kind == "classifier":
        model = videomae_like(Classifier(CLASSIFIER))
    elif format == "transformers":
        from dataclasses import replace

        model = videomae_like(MAE(replace(CONFIG, cls_embed=False, sep_pos_embed=False)))
    else:
        model = drawn(MAE(CONFIG))
    out = export(saved(model, tmp_path / "model"), tmp_path / "out", format=format)
    clip = clips(1)
    expected = expected_of(model, clip)
    results = run_alone(out, clip)
    torch.testing.assert_close(results, expected[: len(results)], rtol=1e-5, atol=1e-5)
