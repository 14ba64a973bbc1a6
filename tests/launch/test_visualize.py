"""launch/visualize.py: real shards and a model in, pictures and a page out; what is wrong is told with exit code 2."""

import base64
import io
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from launch import visualize
from launch.report.clips import Clip
from launch.report.reconstruction import reconstruction_section
from mae3d.model.config import MAEConfig
from mae3d.model.mae import MAE
from mae3d.model.masking import other_masks
from mae3d.weights.convert import to_foreign
from mae3d.weights.files import save_model
from pipelines.config import DataConfig
from pipelines.samples.corpus import open_corpus
from pipelines.stream import evaluation_clips
from tests.support.media import make_dataset, make_video
from tests.support.pages import check_page
from tests.support.s3 import Server

CONFIG = MAEConfig(preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, depth=1, decoder_depth=1, mask_ratio=0.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), samples=6, frames=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run's folder as the trainer leaves it, with weights as they were drawn."""
    folder = tmp_path_factory.mktemp("some <run>")
    step = folder / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    save_model(MAE(CONFIG), step / "model.safetensors")
    (folder / "checkpoints" / "latest").write_text("step-00000007")
    data = asdict(DataConfig(shards=str(shards), sampling_rate=1, aspect=(0.75, 1.25)))
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": json.loads(json.dumps(data))}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 7, "loss": 1.0}\n')
    return folder


def look(run: Path, shards: Path, out: Path, *more: str) -> str:
    """Run the command; the page's text."""
    assert visualize.main(["--run", str(run), "--data.shards", str(shards), "--out", str(out), *more]) == 0
    check_page(out / "index.html")
    return (out / "index.html").read_text(encoding="utf-8")


def images(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "images").iterdir())


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        visualize.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_run_gives_pictures_a_page_and_the_loss_curve(run: Path, shards: Path, tmp_path: Path) -> None:
    page = look(run, shards, tmp_path, "--samples", "5", "--device", "cpu")
    assert len(images(tmp_path)) == 15
    assert page.count('<img src="data:image/') == 11  # two of each sample, and the best one's
    for name in images(tmp_path):
        with Image.open(tmp_path / "images" / name) as image:
            image.load()
            assert getattr(image, "n_frames", 1) == (1 if name.endswith("png") else 2)
        assert name not in page
    assert "<polyline" in page
    assert "step-00000007" in page
    assert "every 1 frames" in page  # the run's own sampling
    assert "some &lt;run&gt;" in page
    assert str(shards) not in page


def test_keys_give_these_samples_in_this_order_with_their_own_frames(run: Path, shards: Path, tmp_path: Path) -> None:
    dataset, rows = open_corpus([shards]), np.array([4, 1])
    keys = [dataset.key(row) for row in rows.tolist()]
    page = look(run, shards, tmp_path, "--keys", *keys, "--mask-ratio", "0.75")
    assert images(tmp_path) == sorted(f"{key}.{kind}" for key in keys for kind in ("gif", "png", "webp"))
    assert page.index(f"key {keys[0]}") < page.index(f"key {keys[1]}")
    assert "6 of 8 tokens (mask ratio 0.75)" in page
    config = DataConfig(shards=str(shards), sampling_rate=1)
    clips = next(evaluation_clips(dataset, config, rows=rows, num_frames=4, size=32)).clips[:, 0].numpy()
    for key, clip in zip(keys, clips, strict=True):
        with Image.open(tmp_path / "images" / f"{key}.png") as opened:
            strip = np.asarray(opened)
        first = strip[23 : 23 + 8 * 32 : 8, : 8 * 32 : 8]  # under the caption, enlarged eight times
        np.testing.assert_array_equal(first, clip[0])


