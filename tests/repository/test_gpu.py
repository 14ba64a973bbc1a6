"""benchmarks/gpu.py with sections that fail, crash, hang and are cut: no figure is lost, nothing is left running."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_loader, gpu_sections
from benchmarks.common import ROOT
from benchmarks.gpu_cases import Trial
from benchmarks.gpu_plan import SECTIONS, Section, chosen
from benchmarks.gpu_table import Journal, Result, load, save
from tests.support.jobs import wait_until

# A program of sections like gpu_sections.py. Each case notes that it was measured.
FAKE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from benchmarks.gpu_cases import Case, Skipped, run_cases
from benchmarks.gpu_table import Journal

section, out = sys.argv[1], Path(sys.argv[sys.argv.index("--out") + 1])

def case(name, work=lambda: None):
    def measure():
        with (out / "measured").open("a") as file:
            file.write(f"{section} {name}\\n")
        work()
        return {"ms": 1.5}
    return Case(name, measure)

def hang():  # with a child in a session of its own, and the lock of a compiler
    (out / "extensions" / "fused_adam").mkdir(parents=True)
    (out / "extensions" / "fused_adam" / "lock").touch()
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (out / "child").write_text(str(child.pid))
    time.sleep(60)

def hang_once():
    if not (out / "hung").exists():
        (out / "hung").touch()
        time.sleep(60)

def need_a_gpu():
    raise Skipped("needs NVDEC")

sections = {
    "good": [case("a"), case("b")],
    "bad": [case("a"), case("b", lambda: 1 / 0), case("c")],
    "crash": [case("a"), case("b", lambda: os.kill(os.getpid(), signal.SIGSEGV)), case("c")],
    "slow": [case("a"), case("b", hang)],
    "skip": [case("a", need_a_gpu)],
    "stuck": [case("a"), case("b", lambda: time.sleep(60)), case("c")],
    "cut": [case("a"), case("b", hang_once), case("c")],
}
journal = Journal.of(out, section)
journal.write(facts={"device": "a fake"})
run_cases(sections[section], journal, seconds=0.5 if section == "stuck" else 30)
"""


def sections(*names: str, limit_s: int = 30, **others: Any) -> list[Section]:
    return [Section(name, f"is it {name}?", limit_s, (), **others) for name in names]


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., int]:
    """Return a call of the program with these sections; the results lie in tmp_path/out."""
    (tmp_path / "fake.py").write_text(FAKE)

    def run(fakes: list[Section], *arguments: str) -> int:
        command = ["--device", "cpu", "--out", str(tmp_path / "out"), *arguments]
        return gpu.main(command, fakes, tmp_path / "fake.py")

    return run


def measured(out: Path) -> list[str]:
    return (out / "measured").read_text().splitlines()


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_failure_a_crash_and_a_hang_cost_one_case_and_leave_nothing_behind(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "CPU_PATIENCE", 1)
    out = tmp_path / "out"
    fakes = [*sections("bad", "crash", "stuck", "skip"), *sections("slow", limit_s=2), *sections("good")]
    assert call(fakes) == 1
    results = {name: load(out, name) for name in ("bad", "crash", "stuck", "slow", "skip", "good")}
    assert {name: result.status for name, result in results.items() if result} == {
        "bad": "failed", "crash": "failed", "stuck": "failed", "slow": "timed out", "skip": "skipped", "good": "ok",
    }  # fmt: skip
    errors = {name: [row.get("error") for row in result.rows] for name, result in results.items() if result}
    assert errors["bad"] == [None, "ZeroDivisionError: division by zero", None]
    assert errors["crash"] == [None, "killed by SIGSEGV", None]
    assert errors["stuck"] == [None, "killed by SIGALRM", None]
    assert errors["slow"] == [None]
    assert not is_alive(int((out / "child").read_text()))
    assert not list((out / "extensions").glob("**/lock"))
    printed, table = capsys.readouterr().out, (out / "table.md").read_text()
    for text in ("is it good?", "a fake", "needs NVDEC", "killed by SIGSEGV", "after its limit in b"):
        assert text in table
        assert text in printed or text == "a fake"

    before = measured(out)
    assert call(fakes) == 1
    assert measured(out) == before
    assert capsys.readouterr().out.count("measures it anew)") == len(fakes), "a process was started for what is done"
    assert call(fakes, "--again", "bad") == 1
    assert measured(out)[-3:] == ["bad a", "bad b", "bad c"]


