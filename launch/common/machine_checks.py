"""The software and the GPUs of this machine ─► a Check each: status, detail and remedy.

check_dali([])     # Check("DALI", "ok", "2.4.0 decodes JPEG (cpu)")
"""

import configparser
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

from mae3d.io.console import one_line

ROOT = Path(__file__).resolve().parents[2]
OK, WARN, FAIL = "ok", "warn", "FAIL"
GB = 1e9
CHILD_SECONDS = 120
OTHER_TORCH = "make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126"
UPDATE_DRIVER = "install an NVIDIA driver >= 525 (CUDA 12); --device cpu (make setup DEVICE=cpu) leaves the GPU alone"


@dataclass(frozen=True)
class Check:
    """A line of the report.

    Attributes:
        name: the thing that is checked.
        status: "ok", "warn" (it runs, less well) or "FAIL" (it does not run).
        detail: its state.
        remedy: what to do about it; empty if all is well.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Compare Python's version with the lowest that is supported."""
    status = OK if version >= (3, 11) else FAIL
    remedy = "" if status == OK else "make setup PYTHON=/path/to/python3.12"
    return Check("python", status, f"{'.'.join(map(str, version))} on {platform.machine()}", remedy)


def driver_cuda(library: str = "libcuda.so.1") -> tuple[int, int] | None:
    """Return the highest CUDA that the NVIDIA driver supports, as (major, minor); None without a driver."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    version = ctypes.c_int(0)
    # 1000 * major + 10 * minor, before cuInit: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VERSION.html
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def gpu_names() -> list[str]:
    """Return the GPUs that the kernel driver or nvidia-smi lists, even those that torch cannot use."""
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        try:
            query = [smi, "--query-gpu=name", "--format=csv,noheader"]
            listed = subprocess.run(
                query, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            listed = None
        if listed is not None and listed.returncode == 0 and listed.stdout.strip():
            return listed.stdout.strip().splitlines()
    return [f"GPU {path.name}" for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*"))]


def hidden_gpus() -> bool:
    """Return whether the user hides the GPUs from CUDA programs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")


def judge_gpu(
    gpus: Sequence[str],
    *,
    torch_version: str,
    torch_cuda: str | None,
    driver: tuple[int, int] | None,
    error: str | None,
) -> Check:
    """Judge whether torch can use the GPUs of the machine.

    Args:
        gpus: their names; none means that the CPU is used.
        torch_version: torch's version, with its build.
        torch_cuda: the CUDA that torch was built for, "13.2"; None for a CPU build.
        driver: the CUDA that the driver speaks; None without a driver.
        error: why a small computation on the first GPU failed; None if it worked.
    """
    built = f"torch {torch_version} (CUDA {torch_cuda or 'none'})"
    if not gpus:
        return Check("torch and GPU", OK, f"{built}; no NVIDIA GPU in use: the CPU does the work")
    speaks = ".".join(map(str, driver)) if driver else "unknown"
    versions = f"{built}, {len(gpus)} x {gpus[0]}, driver for CUDA {speaks}"
    if error is None:
        return Check("torch and GPU", OK, versions)
    detail = f"{versions}: torch cannot use it ({error})"
    if driver is None:
        remedy = "libcuda.so.1 is missing: install the driver, or start the container with --gpus all"
    elif driver < (12, 0):
        remedy = UPDATE_DRIVER
    elif torch_cuda is None:
        remedy = "this torch is a CPU build: make setup TORCH_INDEX= brings the locked CUDA build"
    elif driver[0] < int(torch_cuda.split(".")[0]):
        remedy = f"the driver is older than torch's CUDA: update it, or {OTHER_TORCH}"
    elif "no kernel image" in error:
        remedy = f"the GPU is older than this build supports: {OTHER_TORCH}"
    else:
        remedy = "look at nvidia-smi and dmesg (another job, a fallen GPU); --device cpu leaves the GPU alone"
    return Check("torch and GPU", FAIL, detail, remedy)


def check_gpu(gpus: Sequence[str]) -> Check:
    """Check torch, its CUDA against the driver, and a computation on each GPU."""
    try:
        import torch
    except ImportError as problem:
        return Check("torch and GPU", FAIL, f"torch cannot be imported: {one_line(problem)}", "make setup")
    error = None
    if gpus:
        try:
            for index in range(max(1, torch.cuda.device_count())):
                torch.ones(2, device=f"cuda:{index}").sum().item()
        except (RuntimeError, AssertionError) as problem:  # AssertionError: a build without CUDA
            error = one_line(problem)
    version, cuda = str(torch.__version__), torch.version.cuda
    return judge_gpu(gpus, torch_version=version, torch_cuda=cuda, driver=driver_cuda(), error=error)


def run_child(code: str, *arguments: str) -> tuple[int, str, str]:
    """Run Python code in a child, which may crash; return exit code (< 0: signal), last line of output, error."""
    bootstrap = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    command = [sys.executable, "-c", bootstrap + code, *arguments]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=CHILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer in {CHILD_SECONDS} s"
    return child.returncode, (child.stdout.strip().splitlines() or [""])[-1], error_of(child.stderr)


def check_dali(gpus: Sequence[str], *, run: Callable[..., tuple[int, str, str]] = run_child) -> Check:
    """Check that DALI decodes a small JPEG as the pipelines would: mixed on a GPU, else on the CPU."""
    device = "mixed" if gpus else "cpu"
    version, problem = _try_dali(device, 0, "jpeg", run)
    if not problem:
        return Check("DALI", OK, f"{version} decodes JPEG ({device})")
    remedy = (
        "make setup, and see the line on torch and GPU; --data.decode cpu decodes on the CPU" if gpus else "make setup"
    )
    return Check("DALI", FAIL, f"does not decode JPEG ({device}): {problem}", remedy)


