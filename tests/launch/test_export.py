"""launch/export.py: a folder that opens again, tells what the model needs and nothing of the data."""

import json
import re
import resource
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import mae3d
from launch import export
from launch.training.config import PretrainConfig
from mae3d.model.classifier import Classifier
from mae3d.model.config import ClassifierConfig, MAEConfig
from mae3d.model.mae import MAE
from mae3d.tracking.run_dir import Run
from mae3d.training.config import RunConfig
from mae3d.weights.convert import to_foreign
from mae3d.weights.files import load_classifier, load_model, open_encoder, save_model
from pipelines.config import DataConfig, SelectConfig
from tests.support.media import make_video

CONFIG = MAEConfig(
    preset="mae_vit_tiny_patch16", img_size=32, num_frames=4, depth=1, decoder_depth=1, mask_ratio=0.5,
    mean=(0.5, 0.4, 0.3),
)  # fmt: skip
SECRET = "clinic_77"  # in every name and path of the data


def make_run(folder: Path, model: MAE | Classifier, **settings: object) -> Path:
    """A run's folder as the trainer leaves it."""
    data = DataConfig(
        shards=(f"/data/{SECRET}/shards", f"s3://{SECRET}/shards"), sampling_rate=2, target_fps=12,
        labels=f"{SECRET}.csv",
        select=SelectConfig(names=f"{SECRET}.txt"), cache=f"/{SECRET}", repeat_aug=3,
    )  # fmt: skip
    config = asdict(PretrainConfig(model=CONFIG, data=data, run=RunConfig(dir=str(folder)))) | settings
    Run(folder).claim(config, extend=False)
    step = folder / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    save_model(model, step / "model.safetensors")
    (folder / "checkpoints" / "latest").write_text(step.name)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / f"{SECRET}_run", MAE(CONFIG))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def facts(out: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads((out / "config.json").read_text())
    return read


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        export.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_an_exported_run_opens_and_tells_what_it_takes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert export.main([str(run), str(out)]) == 0
    assert capsys.readouterr().out == f"exported: {out}\n"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # nothing is left beside it
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # whoever reads one reads all
    opened = load_model(out)
    assert same(opened, load_model(run))
    assert opened.config == CONFIG
    told = facts(out)
    expected = {
        "size": 32,
        "frames": 4,
        "sampling_rate": 2,
        "target_fps": 12,
        "mean": [0.5, 0.4, 0.3],
        "mask_ratio": 0.5,
    }
    assert {name: told[name] for name in expected} == expected
    assert told["preset"] is None  # one block is no published size
    assert MAEConfig(**told["model"]) == CONFIG  # type: ignore[arg-type]
    card = (out / "README.md").read_text()
    assert "| data.repeat_aug | 3 |" in card
    assert "| train.steps_done | 7 |" in card
    assert "trained from scratch" in card


@pytest.mark.parametrize("format", ["mae3d", "mae_st"])
def test_nothing_of_the_data_is_told(run: Path, tmp_path: Path, format: str) -> None:
    export.main([str(run), str(tmp_path / "out"), "--format", format])
    for path in (tmp_path / "out").iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name


def test_the_cards_three_lines_embed_an_mp4(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export.export(run, tmp_path / "THIS FOLDER")
    make_video(tmp_path / "video.mp4", 30, fps=12)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "THIS FOLDER" / "README.md").read_text(), flags=re.DOTALL)
    assert "sampling_rate=2, target_fps=12" in code
    names: dict[str, torch.Tensor] = {}
    exec(code, names)
    assert names["vector"].shape == (1, CONFIG.embed_dim)
    assert torch.isfinite(names["vector"]).all()


def test_a_folder_for_mae_st_users_opens_everywhere(run: Path, tmp_path: Path) -> None:
    out = export.export(run, tmp_path / "out", format="mae_st")
    content = torch.load(out / "checkpoint.pth", weights_only=True)
    assert content["model"].keys() == to_foreign(MAE(CONFIG).state_dict(), CONFIG, format="mae_st").keys()
    assert content["args"]["decoder_num_heads"] == 3
    opened = load_model(out)
    assert same(opened, load_model(run))
    assert opened.config == CONFIG
    assert same(open_encoder(out), opened.encoder)
    back = export.export(out, tmp_path / "back")
    assert same(load_model(back), opened)
    for name in ("sampling_rate", "training", "licence"):
        assert facts(back)[name] == facts(out)[name]


def test_a_foreign_file_of_ours_keeps_how_pixels_are_normalised(run: Path, tmp_path: Path) -> None:
    """Beside its config.json and moved away from it, for the whole model and for its encoder."""
    out = export.export(run, tmp_path / "out", format="mae_st")
    alone = (out / "checkpoint.pth").rename(tmp_path / "alone.pth")
    assert load_model(alone).config.mean == open_encoder(alone).config.mean == CONFIG.mean
    alone.rename(out / "checkpoint.pth")
    assert load_model(out).config.mean == open_encoder(out).config.mean == CONFIG.mean


