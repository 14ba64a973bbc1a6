"""The container's image is built from the Dockerfile as it stands and run with podman, on stand-ins for its bases.

Where the Dockerfile names an image of NVIDIA's, the local store holds one under that name: Debian, and for the stage
that compiles, the CUDA compiler and headers of the lock's version, from PyPI. Bases and layers are kept in
out/cluster/image (some 30 GB, to be deleted at will), so that only the first build takes long.
"""

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.conftest import TOOLS, processes_with
from tests.support.jobs import wait_until

ROOT = Path(__file__).resolve().parents[2]
STORE = TOOLS.resolve().parent / "image"
PROGRAMS = ("buildah", "podman", "runc", "debootstrap")
NAME = "mae3d"

# As Docker's images of Debian and Ubuntu have it: apt keeps no archives.
CLEAN = """
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""

# What nvcc and torch's headers need of the toolkit, which NVIDIA's devel image has whole.
CUDA_PARTS = "nvcc,cudart,cccl,crt,cublas,cusparse,cusolver,cufft,curand,nvrtc,profiler"


@dataclass(frozen=True)
class Image:
    """`environment` makes podman and buildah use the store of the scenarios; `log` is what the build printed."""

    environment: dict[str, str]
    log: str

    def run(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run podman with `arguments` to its end; its outputs come as one text."""
        done = subprocess.run(
            ["podman", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert not check or done.returncode == 0, f"podman {' '.join(arguments)}: {done.stdout[-4000:]}"
        return done

    def inside(self, *command: str) -> str:
        """Run a command instead of the entry point, as root, and return what it printed."""
        return self.run(
            "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--entrypoint", command[0], NAME, *command[1:]
        ).stdout


def build(folder: Path) -> Image:
    """Build the image with `buildah bud`; `folder` takes the settings of this session."""
    environment = settings(folder)
    for stage in re.findall(r"^FROM (nvidia/cuda:\S+)", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE):
        make_base(f"docker.io/{stage}", environment)
    volumes = [f"--volume={volume}:ro" for volume in pip_volumes(folder)]
    command = ["buildah", "bud", "--pull-never", "--layers", "--network=host", "--isolation=chroot", *volumes]
    log = STORE / "build.log"
    with log.open("w") as output:
        code = subprocess.run(
            [*command, "-t", NAME, ROOT], env=environment, stdout=output, stderr=subprocess.STDOUT
        ).returncode
    assert code == 0, f"exit code {code}, {log}: {log.read_text()[-4000:]}"
    return Image(environment, log.read_text())


def settings(folder: Path) -> dict[str, str]:
    """Return an environment in which containers are stored below STORE, and limits are no higher than here."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    STORE.mkdir(parents=True, exist_ok=True)
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE}/layers"\nrunroot = "{STORE}/run"\n'
    )
    # runc, because crun does without the control groups of older systems; nothing reaches a network if it does not ask.
    (folder / "containers.conf").write_text(
        f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc=32768:32768"]\nnetns = "none"\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    scratch = STORE / "scratch"  # not /tmp, which may be small: layers pass through it
    scratch.mkdir(exist_ok=True)
    return {
        **os.environ,
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "TMPDIR": str(scratch),
    }


def make_base(name: str, environment: dict[str, str]) -> None:
    """Make the stand-in for one of NVIDIA's images, if the store has none yet."""

    def buildah(*arguments: str | Path) -> str:
        done = subprocess.run(["buildah", *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"buildah {arguments}: {done.stderr}"
        return done.stdout.strip()

    if subprocess.run(["podman", "image", "exists", name], env=environment).returncode == 0:
        return
    tree = STORE / "debian"
    if not (tree / "etc/debian_version").exists():
        subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", f"{tree}.part"], check=True, capture_output=True
        )
        subprocess.run(["chroot", f"{tree}.part", "apt-get", "clean"], check=True)
        Path(f"{tree}.part", "etc/apt/apt.conf.d/docker-clean").write_text(CLEAN)
        Path(f"{tree}.part").rename(tree)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, tree, "/")
    if "-devel-" in name:
        toolkit = STORE / "cuda"
        version = re.search(r"^cuda-toolkit==(\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
        assert version is not None
        package = f"cuda-toolkit[{CUDA_PARTS}]=={version[1]}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", toolkit, package]
        subprocess.run(pip, check=True, capture_output=True)
        (cuda,) = toolkit.glob("nvidia/cu*")
        for library in cuda.glob("lib/*.so.*"):  # the wheels lack the names that the linker looks for
            (link := library.with_name(f"{library.name.partition('.so')[0]}.so")).unlink(missing_ok=True)
            link.symlink_to(library.name)
        (cuda / "lib64").unlink(missing_ok=True)
        (cuda / "lib64").symlink_to("lib")
        buildah("add", "--quiet", container, cuda, "/usr/local/cuda")
        buildah("config", "--env", "PATH=/usr/local/cuda/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        shutil.rmtree(toolkit)
    buildah("commit", "--quiet", container, name)
    buildah("rm", container)


def pip_volumes(folder: Path) -> list[str]:
    """Return what pip's settings here need inside of the build: they themselves, as a file, and the files they name."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    values: dict[str, str] = {}
    volumes: dict[str, str] = {}
    for name, _, text in (line.partition("=") for line in listed.stdout.splitlines()):
        value = str(ast.literal_eval(text))
        key = name.rpartition(".")[2]
        if key == "cert":
            volumes[value], value = "/etc/pip-ca.pem", "/etc/pip-ca.pem"
        for path in re.findall(r"(?:^|\s)(?:file://)?(/[^\s]+)", value):
            # An index's pages link to files beside its folder.
            shared = Path(path).parent if f"file://{path}" in value else Path(path)
            if shared.exists():
                volumes.setdefault(str(shared), str(shared))
        values[key] = value
    (folder / "pip.conf").write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))
    return [f"{folder}/pip.conf:/etc/pip.conf", *(f"{here}:{there}" for here, there in volumes.items())]


def end(image: Image) -> None:
    """End what still runs, wait for podman's helpers, and unmount the store."""
    image.run("rm", "--all", "--force", "--time", "5", check=False)
    settings = f"CONTAINERS_CONF={image.environment['CONTAINERS_CONF']}"
    wait_until(lambda: not processes_with(settings))  # podman's helpers see to containers that have ended
    subprocess.run(["buildah", "rm", "--all"], env=image.environment, capture_output=True)
    subprocess.run(["umount", STORE / "layers/overlay"], capture_output=True)
