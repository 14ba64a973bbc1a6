"""Every example of docs/hooks.md runs as it stands; draws and losses are exact; changed hooks are refused by name."""

import json
import logging
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import mae3d
from launch import embed, evaluate, pretrain
from launch.common.clip_options import ClipsConfig, clips_config
from launch.common.eval_set import EvalSet
from launch.inference.evaluate import sample_settings
from launch.training.config import PretrainConfig
from mae3d.distributed import World
from mae3d.io import hooks
from mae3d.model import masking
from mae3d.model.config import MAEConfig
from mae3d.tracking.config import LogConfig
from mae3d.tracking.run_dir import read_metrics
from mae3d.training.config import OptimConfig, RunConfig, TrainConfig
from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.samples.corpus import open_corpus
from pipelines.sampling.requests import evaluation_windows
from preprocess.__main__ import main as preprocess
from preprocess.workers.decoder import decoder
from tests.conftest import ROOT
from tests.support.builds import tree
from tests.support.loaders import take
from tests.support.ranks import run_ranks
from tests.support.trainings import MODEL

MASK = "my_masks:checkerboard(size=2)"
AUGMENT = ("my_augment:blur(most=5)", "my_shift:shift")
WINDOWS = "my_windows:rising(fastest=3)"
STEPS = 6
KILL = """
import torch

class Kill:
    def on_step(self, view):
        if view.step == 5:
            raise KeyboardInterrupt

class Faulty:
    def on_step(self, view):
        torch.rand(3)
        view.model.eval()
        raise RuntimeError(f"step {view.step}")

class Unstarted:
    def on_start(self, view):
        raise OSError("no such chat")

def draws(view):
    assert not torch.is_grad_enabled() and view.loss > 0 and view.row["loss"] > 0
    return {"drawn": view.rng.random()}

def loss(view):
    return {"loss": 1}
"""


def examples() -> dict[str, str]:
    """Return the files of the page by name."""
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    return dict(re.findall(r'^```python title="(\w+\.py)"\n(.*?)^```$', text, flags=re.MULTILINE | re.DOTALL))


