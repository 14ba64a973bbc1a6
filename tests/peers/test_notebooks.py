"""The notebooks run from a clean folder, end in pictures and figures that make sense, and are kept without outputs."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]  # of Jupyter's and its kernel's

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def figures_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel draw into the notebook; tests draw into memory otherwise."""
    monkeypatch.delenv("MPLBACKEND", raising=False)


def executed(name: str, folder: Path) -> Any:
    """Return a notebook that was run in a folder; the first cell that fails fails the test."""
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook: Any) -> str:
    """Return all that the cells print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    assert all("ipywidgets" in text for text in errors), "but for tqdm's hint that progress has no widget"
    return "\n".join(output.text for output in outputs if output.output_type == "stream")


def pictures(notebook: Any) -> list[np.ndarray]:
    """Return the figures of all cells."""
    bundles = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    pngs = [base64.b64decode(bundle["image/png"]) for bundle in bundles if "image/png" in bundle]
    return [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs]


def number(text: str, pattern: str) -> float:
    match = re.search(pattern, text)
    assert match, f"{pattern} in {text}"
    return float(match[1])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_counts(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_from_footage_to_a_model(tmp_path: Path) -> None:
    notebook = executed("footage_to_model", tmp_path)
    text, figures = printed(notebook), pictures(notebook)
    assert "120 samples" in text
    assert number(text, r"dB, ([\d.-]+) dB more than their mean colour") > 1
    assert len(figures) == 4
    assert all(figure.std() > 10 for figure in figures)
    assert (tmp_path / "footage_to_model" / "run" / "DONE").exists()
    again = executed("footage_to_model", tmp_path)  # everything is there: nothing is trained twice
    assert printed(again).count("120 samples") >= 1


def test_embeddings_and_predictions(tmp_path: Path) -> None:
    notebook = executed("embeddings_and_predictions", tmp_path)
    text, figures = printed(notebook), pictures(notebook)
    assert "80 rows, 0 without a vector" in text
    assert number(text, r"(\d+)% of the nearest neighbours share the label") > 40
    assert number(text, r"top-1 ([\d.]+)% of 80 samples") > 50
    errors = number(text, r"(\d+) errors")
    assert len(figures) == 4 + (errors > 0)
    assert all(figure.std() > 10 for figure in figures)
