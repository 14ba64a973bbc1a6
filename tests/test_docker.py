"""The image installs what `make` does, on the locked torch's CUDA; its entry loses no signal and no exit code."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY = ROOT / "docker" / "entry.py"

# Stands in for `deepspeed`: starts two ranks, dies of SIGTERM and leaves them behind, returns the code of a failed one.
LAUNCHER = """
import os, subprocess, sys, time
envs = [dict(os.environ, RANK=str(rank)) for rank in range(2)]
ranks = [subprocess.Popen([sys.executable, *sys.argv[1:]], env=env) for env in envs]
codes = [rank.wait() for rank in ranks]
sys.exit(max(codes))
"""

# Stands in for a trainer: tells that it runs; on SIGTERM takes a while for its checkpoint and leaves with 75.
RANK = """
import os, signal, sys, time
from pathlib import Path
def stop(signum, frame):
    time.sleep(0.2)
    Path(f"saved-{os.environ.get('RANK')}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
Path(f"running-{os.environ.get('RANK')}").write_text(str(os.getpid()))
time.sleep(60)
"""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest), comments dropped, continued lines joined."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(path.exists() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, f"none of {paths} after 30 s"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs still; a zombie that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def entry(*command: str, cwd: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.Popen([sys.executable, str(ENTRY), *command], cwd=cwd, env=environment)


def test_base_image_has_the_cuda_of_the_locked_torch() -> None:
    base = next(rest for name, rest in instructions() if name == "FROM")
    image = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel-ubuntu24\.04", base)
    locked = re.search(r"^cuda-toolkit==(\d+\.\d+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert image is not None
    assert locked is not None
    assert image[1] == locked[1]


def test_packages_are_installed_by_make_alone() -> None:
    runs = " && ".join(rest for name, rest in instructions() if name == "RUN")
    assert re.findall(r"\bmake (deps|install|setup)\b", runs) == ["deps", "install"]
    assert not re.search(r"\b(pip3?|uv|conda)\b", runs)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_first_layer_copies_what_make_deps_reads(tmp_path: Path) -> None:
    order = [(name, rest) for name, rest in instructions() if name in ("COPY", "RUN")]
    deps = next(at for at, (name, rest) in enumerate(order) if name == "RUN" and "make deps" in rest)
    copied = [file for name, rest in order[:deps] if name == "COPY" for file in rest.split()[:-1]]
    for file in copied:
        shutil.copy(ROOT / file, tmp_path)
    environment = {"PATH": os.environ["PATH"], "VENV": str(tmp_path / "venv")}
    made = subprocess.run(
        ["make", "-n", "deps"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert made.stdout.count("pip --disable-pip-version-check install") == 2
    assert set(re.findall(r"\b(requirements\.lock|setup\.cfg)\b", made.stdout)) <= set(copied)


def test_fused_adam_is_compiled_for_cuda_at_build() -> None:
    names = instructions()
    arch = next(
        at for at, (name, rest) in enumerate(names) if name == "ARG" and rest.startswith("TORCH_CUDA_ARCH_LIST=")
    )
    deps = next(at for at, (name, rest) in enumerate(names) if name == "RUN" and "make deps" in rest)
    assert arch < deps
    assert {"DS_ACCELERATOR=cuda", "DS_BUILD_FUSED_ADAM=1"} <= set(names[deps][1].split())


def test_any_user_any_command() -> None:
    names = dict(instructions())
    environment = " ".join(rest for name, rest in instructions() if name == "ENV")
    assert json.loads(names["ENTRYPOINT"]) == [
        "python",
        "/src/docker/entry.py",
    ]  # exec form: no shell between docker and us
    assert "USER" not in names
    assert {"HOME=/tmp", "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"} <= set(environment.split())


def test_dockerfile_passes_hadolint() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (it comes with the dev extra on x86-64)")
    linted = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_entry_stops_the_ranks_and_returns_their_code(tmp_path: Path) -> None:
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "rank.py").write_text(RANK)
    process = entry(sys.executable, "launcher.py", "rank.py", cwd=tmp_path)
    wait_for(tmp_path / "running-0", tmp_path / "running-1")
    process.terminate()
    assert process.wait(30) == 75
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()


def test_entry_signals_a_plain_command_itself(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    process = entry(sys.executable, "rank.py", cwd=tmp_path)
    wait_for(tmp_path / "running-None")
    process.terminate()
    assert process.wait(30) == 75


def test_entry_ends_what_a_killed_launcher_leaves(tmp_path: Path) -> None:
    tell = "open('pid', 'w').write(str(os.getpid()))\ncodes ="
    (tmp_path / "launcher.py").write_text(LAUNCHER.replace("codes =", tell))
    (tmp_path / "rank.py").write_text(RANK)
    process = entry(sys.executable, "launcher.py", "rank.py", cwd=tmp_path)
    wait_for(tmp_path / "running-0", tmp_path / "running-1", tmp_path / "pid")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert process.wait(30) == 128 + signal.SIGKILL
    assert not any(is_alive(int((tmp_path / f"running-{rank}").read_text())) for rank in range(2))
    assert (tmp_path / "saved-0").exists()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command"], 127),
        ([], 2),
    ],
)
def test_entry_returns_the_commands_code(command: list[str], code: int, tmp_path: Path) -> None:
    assert entry(*command, cwd=tmp_path).wait(30) == code


@pytest.mark.soak
def test_entry_stops_the_ranks_of_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    process = entry(deepspeed, "--num_gpus", "2", "rank.py", cwd=tmp_path)
    wait_for(tmp_path / "running-0", tmp_path / "running-1")
    process.terminate()
    assert process.wait(60) == 75
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()
