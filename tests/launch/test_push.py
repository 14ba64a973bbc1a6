"""launch/push.py: a run is uploaded with a card and a picture, and nothing of its data."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import mae3d
from launch import push
from launch.export import export
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig
from mae3d.model.mae import MAE
from tests.launch.test_export import CONFIG, SECRET, make_run, same
from tests.support.hub_server import Hub

# httpx's, of the way in which huggingface_hub uploads to Git LFS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / f"{SECRET}_run", MAE(CONFIG))


def uploaded(hub: Hub, repo: str, branch: str = "main") -> dict[str, bytes]:
    of_repo = hub.repos[repo]
    return {name: content for name, (content, _) in of_repo.commits[of_repo.branches[branch]].items()}


def test_a_run_is_pushed_and_opened_by_its_name(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push.main([str(run), "org/name", "--private", "--licence", "CC BY-NC 4.0", "--message", "First"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"pushed: {hub.endpoint}/org/name/commit/")
    files = uploaded(hub, "org/name")
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "preview.png"]
    assert len(hub.repos["org/name"].commits) == 2  # the empty one, and one with all files
    assert hub.private == {"org/name"}
    assert same(mae3d.load_model("org/name"), mae3d.load_model(run))
    for name, content in files.items():
        assert SECRET.encode() not in content, name
    _, front, text = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "mae3d",
        "pipeline_tag": "feature-extraction",
        "license": "cc-by-nc-4.0",
        "tags": ["mae3d", "video", "masked-autoencoder", "vit"],
    }
    assert "](preview.png)" in text
    (tmp_path / "preview.png").write_bytes(files["preview.png"])
    picture = np.asarray(Image.open(tmp_path / "preview.png").convert("RGB"))
    assert picture.std() > 20  # a clip, not an empty sheet


def test_nothing_is_uploaded_by_a_dry_run(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push.main([str(run), "org/name", "--dry_run", "--private"]) == 0
    printed = capsys.readouterr().out
    assert "nothing uploaded; org/name would get, as a private repository" in printed
    assert "model.safetensors" in printed
    assert hub.log == []


def test_another_branch_and_picture_and_a_classifier(hub: Hub, tmp_path: Path) -> None:
    config = ClassifierConfig.of(CONFIG, num_classes=3, pooling="patches")
    run = make_run(tmp_path / "fine", Classifier(config))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "mine.png")
    assert push.main([str(run), "org/fine", "--revision", "v2", "--picture", str(tmp_path / "mine.png")]) == 0
    assert uploaded(hub, "org/fine", "v2")["preview.png"] == (tmp_path / "mine.png").read_bytes()
    assert uploaded(hub, "org/fine") == {}
    assert mae3d.load_classifier("org/fine@v2").config == config
    assert push.main([str(run), "org/fine"]) == 0
    assert "preview.png" not in uploaded(hub, "org/fine")  # a classifier fills in nothing
    card = uploaded(hub, "org/fine")["README.md"].decode()
    assert "pipeline_tag: video-classification" in card
    assert "license" not in card.partition("---\n\n")[0]  # nothing is claimed of weights from scratch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "a/b/c"], "no name of a repository"),
        (["{run}/nothing", "org/name"], "no such file or folder"),
        (["{run}", "org/name", "--picture", "{run}/config.yaml"], "config.yaml: is no PNG"),
        (["{run}", "org/name", "--format", "transformers"], "cannot hold a class token"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_made(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        push.main([argument.format(run=run) for argument in arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert hub.log == []


def test_a_hub_that_is_down_is_an_error_of_io(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.failing = "/api/repos"
    with pytest.raises(SystemExit) as stopped:
        push.main([str(run), "org/name", "--picture", "none"])
    assert stopped.value.code == 3
    assert "error: org/name: " in capsys.readouterr().err
    hub.failing, hub.failure = "/store/", 400  # the client tries others again, for half a minute
    with pytest.raises(SystemExit) as stopped:
        push.main([str(run), "org/name", "--picture", "none"])
    assert stopped.value.code == 3
    assert "uploading 'model.safetensors'" in capsys.readouterr().err
    assert uploaded(hub, "org/name") == {}


def test_a_licence_is_inherited_from_the_hub_without_the_network(hub: Hub, tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", MAE(CONFIG))
    assert push.main([str(first), "org/first", "--licence", "CC BY-NC 4.0", "--picture", "none"]) == 0
    for number, (name, note) in enumerate([("org/first", "CC BY-NC 4.0"), ("org/absent", "not recorded here")]):
        run = make_run(tmp_path / f"run{number}", MAE(CONFIG), init=name)
        if name == "org/first":
            mae3d.load_model(name)  # as the training did
        before = len(hub.log)
        card = (export(run, tmp_path / f"out{number}") / "README.md").read_text()
        assert note in card
        assert "org/" not in card
        assert len(hub.log) == before
