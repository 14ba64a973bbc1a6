"""visualize.py --show attention: the heat drawn is the attention; samples, videos, classifiers; what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch import visualize
from launch.report.attention import AttentionQuery, attention_section, default_query
from launch.report.clips import Clip
from mae3d.analysis.attention import layer_attention, query_of, rollout
from mae3d.io.contact_sheet import overlay
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.mae import MAE
from mae3d.weights.files import save_model
from pipelines.samples.corpus import open_corpus
from tests.support.media import make_dataset, make_video
from tests.support.pages import check_page

CONFIG = MAEConfig(preset="mae_vit_tiny_patch16", img_size=48, num_frames=4, depth=2, decoder_depth=1, mask_ratio=0.5)
CLASSES = ("hop", "skip", "jump")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), samples=4, frames=8, labels=["skip"] * 4)


@pytest.fixture(scope="module")
def model() -> MAE:
    torch.manual_seed(0)
    model = MAE(CONFIG).requires_grad_(False).eval()
    for block in model.encoder.blocks:  # a fresh model attends almost evenly
        block.attn.qkv.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def files(model: MAE, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    settings = ClassifierConfig.of(CONFIG, num_classes=3, class_names=CLASSES, head_std=1.0)
    for name, saved in (("mae", model), ("classifier", Classifier(settings))):
        save_model(saved, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in ("mae", "classifier")}


def look(*argv: str, out: Path) -> str:
    assert visualize.main([*argv, "--out", str(out), "--device", "cpu"]) == 0
    check_page(out / "index.html")
    return (out / "index.html").read_text(encoding="utf-8")


def random_clip() -> Clip:
    pixels = torch.randint(0, 256, (4, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Clip(pixels, 0, "noise", "noise")


def frames_of(strip: Path, row: int) -> np.ndarray:
    """A filmstrip's row, each pixel once: four frames of 48 pixels, enlarged five times, under captions."""
    with Image.open(strip) as opened:
        pixels = np.asarray(opened)
    top = row * (23 + 240 + 4) + 23
    line = pixels[top : top + 240 : 5]
    return np.stack([line[:, i * 244 : i * 244 + 240 : 5] for i in range(4)])


@pytest.mark.parametrize(
    ("asked", "head"),
    [
        (AttentionQuery(layer=1, head="2"), 2),
        (AttentionQuery(layer=-1), None),
        (AttentionQuery(rolled=True, query="mean"), None),
    ],
)
def test_the_heat_is_the_attention(model: MAE, tmp_path: Path, asked: AttentionQuery, head: int | None) -> None:
    clip = random_clip()
    asked = AttentionQuery(asked.layer, asked.head, asked.query or "cls", asked.rolled)
    (tmp_path / "images").mkdir()
    attention_section(model, [clip], asked, tmp_path, frame_ms=100, device=torch.device("cpu"))
    query = query_of(CONFIG, asked.query or "cls")
    if asked.rolled:
        values = rollout(model.encoder, clip.pixels[None], query)[0]
    else:
        by_head = layer_attention(model.encoder, clip.pixels[None], query, layer=asked.layer)[0]
        values = by_head.mean(dim=0) if head is None else by_head[head]
    heat = values[1:].reshape(2, 3, 3).numpy()
    expected = overlay(clip.frames, heat, top=float(np.percentile(heat, 99)))
    strip = tmp_path / "images" / "noise_attention.png"
    np.testing.assert_array_equal(frames_of(strip, 0), clip.frames)
    np.testing.assert_array_equal(frames_of(strip, 1), expected)


def test_a_patch_that_asks_is_outlined_where_it_is(model: MAE, tmp_path: Path) -> None:
    clip = random_clip()
    (tmp_path / "images").mkdir()
    attention_section(model, [clip], AttentionQuery(query="1,0,2"), tmp_path, frame_ms=100, device=torch.device("cpu"))
    changed = (frames_of(tmp_path / "images" / "noise_attention.png", 0) != clip.frames).any(axis=-1)
    assert not changed[:2].any()
    for frame in changed[2:]:
        rows, columns = np.nonzero(frame)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 15, 32, 47)
        assert not frame[4:12, 36:44].any()


def test_who_asks_unless_said(model: MAE) -> None:
    assert default_query(model) == "1,1,1"
    for pooling in ("mean", "cls"):
        assert default_query(Classifier(ClassifierConfig.of(CONFIG, pooling=pooling))) == pooling


def test_all_heads_of_chosen_keys(files: dict[str, str], shards: Path, tmp_path: Path) -> None:
    key = open_corpus([shards]).key(2)
    options = ("--show", "attention", "--head", "all", "--layer", "1", "--query", "cls", "--keys", key)
    page = look("--run", files["mae"], "--data.shards", str(shards), *options, out=tmp_path)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [*(f"{key}_attention.{kind}" for kind in ("gif", "png", "webp")), "attention_scale.png"]
    assert re.search("rows: original, mean of the heads; brightest: .*, head 0; .*, head 1; .*, head 2; ", page)
    assert "block 1 of 2, each head" in page
    assert "nothing read this model&#x27;s class token" in page
    assert "Reconstruction" not in page


def test_a_loose_video_needs_no_dataset(files: dict[str, str], tmp_path: Path) -> None:
    video = make_video(tmp_path / "My talk.mp4", 20)
    options = ("--show", "attention", "reconstruction", "--rollout", "true", "--data.sampling_rate", "1")
    page = look("--run", files["mae"], "--videos", str(video), *options, out=tmp_path / "out")
    assert page.index("Reconstruction</h2>") < page.index("Attention</h2>")
    assert page.count("My talk.mp4") == 3
    assert str(tmp_path) not in page
    assert "rolled out over all 2 blocks" in page
    assert (tmp_path / "out" / "images" / "video_0_my_talk_attention.gif").is_file()


def test_a_classifier_shows_attention_and_what_it_predicts(files: dict[str, str], shards: Path, tmp_path: Path) -> None:
    page = look("--run", files["classifier"], "--data.shards", str(shards), "--samples", "3", out=tmp_path)
    notes = re.findall(r"label skip · predicted (\w+) (\d+)%, (\w+) (\d+)%, (\w+) (\d+)%", page)
    assert len(notes) == 3
    for note in notes:
        assert set(note[::2]) == set(CLASSES)
        assert sum(map(int, note[1::2])) == pytest.approx(100, abs=2)
    assert "all patches, averaged" in page
    assert "mean pooling, 3 classes, one a clip" in page


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--show", "atention"], "did you mean attention"),
        (["--show", "attention", "--layer", "0"], "layer 0: the encoder has 2 blocks"),
        (["--show", "attention", "--head", "3"], "--head 3: give 0 to 2, mean or all"),
        (["--show", "attention", "--query", "2,0,0"], "the grid has 2 slots"),
        (["--show", "attention", "--rollout", "true", "--head", "all"], "leave --head out"),
        (["--videos", "none.mp4", "--keys", "0"], "--videos and --keys"),
        (["--videos", "none.mp4"], "none.mp4: no such file"),
        (["--show", "neighbours", "--videos", "none.mp4"], "--data.shards is missing"),
        ([], "--data.shards is missing"),
    ],
)
def test_what_is_wrong_is_told(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        visualize.main(["--run", files["mae"], "--out", str(tmp_path), *argv])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_a_classifier_fills_nothing_in(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        visualize.main(["--run", files["classifier"], "--out", str(tmp_path), "--show", "reconstruction"])
    assert "a classifier fills nothing in" in capsys.readouterr().err
