"""The image keeps the promises of the Dockerfile and docs/install.md: built and run for real, on the CPU."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mae3d.tracking.run_dir import read_metrics
from tests.cluster.conftest import Seen, need
from tests.cluster.image import NAME, PROGRAMS, ROOT, Image, build, end, pip_volumes
from tests.support.jobs import arguments, losses, wait_until
from tests.support.two_hosts import Host

ANYONE = "12345:12345"  # a user that no /etc/passwd knows
AS_ANYONE = (
    "--passwd=false",
    "--user",
    ANYONE,
)  # podman would add a line for the user to /etc/passwd, and Docker does not
READ_ONLY = ("--read-only", "--tmpfs", "/tmp:exec", *AS_ANYONE)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    need(*PROGRAMS)
    built = build(tmp_path_factory.mktemp("image"))
    yield built
    end(built)


@pytest.fixture
def mounts(shards: Path, recipe: Path, tmp_path: Path) -> dict[str, Path]:
    """Return what the documented lines mount: /data with shards and a recipe, /runs that anyone may write to."""
    data, runs = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    runs.mkdir(mode=0o777)
    runs.chmod(0o777)
    subprocess.run(["cp", "-r", shards, data / "shards"], check=True)
    (data / "recipe.yaml").write_text(recipe.read_text())
    subprocess.run(["chmod", "-R", "a+rX", data], check=True)
    return {"/data": data, "/runs": runs}


def volumes(mounts: dict[str, Path]) -> list[str]:
    return [part for inside, here in mounts.items() for part in ("-v", f"{here}:{inside}")]


def training(run: str, *options: str) -> list[str]:
    """Return a training on two processes of the CPU, as it is called in the container."""
    deepspeed = ["deepspeed", "--num_gpus", "2", "launch/pretrain.py"]
    return [*deepspeed, *arguments(Path("/data/recipe.yaml"), Path("/data/shards"), Path(run)), *options]


def documented(text: str) -> list[str]:
    """Return the `docker run` lines of a text, comment signs dropped and continued lines joined."""
    lines = re.sub(r"\\\n#?", " ", text).splitlines()
    return [match[1] for line in lines if (match := re.match(r"#?\s*(docker run .*)", line))]


def on_podman(line: str, mounts: dict[str, Path], **words: str) -> str:
    """Return a documented line for podman: without a GPU, with the mounts of this test, `words` in place of others."""
    line = line.replace("docker run", "podman run").replace("--gpus all ", "")
    for inside, here in mounts.items():
        line = line.replace(f"-v {inside}:{inside}", f"-v {here}:{inside}")
    for word, other in words.items():
        line = line.replace(word, other)
    return line


def test_every_line_of_the_dockerfile_runs(image: Image, seen: Seen) -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    instructions = re.findall(r"^([A-Z]+) ", text, flags=re.MULTILINE)
    steps = re.findall(r"^\[(\d)/2\] STEP \d+/\d+: ([A-Z]+) ", image.log, flags=re.MULTILINE)
    assert sorted(step for _, step in steps if step != "COMMIT") == sorted(instructions)
    history = json.loads(image.run("history", "--format", "json", NAME).stdout)
    layers = [(layer["size"], layer["CreatedBy"]) for layer in history if layer["size"] > 1e6]
    total = sum(size for size, _ in layers)
    sizes = ", ".join(f"{size / 1e6:.0f} MB {shorten(line)}" for size, line in reversed(layers))
    seen(f"{len(instructions)} instructions; {total / 1e9:.2f} GB: {sizes}")


def shorten(line: str) -> str:
    """Return what a layer is from, in three words."""
    words = re.sub(r"/bin/sh -c|#\(nop\)|\S*=\S*|--\S+|&&|file:\S+|dir:\S+|in ", " ", line).split()
    return "base" if words == ["/bin/sh"] else " ".join(words[:3])


def test_fused_adam_is_compiled_and_loads_without_a_compiler(image: Image, seen: Seen) -> None:
    code = (
        "import torch, deepspeed.ops.adam.fused_adam_op as op; from launch.common.machine_checks import prebuilt_ops;"
        "print(prebuilt_ops(), hasattr(op, 'multi_tensor_adam'), op.__file__)"
    )
    said = image.inside("python", "-c", code)
    assert "('fused_adam',) True" in said
    kernels = image.inside(
        "sh", "-c", "grep -c -a -E 'sm_(80|86|89|90|100|120)' $(find / -name 'fused_adam_op*.so' 2>/dev/null)"
    )
    seen(f"loads: {said.split()[-1].rpartition('/')[2]}, {kernels.strip()} lines that name its architectures")


def test_final_stage_holds_what_runs_and_no_more(image: Image, seen: Seen) -> None:
    programs = ["nvcc", "make", "git", "pytest", "mypy", "ruff", "mkdocs", "hadolint", "moto_server", "curl"]
    there = image.inside("sh", "-c", f"for p in {' '.join(programs)}; do command -v $p; done; true")
    assert there.split() == []
    surplus = image.inside(
        "sh",
        "-c",
        "find / -xdev \\( -name 'test_*.py' -path '*/tests/*' -o -name '*.a' -path '*/site-packages/*'"
        " -o -path '*/.cache/*' -o -path '/var/lib/apt/lists/*_*' -o -path '*/pip/http*' \\)",
    )
    assert surplus.split() == []
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    files = image.inside("sh", "-c", "cd /src && find . -type f -printf '%P\\n'").split()
    source = {file for file in files if "__pycache__" not in file and ".egg-info" not in file}
    assert source <= set(tracked), source - set(tracked)
    assert {file.partition("/")[0] for file in source}.isdisjoint({"tests", "docs", "benchmarks", "examples", "out"})
    # Nothing of the build's surroundings: the settings of pip that were mounted into it are gone.
    left = image.inside(
        "sh", "-c", "find /etc/pip.conf /etc/pip-ca.pem /opt -maxdepth 1 -size +0 -type f; env | grep -i pip; true"
    )
    assert left.split() == []
    seen(f"none of {', '.join(programs)}; {len(source)} files of ours, all in git; no test, cache or package list")


def test_doctor_runs_as_any_user_on_a_read_only_root(image: Image, seen: Seen) -> None:
    (line,) = [line for line in documented((ROOT / "Dockerfile").read_text()) if "--read-only" in line]
    done = subprocess.run(
        ["sh", "-c", on_podman(line, {}) + " --device cpu"], env=image.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    default = image.run("run", "--rm", *READ_ONLY, NAME, check=False)
    assert default.returncode == 0, default.stdout
    seen("; ".join(re.sub(" +", " ", row.strip()) for row in done.stdout.splitlines() if row.strip())[:300])


def test_demo_runs_as_any_user_on_a_read_only_root(image: Image, mounts: dict[str, Path], seen: Seen) -> None:
    make = ["make", "-C", ROOT, "-n", "demo", "DEVICE=cpu", "DEMO=/runs/demo", "BIN=/opt/mae3d/bin"]
    said = subprocess.run(make, capture_output=True, text=True, check=True).stdout
    commands = re.findall(
        r"^/opt/mae3d/bin/(?:python (?:-m preprocess |launch/)|deepspeed ).*$", said, flags=re.MULTILINE
    )
    assert len(commands) == 5
    script = " && ".join(commands)
    done = image.run("run", "--rm", *READ_ONLY, *volumes(mounts), NAME, "sh", "-c", script)
    report = mounts["/runs"] / "demo/report/index.html"
    assert report.stat().st_uid == 12345
    steps = read_metrics(mounts["/runs"] / "demo/run")
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert "Traceback" not in done.stdout
    seen(f"5 commands of `make demo`; {len(steps)} rows of metrics; a report of {report.stat().st_size / 1e6:.1f} MB")


@pytest.mark.parametrize("page", ["Dockerfile", "docs/install.md"])
def test_documented_line_trains(page: str, image: Image, mounts: dict[str, Path], uncut: Path, seen: Seen) -> None:
    line = next(line for line in documented((ROOT / page).read_text()) if "--run.dir /runs/a" in line)
    recipe = re.search(r"--config (\S+)", line)
    assert recipe is not None
    line = on_podman(line, mounts, **{recipe[1]: "/data/recipe.yaml", "deepspeed ": "deepspeed --num_gpus 2 "})
    done = subprocess.run(["sh", "-c", f"{line} --device cpu"], env=image.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(mounts["/runs"] / "a") == losses(uncut)
    # What the line names itself is there, and the image takes it.
    recipe_there = image.run(
        "run", "--rm", NAME, "python", "launch/pretrain.py", "--config", recipe[1], "--print_config"
    )
    assert recipe_there.returncode == 0
    seen(f"{shlex.split(line)[0]} run … {recipe[1]}: losses are those of a run outside, bit for bit")


def test_two_nodes_train_in_a_container_each(
    image: Image, hosts: list[Host], mounts: dict[str, Path], uncut: Path, seen: Seen
) -> None:
    (line,) = [line for line in documented((ROOT / "Dockerfile").read_text()) if "--hostfile" in line]
    (mounts["/runs"] / "hosts.txt").write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    script = shlex.join(
        ["launch/pretrain.py", *arguments(Path("/data/recipe.yaml"), Path("/data/shards"), Path("/runs/a"))]
    )
    names = " ".join(f"--add-host {host.name}:{host.address}" for host in hosts)
    jobs = []
    for rank, host in enumerate(hosts):
        # As many threads as the run outside has, because their number decides how sums are rounded.
        network = f"--env OMP_NUM_THREADS=1 --network ns:/run/netns/{host.namespace} --hostname {host.name} {names}"
        here = on_podman(line, mounts, **{"--network host": network, "launch/pretrain.py ...": script})
        environment = {**image.environment, "NODE_RANK": str(rank), "MASTER": hosts[0].name}
        jobs.append(
            subprocess.Popen(["sh", "-c", here], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    ends = [(job.communicate(timeout=300)[0], job.returncode) for job in jobs]
    assert [code for _, code in ends] == [0, 0], ends
    assert losses(mounts["/runs"] / "a") == losses(uncut)
    seen("node-a and node-b, a container and a rank each, over a cable: 14 of 14 losses equal")


def test_stopped_container_saves_and_the_next_goes_on(
    image: Image, mounts: dict[str, Path], uncut: Path, seen: Seen
) -> None:
    command = [*READ_ONLY, *volumes(mounts), NAME, *training("/runs/a")]
    container = image.run("run", "--detach", *command).stdout.split()[-1]
    run = mounts["/runs"] / "a"

    def is_at_step(step: int) -> bool:
        state = image.run("inspect", "--format", "{{.State.Running}}", container).stdout.strip()
        return any(row["step"] >= step for row in read_metrics(run)) or state != "true"

    wait_until(lambda: is_at_step(5), seconds=240)
    image.run("stop", "--time", "600", container)
    code = int(image.run("wait", container).stdout)
    log = image.run("logs", container).stdout
    assert code == 75, log
    stopped_at = read_metrics(run)[-1]["step"]
    assert stopped_at < 14
    image.run("rm", container)
    image.run("run", "--rm", *command)
    assert losses(run) == losses(uncut)
    seen(f"`docker stop` at step {stopped_at}: exit code 75, and the next container went on: 14 of 14 losses equal")


def test_train_compile_finds_its_compiler(image: Image, mounts: dict[str, Path], seen: Seen) -> None:
    done = image.run("run", "--rm", *READ_ONLY, *volumes(mounts), NAME, *training("/runs/c", "--train.compile", "true"))
    assert len(losses(mounts["/runs"] / "c")) == 14, done.stdout
    seen("--train.compile true on the CPU: g++ of the image built the kernels, 14 steps")


def test_training_writes_to_tmp_and_mounts_alone(image: Image, mounts: dict[str, Path], seen: Seen) -> None:
    image.run("run", "--name", "writes", *AS_ANYONE, *volumes(mounts), NAME, *training("/runs/a"))
    changed = [line.split(maxsplit=1) for line in image.run("diff", "writes").stdout.splitlines()]
    image.run("rm", "writes")
    outside = [
        path
        for _, path in changed
        if not re.match(r"/(tmp|data|runs|run|proc|sys|dev|etc|etc/(hosts|hostname|resolv.conf))(/|$)", path)
    ]
    assert outside == []
    seen(f"{len(changed)} paths changed in a root that can be written to, none outside of /tmp and podman's own mounts")


def test_licences_of_all_that_it_carries_are_listed(image: Image, seen: Seen) -> None:
    bill = json.loads(image.inside("cat", "/usr/share/doc/mae3d/sbom.cdx.json"))
    page = image.inside("cat", "/usr/share/doc/mae3d/licences.md")
    listed = {re.sub("[-_.]+", "-", entry["name"]).lower() for entry in bill["components"]}
    installed = json.loads(
        image.inside("python", "-m", "pip", "--disable-pip-version-check", "list", "--format", "json")
    )
    assert {re.sub("[-_.]+", "-", package["name"]).lower() for package in installed} <= listed
    debian = image.inside("dpkg-query", "-W", "-f", "${Package}\\n").split()
    assert set(debian) <= {entry["name"] for entry in bill["components"]}
    libraries = [library for entry in bill["components"] for library in entry.get("components", [])]
    assert not [library for library in libraries if library["licenses"] == [{"expression": "NOASSERTION"}]]
    assert re.search(r"\| libx264 \| GPL-2.0-or-later \| av ", page)
    gpl = sorted({library["name"] for library in libraries if library["licenses"][0]["expression"].startswith("GPL-2")})
    seen(
        f"{len(installed)} Python and {len(debian)} Debian packages, {len(libraries)} libraries in wheels;"
        f" GPL: {', '.join(gpl)}"
    )


def test_image_built_on_it_adds_a_package(image: Image, tmp_path: Path, seen: Seen) -> None:
    text = (ROOT / "docs/install.md").read_text()
    lines = re.findall(r"^    ((?:FROM mae3d|RUN pip) ?.*)$", text, flags=re.MULTILINE)
    assert len(lines) == 2
    (tmp_path / "Dockerfile").write_text("\n".join(lines) + "\n")
    settings = Path(image.environment["CONTAINERS_CONF"]).parent
    given = [f"--volume={volume}:ro" for volume in pip_volumes(settings)]
    image.run("build", "--network=host", "--isolation=chroot", *given, "-t", "mae3d-more", str(tmp_path))
    said = image.run(
        "run", "--rm", *READ_ONLY, "mae3d-more", "python", "-c", "import wandb; print(wandb.__version__)"
    ).stdout
    image.run("rmi", "mae3d-more")
    seen(f"{' / '.join(lines)}: wandb {said.strip()}")
