"""The programs of examples/ that need nothing else do what they say: written, read, trained, gone on exactly."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from preprocess import open_dataset
from preprocess.inspect.filmstrip import stored_frames
from preprocess.inspect.verify import verify

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import an example as Python does that runs it: what lies beside it comes first."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module(name)


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small dataset of examples/write_shards.py."""
    out = tmp_path_factory.mktemp("discs") / "discs"
    with pytest.MonkeyPatch.context() as patch:
        example("write_shards", patch).main([str(out), "--clips", "16", "--frames", "8", "--size", "40"])
    return out


def test_write_shards_writes_a_whole_dataset_of_discs_that_go_where_the_label_says(discs: Path) -> None:
    assert verify(discs, full=True, decode=True) == []
    dataset = open_dataset(discs)
    assert len(dataset) == 16
    ways = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for row in range(16):
        first, *_, last = (outline(picture) for picture in stored_frames(dataset, row, np.arange(8), (40, 40)))
        way = np.array(ways[dataset.label_names[dataset.labels_of(row)[0]]])
        assert (last - first) @ way > 1, "pixels"
        assert abs((last - first) @ way[::-1]) < 1


def outline(picture: Image.Image | None) -> np.ndarray:
    """Return the middle, (y, x), of the pixels that differ from those beside them."""
    pixels = np.asarray(picture, dtype=float)
    edges = (np.diff(pixels, axis=0)[:, :-1] ** 4).sum(2) + (np.diff(pixels, axis=1)[:-1] ** 4).sum(2)
    return np.array([edges.sum(1) @ np.arange(39), edges.sum(0) @ np.arange(39)]) / edges.sum()


def test_torch_loop_goes_on_with_the_losses_of_an_uninterrupted_run(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, state = example("torch_loop", monkeypatch).main, ["--state", str(tmp_path / "loop.pt")]
    uncut = main([str(discs), "--steps", "6"])  # the second epoch begins at step 5
    cut = [main([str(discs), "--steps", steps, *state]) for steps in ("3", "6")]
    assert [len(part) for part in cut] == [3, 3]
    assert cut[0] + cut[1] == uncut
    assert uncut[-1] < uncut[0]
    assert "step 6, epoch 1.50: loss" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset does not close what it has read
def test_webdataset_reads_the_frames_and_the_labels_of_the_index(
    discs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, dataset = example("read_with_webdataset", monkeypatch), open_dataset(discs)
    rows = 0
    for row, (facts, clip, labels) in enumerate(program.read_clips(discs)):
        ours = [np.asarray(picture) for picture in stored_frames(dataset, row, np.arange(8), (40, 40))]
        assert np.array_equal(clip, ours)
        assert (facts["key"], facts["name"], labels) == (dataset.key(row), dataset.name(row), dataset.labels_of(row))
        rows += 1
    assert rows == 16
    program.main([str(discs)])
    assert "left/0000: (8, 40, 40, 3) uint8" in capsys.readouterr().out