def forget() -> None:
    """Forget the modules of other folders."""
    hooks.load.cache_clear()
    hooks._trusted.clear()
    for name in [name for name in masking._SCORES if hooks.is_hook(name)]:
        del masking._SCORES[name]
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the current folder, which holds the files of the page."""
    for name, text in examples().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "my_kill.py").write_text(KILL)
    (tmp_path / "my_shift.py").write_text("def shift(clip, rng):\n    return clip + int(rng.integers(1, 256))\n")
    decoder().close()  # it was started in another folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that is changed within a second is another one
    forget()
    yield tmp_path
    decoder().close()
    forget()


def settings(shards: Path, **changes: Any) -> DataConfig:
    sampling = {"sampling": WINDOWS, "augment": AUGMENT, "repeat_aug": 2, "read_threads": 1, "decode_threads": 1}
    return DataConfig(shards=str(shards), **sampling | changes)


def loader_of(shards: Path, *, rank: int = 0, world: int = 1, **changes: Any) -> Loader:
    config = settings(shards, **changes)
    return Loader(open_corpus([shards]), config, num_frames=4, size=32, seed=3, global_batch=4, rank=rank, world=world)


def test_the_page_has_an_example_of_each_kind() -> None:
    assert len(examples()) == len(hooks.KINDS)
    assert all(len(text.splitlines()) <= 35 for text in examples().values())


def test_windows_and_augmentations_are_the_same_on_any_number_of_ranks_and_after_a_resume(
    files: Path, shards: Path
) -> None:
    loader = loader_of(shards)
    first, second = [next(loader) for _ in range(2)]
    state = json.loads(json.dumps(loader.state_dict()))
    third = next(loader)
    loader.close()
    halves = [take(loader_of(shards, rank=rank, world=2), 2) for rank in range(2)]
    for whole, parts in zip((first, second), zip(*halves, strict=True), strict=True):
        assert torch.equal(whole.clips, torch.cat([part.clips for part in parts]))
    resumed = loader_of(shards)
    resumed.load_state_dict(state)
    assert torch.equal(take(resumed, 1)[0].clips, third.clips)
    plain = take(loader_of(shards, augment=()), 1)[0]
    assert not torch.equal(plain.clips, first.clips)
    views = [clip.views[0].augment for clip in next(loader_of(shards).requests()).clips]
    draws = {tuple(rng.random() for rng in augment.rngs()) for augment in views if augment}
    assert len(draws) == 8  # of each view another
    assert len({draw for both in draws for draw in both}) == 16  # of each hook, too


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": ("my_augment:blur(most=7)", AUGMENT[1])}, r"augment: was .*most=5.*is .*most=7"),
        ({"augment": ()}, r"augment: was .*is None"),
        ({"sampling": "my_windows:rising(fastest=4)"}, r"sampling: was .*fastest=3.*is .*fastest=4"),
    ],
)
def test_other_settings_of_a_hook_are_other_data(
    files: Path, shards: Path, changes: dict[str, Any], message: str
) -> None:
    state = loader_of(shards).state_dict()
    with pytest.raises(ValueError, match=message):
        loader_of(shards, **changes).load_state_dict(state)


def test_a_runs_sampler_is_trusted_by_name_and_its_augmentations_are_left_out(files: Path, shards: Path) -> None:
    trained = {"sampling": "my_windows:rising", "augment": ["my_gone:blur"], "flip": 0.25}
    with pytest.raises(ValueError, match=r"names my_windows:rising.*give --data\.sampling 'my_windows:rising'"):
        clips_config(ClipsConfig(str(shards)), trained)
    clips = clips_config(ClipsConfig(str(shards), sampling="my_windows:rising"), trained)
    assert (clips.sampling, clips.augment, clips.flip) == ("my_windows:rising", (), 0.25)
    corpus = open_corpus([shards])
    (row,) = np.flatnonzero(corpus.num_frames == 30)
    windows = evaluation_windows(corpus, clips, int(row), num_frames=4, num_clips=2)
    assert [window.tolist() for window in windows] == [[7, 9, 11, 13], [15, 17, 19, 21]]
    settings = sample_settings(EvalSet(corpus, clips, np.arange(3)))
    assert settings["data: code of my_windows:rising"].startswith("my_windows sha256 ")


@pytest.mark.parametrize(
    ("code", "changes", "error", "message"),
    [
        ("def f(clip, rng): return clip[:2]", {"augment": ("my_own:f",)}, ValueError, r"my_own:f returned \(2, 32"),
        ("def f(clip, rng): 1 / 0", {"augment": ("my_own:f",)}, hooks.HookError, "my_own:f failed: ZeroDivisionError"),
        ("def f(clip): pass", {"augment": ("my_own:f",)}, ValueError, r"called as f\(clip, rng\), and takes \(clip\)"),
        ("def f(*a): return [0, 1, 2, -1]", {"sampling": "my_own:f"}, ValueError, r"returned .0, 1, 2, -1. .*4 whole"),
        (
            "def f(*a): raise ValueError('x')",
            {"sampling": "my_own:f"},
            hooks.HookError,
            "my_own:f failed: ValueError: x",
        ),
    ],
)
def test_a_wrong_result_names_the_hook(
    files: Path, shards: Path, code: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    (files / "my_own.py").write_text(code)
    with pytest.raises(error, match=message):
        take(loader_of(shards, **changes), 1)


def test_short_samples_keep_their_policy(files: Path, shards: Path) -> None:
    (files / "my_own.py").write_text("def f(*a):\n    return [0, 5, 10, 15]\n")
    corpus = open_corpus([shards])
    for short, frames in (("loop", [0, 0, 0, 0]), ("pad", [0, 0, 0, 0])):
        request = next(loader_of(shards, sampling="my_own:f", short=short).requests())
        for clip in request.clips:
            length = int(corpus.num_frames[clip.row])
            expected = [n % length if short == "loop" else min(n, length - 1) for n in (0, 5, 10, 15)]
            assert clip.frames.tolist() == (frames if length == 1 else expected)
    dropped = loader_of(shards, sampling="my_own:f", short="drop")
    assert dropped.num_samples == int((corpus.num_frames >= 4).sum()) == 13


def trainings(world: World, shards: Path) -> tuple[list[Any], list[str]]:
    """Train a run that nothing happens to, and one that is killed and goes on with changed code; what each ends with.

    Everything in one process, in the current folder, because an import of DeepSpeed costs seconds.
    """
    shown: list[str] = []
    logging.getLogger("mae3d.training.observers").addHandler(Collected(shown))
    model = MAEConfig(**(asdict(MODEL) | {"mask_type": MASK}))
    base = PretrainConfig(
        model,
        data=settings(shards, sampling_rate=1),
        optim=OptimConfig(lr=1e-2, warmup_steps=1, clip_grad=1.0),
        train=TrainConfig(global_batch=4, steps=STEPS, precision="fp32"),
        log=LogConfig(every=1),
        device="cpu",
    )
    hooks.trust_hooks(base)
    ends: list[Any] = []

    def train(run: str, *callbacks: str, metrics: tuple[str, ...] = (), **options: Any) -> None:
        where = RunConfig(dir=run, checkpoint_every=2, callbacks=callbacks, **options)
        config = replace(base, run=where, log=replace(base.log, metrics=metrics))
        try:
            ends.append(pretrain.pretrain(config, open_corpus([shards]), world))
        except (ValueError, KeyboardInterrupt) as error:
            ends.append(f"{type(error).__name__}: {error}")

    train(
        "uncut", "my_callbacks:Chat(name='a')", "my_kill:Faulty", metrics=("my_metrics:weight_norms", "my_kill:draws")
    )
    train("cut", "my_callbacks:Chat", "my_kill:Kill")
    mask = Path("my_masks.py")
    mask.write_text(mask.read_text() + "\n# another line\n")
    train("cut")
    train("cut", on_hook_change="accept")
    train("bad", metrics=("my_kill:loss",))
    train("bad_start", "my_kill:Unstarted")
    return ends, shown


class Collected(logging.Handler):
    """A handler that keeps the messages."""

    def __init__(self, lines: list[str]):
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.slow
def test_a_run_with_hooks_goes_on_exactly_and_refuses_changed_code(files: Path, shards: Path) -> None:
    ((uncut, killed, refused, resumed, bad, unstarted), shown) = run_ranks(trainings, shards, world=1)[0]
    assert (uncut, killed, resumed) == (True, "KeyboardInterrupt: ", True)
    rows = read_metrics(files / "uncut")
    assert all(row["weights/encoder_max"] >= row["weights/encoder_mean"] > 0 for row in rows)
    assert len({row["drawn"] for row in rows}) == STEPS
    chat = (files / "uncut" / "chat.txt").read_text().splitlines()
    assert [line.partition(": ")[2] for line in chat] == [
        *(f"saved step-{step:08d}" for step in (2, 4, 6)), f"finished: {STEPS} steps",
    ]  # fmt: skip
    assert "run, step 5 of 6: failed: KeyboardInterrupt" in (files / "cut" / "chat.txt").read_text()
    # A killed run without anybody who looks on has the same bits, though they draw and change the module's mode.
    assert re.search(rf"{re.escape(MASK)}: was my_masks sha256 \w+, is my_masks sha256 .*--run.on_hook_change", refused)
    assert [row["loss"] for row in read_metrics(files / "cut")] == [row["loss"] for row in rows]
    # Three errors in a row are logged with the line that failed, then the callback is off.
    faults = [line for line in shown if "my_kill:Faulty failed: RuntimeError: step" in line]
    assert [re.search(r"step \d", line)[0] for line in faults] == ["step 1", "step 2", "step 3"]  # type: ignore[index]
    assert all("in on_step" in line for line in faults)
    assert sum("failed 3 times in a row: it is off now" in line for line in shown) == 1
    assert "my_kill:loss has a figure 'loss', which the line has already" in bad
    assert "my_kill:Unstarted failed: OSError: no such chat" in unstarted
    assert not read_metrics(files / "bad_start")
    check_masks(files, shards, files / "uncut")


def check_masks(files: Path, shards: Path, run: Path) -> None:
    """A model with a hook's mask opens without it; code that it alone names does not run."""
    forget()
    (files / "my_masks.py").unlink()
    model = mae3d.load_model(run)
    clip = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    assert mae3d.embed(model, clip).shape == (1, 24)
    noise = torch.rand(1, model.config.num_tokens)
    with pytest.raises(ValueError, match=r"model names my_masks:checkerboard.*MAE3D_HOOKS=my_masks"):
        model(clip, noise)
    hooks.trust(MASK)
    with pytest.raises(ValueError, match=rf"no module my_masks, .*current folder {files}"):
        model(clip, noise)
    (files / "my_masks.py").write_text(examples()["my_masks.py"])
    assert int(model(clip, noise).mask.sum()) == model.config.num_tokens - model.config.num_kept


