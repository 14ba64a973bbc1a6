from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.demo import MOTIONS, camera_path, render_demo
from preprocess.ledger import read_ledger

PERIOD = (640, 427)


def paths(motion: str, count: int = 400, frames: int = 24) -> np.ndarray:
    """(count, frames, 4) boxes of as many clips."""
    seeds = np.random.default_rng(5).integers(1 << 30, size=count)
    return np.stack(
        [camera_path(motion, frames=frames, period=PERIOD, rng=np.random.default_rng(s)) for s in seeds.tolist()]
    )


def render(out: Path, **changes: int) -> dict[str, bytes]:
    arguments = {"clips": 7, "size": 32, "frames": 4, "seed": 3} | changes
    render_demo(out, **arguments)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_the_layout_is_the_seeds(tmp_path: Path) -> None:
    files = render(tmp_path)
    assert len(files) == 7 * 4 + 1
    with Image.open(tmp_path / "train" / "clip_0006" / "img_00004.jpg") as image:
        assert image.size == (32, 32)
    ledger = read_ledger(tmp_path / "ledger.csv")
    assert [(row.name, row.first, row.stop) for row in ledger.rows] == [(f"clip_{i:04d}", 1, 5) for i in range(7)]
    counts = Counter(row.labels[0] for row in ledger.rows)
    assert set(counts) == set(MOTIONS)
    assert max(counts.values()) == 2


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    first = render(tmp_path / "a")
    assert render(tmp_path / "b") == first
    assert render(tmp_path / "c", seed=4) != first


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"size": 8}, {"frames": 1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need"):
        render(tmp_path, **wrong)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    render(tmp_path)
    with pytest.raises(ValueError, match="exists"):
        render(tmp_path)


def test_the_label_is_the_motion() -> None:
    """Centres move, or sides change, as the label says, steadily and by fractions of pixels."""
    expected = {"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0), "down": (0, 1, 0)}
    expected |= {"zoom_in": (0, 0, -1), "zoom_out": (0, 0, 1)}
    for motion in MOTIONS:
        boxes = paths(motion)
        sides = boxes[..., 2] - boxes[..., 0]
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2
        steps = np.concatenate([np.diff(centres, axis=1), np.diff(sides, axis=1)[..., None]], axis=-1)
        assert np.sign(np.round(steps, 9)).reshape(-1, 3).astype(int).tolist() == [list(expected[motion])] * (400 * 23)


def test_no_single_frame_tells_the_label() -> None:
    """Over the frames of many clips, place and magnification are distributed alike for every label."""
    quantiles = np.linspace(0.05, 0.95, 19)
    measured = []
    for motion in MOTIONS:
        boxes = paths(motion)
        sides = (boxes[..., 2] - boxes[..., 0]).ravel()
        centres = ((boxes[..., :2] + boxes[..., 2:]) / 2 % PERIOD).reshape(-1, 2) / PERIOD
        spread = [np.quantile(values, quantiles) for values in (sides / 200, centres[:, 0], centres[:, 1])]
        measured.append(np.concatenate(spread))
    assert np.ptp(np.stack(measured), axis=0).max() < 0.1


def test_paths_stay_inside_the_tiled_photograph() -> None:
    for motion in MOTIONS:
        boxes = paths(motion, frames=60)
        assert boxes.min() >= 0
        assert (boxes[..., 2:] <= np.array(PERIOD) + 2 * 640).all()
