import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.config import SelectConfig
from pipelines.samples.corpus import open_corpus
from pipelines.samples.selection import select_rows
from preprocess.__main__ import main
from preprocess.demo.camera import DEFAULT_MOTIONS, MOTIONS, camera_path
from preprocess.demo.clips import render_clip, render_demo, render_scene
from preprocess.demo.objects import SHAPE_KINDS, Shape, object_drawer
from preprocess.demo.pictures import DRAWN, PHOTOGRAPHS, draw_waves, load_pictures, look
from preprocess.encode.images import encode_jpeg
from preprocess.sources.ledger import read_ledger

ROOT = Path(__file__).resolve().parents[3]
PERIOD = (640, 427)


def paths(motion: str, count: int = 400, frames: int = 24, turned: bool = False) -> np.ndarray:
    """(count, frames, 4) centres, sides and angles of as many clips."""
    seeds = np.random.default_rng(5).integers(1 << 30, size=count)
    return np.stack(
        [
            camera_path(motion, frames=frames, period=PERIOD, turned=turned, rng=np.random.default_rng(s))
            for s in seeds.tolist()
        ]
    )


def render(out: Path, **changes: Any) -> dict[str, bytes]:
    arguments: dict[str, Any] = {"clips": 7, "size": 32, "frames": 4, "seed": 3} | changes
    render_demo(out, **arguments)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def labels_of(root: Path) -> set[str]:
    """The labels that a demo's ledger has."""
    return {row.labels[0] for row in read_ledger((root / "ledger.csv").read_bytes(), "ledger.csv").rows}


def test_the_layout_is_the_seeds(tmp_path: Path) -> None:
    files = render(tmp_path)
    assert len(files) == 7 * 4 + 1
    with Image.open(tmp_path / "train" / "clip_0006" / "img_00004.jpg") as image:
        assert image.size == (32, 32)
    ledger = read_ledger((tmp_path / "ledger.csv").read_bytes(), "ledger.csv")
    assert [(row.name, row.first, row.stop) for row in ledger.rows] == [(f"clip_{i:04d}", 1, 5) for i in range(7)]
    counts = Counter(row.labels[0] for row in ledger.rows)
    assert set(counts) == set(DEFAULT_MOTIONS)
    assert max(counts.values()) == 2


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    first = render(tmp_path / "a")
    assert render(tmp_path / "b") == first
    assert render(tmp_path / "c", seed=4) != first


def test_lossless_frames_are_the_pictures_that_the_jpegs_are_made_of(tmp_path: Path) -> None:
    jpegs, pngs = render(tmp_path / "a"), render(tmp_path / "b", lossless=True)
    assert [name.replace(".png", ".jpg") for name in pngs] == list(jpegs)
    picture = Image.open(io.BytesIO(pngs["train/clip_0006/img_00004.png"]))
    assert encode_jpeg(picture, 90) == jpegs["train/clip_0006/img_00004.jpg"]


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"size": 8}, {"frames": 1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        render(tmp_path, **wrong)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    render(tmp_path)
    with pytest.raises(ValueError, match="exists"):
        render(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"motions": ["left", "sideways"]},
        {"motions": ["left", "left"]},
        {"motions": []},
        {"textures": ["china", "bricks"]},
        {"textures": []},
        {"objects": "ducks"},
    ],
)
def test_names_that_are_unknown_or_double_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"need different ones of (left|china|shapes)"):
        render(tmp_path, **wrong)


def test_the_command_takes_motions_by_number_and_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--size", "16", "--frames", "2"]
    assert main(["demo", "--out", str(tmp_path / "a"), "--clips", "12", "--motions", "12", *small]) == 0
    assert {
        row.labels[0] for row in read_ledger((tmp_path / "a" / "ledger.csv").read_bytes(), "ledger.csv").rows
    } == set(MOTIONS)
    assert main(["demo", "--out", str(tmp_path / "b"), "--clips", "4", "--motions", "up", "turn_left", *small]) == 0
    assert labels_of(tmp_path / "b") == {
        "up",
        "turn_left",
    }
    capsys.readouterr()
    assert main(["demo", "--out", str(tmp_path / "c"), "--motions", "13", *small]) == 2
    assert "2 to 12" in capsys.readouterr().err


@pytest.mark.slow
def test_every_texture_is_another_picture_and_the_seed_draws_the_drawn_ones() -> None:
    drawn = [np.asarray(picture) for seed in (0, 1) for picture in load_pictures(DRAWN, seed=seed)]
    assert len(drawn) == 32
    assert len({pixels.tobytes() for pixels in drawn}) == 32
    assert min(pixels.std() for pixels in drawn) > 20  # there is something to see
    again = load_pictures(DRAWN[-4:], seed=1)
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(again, drawn[-len(again) :], strict=True))
    photographs = [np.asarray(picture) for picture in load_pictures(PHOTOGRAPHS, seed=0)]
    assert not np.array_equal(photographs[0], photographs[1])


