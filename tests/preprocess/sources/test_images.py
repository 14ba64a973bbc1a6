import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mae3d.io.storage import Storage
from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.samples.corpus import open_corpus
from preprocess.__main__ import main
from preprocess.dataset.index import open_dataset
from preprocess.plan.settings import Settings
from preprocess.sources.images import image_files
from tests.support.datasets import run_build
from tests.support.media import frame_number, numbered_image


def put(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def make_tree(root: Path) -> Path:
    """Two classes of images of all modes and formats; numbers 1 to 9, in the order of the paths."""
    small = (64, 48)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise
    palette = numbered_image(4, small).convert("P")
    palette.info["transparency"] = bytes(range(256))
    put(root / "ant" / "1.JPEG", numbered_image(1, (640, 480)), quality=95)
    put(root / "ant" / "2.jpg", numbered_image(2, small).transpose(Image.Transpose.ROTATE_90), exif=turned, quality=95)
    put(root / "ant" / "3.jpg", numbered_image(3, small).convert("CMYK"), quality=95)
    put(root / "ant" / "4.png", palette)
    put(root / "ant" / "5.png", numbered_image(5, small).convert("RGBA"))
    put(root / "bee" / "deep" / "6.webp", numbered_image(6, small), quality=95)
    put(root / "bee" / "deep" / "7.png", numbered_image(7, small).convert("L"))
    put(
        root / "bee" / "deep" / "8.gif",
        numbered_image(8, small),
        save_all=True,
        append_images=[numbered_image(0, small)],
    )
    put(root / "bee" / "deep" / "9.jpg", numbered_image(9, small).convert("L"), quality=95, progressive=True)
    return root


def build(out: Path, *options: str | Path) -> int:
    return main(["build", *map(str, options), "--workers", "1", "--out", str(out)])


def stored(out: Path, i: int) -> Image.Image:
    dataset = open_dataset(out)
    span = dataset.spans(i, np.arange(dataset.num_frames[i]))
    start = int(span.offset[0])
    data = dataset.shard_path(int(dataset.shard[i])).read_bytes()[start : start + int(span.size[0])]
    return Image.open(io.BytesIO(data))


def test_a_tree_of_images_becomes_samples_of_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path / "images")
    put(root / ".hidden" / "1.jpg", numbered_image(1))
    put(root / "ant" / ".2.jpg", numbered_image(1))
    (root / "bee" / "notes.txt").write_text("no image")
    (root / "linked").symlink_to(root / "ant")
    assert build(tmp_path / "out", "--images", root, "--short-side", "240", "--split", "train") == 0
    dataset = open_dataset(tmp_path / "out")
    names = ["ant/1.JPEG", "ant/2.jpg", "ant/3.jpg", "ant/4.png", "ant/5.png"]
    names += ["bee/deep/6.webp", "bee/deep/7.png", "bee/deep/8.gif", "bee/deep/9.jpg"]
    assert [dataset.name(i) for i in range(len(dataset))] == names
    assert dataset.label_names == ["ant", "bee"]
    assert [dataset.labels_of(i) for i in range(9)] == [[0]] * 5 + [[1]] * 4
    assert dataset.num_frames.tolist() == [1] * 9
    assert np.isnan(dataset.fps).all()
    assert [stored(tmp_path / "out", i).size for i in range(9)] == [(320, 240)] + [(64, 48)] * 8
    pictures = [stored(tmp_path / "out", i) for i in range(9)]
    assert [(picture.format, picture.mode) for picture in pictures] == [("JPEG", "RGB")] * 9
    assert [frame_number(picture) for picture in pictures] == list(range(1, 10))
    said = capsys.readouterr().out
    assert "9 samples, 9 frames" in said
    assert "images: 1 linked folders were not followed" in said
    assert main(["verify", str(tmp_path / "out"), "--full", "--decode"]) == 0


def test_flat_folders_and_files_have_no_labels(tmp_path: Path) -> None:
    put(tmp_path / "flat" / "1.jpg", numbered_image(1))
    single = put(tmp_path / "elsewhere" / "2.png", numbered_image(2))
    assert build(tmp_path / "out", "--images", tmp_path / "flat", single) == 0
    dataset = open_dataset(tmp_path / "out")
    assert [dataset.name(i) for i in range(2)] == ["1.jpg", "2.png"]
    assert [dataset.labels_of(i) for i in range(2)] == [[], []]
    assert [frame_number(stored(tmp_path / "out", i)) for i in range(2)] == [1, 2]