def test_an_official_checkpoint_goes_through(tmp_path: Path) -> None:
    official = replace(CONFIG, decoder_cls="encoder", target_rule="stride", decoder_sep_pos_embed=False)
    model = MAE(official)
    run = make_run(tmp_path / "run", model)
    out = export.export(run, tmp_path / "out", format="pyslowfast")
    assert same(load_model(out), model)
    (out / "config.json").unlink()
    assert same(load_model(out), model)  # the tensors and `args` tell as much
    assert "pred_head.projections.0.weight" in torch.load(out / "checkpoint.pth", weights_only=True)["model_state"]


def test_what_a_format_cannot_hold_is_not_begun(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, str(run), str(tmp_path / "out"), "--format", "m3d")
    assert "cannot hold decoder_cls='own'" in message
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_a_folder_that_holds_something_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    export.export(run, tmp_path / "out")  # an empty one is not
    before = (tmp_path / "out" / "README.md").read_bytes()
    assert "holds something already" in refused(capsys, str(run), str(tmp_path / "out"))
    assert (tmp_path / "out" / "README.md").read_bytes() == before
    assert "no such file or folder" in refused(capsys, str(tmp_path / "nowhere"), str(tmp_path / "other"))


@pytest.mark.parametrize("format", ["mae3d", "mae_st"])
def test_a_disk_that_fills_up_is_named_whichever_library_writes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            export.main([str(run), str(tmp_path / "out"), "--format", format])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert stopped.value.code == 3
    assert "ile too large" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


@pytest.mark.parametrize("rate", ["nan", "0", "-4", "inf"])
def test_a_distance_of_frames_that_is_none_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: str
) -> None:
    told = refused(capsys, str(run), str(tmp_path / "out"), "--sampling_rate", rate)
    assert "--sampling_rate=" in told
    assert "must be above 0" in told


def test_weights_that_the_disk_cannot_hold_are_refused_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"the weights of .* of disk are needed"):
        export.export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_a_failure_in_the_middle_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("launch.export.write_card", full)
    with pytest.raises(SystemExit) as stopped:
        export.main([str(run), str(tmp_path / "out")])
    assert stopped.value.code == 3
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_the_licence_of_the_weights_it_started_from(tmp_path: Path) -> None:
    foreign = tmp_path / "start.pth"
    state = to_foreign(MAE(CONFIG).state_dict(), CONFIG, format="mae_st")
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, foreign)
    start = export.export(make_run(tmp_path / "first", MAE(CONFIG)), tmp_path / "start", licence="MIT, by A. N. Other")
    for number, (init, expected) in enumerate(
        [("", "trained from scratch"), (str(foreign), "CC BY-NC 4.0"), (str(start), "MIT, by A. N. Other"),
         (f"/gone/{SECRET}.pth", "not recorded here"), (str(tmp_path / "run0"), "trained from scratch"),
         (str(tmp_path / "run1"), "CC BY-NC 4.0"), (str(tmp_path / "run4" / "checkpoints"), "not recorded here")]
    ):  # fmt: skip
        out = export.export(make_run(tmp_path / f"run{number}", MAE(CONFIG), init=init), tmp_path / f"out{number}")
        card = (out / "README.md").read_text()
        assert expected in card
        assert SECRET not in card


@pytest.mark.parametrize("format", ["mae3d", "mae_st", "pyslowfast"])
def test_a_classifier(tmp_path: Path, format: str) -> None:
    names = ("ant", "bee", "cow", "dog", "elk")
    config = ClassifierConfig.of(replace(CONFIG), num_classes=5, class_names=names, pooling="cls", multi_label=True)
    run = make_run(tmp_path / "run", Classifier(config))
    out = export.export(run, tmp_path / "out", format=format)
    assert same(load_classifier(out), load_classifier(run))
    assert load_classifier(out).config == config
    assert facts(out)["num_classes"] == 5
    assert facts(out)["model"]["class_names"] == list(names)
    assert "mae3d.load_classifier" in (out / "README.md").read_text()
    if format != "mae3d":
        (out / "config.json").unlink()  # `args` in the file tells as much
        assert same(load_classifier(out), load_classifier(run))
        assert load_classifier(out).config.class_names == names
        assert load_classifier(out).config.pooling == "cls"


def test_a_format_without_our_classifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", Classifier(ClassifierConfig.of(replace(CONFIG), num_classes=5)))
    assert "has another classifier" in refused(capsys, str(run), str(tmp_path / "other"), "--format", "m3d")


def test_public_names() -> None:
    assert mae3d.open_encoder is open_encoder
    assert callable(mae3d.read_clip)
