"""The compiled resize: torch's pixels, compiled once, and done without where it cannot be had."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.decoding import crops, native
from pipelines.decoding.crops import resize, resize_by_torch


@pytest.fixture
def no_memory_of_it() -> Iterator[None]:
    """Forget the function before and after the test."""
    crops._native.cache_clear()
    yield
    crops._native.cache_clear()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def both(function: native.Resize, box: torch.Tensor, size: tuple[int, int], flip: bool) -> list[torch.Tensor]:
    views = [torch.empty(len(box), *size, box.shape[-1], dtype=torch.uint8) for _ in range(2)]
    for one, view in zip((function, resize_by_torch), views, strict=True):
        one(box, flip, view)
    return views


@pytest.fixture(scope="module")
def compiled(home: Path) -> native.Resize:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        try:
            return native.compiled()
        except native.NativeError as error:
            pytest.skip(str(error))  # no x86, or no compiler: torch's own, which is what this compares with


def test_pixels_are_torchs_for_any_size(compiled: native.Resize) -> None:
    rng = np.random.default_rng(1)
    clip = noise(3, 150, 170, 3)
    for number in range(60):
        height, width, top, left = (int(rng.integers(1, 140)) for _ in range(4))
        size = (int(rng.choice([1, 31, 96])), int(rng.choice([5, 64, 112])))
        channels = clip if number % 3 else clip[..., :1].contiguous()
        box = channels[: 1 + number % 3, top : top + height, left : left + width]
        ours, theirs = both(compiled, box, size, bool(number % 2))
        assert torch.equal(ours, theirs), (box.shape, size)


def test_black_and_white_stay_black_and_white(compiled: native.Resize) -> None:
    for size in range(1, 90):
        for level in (0, 255):
            box = torch.full((1, size, 91 - size, 1), level, dtype=torch.uint8)
            assert (both(compiled, box, (37, 41), False)[0] == level).all()


def test_it_is_compiled_once_for_a_home_and_anew_where_nothing_can_be_kept(
    compiled: native.Resize, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = (home / "mae3d").iterdir()
    assert kept.suffix == ".so"
    compilations: list[Path] = []

    def compile_one(command: tuple[str, ...], target: Path) -> None:
        compilations.append(target)
        target.write_bytes(kept.read_bytes())

    monkeypatch.setattr(native, "_compile", compile_one)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    native.compiled()
    assert compilations == []
    file = tmp_path / "no_folder"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    function = native.compiled()
    assert len(compilations) == 1
    assert not compilations[0].exists()
    ours, theirs = both(function, noise(2, 40, 50, 3), (32, 32), True)
    assert torch.equal(ours, theirs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(os, "geteuid", lambda: kept.stat().st_uid + 1)  # another user's file
    native.compiled()
    assert len(compilations) == 2


def test_without_a_compiler_torch_resizes_and_says_so(
    no_memory_of_it: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler, reason in (("no-such-compiler", "no-such-compiler cannot be run"), ("false", "false ends with 1")):
        crops._native.cache_clear()
        monkeypatch.setenv("CC", compiler)
        with caplog.at_level(logging.INFO, crops.__name__):
            ours, theirs = both(resize, noise(1, 40, 50, 3), (32, 32), False)
        assert torch.equal(ours, theirs)
        assert reason in caplog.messages[-1]
    assert list((tmp_path / "mae3d").iterdir()) == []  # nothing half made is left


def test_a_function_whose_pixels_are_not_torchs_is_not_used(
    no_memory_of_it: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def one_off(box: torch.Tensor, flip: bool, out: torch.Tensor) -> None:
        resize_by_torch(box, flip, out)
        out[-1, -1, -1, -1] ^= 1

    monkeypatch.setattr(crops, "compiled", lambda: one_off)
    ours, theirs = both(resize, noise(1, 40, 50, 3), (32, 32), False)
    assert torch.equal(ours, theirs)
    assert torch.__version__ in caplog.text