@pytest.mark.parametrize("turned", [False, True])
def test_the_label_is_the_motion(turned: bool) -> None:
    """Places, sides or angles change as the label says, steadily, in the axes of the camera as it is held."""
    still = (0, 0, 0, 0)
    expected = {"left": (-1, 0, 0, 0), "right": (1, 0, 0, 0), "up": (0, -1, 0, 0), "down": (0, 1, 0, 0)}
    expected |= {"up_left": (-1, -1, 0, 0), "up_right": (1, -1, 0, 0)}
    expected |= {"down_left": (-1, 1, 0, 0), "down_right": (1, 1, 0, 0)}
    expected |= {"zoom_in": (0, 0, -1, 0), "zoom_out": (0, 0, 1, 0)}
    expected |= {"turn_left": (0, 0, 0, -1), "turn_right": (0, 0, 0, 1)} if turned else {}
    for motion in MOTIONS:
        steps = np.diff(paths(motion, turned=turned), axis=1)
        angle = paths(motion, turned=turned)[:, :-1, 3]
        across = np.cos(angle) * steps[..., 0] + np.sin(angle) * steps[..., 1]
        down = np.cos(angle) * steps[..., 1] - np.sin(angle) * steps[..., 0]
        signs = np.sign(np.round(np.stack([across, down, steps[..., 2], steps[..., 3]], axis=-1), 9)).astype(int)
        assert signs.reshape(-1, 4).tolist() == [list(expected.get(motion, still))] * (400 * 23)


@pytest.mark.parametrize("turned", [False, True])
def test_no_single_frame_tells_the_label(turned: bool) -> None:
    """At every moment place, magnification and orientation are distributed alike for every label."""
    quantiles = np.linspace(0.05, 0.95, 19)
    for moment in (slice(None), 0, 12, -1):
        measured = []
        for motion in MOTIONS if turned else DEFAULT_MOTIONS:
            views = paths(motion, turned=turned)[:, moment].reshape(-1, 4)
            # The magnification is the clip's over all its frames: a zoom in begins wide.
            kinds = [views[:, 0] / PERIOD[0] % 1, views[:, 1] / PERIOD[1] % 1, views[:, 3] / (2 * np.pi) % 1]
            kinds += [views[:, 2] / 200] if moment == slice(None) else []
            measured.append(np.concatenate([np.quantile(values, quantiles) for values in kinds]))
        assert np.ptp(np.stack(measured), axis=0).max() < 0.15


def test_orientations_are_spread_over_the_circle_only_where_a_label_turns() -> None:
    assert not paths("left")[..., 3].any()
    quarters = np.histogram(paths("left", turned=True)[:, 0, 3], bins=4, range=(0, 2 * np.pi))[0]
    assert quarters.sum() == 400
    assert quarters.min() > 70


def test_a_turned_view_shows_what_the_upright_one_does_turned() -> None:
    """A camera turned clockwise by a quarter: what was above is on the left."""
    texture = load_pictures(["china"], seed=0)[0]
    assert texture is not None
    path = np.array([[300.0, 200.0, 128.0, angle] for angle in (0.0, 1e-9, np.pi / 2)])
    upright, hardly, quarter = (look(texture, view, 64) for view in path)
    expected = np.asarray(upright.transpose(Image.Transpose.ROTATE_90)).astype(float)
    spread = expected.std()
    assert np.abs(np.asarray(quarter) - expected).mean() < 0.25 * spread
    assert np.abs(np.asarray(hardly) - np.asarray(upright).astype(float)).mean() < 0.25 * spread


def test_paths_stay_inside_the_tiled_texture() -> None:
    for motion in MOTIONS:
        views = paths(motion, frames=60, turned=True)
        reach = 1.5 / 2 * views[..., 2:3]  # a turned view is cut from one 1.5 times as large
        assert (views[..., :2] - reach).min() >= -640
        assert (views[..., :2] + reach <= np.array(PERIOD) + 640).all()


def test_a_turned_view_is_filled_to_its_corners() -> None:
    white = Image.new("RGB", (1280 + 600, 1280 + 400), (255, 255, 255))
    path = np.array([[300.0, 200.0, 150.0, angle] for angle in np.linspace(0, 2 * np.pi, 9)])
    for view in path:
        assert np.asarray(look(white, view, 16)).min() == 255


def waves_of(seed: int) -> np.ndarray:
    return np.asarray(look(draw_waves(np.random.default_rng(seed)), np.array([9.0, 5.0, 200.0, 0.0]), 32))


