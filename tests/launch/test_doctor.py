"""The doctor's verdicts, from made-up machines; and once on the machine that is there."""

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from launch import doctor
from launch.common import folder_checks, folder_meeting, folder_needs
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write 1 MB instead of 64, and reserve nothing."""
    monkeypatch.setattr(folder_needs, "SPEED_MB", 1)
    monkeypatch.setattr(folder_needs, "_RESERVING", ())


def test_every_need_of_a_folder_is_tried_and_nothing_is_left(tmp_path: Path, quick: None) -> None:
    verdicts = {need.name: folder_needs.try_need(need, tmp_path) for need in folder_needs.NEEDS}
    assert {verdict.status for name, verdict in verdicts.items() if name not in ("room", "files")} == {OK}
    assert "MB/s" in verdicts["room"].detail
    assert "by a hard link" in verdicts["lock"].detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "number", "need", "status", "words"),
    [
        ("link", errno.EXDEV, "lock", OK, "by O_EXCL"),
        ("replace", errno.EEXIST, "replace", FAIL, "File exists"),
        ("rename", errno.EOPNOTSUPP, "folders", FAIL, "not supported"),
        ("fsync", errno.EINVAL, "sync", FAIL, "Invalid argument"),
        ("fsync", errno.EIO, "sync", FAIL, "dmesg"),
        ("utime", errno.EPERM, "lock", WARN, "no sign of life"),
        ("ftruncate", errno.EDQUOT, "append", OK, "end of a file"),
    ],
)
def test_what_a_file_system_cannot_do_is_told_by_need(
    call: str, number: int, need: str, status: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)
    (chosen,) = (one for one in folder_needs.NEEDS if one.name == need)
    verdict = folder_needs.try_need(chosen, tmp_path)
    assert verdict.status == status
    assert words in f"{verdict.detail} {verdict.remedy}"


def test_a_child_that_says_nothing_is_left_behind_with_what_it_was_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = 'import time; print(\'{"begun": "sync"}\', flush=True); time.sleep(60)'
    monkeypatch.setattr(folder_checks, "_command", lambda *_: [sys.executable, "-c", code])
    (verdict,) = folder_checks.check_folder(str(tmp_path), answer_s=0.2)
    assert verdict.name in (f"sync {tmp_path}", f"start {tmp_path}")
    assert verdict.status == FAIL
    assert "no answer in 0 s from" in verdict.detail


def test_a_folder_that_is_not_there_a_file_and_a_url_have_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quick: None
) -> None:
    def first(path: str) -> dict[str, str]:
        folder_checks.try_all(path, 1)
        lines: list[dict[str, str]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return lines[1]

    (tmp_path / "file").touch()
    assert first(f"{tmp_path}/new/run")["detail"].endswith(f"not there yet: {tmp_path} is tried")
    assert first(f"{tmp_path}/file")["status"] == FAIL
    assert "--run.remote" in first("s3://bucket/run")["remedy"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_doctors_on_several_hosts_find_each_other_and_one_lock_has_one_holder(tmp_path: Path) -> None:
    meet = partial(folder_meeting.meet, tmp_path, hosts=2)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda name: meet(wait_s=20, name=name), ("a", "b")))
    assert [verdict.status for verdict in both] == [OK, OK]
    assert meet(wait_s=0.1).status == FAIL
    assert list(tmp_path.iterdir()) == []


def test_few_cores_and_files_warn() -> None:
    assert doctor.check_cpus(H200 * 8, cores=16).status == WARN
    assert doctor.check_cpus(H200 * 4, cores=16).status == OK
    assert doctor.check_open_files(1024).remedy == "ulimit -n 65536"
    assert doctor.check_open_files(-1).status == OK  # unlimited


def test_exit_code_follows_failures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [checks.Check("disk", WARN, "slow", "a faster one"), checks.Check("python", OK, "3.11")]
    monkeypatch.setattr(doctor, "examine", lambda paths, *, hosts, device: lines)
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.splitlines() == ["warn  disk    slow  ─► a faster one", "ok    python  3.11"]
    lines.append(checks.Check("GPU", FAIL, "unusable", "a driver"))
    assert doctor.main([]) == 1


@pytest.mark.launch
def test_this_machine_is_examined(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "doctor.py"), "--json", "--path", str(tmp_path)]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    report = {line["name"]: line for line in json.loads(child.stdout)}
    assert child.returncode == int(any(line["status"] == FAIL for line in report.values()))
    assert report["DeepSpeed"]["status"] == OK
    assert report["DALI"]["status"] == OK
    assert report[f"lock {tmp_path}"]["status"] == OK
