"""The doctor's verdicts, from made-up machines; and once on the machine that is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import doctor
from launch.common import machine_checks as checks
from launch.common.machine_checks import FAIL, OK, WARN

ROOT = Path(__file__).resolve().parents[2]
H200 = ["NVIDIA H200"]


def judged(
    *, torch_cuda: str | None = "13.2", driver: tuple[int, int] | None = (13, 2), error: str | None = "unusable"
) -> checks.Check:
    return checks.judge_gpu(H200, torch_version="2.15.0", torch_cuda=torch_cuda, driver=driver, error=error)


def test_python_too_old_fails() -> None:
    assert checks.check_python((3, 10, 12)).status == FAIL
    assert checks.check_python((3, 11, 0)).status == OK


def test_no_gpu_is_fine() -> None:
    verdict = checks.judge_gpu([], torch_version="2.15.0", torch_cuda="13.2", driver=None, error=None)
    assert (verdict.status, verdict.remedy) == (OK, "")


def test_gpu_that_computes_is_fine() -> None:
    assert judged(error=None).status == OK
    assert judged(error=None, driver=(13, 0)).status == OK  # an older minor version of the same CUDA serves


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        ({"driver": (12, 4)}, "TORCH_INDEX=https"),
        ({"driver": (11, 8)}, "driver >= 525"),
        ({"driver": None}, "libcuda.so.1"),
        ({"torch_cuda": None}, "TORCH_INDEX= "),
        ({"error": "CUDA error: no kernel image is available for execution on the device"}, "TORCH_INDEX=https"),
        ({"error": "CUDA error: all CUDA-capable devices are busy"}, "nvidia-smi"),
    ],
)
def test_gpu_there_but_unusable_fails(facts: dict[str, object], remedy: str) -> None:
    verdict = judged(**facts)  # type: ignore[arg-type]
    assert verdict.status == FAIL
    assert remedy in verdict.remedy


def test_missing_driver_library_is_no_version() -> None:
    assert checks.driver_cuda("libno-such-driver.so") is None


@pytest.mark.parametrize(("gpus", "device"), [([], "cpu"), (H200, "mixed")])
def test_dali_is_tried_on_the_device_in_use(gpus: list[str], device: str) -> None:
    asked = []

    def run(code: str, *arguments: str) -> tuple[int, str, str]:
        asked.append(arguments)
        return 0, "2.4.0", ""

    assert checks.check_dali(gpus, run=run) == checks.Check("DALI", OK, f"2.4.0 decodes JPEG ({device})")
    assert asked == [(device, "0", "jpeg")]


@pytest.mark.parametrize(("code", "reason"), [(-11, "killed by signal 11"), (1, "RuntimeError: no nvjpeg")])
def test_dali_that_fails_or_crashes_is_told(code: int, reason: str) -> None:
    verdict = checks.check_dali(H200, run=lambda *_: (code, "", "RuntimeError: no nvjpeg"))
    assert verdict.status == FAIL
    assert reason in verdict.detail
    assert verdict.remedy


def test_child_that_crashes_is_reported() -> None:
    assert checks.run_child("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")[0] == -11
    assert checks.run_child("raise RuntimeError('why')") == (1, "", "RuntimeError: why")
    assert checks.run_child("print('a warning'); print(sys.argv[1])", "word")[:2] == (0, "word")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no message"),
        ("a warning\nterminate called\n", "terminate called"),
        (
            "Traceback (most recent call last):\n  File x\nKeyError: 1\n\nDuring ...:\n\n"
            "Traceback (most recent call last):\n  File y, line 2\n    p.run()\nRuntimeError: Critical error:\n\n"
            "  File z\n\nencountered:\n\nno decoder\nCurrent pipeline object is no longer valid.\n",
            "RuntimeError: Critical error: File z encountered: no decoder Current pipeline object is no longer valid.",
        ),
    ],
)
def test_a_childs_error_is_its_whole_message_not_its_last_line(text: str, told: str) -> None:
    assert checks.error_of(text) == told


def test_deepspeed_must_be_the_pinned_one() -> None:
    pin = checks.deepspeed_pin()
    assert checks.check_deepspeed(run=lambda *_: (0, pin, "")).status == OK
    other = checks.check_deepspeed(run=lambda *_: (0, "0.0.1", ""))
    assert (other.status, other.remedy) == (FAIL, f"pip install deepspeed=={pin}")
    assert checks.check_deepspeed(run=lambda *_: (1, "", "ImportError: x")).status == FAIL


@pytest.mark.parametrize(
    ("gpus", "prebuilt", "nvcc", "ninja", "status", "words"),
    [
        ([], (), None, None, OK, "torch's fused AdamW"),
        (H200, ("fused_adam",), None, None, OK, "at installation"),
        (H200, (), "/cuda/bin/nvcc", "/bin/ninja", OK, "at the first start"),
        (H200, (), None, "/bin/ninja", WARN, "torch's fused AdamW"),
        (H200, (), "/cuda/bin/nvcc", None, WARN, "no ninja"),
    ],
)
def test_fused_adam(
    gpus: list[str], prebuilt: tuple[str, ...], nvcc: str | None, ninja: str | None, status: str, words: str
) -> None:
    verdict = checks.check_fused_adam(gpus, prebuilt=prebuilt, nvcc=nvcc, ninja=ninja)
    assert verdict.status == status
    assert words in verdict.detail
    assert bool(verdict.remedy) == (status == WARN)


def test_nvcc_is_looked_for_in_cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert checks.find_nvcc() is None
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    assert checks.find_nvcc() == str(nvcc)


def test_programs_beside_python_but_not_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert checks.check_programs(tmp_path).status == FAIL
    for name in ("deepspeed", "ninja"):
        (tmp_path / name).touch(mode=0o755)
    beside = checks.check_programs(tmp_path)
    assert (beside.status, str(tmp_path) in beside.remedy) == (WARN, True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.check_programs(tmp_path).status == OK


def test_missing_shared_memory_matters_to_several_gpus_only(tmp_path: Path) -> None:
    assert doctor.check_shared_memory(H200, folder=tmp_path / "none").status == OK
    assert doctor.check_shared_memory(H200 * 2, folder=tmp_path / "none").status == WARN


def test_small_shared_memory_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: doctor.shutil._ntuple_diskusage(64 << 20, 0, 0))
    verdict = doctor.check_shared_memory(H200 * 8, folder=tmp_path)
    assert verdict.status == WARN
    assert "--ipc=host" in verdict.remedy


def test_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    assert "MB/s" in doctor.check_disk(tmp_path, megabytes=1).detail
    assert list(tmp_path.iterdir()) == []


def test_disk_that_cannot_be_written_fails(tmp_path: Path) -> None:
    verdict = doctor.check_disk(tmp_path / "missing")
    assert verdict.status == FAIL
    assert "--dir" in verdict.remedy


def test_few_cores_and_files_warn() -> None:
    assert doctor.check_cpus(H200 * 8, cores=16).status == WARN
    assert doctor.check_cpus(H200 * 4, cores=16).status == OK
    assert doctor.check_open_files(1024).remedy == "ulimit -n 65536"
    assert doctor.check_open_files(-1).status == OK  # unlimited


def test_exit_code_follows_failures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [checks.Check("disk", WARN, "slow", "a faster one"), checks.Check("python", OK, "3.11")]
    monkeypatch.setattr(doctor, "examine", lambda folder, *, device: lines)
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.splitlines() == ["warn  disk    slow  ─► a faster one", "ok    python  3.11"]
    lines.append(checks.Check("GPU", FAIL, "unusable", "a driver"))
    assert doctor.main([]) == 1


@pytest.mark.launch
def test_this_machine_is_examined(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "doctor.py"), "--json", "--dir", str(tmp_path)]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    report = {line["name"]: line for line in json.loads(child.stdout)}
    assert child.returncode == int(any(line["status"] == FAIL for line in report.values()))
    assert report["DeepSpeed"]["status"] == OK
    assert report["DALI"]["status"] == OK