def test_the_same_seed_gives_the_same_pictures(run: Path, shards: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        look(run, shards, tmp_path / name, "--samples", "2", "--seed", seed)
    a, b, c = ({i.name: i.read_bytes() for i in (tmp_path / n / "images").iterdir()} for n in "abc")
    assert a == b
    assert a != c


def table(page: str) -> list[list[str]]:
    """The figures' rows."""
    found = re.search(r'<table class="numbers">.*?</table>', page)
    assert found
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>.*?</tr>", found[0])][1:]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of enough slots for every mask, trained with tubes."""
    folder = tmp_path_factory.mktemp("long")
    config = MAEConfig(**(asdict(CONFIG) | {"num_frames": 8, "pred_t_dim": 4, "mask_type": "tube"}))
    save_model(MAE(config), folder / "model.safetensors")
    return folder


def gain(text: str) -> float:
    """Return the decibels by which a card says that the reconstruction is closer than the best fill."""
    found = re.search(r"(-?\d+\.\d) dB.*, best fill .*?(-?\d+\.\d) dB", text)
    assert found, text
    return float(found[1]) - float(found[2])


def test_the_page_opens_with_the_sample_that_gains_most_and_the_last_line_has_the_means(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = look(run, shards, tmp_path, "--samples", "6")
    cards = re.findall(r'<h3>([^<]*)<small>([^<]*)</small></h3><div class="sheet"><img src="([^"]*)"', page)
    (title, best, image), *samples = cards
    assert "Best of 6" in title
    assert page.index(title) < page.index("<h3>About</h3>") < page.index(f"<h3>{samples[0][0]}<")
    encoded = io.BytesIO(base64.b64decode(image.partition(",")[2]))
    with Image.open(tmp_path / "best.png") as strip, Image.open(encoded) as shown:
        assert shown.size == strip.size
    gains = {name: gain(notes) for name, notes, _ in samples}
    assert len(gains) == 6
    assert max(gains.values()) - min(gains.values()) > 0.3  # so that the worst one would be noticed
    assert gain(title) == pytest.approx(gains[best])
    assert gains[best] > max(gains.values()) - 0.21  # four figures are rounded
    fills = [float(row[1].removesuffix(" dB")) for row in table(page)]
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"{tmp_path / 'index.html'} " in last
    said = [float(number) for number in re.findall(r"([0-9.]+) dB", last)]
    assert said == pytest.approx([fills[0], max(fills[1:])], abs=0.056)  # both are rounded, to one digit and to two
    assert re.search(r"reconstruction [0-9.]+ dB, best fill without a model [0-9.]+ dB", last)
    assert "6 clips" in last


def test_all_masks_are_shown_one_under_the_other_the_models_own_first(
    long_run: Path, shards: Path, tmp_path: Path
) -> None:
    page = look(long_run, shards, tmp_path, "--mask", "all", "--samples", "2", "--data.sampling_rate", "1")
    rows = table(page)
    assert [row[0] for row in rows] == [
        "tube", "random", "frame", "block", "prospective", "retrospective", "interpolation"
    ]  # fmt: skip
    assert {row[1] for row in rows} == {"50.0%"}
    assert all(re.fullmatch(r"\d+\.\d\d dB", cell) for row in rows for cell in row[2:4])
    assert "tube masks, ratio 0.5" in page
    assert len(images(tmp_path)) == 6
    with Image.open(next((tmp_path / "images").glob("*.png"))) as strip:
        assert (strip.height + 4) % 15 == 0  # the original and two rows a mask


@pytest.mark.slow
def test_one_mask_is_the_one_of_the_table_of_all(long_run: Path, shards: Path, tmp_path: Path) -> None:
    more = ("--samples", "2", "--data.sampling_rate", "1", "--mask-ratio", "0.75")
    every = {row[0]: row[2] for row in table(look(long_run, shards, tmp_path / "all", "--mask", "all", *more))}
    for kind in ("prospective", "retrospective"):
        page = look(long_run, shards, tmp_path / kind, "--mask", kind, *more)
        assert f"12 of 16 tokens (mask ratio 0.75), {kind}" in page
        assert table(page)[0][:2] == ["reconstruction", every[kind]]
    assert every["prospective"] != every["retrospective"]
    assert "interpolation" not in look(long_run, shards, tmp_path / "own", *more)


def test_the_model_keeps_its_own_mask(tmp_path: Path) -> None:
    model, clip = MAE(CONFIG), Clip(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), 0, "black", "black")
    (tmp_path / "images").mkdir()
    masks, _ = other_masks(CONFIG, ["tube"], ratio=0.75)
    reconstruction_section(model, [clip], masks, [], tmp_path, seed=0, frame_ms=100, device=torch.device("cpu"))
    assert model.config is CONFIG


def test_masks_that_do_not_fit_the_model_are_left_out_of_all_and_said(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = look(run, shards, tmp_path, "--mask", "all", "--samples", "1")
    assert "interpolation" not in [row[0] for row in table(page)]
    told = "interpolation: mask_ratio=0.5 keeps 8 of 8 tokens"
    assert f"left out: {told}" in capsys.readouterr().err
    assert f"Left out is the mask {told}" in page


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_an_imported_checkpoint(shards: Path, tmp_path: Path, norm_pix_loss: bool) -> None:
    config = MAEConfig(**(asdict(CONFIG) | {"norm_pix_loss": norm_pix_loss, "depth": 12}))
    args = {"norm_pix_loss": norm_pix_loss, "decoder_num_heads": 3, "mask_ratio": 0.5}
    torch.save(
        {"model": to_foreign(MAE(config).state_dict(), config, format="mae_st"), "args": args}, tmp_path / "foreign.pth"
    )
    page = look(tmp_path / "foreign.pth", shards, tmp_path / "out", "--samples", "1")
    assert ("taken from the original patch" in page) == norm_pix_loss
    assert "<polyline" not in page
    assert "every 4 frames at 30" in page


def test_which_samples_are_shown_is_chosen_as_in_pretraining(run: Path, shards: Path, tmp_path: Path) -> None:
    """Of two datasets, whose keys are the same; the labels and the choice are not the run's, its sampling is."""
    (tmp_path / "names.txt").write_text("video_1\nvideo_3\n")
    (tmp_path / "labels.csv").write_text("name,label\nvideo_1,knee\n")
    page = look(
        run, shards, tmp_path / "out", "--data.shards", str(shards), str(shards),
        "--data.select.names", str(tmp_path / "names.txt"), "--data.labels", str(tmp_path / "labels.csv"),
    )  # fmt: skip
    assert len(images(tmp_path / "out")) == 12
    assert page.count("label knee") == 2
    assert "12 samples" in page
    assert "every 1 frames" in page


def test_fault_20_bad_shards_are_left_out_on_request(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(shards, tmp_path / "damaged"))
    (damaged / "shard-00000.tar").unlink()
    options = ["--run", str(run), "--data.shards", str(damaged), "--out", str(tmp_path / "out")]
    assert "leave them out with --data.exclude_bad_shards true" in refused(capsys, *options)
    look(run, damaged, tmp_path / "out", "--data.exclude-bad-shards", "true")
    assert len(images(tmp_path / "out")) == 6  # of two samples
    assert f"left out: {damaged}/shard-00000.tar (4 samples): missing\n" in capsys.readouterr().err


@pytest.mark.slow
def test_a_url_is_read_through_the_cache(run: Path, shards: Path, s3: Server, tmp_path: Path) -> None:
    s3.upload(shards, "looked-at/shards")
    look(
        run, Path(), tmp_path / "out", "--data.shards", "s3://looked-at/shards", "--data.cache", str(tmp_path / "cache")
    )
    assert len(images(tmp_path / "out")) == 18
    assert len(list((tmp_path / "cache").glob("*/*/*.tar"))) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--run": "nowhere"}, "nowhere: no such file or folder"),
        ({"--data.shards": "nowhere"}, "nowhere"),
        ({"--keys": "no_such_key"}, "no_such_key"),
        ({"--samples": "0"}, "samples=0"),
        ({"--mask-ratio": "1.5"}, "mask_ratio=1.5"),
        ({"--device": "tpu"}, "tpu"),
        ({"--mask": "tubes"}, "did you mean tube?"),
        ({"--mask": "frame", "--mask-ratio": "0.95"}, "mask_type=frame keeps or hides 4 at a time"),
        ({"--mask": "all", "--mask-ratio": "1.5"}, "mask_ratio=1.5"),
        ({"--smaples": "3"}, "did you mean --samples"),
    ],
)
def test_what_is_wrong_is_told(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], told: str
) -> None:
    options = {"--run": str(run), "--data.shards": str(shards), "--out": str(tmp_path)} | change
    assert told in refused(capsys, *(word for option in options.items() for word in option))