def test_waves_are_other_ones_in_every_clip_and_seen_through_the_same_camera() -> None:
    """A camera that moves right by half a view shows the right half of its view on the left; turned, as photographs."""
    assert np.array_equal(waves_of(0), waves_of(0))
    assert not np.array_equal(waves_of(0), waves_of(1))
    assert min(waves_of(seed).std(axis=(0, 1)).max() for seed in range(8)) > 10  # there is something to see
    waves = draw_waves(np.random.default_rng(2))
    views = np.array([[300.0, 200.0, 128.0, 0.0], [364.0, 200.0, 128.0, 0.0], [300.0, 200.0, 128.0, np.pi / 2]])
    upright, moved, quarter = (np.asarray(look(waves, view, 64)).astype(int) for view in views)
    assert np.abs(upright[:, 32:] - moved[:, :32]).max() <= 1
    assert np.abs(np.rot90(upright) - quarter).max() <= 1


@pytest.mark.parametrize(("kind", "least"), [("shapes", 0.03), ("digits", 0)])
def test_objects_drift_over_the_picture(kind: str, least: float) -> None:
    """They cover other pixels at every frame; shapes never leave the picture, digits come back on the other side."""
    grey, path = Image.new("RGB", (1280 + 600, 1280 + 400), (90, 90, 90)), np.tile([300.0, 200.0, 150.0, 0.0], (60, 1))
    for seed in range(6):
        clip = render_clip(grey, path, object_drawer(kind), size=48, rng=np.random.default_rng(seed))
        covered = np.stack([(np.asarray(picture) != 90).any(axis=2) for picture in clip])
        assert len(np.unique(covered, axis=0)) > 4
        assert least <= covered.mean(axis=(1, 2)).min()
        assert covered.mean(axis=(1, 2)).max() < 0.9


def test_every_kind_of_shape_is_filled_inside_and_leaves_the_outside_as_it_was() -> None:
    for kind in SHAPE_KINDS:
        picture = Image.new("RGB", (65, 65))
        Shape(kind, (255, 0, 0), 0.3, np.array([0.5, 0.5]), np.zeros(2), 0.0, 0.0).paste(picture, 0)
        red = np.asarray(picture)[..., 0]
        assert (red[26:39, 26:39] == 255).all()
        assert not red[0].any()
        assert not red[:, 0].any()
        assert 0.15 < (red > 127).mean() < 0.3


def test_the_demos_held_out_clips_are_not_trained_on(tmp_path: Path) -> None:
    """`make demo` trains on one split and shows the other; no sample, and no frame, is in both."""
    commands = (ROOT / "Makefile").read_text().replace("\\\n", "")
    split = re.search(r"-m preprocess split \$\(DEMO\)/shards (.*)", commands)
    trained, shown = (
        re.search(rf"launch/{name}\.py .*--data\.select\.split (\w+)", commands) for name in ("pretrain", "visualize")
    )
    assert split
    assert trained
    assert shown
    render(tmp_path / "frames", clips=60, size=16, frames=2)
    frames, out = tmp_path / "frames", tmp_path / "shards"
    assert main(["build", "--frames", str(frames), "--ledger", str(frames / "ledger.csv"), "--out", str(out)]) == 0
    assert main(["split", str(out), *split[1].split()]) == 0
    corpus = open_corpus([out])
    rows_of = [
        select_rows(corpus, SelectConfig(split=name), rows=np.arange(60)).tolist() for name in (trained[1], shown[1])
    ]
    assert sorted(rows_of[0] + rows_of[1]) == list(range(60))
    assert 1 <= len(rows_of[1]) < 15
    bytes_of = [
        {path.read_bytes() for row in rows for path in (frames / "train" / corpus.name(row)).iterdir()}
        for rows in rows_of
    ]
    assert [len(files) for files in bytes_of] == [2 * len(rows) for rows in rows_of]
    assert not bytes_of[0] & bytes_of[1]


@pytest.mark.parametrize("kind", ["shapes", "digits"])
def test_the_objects_of_a_scene_are_known_and_its_pictures_are_the_clips(kind: str) -> None:
    grey, path = Image.new("RGB", (1280 + 600, 1280 + 400), (90, 90, 90)), np.tile([300.0, 200.0, 150.0, 0.0], (20, 1))
    draw = object_drawer(kind)
    clip = render_clip(grey, path, draw, size=48, rng=np.random.default_rng(3))
    pictures, ids = render_scene(grey, path, draw, size=48, rng=np.random.default_rng(3))
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in clip]
    assert (ids.shape, ids.dtype, np.unique(ids).tolist()) == ((20, 48, 48), np.uint8, [0, 1, 2])
    frames = np.stack([np.asarray(picture) for picture in pictures]).astype(int)
    colours = [thing.colour for thing in draw(size=48, rng=np.random.default_rng(3))]  # type: ignore[attr-defined]
    far = np.abs(frames - 90).sum(axis=3)
    assert (far[ids == 0] <= np.abs(np.array(colours) - 90).sum(axis=1).max() / 2).all()
    front = np.abs(frames[ids == 2] - colours[1]).sum(axis=1)
    assert np.median(front) == 0 if kind == "shapes" else np.median(front) < 100  # the second lies in front