def test_splits_classes_and_several_roots_behind_urls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("train/ant/1.jpg", "train/bee/2.jpg", "val/ant/3.jpg")
    storage = Storage("memory://pictures/one")
    for number, name in enumerate(names, start=1):
        storage.put(put(tmp_path / "one" / name, numbered_image(number)), name)
    put(tmp_path / "two" / "train" / "ant" / "1.jpg", numbered_image(4))
    given = [storage.url, tmp_path / "two"]
    assert build(tmp_path / "out", "--images", *given, "--scratch", tmp_path / "scratch") == 0
    dataset = open_dataset(tmp_path / "out")
    assert [dataset.name(i) for i in range(4)] == [*names, "train/ant/1.jpg"]
    assert [dataset.split_names[code] for code in dataset.splits] == ["train", "train", "val", "train"]
    assert [dataset.labels_of(i) for i in range(4)] == [[0], [1], [0], [0]]
    assert [frame_number(stored(tmp_path / "out", i)) for i in range(4)] == [1, 2, 3, 4]
    assert "warning: 1 names are in several sources, and all are taken: train/ant/1.jpg" in capsys.readouterr().out


def test_fault_07_links_of_images_out_of_the_root_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "in" / "1.jpg", numbered_image(1))
    outside = put(tmp_path / "2.jpg", numbered_image(2))
    (tmp_path / "in" / "2.jpg").symlink_to(outside)
    assert [one.reason for one in image_files([tmp_path / "in"], settings=Settings()).find().problems] == [
        "unsafe_name"
    ]
    assert build(tmp_path / "out", "--images", tmp_path / "in", "--allow-outside") == 0
    assert len(open_dataset(tmp_path / "out")) == 2


def test_a_fitting_jpeg_passes_through_untouched(tmp_path: Path) -> None:
    source = put(tmp_path / "images" / "a" / "1.jpg", numbered_image(1), quality=80)
    assert build(tmp_path / "out", "--images", tmp_path / "images") == 0
    (tar,) = (tmp_path / "out").glob("*.tar")
    assert source.read_bytes() in tar.read_bytes()


def test_broken_images_are_listed_with_their_reason(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "images")
    whole = (root / "ant" / "1.JPEG").read_bytes()
    (root / "ant" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "ant" / "empty.png").write_bytes(b"")
    (root / "ant" / "text.jpg").write_bytes(b"not an image at all")
    (root / "ant" / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (root / "ant" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    assert build(tmp_path / "out", "--images", root) == 0
    assert len(open_dataset(tmp_path / "out")) == 9
    rejected = {row["name"]: row for row in pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()}
    reasons = {name: (row["reason"], row["message"]) for name, row in rejected.items()}
    assert reasons == {
        "ant/cut.jpg": ("bad_frame", "cut.jpg: damaged JPEG: its end is missing"),
        "ant/empty.png": ("bad_frame", "empty.png: empty file"),
        "ant/text.jpg": ("bad_frame", "text.jpg: not an image"),
        "ant/script.png": ("bad_frame", "script.png: not an image"),
        "ant/caf\\udce9.png": ("odd_name", "its name is not UTF-8"),
    }


@pytest.mark.slow
def test_the_same_bytes_with_any_number_of_workers_and_after_a_rerun(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for number in range(40):
        put(root / f"class {number % 3}" / f"{number}.png", numbered_image(number))

    def tree(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    assert build(tmp_path / "a", "--images", root, "--shard-size", "16") == 0
    assert (
        main(["build", "--images", str(root), "--shard-size", "16", "--workers", "2", "--out", str(tmp_path / "b")])
        == 0
    )
    whole = tree(tmp_path / "a")
    assert tree(tmp_path / "b") == whole
    (tmp_path / "b" / "dataset.json").unlink()
    (tmp_path / "b" / "shard-00001.parquet").unlink()
    assert build(tmp_path / "b", "--images", root, "--shard-size", "16") == 0
    assert tree(tmp_path / "b") == whole


@pytest.mark.parametrize("option", ["--fps", "--source-fps", "--segment-seconds", "--segment-frames", "--columns"])
def test_what_needs_a_clock_or_a_list_is_refused(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "images" / "1.jpg", numbered_image(1))
    assert build(tmp_path / "out", "--images", tmp_path / "images", option, "2") == 2
    assert option in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder; --images"):
        image_files([tmp_path / "absent"], settings=Settings())


def test_one_frame_is_repeated_to_a_clip(tmp_path: Path) -> None:
    out = run_build(tmp_path / "out", "--images", make_tree(tmp_path / "images"))
    corpus = open_corpus([out])
    config = DataConfig(repeat_aug=1, flip=0, area=(1, 1), aspect=(4 / 3, 4 / 3), read_threads=1, decode_threads=1)
    loader = Loader(corpus, config, num_frames=4, size=64, seed=0, global_batch=3)
    seen = set()
    for _ in range(3):
        batch = next(loader)
        for row, label, clip in zip(
            batch.rows[:, 0].tolist(), batch.labels[:, 0].tolist(), batch.clips[:, 0].numpy(), strict=True
        ):
            assert [frame_number(Image.fromarray(frame)) for frame in clip] == [row + 1] * 4
            assert label == int(row >= 5)
            seen.add(row)
    loader.close()
    assert seen == set(range(9))