def test_a_source_gives_the_same_bytes_for_any_number_of_workers(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number, label in enumerate(["left", "right", "left"]):
        (files / "scans" / label).mkdir(parents=True, exist_ok=True)
        np.save(files / "scans" / label / f"{number}.npy", rng.random((5 + number, 24, 32)))
    np.save(files / "scans" / "left" / "bad.npy", np.zeros((3, 4, 0)))
    source = ["--source", "my_scans:Stacks(root='scans')", "--shard-size", "1", "--fps", "5"]
    for workers in (1, 2):
        assert preprocess(["build", *source, "--out", f"out{workers}", "--workers", str(workers)]) == 0
    assert tree(files / "out1") == tree(files / "out2")
    corpus = open_corpus([files / "out1"])
    assert [corpus.name(row) for row in range(3)] == ["left/0.npy", "left/2.npy", "right/1.npy"]
    assert corpus.num_frames.tolist() == [3, 4, 3]  # every second of 5, 7 and 6
    assert [corpus.label_names[corpus.labels_of(row)[0]] for row in range(3)] == ["left", "left", "right"]
    with tarfile.open(files / "out1" / "shard-00001.tar") as tar:
        described = json.load(tar.extractfile(tar.getmembers()[0]))  # type: ignore[arg-type]
    assert (described["name"], described["range"]) == ("left/2.npy", [0, 7])
    rejected = pq.read_table(files / "out1" / "rejected.parquet").to_pylist()
    assert [(row["name"], row["reason"]) for row in rejected] == [("left/bad.npy", "bad_frame")]
    (files / "out1" / "shard-00001.parquet").unlink()  # killed: only this one is built anew
    (files / "out1" / "dataset.json").unlink()
    assert preprocess(["build", *source, "--out", "out1", "--workers", "1"]) == 0
    assert tree(files / "out1") == tree(files / "out2")
    scans = files / "my_scans.py"
    scans.write_text(scans.read_text().replace("255", "254"))
    capsys.readouterr()
    assert preprocess(["build", *source, "--out", "out1"]) == 2
    assert re.search("begun with other settings .*my_scans sha256.* there, .*my_scans sha256", capsys.readouterr().err)


def test_an_encoder_and_a_head_make_columns(files: Path, shards: Path, tiny_model: Path) -> None:
    options = ["--data.shards", str(shards), "--device", "cpu", "--data.sampling_rate", "1"]
    encoder = ["--encoder", "my_models:Patches(width=8)", "--encoder_frames", "4", "--encoder_size", "32"]
    assert embed.main([*encoder, *options, "--out", "a.parquet", "--pool", "tokens", "--head", "my_heads:Depth"]) == 0
    table = pq.read_table("a.parquet")
    vectors = np.array(table["vector"].to_pylist()).reshape(-1, 2 * 2 * 2, 8)
    depths = vectors @ np.linspace(-1, 1, 8, dtype=np.float32)
    assert np.allclose(np.array(table["depth_map"].to_pylist()), depths, atol=1e-5)
    assert np.allclose(table["depth"].to_numpy(), depths.mean(axis=1), atol=1e-5)
    stored = json.loads(table.schema.metadata[b"mae3d"])
    assert stored["head"] == "my_heads:Depth"
    assert stored["head_code"].startswith("my_heads sha256 ")
    assert stored["model"].startswith("my_models:Patches(width=8) (my_models sha256 ")
    run = ["--run", str(tiny_model), "--task", "reconstruction", "--mask", MASK, "random", "--head", "my_heads:Depth"]
    assert evaluate.main([*run, *options, "--out", "losses"]) == 0
    losses = pq.read_table("losses/losses.parquet")
    assert {f"loss_{MASK}", "loss_random", "depth", "depth_map"} <= set(losses.column_names)


def test_an_encoder_is_finetuned_and_opens_again(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mae3d.model.config import ClassifierConfig
    from mae3d.model.foreign import open_hook_encoder

    encoder = open_hook_encoder("my_models:Patches(width=8)", num_frames=4, img_size=32)
    model = mae3d.Classifier(ClassifierConfig.of(encoder.config, num_classes=3))
    mae3d.load_encoder(model, encoder)
    clip = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(model.features(clip), encoder(clip))
    mae3d.save_model(model, files / "fine.safetensors")
    hooks._trusted.clear()
    with pytest.raises(ValueError, match="MAE3D_HOOKS=my_models"):
        mae3d.load_classifier(files / "fine.safetensors")
    monkeypatch.setenv("MAE3D_HOOKS", "other,my_models")
    assert torch.equal(mae3d.load_classifier(files / "fine.safetensors")(clip), model.eval()(clip))
    bigger = encoder.resized(img_size=64, num_frames=2)
    assert bigger.config.grid == (1, 4, 4)
    assert torch.equal(bigger.module.embed.weight, encoder.module.embed.weight)
    fresh = encoder.untrained()
    assert not torch.equal(fresh.module.embed.weight, encoder.module.embed.weight)
