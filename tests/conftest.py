"""Set up every test: no launcher's environment leaks in, random states are restored, GPUs and footage are optional."""

import fcntl
import os
import pickle
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[1]
Result = TypeVar("Result")

# A test that starts a trainer must not believe that it is a rank of the job in which the tests happen to run.
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Where the tests' folders lie if there is room: each of the thousands of files that are written safely takes a disk
# milliseconds, in which a core has nothing to do. Containers often have 64 MB there.
MEMORY, MEMORY_GB = Path("/dev/shm"), 4

# Seconds of CPU that one test may use with all its processes, without fixtures that others share: of a test without a
# mark, and with each mark. Other programs on the machine can double what is used; a real launcher's interpreters import
# torch and DeepSpeed.
BUDGET_S, MARKED_S = 10, {"slow": 20, "launch": 40, "peers": 120}
# Marks of tests without a limit. What waits for a GPU turns a core meanwhile, and FusedAdam is compiled once.
UNMEASURED = ("soak", "cluster", "peers", "gpu")

# The files that take longest come first, so that no worker begins one of them when the others are done.
HEAVY = (
    "test_launchers.py",
    "test_pretrain.py",
    "test_engine.py",
    "test_remote.py",
    "test_decoder.py",
    "test_sequence.py",
    "test_finetune.py",
    "test_finetune_labels.py",
    "test_evaluate.py",
    "test_demo.py",
    "test_packaging.py",
    "test_visualize.py",
    "test_build.py",
    "test_layering.py",
    "test_same_frames.py",
    "test_faults.py",
    "test_doctor.py",
    "test_threads.py",
    "test_mirror.py",
    "test_embed.py",
    "test_saver.py",
    "test_finetuning_engine.py",
    "test_foreign_files.py",
    "test_foreign_runs.py",
)


def pytest_configure() -> None:
    """Set the environment of the tests and of all that they start, before torch or DeepSpeed is imported."""
    _forget_launchers()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `pytest &` in a script; what tests start would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share few cores
    os.environ.setdefault("MPLBACKEND", "Agg")
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_GB * 1e9:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # deepspeed, ninja
    if not _gpu_is_there():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares DeepSpeed's search, and its warning


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Remove `LAUNCHERS`, which a command that an earlier test ran in this process has set."""
    _forget_launchers()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort heavy files to the front; skip `gpu` tests without a GPU, unless MAE3D_REQUIRE_GPU=1 wants them to fail."""
    order = {name: place for place, name in enumerate(HEAVY)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if _gpu_is_there() or os.environ.get("MAE3D_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU (MAE3D_REQUIRE_GPU=1: fail instead)"))


def _forget_launchers() -> None:
    for name in [name for name in os.environ if name in LAUNCHERS or name.startswith(("SLURM_", "OMPI_"))]:
        del os.environ[name]


def _gpu_is_there() -> bool:
    """Return whether the kernel driver has a GPU; asking torch would cost every run of a single test a second."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/dev/nvidia0").exists()


@pytest.fixture(autouse=True)
def restored_random_state() -> Iterator[None]:
    """Yield, and restore what the next test draws from. Only loaded libraries can have been drawn from."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    states: list[Any] = [random.getstate(), numpy and numpy.random.get_state(), torch and torch.get_rng_state()]
    yield
    random.setstate(states[0])
    if numpy:
        numpy.random.set_state(states[1])
    if torch:
        torch.set_rng_state(states[2])


@pytest.fixture(autouse=True)
def cpu_budget(request: pytest.FixtureRequest) -> Iterator[None]:
    """Yield, and fail the test if it has used more CPU than its budget with all processes that have ended."""
    before = _cpu_seconds()
    yield
    used = _cpu_seconds() - before
    limit = max([BUDGET_S, *(MARKED_S[mark.name] for mark in request.node.iter_markers() if mark.name in MARKED_S)])
    if used > limit and not any(request.node.get_closest_marker(name) for name in UNMEASURED):
        pytest.fail(f"it used {used:.0f} s of CPU; {limit} s are the limit (tests/conftest.py:BUDGET_S)")