def dali_fault(
    device: str, index: int, layout: str = "jpeg", *, run: Callable[..., tuple[int, str, str]] = run_child
) -> str:
    """Return the error of DALI when it decodes as in training, "" if there is none; a child tries it, as it can crash.

    Args:
        device: "mixed" or "cpu".
        index: of the GPU.
        layout: of the datasets, "jpeg" or "video".
        run: starts the child.
    """
    return _try_dali(device, index, layout, run)[1]


def _try_dali(device: str, index: int, layout: str, run: Callable[..., tuple[int, str, str]]) -> tuple[str, str]:
    """Return (DALI's version, ""), or ("", the error)."""
    code = "from pipelines.decoding.self_test import decode_self_test as test\n"
    code += "print(test(sys.argv[1], device_id=int(sys.argv[2]), layout=sys.argv[3]))"
    returned, output, error = run(code, device, str(index), layout)
    if returned == 0:
        return output, ""
    return "", f"killed by signal {-returned}" if returned < 0 else error


def check_deepspeed(*, run: Callable[..., tuple[int, str, str]] = run_child) -> Check:
    """Check that DeepSpeed imports, and that mae3d/checkpoints/format.py can read this version's partitions."""
    code, output, error = run("import deepspeed; print(deepspeed.__version__)")
    if code != 0:
        return Check("DeepSpeed", FAIL, f"cannot be imported: {error}", "make setup")
    if output != (pin := deepspeed_pin()):
        return Check(
            "DeepSpeed", FAIL, f"{output}, but checkpoints are read for {pin}", f"pip install deepspeed=={pin}"
        )
    return Check("DeepSpeed", OK, output)


def deepspeed_pin() -> str:
    """Return the exact version that setup.cfg requires (outside of a checkout: the package's metadata)."""
    config = configparser.ConfigParser()
    if config.read(ROOT / "setup.cfg"):
        lines = config["options"]["install_requires"].splitlines()
    else:
        lines = importlib.metadata.requires("mae3d") or []
    return next(line.split("==")[1].strip() for line in lines if line.startswith("deepspeed=="))


def prebuilt_ops() -> tuple[str, ...]:
    """Return DeepSpeed's CUDA operators that were compiled at its installation, from its note of them, unimported."""
    spec = importlib.util.find_spec("deepspeed")
    note = Path(spec.origin).parent / "git_version_info_installed.py" if spec is not None and spec.origin else None
    if note is None or not note.is_file():
        return ()
    facts = runpy.run_path(str(note))
    if facts.get("accelerator_name") != "cuda":
        return ()
    return tuple(name for name, there in facts["installed_ops"].items() if there)


def check_fused_adam(gpus: Sequence[str], *, prebuilt: Sequence[str], nvcc: str | None, ninja: str | None) -> Check:
    """Check where the optimizer's kernel comes from; torch's own fused AdamW serves as well, a little slower.

    Args:
        gpus: names of the GPUs in use.
        prebuilt: operators that DeepSpeed was installed with.
        nvcc: the CUDA compiler.
        ninja: the program that builds operators at the first start.
    """
    if not gpus:
        return Check("FusedAdam", OK, "not needed on the CPU: torch's fused AdamW is used")
    if "fused_adam" in prebuilt:
        return Check("FusedAdam", OK, "compiled at installation")
    if nvcc is not None and ninja is not None:
        return Check("FusedAdam", OK, f"will be compiled at the first start ({nvcc})")
    missing = "nvcc" if nvcc is None else "ninja"
    remedy = (
        "set CUDA_HOME to a CUDA toolkit of torch's version, or use the Dockerfile"
        if nvcc is None
        else "pip install ninja"
    )
    return Check("FusedAdam", WARN, f"no {missing}: torch's fused AdamW is used", remedy)


def find_nvcc() -> str | None:
    """Return the CUDA compiler, searched as torch does: CUDA_HOME, PATH, /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def check_programs(folder: Path = Path(sys.executable).parent) -> Check:
    """Check that `deepspeed` and `ninja`, which are started by name, are on PATH."""
    lost = [name for name in ("deepspeed", "ninja") if shutil.which(name) is None]
    if not lost:
        return Check("programs", OK, "deepspeed and ninja are on PATH")
    if all((folder / name).exists() for name in lost):
        return Check(
            "programs",
            WARN,
            f"not on PATH: {', '.join(lost)}",
            f'export PATH="{folder}:$PATH" (make does so by itself)',
        )
    return Check("programs", FAIL, f"not installed: {', '.join(lost)}", "make setup")


def check_communication(gpus: Sequence[str]) -> Check:
    """Check the library through which ranks communicate: NCCL on GPUs, gloo on the CPU."""
    try:
        from torch import distributed
        from torch.cuda import nccl
    except ImportError as problem:
        return Check("communication", FAIL, one_line(problem), "make setup")
    if not gpus:
        there = distributed.is_available() and distributed.is_gloo_available()
        return Check(
            "communication",
            OK if there else FAIL,
            "gloo" if there else "torch without gloo",
            "" if there else "make setup",
        )
    if not distributed.is_nccl_available():
        remedy = "make setup TORCH_INDEX= brings the locked CUDA build"
        return Check("communication", FAIL, "torch without NCCL", remedy)
    return Check("communication", OK, f"NCCL {'.'.join(map(str, nccl.version()))}")


def error_of(text: str) -> str:
    """Return the error of a child's output: all of the message below a traceback, else the last line."""
    _, traceback, below = text.rpartition("Traceback (most recent call last):\n")
    message = list(dropwhile(lambda line: not line or line[0].isspace(), below.splitlines()))
    if traceback and message:
        return one_line("\n".join(message))
    return (text.strip().splitlines() or ["no message"])[-1]
