"""The programs of examples/ that need another project's package do what they say, from the command line."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from preprocess import ShardWriter, open_dataset
from preprocess.inspect.filmstrip import stored_frames
from tests.examples.test_library import EXAMPLES, example

pytestmark = pytest.mark.peers


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def run(*command: str | Path) -> str:
    """Run a program of examples/ with its warnings shown, and return what it prints."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, encoding="utf-8", env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(text: str) -> dict[int, float]:
    """Return the loss of each step that a program has printed."""
    return {int(step): float(loss) for step, loss in re.findall(r"step (\d+)\b.*?: loss ([\d.]+)", text)}


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("discs") / "discs"
    run(EXAMPLES / "write_shards.py", out, "--clips", "16", "--frames", "8", "--size", "40")
    return out


@pytest.fixture(scope="module")
def plain(discs: Path) -> dict[int, float]:
    """Return the losses of the plain loop, which every framework has to give."""
    return losses(run(EXAMPLES / "torch_loop.py", discs, "--steps", "6"))


@pytest.mark.parametrize(
    ("program", "option", "package"),
    [("lightning_loop.py", "--checkpoint", "lightning"), ("accelerate_loop.py", "--state", "accelerate")],
)
def test_a_framework_gives_the_losses_of_the_plain_loop_and_goes_on_exactly(
    program: str, option: str, package: str, discs: Path, plain: dict[int, float], tmp_path: Path
) -> None:
    pytest.importorskip(package)
    assert list(plain) == [1, 2, 3, 4, 5, 6]
    state = [option, tmp_path / "state"]
    first = losses(run(EXAMPLES / program, discs, "--steps", "3", *state))  # in the middle of the first epoch
    second = losses(run(EXAMPLES / program, discs, "--steps", "6", *state))
    assert first == {step: plain[step] for step in (1, 2, 3)}
    assert second == {step: plain[step] for step in (4, 5, 6)}


@needs("accelerate")
def test_two_processes_of_accelerate_share_each_batch(discs: Path, plain: dict[int, float]) -> None:
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    shared = losses(run(*launch, EXAMPLES / "accelerate_loop.py", discs, "--steps", "6"))
    assert shared == pytest.approx(plain, rel=1e-5)


@needs("torchcodec")
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="torchcodec needs FFmpeg's libraries: apt install ffmpeg")
def test_torchcodec_decodes_what_our_decoder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "shards", layout="video", fps=7.5, shard_size=2) as writer:
        for number, frames in enumerate((19, 1, 8)):
            texture = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8).repeat(11, axis=0).repeat(9, axis=1)
            writer.add(np.stack([np.roll(texture, 2 * k, axis=1) for k in range(frames)]), name=f"v{number}")
    dataset, program = open_dataset(tmp_path / "shards"), example("read_with_torchcodec", monkeypatch)
    lengths = []
    for row, (facts, frames) in enumerate(program.read_videos(tmp_path / "shards")):
        assert (facts["key"], tuple(frames.shape[1:])) == (dataset.key(row), (3, 77, 81))
        pictures = stored_frames(dataset, row, np.arange(facts["num_frames"]), (81, 77))
        ours = np.stack([np.asarray(picture) for picture in pictures])
        assert np.abs(ours.astype(int) - frames.permute(0, 2, 3, 1).numpy()).max() <= 2
        lengths.append(len(frames))
    assert lengths == [19, 1, 8]
    program.main([str(tmp_path / "shards")])
    assert "v2: (8, 3, 77, 81) torch.uint8" in capsys.readouterr().out