def _cpu_seconds() -> float:
    launch = sys.modules.get("tests.support.launch")
    return sum(os.times()[:4]) + (launch.cpu_seconds if launch else 0) + sum(map(_decoder_seconds, _children()))


def _children() -> list[str]:
    pids: list[str] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            pids += task.read_text().split()
    return pids


def _decoder_seconds(pid: str) -> float:
    """Return the CPU seconds of a decoder that lives: many tests share it, and the one that ends it is not to blame."""
    try:
        if b"decoder_main" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return 0.0
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Any]:
    """Return a function that lets the first of all workers build something in a folder, and gives it to every one."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def built_once(name: str, build: Callable[[Path], Result]) -> Result:
        done = folder / f"{name}.pickle"
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder / name, ignore_errors=True)  # of a worker that failed
                (folder / name).mkdir()
                done.write_bytes(pickle.dumps(build(folder / name)))
        return pickle.loads(done.read_bytes())

    return built_once


@pytest.fixture(scope="session")
def media() -> Path:
    """Return the folder of real footage: MAE3D_MEDIA, or shared/media beside the checkout. Skip without one."""
    folder = Path(os.environ.get("MAE3D_MEDIA", ROOT.parent / "shared" / "media"))
    if not folder.is_dir():
        pytest.skip(f"no footage in {folder}: set MAE3D_MEDIA")
    return folder


@pytest.fixture(scope="session")
def shards(shared: Any) -> Path:
    """Return a small dataset of 14 samples in four shards, without a time base; see tests/support/datasets.py."""
    from tests.support.datasets import build_shards

    return shared("shards", lambda folder: build_shards(folder, "--shard-size", "4"))


@pytest.fixture(scope="session")
def recipe(shared: Any) -> Path:
    """Return a recipe of a very small model; see tests/support/jobs.py."""
    from tests.support.jobs import TINY

    def write(folder: Path) -> Path:
        (folder / "tiny.yaml").write_text(TINY)
        return folder / "tiny.yaml"

    return shared("recipe", write)


@pytest.fixture(scope="session")
def tiny_model(shared: Any) -> Path:
    """Return the file of a random model of the size tests.support.trainings.TINY."""
    import torch

    from mae3d.model.mae import MAE
    from mae3d.weights.files import save_model
    from tests.support.trainings import TINY

    def save(folder: Path) -> Path:
        torch.manual_seed(0)
        save_model(MAE(TINY), folder / "model.safetensors")
        return folder / "model.safetensors"

    return shared("tiny_model", save)


@pytest.fixture(scope="session")
def uncut(recipe: Path, shards: Path, shared: Any) -> Path:
    """Return the run of two ranks that nothing happens to."""
    from tests.support.jobs import Job

    def train(folder: Path) -> Path:
        code, output = Job(recipe, shards, folder / "run", processes=2).end()
        assert code == 0, output
        return folder / "run"

    return shared("uncut", train)


@pytest.fixture(scope="session")
def archive(shared: Any) -> Path:
    """Return 24 small clips as frame folders; see tests/support/builds.py."""
    from tests.support.builds import SMALL, make_archive

    return shared("archive", lambda folder: make_archive(folder / "frames", size=SMALL))


@pytest.fixture(scope="session")
def whole(archive: Path, shared: Any) -> dict[str, str]:
    """Return the tree of the build of `archive` that nothing happens to; it lies beside it."""
    from preprocess.__main__ import main
    from tests.support.builds import command, tree

    def build(folder: Path) -> dict[str, str]:
        assert main(command(archive, archive.parent / "whole")) == 0
        return tree(archive.parent / "whole")

    return shared("whole", build)


@pytest.fixture(scope="session")
def s3_session() -> Iterator[Any]:
    """Yield one S3-protocol server for all tests; see tests/support/s3.py."""
    from tests.support.s3 import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_session: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a real S3-protocol server on the loopback (tests.support.s3.Server) that this process's clients find."""
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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a test double of the Hugging Face Hub (tests.support.hub_server.Hub); this process's client has its token.

    The client's settings are read from the environment once, when huggingface_hub is imported.
    """
    from huggingface_hub import constants

    from tests.support.hub_server import TOKEN, hub_server

    with hub_server() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
