"""For every test: no launcher's environment leaks in, random states are restored, GPUs and footage are optional."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A test that starts a trainer must not believe that it is a rank of the job in which the tests happen to run.
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def pytest_configure() -> None:
    """Sets the environment of the tests and of all that they start, before torch or DeepSpeed is imported."""
    _forget_launchers()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share few cores
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # deepspeed, ninja
    if not _gpu_is_there():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares DeepSpeed's search, and its warning


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before a test and its fixtures: a command that an earlier test ran in this process has set `LAUNCHERS`."""
    _forget_launchers()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `gpu` on a machine without one, unless MAE3D_REQUIRE_GPU=1 wants it to fail there."""
    if _gpu_is_there() or os.environ.get("MAE3D_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU (MAE3D_REQUIRE_GPU=1: fail instead)"))


def _forget_launchers() -> None:
    for name in [name for name in os.environ if name in LAUNCHERS or name.startswith(("SLURM_", "OMPI_"))]:
        del os.environ[name]


def _gpu_is_there() -> bool:
    """Whether the kernel driver has a GPU; asking torch would cost every run of a single test a second."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/dev/nvidia0").exists()


@pytest.fixture(autouse=True)
def restored_random_state() -> Iterator[None]:
    """No test changes what the next one draws. Only libraries that are loaded already can have been drawn from."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    states: list[Any] = [random.getstate(), numpy and numpy.random.get_state(), torch and torch.get_rng_state()]
    yield
    random.setstate(states[0])
    if numpy:
        numpy.random.set_state(states[1])
    if torch:
        torch.set_rng_state(states[2])


@pytest.fixture(scope="session")
def media() -> Path:
    """The folder of real footage: MAE3D_MEDIA, or shared/media beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("MAE3D_MEDIA", ROOT.parent / "shared" / "media"))
    if not folder.is_dir():
        pytest.skip(f"no footage in {folder}: set MAE3D_MEDIA")
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of 14 samples in several shards, without a time base; see tests/support/datasets.py."""
    from tests.support.datasets import build_shards

    return build_shards(tmp_path_factory.mktemp("shards"), "--shard-size", "4")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose model is eight times nothing; see tests/support/jobs.py."""
    from tests.support.jobs import TINY

    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def uncut(recipe: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to, on two processes."""
    from tests.support.jobs import Job

    run = tmp_path_factory.mktemp("uncut") / "run"
    code, output = Job(recipe, shards, run, processes=2).end()
    assert code == 0, output
    return run


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small clips as frame folders; see tests/support/builds.py."""
    from tests.support.builds import SMALL, make_archive

    return make_archive(tmp_path_factory.mktemp("archive") / "frames", size=SMALL)


@pytest.fixture(scope="session")
def whole(archive: Path) -> dict[str, str]:
    """The tree of the build of `archive` that nothing happens to; it lies beside it."""
    from preprocess.__main__ import main
    from tests.support.builds import command, tree

    assert main(command(archive, archive.parent / "whole")) == 0
    return tree(archive.parent / "whole")


@pytest.fixture(scope="session")
def s3_session() -> Iterator[Any]:
    """One S3-protocol server for all tests; see tests/support/s3.py."""
    from tests.support.s3 import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_session: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real S3-protocol server on the loopback (tests.support.s3.Server) that this process's clients find."""
    import fsspec

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in s3_session.environment.items():
        monkeypatch.setenv(name, value)
    s3_session.reset()
    yield s3_session
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # clients keep the environment in which they were made


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Yield to a test that sets torch's number of threads, and set it back afterwards."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