def test_a_run_that_its_limit_cuts_goes_on_with_the_next_case(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(gpu, "LEAST_S", 0.1)
    monkeypatch.setattr(gpu, "END_S", 0.0)
    fakes = [*sections("good", limit_s=1000, whole=True), *sections("cut")]
    assert call(fakes, "--limit", "2") == 75
    first = load(out, "cut")
    assert first
    assert first.status == "cut"
    assert [row["case"] for row in first.rows] == ["a"]
    assert load(out, "good") is None, "begun with less time than all that it may need"
    assert "not reached" in (out / "table.md").read_text()
    assert call(fakes, "--limit", "5000") == 0
    last = load(out, "cut")
    assert last
    assert (last.status, [row["case"] for row in last.rows]) == ("ok", ["a", "b", "c"])
    assert last.seconds > first.seconds
    assert measured(out) == ["cut a", "cut b", "good a", "good b", "cut b", "cut c"]


def test_a_run_that_is_killed_keeps_what_it_has_and_goes_on(call: Callable[..., int], tmp_path: Path) -> None:
    out, fake = tmp_path / "out", tmp_path / "fake.py"
    code = (
        f"from benchmarks import gpu; from benchmarks.gpu_plan import Section; from pathlib import Path\n"
        f"fakes = [Section(name, '', 30, ()) for name in ('good', 'slow', 'cut')]\n"
        f"gpu.main(['--device', 'cpu', '--out', {str(out)!r}], fakes, Path({str(fake)!r}))"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: (out / "child").exists() and (out / "child").read_text() != "", 30)
    with pytest.raises(SystemExit, match="2"):  # one at a time
        call(sections("good"))
    driver.kill()
    driver.wait()
    good, slow = load(out, "good"), load(out, "slow")
    assert good
    assert good.status == "ok"
    assert slow
    assert (slow.status, [row["case"] for row in slow.rows]) == ("cut", ["a"])
    child = int((out / "child").read_text())
    assert is_alive(child)
    (out / "hung").touch()
    assert call(sections("good", "cut")) == 0
    assert not is_alive(child), "two runs would share the GPU"
    assert measured(out) == ["good a", "good b", "slow a", "slow b", "cut a", "cut b", "cut c"]


def test_a_section_without_its_packages_names_them_and_runs_when_they_are_there(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lacking = [Section("good", "", 30, ("json", "no_such_package", "nvidia.no_such_part"))]
    assert call(lacking) == 0
    assert "pip install no_such_package nvidia.no_such_part" in capsys.readouterr().out
    assert call(lacking, "--list") == 0
    assert "no_such_package" in capsys.readouterr().out
    assert call(sections("good")) == 0
    assert len(measured(tmp_path / "out")) == 2


def test_hardware_that_a_cpu_lacks_is_skipped_by_name(call: Callable[..., int], tmp_path: Path) -> None:
    assert call(sections("good", hardware="NVDEC")) == 0
    result = load(tmp_path / "out", "good")
    assert result
    assert (result.status, result.reason) == ("skipped", "needs NVDEC")


def test_a_section_brings_the_one_that_it_needs(call: Callable[..., int], tmp_path: Path) -> None:
    plan = [*sections("skip"), *sections("good"), *sections("cut", after="skip")]
    assert [section.name for section in chosen(["cut"], plan)] == ["skip", "cut"]
    assert chosen([], plan) == plan
    assert call(plan, "cut") == 0
    result = load(tmp_path / "out", "cut")
    assert result
    assert result.reason == "needs the section skip, which is skipped"

    maker = sections("good", makes=True)
    assert call(maker) == 0
    assert call(maker) == 0
    assert measured(tmp_path / "out").count("good a") == 2, "its folder is not there"
    (tmp_path / "out" / "good").mkdir()
    assert call(maker) == 0
    assert measured(tmp_path / "out").count("good a") == 2


def test_bad_usage_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(gpu, "gpu_name", lambda: None)
    assert gpu.main([]) == 2
    assert "--device cpu" in capsys.readouterr().err
    save(tmp_path, Result("footage", "ok", "", 1.0, "", rows=[{"case": "frames", "source": "made"}]))
    other = ["--device", "cpu", "--videos", str(tmp_path), "--out", str(tmp_path)]
    for arguments, plan, words in (
        (["jpg"], SECTIONS, "jpg.*jpeg"),
        (["--videos", "/no/such"], SECTIONS, "/no/such"),
        (other, (), "another --out"),
    ):
        with pytest.raises(SystemExit, match="2"):
            gpu.main(arguments, plan)
        assert re.search(words, capsys.readouterr().err)


def test_files_are_whole_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.rows.jsonl")
    journal.write(began="a")
    journal.write(row={"case": "a", "ms": 1})
    journal.write(began="b")
    with journal.path.open("a") as file:
        file.write('{"row": {"case": "b", "m')  # a kill
    again = Journal(journal.path)
    assert ([row["case"] for row in again.rows], again.began) == (["a"], "b")
    again.write(row={"case": "b", "ms": 2})
    assert [row["case"] for row in Journal(journal.path).rows] == ["a", "b"]

    save(tmp_path, Result("x", "ok", "", 1.0, "x", rows=again.rows))
    assert [path.name for path in tmp_path.iterdir() if path.name != "x.rows.jsonl"] == ["x.json"]
    assert load(tmp_path, "x") == Result("x", "ok", "", 1.0, "x", rows=again.rows)
    (tmp_path / "x.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(ValueError, match=r"x\.json.*remove it"):
        load(tmp_path, "x")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_names_of_a_sections_cases_differ(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case whose name another one has had would count as measured."""
    monkeypatch.setattr(gpu_loader, "opened", lambda trial: (None, gpu_loader.Work.of(trial, samples=128)))
    for section in SECTIONS:
        names = [case.name for case in gpu_sections.cases_of(section.name)(Trial(device, tmp_path))]
        assert names
        assert len(set(names)) == len(names), section.name
        assert len(names) == 1 or not section.whole, "cut, it would begin with its next case and too little time"


def test_the_plan_fits_in_25_minutes_and_every_section_is_documented() -> None:
    assert sum(section.limit_s for section in SECTIONS) <= 25 * 60
    names = [section.name for section in SECTIONS]
    assert set(names) == {*gpu_sections.HERE, *gpu_sections.MODULES}
    assert all(names.index(section.after) < place for place, section in enumerate(SECTIONS) if section.after)
    rows = re.findall(r"^\| `(\w+)` \|.* (\d+) \|$", (ROOT / "docs" / "gpu.md").read_text(), re.M)
    assert rows == [(section.name, str(section.limit_s)) for section in SECTIONS]


def test_programs_that_measure_find_the_checkout_without_an_installation() -> None:
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        text = path.read_text()
        if "__main__" in text and (first := re.search(r"^(from|import) (benchmarks|tests)\b", text, re.M)):
            assert "sys.path.insert(0," in text[: first.start()], path.name