def test_what_cannot_be_shown_is_refused_before_any_clip_is_read(
    run: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(visualize, "read_clips", None)
    monkeypatch.setattr(visualize, "read_videos", None)
    command = ["--run", str(run), "--data.shards", str(shards), "--out", str(tmp_path / "out")]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2, np.float32)), 2)
    pq.write_table(pa.table({"key": ["000000001"], "vector": vectors}), tmp_path / "v.parquet")
    table = ["--show", "neighbours", "--embeddings", str(tmp_path / "v.parquet")]
    assert "has no vector in --embeddings" in refused(capsys, *command, *table, "--keys", "000000000")
    assert "--videos: has no vector in --embeddings" in refused(capsys, *command, *table, "--videos", "a.mp4")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("a thesis")
    assert "not replaced" in refused(capsys, *command)
    monkeypatch.setattr("mae3d.io.resources.available_memory", lambda: 10_000)
    told = refused(capsys, *command)
    assert "6 clips of 4 x 32 x 32 pixels: " in told
    assert "--samples" in told


def test_no_name_of_a_video_breaks_the_last_step(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So long that its pictures' names would be longer than a file system allows; or not in UTF-8."""
    video = make_video(tmp_path / "v.mp4", 8).rename(tmp_path / f"{'v' * 250}.mp4")
    assert visualize.main(["--run", str(run), "--videos", str(video), "--out", str(tmp_path / "out")]) == 0
    assert "this name is not UTF-8" in refused(capsys, "--run", "r", "--videos", os.fsdecode(b"\xff.mp4"), "--out", "o")
