import pytest

from preprocess.sources.folder_labels import infer_labels


@pytest.mark.parametrize(
    ("paths", "mode", "labels", "splits"),
    [
        (["cat/1.mp4", "dog/a/2.mp4"], "auto", ["cat", "dog"], ["", ""]),
        (["cat/1.mp4", "2.mp4"], "auto", ["", ""], ["", ""]),
        (["cat/1.mp4", "2.mp4"], "folder", ["cat", ""], ["", ""]),
        (["cat/1.mp4", "dog/2.mp4"], "none", ["", ""], ["", ""]),
        (["train/cat/1.mp4", "Validation/dog/2.mp4"], "auto", ["cat", "dog"], ["train", "val"]),
        (["train/1.mp4", "testing/2.mp4", "eval/3.mp4"], "auto", ["", "", ""], ["train", "test", "eval"]),
        (["train/cat/1.mp4", "val/2.mp4"], "auto", ["", ""], ["train", "val"]),
        (["train/1.mp4", "boat/2.mp4"], "auto", ["train", "boat"], ["", ""]),  # a class that is called train
        (["train"], "auto", [""], [""]),
        ([], "auto", [], []),
    ],
)
def test_folders_are_splits_and_classes(paths: list[str], mode: str, labels: list[str], splits: list[str]) -> None:
    placed = infer_labels(paths, labels=mode)  # type: ignore[arg-type]
    assert [" ".join(several) for several in placed.labels] == labels
    assert placed.splits == splits


def test_what_was_found_is_told() -> None:
    told = infer_labels(["train/cat/1.mp4", "val/dog/2.mp4"], labels="auto").note
    assert told == "splits by folder: train, val; labels: the first folder, 2 classes (--labels none for none)"
